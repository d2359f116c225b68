import type { InsertQueryBuilder, InsertResult, Kysely, RawBuilder, SelectQueryBuilder } from 'kysely'
import type { DatabaseFacts, StoreTools } from '../tools.js'
import type { DriverErrors } from './driver-errors.js'
import type { LastUse } from './last-use.js'
import type { RowSecurity } from './row-security.js'
import type { Tables } from './rows.js'
import type { Place, Places } from './table-names.js'
import type { Timeouts } from './timeouts.js'

/** Makes the dialect of one store. */
export type MakeDialect = (places: Places, timeouts: Timeouts) => Dialect

/**
 * What differs between databases, and nothing else. Another database is another file in `dialects/`, its name in `sql-store.ts`, and an entry such as
 * `postgres.ts` for its driver.
 */
export interface Dialect {
  readonly database: StoreTools['database']
  /** The database's clock, in whole milliseconds, as it is when this statement runs: the start of the transaction may be long ago. */
  now(on: Kysely<Tables>): Promise<number>
  /**
   * The database's clock inside a single statement that reads, never later than the snapshot that the statement sees: a lease counts from it, and a
   * change that the read does not show must be committed after it. Null where this process's own clock, read before the statement, is as good.
   */
  readonly readClock: RawBuilder<number | null>
  /** The database's clock inside a statement that writes, as it is when that runs. Has no parameters. */
  clock(): RawBuilder<number>
  /** The name of a key with a to z for A to Z, and every other character as it is, whatever the locale of the database. */
  readonly loweredName: RawBuilder<string>
  /** 1 where a standby answers, else 0. As a number, since an application can have its driver hand out a boolean as text, which is always true. */
  readonly standby: RawBuilder<number>
  /** 1 where the session may show an older snapshot than that of the statement itself, else 0. */
  readonly outdated: RawBuilder<number>
  /** Names the server that answers. Null where that cannot be told. */
  readonly server: RawBuilder<string | null>
  /** Every row of changes `c` in one text: `seq`, `tag` and `digests` with a space between two. Rows come in any order, with `;` or quotes between two. */
  readonly gathered: RawBuilder<string | null>

  /** Has a query lock the rows that it finds, and show them as they are once they are locked. */
  forUpdate<Found extends keyof Tables, Row>(query: SelectQueryBuilder<Tables, Found, Row>): SelectQueryBuilder<Tables, Found, Row>
  /** Has a query lock the rows that it finds against changes only. */
  forShare<Found extends keyof Tables, Row>(query: SelectQueryBuilder<Tables, Found, Row>): SelectQueryBuilder<Tables, Found, Row>
  /** Waits for a name, and holds it to the end of the transaction. Each set of tables in a database has names of its own. */
  lockName(on: Kysely<Tables>, name: string): Promise<void>

  /**
   * Opens a transaction that may write, at READ COMMITTED or stricter, whose COMMIT is durable and in which no statement waits for ever, whatever the
   * defaults of the role and the database are. Rejects where row-level security hides rows: an update of hidden rows changes nothing in silence.
   */
  begin(on: Kysely<Tables>): Promise<void>
  /** Whether the driver takes several statements without parameters at once. */
  readonly together: boolean
  /**
   * Sends COMMIT, and rejects only for what that was answered. Then releases what outlives a transaction here, such as a lock that belongs to the session.
   *
   * @param last statements without parameters that go out before COMMIT in the same message; only where `together`. Where one fails, COMMIT is not run.
   */
  commit(on: Kysely<Tables>, last: readonly RawBuilder<unknown>[]): Promise<void>
  /** Ends a transaction that failed, and releases as `commit` does. Never rejects. */
  rollback(on: Kysely<Tables>): Promise<void>

  /** Has a row be inserted unless there is one of its primary key. */
  insertOnce<Table extends keyof Tables>(
    query: InsertQueryBuilder<Tables, Table, InsertResult>,
  ): InsertQueryBuilder<Tables, Table, InsertResult>

  /**
   * Writes the last uses of as many different keys, at most one use each, without waiting for a key that somebody has locked while it holds others.
   * Resolves with the uses that are still to be written.
   */
  recordUses(on: Kysely<Tables>, uses: readonly LastUse[]): Promise<readonly LastUse[]>

  /** What the database and its settings are like, for whoever runs it. Takes one session, and changes nothing. */
  inspect(on: Kysely<Tables>): Promise<Omit<DatabaseFacts, 'poolSize'>>
  /** Has what was deleted be gone from the file too. Runs outside of a transaction. Left out where the database does that by itself, sooner or later. */
  scrub?(on: Kysely<Tables>): Promise<void>

  readonly rowSecurity: RowSecurity
  readonly errors: DriverErrors
  readonly schema: SchemaDialect
}

/** How tables are found and made. */
export interface SchemaDialect {
  readonly types: ColumnTypes
  readonly drawn: Drawn

  /** @throws ApiKeyError `store_misconfigured` where the database or its driver cannot hold what keys are made of. */
  refuseUnfit(on: Kysely<Tables>): Promise<void>
  /** The schema in which a table is found under this name; undefined where there is no such table. */
  find(on: Kysely<Tables>, place: Place): Promise<Schema | undefined>
  /**
   * The schema in which a new table of this name would be made.
   *
   * @throws ApiKeyError `store_misconfigured` where there is none.
   */
  home(on: Kysely<Tables>, place: Place): Promise<Schema>
  /** Waits until no other process migrates this table of migrations, and keeps others waiting to the end of the transaction. */
  lock(on: Kysely<Tables>, migrations: Place): Promise<void>
  createIndex(index: Index): RawBuilder<unknown>
  /** Whether a statement failed because this role may not make or change tables. */
  isForbidden(error: unknown): boolean
  /**
   * Whether a statement of a migration failed because it was carried out already. Only where DDL commits by itself, so that a migration that was cut
   * short leaves some of its statements done.
   */
  isDone(error: unknown): boolean
}

/** Each compares its texts byte for byte: ids and digests that differ in case are different. */
export interface ColumnTypes {
  /** Up to 255 ASCII characters; can be a primary key. */
  readonly id: string
  /** Up to 255 characters of any kind; can be in an index and have a default. */
  readonly name: string
  /** Text of any length. */
  readonly text: string
  readonly integer: string
  /** 64 bits: milliseconds since the epoch, or a number of them. */
  readonly ms: string
}

export interface Schema {
  /** Undefined where tables have none unless one was set. */
  readonly name: string | undefined
}

/** What migrations draw at random, and the clock, as expressions without parameters: for a script that several databases run. */
export interface Drawn {
  /** What tells this data from any other. */
  readonly storeId: RawBuilder<unknown>
  /** The tag of the first place in the feed: letters, digits, `-` and `_`. */
  readonly tag: RawBuilder<unknown>
  /** In whole milliseconds since the epoch. */
  readonly clock: RawBuilder<unknown>
}

interface Index {
  readonly table: Place
  readonly name: string
  readonly columns: string
  /** Keeps the index small; may be left out. */
  readonly where?: string
}
