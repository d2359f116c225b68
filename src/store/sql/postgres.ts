import { Kysely, PostgresDialect } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { clearTimeout, setTimeout } from '../../real-time.js'
import type { Store } from '../store.js'
import { postgresDialect, postgresErrors } from './dialects/postgres.js'
import { kyselyStore } from './kysely-store.js'
import { type Faults, faults } from './late-failures.js'
import { type TimeoutOptions, timeouts } from './timeouts.js'

/** What the store needs of a `pg` Pool. */
export interface PgPool {
  /** Calls back; what returns a promise instead will do, but see `connected`. */
  // biome-ignore lint/suspicious/noExplicitAny: a pool that calls back returns nothing, one that somebody wrapped may return a promise
  connect(callback: (error: Error | undefined, client: PgClient | undefined) => void): any
  on?(event: 'error', listener: (error: Error) => void): unknown
}

export interface PgClient {
  // biome-ignore lint/suspicious/noExplicitAny: the driver's own signatures differ between versions
  query(...args: any[]): any
  release(error?: Error | boolean): void
  /** Whether it asks for results in binary; the store turns that off for as long as it has the connection. */
  binary?: boolean
  on?(event: 'error', listener: (error: Error) => void): unknown
  removeListener?(event: 'error', listener: (error: Error) => void): unknown
}

export type PostgresStoreOptions = TimeoutOptions

/**
 * Keeps keys in PostgreSQL, through a `pg` Pool that stays the application's: `close()` does not end it. Give it at least ten
 * connections, all to the primary. The store listens for the pool's `error` events, so that an idle connection that is lost does not end
 * the process.
 *
 * @throws ApiKeyError `invalid_option` for anything but a pool, and for options out of range.
 */
export function postgresStore(pool: PgPool, options: PostgresStoreOptions = {}): Store {
  refuseOtherThanPool(pool)
  const limits = timeouts(options)
  const lost = lostConnections(pool)
  const dialect = new PostgresDialect({
    pool: {
      connect: () => connected(pool, limits.transactionTimeoutMs),
      end: async () => {},
    } as ConstructorParameters<typeof PostgresDialect>[0]['pool'] & object,
  })
  const store = kyselyStore(new Kysely({ dialect }), postgresDialect({ together: true }), limits)
  return {
    ...store,
    onFault(listener) {
      const ends = [store.onFault?.(listener), lost.on(listener)]
      return () => {
        for (const end of ends) end?.()
      }
    },
  }
}

/** What marks something that has `connect` and is no pool: clients of `pg`, MySQL, Redis and MongoDB, a data source, a socket. */
const NOT_A_POOL = [
  'release',
  'connectionParameters',
  'escapeLiteral',
  'execute',
  'duplicate',
  'startSession',
  'createQueryRunner',
  'getConnection',
  'write',
  'selectFrom',
]

function refuseOtherThanPool(pool: unknown): void {
  const given = (pool ?? {}) as { [name: string]: unknown }
  if (typeof given.connect === 'function' && NOT_A_POOL.every((name) => given[name] === undefined)) return
  throw new ApiKeyError('invalid_option', `postgresStore takes a pg Pool: postgresStore(new Pool({ connectionString })).${instead(given)}`)
}

function instead(given: { [name: string]: unknown }): string {
  if (typeof given.selectFrom === 'function') return ' A Kysely instance goes to sqlStore(db).'
  if (typeof given.prepare === 'function') return ' An SQLite handle goes to sqliteStore(database).'
  if (given.connectionParameters === undefined) return ''
  return ' One client cannot serve requests at the same time: they would fall into the transactions of each other.'
}

/** One for each pool, however many stores share it, and for as long as the pool lives: an `error` that nobody listens for ends the process. */
const LOST_CONNECTIONS = new WeakMap<PgPool, Faults>()

function lostConnections(pool: PgPool): Faults {
  const known = LOST_CONNECTIONS.get(pool)
  if (known !== undefined) return known
  const lost = faults()
  pool.on?.('error', (cause) => {
    lost.tell(new ApiKeyError('store_unavailable', 'An idle connection to the database was lost.', { cause }))
  })
  LOST_CONNECTIONS.set(pool, lost)
  return lost
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
    if (isThenable(promised)) promised.then((client) => take(undefined, client as PgClient | undefined), take)
  })
}

/**
 * Gives a connection that does not answer up, and has the pool destroy it: a black hole must not keep a place in the pool until the
 * operating system notices, and nobody may get a connection with a transaction still open on it.
 */
function bounded(client: PgClient, ms: number): PgClient {
  let broken: Error | undefined
  const note = (error: Error): void => {
    broken ??= error
  }
  client.on?.('error', note)
  const { binary } = client
  // `pg` reads binary numbers as if they were text, and so other numbers than were sent.
  if (binary === true) client.binary = false
  return {
    query(...args) {
      if (broken !== undefined) return Promise.reject(new Error('The connection is given up.', { cause: broken }))
      const answer: unknown = client.query(...args)
      if (!isThenable(answer)) return answer
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          note(Object.assign(new Error('The connection did not answer in time.'), { code: 'ETIMEDOUT' }))
          reject(broken)
        }, ms)
        timer.unref()
        const failed = (error: Error): void => {
          // Such as the `query_timeout` of the pool: what this connection is doing is not known any more.
          if (!postgresErrors.refused(error)) note(error)
          reject(error)
        }
        Promise.resolve(answer)
          // Several statements at once have several answers, and Kysely reads one.
          .then((result) => resolve(Array.isArray(result) ? result.at(-1) : result), failed)
          .finally(() => clearTimeout(timer))
      })
    },
    release() {
      if (binary === true) client.binary = true
      client.removeListener?.('error', note)
      client.release(broken)
    },
  }
}

/** A pool that somebody wrapped may answer with promises of a library or of another realm, which are no `Promise` of ours. */
function isThenable(answer: unknown): answer is PromiseLike<unknown> {
  return typeof (answer as { then?: unknown } | null | undefined)?.then === 'function'
}
