import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, normalize, relative } from 'node:path'
import { anchorsOf, type Block, blocksOf, linksOf, PAGES, pageText, ROOT } from './support/documents.js'
import { freshDatabase } from './support/postgres.js'
import { startRedis } from './support/redis.js'

const FOLDER = join(ROOT, '.tmp/documents')

/** Pages whose blocks another test runs. */
const HELD_ELSEWHERE: { readonly [page: string]: string } = {
  'docs/clients.md': 'test/clients-page.test.ts',
  'docs/guides/graphql.md': 'test/wide/pages/programs.ts',
  'docs/guides/key-or-session.md': 'test/wide/pages/programs.ts',
  'docs/guides/nest.md': 'test/wide/pages/programs.ts',
  'docs/guides/pglite.md': 'test/wide/pages/programs.ts',
  'docs/guides/users-manage-their-keys.md': 'test/wide/pages/programs.ts',
  'docs/guides/orms.md': 'test/wide/orms/application.ts',
  'docs/guides/websocket.md': 'test/wide/pages/programs.ts',
}

/** Files that a page shows, each in one block or several, by the places of these among its programs; tests of their own run the files. */
const FILES: { readonly [page: string]: { readonly [file: string]: readonly number[] } } = {
  'README.md': { 'example-app/quick-start.mjs': [0] },
  'docs/getting-started.md': { 'example-app/minimal.mjs': [0] },
  'docs/contracts.md': { 'example-app/json-api.ts': [1, 2, 3, 4] },
  'docs/guides/stores-and-caches.md': { 'test/examples/store.test.ts': [0], 'test/examples/cache.test.ts': [1] },
  'docs/guides/move-from.md': {
    'test/wide/moving/from-better-auth.ts': [0],
    'test/wide/moving/from-http-bearer.ts': [1],
    'test/wide/moving/from-unkey.ts': [2],
    'test/wide/moving/beside-tokens.ts': [3],
  },
  'docs/guides/mysql.md': { 'test/wide/mysql/keys.ts': [0] },
  'docs/guides/testing.md': { 'test/examples/app.test.ts': [0], 'test/examples/time.test.ts': [1] },
}

/** What the other blocks take for granted; each has a scene of its own. */
const SCENE = `
import { generateKeyPairSync, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import express, { type Express } from 'express'
import { type ApiKey, ApiKeyError, type ApiKeys, apiKeyOf, basic, bearer, bearerAuth, contracts, createApiKeys, hasScope, header, keyRouter, memoryStore } from 'express-api-keys'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { jsonApi } from '../../example-app/json-api.js'
export { ApiKeyError, apiKeyOf, basic, bearer, bearerAuth, contracts, createApiKeys, hasScope, header, jsonApi, keyRouter, memoryStore, randomUUID }
export const serverSecret: string = 'the-secret-of-the-documents-0123456789'
export const pepper: string = 'the-pepper-of-the-documents-0123456789'
export const oldPepper: string = 'the-pepper-of-the-old-system'
export const keys: ApiKeys = createApiKeys({ store: memoryStore(), serverSecret })
const issued = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci', scopes: ['reports:read'] })
export const key: ApiKey = issued.key
export const secret: string = issued.secret
export const idempotencyKey: string = randomUUID()
export const app: Express = express()
export const pool: Pool = new Pool({ connectionString: process.env.DATABASE_URL })
export const redis: Redis = new Redis(process.env.REDIS_URL ?? '', { lazyConnect: true })
export const publicKeyPem: string = generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({ type: 'spki', format: 'pem' }).toString()
/** Listens, and says where. */
export async function listening(): Promise<{ url: string; close(): void }> {
  const server = app.listen(0)
  await once(server, 'listening')
  return { url: \`http://127.0.0.1:\${(server.address() as AddressInfo).port}\`, close: () => server.close() }
}
`
const SCENE_NAMES = [...SCENE.matchAll(/^export (?:const|async function) (\w+)/gm)]
  .map(([, name = '']) => name)
  .concat((/^export \{ (.*) \}$/m.exec(SCENE)?.[1] ?? '').split(', '))

