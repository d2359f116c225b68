import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createApiKeys, type Store } from 'express-api-keys'
import { sqlStore } from 'express-api-keys/sql'
import { Kysely, PostgresDialect, SqliteDialect, type SqliteStatement } from 'kysely'
import Database from 'libsql'
import type { Pool } from 'pg'
import { atEnd } from '../../support/cleanup.js'
import { freshDatabase } from '../../support/postgres.js'

test.each<[string, () => Promise<Store>]>([
  ['SQLite', async () => sqlStore(silentSqlite())],
  ['PostgreSQL', async () => sqlStore(silentPostgres((await freshDatabase()).pool))],
])('a driver of %s that does not say how many rows it has updated: a grace period ends when its answers say', async (_name, makeStore) => {
  const keys = createApiKeys({ store: await makeStore(), serverSecret: 'the-server-secret-0123456789-0123456789', leaseMs: 250 })
  await keys.migrate()
  const { secret, key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const command = { as: { secret }, idempotencyKey: 'lost', retire: { afterMs: 5_000 } } as const
  const asked = Date.now()
  const first = await keys.rotate(command)
  const told = Date.parse(first.acceptedUntil ?? '') - asked
  expect(told).toBeGreaterThan(0)
  // Provisional ends are a minute later.
  expect(told).toBeLessThan(50_000)
  expect((await keys.rotate(command)).acceptedUntil).toBe(first.acceptedUntil)
  expect(await keys.verify(secret)).toMatchObject({ grace: { expiresAt: first.acceptedUntil } })
  expect((await keys.get(key.id))?.generation).toBe(2)
  await keys.close()
})

/** As people put other drivers behind Kysely's SqliteDialect: every statement reads. */
function silentSqlite(): Kysely<unknown> {
  const folder = mkdtempSync(join(tmpdir(), 'affected-rows-'))
  const database = new Database(join(folder, 'keys.db'))
  atEnd(async () => {
    database.close()
    rmSync(folder, { recursive: true })
  })
  const prepare = (text: string): SqliteStatement => {
    const statement = database.prepare(text) as unknown as SqliteStatement
    const all = (parameters: readonly unknown[]): unknown[] => {
      if (statement.reader) return statement.all(parameters)
      statement.run(parameters)
      return []
    }
    return { reader: true, all, run: (parameters) => statement.run(parameters), iterate: (parameters) => statement.iterate(parameters) }
  }
  return new Kysely({ dialect: new SqliteDialect({ database: { prepare, close() {} } }) })
}

/** A driver that gives rows, and no word on what it has done. */
function silentPostgres(pool: Pool): Kysely<unknown> {
  const connect = async (): Promise<unknown> => {
    const client = await pool.connect()
    const query = async (text: string, parameters: unknown[]): Promise<object> => {
      const { rows } = await client.query(text, parameters)
      return { command: 'SELECT', rowCount: 0, rows }
    }
    return { query, release: () => client.release() }
  }
  return new Kysely({ dialect: new PostgresDialect({ pool: { connect, end: async () => {} } as never }) })
}
