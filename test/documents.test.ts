import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const ROOT = join(__dirname, '..')
const FOLDER = join(ROOT, '.tmp/documents')
// The blocks for clients are programs of the wide tests, and `clients-page.test.ts` holds that.
const DOCUMENTS = ['README.md', 'SECURITY.md', ...readdirSync(join(ROOT, 'docs')).map((name) => `docs/${name}`)].filter(
  (name) => name.endsWith('.md') && name !== 'docs/clients.md',
)

/** Blocks that are files of the repository, or make one up together, in their order; tests run these files. */
const FILES: { readonly [document: string]: { readonly file: string; readonly blocks: number } } = {
  'README.md': { file: 'example-app/minimal.mjs', blocks: 1 },
  'docs/contracts.md': { file: 'example-app/json-api.ts', blocks: 4 },
  'docs/testing.md': { file: 'test/examples/time.test.ts', blocks: 1 },
}

/** What the other blocks take for granted. */
const SCENE = `
import { generateKeyPairSync, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import express, { type Express } from 'express'
import { type ApiKeys, bearerAuth, contracts, createApiKeys, keyRouter, memoryStore } from 'express-api-keys'
import { jsonApi } from '../../example-app/json-api.js'
export const keys: ApiKeys = createApiKeys({ store: memoryStore(), serverSecret: 'the-secret-of-the-documents-0123456789' })
export const app: Express = express()
export const publicKeyPem: string = generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({ type: 'spki', format: 'pem' }).toString()
/** Listens, and says where. */
export async function listening(): Promise<{ url: string; close(): void }> {
  const server = app.listen(0)
  await once(server, 'listening')
  return { url: \`http://127.0.0.1:\${(server.address() as AddressInfo).port}\`, close: () => server.close() }
}
export { bearerAuth, contracts, jsonApi, keyRouter, randomUUID }
`
const SCENE_NAMES = ['keys', 'app', 'publicKeyPem', 'bearerAuth', 'contracts', 'jsonApi', 'keyRouter', 'listening', 'randomUUID']

/** What is done with a block, where running it is not enough; it goes behind the block that has this text. */
const TRIALS: { readonly [text: string]: string } = {
  "keys.on('rotated'": `
const one = await keys.create({ as: 'application', ownerId: 'acme', name: 'a key that listeners hear of' })
await keys.rotate({ as: 'application', id: one.key.id })
app.get('/guarded', bearerAuth(keys), (_req, res) => { res.end() })
const server = await listening()
await fetch(\`\${server.url}/guarded\`, { headers: { authorization: \`Bearer \${one.secret}\` } })
server.close()
`,
  'async function rotate(url, secret, idempotencyKey)': `
const { secret: old } = await keys.create({ as: 'application', ownerId: 'acme', name: 'a key of a client' })
let lost = 0
app.use('/lossy', (req, res, next) => {
  const { end } = res
  // The first answer is lost after the work is done; the second time the server has trouble.
  if (lost++ === 0) res.end = () => req.socket.destroy()
  else if (lost === 2) { res.status(503).setHeader('Retry-After', '0'); end.call(res, '{}', 'utf8'); return }
  next()
}, keyRouter(keys))
const server = await listening()
const idempotencyKey = randomUUID()
const fresh = await rotate(\`\${server.url}/lossy\`, old, idempotencyKey)
server.close()
const verdicts = [await keys.verify(old), await keys.verify(fresh)].map(({ ok }) => ok)
console.log(\`the client asked \${lost} times, and has \${verdicts}\`)
`,
}

/** As in an application: what is declared need not be used, and JavaScript is not checked. */
const RELAXED = {
  allowJs: true,
  noUnusedLocals: false,
  isolatedDeclarations: false,
  declaration: false,
  types: ['node'],
}

interface Block {
  readonly document: string
  /** `js` or `ts`. */
  readonly language: string
  readonly code: string
}

function blocksOf(document: string): Block[] {
  const text = readFileSync(join(ROOT, document), 'utf8')
  return [...text.matchAll(/^```(js|ts)\n(.*?)^```$/gms)].map(([, language = '', code = '']) => ({ document, language, code }))
}

test.each(Object.entries(FILES))('what %s shows of a file is that file', (document, { file, blocks }) => {
  const shown = blocksOf(document).slice(0, blocks)
  expect(shown).toHaveLength(blocks)
  const comment = /^\/\*\*.*\*\/\n/gm
  expect(shown.map(({ code }) => code).join('')).toBe(readFileSync(join(ROOT, file), 'utf8').replaceAll(comment, ''))
})

test('every other block compiles and runs', () => {
  rmSync(FOLDER, { recursive: true, force: true })
  mkdirSync(FOLDER, { recursive: true })
  const blocks = DOCUMENTS.flatMap((document) => blocksOf(document).slice(FILES[document]?.blocks ?? 0))
  expect(blocks.length).toBeGreaterThan(5)
  const names = blocks.map((block, index) => {
    const name = `${index}.m${block.language}`
    writeFileSync(join(FOLDER, name), program(block))
    return name
  })
  writeFileSync(join(FOLDER, 'scene.mts'), SCENE)
  writeFileSync(join(FOLDER, 'all.mts'), names.map((name) => `await import('./${name}')\n`).join(''))
  writeFileSync(
    join(FOLDER, 'tsconfig.json'),
    JSON.stringify({ extends: '../../tsconfig.json', compilerOptions: RELAXED, include: ['*.mts', '*.mjs'] }),
  )
  node(['node_modules/typescript/bin/tsc', '-p', FOLDER])
  const said = node(['--import', 'tsx', join(FOLDER, 'all.mts')])
  expect(said).toContain('system rotated a key that listeners hear of\n')
  expect(said).toContain('denied: invalid_key, rotated undefined 127.0.0.1\n')
  expect(said).toContain('the client asked 3 times, and has false,true\n')
})

test('no document shows a change that does not say who asks', () => {
  for (const document of DOCUMENTS) {
    const text = readFileSync(join(ROOT, document), 'utf8')
    const calls = [...text.matchAll(/keys\.(?:create|rotate|revoke|update)\((.{0,20})/gs)].map(([call]) => `${document}: ${call}`)
    expect(calls.filter((call) => !/\(\{\s+as: /.test(call))).toEqual([])
  }
})

function program({ code }: Block): string {
  const taken = new Set([...code.matchAll(/(?:const|let|function) (\w+)/g)].map(([, name]) => name))
  for (const [, names = ''] of code.matchAll(/^import \{(.*?)\}/gms)) for (const name of names.match(/\w+/g) ?? []) taken.add(name)
  const trial = Object.entries(TRIALS).find(([text]) => code.includes(text))?.[1] ?? ''
  const given = SCENE_NAMES.filter((name) => new RegExp(`\\b${name}\\b`).test(code + trial) && !taken.has(name))
  return `import { ${given.join(', ')} } from './scene.mjs'\n${code}\n${trial}\nexport {}\n`
}

function node(args: string[]): string {
  try {
    const env = { ...process.env, TSX_TSCONFIG_PATH: join(FOLDER, 'tsconfig.json') }
    return execFileSync(process.execPath, args, { cwd: ROOT, encoding: 'utf8', env, stdio: ['ignore', 'pipe', 'pipe'] })
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string }
    throw new Error(`${args.join(' ')}: ${stdout}${stderr}`)
  }
}
