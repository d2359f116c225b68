import { spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { bundle } from '../support/bundle.js'
import { freshDatabase, type TestDatabase } from '../support/postgres.js'
import { SERVER_SECRET, startServer, type TestProcess } from '../support/process.js'
import { startRedis } from '../support/redis.js'
import { call, steady } from '../support/traffic.js'

// The package as it was when it first followed a feed of changes, with tables of version 5.
const ROOT = join(__dirname, '..', '..')
const EARLIER = join(ROOT, '.tmp', 'earlier')
const SOURCE = join(EARLIER, 'dist', 'esm')
let earlier: string

beforeAll(async () => {
  rmSync(EARLIER, { recursive: true, force: true })
  mkdirSync(EARLIER, { recursive: true })
  const { status, stderr } = spawnSync('tar', ['xzf', join(__dirname, 'upgrade', 'first-feed.tar.gz'), '-C', EARLIER], { encoding: 'utf8' })
  expect([status, stderr]).toEqual([0, ''])
  earlier = await bundle(join(ROOT, 'test', 'support', 'server.ts'), join(EARLIER, 'server.mjs'), SOURCE)
})

interface Made {
  readonly id: string
  readonly secret: string
}

/** Has the earlier release make its tables, and keys in them. */
function keysOfEarlier({ url }: TestDatabase, count: number): Made[] {
  const program = join(EARLIER, 'keys.mjs')
  writeFileSync(
    program,
    `import { Pool } from 'pg'
import { createApiKeys } from ${JSON.stringify(join(SOURCE, 'index.js'))}
import { postgresStore } from ${JSON.stringify(join(SOURCE, 'store', 'sql', 'postgres.js'))}
const pool = new Pool({ connectionString: process.env.STORE_URL })
const keys = createApiKeys({ store: postgresStore(pool), serverSecret: process.env.SERVER_SECRET })
await keys.migrate()
const made = []
for (let n = 0; n < ${count}; n++) {
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  made.push({ id: key.id, secret })
}
await keys.close()
await pool.end()
console.log(JSON.stringify(made))
`,
  )
  const { stdout, stderr } = spawnSync(process.execPath, [program], {
    encoding: 'utf8',
    env: { ...process.env, STORE_URL: url, SERVER_SECRET },
  })
  expect(stderr).toBe('')
  return JSON.parse(stdout) as Made[]
}

async function versionIn({ pool }: TestDatabase): Promise<number> {
  const { rows } = await pool.query<{ version: number }>('select max(version)::integer as version from express_api_key_migrations')
  return rows[0]?.version ?? 0
}

test('in a rolling deploy nobody is locked out, dead is dead on every instance, and the other release finds a lost answer', async () => {
  const database = await freshDatabase()
  const redis = await startRedis()
  const env = { STORE_URL: database.url, REDIS_URL: redis.url }
  const keys = keysOfEarlier(database, 12)
  const up: TestProcess[] = await Promise.all([startServer(env, earlier), startServer(env, earlier)])
  expect(await versionIn(database)).toBe(5)

  const [used] = keys.splice(0, 1) as [Made]
  let turn = 0
  const traffic = steady(() => call(`${up[turn++ % up.length]?.url}/data`, { secret: used.secret }))
  await rotated(up, keys.splice(0, 2))
  await traffic.seen(50)

  // The first process of this release upgrades the tables, under those that are at work on them.
  up.push(await startServer(env))
  expect(await versionIn(database)).toBeGreaterThan(5)
  await rotated(up, keys.splice(0, 6))
  await traffic.seen(50)

  up.push(await startServer(env))
  const old = up.splice(0, 2)
  // A load balancer asks nothing more of a process that is to go.
  await traffic.seen(4)
  for (const process of old) await process.kill('SIGTERM')
  await rotated(up, keys.splice(0, 2))
  await traffic.seen(50)
  const statuses = await traffic.stop()
  expect([...statuses.keys()].filter((status) => status !== 200 && status !== 503)).toEqual([])
})

/** Rotates each key at one instance, loses the answer, asks another for it, and looks at all of them. */
async function rotated(up: readonly TestProcess[], keys: readonly Made[]): Promise<void> {
  const pairs = up.flatMap((here) => up.filter((there) => there !== here).map((there) => [here, there] as const))
  expect(pairs).toHaveLength(keys.length)
  for (const [index, [here, there]] of pairs.entries()) {
    const { id, secret } = keys[index] as Made
    for (const { url } of up) expect((await call(`${url}/data`, { secret })).status).toBe(200)
    const request = { method: 'POST', secret, idempotencyKey: `rotation-${id}` } as const
    const first = await call(`${here.url}/keys/${id}/rotate`, request)
    expect(first.status).toBe(200)
    for (const { url } of up) expect((await call(`${url}/data`, { secret })).status).toBe(401)
    const again = await call(`${there.url}/keys/${id}/rotate`, request)
    expect([again.status, again.headers.get('idempotent-replayed')]).toEqual([200, 'true'])
    const { secret: fresh } = again.body as { secret: string }
    expect(fresh).toBe((first.body as { secret: string }).secret)
    for (const { url } of up) expect((await call(`${url}/data`, { secret: fresh })).status).toBe(200)
    expect((await call(`${there.url}/keys/${id}/revoke`, { ...request, secret: fresh, idempotencyKey: `end-${id}` })).status).toBe(200)
    for (const { url } of up) expect((await call(`${url}/data`, { secret: fresh })).status).toBe(401)
  }
}

test('an earlier release on the tables of a later one starts with a word on what to do, and changes nothing', async () => {
  const database = await freshDatabase()
  await startServer({ STORE_URL: database.url })
  const version = await versionIn(database)
  await expect(startServer({ STORE_URL: database.url }, earlier)).rejects.toThrow(/made by a newer release/)
  expect(await versionIn(database)).toBe(version)
})
