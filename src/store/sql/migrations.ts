import { randomUUID } from 'node:crypto'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { driverCode } from './driver-errors.js'
import { refuseHidden } from './row-security.js'
import { identifier, type Place, type Places, quoted, type TableName } from './table-names.js'

/** What migrating needs to know of the database. */
export interface MigrationTarget {
  readonly postgres: boolean
  readonly places: Places
  now(on: Kysely<never>): Promise<number>
}

/**
 * Whether every migration has been made; looks, and changes nothing, so that a role that may only read and write can ask.
 *
 * @throws ApiKeyError `store_misconfigured` where the database cannot hold what keys are made of or hides it from the role, and `invalid_option` where a newer release has been here.
 */
export async function isMigrated(on: Kysely<never>, target: MigrationTarget): Promise<boolean> {
  if (target.postgres) {
    await refuseUnfit(on)
    await refuseHidden(on, target.places)
  }
  const schema = await schemaOf(on, target)
  return schema !== undefined && (await versionIn(on, target, schema)) === migrations.length
}

/** Makes the migrations that are missing, inside a transaction. */
export async function migrate(on: Kysely<never>, target: MigrationTarget): Promise<void> {
  const { postgres, places } = target
  const schema = await makeMigrationsTable(on, target)
  const version = await versionIn(on, target, schema)
  const names = namesIn(places, schema, postgres)
  try {
    for (const [index, step] of migrations.entries()) {
      if (index < version) continue
      await step(on, names)
      await sql`insert into ${names.table('express_api_key_migrations')} values (${index + 1}, ${await target.now(on)})`.execute(on)
    }
  } catch (error) {
    throw notAllowed(error)
  }
}

/**
 * Resolves with the schema of the table of migrations, which all others share unless they were given their own. One process at a time goes on
 * from here; on SQLite the write lock taken at BEGIN sees to that.
 */
async function makeMigrationsTable(on: Kysely<never>, target: MigrationTarget): Promise<Schema> {
  const { postgres, places } = target
  const place = places.express_api_key_migrations
  const schema = (await schemaOf(on, target)) ?? { name: place.schema ?? (postgres ? await currentSchema(on) : undefined) }
  const name = { schema: schema.name, name: place.name }
  // Named after the table, so that others in the same database are not kept waiting.
  if (postgres) await sql`select pg_advisory_xact_lock(hashtextextended(${`migrate ${quoted(name)}`}, 0))`.execute(on)
  if ((await schemaOf(on, target)) !== undefined) return schema
  try {
    await sql`create table if not exists ${identifier(name)} (version integer primary key, applied_at bigint not null)`.execute(on)
  } catch (error) {
    throw notAllowed(error)
  }
  return schema
}

interface Schema {
  /** Undefined on SQLite where none was set. */
  readonly name: string | undefined
}

/** The schema in which the table of migrations is found, which may be any in the search_path; undefined where there is no such table. */
async function schemaOf(on: Kysely<never>, { postgres, places }: MigrationTarget): Promise<Schema | undefined> {
  const place = places.express_api_key_migrations
  if (postgres) {
    const { rows } = await sql<{ schema: string }>`select n.nspname::text as schema
      from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where c.oid = to_regclass(${quoted(place)}::text)`.execute(on)
    return rows[0] && { name: rows[0].schema }
  }
  const catalog = identifier({ schema: place.schema ?? 'main', name: 'sqlite_master' })
  const { rows } = await sql`select 1 as found from ${catalog} where type = 'table' and lower(name) = lower(${place.name})`.execute(on)
  return rows.length > 0 ? { name: place.schema } : undefined
}

async function currentSchema(on: Kysely<never>): Promise<string> {
  const { rows } = await sql<{ schema: string | null }>`select current_schema()::text as schema`.execute(on)
  const schema = rows[0]?.schema
  if (typeof schema === 'string') return schema
  throw new ApiKeyError('store_misconfigured', "The role's search_path names no schema that it may use; set one, or call db.withSchema().")
}

async function versionIn(on: Kysely<never>, { places }: MigrationTarget, schema: Schema): Promise<number> {
  const table = identifier({ schema: schema.name, name: places.express_api_key_migrations.name })
  const { rows } = await sql<{ version: number | null }>`select max(version) as version from ${table}`.execute(on)
  const version = Number(rows[0]?.version ?? 0)
  if (version <= migrations.length) return version
  throw new ApiKeyError(
    'invalid_option',
    `The tables are at version ${version}, made by a newer release; this one knows ${migrations.length}.`,
  )
}

/** What a driver must read back as it was sent: every byte of it is one that is no text by itself. */
const NUMBER = 0x80_81_fe_ff

async function refuseUnfit(on: Kysely<never>): Promise<void> {
  const { rows } = await sql<{ encoding: string; number: unknown }>`select current_setting('server_encoding') as encoding,
    ${NUMBER}::bigint as number`.execute(on)
  const encoding = String(rows[0]?.encoding)
  // Names and metadata are any text. In another encoding some of it has no form, and an answer that was given could not be kept.
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
}

function notAllowed(error: unknown): unknown {
  if (driverCode(error) !== '42501') return error
  return new ApiKeyError(
    'store_misconfigured',
    'The tables of the keys are missing or of an earlier release, and this role may not make them; call keys.migrate() once with a role that may.',
    { cause: error },
  )
}

/** How the steps name things. */
interface Names {
  /** A table, in its schema. */
  table(name: TableName): RawBuilder<unknown>
  /** The rows of a table, in a statement about it. */
  rows(name: TableName): RawBuilder<unknown>
  /** `create index … on …`, up to the columns. */
  index(table: TableName, suffix: string): RawBuilder<unknown>
}

