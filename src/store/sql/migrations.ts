import { randomUUID } from 'node:crypto'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { newTag } from '../feed.js'
import type { Database } from './database.js'
import type { ColumnTypes, Drawn, Schema } from './dialect.js'
import type { Tables } from './rows.js'
import { identifier, type Place, type TableName } from './table-names.js'

/**
 * Whether every migration has been made. Looks, and changes nothing, so that a role that may only read and write can ask.
 *
 * @throws ApiKeyError `store_misconfigured` where the database cannot hold what keys are made of or hides it from the role, and `invalid_option` where a newer release has been here.
 */
export async function isMigrated(database: Database): Promise<boolean> {
  const { db, places, dialect } = database
  await dialect.schema.refuseUnfit(db)
  await dialect.rowSecurity.refuseHidden(db)
  const schema = await dialect.schema.find(db, places.express_api_key_migrations)
  return schema !== undefined && (await versionIn(db, database, schema)) === migrations.length
}

/** Which version the tables are at, 0 where there are none, and the latest one that this release knows. */
export async function versions(database: Database): Promise<{ readonly found: number; readonly known: number }> {
  const { db, places, dialect } = database
  const schema = await dialect.schema.find(db, places.express_api_key_migrations)
  return { found: schema === undefined ? 0 : await latestIn(db, database, schema), known: migrations.length }
}

/** What `migrate` would do from a version on, as text. What it draws at random, each database draws for itself when it runs the statements. */
export async function migrationScript(database: Database, from: number): Promise<readonly string[]> {
  const { db, places, dialect } = database
  const written: string[] = []
  const run: Run = async (statement) => {
    const { sql: text, parameters } = statement.compile(db)
    if (parameters.length > 0) throw new ApiKeyError('internal_error', 'A step of a migration has parameters, which a script cannot have.')
    written.push(text.replaceAll(/\s*\n\s*/g, ' '))
  }
  const place = places.express_api_key_migrations
  if (from === 0) await run(migrationsTable(place, dialect.schema.types))
  const names = namesIn(database, { name: place.schema }, dialect.schema.drawn)
  for (const [index, step] of migrations.entries()) {
    if (index < from) continue
    await step(run, names)
    await run(sql`insert into ${identifier(place)} values (${sql.lit(index + 1)}, ${dialect.schema.drawn.clock})`)
  }
  return written
}

/** Makes the migrations that are missing, inside a transaction. */
export async function migrate(on: Kysely<Tables>, database: Database): Promise<void> {
  const run = making(on, database)
  const schema = await makeMigrationsTable(on, database, run)
  const version = await versionIn(on, database, schema)
  const names = namesIn(database, schema, { storeId: sql`${randomUUID()}`, tag: sql`${newTag()}` })
  for (const [index, step] of migrations.entries()) {
    if (index < version) continue
    await step(run, names)
    await run(sql`insert into ${names.table('express_api_key_migrations')} values (${index + 1}, ${await database.dialect.now(on)})`)
  }
}

/** Runs a statement that makes or changes tables. */
type Run = (statement: RawBuilder<unknown>) => Promise<void>

function making(on: Kysely<Tables>, { dialect }: Database): Run {
  const { isForbidden, isDone } = dialect.schema
  return async (statement) => {
    try {
      await statement.execute(on)
    } catch (error) {
      if (isDone(error)) return
      if (!isForbidden(error)) throw error
      throw new ApiKeyError(
        'store_misconfigured',
        'The tables of the keys are missing or of an earlier release, and this role may not make them; call keys.migrate() once with a role that may.',
        { cause: error },
      )
    }
  }
}

/**
 * Resolves with the schema of the table of migrations, which all others share unless they were given their own. One process at a time goes on
 * from here.
 */
async function makeMigrationsTable(on: Kysely<Tables>, { places, dialect }: Database, run: Run): Promise<Schema> {
  const { find, home, lock, types } = dialect.schema
  const place = places.express_api_key_migrations
  const schema = (await find(on, place)) ?? (await home(on, place))
  const table = { schema: schema.name, name: place.name }
  await lock(on, table)
  if ((await find(on, place)) !== undefined) return schema
  await run(migrationsTable(table, types))
  return schema
}

function migrationsTable(place: Place, types: ColumnTypes): RawBuilder<unknown> {
  const columns = sql.raw(`version ${types.integer} primary key, applied_at ${types.ms} not null`)
  return sql`create table if not exists ${identifier(place)} (${columns})`
}

