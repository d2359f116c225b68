import { createApiKeys, memoryStore, type Recalled, type Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import type { Pool } from 'pg'
import { atEnd } from '../support/cleanup.js'
import { TestClock } from '../support/clock.js'
import { serve } from '../support/instance.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET, startServer, type TestProcess } from '../support/process.js'
import { startRedis } from '../support/redis.js'
import { stores } from '../support/stores.js'
import { call, steady, verdict } from '../support/traffic.js'

const LEASE_MS = 2_000
const MARGIN_MS = 50

describe.each(stores)('on %s', (_name, makeStore) => {
  test('P6: an instance that is alone answers a rotation without waiting for a lease', async () => {
    const { store } = await makeStore()
    const { keys, url } = await serve(store, { leaseMs: 100 })
    const recalls = heard(keys)
    const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'alone' })
    expect(await verdict(url, secret)).toBe(200)
    // From a lease after its first read on it knows that no fail-over has lost a member.
    const { secret: last } = await rotateUntil(keys, secret, recalls, ({ early }) => early)
    const { secret: next } = await keys.rotate({ as: { secret: last } })
    expect(recalls.at(-1)).toMatchObject({ members: 0, answered: 0, silent: [], early: true })
    expect([await verdict(url, last), await verdict(url, next)]).toEqual([401, 200])
  })
})

describe('four processes over PostgreSQL', () => {
  test.each(['Redis', 'NOTIFY'])(
    'P6: say over %s that they know of a rotation, which is then answered; one that is stopped costs one lease',
    async (way) => {
      const { url: storeUrl, pool } = await freshDatabase()
      const redis = way === 'Redis' ? await startRedis() : undefined
      const { keys, url, close } = await instance(pool, redis?.url)
      const OPTIONS = JSON.stringify({ leaseMs: LEASE_MS })
      const env = { STORE_URL: storeUrl, OPTIONS, ...(redis && { REDIS_URL: redis.url }) }
      const others = await Promise.all([1, 2, 3].map(() => startServer(env)))
      const urls = [url, ...others.map((one) => one.url)]
      const recalls = heard(keys)
      const { secret: busy } = await keys.create({ as: 'application', ownerId: 'acme', name: 'busy' })
      const traffic = urls.map((each) => steady(() => call(`${each}/data`, { secret: busy })))
      const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'rotated' })

      const rotated = await rotateUntil(keys, secret, recalls, ({ early, members, answered }) => early && members === 3 && answered === 3)
      for (const each of urls) expect([await verdict(each, rotated.before), await verdict(each, rotated.secret)]).toEqual([401, 200])

      const [stopped] = others as [TestProcess]
      stopped.child.kill('SIGSTOP')
      await traffic[1]?.stop
      const slow = await keys.rotate({ as: { secret: rotated.secret } })
      expect(recalls.at(-1)).toMatchObject({ members: 3, answered: 2, early: false })
      expect(recalls.at(-1)?.waitedMs).toBeLessThan(LEASE_MS + MARGIN_MS + 1_000)
      const after = await rotateUntil(
        keys,
        slow.secret,
        recalls,
        ({ early, members, silent }) => early && members === 2 && silent.length === 0,
      )
      stopped.child.kill('SIGCONT')
      expect(await verdict(stopped.url, after.before)).toBe(401)
      // It joins again, and is asked again.
      await rotateUntil(keys, after.secret, recalls, ({ early, members, answered }) => early && members === 3 && answered === 3)
      for (const { stop } of traffic) expect([...(await stop()).keys()].filter((status) => status !== 503)).toEqual([200])
      await close()
    },
  )
})

test('P6: a thousand known keys cost the authority no more than one does, and an idle instance asks nothing', async () => {
  const { pool } = await freshDatabase()
  const clock = new TestClock()
  const inner = postgresStore(pool)
  let reads = 0
  let underWay = 0
  const store: Store = Object.assign(Object.create(inner) as Store, {
    async read(...asked: Parameters<Store['read']>) {
      reads++
      underWay++
      try {
        return await inner.read(...asked)
      } finally {
        underWay--
      }
    },
  })
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, clock, leaseMs: 1_000 })
  atEnd(keys.close)
  await keys.migrate()
  const secrets: string[] = []
  const make = async (n: number): Promise<string> => (await keys.create({ as: 'application', ownerId: 'acme', name: `${n}` })).secret
  for (let n = 0; n < 1_000; n += 20) secrets.push(...(await Promise.all(Array.from({ length: 20 }, (_, i) => make(n + i)))))
  for (let from = 0; from < 1_000; from += 100) await Promise.all(secrets.slice(from, from + 100).map((secret) => keys.verify(secret)))
  const isKnown = (secret: string): boolean => keys.peek(secret)?.ok === true
  while (!isKnown(secrets[0] as string)) await new Promise(setImmediate)

  reads = 0
  for (let second = 0; second < 40; second++) {
    for (let tenth = 0; tenth < 10; tenth++) {
      clock.advance(100)
      // Not one of them waits: the feed is read ahead of the end of the lease, and what is due with it.
      expect(secrets.filter((secret) => !isKnown(secret))).toEqual([])
      do await new Promise(setImmediate)
      while (underWay > 0)
    }
  }
  expect(reads).toBeLessThanOrEqual(2 * 40)
  await new Promise((resolve) => setTimeout(resolve, 700))
  reads = 0
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  expect(reads).toBe(0)
})

test('P6: in memory a rotation waits for nothing', async () => {
  const clock = new TestClock()
  const store = memoryStore({ now: clock.wallMs })
  const [one, other] = [1, 2].map(() => createApiKeys({ store, serverSecret: SERVER_SECRET, clock })) as [Keys, Keys]
  const { secret } = await one.create({ as: 'application', ownerId: 'acme', name: 'n' })
  expect(await other.verify(secret)).toMatchObject({ ok: true })
  await one.rotate({ as: { secret } })
  expect(other.peek(secret)).toBeUndefined()
  expect(await other.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
})

type Keys = ReturnType<typeof createApiKeys>

function heard(keys: Keys): Recalled[] {
  const recalls: Recalled[] = []
  keys.on('recalled', (recalled) => recalls.push(recalled))
  return recalls
}

/** Rotates until the latest rotation waited as is asked for; with the last two secrets. */
async function rotateUntil(
  keys: Keys,
  first: string,
  recalls: readonly Recalled[],
  wanted: (recalled: Recalled) => boolean,
): Promise<{ before: string; secret: string }> {
  for (let before = first; ; ) {
    const { secret } = await keys.rotate({ as: { secret: before } })
    const told = recalls.at(-1)
    if (told !== undefined && wanted(told)) return { before, secret }
    before = secret
  }
}

async function instance(pool: Pool, redisUrl: string | undefined): Promise<{ keys: Keys; url: string; close(): Promise<void> }> {
  const client = redisUrl === undefined ? undefined : new Redis(redisUrl)
  client?.on('error', () => {})
  const { keys, url } = await serve(postgresStore(pool), { leaseMs: LEASE_MS, ...(client && { cache: redisCache(client) }) })
  return { keys, url, close: async () => client?.disconnect() }
}