function namesIn(places: Places, schema: Schema, postgres: boolean): Names {
  const placeOf = (table: TableName): Place => ({ schema: places[table].schema ?? schema.name, name: places[table].name })
  return {
    table: (table) => identifier(placeOf(table)),
    rows: (table) => sql.id(places[table].name),
    index(table, suffix) {
      const place = placeOf(table)
      const index = { schema: place.schema, name: `${place.name}${suffix}` }
      // An index lies where its table does. PostgreSQL takes the schema with the table, and SQLite with the index.
      return postgres
        ? sql`create index ${sql.id(index.name)} on ${identifier(place)}`
        : sql`create index ${identifier(index)} on ${sql.id(place.name)}`
    },
  }
}

/**
 * What the tables looked like after each release, as the steps that lead there; a step that has been published never changes.
 *
 * Kysely's own migrator is not used: on SQLite it takes no lock that another process would see.
 */
const migrations: readonly ((db: Kysely<never>, names: Names) => Promise<void>)[] = [
  async (db, { table, index }) => {
    const run = (statement: RawBuilder<unknown>): Promise<unknown> => statement.execute(db)
    await run(sql`create table ${table('express_api_keys')} (
      id text primary key, owner_id text not null, name text not null, environment text not null, scopes text not null, metadata text not null,
      generation integer not null, created_at bigint not null, updated_at bigint not null, expires_at bigint,
      revoked_at bigint, revoked_reason text)`)
    await run(sql`${index('express_api_keys', '_by_owner')} (owner_id, created_at, id)`)
    await run(sql`create table ${table('express_api_key_generations')} (
      digest text primary key, key_id text not null, generation integer not null, created_at bigint not null,
      retired_at bigint, retired_by text, retired_reason text, first_used_at bigint,
      secret_start text not null, secret_last4 text not null, unique (key_id, generation))`)
    await run(sql`create table ${table('express_api_key_replays')} (
      id text primary key, caller_id text not null, key_id text not null, generation integer, fingerprint text not null, sealed text,
      created_at bigint not null, expires_at bigint not null, settled_at bigint,
      replays integer not null, refusals integer not null)`)
    await run(sql`${index('express_api_key_replays', '_by_key')} (key_id)`)
    await run(sql`${index('express_api_key_replays', '_by_expiry')} (expires_at) where sealed is not null`)
    await run(sql`create table ${table('express_api_key_events')} (
      id text primary key, key_id text not null, owner_id text not null, type text not null, at bigint not null, actor text not null,
      ip text, user_agent text, details text not null)`)
    await run(sql`${index('express_api_key_events', '_by_key')} (key_id, at, id)`)
    // One row. The lease begins at the shortest there is, so that the first instance to name its own only ever lengthens it.
    await run(sql`create table ${table('express_api_key_settings')} (
      id integer primary key, lease_ms integer not null, earlier_lease_ms integer not null, earlier_until bigint not null)`)
    await run(sql`insert into ${table('express_api_key_settings')} values (1, 50, 0, 0)`)
  },
  async (db, { table, rows }) => {
    const run = (statement: RawBuilder<unknown>): Promise<unknown> => statement.execute(db)
    const [keys, generations] = [table('express_api_keys'), table('express_api_key_generations')]
    for (const column of [
      `secret_start text not null default ''`,
      `secret_last4 text not null default ''`,
      'rotated_to text',
      'last_used_at bigint',
      'last_used_ip text',
      'last_used_user_agent text',
    ]) {
      await run(sql`alter table ${keys} add column ${sql.raw(column)}`)
    }
    for (const column of ['grace_ends_at bigint', 'retires_earlier integer not null default 0', 'rotation_secret_hash text']) {
      await run(sql`alter table ${generations} add column ${sql.raw(column)}`)
    }
    const key = rows('express_api_keys')
    for (const column of ['secret_start', 'secret_last4']) {
      await run(sql`update ${keys} set ${sql.id(column)} = (select g.${sql.id(column)} from ${generations} g
        where g.key_id = ${key}.id and g.generation = ${key}.generation)`)
    }
    await run(sql`alter table ${table('express_api_key_settings')} add column store_id text not null default ''`)
    await run(sql`update ${table('express_api_key_settings')} set store_id = ${randomUUID()}`)
  },
  async (db, { table }) => {
    const run = (statement: RawBuilder<unknown>): Promise<unknown> => statement.execute(db)
    const [replays, settings] = [table('express_api_key_replays'), table('express_api_key_settings')]
    await run(sql`alter table ${replays} add column window_ms bigint not null default 0`)
    await run(sql`update ${replays} set window_ms = expires_at - created_at`)
    await run(sql`alter table ${replays} add column grace_ms bigint not null default 10000`)
    for (const column of ['replays', 'refusals']) await run(sql`alter table ${replays} drop column ${sql.id(column)}`)
    await run(sql`alter table ${settings} add column lease_version integer not null default 0`)
    await run(sql`alter table ${settings} drop column earlier_until`)
  },
  async (db, { table, rows }) => {
    const run = (statement: RawBuilder<unknown>): Promise<unknown> => statement.execute(db)
    const [keys, generations, key] = [table('express_api_keys'), table('express_api_key_generations'), rows('express_api_keys')]
    await run(sql`alter table ${keys} add column secret_created_at bigint not null default 0`)
    await run(sql`update ${keys} set secret_created_at = coalesce((select g.created_at from ${generations} g
      where g.key_id = ${key}.id and g.generation = ${key}.generation), created_at)`)
  },
]
