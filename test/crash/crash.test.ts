import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { type ApiKeys, createApiKeys } from 'express-api-keys'
import { dumpDatabase, logFile } from '../support/postgres.js'
import { SERVER_SECRET, startServer, type TestProcess } from '../support/process.js'
import { startRedis, type TestRedis } from '../support/redis.js'
import { stores, type TestStore } from '../support/stores.js'
import { type Answer, call, type Sent, steady, verdict } from '../support/traffic.js'

/** Where a rotation is killed, by the steps of its protocol, and whether it has happened by then. */
const STEPS: readonly (readonly [step: string, at: string, done: boolean | 'either'])[] = [
  ['0, before anything was read', 'before request', false],
  ['0, before the store was asked', 'before store.read', false],
  ['0, when the store has said whose secret it is', 'after store.read', false],
  ['1, right after BEGIN', 'after begin', false],
  ['2, before the row is locked', 'before tx.lockKeys', false],
  ['2, with the row locked', 'after tx.lockKeys', false],
  ['3, before the caller is authorised', 'before tx.now', false],
  ['4, when there is no replay record', 'after tx.replay', false],
  ['5, with the old generation retired', 'after tx.retireGenerations', false],
  ['5, with the new generation inserted', 'after tx.insertGeneration', false],
  ['5, with the key changed', 'after tx.updateKey', false],
  ['6, with the replay record inserted', 'after tx.insertReplay', false],
  ['7, with the audit event appended', 'after tx.appendEvent', false],
  ['8, before COMMIT is sent', 'before commit', false],
  ['8, with COMMIT sent and not answered', 'amid commit', 'either'],
  ['8, with COMMIT answered', 'after store.transaction', true],
  ['9, before the tombstone is sent', 'before cache.bury', true],
  ['9, after the tombstone', 'after cache.bury', true],
  ['10, before the wait', 'before sleep', true],
  ['10, in the middle of the wait', 'amid sleep', true],
  ['11, before it is settled', 'before store.settle', true],
  ['11, when it is settled', 'after store.settle', true],
  ['12, before the answer is written', 'before response.end', true],
  ['12, with half of the answer written', 'amid response.end', true],
  ['12, with all of the answer written', 'after response.end', true],
]
/** Those of them at which the other mutations are killed. */
const AROUND_COMMIT = ['before commit', 'amid commit', 'after store.transaction', 'amid response.end']
const OPTIONS = '{"leaseMs":100}'

interface World extends TestStore {
  readonly name: string
  readonly keys: ApiKeys
  readonly redis: TestRedis
  /** Never killed; holds leases of its own. */
  readonly verifier: TestProcess
  /** The file of the database's log that was written to at the beginning. */
  readonly since: string
  /** Serves until it is killed. */
  server: TestProcess
  start(): Promise<TestProcess>
}

let worlds: World[] = []
const secrets: string[] = []

beforeAll(async () => {
  worlds = await Promise.all(
    stores.map(async ([name, makeStore]) => {
      const [store, redis] = [await makeStore(), await startRedis()]
      const since = name === 'PostgreSQL' ? await logFile(store.url) : ''
      const keys = createApiKeys({ store: store.store, serverSecret: SERVER_SECRET, leaseMs: 100 })
      await keys.migrate()
      // It never says that it knows of a change, so that each waits for the lease.
      await store.store.join({ session: 'silent', mode: 'feed', channels: [] })
      const start = (): Promise<TestProcess> => startServer({ STORE_URL: store.url, REDIS_URL: redis.url, OPTIONS })
      return { ...store, name, since, keys, redis, verifier: await start(), server: await start(), start }
    }),
  )
})

test.each(STEPS)('P1, P2, P3: a rotation killed with SIGKILL at step %s', (_step, crash, done) =>
  onEach(async (world) => {
    const { key, secret: old } = await world.keys.create({ as: 'application', ownerId: 'acme', name: crash })
    const rotate = { method: 'POST', secret: old, idempotencyKey: nameOf(crash) }
    expect(await accepted(world.verifier, old)).toBe(200)
    const early = await killed(world, '/keys/self/rotate', { ...rotate, crash })
    if (done !== 'either') expect(await numbers(world, key.id)).toEqual(done ? [1, 2] : [1])

    const answer = await persistently(() => call(`${world.server.url}/keys/self/rotate`, rotate), { world, old })
    const renewed = secretOf(answer)
    if (done !== 'either') expect(answer.headers.get('idempotent-replayed')).toBe(done ? 'true' : null)
    expect(early === undefined || secretOf(early) === renewed).toBe(true)
    await holds(world, { id: key.id, old, renewed, generations: [1, 2] })
    expect((await typesOf(world, key.id)).filter((type) => type === 'key.rotated')).toHaveLength(1)
    await rotatesAgain(world, key.id, renewed, [1, 2, 3])
  }, crash),
)

