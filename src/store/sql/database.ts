import type { Kysely } from 'kysely'
import type { Dialect } from './dialect.js'
import type { Tables } from './rows.js'
import type { Places } from './table-names.js'
import type { Timeouts } from './timeouts.js'

/** The database of one store, and how it is asked. */
export interface Database {
  readonly db: Kysely<Tables>
  readonly places: Places
  readonly dialect: Dialect
  readonly timeouts: Timeouts
  /** Hears of a failure whose call had been given up already. */
  missed(error: unknown): void
}
