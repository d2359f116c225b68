import { type Kysely, sql } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { type Places, quoted, type TableName } from './table-names.js'

/**
 * SQL for a text that is empty unless row-level security has a say in what the role of this session sees of the tables. It looks at what
 * the session has of each table in memory, and reads nothing.
 */
export function mayHide(places: Places, tables = Object.keys(places) as readonly TableName[]): string {
  return `case when ${tables.map((table) => `row_security_active(${regclass(places, table)})`).join(' or ')} then 'maybe' else '' end`
}

/**
 * SQL for a text that names the tables of which row-level security keeps rows from this role, for reading or for changing: those without
 * a policy that lets the role at every row in so many words, or with one that takes some away again. What other conditions come to nobody can tell.
 *
 * @see https://www.postgresql.org/docs/current/ddl-rowsecurity.html
 */
export function hides(places: Places): string {
  const tables = (Object.keys(places) as TableName[]).map((table) => regclass(places, table))
  return `coalesce((
    with command (name) as (values ('r'), ('a'), ('w')),
    policy as (
      select polrelid as table, polcmd::text as command, polpermissive as permissive, pg_get_expr(polqual, polrelid) as seen,
        coalesce(pg_get_expr(polwithcheck, polrelid), pg_get_expr(polqual, polrelid)) as written
      from pg_catalog.pg_policy
      where exists (select 1 from unnest(polroles) as role (id) where case role.id when 0 then true else pg_has_role(role.id, 'usage') end)
    )
    select string_agg(c.relname::text, ', ' order by c.relname) from pg_catalog.pg_class c
    where c.oid in (${tables.join(', ')}) and row_security_active(c.oid) and exists (
      select 1 from command where not exists (
        select 1 from policy p where p.table = c.oid and p.command in ('*', command.name) and p.permissive
          and (command.name = 'a' or p.seen = 'true') and (command.name = 'r' or p.written = 'true')
      ) or exists (
        select 1 from policy p where p.table = c.oid and p.command in ('*', command.name) and not p.permissive
          and ((command.name <> 'a' and p.seen <> 'true') or (command.name <> 'r' and p.written <> 'true'))
      )
    )), '')`
}

/** @throws ApiKeyError `store_misconfigured` where row-level security hides rows from the role, which would pass for keys that do not exist. */
export async function refuseHidden<T>(on: Kysely<T>, places: Places): Promise<void> {
  const { rows } = await sql<{ hidden: string }>`select ${sql.raw(hides(places))} as hidden`.execute(on)
  refuseHiding(rows[0]?.hidden)
}

/** What `hides` answered. */
export function refuseHiding(tables: string | undefined): void {
  if (tables === undefined || tables === '') return
  throw new ApiKeyError(
    'store_misconfigured',
    `Row-level security hides rows of ${tables} from this role; disable it for the tables of the keys, give the role BYPASSRLS, or give each table a policy for all commands: using (true) with check (true).`,
  )
}

/** Null where there is no such table. */
function regclass(places: Places, table: TableName): string {
  const name = quoted(places[table]).replaceAll('\\', '\\\\').replaceAll("'", "''")
  return `to_regclass(E'${name}')`
}
