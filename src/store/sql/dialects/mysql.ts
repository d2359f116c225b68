import { createHash } from 'node:crypto'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import { ApiKeyError } from '../../../errors.js'
import type { Dialect, MakeDialect, SchemaDialect } from '../dialect.js'
import {
  CLOSED,
  COLUMNS,
  type DriverErrors,
  each,
  FUNCTIONS,
  fieldsOf,
  insideTransaction,
  messageOf,
  misconfigured,
  REFUSED,
  STATEMENT,
  standbyAnswered,
  TABLES,
  TLS,
  UNAVAILABLE,
  type Verdict,
} from '../driver-errors.js'
import { type LastUse, recordUse } from '../last-use.js'
import { inspectMysql } from '../mysql-inspect.js'
import { noRowSecurity } from '../row-security.js'
import type { Tables } from '../rows.js'
import { identifier } from '../table-names.js'

/**
 * By the server's error numbers; by the driver's words where it speaks for itself.
 *
 * @see https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html and https://mariadb.com/kb/en/mariadb-error-code-reference/
 */
export const mysqlErrors: DriverErrors = {
  verdict(error) {
    const number = serverErrorOf(error)
    if (number !== undefined) return VERDICTS[number] ?? REFUSED
    if (fieldsOf(error).code === 'HANDSHAKE_SSL_ERROR' || fieldsOf(error).code === 'HANDSHAKE_NO_SSL_SUPPORT') return TLS
    return /Pool is closed|connection is in closed state/.test(messageOf(error)) ? CLOSED : undefined
  },

  // A server that is going down, and a connection or statement that somebody kills, may have committed before.
  answered(error) {
    const number = serverErrorOf(error)
    return number !== undefined && !MAY_HAVE_COMMITTED.includes(number)
  },

  isBusy: () => false,
}

const MAY_HAVE_COMMITTED: readonly number[] = [
  ...[1053, 1077, 1079, 1080, 1152, 1153, 1156, 1157, 1158, 1159, 1160, 1161, 1180, 1184, 1317, 1598],
  ...[1927, 1969, 2006, 2013, 3024, 3169, 4031],
]

/** The number of an error of the server; errors of the driver have none, or no SQLSTATE. */
function serverErrorOf(error: unknown): number | undefined {
  const { errno, sqlState } = (error ?? {}) as { errno?: unknown; sqlState?: unknown }
  return typeof errno === 'number' && typeof sqlState === 'string' ? errno : undefined
}

/**
 * When the statement began, in whole milliseconds since the epoch: before its snapshot. SYSDATE() would be read after it. In UTC, since a local time comes twice
 * when summer time ends.
 */
const STATEMENT_BEGAN = sql<number>`floor(timestampdiff(microsecond, '1970-01-01 00:00:00', utc_timestamp(6)) / 1000)`

/** Only MariaDB runs what is in such a comment. A session that does not commit by itself, or whose clock somebody has set, may show what is no longer so. */
const OUTDATED = (more: string): RawBuilder<number> => sql`case when @@autocommit = 0 /*M! or @@in_transaction = 1 */
  or abs(timestampdiff(second, now(), sysdate())) > 30 ${sql.raw(more)} then 1 else 0 end`

/** With it, values that the driver writes with backslashes could become statements. */
const UNSAFE_MODE = "or @@sql_mode like '%NO_BACKSLASH_ESCAPES%'"

/** The second at which the server started is in the upper bits of uuid_short(): two starts within one second are none. A replica has an id of its own. */
const SERVER = sql<string | null>`concat(@@hostname, ':', @@port, ':', @@server_id, ':', uuid_short() >> 24)`

/** Replicas are set to read only. As text: a number would be equal to any word. */
const STANDBY = sql<number>`case when concat(@@global.read_only) in ('0', 'OFF') then 0 else 1 end`

/** How long a statement waits for a row or a name that somebody else holds, inside a transaction, in seconds. */
const LOCK_TIMEOUT_S = 2
/** How long one statement may run there, in seconds. MySQL has no such limit for statements that write. */
const STATEMENT_TIMEOUT_S = 3

/** How long a transaction may sit idle, in seconds: a client that is gone half must not keep its locks. MySQL has no such limit. */
const IDLE_TIMEOUT_S = 10