async function latestIn(on: Kysely<Tables>, { places }: Database, schema: Schema): Promise<number> {
  const table = identifier({ schema: schema.name, name: places.express_api_key_migrations.name })
  const { rows } = await sql<{ version: number | null }>`select max(version) as version from ${table}`.execute(on)
  return Number(rows[0]?.version ?? 0)
}

async function versionIn(on: Kysely<Tables>, database: Database, schema: Schema): Promise<number> {
  const version = await latestIn(on, database, schema)
  if (version <= migrations.length) return version
  throw new ApiKeyError(
    'invalid_option',
    `The tables are at version ${version}, made by a newer release; this one knows ${migrations.length}.`,
  )
}

/** How the steps name things. */
interface Names {
  readonly types: ColumnTypes
  readonly drawn: Omit<Drawn, 'clock'>
  /** A table, in its schema. */
  table(name: TableName): RawBuilder<unknown>
  /** The rows of a table, in a statement about it. */
  rows(name: TableName): RawBuilder<unknown>
  /** An index that lies where its table does. */
  index(table: TableName, suffix: string, columns: string, where?: string): RawBuilder<unknown>
}

function namesIn({ places, dialect }: Database, schema: Schema, drawn: Names['drawn']): Names {
  const placeOf = (table: TableName): Place => ({ schema: places[table].schema ?? schema.name, name: places[table].name })
  return {
    types: dialect.schema.types,
    drawn,
    table: (table) => identifier(placeOf(table)),
    rows: (table) => sql.id(places[table].name),
    index(table, suffix, columns, where) {
      const place = placeOf(table)
      return dialect.schema.createIndex({
        table: place,
        name: `${place.name}${suffix}`,
        columns,
        ...(where === undefined ? {} : { where }),
      })
    },
  }
}

/**
 * What the tables looked like after each release, as the steps that lead there; a step that has been published never changes. Where DDL commits by
 * itself a step may be begun again, so each of its statements can be repeated or fails with what `isDone` knows.
 *
 * Kysely's own migrator is not used: on SQLite it takes no lock that another process would see.
 */
