import { createApiKeys, type IssuedKey } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { Client, Pool } from 'pg'
import { atEnd } from '../support/cleanup.js'
import { startPostgres } from '../support/own-postgres.js'
import { SERVER_SECRET } from '../support/process.js'

test('P2: the window of an answer counts from the commit also where a synchronous standby that is away holds that up', async () => {
  const { keys, commitsFor } = await slowCommits(1_000)
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  await keys.verify(secret)
  // Longer than the whole window, by the store's own clock.
  const { answered } = await commitsFor(1_500, () => keys.rotate({ as: { secret }, idempotencyKey: 'slow' }))
  const first = await answered
  const again = await keys.rotate({ as: { secret }, idempotencyKey: 'slow' })
  expect([again.replayed, again.secret, (await keys.get(key.id))?.generation]).toEqual([true, first.secret, 2])
  expect([(await keys.verify(secret)).ok, (await keys.verify(first.secret)).ok]).toEqual([false, true])
})

test('P2: a grace period counts from the commit also where a synchronous standby that is away holds that up', async () => {
  const { keys, url, commitsFor, now } = await slowCommits(60_000)
  const other = instanceOver(url, 60_000)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const rotate = (): Promise<IssuedKey> => keys.rotate({ as: { secret }, retire: { afterMs: 1_000 }, idempotencyKey: 'slow' })
  const { answered, committed } = await commitsFor(1_500, rotate)
  const first = await answered
  const end = Date.parse(first.acceptedUntil ?? '')
  expect(end).toBeGreaterThanOrEqual(committed + 1_000)
  expect(end).toBeLessThanOrEqual((await now()) + 1_000)
  const again = await rotate()
  expect([again.replayed, again.secret, again.acceptedUntil]).toEqual([true, first.secret, first.acceptedUntil])
  // What is accepted or refused is so at some time between the two looks at the store's clock.
  for (let over = false; !over; ) {
    const before = await now()
    // In the last milliseconds the store can answer later than its answer may be relied on: 503, and not a verdict.
    const ok = await other.verify(secret).then((verdict) => verdict.ok, tooLate)
    const after = await now()
    if (ok === undefined) continue
    if (after < end) expect(ok).toBe(true)
    over = before >= end
    if (over) expect(ok).toBe(false)
  }
})

function tooLate(error: unknown): undefined {
  expect(error).toMatchObject({ code: 'store_unavailable' })
}

function instanceOver(url: string, replayWindowMs: number): ReturnType<typeof createApiKeys> {
  const pool = new Pool({ connectionString: url })
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, leaseMs: 250, replayWindowMs, onError: () => {} })
  atEnd(async () => {
    await keys.close()
    await pool.end()
  })
  return keys
}

async function slowCommits(replayWindowMs: number): Promise<{
  keys: ReturnType<typeof createApiKeys>
  url: string
  /** Begins what makes COMMIT wait for a standby for so long; `committed` is an instant of the store's clock right before that ended. */
  commitsFor<T>(ms: number, work: () => Promise<T>): Promise<{ answered: Promise<T>; committed: number }>
  /** The store's clock. */
  now(): Promise<number>
}> {
  const { url } = await startPostgres()
  const admin = new Client({ connectionString: url })
  await admin.connect()
  atEnd(() => admin.end())
  const keys = instanceOver(url, replayWindowMs)
  const now = async (): Promise<number> =>
    Number((await admin.query('select floor(extract(epoch from clock_timestamp()) * 1000) as at')).rows[0].at)
  const standby = async (name: string): Promise<void> => {
    await admin.query(`alter system set synchronous_standby_names = '${name}'`)
    await admin.query('select pg_reload_conf()')
    while ((await admin.query('show synchronous_standby_names')).rows[0].synchronous_standby_names !== name) await admin.query('select 1')
  }
  await admin.query('set synchronous_commit = local')
  await keys.migrate()
  return {
    keys,
    url,
    now,
    async commitsFor(ms, work) {
      await standby('away')
      const answered = work()
      for (;;) {
        const { rows } = await admin.query(
          `select 1 from pg_stat_activity where wait_event = 'SyncRep' and query = 'commit' and clock_timestamp() - xact_start > interval '${ms} ms'`,
        )
        if (rows.length > 0) break
      }
      const committed = await now()
      await standby('')
      return { answered, committed }
    },
  }
}