/** @param ownText whether values are written into statements by us, and not by the driver. */
export const mysqlDialect =
  ({ ownText }: { readonly ownText: boolean }): MakeDialect =>
  (places): Dialect => ({
    database: 'MySQL',
    async now(on) {
      const { rows } = await sql<{ at: number }>`select ${STATEMENT_BEGAN} as at`.execute(on)
      return Number(rows[0]?.at)
    },
    readClock: STATEMENT_BEGAN,
    clock: () => STATEMENT_BEGAN,
    loweredName: LOWERED_NAME,
    standby: STANDBY,
    outdated: OUTDATED(ownText ? '' : UNSAFE_MODE),
    server: SERVER,
    // As text: MySQL's drivers read JSON for whoever asks. Unlike GROUP_CONCAT it is not cut after a kilobyte.
    gathered: sql`cast(json_arrayagg(concat(c.seq, ' ', c.tag, ' ', c.digests)) as char)`,

    forUpdate: (query) => query.forUpdate(),
    // MariaDB does not know FOR SHARE.
    forShare: (query) => query.modifyEnd(sql`lock in share mode`),
    // Each set of tables in a database has names of its own.
    lockName(on, name) {
      const { schema = '', name: table } = places.express_api_key_settings
      return takeName(on, [schema, table, name], LOCK_TIMEOUT_S)
    },

    begin,
    together: false,
    async commit(on) {
      await sql`commit`.execute(on)
      await restore(on)
    },
    async rollback(on) {
      await sql`rollback`.execute(on).catch(() => {})
      await restore(on)
    },
    insertOnce: (query) => query.ignore(),

    recordUses,
    inspect: (on) => inspectMysql(on, places, { clock: STATEMENT_BEGAN, standby: STANDBY, find: schema.find }),
    rowSecurity: noRowSecurity,
    errors: mysqlErrors,
    schema,
  })

/** A to Z alone, in a collation that tells all characters apart: LOWER would change others too. */
const LOWERED_NAME: RawBuilder<string> = [...'ABCDEFGHIJKLMNOPQRSTUVWXYZ'].reduce<RawBuilder<string>>(
  (text, letter) => sql<string>`replace(${text}, ${sql.lit(letter)}, ${sql.lit(letter.toLowerCase())})`,
  sql<string>`name`,
)

/** What a session has of its own is put by, and put back. Values that the driver writes as text mean the same with any sql_mode but one. */
const LIMITS = sql`set @express_api_keys_lock_wait = @@innodb_lock_wait_timeout, innodb_lock_wait_timeout = ${sql.lit(LOCK_TIMEOUT_S)},
  @express_api_keys_mode = @@sql_mode, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', timestamp = default
  /*M! , @express_api_keys_statement = @@max_statement_time, max_statement_time = ${sql.lit(STATEMENT_TIMEOUT_S)},
  @express_api_keys_idle = @@idle_transaction_timeout, idle_transaction_timeout = ${sql.lit(IDLE_TIMEOUT_S)} */`
const RESTORED = sql`set innodb_lock_wait_timeout = @express_api_keys_lock_wait, sql_mode = @express_api_keys_mode,
  @express_api_keys_names = release_all_locks()
  /*M! , max_statement_time = @express_api_keys_statement, idle_transaction_timeout = @express_api_keys_idle */`

/**
 * Opens a transaction that shows what is committed when each statement runs: at REPEATABLE READ, the default, a plain SELECT goes on showing what was so at the first one.
 * The time limits of the session come back at its end.
 */
async function begin(on: Kysely<Tables>): Promise<void> {
  try {
    // Fails inside of a transaction that somebody has left open.
    await sql`set transaction isolation level read committed, read write`.execute(on)
    await LIMITS.execute(on)
    await sql`start transaction`.execute(on)
  } catch (error) {
    throw isInTransaction(error) ? insideTransaction() : readOnly(error) ? standbyAnswered(error) : error
  }
}

const IN_TRANSACTION = 1568

function readOnly(error: unknown): boolean {
  return [1290, 1792, 1836].includes(serverErrorOf(error) ?? 0)
}

/** Names belong to the session and outlive a transaction. Never rejects: the transaction is over. */
async function restore(on: Kysely<Tables>): Promise<void> {
  await RESTORED.execute(on).catch(() => {})
}

/** Waits for a name. It has at most 64 characters, and belongs to the database: servers know names of their own only. */
async function takeName(on: Kysely<Tables>, parts: readonly unknown[], seconds: number): Promise<void> {
  const hashed = createHash('sha256').update(JSON.stringify(parts)).digest('base64url')
  const { rows } = await sql<{ taken: number | null }>`select get_lock(concat('eak:', left(md5(database()), 16), ${hashed}),
    ${sql.lit(seconds)}) as taken`.execute(on)
  if (Number(rows[0]?.taken) !== 1) throw new ApiKeyError('store_unavailable', 'Another transaction holds a name for too long.')
}

/** Passes over the keys that somebody has locked. */
async function recordUses(on: Kysely<Tables>, uses: readonly LastUse[]): Promise<readonly LastUse[]> {
  const free = await on
    .selectFrom('express_api_keys')
    .select('id')
    .where(
      'id',
      'in',
      uses.map(({ keyId }) => keyId),
    )
    .forUpdate()
    .skipLocked()
    .execute()
  const ids = new Set(free.map(({ id }) => id))
  for (const use of uses) if (ids.has(use.keyId)) await recordUse(on, use)
  return uses.filter(({ keyId }) => !ids.has(keyId))
}

