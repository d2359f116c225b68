import { type Kysely, sql } from 'kysely'
import { wallMs } from '../../real-time.js'
import type { DatabaseFacts, TableFacts } from '../tools.js'
import { rowSecurity } from './row-security.js'
import type { Tables } from './rows.js'
import { type Places, quoted, type TableName } from './table-names.js'

/** The first release that has what the store calls, such as `gen_random_uuid` without an extension. */
const OLDEST = 13

interface Row {
  readonly version: string
  readonly number: number
  readonly standby: number
  readonly encoding: string
  readonly role: string
  readonly isolation: string
  readonly read_only: string
  readonly synced: string
  readonly at: string
  readonly most: string
  readonly hidden: string
}

/** Looks at the database and its settings, on one session. */
export async function inspectPostgres(on: Kysely<Tables>, places: Places): Promise<Omit<DatabaseFacts, 'poolSize'>> {
  const before = wallMs()
  const { rows } = await sql<Row>`select current_setting('server_version') as version, current_setting('server_version_num')::int as number,
    case when pg_is_in_recovery() then 1 else 0 end as standby, current_setting('server_encoding') as encoding, current_user::text as role,
    current_setting('default_transaction_isolation') as isolation, current_setting('default_transaction_read_only') as read_only,
    current_setting('fsync') as synced,
    floor(extract(epoch from clock_timestamp()) * 1000)::text as at,
    least((select nullif(rolconnlimit, -1) from pg_roles where rolname = current_user),
      (select nullif(datconnlimit, -1) from pg_database where datname = current_database()),
      current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int)::text as most,
    ${rowSecurity(places).hides} as hidden`.execute(on)
  const after = wallMs()
  const [row] = rows
  if (row === undefined) throw new Error('The database answered without a row.')
  const middle = (before + after) / 2
  return {
    version: row.version,
    major: Math.floor(Number(row.number) / 10_000),
    oldestMajor: OLDEST,
    standby: Number(row.standby) === 1,
    encoding: row.encoding,
    role: row.role,
    isolation: row.isolation,
    readOnly: row.read_only === 'on',
    inTransaction: await isInTransaction(on),
    durable: row.synced === 'on',
    clock: { aheadMs: Math.round(Number(row.at) - middle), uncertainMs: Math.ceil((after - before) / 2) },
    mostConnections: Number(row.most),
    tables: await Promise.all(
      Object.entries(places).map(([table, place]) => tableFacts(on, table as TableName, quoted(place), place.name)),
    ),
    closedSchema: await closedSchema(on, places),
    hidden: row.hidden,
  }
}

/** In autocommit each statement begins a transaction of its own. In one that somebody has left open, now() stands still. */
async function isInTransaction(on: Kysely<Tables>): Promise<boolean> {
  const now = async (): Promise<string | undefined> => (await sql<{ at: string }>`select now()::text as at`.execute(on)).rows[0]?.at
  const earlier = await now()
  return earlier === (await now())
}

/** What the store does to each table. */
function rightsFor(table: TableName): readonly string[] {
  if (table === 'express_api_key_migrations') return ['SELECT']
  const isShortLived = table === 'express_api_key_changes' || table === 'express_api_key_instances'
  return ['SELECT', 'INSERT', 'UPDATE', ...(isShortLived ? ['DELETE'] : [])]
}

async function tableFacts(on: Kysely<Tables>, table: TableName, path: string, name: string): Promise<TableFacts> {
  const rights = rightsFor(table)
  const { rows } = await sql<{ missing: string }>`select coalesce(string_agg(r.name, ' '), '') as missing
    from unnest(${rights}::text[]) as r (name) where to_regclass(${path}::text) is not null
    and not has_table_privilege(to_regclass(${path}::text), r.name) having to_regclass(${path}::text) is not null`.execute(on)
  const [row] = rows
  const missing = row?.missing.split(' ') ?? []
  return { name, exists: row !== undefined, missingRights: rights.filter((one) => missing.includes(one)) }
}

/** Without USAGE on its schema a table is not found by its name, and seems to be missing. */
async function closedSchema(on: Kysely<Tables>, { express_api_keys: { schema, name } }: Places): Promise<string | undefined> {
  const { rows } = await sql<{ schema: string }>`select n.nspname::text as schema from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relname = ${name} and n.nspname = coalesce(${schema ?? null}::text, n.nspname) and not has_schema_privilege(n.oid, 'USAGE')
    and not exists (select 1 from pg_catalog.pg_class other where other.relname = c.relname and pg_table_is_visible(other.oid)
      and has_schema_privilege(other.relnamespace, 'USAGE')) limit 1`.execute(on)
  return rows[0]?.schema
}
