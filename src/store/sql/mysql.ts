import { Kysely, MysqlDialect } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { clearTimeout, setTimeout } from '../../real-time.js'
import type { Store } from '../store.js'
import { isInTransaction, mysqlDialect, mysqlErrors, refuseCharset } from './dialects/mysql.js'
import { insideTransaction } from './driver-errors.js'
import { kyselyStore } from './kysely-store.js'
import { withParameters } from './mysql-text.js'
import { type TimeoutOptions, timeouts } from './timeouts.js'

export type { TimeoutOptions } from './timeouts.js'

export type MysqlStoreOptions = TimeoutOptions

/** What the store needs of a `mysql2` pool. */
export interface MysqlPool {
  // biome-ignore lint/suspicious/noExplicitAny: the driver's own signatures differ between versions
  getConnection(callback: (error: any, connection: any) => void): any
}

/** What it needs of a connection. */
interface Connection {
  query(text: string, values: readonly unknown[] | undefined, callback: (error: unknown, rows: unknown) => void): unknown
  release(): void
  destroy(): void
}

/**
 * Keeps keys in MySQL 8 or MariaDB 10.6 and later, through a `mysql2` pool that stays the application's: `close()` does not end it. Give it at least ten connections, all
 * to the primary.
 *
 * @throws ApiKeyError `invalid_option` for anything but a pool, and for options out of range.
 */
export function mysqlStore(pool: MysqlPool, options: MysqlStoreOptions = {}): Store {
  const plain = plainPool(pool)
  const limits = timeouts(options)
  const dialect = new MysqlDialect({
    pool: {
      getConnection: (callback: (error: unknown, connection: unknown) => void) =>
        plain.getConnection((error, connection: Connection | undefined) => {
          if (error || connection === undefined) callback(error ?? new Error('The pool gave no connection.'), undefined)
          else handOut(connection, limits.transactionTimeoutMs, callback)
        }),
      end: (callback: (error: unknown) => void) => callback(undefined),
    } as never,
  })
  return kyselyStore(new Kysely({ dialect }), mysqlDialect({ ownText: true }), limits)
}

/** A pool of `mysql2/promise` has the one that it wraps. */
function plainPool(given: unknown): MysqlPool {
  const { pool } = (given ?? {}) as { pool?: { getConnection?: unknown } }
  const plain = typeof pool?.getConnection === 'function' ? pool : given
  const { getConnection, execute, beginTransaction, selectFrom } = (plain ?? {}) as { [name: string]: unknown }
  if (typeof getConnection === 'function' && typeof execute === 'function' && beginTransaction === undefined) return plain as MysqlPool
  const instead =
    typeof selectFrom === 'function'
      ? ' A Kysely instance goes to sqlStore(db).'
      : typeof beginTransaction === 'function'
        ? ' One connection cannot serve requests at the same time: each would run inside the transactions of the others.'
        : ''
  throw new ApiKeyError('invalid_option', `mysqlStore takes a mysql2 pool: mysqlStore(createPool({ uri })).${instead}`)
}

/** Connections that have been looked at, and whether their server is MySQL. */
const seen = new WeakMap<Connection, { readonly isMysql: boolean }>()

/** MariaDB cuts a list of changes after a megabyte otherwise. */
const LONG_LISTS = 'set group_concat_max_len = 67108864'
const LOOK = 'select version() as version, @@character_set_client as charset'
/** Fails inside of a transaction that somebody has left open, which would show what is no longer so. MariaDB says so in each read. */
const PROBE = 'set transaction isolation level read committed'

function handOut(connection: Connection, ms: number, callback: (error: unknown, connection: unknown) => void): void {
  const guarded = bounded(connection, ms)
  const ask = (text: string): Promise<unknown> =>
    new Promise((resolve, reject) => {
      guarded.query(text, undefined, (error, rows) => (error ? reject(error) : resolve(rows)))
    })
  const looked = async (): Promise<void> => {
    const known = seen.get(connection) ?? (await lookAt(ask))
    seen.set(connection, known)
    if (known.isMysql) await ask(PROBE).catch((error) => Promise.reject(isInTransaction(error) ? insideTransaction() : error))
  }
  looked().then(
    () => callback(undefined, guarded),
    (error) => {
      guarded.release()
      callback(error, undefined)
    },
  )
}

async function lookAt(ask: (text: string) => Promise<unknown>): Promise<{ readonly isMysql: boolean }> {
  await ask(LONG_LISTS)
  const [{ version, charset }] = (await ask(LOOK)) as [{ version: string; charset: string }]
  refuseCharset(charset)
  return { isMysql: !/mariadb/i.test(version) }
}

/**
 * Gives up a connection that does not answer, and ends it: a black hole must not keep a place in the pool until the operating system notices, and nobody may get a
 * connection with a transaction still open on it.
 */
function bounded(connection: Connection, ms: number): Connection {
  let broken: unknown
  return {
    query(text, values, callback) {
      if (broken !== undefined) {
        callback(new Error('The connection is given up.', { cause: broken }), undefined)
        return
      }
      let isOver = false
      const settle = (error: unknown, rows: unknown): void => {
        if (isOver) return
        isOver = true
        clearTimeout(timer)
        // What the server did not answer may still be at work.
        if (error && !mysqlErrors.answered(error)) broken = error
        callback(error, rows)
      }
      const timer = setTimeout(() => {
        const late = Object.assign(new Error('The connection did not answer in time.'), { code: 'ETIMEDOUT' })
        settle(late, undefined)
        connection.destroy()
      }, ms)
      timer.unref()
      // The driver's own way to write values trusts backslashes, which a session can give another meaning.
      connection.query(withParameters(text, values ?? []), undefined, settle)
    },
    release() {
      if (broken === undefined) connection.release()
      else connection.destroy()
    },
    destroy: () => connection.destroy(),
  }
}