const migrations: readonly ((run: Run, names: Names) => Promise<void>)[] = [
  async (run, { table, index, types: { id, name, text, integer, ms } }) => {
    const create = (made: TableName, columns: string): Promise<void> => run(sql`create table ${table(made)} (${sql.raw(columns)})`)
    await create(
      'express_api_keys',
      `id ${id} primary key, owner_id ${name} not null, name ${name} not null, environment ${id} not null, scopes ${text} not null,
      metadata ${text} not null, generation ${integer} not null, created_at ${ms} not null, updated_at ${ms} not null, expires_at ${ms},
      revoked_at ${ms}, revoked_reason ${text}`,
    )
    await run(index('express_api_keys', '_by_owner', 'owner_id, created_at, id'))
    await create(
      'express_api_key_generations',
      `digest ${id} primary key, key_id ${id} not null, generation ${integer} not null, created_at ${ms} not null, retired_at ${ms},
      retired_by ${id}, retired_reason ${id}, first_used_at ${ms}, secret_start ${name} not null, secret_last4 ${name} not null,
      unique (key_id, generation)`,
    )
    await create(
      'express_api_key_replays',
      `id ${id} primary key, caller_id ${text} not null, key_id ${id} not null, generation ${integer}, fingerprint ${id} not null,
      sealed ${text}, created_at ${ms} not null, expires_at ${ms} not null, settled_at ${ms}, replays ${integer} not null,
      refusals ${integer} not null`,
    )
    await run(index('express_api_key_replays', '_by_key', 'key_id'))
    await run(index('express_api_key_replays', '_by_expiry', 'expires_at', 'sealed is not null'))
    await create(
      'express_api_key_events',
      `id ${id} primary key, key_id ${id} not null, owner_id ${name} not null, type ${id} not null, at ${ms} not null, actor ${text} not null,
      ip ${text}, user_agent ${text}, details ${text} not null`,
    )
    await run(index('express_api_key_events', '_by_key', 'key_id, at, id'))
    // One row. The lease begins at the shortest there is, so that the first instance to name its own only ever lengthens it.
    await create(
      'express_api_key_settings',
      `id ${integer} primary key, lease_ms ${integer} not null, earlier_lease_ms ${integer} not null, earlier_until ${ms} not null`,
    )
    await run(sql`insert into ${table('express_api_key_settings')} values (1, 50, 0, 0)`)
  },
  async (run, { table, rows, drawn, types: { id, name, text, integer, ms } }) => {
    const [keys, generations] = [table('express_api_keys'), table('express_api_key_generations')]
    for (const column of [
      `secret_start ${name} not null default ''`,
      `secret_last4 ${name} not null default ''`,
      `rotated_to ${id}`,
      `last_used_at ${ms}`,
      `last_used_ip ${text}`,
      `last_used_user_agent ${text}`,
    ]) {
      await run(sql`alter table ${keys} add column ${sql.raw(column)}`)
    }
    for (const column of [`grace_ends_at ${ms}`, `retires_earlier ${integer} not null default 0`, `rotation_secret_hash ${id}`]) {
      await run(sql`alter table ${generations} add column ${sql.raw(column)}`)
    }
    const key = rows('express_api_keys')
    for (const column of ['secret_start', 'secret_last4']) {
      await run(sql`update ${keys} set ${sql.id(column)} = (select g.${sql.id(column)} from ${generations} g
        where g.key_id = ${key}.id and g.generation = ${key}.generation)`)
    }
    await run(sql`alter table ${table('express_api_key_settings')} add column ${sql.raw(`store_id ${name} not null default ''`)}`)
    await run(sql`update ${table('express_api_key_settings')} set store_id = ${drawn.storeId}`)
  },
  async (run, { table, types: { integer, ms } }) => {
    const [replays, settings] = [table('express_api_key_replays'), table('express_api_key_settings')]
    await run(sql`alter table ${replays} add column ${sql.raw(`window_ms ${ms} not null default 0`)}`)
    await run(sql`update ${replays} set window_ms = expires_at - created_at`)
    await run(sql`alter table ${replays} add column ${sql.raw(`grace_ms ${ms} not null default 10000`)}`)
    for (const column of ['replays', 'refusals']) await run(sql`alter table ${replays} drop column ${sql.id(column)}`)
    await run(sql`alter table ${settings} add column ${sql.raw(`lease_version ${integer} not null default 0`)}`)
    await run(sql`alter table ${settings} drop column earlier_until`)
  },
  // Not filled in: that would lock the table for as long as it is large. Where it is null, reads go by the generation.
  async (run, { table, types: { ms } }) => {
    await run(sql`alter table ${table('express_api_keys')} add column ${sql.raw(`secret_created_at ${ms}`)}`)
  },
  async (run, { table, drawn, types: { id, text, integer, ms } }) => {
    const [settings, feed, changes] = [table('express_api_key_settings'), table('express_api_key_feed'), table('express_api_key_changes')]
    await run(
      sql`create table ${feed} (${sql.raw(`id ${integer} primary key, seq ${ms} not null, tag ${id} not null, pruned_to ${ms} not null`)})`,
    )
    // Not null in so many words: SQLite would take a number that is missing, and PostgreSQL refuses it, which `appendChange` relies on.
    await run(
      sql`create table ${changes} (${sql.raw(`seq ${ms} not null primary key, tag ${id} not null, digests ${text} not null, at ${ms} not null`)})`,
    )
    await run(
      sql`create table ${table('express_api_key_instances')} (${sql.raw(`session ${id} not null primary key, mode ${id} not null,
      channels ${text} not null, revoked ${integer} not null, acked ${ms} not null, joined_at ${ms} not null`)})`,
    )
    // A reader compares the tag at its position, so there is one to compare before the first change too.
    await run(sql`insert into ${feed} values (1, 0, ${drawn.tag}, 0)`)
    await run(sql`insert into ${changes} select seq, tag, '', 0 from ${feed}`)
    await run(sql`alter table ${settings} add column ${sql.raw(`protocol ${integer} not null default 1`)}`)
  },
  // For listings over all owners. None has a column that a use of a key changes: writing down a use would then touch every index.
  async (run, { index }) => {
    await run(index('express_api_keys', '_by_creation', 'created_at, id'))
    await run(index('express_api_keys', '_by_last4', 'secret_last4, created_at, id'))
    await run(index('express_api_keys', '_by_expiry', 'expires_at', 'expires_at is not null'))
  },
  async (run, { table, types: { text, ms } }) => {
    for (const column of [`allowed_ips ${text}`, `disabled_at ${ms}`])
      await run(sql`alter table ${table('express_api_keys')} add column ${sql.raw(column)}`)
  },
  // What housekeeping looks for: events by age and by owner, replay records by age, revoked keys by when they were revoked.
  async (run, { index }) => {
    await run(index('express_api_key_events', '_by_time', 'at, id'))
    await run(index('express_api_key_events', '_by_owner', 'owner_id, at, id'))
    await run(index('express_api_key_replays', '_by_time', 'created_at'))
    await run(index('express_api_keys', '_by_end', 'revoked_at', 'revoked_at is not null'))
  },
]
