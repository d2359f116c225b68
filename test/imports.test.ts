import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'

const SRC = join(__dirname, '../src')

/** What each part of the house may import: files and folders under src, and packages. */
const ALLOWED: Record<string, readonly RegExp[]> = {
  'errors.ts': [],
  'options.ts': [/^errors\.ts$/],
  'real-time.ts': [/^node:(timers|perf_hooks)$/],
  'in-time.ts': [/^real-time\.ts$/],
  'drop-oldest.ts': [],
  'channel.ts': [],
  'channel-over.ts': [/^(channel|real-time)\.ts$/],
  store: [/^store\//, /^(errors|options|real-time|in-time|drop-oldest|channel|channel-over)\.ts$/, /^kysely$/, /^node:(crypto|fs)$/],
  cache: [/^cache\//, /^(errors|real-time|in-time|drop-oldest|channel|channel-over)\.ts$/, /^ioredis$/, /^node:crypto$/],
  core: [
    /^core\//,
    /^store\/store\.ts$/,
    /^cache\/cache\.ts$/,
    /^(errors|options|real-time|in-time|drop-oldest|channel|channel-over)\.ts$/,
    // No part may have an AsyncLocalStorage: before Node 24 a single one makes every promise of the process slower.
    /^node:(?!async_hooks)/,
  ],
  http: [
    /^http\//,
    /^core\//,
    /^(cache\/cache|store\/store)\.ts$/,
    /^(errors|options|real-time|in-time|drop-oldest)\.ts$/,
    /^(express|express-rate-limit|jsonwebtoken|jose)$/,
    /^node:(http|net|crypto|util|zlib)$/,
  ],
  // Nothing imports it. It loads stores and caches only when it needs them, and drivers from the project that it is run in.
  cli: [
    /^cli\//,
    /^core\/(api-keys|internals|key|report|secret)\.ts$/,
    /^(store\/(store|tools)|cache\/(cache|tools))\.ts$/,
    /^errors\.ts$/,
    /^(commander|ioredis)$/,
    /^node:/,
  ],
  testing: [
    /^testing\//,
    /^store\/(store|memory)\.ts$/,
    /^cache\/cache\.ts$/,
    /^channel\.ts$/,
    /^core\/(api-keys|clock|create-api-keys|key)\.ts$/,
    /^(errors|real-time)\.ts$/,
    /^node:/,
  ],
}

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'))

test.each(files.filter((file) => file.includes('/') || file in ALLOWED))('%s imports only what its part of the house may', (file) => {
  const allowed = ALLOWED[file.split('/')[0] ?? ''] ?? []
  for (const imported of importsOf(file)) {
    expect(`${file} imports ${allowed.some((pattern) => pattern.test(imported)) ? 'nothing else' : imported}`).toBe(
      `${file} imports nothing else`,
    )
  }
})

test.each([
  ['express', /^http\//],
  ['kysely', /^store\/sql\//],
  ['ioredis', /^(cache\/redis|cli\/connection)\//],
  ['commander', /^cli\//],
  ['express-rate-limit', /^http\/limits\//],
  ['jsonwebtoken', /^http\/operator-jwt\.ts$/],
  ['jose', /^http\/(operator-jwt|published-keys)\.ts$/],
])('%s appears only where it belongs', (name, where) => {
  const users = files.filter((file) => importsOf(file).includes(name))
  expect(users.length).toBeGreaterThan(0)
  expect(users.filter((file) => !where.test(file))).toEqual([])
})

test('no file imports itself by way of others', () => {
  const open = new Set(files)
  const circles: string[] = []
  const visit = (file: string, path: readonly string[]): void => {
    if (path.includes(file)) circles.push([...path.slice(path.indexOf(file)), file].join(' > '))
    else if (open.has(file)) {
      for (const next of importsOf(file)) visit(next, [...path, file])
      open.delete(file)
    }
  }
  for (const file of files) visit(file, [])
  expect(circles).toEqual([])
})

test('nothing imports the command line', () => {
  const users = files.filter((file) => importsOf(file).some((imported) => imported.startsWith('cli/')))
  expect(users.filter((file) => !file.startsWith('cli/'))).toEqual([])
})

test('a dialect of SQL is known to the entries for its database only', () => {
  const isDialect = (file: string): boolean => file.startsWith('store/sql/dialects/')
  const users = files.filter((file) => importsOf(file).some(isDialect))
  const entries = ['mysql', 'postgres-channel', 'postgres-pool', 'postgres', 'sql-store', 'sqlite']
  expect(users.sort()).toEqual(entries.map((name) => `store/sql/${name}.ts`))
})

test('the read path knows nothing of the write path, nor of how instances reach each other', () => {
  const reading = files.filter((file) => file.startsWith('core/verify/'))
  expect(reading.length).toBeGreaterThan(0)
  expect(reading.filter((file) => importsOf(file).some((imported) => /^core\/(change|recall)\//.test(imported)))).toEqual([])
})

test('bcrypt is loaded only when a rotation secret is there', () => {
  expect(files.filter((file) => importsOf(file).includes('bcrypt'))).toEqual([])
  const loads = files.filter((file) => readFileSync(join(SRC, file), 'utf8').includes("import('bcrypt')"))
  expect(loads).toEqual(['core/change/rotation-secret.ts'])
})

test('entries export by name, one name a line', () => {
  const entries = files.filter((file) => !file.includes('/') && !(file in ALLOWED))
  expect(entries.sort()).toEqual(['index.ts', 'testing.ts'])
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
