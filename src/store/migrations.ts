import { randomUUID } from 'node:crypto'
import { type Kysely, sql } from 'kysely'

/**
 * What the tables looked like after each release, as the steps that lead there; a step that has been published never changes.
 *
 * Kysely's own migrator is not used: on SQLite it takes no lock that another process would see.
 */
export const migrations: readonly ((db: Kysely<never>) => Promise<void>)[] = [
  async (db) => {
    const run = (statement: string): Promise<unknown> => sql.raw(statement).execute(db)
    await run(`create table express_api_keys (
      id text primary key, owner_id text not null, name text not null, environment text not null, scopes text not null, metadata text not null,
      generation integer not null, created_at bigint not null, updated_at bigint not null, expires_at bigint,
      revoked_at bigint, revoked_reason text)`)
    await run('create index express_api_keys_by_owner on express_api_keys (owner_id, created_at, id)')
    await run(`create table express_api_key_generations (
      digest text primary key, key_id text not null, generation integer not null, created_at bigint not null,
      retired_at bigint, retired_by text, retired_reason text, first_used_at bigint,
      secret_start text not null, secret_last4 text not null, unique (key_id, generation))`)
    await run(`create table express_api_key_replays (
      id text primary key, caller_id text not null, key_id text not null, generation integer, fingerprint text not null, sealed text,
      created_at bigint not null, expires_at bigint not null, settled_at bigint,
      replays integer not null, refusals integer not null)`)
    await run('create index express_api_key_replays_by_key on express_api_key_replays (key_id)')
    await run('create index express_api_key_replays_by_expiry on express_api_key_replays (expires_at) where sealed is not null')
    await run(`create table express_api_key_events (
      id text primary key, key_id text not null, owner_id text not null, type text not null, at bigint not null, actor text not null,
      ip text, user_agent text, details text not null)`)
    await run('create index express_api_key_events_by_key on express_api_key_events (key_id, at, id)')
    // One row. The lease begins at the shortest there is, so that the first instance to name its own only ever lengthens it.
    await run(`create table express_api_key_settings (
      id integer primary key, lease_ms integer not null, earlier_lease_ms integer not null, earlier_until bigint not null)`)
    await run('insert into express_api_key_settings values (1, 50, 0, 0)')
  },
  async (db) => {
    const run = (statement: string): Promise<unknown> => sql.raw(statement).execute(db)
    for (const column of [
      `secret_start text not null default ''`,
      `secret_last4 text not null default ''`,
      'rotated_to text',
      'last_used_at bigint',
      'last_used_ip text',
      'last_used_user_agent text',
    ]) {
      await run(`alter table express_api_keys add column ${column}`)
    }
    for (const column of ['grace_ends_at bigint', 'retires_earlier integer not null default 0', 'rotation_secret_hash text']) {
      await run(`alter table express_api_key_generations add column ${column}`)
    }
    for (const column of ['secret_start', 'secret_last4']) {
      await run(`update express_api_keys set ${column} = (select g.${column} from express_api_key_generations g
        where g.key_id = express_api_keys.id and g.generation = express_api_keys.generation)`)
    }
    await run(`alter table express_api_key_settings add column store_id text not null default ''`)
    await run(`update express_api_key_settings set store_id = '${randomUUID()}'`)
  },
  async (db) => {
    const run = (statement: string): Promise<unknown> => sql.raw(statement).execute(db)
    await run('alter table express_api_key_replays add column window_ms bigint not null default 0')
    await run('update express_api_key_replays set window_ms = expires_at - created_at')
    for (const column of ['replays', 'refusals']) await run(`alter table express_api_key_replays drop column ${column}`)
    await run('alter table express_api_key_settings add column lease_version integer not null default 0')
    await run('alter table express_api_key_settings drop column earlier_until')
  },
]
