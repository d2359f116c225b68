import pg from 'pg'
import { postgresStore } from '../../../src/store/sql/postgres.js'
import type { KeyFilters, Store } from '../../../src/store/store.js'
import { freshDatabase } from '../../support/postgres.js'

const KEYS = 100_000
const PAGE = 51

let store: Store
let pool: pg.Pool

// 1,000 owners of 100 keys; one key in 1,000 expires, one in 200 is revoked.
beforeAll(async () => {
  ;({ pool } = await freshDatabase())
  store = postgresStore(pool)
  await store.migrate()
  await pool.query(`insert into express_api_keys (id, owner_id, name, environment, scopes, metadata, generation, created_at, updated_at,
      expires_at, revoked_at, secret_start, secret_last4, last_used_at, secret_created_at)
    select 'key-' || n, 'owner-' || n % 1000, 'key ' || n, case when n % 10 = 0 then 'test' else 'live' end, '[]', '{}', 1, n, n,
      case when n % 1000 = 0 then n * 10 end, case when n % 200 = 0 then n end, 'sk_live_', lpad((n % 9973)::text, 4, '0'), n * 2, n
    from generate_series(1, ${KEYS}) n`)
  await pool.query('analyze express_api_keys')
})

test.each<[string, KeyFilters]>([
  ['all keys', {}],
  ['a status', { status: 'active' }],
  ['an environment', { environment: 'test' }],
  ['an expiry', { expiresBefore: 500_000 }],
  ['the last use', { lastUsedBefore: 100_000 }],
  ['a text in the name', { name: 'key 42' }],
  ['the end of the secret', { last4: '0042' }],
  ['all of them', { status: 'active', environment: 'live', expiresBefore: 10 * KEYS, lastUsedBefore: 2 * KEYS, name: '4', last4: '0042' }],
])('a page of one owner, narrowed by %s, reads no more than the keys of that owner', async (_what, filters) => {
  const { rowsRead, plan } = await asked({ ownerId: 'owner-42', ...filters })
  expect(plan).not.toContain('Seq Scan')
  expect(rowsRead).toBeLessThanOrEqual(100)
})

test.each<[string, KeyFilters, number]>([
  ['nothing', {}, PAGE],
  ['the end of the secret', { last4: '0042' }, 11],
  ['an expiry', { expiresBefore: 500_000 }, 50],
  ['a status that most have', { status: 'active' }, 2 * PAGE],
  ['an environment', { environment: 'test' }, 11 * PAGE],
])('a page over all owners, narrowed by %s, reads few rows', async (_what, filters, most) => {
  const { rowsRead, plan } = await asked(filters)
  expect(plan).not.toContain('Seq Scan')
  expect(rowsRead).toBeLessThanOrEqual(most)
})

test('the next page over all owners goes on where the one before ended', async () => {
  const { rowsRead } = await asked({}, { at: KEYS / 2, id: `key-${KEYS / 2}` })
  expect(rowsRead).toBe(PAGE)
})

/** The plan of a listing, run by PostgreSQL, and how many rows its scans looked at. */
async function asked(filters: KeyFilters, after?: { at: number; id: string }): Promise<{ plan: string; rowsRead: number }> {
  const query = jest.spyOn(pg.Client.prototype, 'query')
  await store.keys({ ...filters, after, limit: PAGE })
  const calls = query.mock.calls as unknown as [text: string | { text: string; values: unknown[] }, values?: unknown[]][]
  const sent = calls.map(([text, values]) => (typeof text === 'string' ? { text, values } : text))
  query.mockRestore()
  const listing = sent.filter(({ text }) => /from "?express_api_keys"?/.test(text))
  expect(listing).toHaveLength(1)
  const { rows } = await pool.query(`explain (analyze, format json) ${listing[0]?.text}`, listing[0]?.values)
  const scans: number[] = []
  const walk = (node: PlanNode): void => {
    const { 'Relation Name': table, 'Actual Rows': rows, 'Rows Removed by Filter': removed = 0, Plans = [] } = node
    if (table === 'express_api_keys') scans.push(rows + removed)
    for (const below of Plans) walk(below)
  }
  const [{ Plan: root }] = rows[0]['QUERY PLAN'] as [{ Plan: PlanNode }]
  walk(root)
  expect(scans).toHaveLength(1)
  return { plan: JSON.stringify(root), rowsRead: scans[0] as number }
}

interface PlanNode {
  readonly 'Relation Name'?: string
  readonly 'Actual Rows': number
  readonly 'Rows Removed by Filter'?: number
  readonly Plans?: readonly PlanNode[]
}
