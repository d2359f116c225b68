import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { memoryStore } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { sqlStore } from 'express-api-keys/sql'
import { sqliteStore } from 'express-api-keys/sqlite'
import { storeContract } from 'express-api-keys/testing'
import { Kysely, PostgresDialect, SqliteDialect } from 'kysely'
import Database from 'libsql'
import { freshDatabase } from '../support/postgres.js'

storeContract({ describe, test }, 'memoryStore', async () => ({ store: memoryStore(), close: async () => {} }))

storeContract({ describe, test }, 'sqliteStore, two handles on one file', async () => {
  const { file, remove } = temporaryFile()
  const handles = [new Database(file), new Database(file)] as const
  return {
    store: sqliteStore(handles[0]),
    sibling: sqliteStore(handles[1]),
    async close() {
      for (const handle of handles) handle.close()
      remove()
    },
  }
})

storeContract({ describe, test }, 'postgresStore, two stores on one database', async () => {
  const { pool } = await freshDatabase()
  return { store: postgresStore(pool), sibling: postgresStore(pool), close: async () => {} }
})

storeContract({ describe, test }, "sqlStore over the application's own Kysely, SQLite", async () => {
  const { file, remove } = temporaryFile()
  const database = new Database(file)
  database.exec('pragma journal_mode = WAL')
  const kysely = new Kysely({ dialect: new SqliteDialect({ database }) })
  return {
    store: sqlStore(kysely),
    async close() {
      await kysely.destroy()
      remove()
    },
  }
})

storeContract({ describe, test }, "sqlStore over the application's own Kysely, PostgreSQL", async () => {
  const { pool } = await freshDatabase()
  return { store: sqlStore(new Kysely({ dialect: new PostgresDialect({ pool }) })), close: async () => {} }
})

test('sqlStore refuses a Kysely instance whose dialect it cannot tell', () => {
  const unknown = { getExecutor: () => ({ adapter: {} }) } as unknown as Kysely<unknown>
  expect(() => sqlStore(unknown)).toThrow("write sqlStore(db, { dialect: 'postgres' })")
})

function temporaryFile(): { file: string; remove(): void } {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-'))
  return { file: join(folder, 'keys.db'), remove: () => rmSync(folder, { recursive: true }) }
}
