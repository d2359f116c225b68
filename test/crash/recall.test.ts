import { setTimeout as pause } from 'node:timers/promises'
import { type ApiKeys, createApiKeys, type IssuedKey } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { freshDatabase, type TestDatabase } from '../support/postgres.js'
import { SERVER_SECRET, startServer, type TestProcess } from '../support/process.js'
import { startRedis, type TestRedis } from '../support/redis.js'
import { type Answer, call, steady, verdict } from '../support/traffic.js'

const LEASE_MS = 500
/** Longer than members need to be suspected, and then to be removed. */
const FAST_WITHIN_MS = 20_000

let database: TestDatabase
let redis: TestRedis
let keys: ApiKeys
/** Makes changes, until it is killed. */
let rotator: TestProcess
/** Is asked whether it knows of them, and is never killed. */
let watcher: TestProcess

beforeAll(async () => {
  ;[database, redis] = await Promise.all([freshDatabase(), startRedis()])
  keys = createApiKeys({ store: postgresStore(database.pool), serverSecret: SERVER_SECRET, leaseMs: LEASE_MS })
  await keys.migrate()
  ;[rotator, watcher] = await Promise.all([start(), start()])
})

afterAll(() => keys.close())

test.each([
  'before store.members',
  'after store.members',
  'before channel.send',
  'after channel.send',
  'before channel.hear',
  'after channel.hear',
  'before store.settle',
  'after store.settle',
])('P1, P2, P3: a rotation killed with SIGKILL %s, while others are asked whether they know of it', async (crash) => {
  const { secret: old } = await known()
  const rotate = { method: 'POST', secret: old, idempotencyKey: nameOf(crash) }
  const early = await call(`${rotator.url}/keys/self/rotate`, { ...rotate, crash }).catch(() => undefined)
  await restartedRotator()
  await ends(old, rotate, early)
})

test.each(['before store.revokeMembers', 'after store.revokeMembers', 'before store.removeMembers', 'after store.removeMembers'])(
  'P1, P2, P3: a rotation killed with SIGKILL %s, when an instance was killed before',
  async (crash) => {
    const dead = await member()
    await dead.kill()
    for (let tries = 0; ; tries++) {
      const { secret: old } = await known()
      const rotate = { method: 'POST', secret: old, idempotencyKey: nameOf(`${crash} ${tries}`) }
      const early = await call(`${rotator.url}/keys/self/rotate`, { ...rotate, crash }).catch(() => undefined)
      // What is done in the background may come after the answer.
      if (await goesWithin(rotator, LEASE_MS)) {
        await restartedRotator()
        await ends(old, rotate, early)
        return
      }
      expect([early?.status, tries < 10]).toEqual([200, true])
    }
  },
)

test.each(['before channel.hear', 'after channel.hear', 'before channel.send', 'after channel.send'])(
  'P3: an instance that is killed with SIGKILL %s, as it is asked whether it knows of a rotation',
  async (crash) => {
    const asked = await member()
    const { secret: old } = await known(asked)
    await call(`${asked.url}/data`, { secret: old, crash })
    const rotate = { method: 'POST', secret: old, idempotencyKey: nameOf(`asked ${crash}`) }
    const answer = await call(`${rotator.url}/keys/self/rotate`, rotate)
    expect(answer.status).toBe(200)
    await asked.gone
    await ends(old, rotate, answer)
  },
)

test.each(['before store.join', 'after store.join'])('P3: an instance that is killed with SIGKILL %s', async (crash) => {
  const { secret: old } = await known()
  const joining = await start()
  await call(`${joining.url}/data`, { secret: old, crash }).catch(() => {})
  await joining.gone
  const rotate = { method: 'POST', secret: old, idempotencyKey: nameOf(crash) }
  await ends(old, rotate, await call(`${rotator.url}/keys/self/rotate`, rotate))
})

test.each(['before store.acknowledge', 'after store.acknowledge'])(
  'P3: an instance that is killed with SIGKILL %s, while no message arrives',
  async (crash) => {
    const asked = await member()
    const { secret: old } = await known(asked)
    await redis.stop()
    // Who has traffic reads the feed, and says so in the store.
    const traffic = steady(() => call(`${asked.url}/data`, { secret: old, crash }))
    const rotate = { method: 'POST', secret: old, idempotencyKey: nameOf(crash) }
    const answer = await call(`${rotator.url}/keys/self/rotate`, rotate)
    await asked.gone
    await traffic.stop().catch(() => {})
    await redis.start()
    await ends(old, rotate, answer)
  },
)

/** A key that the rotator, the watcher and perhaps another know. */
async function known(...more: TestProcess[]): Promise<IssuedKey> {
  const made = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  for (const { url } of [rotator, watcher, ...more]) expect(await verdict(url, made.secret)).toBe(200)
  return made
}

/** The retry has the one secret, nobody accepts the old one, and as soon as who was killed is out of the way, rotations are fast again. */
async function ends(old: string, rotate: Parameters<typeof call>[1], early: Answer | undefined): Promise<void> {
  let again = await call(`${rotator.url}/keys/self/rotate`, rotate)
  for (; again.status === 503; again = await call(`${rotator.url}/keys/self/rotate`, rotate)) {}
  expect(again.status).toBe(200)
  const verdicts = [watcher, rotator].map(({ url }) => verdict(url, old))
  expect(await Promise.all(verdicts)).toEqual([401, 401])
  const renewed = secretOf(again)
  expect([renewed, 200]).toEqual([early?.status === 200 ? secretOf(early) : renewed, early?.status ?? 200])
  const third = await call(`${watcher.url}/keys/self/rotate`, rotate)
  expect([third.status, secretOf(third)]).toEqual([200, renewed])
  expect(await Promise.all([watcher, rotator].map(({ url }) => verdict(url, renewed)))).toEqual([200, 200])
  await isFastAgain()
}

async function isFastAgain(): Promise<void> {
  const until = performance.now() + FAST_WITHIN_MS
  for (let tookMs = Number.POSITIVE_INFINITY; tookMs >= LEASE_MS / 2; ) {
    expect(performance.now()).toBeLessThan(until)
    const { secret } = await known()
    const began = performance.now()
    const answer = await call(`${rotator.url}/keys/self/rotate`, { method: 'POST', secret })
    tookMs = performance.now() - began
    expect([answer.status, await verdict(watcher.url, secret), await verdict(rotator.url, secret)]).toEqual([200, 401, 401])
  }
}

async function restartedRotator(): Promise<void> {
  await rotator.gone
  expect(rotator.child.signalCode).toBe('SIGKILL')
  rotator = await start()
}

/** Another instance, that changes wait for. */
async function member(): Promise<TestProcess> {
  const joins = await start()
  const before = await sessions()
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  await verdict(joins.url, secret)
  while ((await sessions()) <= before) await pause(5)
  return joins
}

async function sessions(): Promise<number> {
  return (await database.pool.query('select 1 from express_api_key_instances')).rowCount ?? 0
}

function start(): Promise<TestProcess> {
  return startServer({ STORE_URL: database.url, REDIS_URL: redis.url, OPTIONS: JSON.stringify({ leaseMs: LEASE_MS }) })
}

function goesWithin({ gone }: TestProcess, ms: number): Promise<boolean> {
  return Promise.race([gone.then(() => true), pause(ms, false)])
}

function secretOf({ body }: Answer): string {
  return (body as { secret: string }).secret
}

function nameOf(step: string): string {
  return step.replaceAll(' ', '-')
}
