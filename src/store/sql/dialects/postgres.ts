import { type Kysely, sql } from 'kysely'
import { ApiKeyError } from '../../../errors.js'
import { monotonicMs } from '../../../real-time.js'
import type { MakeDialect, Schema, SchemaDialect } from '../dialect.js'
import {
  CLOSED,
  COLUMNS,
  type DriverErrors,
  type ErrorFields,
  each,
  FUNCTIONS,
  fieldsOf,
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
import type { LastUse } from '../last-use.js'
import { inspectPostgres } from '../postgres-inspect.js'
import { rowSecurity } from '../row-security.js'
import type { Tables } from '../rows.js'
import { identifier, type Places, quoted } from '../table-names.js'
import { moment } from '../timeouts.js'

/**
 * By SQLSTATE; by the message where `pg` speaks for itself, since it gives no code.
 *
 * @see https://www.postgresql.org/docs/current/errcodes-appendix.html
 */
export const postgresErrors: DriverErrors = {
  verdict(error) {
    const fields = fieldsOf(error)
    if (isSqlState(fields.code)) return verdict(fields.code, fields)
    return typeof fields.code === 'string' ? undefined : driverVerdict(messageOf(error))
  },

  // Class 08 is a lost connection; 57P0x is a server that is going down and may have committed before.
  answered(error) {
    const { code } = fieldsOf(error)
    return isSqlState(code) && !code.startsWith('08') && !code.startsWith('57P')
  },

  isBusy: () => false,
}

const CLOCK = sql<number>`floor(extract(epoch from clock_timestamp()) * 1000)::bigint`

const BEGAN_EARLIER = sql<boolean>`statement_timestamp() > now() + interval '50 milliseconds'`

/**
 * In autocommit a transaction begins with its statement. Where it began earlier, at REPEATABLE READ or stricter, so did its snapshot. The two instants differ a
 * little where planning takes time.
 */
const OUTDATED = sql<number>`case when current_setting('transaction_isolation') not in ('read committed', 'read uncommitted')
  and ${BEGAN_EARLIER} then 1 else 0 end`

/**
 * In autocommit, now() is when the statement's transaction began, which is before its snapshot. clock_timestamp() would be read after it. On a session where somebody
 * left a transaction open now() stands still, and what ends by itself would not. There a quarter of a second before the statement counts: a busy server may stamp a
 * statement some time after its snapshot.
 */
const READ_CLOCK = sql<
  number | null
>`floor(extract(epoch from greatest(now(), statement_timestamp() - interval '250 milliseconds')) * 1000)::bigint`

/** The start of the postmaster, and the timeline, which a promotion changes. A standby has none to tell. */
const SERVER = sql<string | null>`case when pg_is_in_recovery() then null else
  (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint || ':' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end`

/** @param together whether the driver takes several statements at once, as `pg` does where they have no parameters. */
export function postgresDialect({ together }: { readonly together: boolean }): MakeDialect {
  return (places, { transactionTimeoutMs }) => {
    const opening = begin(places, transactionTimeoutMs, together)
    const names = quoted(places.express_api_key_settings)
    return {
      database: 'PostgreSQL',
      async now(on) {
        const { rows } = await sql<{ at: number }>`select ${CLOCK} as at`.execute(on)
        return Number(rows[0]?.at)
      },
      clock: () => CLOCK,
      readClock: READ_CLOCK,
      loweredName: sql`lower(name collate "C")`,
      standby: sql`case when pg_is_in_recovery() then 1 else 0 end`,
      outdated: OUTDATED,
      server: SERVER,
      gathered: sql`string_agg(c.seq || ' ' || c.tag || ' ' || c.digests, ';')`,

      forUpdate: (query) => query.forUpdate(),
      forShare: (query) => query.forShare(),
      async lockName(on, name) {
        await sql`select pg_advisory_xact_lock(hashtextextended(${name}, ${names}::regclass::oid::bigint))`.execute(on)
      },

      begin: opening,
      together,
      commit: (on, last) =>
        sql
          .join([...last, sql`commit`], sql`; `)
          .execute(on)
          .then(() => {}),
      rollback: (on) => rollback(on, transactionTimeoutMs),

      insertOnce: (query) => query.onConflict((conflict) => conflict.doNothing()),
      recordUses,
      inspect: (on) => inspectPostgres(on, places),
      rowSecurity: rowSecurity(places),
      errors: postgresErrors,
      schema,
    }
  }
}

/** How long one statement may run, and wait for a row that somebody else holds, inside a transaction. */
const STATEMENT_TIMEOUT_MS = 3_000
const LOCK_TIMEOUT_MS = 2_000

function begin(places: Places, transactionTimeoutMs: number, together: boolean): (on: Kysely<Tables>) => Promise<void> {
  const { mayHide, refuseHidden } = rowSecurity(places)
  const opening = 'begin isolation level read committed read write'
  // Our own time limits replace those of the role. The last one exists from PostgreSQL 17 on.
  const limits = sql<{ hidden: string }>`select set_config('statement_timeout', '${sql.raw(`${STATEMENT_TIMEOUT_MS}`)}', true),
    set_config('lock_timeout', '${sql.raw(`${LOCK_TIMEOUT_MS}`)}', true),
    set_config('idle_in_transaction_session_timeout', '${sql.raw(`${transactionTimeoutMs}`)}', true),
    set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end, true),
    case when current_setting('transaction_timeout', true) is not null then set_config('transaction_timeout', '0', true) end,
    ${mayHide()} as hidden`

  return async (on) => {
    try {
      // Together where possible, so that the session cannot end between the two.
      if (!together) await sql.raw(opening).execute(on)
      const { rows } = await (together ? sql<{ hidden: string }>`${sql.raw(opening)}; ${limits}` : limits).execute(on)
      if (rows[0]?.hidden !== '') await refuseHidden(on)
    } catch (error) {
      // A standby's answer to READ WRITE.
      throw fieldsOf(error).code === '0A000' ? standbyAnswered(error) : error
    }
  }
}

/**
 * Repeats ROLLBACK where `pg` has stopped waiting for an answer (`query_timeout`): it then withdraws ROLLBACK too, and nobody else may get a connection
 * with this transaction still open on it.
 */
async function rollback(on: Kysely<Tables>, ms: number): Promise<void> {
  const end = monotonicMs() + ms
  for (;;) {
    try {
      await sql`rollback`.execute(on)
      return
    } catch (error) {
      if (messageOf(error) !== 'Query read timeout' || monotonicMs() > end) return
      await moment()
    }
  }
}

/** One statement, which passes over the keys that somebody has locked. */
async function recordUses(on: Kysely<Tables>, uses: readonly LastUse[]): Promise<readonly LastUse[]> {
  // As text first, since some drivers encode a parameter that is declared as JSON.
  const given = JSON.stringify(uses.map(({ keyId, at, ip, userAgent }) => ({ id: keyId, at, ip, user_agent: userAgent })))
  const free = await on
    .with(
      'used',
      () =>
        sql<{ id: string; at: number; ip: string | null; user_agent: string | null }>`(select *
        from json_to_recordset(${given}::text::json) as given (id text, at bigint, ip text, user_agent text))`,
    )
    .with('free', (keys) =>
      keys
        .selectFrom('express_api_keys')
        .select('id')
        .where('id', 'in', (ids) => ids.selectFrom('used').select('used.id'))
        .forNoKeyUpdate()
        .skipLocked(),
    )
    .with('written', (keys) =>
      keys
        .updateTable('express_api_keys as key')
        .from(['used', 'free'])
        .set(({ ref }) => ({ last_used_at: ref('used.at'), last_used_ip: ref('used.ip'), last_used_user_agent: ref('used.user_agent') }))
        .whereRef('key.id', '=', 'used.id')
        .whereRef('key.id', '=', 'free.id')
        .where((is) => is.or([is('key.last_used_at', 'is', null), is('key.last_used_at', '<', is.ref('used.at'))])),
    )
    .selectFrom('free')
    .select('id')
    .execute()
  const done = new Set(free.map(({ id }) => id))
  return uses.filter(({ keyId }) => !done.has(keyId))
}

/** A driver must read this back as it was sent. None of its bytes is text by itself. */
const NUMBER = 0x80_81_fe_ff

const schema: SchemaDialect = {
  types: { id: 'text', name: 'text', text: 'text', integer: 'integer', ms: 'bigint' },
  drawn: {
    storeId: sql`gen_random_uuid()::text`,
    tag: sql`translate(rtrim(encode(uuid_send(gen_random_uuid()), 'base64'), '='), '+/', '-_')`,
    clock: CLOCK,
  },

  async refuseUnfit(on) {
    const { rows } = await sql<{ encoding: string; number: unknown }>`select current_setting('server_encoding') as encoding,
      ${NUMBER}::bigint as number`.execute(on)
    const encoding = String(rows[0]?.encoding)
    // Names and metadata are any text. Another encoding cannot hold some of it, and the store could not keep an answer that was given.
    if (encoding !== 'UTF8') {
      throw new ApiKeyError(
        'store_misconfigured',
        `The database is encoded in ${encoding}; keep keys in one that was created with ENCODING 'UTF8'.`,
      )
    }
    if (Number(rows[0]?.number) !== NUMBER) {
      throw new ApiKeyError(
        'store_misconfigured',
        'The driver reads other numbers than the database sends, as pg does with binary: true; turn that off, or use postgresStore(pool).',
      )
    }
  },

  // Any schema in the search_path may have it.
  async find(on, place) {
    const { rows } = await sql<{ schema: string }>`select n.nspname::text as schema
      from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where c.oid = to_regclass(${quoted(place)}::text)`.execute(on)
    return rows[0] && { name: rows[0].schema }
  },

  home: async (on, place) => ({ name: place.schema ?? (await currentSchema(on)) }),

  // Named after the table, so that others in the same database are not kept waiting.
  async lock(on, migrations) {
    await sql`select pg_advisory_xact_lock(hashtextextended(${`migrate ${quoted(migrations)}`}, 0))`.execute(on)
  },

  // The table takes the schema, and its index lies in the same.
  createIndex({ table, name, columns, where }) {
    const rest = `(${columns})${where === undefined ? '' : ` where ${where}`}`
    return sql`create index ${sql.id(name)} on ${identifier(table)} ${sql.raw(rest)}`
  },

  isForbidden: (error) => fieldsOf(error).code === '42501',
  isDone: () => false,
}

async function currentSchema(on: Kysely<Tables>): Promise<string> {
  const { rows } = await sql<Schema>`select current_schema()::text as name`.execute(on)
  const name = rows[0]?.name
  if (typeof name === 'string') return name
  throw new ApiKeyError('store_misconfigured', "The role's search_path names no schema that it may use; set one, or call db.withSchema().")
}

const CHARACTER: Verdict = ['invalid_request', 'The request holds a character that the database cannot store.']
const RIGHTS = misconfigured(
  "The store's role lacks a right; grant it USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on the express_api_key… tables.",
)
const LOGIN = misconfigured('The database does not let the role in; check the user, the password and pg_hba.conf.')
const DATABASE = misconfigured('The database does not exist; check the name in the connection string.')
const SCHEMA = misconfigured('The schema does not exist, or the role may not use any in its search_path; check both.')
const POOLER = misconfigured(
  'A prepared statement was lost or doubled, as happens behind a pooler in transaction mode; turn named prepared statements off.',
)
const TRIGGER = misconfigured('A trigger or function in the database failed; the cause says which.')
const SETTINGS = misconfigured('The configuration of the database server is broken; the cause says where.')

/** By SQLSTATE, or by its class: the first two characters. What is in neither is `REFUSED`. */
const VERDICTS: { readonly [state: string]: Verdict } = {
  // Connection, rollback to break a deadlock, resources, locks, the operator, the system, the server itself, a snapshot too old.
  ...each(['08', '40', '53', '55', '57', '58', '72', 'XX'], UNAVAILABLE),
  // A standby, or a primary that has become one; a session that waited, and a transaction that took, too long.
  ...each(['25006', '25P03', '25P04'], UNAVAILABLE),
  ...each(['22021', '22P05'], CHARACTER),
  '42P01': TABLES,
  '42703': COLUMNS,
  '42883': FUNCTIONS,
  ...each(['42501', '0L', '0P'], RIGHTS),
  '28': LOGIN,
  '3D': DATABASE,
  '3F': SCHEMA,
  ...each(['26', '42P05'], POOLER),
  ...each(['0A', '42'], STATEMENT),
  F0: SETTINGS,
}

function verdict(state: string, { routine, where }: ErrorFields): Verdict {
  // PostgreSQL itself, of a statement that it knows by another number of parameters. A pooler answers 08P01 to everything that goes wrong in it.
  if (state === '08P01' && typeof routine === 'string' && routine.startsWith('exec_')) return POOLER
  const found = VERDICTS[state] ?? VERDICTS[state.slice(0, 2)] ?? REFUSED
  // An error inside a function is about the function's tables and rights, not ours.
  return found[0] === 'store_misconfigured' && typeof where === 'string' && where !== '' ? TRIGGER : found
}

function driverVerdict(message: string): Verdict | undefined {
  if (message.startsWith('SASL')) return LOGIN
  if (/support SSL connections|establishing an SSL connection/.test(message)) return TLS
  return /calling end on the pool/.test(message) ? CLOSED : undefined
}

/** No class of SQLSTATE begins with E, but EPIPE does. */
function isSqlState(code: unknown): code is string {
  return typeof code === 'string' && /^[0-9A-DF-Z][0-9A-Z]{4}$/.test(code)
}
