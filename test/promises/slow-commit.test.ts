import { createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { Client, Pool } from 'pg'
import { atEnd } from '../support/cleanup.js'
import { startPostgres } from '../support/own-postgres.js'
import { SERVER_SECRET } from '../support/process.js'

test('P2: the window of an answer counts from the commit also where a synchronous standby that is away holds that up', async () => {
  const { url } = await startPostgres()
  const pool = new Pool({ connectionString: url })
  const admin = new Client({ connectionString: url })
  await admin.connect()
  const keys = createApiKeys({ store: postgresStore(pool), secret: SERVER_SECRET, leaseMs: 50, replayWindowMs: 1_000, onError: () => {} })
  atEnd(async () => {
    await keys.close()
    await pool.end()
    await admin.end()
  })
  const standby = async (name: string): Promise<void> => {
    await admin.query(`alter system set synchronous_standby_names = '${name}'`)
    await admin.query('select pg_reload_conf()')
    while ((await admin.query('show synchronous_standby_names')).rows[0].synchronous_standby_names !== name) await admin.query('select 1')
  }
  await admin.query('set synchronous_commit = local')
  await keys.migrate()
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  await keys.verify(secret)
  await standby('away')
  const rotated = keys.rotate({ as: { secret }, idempotencyKey: 'slow' })
  // Its COMMIT waits. Longer than the whole window, by the store's own clock.
  for (;;) {
    const { rows } = await admin.query(
      `select 1 from pg_stat_activity where wait_event = 'SyncRep' and query = 'commit' and clock_timestamp() - xact_start > interval '1500 ms'`,
    )
    if (rows.length > 0) break
  }
  await standby('')
  const first = await rotated
  const again = await keys.rotate({ as: { secret }, idempotencyKey: 'slow' })
  expect([again.replayed, again.secret, (await keys.get(key.id))?.generation]).toEqual([true, first.secret, 2])
  expect([(await keys.verify(secret)).ok, (await keys.verify(first.secret)).ok]).toEqual([false, true])
})