test.each(AROUND_COMMIT)('P1, P2: a creation killed with SIGKILL %s', (crash) =>
  onEach(async (world) => {
    const ownerId = `creates ${crash}`
    const { secret } = await world.keys.create({ as: 'application', ownerId, name: 'admin', scopes: ['api_keys:write'] })
    const create = { method: 'POST', secret, idempotencyKey: nameOf(crash), body: { name: 'made' } }
    await killed(world, '/keys', { ...create, crash })
    const answer = await persistently(() => call(`${world.server.url}/keys`, create))
    const { items } = await world.keys.list({ ownerId })
    const { key } = answer.body as { key: { id: string } }
    expect(items.map(({ name, id }) => [name, id])).toEqual([
      ['made', key.id],
      ['admin', expect.any(String)],
    ])
    expect(await accepted(world.verifier, secretOf(answer))).toBe(200)
    await rotatesAgain(world, key.id, secretOf(answer), [1, 2])
  }, crash),
)

test.each(AROUND_COMMIT)('P1, P2, P3: a revocation killed with SIGKILL %s', (crash) =>
  onEach(async (world) => {
    const { key, secret } = await world.keys.create({ as: 'application', ownerId: 'acme', name: crash })
    const revoke = { method: 'POST', secret, idempotencyKey: nameOf(crash) }
    expect(await accepted(world.verifier, secret)).toBe(200)
    await killed(world, `/keys/${key.id}/revoke`, { ...revoke, crash })
    const answer = await persistently(() => call(`${world.server.url}/keys/${key.id}/revoke`, revoke), { world, old: secret })
    expect(await Promise.all([world.verifier, world.server].map((one) => accepted(one, secret)))).toEqual([401, 401])
    expect(answer.body).toMatchObject({ key: { id: key.id, status: 'revoked' } })
    expect((await call(`${world.verifier.url}/keys/${key.id}/revoke`, revoke)).body).toEqual(answer.body)
    expect((await typesOf(world, key.id)).filter((type) => type === 'key.revoked')).toHaveLength(1)
    expect(await unsettled(world, key.id)).toBe(0)
  }, crash),
)

test.each(AROUND_COMMIT)('P1, P2, P3: a rotation to a successor killed with SIGKILL %s', (crash) =>
  onEach(async (world) => {
    const ownerId = `succeeds ${crash}`
    const { key, secret: old } = await world.keys.create({ as: 'application', ownerId, name: 'old', scopes: ['api_keys:write'] })
    const rotate = { method: 'POST', secret: old, idempotencyKey: nameOf(crash) }
    expect(await accepted(world.verifier, old)).toBe(200)
    await killed(world, `/successors/${key.id}/rotate`, { ...rotate, crash })
    const answer = await persistently(() => call(`${world.server.url}/successors/${key.id}/rotate`, rotate), { world, old })
    const { id, api_key: renewed } = answer.body as { id: string; api_key: string }
    await holds(world, { id, old, renewed, generations: [1] })
    const { items } = await world.keys.list({ ownerId })
    expect(items.map((item) => [item.id, item.status, item.rotatedTo])).toEqual([
      [id, 'active', null],
      [key.id, 'revoked', id],
    ])
    await rotatesAgain(world, id, renewed, [1, 2])
  }, crash),
)

test('P1, P2: a duplicate that queues behind a process that is killed does what that one did not', () =>
  onEach(async (world) => {
    const { key, secret: old } = await world.keys.create({ as: 'application', ownerId: 'acme', name: 'twins' })
    const rotate = { method: 'POST', secret: old, idempotencyKey: 'twins' }
    const said = new Promise<void>((resolve) => {
      world.server.child.stdout?.on('data', (chunk) => String(chunk).includes('stalled') && resolve())
    })
    const lost = call(`${world.server.url}/keys/self/rotate`, { ...rotate, crash: 'stall before commit' }).catch(() => undefined)
    await said
    const twin = call(`${world.verifier.url}/keys/self/rotate`, rotate)
    if (world.name === 'PostgreSQL') {
      while ((await world.query(WAITING)).length === 0) await new Promise(setImmediate)
    }
    await world.server.kill()
    await lost
    const answer = await twin
    expect([answer.status, answer.headers.get('idempotent-replayed')]).toEqual([200, null])
    world.server = await world.start()
    expect((await call(`${world.server.url}/keys/self/rotate`, rotate)).body).toEqual(answer.body)
    await holds(world, { id: key.id, old, renewed: secretOf(answer), generations: [1, 2] })
  }))

test('P4: after all this no secret is in the database, its log, or Redis, and PostgreSQL has no session or lock left over', () =>
  onEach(async (world) => {
    const postgres = world.name === 'PostgreSQL'
    const dump = await dumpOf(world)
    const places = { dump: dump.toString('latin1'), cached: await world.redis.dump() }
    const found = (words: readonly string[]): [string, readonly string[]][] =>
      Object.entries(places).map(([place, text]) => [place, words.filter((word) => text.includes(word))])
    // What has to be there is, so that the search is one.
    const digests = secrets.map((secret) => createHash('sha256').update(secret).digest('base64url'))
    for (const [place, there] of found(digests)) expect([place, there.length > 20]).toEqual([place, true])
    // By their random part, so that no other writing of the whole one can hide it.
    expect(found(secrets.map((secret) => secret.slice(-49, -6)))).toEqual([
      ['dump', []],
      ['cached', []],
    ])
    if (!postgres) return
    await Promise.all([world.server, world.verifier].map(({ kill }) => kill()))
    while ((await world.query(LEFT_OVER)).length > 0) await new Promise(setImmediate)
  }))

