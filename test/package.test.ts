import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { atEnd } from './support/cleanup.js'

const ROOT = join(__dirname, '..')
const ENTRIES = ['', '/postgres', '/sqlite', '/sql', '/redis', '/jwt', '/testing'].map((name) => `express-api-keys${name}`)

let folder: string
let packed: { files: { path: string }[] }

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'package-'))
  atEnd(async () => rmSync(folder, { recursive: true }))
  const said = run('npm', ['pack', '--json', '--pack-destination', folder], ROOT)
  // The build speaks first.
  const report: unknown = JSON.parse(said.slice(said.search(/^[[{]/m)))
  packed = (Array.isArray(report) ? report : Object.values(report as object))[0]
  writeFileSync(join(folder, 'package.json'), '{"private":true}')
  const own = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { devDependencies: Record<string, string> }
  const peers = ['express', '@types/express', '@types/node', 'typescript'].map((name) => `${name}@${own.devDependencies[name]}`)
  const tarball = join(folder, 'express-api-keys-0.1.0.tgz')
  run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', tarball, ...peers], folder)
}, 120_000)

test('the package holds the two builds and what npm always adds, and nothing else', () => {
  const strangers = packed.files.filter(({ path }) => !/^(dist\/(esm|cjs)\/|package\.json$|README\.md$|LICENSE$)/.test(path))
  expect(strangers).toEqual([])
  expect(packed.files.some(({ path }) => path === 'dist/cjs/package.json')).toBe(true)
})

test('every entry loads from CommonJS, without the peers that only other entries need', () => {
  const script = `for (const entry of ${JSON.stringify(ENTRIES)}) console.log(entry, Object.keys(require(entry)).length > 0)`
  expect(run(process.execPath, ['-e', script], folder)).toBe(ENTRIES.map((entry) => `${entry} true\n`).join(''))
})

test('every entry loads from ESM, and its error class is the one that CommonJS gets', () => {
  writeFileSync(
    join(folder, 'both.mjs'),
    `import { createRequire } from 'node:module'
    import * as index from 'express-api-keys'
    const require = createRequire(import.meta.url)
    for (const entry of ${JSON.stringify(ENTRIES)}) console.log(entry, Object.keys(await import(entry)).length > 0)
    console.log(require('express-api-keys').ApiKeyError === index.ApiKeyError)
    try { (await import('express-api-keys/sqlite')).sqliteStore(1) } catch (error) { console.log(error instanceof index.ApiKeyError) }`,
  )
  expect(run(process.execPath, ['both.mjs'], folder)).toBe(`${ENTRIES.map((entry) => `${entry} true\n`).join('')}true\ntrue\n`)
})

test.each([
  ['an ES module', 'app.mts'],
  ['CommonJS', 'app.cts'],
])('its types serve an application in %s', (_kind, file) => {
  writeFileSync(
    join(folder, file),
    `import { bearerAuth, contracts, createApiKeys, idempotencyKey, keyRouter, memoryStore, type ApiKey, type ApiKeyErrorCode } from 'express-api-keys'
    import { postgresStore } from 'express-api-keys/postgres'
    import { sqliteStore } from 'express-api-keys/sqlite'
    import type { RequestHandler } from 'express'
    export const keys = createApiKeys({ store: memoryStore(), secret: 'x'.repeat(32), leaseMs: 500 })
    export const handlers: RequestHandler[] = [bearerAuth(keys, { scope: ['a', 'b'] }), idempotencyKey({ required: true })]
    export const router = keyRouter(keys, { contract: contracts.standard })
    export const owner: RequestHandler = (req, res) => { const key: ApiKey | undefined = req.apiKey; res.json(key?.ownerId) }
    export async function use(): Promise<string> {
      const result = await keys.verify('x')
      if (!result.ok) { const reason: 'malformed' | 'unknown' | 'expired' | 'revoked' | 'rotated' = result.reason; return reason }
      return (await keys.rotate({ as: 'application', id: result.key.id })).secret
    }
    export const code: ApiKeyErrorCode = 'invalid_key'
    export const stores = [postgresStore, sqliteStore]
    // @ts-expect-error a misspelt option is a type error
    createApiKeys({ stroe: memoryStore(), secret: '' })`,
  )
  const tsc = join(folder, 'node_modules/typescript/bin/tsc')
  const flags = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022', '--skipLibCheck', 'false', '--types', 'node']
  expect(run(process.execPath, [tsc, ...flags, '--exactOptionalPropertyTypes', file], folder)).toBe('')
})

test('it brings along five libraries, and at most forty packages in all', () => {
  const { dependencies } = JSON.parse(run('npm', ['ls', '--all', '--json'], folder)) as {
    dependencies: Record<string, { dependencies?: Record<string, { version?: string }> }>
  }
  // Peers that are optional and absent are listed without a version.
  const installed = Object.entries(dependencies['express-api-keys']?.dependencies ?? {}).filter(([, { version }]) => version !== undefined)
  const own = installed.map(([name]) => name).filter((name) => name !== 'express')
  expect(own).toEqual(['bcrypt', 'express-rate-limit', 'jsonwebtoken', 'kysely', 'rate-limit-redis'])
  const count = (...names: string[]): number => {
    const alone = mkdtempSync(join(tmpdir(), 'package-'))
    atEnd(async () => rmSync(alone, { recursive: true }))
    writeFileSync(join(alone, 'package.json'), '{"private":true}')
    run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', '--ignore-scripts', ...names], alone)
    return run('npm', ['ls', '--all', '--parseable'], alone).trim().split('\n').length
  }
  const added = count('express', join(folder, 'express-api-keys-0.1.0.tgz')) - count('express')
  expect(added).toBeGreaterThan(5)
  expect(added).toBeLessThanOrEqual(40)
}, 120_000)

function run(command: string, args: string[], cwd: string): string {
  try {
    return execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string }
    throw new Error(`${command} ${args.join(' ')}: ${stdout}${stderr}`)
  }
}
