import { Kysely, SqliteDialect } from 'kysely'
import { ApiKeyError } from '../errors.js'
import { type SqlStoreOptions, sqlStore } from './sql.js'
import type { Store } from './store.js'

/** What the store needs of a better-sqlite3 style handle. */
export interface SqliteHandle {
  // biome-ignore lint/suspicious/noExplicitAny: the drivers' own signatures differ
  prepare(source: string): any
  exec(source: string): unknown
  close(): unknown
}

export type SqliteStoreOptions = Omit<SqlStoreOptions, 'dialect'>

/** How long SQLite itself waits for a lock. It blocks the event loop meanwhile, so the long wait is the store's own. */
const BUSY_MS = 50

/**
 * Keeps keys in an SQLite file, through a handle of libsql or better-sqlite3 (SQLite 3.35 or later). Give it a handle of its own: a
 * transaction spans several turns of the event loop, and any other statement on the same handle would fall into it.
 * `close()` leaves the handle open.
 */
export function sqliteStore(database: SqliteHandle, options: SqliteStoreOptions = {}): Store {
  if (typeof database?.prepare !== 'function' || typeof database.exec !== 'function') {
    throw new ApiKeyError('invalid_option', 'sqliteStore takes a better-sqlite3 style database: sqliteStore(new Database(file)).')
  }
  const dialect = new SqliteDialect({
    // Not before the first use, and before anything else: FULL is what makes COMMIT durable in WAL mode.
    database: async () => {
      for (const pragma of [`busy_timeout = ${BUSY_MS}`, 'journal_mode = WAL', 'synchronous = FULL']) setPragma(database, pragma)
      return {
        prepare: (source: string) => (/^(begin|commit|rollback)/.test(source) ? executed(database, source) : database.prepare(source)),
        close: () => {},
      }
    },
  })
  return sqlStore(new Kysely({ dialect }), { ...options, dialect: 'sqlite' })
}

/** Some pragmas answer with a row and some do not, and `prepare` is particular about it. */
function setPragma(database: SqliteHandle, pragma: string): void {
  const statement = database.prepare(`pragma ${pragma}`)
  if (statement.reader === false) statement.run()
  else statement.all()
}

/**
 * Runs what opens and ends a transaction without a statement of its own: in libsql 0.5 a prepared BEGIN that met SQLITE_BUSY counts as "in progress"
 * until it is collected, and no COMMIT goes through beside it.
 */
function executed(database: SqliteHandle, source: string): { reader: boolean; run(): object; all(): unknown[] } {
  const run = (): object => {
    database.exec(source)
    return { changes: 0, lastInsertRowid: 0 }
  }
  return { reader: false, run, all: () => [run()] }
}
