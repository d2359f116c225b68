import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type ApiKeys, createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { type TurnedClock, turnedClock } from 'express-api-keys/testing'
import type { Pool } from 'pg'
import { freshDatabase } from '../../support/postgres.js'

const PAGE = readFileSync(join(__dirname, '../../../docs/operations.md'), 'utf8')
const TRIGGER = /```sql\n(create function [\s\S]*?)```/.exec(PAGE)?.[1] ?? ''

test('a revocation by hand is seen with the next read of the feed where the trigger of the page is there, and otherwise half a minute later', async () => {
  const { keys, clock, pool, issue } = await setUp()
  const [first, second] = [await issue(), await issue()]

  await revokeByHand(pool, first.id)
  clock.advance(1_000)
  expect(await keys.verify(first.secret)).toMatchObject({ ok: true })
  clock.advance(29_000)
  expect(await keys.verify(first.secret)).toEqual({ ok: false, reason: 'revoked' })

  expect(await keys.verify(second.secret)).toMatchObject({ ok: true })
  await pool.query(TRIGGER)
  await revokeByHand(pool, second.id)
  clock.advance(1_000)
  expect(await keys.verify(second.secret)).toEqual({ ok: false, reason: 'revoked' })
  await keys.close()
})

test('with the trigger of the page, each column that a verdict goes by is a change', async () => {
  const { keys, pool, issue } = await setUp()
  await pool.query(TRIGGER)
  const { id } = await issue()
  const columns = ['name', 'scopes', 'metadata', 'allowed_ips', 'expires_at', 'disabled_at', 'revoked_at']
  for (const column of columns) {
    const before = await latestChange(pool)
    const value = column.endsWith('_at') ? 1 : column === 'metadata' ? '{"a":1}' : '["a"]'
    await pool.query(`update express_api_keys set ${column} = $2 where id = $1`, [id, value])
    expect([column, await latestChange(pool)]).toEqual([column, before + 1])
  }
  await keys.close()
})

test('with the trigger of the page, the package revokes as before, and a use of a key is no change', async () => {
  const { keys, clock, pool, issue } = await setUp()
  await pool.query(TRIGGER)
  const { id, secret } = await issue()
  const before = await latestChange(pool)
  await pool.query('update express_api_keys set last_used_at = 1 where id = $1', [id])
  expect(await latestChange(pool)).toBe(before)
  // A process that has known the database for less than two leases waits.
  clock.advance(2_100)
  await keys.revoke({ as: 'application', id })
  expect(await latestChange(pool)).toBeGreaterThan(before)
  expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'revoked' })
  await keys.close()
})

async function setUp(): Promise<{
  keys: ApiKeys
  clock: TurnedClock
  pool: Pool
  issue(): Promise<{ readonly id: string; readonly secret: string }>
}> {
  const { pool } = await freshDatabase()
  const clock = turnedClock()
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: 'a-server-secret-for-tests-0123456789', clock })
  await keys.migrate()
  return {
    keys,
    clock,
    pool,
    async issue() {
      const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci' })
      expect(await keys.verify(secret)).toMatchObject({ ok: true })
      return { id: key.id, secret }
    },
  }
}

async function revokeByHand(pool: Pool, id: string): Promise<void> {
  await pool.query('update express_api_keys set revoked_at = 1 where id = $1', [id])
}

async function latestChange(pool: Pool): Promise<number> {
  const { rows } = await pool.query<{ seq: string }>('select max(seq) as seq from express_api_key_changes')
  return Number(rows[0]?.seq)
}
