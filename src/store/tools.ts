import type { Store } from './store.js'

/** What whoever runs a database wants to know of it, for the command line. No application needs it. */
export interface StoreTools {
  readonly database: 'PostgreSQL' | 'SQLite' | 'MySQL'
  /** Which version the tables are at (0 where there are none), and the latest one that this release knows. */
  versions(): Promise<{ readonly found: number; readonly known: number }>
  /** The statements that lead from a version to the latest one, to be run in one transaction. Asks no database. */
  migrationScript(from: number): Promise<readonly string[]>
  /** Looks at the database and its settings. Changes nothing. */
  inspect(): Promise<DatabaseFacts>
}

export interface DatabaseFacts {
  /** As the server writes it, and its number. */
  readonly version: string
  readonly major: number
  /** The oldest one that is supported. */
  readonly oldestMajor: number
  readonly standby: boolean
  /** Of the database; undefined where every database has the right one. */
  readonly encoding: string | undefined
  readonly role: string | undefined
  /** What a transaction gets that asks for nothing; undefined where there is no such default. */
  readonly isolation: string | undefined
  readonly readOnly: boolean
  /** Whether a new session sits in a transaction already. */
  readonly inTransaction: boolean
  /** Whether what is committed outlives a loss of power. */
  readonly durable: boolean
  /** How far the server's clock is ahead of this machine's, in milliseconds, and how much of that may be the way there. Undefined where both are one. */
  readonly clock: { readonly aheadMs: number; readonly uncertainMs: number } | undefined
  /** How many connections the application's pool opens at most; undefined where it does not tell. */
  readonly poolSize: number | undefined
  /** How many connections this role may have at most; undefined where there is no limit. */
  readonly mostConnections: number | undefined
  readonly tables: readonly TableFacts[]
  /** A schema that has tables of the keys, and that the role may not use. */
  readonly closedSchema: string | undefined
  /** The tables of which row-level security hides rows. */
  readonly hidden: string
}

export interface TableFacts {
  readonly name: string
  readonly exists: boolean
  /** What the role would need and does not have, such as `INSERT`. */
  readonly missingRights: readonly string[]
}

/** Registered, so that the command line of one installed copy of the package knows the stores of another. Its number names the shape of `StoreTools`. */
export const STORE_TOOLS: unique symbol = Symbol.for('express-api-keys.store-tools.1')

/** Undefined for a store that has none, such as one of the application's own. */
export function storeTools(store: Store): StoreTools | undefined {
  return (store as { readonly [STORE_TOOLS]?: StoreTools })[STORE_TOOLS]
}
