import { type Kysely, type RawBuilder, sql } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import type { Tables } from './rows.js'
import { type Places, quoted, type TableName } from './table-names.js'

/** Whether the database keeps rows from the role of this session: hidden keys would pass for keys that do not exist. */
export interface RowSecurity {
  /** A text that is empty unless it may hide rows of these tables, by default of all. Cheap enough for every read. */
  mayHide(tables?: readonly TableName[]): RawBuilder<string>
  /** A text that names the tables of which it hides rows. */
  readonly hides: RawBuilder<string>
  /** @throws ApiKeyError `store_misconfigured` where it hides rows. */
  refuseHidden(on: Kysely<Tables>): Promise<void>
}

/** Of databases that have none. */
export const noRowSecurity: RowSecurity = {
  mayHide: () => sql`''`,
  hides: sql`''`,
  async refuseHidden() {},
}

/** Of PostgreSQL. */
export function rowSecurity(places: Places): RowSecurity {
  const hiding = sql.raw<string>(hides(places))
  return {
    mayHide: (tables = Object.keys(places) as TableName[]) => sql.raw(mayHide(places, tables)),
    hides: hiding,
    async refuseHidden(on) {
      const { rows } = await sql<{ hidden: string }>`select ${hiding} as hidden`.execute(on)
      refuseHiding(rows[0]?.hidden)
    },
  }
}

/** Refuses what `hides` named. */
export function refuseHiding(tables: string | undefined): void {
  if (tables === undefined || tables === '') return
  throw new ApiKeyError(
    'store_misconfigured',
    `Row-level security hides rows of ${tables} from this role; disable it for the tables of the keys, give the role BYPASSRLS, or give each table a policy for all commands: using (true) with check (true).`,
  )
}

/** Looks at what the session has of each table in memory, and reads nothing. */
function mayHide(places: Places, tables: readonly TableName[]): string {
  return `case when ${tables.map((table) => `row_security_active(${regclass(places, table)})`).join(' or ')} then 'maybe' else '' end`
}

/**
 * Names the tables of which row-level security keeps rows from this role, for reading or for changing: those without
 * a policy that lets the role at every row in so many words, or with one that takes some away again. What other conditions come to nobody can tell.
 *
 * @see https://www.postgresql.org/docs/current/ddl-rowsecurity.html
 */
function hides(places: Places): string {
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

/** Null where there is no such table. */
function regclass(places: Places, table: TableName): string {
  const name = quoted(places[table]).replaceAll('\\', '\\\\').replaceAll("'", "''")
  return `to_regclass(E'${name}')`
}
