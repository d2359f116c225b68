import { randomUUID } from 'node:crypto'
import { createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { storeContract } from 'express-api-keys/testing'
import { Pool } from 'pg'
import { atEnd } from '../support/cleanup.js'
import { pgbouncer } from '../support/pgbouncer.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET, startServer } from '../support/process.js'
import { startRedis } from '../support/redis.js'
import { call } from '../support/traffic.js'

/** A pool to a pooler to a database of its own. */
async function pooled(): Promise<{ url: string; pool: Pool }> {
  const url = await pgbouncer((await freshDatabase()).url)
  const pool = new Pool({ connectionString: url })
  pool.on('error', () => {})
  atEnd(() => pool.end())
  return { url, pool }
}

storeContract({ describe, test }, 'postgresStore through PgBouncer in transaction mode', async () => {
  const { pool } = await pooled()
  return { store: postgresStore(pool), sibling: postgresStore(pool), close: async () => {} }
})

test.each([
  ['without Redis', false],
  ['with Redis', true],
])('P2, P3: between two processes through PgBouncer, %s', async (_how, withRedis) => {
  const { url, pool } = await pooled()
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, onError: () => {} })
  atEnd(() => keys.close())
  await keys.migrate()
  const redis = withRedis ? await startRedis() : undefined
  const env = { STORE_URL: url, ...(redis && { REDIS_URL: redis.url }) }
  const [here, there] = await Promise.all([startServer(env), startServer(env)])
  for (let n = 0; n < 5; n++) {
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    for (const server of [here, there]) expect((await call(`${server.url}/data`, { secret })).status).toBe(200)
    const request = { method: 'POST', secret, idempotencyKey: randomUUID() }
    const first = await call(`${here.url}/keys/${key.id}/rotate`, request)
    expect((await call(`${there.url}/data`, { secret })).status).toBe(401)
    const again = await call(`${there.url}/keys/${key.id}/rotate`, request)
    expect([first.status, again.status, again.body]).toEqual([200, 200, first.body])
    const { secret: fresh } = first.body as { secret: string }
    for (const server of [here, there]) expect((await call(`${server.url}/data`, { secret: fresh })).status).toBe(200)
  }
})
