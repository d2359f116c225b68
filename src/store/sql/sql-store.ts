import type { Kysely } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import type { Store } from '../store.js'
import type { MakeDialect } from './dialect.js'
import { mysqlDialect } from './dialects/mysql.js'
import { postgresDialect } from './dialects/postgres.js'
import { sqliteDialect } from './dialects/sqlite.js'
import { kyselyStore } from './kysely-store.js'
import { type TimeoutOptions, timeouts } from './timeouts.js'

export type { TimeoutOptions } from './timeouts.js'

export type SqlDialect = 'postgres' | 'sqlite' | 'mysql'

export interface SqlStoreOptions extends TimeoutOptions {
  /** Which SQL to speak. Default: what the Kysely instance speaks. */
  dialect?: SqlDialect | undefined
}

/**
 * Keeps keys in the PostgreSQL or SQLite database of a Kysely instance that the application already has. Of its plugins, only where they
 * move tables counts: a schema (`db.withSchema('auth')`) or a prefix is kept to by every statement.
 *
 * @throws ApiKeyError `invalid_option` for anything but a Kysely instance, for a transaction, for options out of range, when the dialect
 * is neither or cannot be told, and when a plugin makes something else of the tables.
 */
// biome-ignore lint/suspicious/noExplicitAny: the application's own tables are none of our business
export function sqlStore(database: Kysely<any>, options: SqlStoreOptions = {}): Store {
  refuseOtherThanKysely(database)
  const limits = timeouts(options, ['dialect'])
  return kyselyStore(database, DIALECTS[dialectFor(database, options.dialect)], limits)
}

/** Each under a word that the name of Kysely's adapter for it has. */
const DIALECTS: { readonly [name in SqlDialect]: MakeDialect } = {
  postgres: postgresDialect({ together: false }),
  sqlite: sqliteDialect,
  mysql: mysqlDialect({ ownText: false }),
}
const NAMES = Object.keys(DIALECTS) as SqlDialect[]

function refuseOtherThanKysely(database: unknown): void {
  const { getExecutor, isTransaction, connect, prepare } = (database ?? {}) as { [name: string]: unknown }
  if (typeof getExecutor !== 'function') {
    const instead =
      typeof connect === 'function'
        ? ' A pg Pool goes to postgresStore(pool).'
        : typeof prepare === 'function'
          ? ' An SQLite handle goes to sqliteStore(database).'
          : ''
    throw new ApiKeyError('invalid_option', `sqlStore takes a Kysely instance: sqlStore(new Kysely({ dialect })).${instead}`)
  }
  if (isTransaction === true) {
    throw new ApiKeyError(
      'invalid_option',
      'sqlStore takes the Kysely instance itself, not a transaction of it: the store outlives a transaction, and opens its own.',
    )
  }
}

function dialectFor(database: Pick<Kysely<unknown>, 'getExecutor'>, asked: SqlDialect | undefined): SqlDialect {
  if (asked !== undefined && !NAMES.includes(asked)) {
    throw new ApiKeyError('invalid_option', `dialect must be ${NAMES.map((name) => `"${name}"`).join(' or ')}, not ${String(asked)}.`)
  }
  const spoken = dialectOf(database)
  if (asked !== undefined && spoken !== undefined && asked !== spoken) {
    throw new ApiKeyError('invalid_option', `dialect is "${asked}", but this Kysely instance speaks "${spoken}"; leave the option out.`)
  }
  const dialect = asked ?? spoken
  if (dialect !== undefined) return dialect
  const [first, ...others] = NAMES.map((name) => `'${name}'`)
  throw new ApiKeyError(
    'invalid_option',
    `sqlStore cannot tell the dialect of this Kysely instance; write sqlStore(db, { dialect: ${first} }) or ${others.join(' or ')}.`,
  )
}

/** By the adapter's class name: `instanceof` fails across two copies of Kysely. */
function dialectOf(database: Pick<Kysely<unknown>, 'getExecutor'>): SqlDialect | undefined {
  const adapter = database.getExecutor().adapter.constructor.name.toLowerCase()
  return NAMES.find((name) => adapter.includes(name))
}