/** What is done with a block, where running it is not enough; it goes behind the block that has this text. */
const TRIALS: { readonly [text: string]: string } = {
  "keys.on('rotated'": `
app.get('/guarded', bearerAuth(keys), (_req, res) => { res.end() })
await keys.rotate({ as: 'application', id: key.id })
const server = await listening()
await fetch(\`\${server.url}/guarded\`, { headers: { authorization: \`Bearer \${secret}\` } })
server.close()
`,
  'async function rotate(url, secret, idempotencyKey)': `
let asked = 0
const trouble = [[503, new Date(0).toUTCString()], [502, '0'], [500, '0'], [504, '0']]
app.use('/lossy', (req, res, next) => {
  const { end } = res
  const [status, retryAfter] = trouble[asked - 1] ?? []
  // The first response is lost after the work is done; then the server and its proxies have trouble.
  if (asked++ === 0) res.end = () => req.socket.destroy()
  else if (status !== undefined) { res.status(Number(status)).setHeader('Retry-After', String(retryAfter)); end.call(res, '<html>', 'utf8'); return }
  next()
}, keyRouter(keys))
const server = await listening()
const fresh = await rotate(\`\${server.url}/lossy\`, secret, idempotencyKey)
server.close()
console.log(asked, (await keys.verify(secret)).ok, (await keys.verify(fresh)).ok) // 6 false true
console.log([new Date(0).toUTCString(), '0', '5', '3600', 'soon'].map(waitMs)) // [ 200, 200, 5000, 30000, 1000 ]
`,
  'async function shutDown()': `
await shutDown()
console.log(server.listening, (await instance.verify(secret).catch((error) => error)).message) // false These API keys have been closed.
`,
  "app.post('/account/keys/:id/rotate'": `
const server = await listening()
const rotate = (idempotencyKey: string): Promise<globalThis.Response> =>
  fetch(\`\${server.url}/account/keys/\${key.id}/rotate\`, { method: 'POST', headers: { 'idempotency-key': idempotencyKey } })
const refused = await rotate('short')
console.log(refused.status, refused.headers.get('cache-control'), /idempotency_key_invalid/.test(await refused.text())) // 400 no-store true
console.log((await rotate(idempotencyKey)).status) // 200
server.close()
`,
  'const token = jwt.sign(': `
const server = await listening()
const responses = await Promise.all([token, \`\${token}x\`].map((one) => fetch(\`\${server.url}/v1/api-keys\`, { headers: { authorization: \`Bearer \${one}\` } })))
server.close()
console.log(responses.map(({ status }) => status)) // [ 200, 401 ]
`,
}

/** As in an application: what is declared need not be used, and JavaScript is not checked. */
const RELAXED = { allowJs: true, noUnusedLocals: false, isolatedDeclarations: false, declaration: false, types: ['node'] }

test('every page is in the menu of the site, and the menu has no other', async () => {
  const text = readFileSync(join(ROOT, 'site/pages.mjs'), 'utf8')
  const listed = [...text.matchAll(/^ {6}\['.*', '(.*)'\],$/gm)].map(([, file = '']) => file)
  expect(new Set(listed).size).toBe(listed.length)
  expect(listed.sort()).toEqual(PAGES)
})

test('every link leads to a file, and every anchor to a heading', () => {
  const broken: string[] = []
  for (const page of PAGES) {
    for (const link of linksOf(page)) {
      const [path = '', anchor] = link.split('#')
      const target = path === '' ? page : normalize(join(dirname(page), path))
      const found = existsSync(join(ROOT, target)) && (anchor === undefined || (target.endsWith('.md') && anchorsOf(target).has(anchor)))
      if (!found) broken.push(`${page}: ${link}`)
    }
  }
  expect(broken).toEqual([])
})

test.each(Object.entries(FILES))('what %s shows of files is those files', (page, files) => {
  const shown = blocksOf(page).filter(({ language }) => runs(language))
  for (const [file, places] of Object.entries(files)) {
    const comment = /^\/\*\*.*\*\/\n/gm
    expect(places.map((place) => shown[place]?.code).join('')).toBe(readFileSync(join(ROOT, file), 'utf8').replaceAll(comment, ''))
  }
})

test('pages that another test runs are named in that test', () => {
  for (const [page, file] of Object.entries(HELD_ELSEWHERE)) expect(readFileSync(join(ROOT, file), 'utf8')).toContain(page)
})