const WAITING = `select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
const LEFT_OVER = `select 1 from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'`

/** The same on each database, at once; the failure of one says which. */
async function onEach(work: (world: World) => Promise<void>, step = ''): Promise<void> {
  // On SQLite a COMMIT is a call, and not under way while anything else happens in this process.
  const there = worlds.filter(({ name }) => name !== 'SQLite' || step !== 'amid commit')
  const outcomes = await Promise.allSettled(there.map(work))
  for (const [index, outcome] of outcomes.entries()) {
    if (outcome.status === 'fulfilled') continue
    const { reason } = outcome as { reason: Error }
    reason.message = `On ${there[index]?.name}: ${reason.message}`
    throw reason
  }
}

/** Sends a request in which the server is killed, and starts another one; resolves with the answer, in case it came all the same. */
async function killed(world: World, path: string, sent: Sent): Promise<Answer | undefined> {
  const { server } = world
  const answer = await call(server.url + path, sent).catch(() => undefined)
  await server.gone
  expect(server.child.signalCode).toBe('SIGKILL')
  world.server = await world.start()
  return answer
}

/**
 * A client that repeats its request as it is told to, until it has the answer; nothing but 503 may come before. Somebody uses the `old` secret
 * all the while, so that a lease is there to be waited for.
 */
async function persistently(send: () => Promise<Answer>, used?: { world: World; old: string }): Promise<Answer> {
  const usage = used && steady(() => call(`${used.world.verifier.url}/data`, { secret: used.old }))
  try {
    await usage?.seen(1)
    for (;;) {
      const answer = await send()
      if (answer.status < 300) {
        if (used !== undefined) expect(await accepted(used.world.verifier, used.old)).toBe(401)
        return answer
      }
      expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
    }
  } finally {
    await usage?.stop()
  }
}

/** One active secret, which is the one that the client holds; the old one is dead in every process. */
async function holds(world: World, it: { id: string; old: string; renewed: string; generations: readonly number[] }): Promise<void> {
  const { verifier, server } = world
  const verdicts = await Promise.all([it.old, it.renewed].flatMap((secret) => [verifier, server].map((one) => accepted(one, secret))))
  expect(verdicts).toEqual([401, 401, 200, 200])
  expect(await numbers(world, it.id)).toEqual(it.generations)
  const active = await world.query<{ digest: string }>(
    `select digest from express_api_key_generations where key_id = '${it.id}' and retired_at is null`,
  )
  expect(active).toEqual([{ digest: createHash('sha256').update(it.renewed).digest('base64url') }])
  expect(await unsettled(world, it.id)).toBe(0)
}

/** Nothing that the killed process held is in the way. */
async function rotatesAgain(world: World, id: string, secret: string, generations: readonly number[]): Promise<void> {
  const again = await call(`${world.verifier.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'again' })
  expect(again.status).toBe(200)
  expect(await numbers(world, id)).toEqual(generations)
  expect([await accepted(world.server, secret), await accepted(world.server, secretOf(again))]).toEqual([401, 200])
}

async function accepted(server: TestProcess, secret: string): Promise<number> {
  secrets.push(secret)
  return verdict(server.url, secret)
}

async function numbers({ query }: World, id: string): Promise<number[]> {
  const rows = await query<{ generation: number }>(
    `select generation from express_api_key_generations where key_id = '${id}' order by generation`,
  )
  return rows.map(({ generation }) => Number(generation))
}

async function typesOf({ query }: World, id: string): Promise<string[]> {
  return (await query<{ type: string }>(`select type from express_api_key_events where key_id = '${id}'`)).map(({ type }) => type)
}

async function unsettled({ query }: World, id: string): Promise<number> {
  return (await query(`select 1 from express_api_key_replays where key_id = '${id}' and settled_at is null`)).length
}

function secretOf({ body }: Answer): string {
  return (body as { secret: string }).secret
}

async function dumpOf({ name, url, since }: World): Promise<Buffer> {
  if (name === 'PostgreSQL') return dumpDatabase(url, since)
  if (name === 'SQLite') return Buffer.concat(filesOf(url))
  return (await import('../support/mariadb.js')).filesOfServer(url)
}

function filesOf(database: string): Buffer[] {
  const folder = dirname(database)
  return readdirSync(folder).map((file) => readFileSync(join(folder, file)))
}

/** A step's name as an Idempotency-Key can hold it. */
function nameOf(step: string): string {
  return step.replaceAll(' ', '-')
}
