import { ApiKeyError, type Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import { atEnd } from '../support/cleanup.js'
import { type Instance, serve } from '../support/instance.js'
import { freshDatabase } from '../support/postgres.js'
import { startRedis } from '../support/redis.js'
import { call, steady } from '../support/traffic.js'

test('P5: while Redis is killed, started and flushed in mid-traffic, not one request gets a wrong answer', async () => {
  const database = await freshDatabase()
  const redis = await startRedis()
  const clients = [new Redis(redis.url), new Redis(redis.url)]
  for (const client of clients) client.on('error', () => {})
  atEnd(async () => {
    for (const client of clients) client.disconnect()
  })
  const instances = await Promise.all(
    clients.map((client) => serve(postgresStore(database.pool), { leaseMs: 1_000, cache: redisCache(client) })),
  )
  const [one, other] = instances as [Instance, Instance]

  const live = await one.keys.create({ as: 'application', ownerId: 'acme', name: 'live' })
  const doomed = await one.keys.create({ as: 'application', ownerId: 'acme', name: 'revoked' })
  await one.keys.revoke({ as: 'application', id: doomed.key.id })
  const unknown = secretOfAnotherInstall()
  const traffic = instances.flatMap(({ url }) => [
    { right: 200, ...steady(() => call(`${url}/data`, { secret: live.secret })) },
    { right: 401, ...steady(() => call(`${url}/data`, { secret: doomed.secret })) },
    { right: 401, ...steady(() => call(`${url}/data`, { secret: unknown })) },
  ])
  const goesOn = (): Promise<unknown> => Promise.all(traffic.map(({ seen }) => seen(50)))

  await goesOn()
  await redis.stop()
  await goesOn()
  // A rotation in the dark, and its old secret on the other instance right after.
  const victim = await one.keys.create({ as: 'application', ownerId: 'acme', name: 'victim' })
  expect((await call(`${other.url}/data`, { secret: victim.secret })).status).toBe(200)
  const rotated = await call(`${one.url}/keys/self/rotate`, { method: 'POST', secret: victim.secret, idempotencyKey: 'in-the-dark' })
  expect(rotated.status).toBe(200)
  expect((await call(`${other.url}/data`, { secret: victim.secret })).status).toBe(401)
  await redis.start()
  await goesOn()
  await redis.flush()
  await goesOn()
  for (const { stop, right } of traffic) expect([...(await stop()).keys()]).toEqual([right])
})

test('P5: with the store down the answer is 503 with Retry-After, never 401, and a live lease is served to its end', async () => {
  const database = await freshDatabase()
  let down = false
  const store = postgresStore(database.pool)
  const breakable: Store = Object.assign(Object.create(store) as Store, {
    read: (...asked: Parameters<Store['read']>) =>
      down ? Promise.reject(new ApiKeyError('store_unavailable', 'The store is down.')) : store.read(...asked),
    transaction: (work: Parameters<Store['transaction']>[0]) =>
      down ? Promise.reject(new ApiKeyError('store_unavailable', 'The store is down.')) : store.transaction(work),
  })
  const { keys, url } = await serve(breakable, { leaseMs: 1_000 })
  const warm = await keys.create({ as: 'application', ownerId: 'acme', name: 'warm' })
  const cold = await keys.create({ as: 'application', ownerId: 'acme', name: 'cold' })
  // From the time that the instance has its lease on, no request asks the store.
  while (keys.peek(warm.secret) === undefined) expect((await call(`${url}/data`, { secret: warm.secret })).status).toBe(200)

  down = true
  expect((await call(`${url}/data`, { secret: warm.secret })).status).toBe(200)
  for (const secret of [cold.secret, secretOfAnotherInstall()]) {
    const answer = await call(`${url}/data`, { secret })
    expect(answer.status).toBe(503)
    expect(answer.headers.get('retry-after')).toMatch(/^\d+$/)
    expect(answer.body).toMatchObject({ code: 'store_unavailable' })
  }
  const rotation = { method: 'POST', secret: cold.secret, idempotencyKey: 'while-it-is-down' }
  expect((await call(`${url}/keys/self/rotate`, rotation)).status).toBe(503)

  down = false
  expect((await call(`${url}/data`, { secret: cold.secret })).status).toBe(200)
  expect((await call(`${url}/keys/self/rotate`, rotation)).status).toBe(200)
})

/** Well-formed, and known to nobody here. */
function secretOfAnotherInstall(): string {
  return `sk_live_${'0'.repeat(43)}1Vxh1Z`
}