test('every block is found, and those that are no programs are well formed', () => {
  for (const page of PAGES) expect([page, blocksOf(page).length * 2]).toEqual([page, [...pageText(page).matchAll(/^\s*```/gm)].length])
  for (const { page, line, language, code } of PAGES.flatMap(blocksOf)) {
    const where = `${page}:${line}`
    if (language === 'json') expect(() => JSON.parse(code)).not.toThrow()
    else if (language === 'sh') expect([where, spawnSync('bash', ['-n'], { input: code, encoding: 'utf8' }).stderr]).toEqual([where, ''])
    else if (!runs(language) && HELD_ELSEWHERE[page] === undefined)
      expect([where, ['', 'http', 'sql']]).toEqual([where, expect.arrayContaining([language])])
  }
})

test('every other block compiles, runs, and prints what its comments say', async () => {
  const [{ url }, redis] = [await freshDatabase(), await startRedis()]
  rmSync(FOLDER, { recursive: true, force: true })
  mkdirSync(FOLDER, { recursive: true })
  const blocks = PAGES.filter((page) => HELD_ELSEWHERE[page] === undefined).flatMap(programsOf)
  expect(blocks.length).toBeGreaterThan(30)
  blocks.forEach((block, index) => {
    writeFileSync(join(FOLDER, `${index}.scene.mts`), SCENE)
    writeFileSync(join(FOLDER, `${index}.m${block.language}`), program(block, index))
  })
  const all = blocks.map(({ language }, index) => `console.log('\\0')\nawait import('./${index}.m${language.replace('t', 'j')}')\n`)
  writeFileSync(join(FOLDER, 'all.mts'), `${all.join('')}process.exit()\nexport {}\n`)
  writeFileSync(
    join(FOLDER, 'tsconfig.json'),
    JSON.stringify({ extends: '../../tsconfig.json', compilerOptions: RELAXED, include: ['*.mts', '*.mjs'] }),
  )
  node(['node_modules/typescript/bin/tsc', '-p', FOLDER], ROOT)
  const env = { DATABASE_URL: url, REDIS_URL: redis.url, API_KEYS_SECRET: 'the-secret-of-the-documents-0123456789' }
  const [, ...printed] = node(['--import', 'tsx', join(FOLDER, 'all.mts')], FOLDER, env).split('\0\n')
  const expected = blocks.map((block) => ({ at: `${block.page}:${block.line}`, prints: promisedBy(block) }))
  const found = printed.map((text, index) => ({
    at: expected[index]?.at,
    prints: expected[index]?.prints.length === 0 ? [] : text.trimEnd().split('\n'),
  }))
  expect(found).toEqual(expected)
})

test('CONTRIBUTING names every folder that is not a mirror of one in src', () => {
  const tree = pageText('CONTRIBUTING.md')
  const folders = (parent: string, recursive: boolean): string[] =>
    readdirSync(join(ROOT, parent), { withFileTypes: true, recursive })
      .filter((entry) => entry.isDirectory())
      .map((entry) => relative(join(ROOT, parent), join(entry.parentPath, entry.name)))
  const sources = folders('src', true)
  const tests = folders('test', false).filter((folder) => !sources.includes(folder))
  const wanted = [...sources, ...tests].map((folder) => basename(folder))
  expect(wanted.filter((folder) => !new RegExp(`^ +${folder}/ `, 'm').test(tree))).toEqual([])
})

test('no page shows a change that does not say who asks', () => {
  for (const page of PAGES) {
    const calls = [...pageText(page).matchAll(/keys\.(?:create|rotate|revoke|update)\((.{0,20})/gs)].map(([call]) => `${page}: ${call}`)
    expect(calls.filter((call) => !/\(\{\s+as: |\(\)?`/.test(call))).toEqual([])
  }
})

function runs(language: string): boolean {
  return language === 'js' || language === 'ts'
}

/** The blocks of a page that are programs of their own. */
function programsOf(page: string): Block[] {
  const files = Object.values(FILES[page] ?? {}).flat()
  return blocksOf(page)
    .filter(({ language }) => runs(language))
    .filter((_, place) => !files.includes(place))
}

/** What a block says that it prints: the comments behind its calls of console.log. */
function promisedBy({ code }: Block): string[] {
  return [...withTrial(code).matchAll(/^.*console\.log\(.*\) \/\/ (.+)$/gm)].map(([, text = '']) => text)
}

function withTrial(code: string): string {
  return code + (Object.entries(TRIALS).find(([text]) => code.includes(text))?.[1] ?? '')
}

function program({ page, line, code }: Block, index: number): string {
  const text = withTrial(code)
  const taken = new Set([...text.matchAll(/(?:const|let|function) (\w+)/g)].map(([, name]) => name))
  const lists = [...text.matchAll(/^\s*(?:import(?: type)?|const) \{(.*?)\}/gms)].map(([, names = '']) => names)
  for (const names of lists)
    for (const one of names.split(','))
      taken.add(
        one
          .split(/:| as /)
          .at(-1)
          ?.replace(/^\s*type /, '')
          .trim(),
      )
  const given = SCENE_NAMES.filter((name) => new RegExp(`\\b${name}\\b`).test(text) && !taken.has(name))
  return `// ${page}:${line}\nimport { ${given.join(', ')} } from './${index}.scene.mjs'\n${text}\nexport {}\n`
}

function node(args: string[], cwd: string, more: Record<string, string> = {}): string {
  try {
    const env = { ...process.env, ...more, TSX_TSCONFIG_PATH: join(FOLDER, 'tsconfig.json') }
    return execFileSync(process.execPath, args, { cwd, encoding: 'utf8', env, stdio: ['ignore', 'pipe', 'pipe'] })
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string }
    throw new Error(`${args.join(' ')}: ${stdout}${stderr}`)
  }
}
