import { Kysely, PostgresDialect } from 'kysely'
import { ApiKeyError } from '../errors.js'
import { clearTimeout, setTimeout } from '../real-time.js'
import { type SqlStoreOptions, sqlStore } from './sql.js'
import type { Store } from './store.js'

/** What the store needs of a `pg` Pool. */
export interface PgPool {
  /** Calls back; what returns a promise instead will do, but see `connected`. */
  // biome-ignore lint/suspicious/noExplicitAny: a pool that calls back returns nothing, one that somebody wrapped may return a promise
  connect(callback: (error: Error | undefined, client: PgClient | undefined) => void): any
}

export interface PgClient {
  // biome-ignore lint/suspicious/noExplicitAny: the driver's own signatures differ between versions
  query(...args: any[]): any
  release(error?: Error | boolean): void
  on?(event: 'error', listener: (error: Error) => void): unknown
  removeListener?(event: 'error', listener: (error: Error) => void): unknown
}

export type PostgresStoreOptions = Omit<SqlStoreOptions, 'dialect'>

/**
 * Keeps keys in PostgreSQL, through a `pg` Pool that stays the application's: `close()` does not end it. Give it at least ten
 * connections, all to the primary.
 */
export function postgresStore(pool: PgPool, options: PostgresStoreOptions = {}): Store {
  if (typeof pool?.connect !== 'function') {
    throw new ApiKeyError('invalid_option', 'postgresStore takes a pg Pool: postgresStore(new Pool({ connectionString })).')
  }
  const slowestMs = options.transactionTimeoutMs ?? 5_000
  const dialect = new PostgresDialect({
    pool: {
      connect: () => connected(pool, slowestMs),
      end: async () => {},
    } as ConstructorParameters<typeof PostgresDialect>[0]['pool'] & object,
  })
  return sqlStore(new Kysely({ dialect }), { ...options, dialect: 'postgres' })
}

/**
 * Takes the connection in the pool's callback and not from its promise: what comes in the same piece of data as the end of the
 * greeting, such as that an administrator ends this session, comes before a promise is heard of, and an `error` that nobody listens for
 * ends the process.
 */
function connected(pool: PgPool, ms: number): Promise<PgClient> {
  return new Promise((resolve, reject) => {
    const take = (error: Error | null | undefined, client?: PgClient | null): void => {
      if (error || !client) reject(error ?? new Error('The pool gave no connection.'))
      else resolve(bounded(client, ms))
    }
    const promised: unknown = pool.connect(take)
    if (promised instanceof Promise) promised.then((client?: PgClient) => take(undefined, client), take)
  })
}

/**
 * Gives a connection that does not answer up, and has the pool destroy it: a black hole must not keep a place in the pool until the
 * operating system notices.
 */
function bounded(client: PgClient, ms: number): PgClient {
  let broken: Error | undefined
  const note = (error: Error): void => {
    broken = error
  }
  client.on?.('error', note)
  return {
    query(...args) {
      const answer: unknown = client.query(...args)
      if (!(answer instanceof Promise)) return answer
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          broken = Object.assign(new Error('The connection did not answer in time.'), { code: 'ETIMEDOUT' })
          reject(broken)
        }, ms)
        timer.unref()
        answer.then(resolve, reject).finally(() => clearTimeout(timer))
      })
    },
    release() {
      client.removeListener?.('error', note)
      client.release(broken)
    },
  }
}
