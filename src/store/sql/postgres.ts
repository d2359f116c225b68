import { Kysely, PostgresDialect } from 'kysely'
import type { Channel } from '../../channel.js'
import { ApiKeyError } from '../../errors.js'
import type { Store } from '../store.js'
import { STORE_TOOLS } from '../tools.js'
import { postgresDialect } from './dialects/postgres.js'
import { kyselyStore } from './kysely-store.js'
import { type Faults, faults } from './late-failures.js'
import { postgresChannel } from './postgres-channel.js'
import { connected, type PgPool } from './postgres-pool.js'
import { type TimeoutOptions, timeouts } from './timeouts.js'

export type { PgClient, PgPool } from './postgres-pool.js'
export type { TimeoutOptions } from './timeouts.js'

export type PostgresStoreOptions = TimeoutOptions

/**
 * Keeps keys in PostgreSQL, through a `pg` Pool that stays the application's: `close()` does not end it. Give it at least ten connections, all to the
 * primary; where instances reach each other through PostgreSQL, one of them is kept for listening. The store listens for the pool's `error` events, so
 * that a lost idle connection does not end the process.
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
  const channels: Channel[] = []
  const tools = store[STORE_TOOLS]
  const withTools: Store & { readonly [STORE_TOOLS]: typeof tools } = {
    ...store,
    [STORE_TOOLS]: { ...tools, inspect: async () => ({ ...(await tools.inspect()), poolSize: sizeOf(pool) }) },
    channel() {
      const channel = postgresChannel(pool, limits)
      channels.push(channel)
      return channel
    },
    async close() {
      await Promise.all(channels.splice(0).map((channel) => channel.close()))
      await store.close()
    },
    onFault(listener) {
      const ends = [store.onFault?.(listener), lost.on(listener)]
      return () => {
        for (const end of ends) end?.()
      }
    },
  }
  return withTools
}

/** How many connections the pool opens at most, where it tells. */
function sizeOf(pool: PgPool): number | undefined {
  const { options } = pool as { options?: { max?: unknown } }
  const size = Number(options?.max ?? Number.NaN)
  return Number.isInteger(size) ? size : undefined
}

/** Properties of things that have `connect` but are not a pool: clients of `pg`, MySQL, Redis and MongoDB, a data source, a socket. */
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
  return ' One client cannot serve requests at the same time: each would run inside the transactions of the others.'
}

/** One for each pool, however many stores share it, for as long as the pool lives: an `error` event without a listener ends the process. */
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