/** Compares byte for byte, trailing spaces included. MariaDB and MySQL each run their own part. */
const BYTES = 'character set utf8mb4 collate /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */'

const schema: SchemaDialect = {
  types: {
    id: 'varchar(255) character set ascii collate ascii_bin',
    name: `varchar(255) ${BYTES}`,
    text: `longtext ${BYTES}`,
    integer: 'int',
    ms: 'bigint',
  },
  drawn: { storeId: sql`uuid()`, tag: sql`left(sha2(concat(uuid(), rand()), 256), 22)`, clock: STATEMENT_BEGAN },

  async refuseUnfit(on) {
    const { rows } = await sql<{
      version: string
      charset: string
      engine: string
      galera: unknown
    }>`select version() as version,
      @@character_set_client as charset, @@default_storage_engine as engine, 0 /*M! + @@wsrep_on */ as galera`.execute(on)
    const [found] = rows
    if (found === undefined) return
    if (!isSupported(found.version)) throw unfit('The server is too old: keys need MySQL 8.0.17 or MariaDB 10.6, or later.')
    if (Number(found.galera) !== 0)
      throw unfit(
        'Galera commits on one node and shows it on the others later, so a dead key could live on. Use one server, or replicas that are read only.',
      )
    if (found.engine.toLowerCase() !== 'innodb')
      throw unfit('Tables would not be made with InnoDB, which has transactions; set default_storage_engine.')
    refuseCharset(found.charset)
  },

  async find(on, place) {
    const { rows } = await sql`select 1 as found from information_schema.tables
      where table_schema = coalesce(${place.schema ?? null}, database()) and table_name = ${place.name}`.execute(on)
    return rows.length > 0 ? { name: place.schema } : undefined
  },

  async home(on, place) {
    const { rows } = await sql<{ name: string | null }>`select database() as name`.execute(on)
    if (place.schema === undefined && (rows[0]?.name ?? null) === null) throw unfit('The connection names no database; name one.')
    return { name: place.schema }
  },

  lock: (on, migrations) => takeName(on, ['migrate', migrations], STATEMENT_TIMEOUT_S),

  // There are no partial indexes.
  createIndex: ({ table, name, columns }) => sql`create index ${sql.id(name)} on ${identifier(table)} ${sql.raw(`(${columns})`)}`,

  isForbidden: (error) => RIGHTS_NUMBERS.includes(serverErrorOf(error) ?? 0),
  // A table, a column, an index or a row that is there already; a column that is gone.
  isDone: (error) => [1050, 1060, 1061, 1062, 1091].includes(serverErrorOf(error) ?? 0),
}

/** @throws ApiKeyError `store_misconfigured` where the connection cannot hold every name. */
export function refuseCharset(charset: string): void {
  if (charset !== 'utf8mb4') throw unfit(`The connection speaks ${charset}, which cannot hold every name; set its charset to utf8mb4.`)
}

export function isInTransaction(error: unknown): boolean {
  return serverErrorOf(error) === IN_TRANSACTION
}

function unfit(message: string): ApiKeyError {
  return new ApiKeyError('store_misconfigured', message)
}

function isSupported(version: string): boolean {
  const [major = 0, minor = 0, patch = 0] = version.split(/[.-]/).map(Number)
  const least = /mariadb/i.test(version) ? [10, 6, 0] : [8, 0, 17]
  const [a = 0, b = 0, c = 0] = least
  return major > a || (major === a && (minor > b || (minor === b && patch >= c)))
}

const RIGHTS_NUMBERS: readonly number[] = [1044, 1142, 1143, 1227, 1370]
const RIGHTS = misconfigured("The store's user lacks a right; grant it SELECT, INSERT, UPDATE and DELETE on the express_api_key… tables.")
const LOGIN = misconfigured('The database does not let the user in; check the user, the password and the host that it may come from.')
const DATABASE = misconfigured('The database does not exist, or the connection names none; check the name in the connection string.')
const STANDBY_ANSWERED: Verdict = ['store_unavailable', standbyAnswered().message]

/** By the number of the error. What is not here is `REFUSED`. */
const VERDICTS: { readonly [number: number]: Verdict } = {
  // Whatever may have committed; too many connections, locks, deadlocks, limits of time, the disk.
  ...each(MAY_HAVE_COMMITTED.map(String), UNAVAILABLE),
  ...each(['1021', '1040', '1041', '1104', '1114', '1129', '1203', '1205', '1206', '1213', '1226', '1735', '3058', '3572'], UNAVAILABLE),
  ...each(['1290', '1792', '1836'], STANDBY_ANSWERED),
  ...each(['1045', '1130', '1251', '1698', '1862', '4151'], LOGIN),
  ...each(['1046', '1049'], DATABASE),
  ...each(RIGHTS_NUMBERS.map(String), RIGHTS),
  1146: TABLES,
  1054: COLUMNS,
  1305: FUNCTIONS,
  ...each(['1064', '1193', '1273'], STATEMENT),
}
