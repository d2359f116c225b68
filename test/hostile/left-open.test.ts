import { setTimeout } from 'node:timers/promises'
import { createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { atEnd } from '../support/cleanup.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'

test('P3: a secret ends with its grace period where the pool hands out a session on which the application left a transaction open', async () => {
  const { pool } = await freshDatabase()
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, recall: false, onError: () => {} })
  atEnd(() => keys.close())
  await keys.migrate()
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  await keys.verify(secret)
  const { acceptedUntil } = await keys.rotate({ as: { secret }, retire: { afterMs: 1_500 } })
  const left = await pool.connect()
  await left.query('begin')
  left.release()
  await setTimeout(Date.parse(acceptedUntil ?? '') - Date.now() + 400)
  // Its lease is over by now, and the session was handed back last.
  expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
})
