import type { ApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { serve } from '../support/instance.js'
import { freshDatabase } from '../support/postgres.js'
import { startServer, type TestProcess } from '../support/process.js'
import { startRedis } from '../support/redis.js'
import { call } from '../support/traffic.js'

// Two real processes on one PostgreSQL and one Redis. The lease is the default one second: what is tested is the wait.
test.each([
  ['up', 'rotate', async () => {}, async () => {}],
  ['up', 'revoke', async () => {}, async () => {}],
  ['stopped before the rotation', 'rotate', (redis: Redis) => redis.stop(), async () => {}],
  ['stopped before the revocation', 'revoke', (redis: Redis) => redis.stop(), async () => {}],
  ['stopped between the rotation and the request', 'rotate', async () => {}, (redis: Redis) => redis.stop()],
  ['flushed before the rotation', 'rotate', (redis: Redis) => redis.flush(), async () => {}],
  ['flushed between the rotation and the request', 'rotate', async () => {}, (redis: Redis) => redis.flush()],
  [
    'restarted empty between the rotation and the request',
    'rotate',
    async () => {},
    async (redis: Redis) => {
      await redis.stop()
      await redis.start()
    },
  ],
])(
  'P3: with Redis %s, a %s that has answered 200 here is in force there on the very next request',
  async (_how, action, before, between) => {
    const database = await freshDatabase()
    const redis = await startRedis()
    const { keys } = await serve(postgresStore(database.pool), { leaseMs: 1_000 })
    const env = { STORE_URL: database.url, REDIS_URL: redis.url }
    const [here, there] = await Promise.all([startServer(env), startServer(env)])
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    for (const { url } of [here, there, here, there]) expect((await call(`${url}/data`, { secret })).status).toBe(200)

    await before(redis)
    // The other process holds a lease that is as fresh as can be when the change commits.
    let asking = true
    const asked = (async () => {
      while (asking) await call(`${there.url}/data`, { secret })
    })()
    const done = await call(`${here.url}/keys/${key.id}/${action}`, { method: 'POST', secret, idempotencyKey: 'now' })
    const next = await call(`${there.url}/data`, { secret })
    expect([done.status, next.status]).toEqual([200, 401])
    await between(redis)
    for (const { url } of [there, here]) expect((await call(`${url}/data`, { secret })).status).toBe(401)
    asking = false
    await asked
    if (action === 'rotate') {
      const { secret: fresh } = done.body as { secret: string }
      for (const { url } of [there, here]) expect((await call(`${url}/data`, { secret: fresh })).status).toBe(200)
    }
  },
)

describe('a secret in its grace period', () => {
  let [here, there, redis]: [TestProcess, TestProcess, Redis] = [] as never
  let keys: ApiKeys
  beforeAll(async () => {
    const database = await freshDatabase()
    redis = await startRedis()
    keys = (await serve(postgresStore(database.pool), { leaseMs: 1_000 })).keys
    const env = { STORE_URL: database.url, REDIS_URL: redis.url }
    ;[here, there] = await Promise.all([startServer(env), startServer(env)])
  })
  const both = (secret: string): Promise<number[]> =>
    Promise.all([here, there].map(async ({ url }) => (await call(`${url}/data`, { secret })).status))
  const rotated = async (retire: unknown): Promise<{ secret: string; fresh: string; acceptedUntil: string }> => {
    const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    expect(await both(secret)).toEqual([200, 200])
    const answer = await call(`${here.url}/keys/self/rotate`, { method: 'POST', secret, body: { retire } })
    expect(answer.status).toBe(200)
    const { secret: fresh, acceptedUntil } = answer.body as { secret: string; acceptedUntil: string }
    return { secret, fresh, acceptedUntil }
  }

  test('P3: is accepted by both processes until the instant that its rotation named, and by neither after it', async () => {
    const { secret, fresh, acceptedUntil } = await rotated({ afterMs: 3_000 })
    const end = Date.parse(acceptedUntil)
    const seen = async (url: string): Promise<number[][]> => {
      const [before, after] = [new Set<number>(), new Set<number>()]
      for (let late = 0; late < 20; ) {
        const started = Date.now()
        const { status } = await call(`${url}/data`, { secret })
        if (Date.now() < end) before.add(status)
        // One millisecond, since clocks are read in whole ones.
        if (started <= end + 1) continue
        after.add(status)
        late++
      }
      return [[...before], [...after]]
    }
    for (const statuses of await Promise.all([seen(here.url), seen(there.url)])) expect(statuses).toEqual([[200], [401]])
    expect(await both(fresh)).toEqual([200, 200])
  })

  test.each([
    ['up', async () => {}],
    ['stopped', () => redis.stop()],
  ])('P3: with Redis %s, ends everywhere with the first accepted use of the new one, wherever that is', async (_how, before) => {
    const { secret, fresh } = await rotated('on-first-use')
    expect(await both(secret)).toEqual([200, 200])
    await before()
    // Both hold leases on the old one that are as fresh as can be.
    let asking = true
    const asked = (async () => {
      while (asking) await both(secret)
    })()
    const uses = [here, there].map(({ url }) => call(`${url}/data`, { secret: fresh }))
    expect((await Promise.race(uses)).status).toBe(200)
    expect(await both(secret)).toEqual([401, 401])
    expect((await Promise.all(uses)).map(({ status }) => status)).toEqual([200, 200])
    asking = false
    await asked
  })
})

type Redis = Awaited<ReturnType<typeof startRedis>>
