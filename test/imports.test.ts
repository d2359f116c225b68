import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'

const SRC = join(__dirname, '../src')

/** What each part of the house may import: files and folders under src, and packages. */
const ALLOWED: Record<string, readonly RegExp[]> = {
  'errors.ts': [],
  store: [/^store\//, /^errors\.ts$/, /^kysely$/],
  cache: [/^cache\//, /^errors\.ts$/, /^ioredis$/],
  core: [/^core\//, /^store\/store\.ts$/, /^cache\/cache\.ts$/, /^errors\.ts$/, /^node:/],
  http: [/^http\//, /^core\//, /^errors\.ts$/, /^express$/, /^node:http$/],
  testing: [/^store\/store\.ts$/, /^errors\.ts$/, /^node:/],
}

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'))

test.each(files.filter((file) => file.includes('/') || file === 'errors.ts'))('%s imports only what its part of the house may', (file) => {
  const allowed = ALLOWED[file.split('/')[0] ?? ''] ?? []
  for (const imported of importsOf(file)) {
    expect(`${file} imports ${allowed.some((pattern) => pattern.test(imported)) ? 'nothing else' : imported}`).toBe(
      `${file} imports nothing else`,
    )
  }
})

test.each([
  ['express', /^http\//],
  ['kysely', /^store\/(sql|migrations|postgres|sqlite)\.ts$/],
  ['ioredis', /^cache\/redis\.ts$/],
])('%s appears only where it belongs', (name, where) => {
  const users = files.filter((file) => importsOf(file).includes(name))
  expect(users.length).toBeGreaterThan(0)
  expect(users.filter((file) => !where.test(file))).toEqual([])
})

test('entries export by name, one name a line', () => {
  const entries = files.filter((file) => !file.includes('/') && file !== 'errors.ts')
  expect(entries.sort()).toEqual(['index.ts', 'postgres.ts', 'redis.ts', 'sql.ts', 'sqlite.ts', 'testing.ts'])
  for (const entry of entries) {
    for (const line of readFileSync(join(SRC, entry), 'utf8').trim().split('\n')) {
      expect(line).toMatch(/^export (type )?\{ \w+ \} from '\.\/[\w/-]+\.js'$/)
    }
  }
})

function importsOf(file: string): string[] {
  const text = readFileSync(join(SRC, file), 'utf8')
  return [...text.matchAll(/^(?:import|export)\b[^'";=]*?\bfrom '([^']+)'/gm)].map(([, name = '']) =>
    name.startsWith('.') ? relative(SRC, join(SRC, file, '..', name)).replace(/\.js$/, '.ts') : name,
  )
}
