import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Store } from 'express-api-keys'
import { mysqlStore } from 'express-api-keys/mysql'
import { postgresStore } from 'express-api-keys/postgres'
import { sqliteStore } from 'express-api-keys/sqlite'
import Database from 'libsql'
import { atEnd } from './cleanup.js'
import { freshMysql } from './mariadb.js'
import { freshDatabase } from './postgres.js'

export interface TestStore {
  /** What `server.ts` takes as STORE_URL. */
  readonly url: string
  readonly store: Store
  /** Looks into the tables, or moves a row's time, behind the store's back. */
  query<Row>(statement: string): Promise<Row[]>
}

type NamedStore = readonly [name: string, make: () => Promise<TestStore>]

/** Both databases that the promises are held on, for real. */
const USUAL: readonly NamedStore[] = [
  [
    'PostgreSQL',
    async () => {
      const { url, pool } = await freshDatabase()
      return { url, store: postgresStore(pool), query: async (statement) => (await pool.query(statement)).rows }
    },
  ],
  [
    'SQLite',
    async () => {
      const folder = mkdtempSync(join(tmpdir(), 'api-keys-'))
      const url = join(folder, 'keys.db')
      const [own, outside] = [new Database(url), new Database(url)]
      outside.exec('pragma busy_timeout = 2000')
      atEnd(async () => {
        own.close()
        outside.close()
        rmSync(folder, { recursive: true })
      })
      return {
        url,
        store: sqliteStore(own),
        async query<Row>(statement: string) {
          const prepared = outside.prepare(statement)
          if (/^select/.test(statement)) return prepared.all() as Row[]
          prepared.run()
          return []
        },
      }
    },
  ],
]

const MARIADB: NamedStore = [
  'MariaDB',
  async () => {
    const { url, pool } = await freshMysql()
    return { url, store: mysqlStore(pool), query: async <Row>(statement: string) => (await pool.promise().query(statement))[0] as Row[] }
  },
]

/** `TEST_STORE=mariadb` holds the promises on MariaDB, which is no part of `npm test`. */
export const stores: readonly NamedStore[] = process.env.TEST_STORE === 'mariadb' ? [MARIADB] : USUAL
