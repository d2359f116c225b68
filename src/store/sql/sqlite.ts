import { Kysely, SqliteDialect } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { monotonicMs } from '../../real-time.js'
import type { Store } from '../store.js'
import { sqliteDialect, sqliteErrors } from './dialects/sqlite.js'
import { insideTransaction } from './driver-errors.js'
import { kyselyStore } from './kysely-store.js'
import type { SqliteHandle } from './sqlite-handle.js'
import { committedPosition } from './sqlite-position.js'
import { moment, type TimeoutOptions, timeouts } from './timeouts.js'

export type { SqliteHandle } from './sqlite-handle.js'
export type { TimeoutOptions } from './timeouts.js'

export type SqliteStoreOptions = TimeoutOptions

/** How long SQLite itself waits for a lock. It blocks the event loop meanwhile, so the long wait is the store's own. */
const BUSY_MS = 50

/**
 * Keeps keys in an SQLite file, through a handle of libsql or better-sqlite3 (SQLite 3.35 or later). Give it a handle of its own: a
 * transaction spans several turns of the event loop, and any other statement on the same handle would become part of it.
 * `close()` leaves the handle open.
 *
 * @throws ApiKeyError `invalid_option` for anything but such a handle, and for options out of range.
 */
export function sqliteStore(database: SqliteHandle, options: SqliteStoreOptions = {}): Store {
  refuseOtherThanHandle(database)
  const limits = timeouts(options)
  const own: OwnTransaction = { isOpen: false }
  const dialect = new SqliteDialect({
    // Not before the first use, and again at the next one if it fails.
    database: async () => {
      await setUp(database, limits.transactionTimeoutMs)
      return {
        prepare(source: string) {
          refuseClosed(database)
          if (/^(begin|commit|rollback)/.test(source)) return executed(database, source, own)
          if (!own.isOpen && isInTransaction(database)) throw insideTransaction()
          return database.prepare(source)
        },
        close: () => {},
      }
    },
  })
  const store = kyselyStore(new Kysely({ dialect }), sqliteDialect, limits)
  const committed = committedPosition(database)
  if (committed === undefined) return store
  return {
    ...store,
    currentPosition: committed.currentPosition,
    async close() {
      committed.close()
      await store.close()
    },
  }
}

/** Whether the store itself has a transaction open on the handle. */
interface OwnTransaction {
  isOpen: boolean
}

/** By the names that drivers have for it. What is read in a transaction of somebody else is as old as that, or not committed. */
function isInTransaction(database: SqliteHandle): boolean {
  const { inTransaction, isTransaction } = database as { inTransaction?: unknown; isTransaction?: unknown }
  return inTransaction === true || isTransaction === true
}

function refuseOtherThanHandle(database: unknown): void {
  const { prepare, exec, each, selectFrom, connect } = (database ?? {}) as { [name: string]: unknown }
  // The package sqlite3, and what is built on it, has `each`; it calls back.
  if (typeof prepare === 'function' && typeof exec === 'function' && typeof each !== 'function') return
  const instead =
    typeof selectFrom === 'function'
      ? ' A Kysely instance goes to sqlStore(db).'
      : typeof connect === 'function'
        ? ' A pg Pool goes to postgresStore(pool).'
        : ''
  throw new ApiKeyError('invalid_option', `sqliteStore takes a better-sqlite3 style database: sqliteStore(new Database(file)).${instead}`)
}

/**
 * Prepares the file for several processes; FULL is what makes COMMIT durable in WAL mode. The switch to WAL needs the file for itself for
 * a moment, and SQLite does not always wait for that. Runs without a prepared statement: in libsql, one that was busy once counts as "in progress".
 */
async function setUp(database: SqliteHandle, ms: number): Promise<void> {
  const end = monotonicMs() + ms
  for (const pragma of [`busy_timeout = ${BUSY_MS}`, 'journal_mode = WAL', 'synchronous = FULL']) {
    for (;;) {
      refuseClosed(database)
      try {
        database.exec(`pragma ${pragma}`)
        break
      } catch (error) {
        if (!sqliteErrors.isBusy(error) || monotonicMs() > end) throw error
        await moment()
      }
    }
  }
}

/** Drivers differ about closed handles: libsql goes on answering statements that it has prepared. */
function refuseClosed(database: SqliteHandle): void {
  const { open, isOpen } = database as { open?: unknown; isOpen?: unknown }
  if (open === false || isOpen === false) throw new ApiKeyError('store_unavailable', 'The SQLite handle has been closed.')
}

/**
 * Runs what opens and ends a transaction without a prepared statement: in libsql 0.5 a prepared BEGIN that met SQLITE_BUSY counts as "in progress"
 * until it is collected, and no COMMIT goes through beside it.
 */
function executed(database: SqliteHandle, source: string, own: OwnTransaction): { reader: boolean; run(): object; all(): unknown[] } {
  const run = (): object => {
    // SQLite may have rolled back by itself, and ROLLBACK fails then.
    if (source.startsWith('rollback')) own.isOpen = false
    database.exec(source)
    own.isOpen = source.startsWith('begin')
    return { changes: 0, lastInsertRowid: 0 }
  }
  return { reader: false, run, all: () => [run()] }
}
