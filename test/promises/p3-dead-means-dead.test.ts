import { postgresStore } from 'express-api-keys/postgres'
import { serve } from '../support/instance.js'
import { freshDatabase } from '../support/postgres.js'
import { startServer } from '../support/process.js'
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
    const { key, secret } = await keys.create({ ownerId: 'acme', name: 'n' })
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

type Redis = Awaited<ReturnType<typeof startRedis>>
