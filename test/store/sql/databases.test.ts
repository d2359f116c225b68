import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ApiKeyError, Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { sqlStore } from 'express-api-keys/sql'
import { sqliteStore } from 'express-api-keys/sqlite'
import { storeContract } from 'express-api-keys/testing'
import {
  CamelCasePlugin,
  DeduplicateJoinsPlugin,
  HandleEmptyInListsPlugin,
  IdentifierNode,
  Kysely,
  type KyselyPlugin,
  OperationNodeTransformer,
  ParseJSONResultsPlugin,
  PostgresDialect,
  pushValueIntoList,
  RawNode,
  type SchemableIdentifierNode,
  SelectQueryNode,
  SqliteDialect,
  TableNode,
} from 'kysely'
import Database from 'libsql'
import { Client, Pool, type PoolClient, type PoolConfig, types } from 'pg'
import { atEnd } from '../../support/cleanup.js'
import { serve } from '../../support/instance.js'
import { freshDatabase } from '../../support/postgres.js'
import { type Answer, call, verdict } from '../../support/traffic.js'

/** What a plugin of an application's may do to every table. */
class Prefix extends OperationNodeTransformer implements KyselyPlugin {
  readonly #prefix: string

  constructor(prefix: string) {
    super()
    this.#prefix = prefix
  }
  transformQuery: KyselyPlugin['transformQuery'] = ({ node, queryId }) => this.transformNode(node, queryId)
  transformResult: KyselyPlugin['transformResult'] = async ({ result }) => result
  protected override transformSchemableIdentifier(node: SchemableIdentifierNode): SchemableIdentifierNode {
    return { ...node, identifier: IdentifierNode.create(`${this.#prefix}${node.identifier.name}`) }
  }
}

/** A plugin that does this to every query, and leaves results alone. */
function turning(transformQuery: KyselyPlugin['transformQuery']): KyselyPlugin {
  return { transformQuery, transformResult: async ({ result }) => result }
}

/** A plugin under which no answer is what it was. */
const shouting: KyselyPlugin = {
  transformQuery: ({ node }) => node,
  transformResult: async ({ result }) => ({
    ...result,
    rows: result.rows.map((row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name.toUpperCase(), value]))),
  }),
}

const PLUGINS: readonly (readonly [name: string, make: () => KyselyPlugin])[] = [
  ['CamelCasePlugin', () => new CamelCasePlugin()],
  ['ParseJSONResultsPlugin', () => new ParseJSONResultsPlugin()],
  ['DeduplicateJoinsPlugin', () => new DeduplicateJoinsPlugin()],
  ['HandleEmptyInListsPlugin', () => new HandleEmptyInListsPlugin({ strategy: pushValueIntoList('nothing') })],
  ['a plugin that renames the columns of every answer', () => shouting],
]

describe('an idle connection that is lost', () => {
  test('does not end the process, is told once to each who listens, and the next request has another', async () => {
    const { url, pool: admin } = await freshDatabase()
    const own = new Pool({ connectionString: url, max: 1 })
    atEnd(() => own.end())
    const stores = [postgresStore(own), postgresStore(own)]
    expect(own.listenerCount('error')).toBe(1)
    const [store] = stores as [Store, Store]
    await store.migrate()

    const told: ApiKeyError[] = []
    const ends = stores.map((each) => each.onFault?.((fault) => void told.push(fault)))
    // What a listener throws goes nowhere.
    store.onFault?.(() => {
      throw new Error('from the listener')
    })
    const lose = async (): Promise<void> => {
      await store.read([])
      const removed = new Promise((resolve) => own.once('remove', resolve))
      await admin.query(`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and state = 'idle'`)
      await removed
      await new Promise(setImmediate)
    }
    await lose()
    expect(told).toMatchObject(Array(2).fill({ code: 'store_unavailable', cause: { code: '57P01' } }))
    ends[1]?.()
    await lose()
    expect(told).toHaveLength(3)
    await expect(store.read([])).resolves.toMatchObject({ found: [] })
  })

  test('what a call gave up waiting for, and failed later, is told too', async () => {
    const { url, pool: admin } = await freshDatabase()
    const store = postgresStore(pool(url), { readTimeoutMs: 50 })
    await store.migrate()
    const heard = new Promise<ApiKeyError>((resolve) => store.onFault?.(resolve))
    const holder = await admin.connect()
    await holder.query('begin; lock table express_api_key_generations in access exclusive mode')
    await expect(store.read(['d'])).rejects.toMatchObject({ code: 'store_unavailable' })
    await holder.query(`select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock'; rollback`)
    holder.release()
    expect(await heard).toMatchObject({ code: 'store_unavailable', cause: { code: '57P01' } })
  })
})

describe('what only a person can end', () => {
  test.each([
    ['a right on one table', 'revoke select on express_api_key_generations from', '42501', 'grant it USAGE'],
    ['the right to the schema', 'revoke usage on schema keys from', '42P01', 'hidden from this role'],
  ])('%s is missing: 503 that tells a stranger nothing, and a cause that tells all', async (_what, statement, cause, sentence) => {
    const { admin, role, url } = await databaseWithRole('search_path = keys')
    await admin.query('create schema keys; set search_path = keys')
    await sqlStore(kysely(admin).withSchema('keys')).migrate()
    await admin.query(`grant usage on schema keys to ${role}; grant select, insert, update, delete on all tables in schema keys to ${role}`)
    const store = postgresStore(pool(url))
    const { keys, url: at } = await serve(store)
    const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    expect(await verdict(at, secret)).toBe(200)
    await admin.query(`${statement} ${role}`)

    await expect(store.read(['d'])).rejects.toMatchObject({
      code: 'store_misconfigured',
      message: expect.stringContaining(sentence),
      cause: { code: cause },
    })
    const answer = await call(`${at}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
    expect([answer.status, answer.headers.get('retry-after'), answer.body]).toEqual([
      503,
      '30',
      {
        type: 'https://express-api-keys.github.io/reference/errors#store_misconfigured',
        title: 'Store misconfigured',
        status: 503,
        code: 'store_misconfigured',
        detail: 'The store cannot be used at the moment.',
      },
    ])
  })

  describe('row-level security', () => {
    const sentence = (table: string): object => ({
      code: 'store_misconfigured',
      message: expect.stringMatching(new RegExp(`^Row-level security hides rows of ${table} from this role; disable it`)),
    })
    const TABLES = [
      ...['keys', 'key_generations', 'key_replays', 'key_events', 'key_settings', 'key_migrations'],
      ...['key_feed', 'key_changes', 'key_instances'],
    ].map((name) => `express_api_${name}`)

    const guarded = async (): Promise<{ admin: Pool; role: string; own: Pool }> => {
      const { admin, role, url } = await databaseWithRole()
      await postgresStore(admin).migrate()
      await admin.query(`grant select, insert, update, delete on all tables in schema public to ${role}`)
      return { admin, role, own: pool(url) }
    }

    test.each(TABLES)('on %s without a policy is told by migrate()', async (table) => {
      const { admin, own } = await guarded()
      await admin.query(`alter table ${table} enable row level security`)
      for (const store of [postgresStore(own), sqlStore(kysely(own))]) await expect(store.migrate()).rejects.toMatchObject(sentence(table))
      await postgresStore(admin).migrate()
      await admin.query(`alter table ${table} disable row level security`)
      await postgresStore(own).migrate()
    })

    test.each(TABLES.slice(0, 2))('P1: a live key is never unknown because of it, on %s, from one moment to the next', async (table) => {
      const { admin, own } = await guarded()
      const errors: ApiKeyError[] = []
      const store = postgresStore(own)
      const { keys, url } = await serve(store, { leaseMs: 250, onError: (error) => void errors.push(error) })
      const { secret, key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
      const { secret: fresh } = await keys.create({ as: 'application', ownerId: 'acme', name: 'fresh' })
      expect([await verdict(url, secret), await verdict(url, secret.slice(0, -1))]).toEqual([200, 401])
      await admin.query(`alter table ${table} enable row level security`)
      expect((await call(`${url}/data`, { secret: fresh })).status).toBe(503)
      expect(errors).toContainEqual(expect.objectContaining(sentence(table)))
      const rotated = await call(`${url}/keys/self/rotate`, { method: 'POST', secret: fresh, idempotencyKey: 'k' })
      expect(rotated.status).toBe(503)
      await expect(
        store.transaction((tx) => tx.retireGenerations(key.id, { at: 1, by: 'system', reason: 'revoked' })),
      ).rejects.toMatchObject(sentence(table))
      await expect(store.key(key.id)).rejects.toMatchObject(sentence(table))
      await expect(store.keys({ ownerId: 'acme', limit: 5 })).rejects.toMatchObject(sentence(table))
      await admin.query(`alter table ${table} disable row level security`)
      expect(await verdict(url, fresh)).toBe(200)
    })

    test.each(TABLES.slice(2, 5))('on %s keeps no answer back in silence', async (table) => {
      const { admin, own } = await guarded()
      const store = postgresStore(own)
      await admin.query(`alter table ${table} enable row level security`)
      if (table !== 'express_api_key_events') await expect(store.replays(['r'])).rejects.toMatchObject(sentence(table))
      await expect(store.events({ keyId: 'k', limit: 5 })).rejects.toMatchObject(sentence(table))
      await expect(store.transaction((tx) => tx.insertReplay(replay('r')))).rejects.toMatchObject(sentence(table))
      await expect(store.setLease(70)).rejects.toMatchObject(sentence(table))
    })

    test('with a policy that lets the role at every row is no trouble, and with one that does not is', async () => {
      const { admin, role, own } = await guarded()
      for (const table of TABLES) {
        await admin.query(`alter table ${table} enable row level security; create policy all_rows on ${table} to ${role} using (true)`)
      }
      const store = postgresStore(own)
      await worksWith(store)
      for (const policy of ['as restrictive using (id is null)', 'as restrictive for update using (id is null)']) {
        await admin.query(`create policy fewer on express_api_keys ${policy}`)
        await expect(store.migrate()).rejects.toMatchObject(sentence('express_api_keys'))
        await admin.query('drop policy fewer on express_api_keys')
      }
      await admin.query(
        `drop policy all_rows on express_api_keys; create policy own_rows on express_api_keys using (owner_id = current_user)`,
      )
      await expect(store.read(['d'])).rejects.toMatchObject(sentence('express_api_keys'))
    })

    test('is seen in the schema and under the prefix of the tables', async () => {
      const { admin, role, own } = await guarded()
      await admin.query(`create schema "o'\\k"; grant usage on schema "o'\\k" to ${role}`)
      const made = (on: Pool): Store => sqlStore(kysely(on, [new Prefix('App1_')]).withSchema("o'\\k"))
      await made(admin).migrate()
      await admin.query(`grant select, insert, update, delete on all tables in schema "o'\\k" to ${role}`)
      await made(own).migrate()
      await admin.query(`alter table "o'\\k"."App1_express_api_keys" enable row level security`)
      await expect(made(own).read(['d'])).rejects.toMatchObject(sentence('App1_express_api_keys'))
      expect(await postgresStore(own).read(['d'])).toMatchObject({ found: [] })
    })
  })

  test('tables that were never made, a settings row that is gone, another database, another password', async () => {
    const { url, pool: admin } = await freshDatabase()
    const misconfigured = (sentence: string): object => ({ code: 'store_misconfigured', message: expect.stringContaining(sentence) })
    await expect(postgresStore(admin).read([])).rejects.toMatchObject(misconfigured('keys.migrate()'))
    await expect(postgresStore(admin).transaction((tx) => tx.waitMs())).rejects.toMatchObject(misconfigured('keys.migrate()'))
    await postgresStore(admin).migrate()
    await admin.query('delete from express_api_key_settings')
    await expect(postgresStore(admin).read([])).rejects.toMatchObject(misconfigured('keys.migrate()'))
    await expect(postgresStore(admin).transaction((tx) => tx.waitMs())).rejects.toMatchObject(misconfigured('keys.migrate()'))
    await expect(postgresStore(admin).setLease(70)).rejects.toMatchObject(misconfigured('keys.migrate()'))
    const elsewhere = (change: object): Store => postgresStore(pool(Object.assign(new URL(url), change).href))
    await expect(elsewhere({ pathname: '/nowhere' }).read([])).rejects.toMatchObject(misconfigured('does not exist'))
    await expect(elsewhere({ password: 'wrong' }).transaction((tx) => tx.now())).rejects.toMatchObject(misconfigured('pg_hba.conf'))
    const untold = pool(`${Object.assign(new URL(url), { username: '', password: '' }).href}`, { user: 'postgres', password: '' })
    await expect(postgresStore(untold).read([])).rejects.toMatchObject(misconfigured('password'))
  })

  test('on SQLite: tables that were never made, a file that is none, a file that may not be written', async () => {
    const { database, store, file } = sqliteFile()
    await expect(store.read([])).rejects.toMatchObject({ code: 'store_misconfigured', message: expect.stringContaining('keys.migrate()') })
    await store.migrate()
    database.exec('pragma query_only = on')
    await expect(store.setLease(70)).rejects.toMatchObject({ code: 'store_misconfigured', cause: { code: 'SQLITE_READONLY' } })
    const notes = join(file, '..', 'notes.txt')
    writeFileSync(notes, 'no database '.repeat(1_000))
    const odd = new Database(notes)
    atEnd(async () => void odd.close())
    await expect(sqliteStore(odd).migrate()).rejects.toMatchObject({ code: 'store_misconfigured', cause: { code: 'SQLITE_NOTADB' } })
  })

  test('a database in another encoding than UTF-8 is refused by migrate()', async () => {
    const { pool: admin, url } = await freshDatabase()
    const name = `t_${randomUUID().replaceAll('-', '')}`
    await admin.query(`create database ${name} encoding 'LATIN1' locale 'C' template template0`)
    const own = new Pool({ connectionString: Object.assign(new URL(url), { pathname: `/${name}` }).href })
    atEnd(async () => {
      await own.end()
      await admin.query(`drop database ${name} with (force)`)
    })
    await expect(postgresStore(own).migrate()).rejects.toMatchObject({
      code: 'store_misconfigured',
      message: expect.stringContaining("encoded in LATIN1; keep keys in one that was created with ENCODING 'UTF8'"),
    })
  })
})

describe('what the database refuses', () => {
  test.each(['', 'deferrable initially deferred'])(
    'a foreign key of the application (%s) is internal_error, with its cause',
    async (when) => {
      const { pool: admin } = await freshDatabase()
      const store = postgresStore(admin)
      const { keys } = await serve(store)
      await admin.query(`create table owners (id text primary key);
      alter table express_api_keys add constraint known foreign key (owner_id) references owners ${when}`)
      const created = keys.create({ as: 'application', ownerId: 'nobody', name: 'n' })
      await expect(created).rejects.toMatchObject({ code: 'internal_error', cause: { code: '23503', constraint: 'known' } })
    },
  )

  test('a trigger of the application is internal_error, on SQLite too', async () => {
    const { pool: admin } = await freshDatabase()
    const { keys } = await serve(postgresStore(admin))
    await admin.query(`create function never() returns trigger language plpgsql as $$ begin raise exception 'never'; end $$;
      create trigger never before insert on express_api_keys for each row execute function never()`)
    await expect(keys.create({ as: 'application', ownerId: 'acme', name: 'n' })).rejects.toMatchObject({
      code: 'internal_error',
      cause: { code: 'P0001' },
    })

    const { database, store } = sqliteFile()
    const lite = await serve(store)
    database.exec("create trigger never before insert on express_api_keys begin select raise(abort, 'never'); end")
    await expect(lite.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })).rejects.toMatchObject({
      code: 'internal_error',
      cause: { code: 'SQLITE_CONSTRAINT_TRIGGER' },
    })
  })

  test('a character that it cannot hold is the fault of the request', async () => {
    const { pool: admin } = await freshDatabase()
    const store = postgresStore(admin)
    await store.migrate()
    const refused = { code: 'invalid_request', cause: { code: '22021' } }
    await expect(store.keys({ ownerId: 'a\0b', limit: 1 })).rejects.toMatchObject(refused)
    await expect(store.transaction((tx) => tx.lockName('a\0b'))).rejects.toMatchObject(refused)
  })

  test('P2: a transaction in which a step failed is not told as done, whoever passed over that', async () => {
    const { pool: admin } = await freshDatabase()
    for (const store of [postgresStore(admin), sqliteFile().store]) {
      await store.migrate()
      const careless = store.transaction(async (tx) => {
        await tx.insertReplay(replay('twice'))
        await tx.insertReplay(replay('twice')).catch(() => {})
      })
      await expect(careless).rejects.toMatchObject({ code: 'internal_error' })
      expect(await store.transaction((tx) => tx.replay(['twice']))).toBeUndefined()
    }
  })
})

describe('plugins of the application', () => {
  test.each(PLUGINS)("the store's own queries do not go through %s", async (_name, make) => {
    const { pool: admin } = await freshDatabase()
    const plugins = [make()]
    await worksWith(sqlStore(new Kysely({ dialect: new PostgresDialect({ pool: admin }), plugins })))
    await worksWith(sqlStore(new Kysely({ dialect: new SqliteDialect({ database: sqliteFile().database }), plugins })))
  })

  storeContract({ describe, test }, 'in a schema with an odd name, on PostgreSQL', async () => {
    const { pool: admin } = await freshDatabase()
    await admin.query('create schema "Our ""keys"" é"')
    const make = (): Store => sqlStore(kysely(admin).withSchema('Our "keys" é'))
    return { store: make(), sibling: make(), close: async () => {} }
  })

  storeContract({ describe, test }, 'with a prefix that a plugin makes, on PostgreSQL', async () => {
    const { pool: admin } = await freshDatabase()
    const make = (): Store => sqlStore(kysely(admin, [new Prefix('App1_')]))
    return { store: make(), sibling: make(), close: async () => {} }
  })

  storeContract({ describe, test }, 'in an attached schema with a prefix, on SQLite', async () => {
    const { database, file } = sqliteFile()
    database.exec(`attach '${file}.keys' as auth; pragma auth.journal_mode = WAL`)
    const db = new Kysely({ dialect: new SqliteDialect({ database }), plugins: [new Prefix('app_')] })
    return { store: sqlStore(db.withSchema('auth')), close: async () => {} }
  })

  test('nothing is made beside the schema, and indexes are named after their tables', async () => {
    const { pool: admin } = await freshDatabase()
    await admin.query('create schema auth')
    const db = kysely(admin, [new Prefix('app_')])
    await worksWith(sqlStore(db.withSchema('auth')))
    const { rows } = await admin.query<{ name: string }>(
      `select schemaname || '.' || indexname as name from pg_indexes where schemaname not like 'pg\\_%' order by name`,
    )
    expect(rows.map(({ name }) => name)).toEqual([
      'auth.app_express_api_key_changes_pkey',
      ...['key', 'owner', 'time'].map((suffix) => `auth.app_express_api_key_events_by_${suffix}`),
      'auth.app_express_api_key_events_pkey',
      'auth.app_express_api_key_feed_pkey',
      'auth.app_express_api_key_generations_key_id_generation_key',
      'auth.app_express_api_key_generations_pkey',
      'auth.app_express_api_key_instances_pkey',
      'auth.app_express_api_key_migrations_pkey',
      ...['expiry', 'key', 'time'].map((suffix) => `auth.app_express_api_key_replays_by_${suffix}`),
      'auth.app_express_api_key_replays_pkey',
      'auth.app_express_api_key_settings_pkey',
      ...['creation', 'end', 'expiry', 'last4', 'owner'].map((suffix) => `auth.app_express_api_keys_by_${suffix}`),
      'auth.app_express_api_keys_pkey',
    ])
  })

  test('two schemas and two prefixes in one database know nothing of each other', async () => {
    const { pool: admin } = await freshDatabase()
    await admin.query('create schema one; create schema two')
    const stores = [
      sqlStore(kysely(admin).withSchema('one')),
      sqlStore(kysely(admin).withSchema('two')),
      sqlStore(kysely(admin, [new Prefix('a_')])),
      sqlStore(kysely(admin, [new Prefix('b_')])),
      postgresStore(admin),
    ]
    await Promise.all(stores.map((store) => store.migrate()))
    expect(new Set(await Promise.all(stores.map(async (store) => (await store.read([])).storeId))).size).toBe(stores.length)
    for (const [index, store] of stores.entries()) {
      await store.setLease(100 + index)
      await store.transaction((tx) => tx.insertReplay({ ...replay('r'), callerId: String(index) }))
    }
    for (const [index, store] of stores.entries()) {
      expect((await store.read([])).leaseMs).toBe(100 + index)
      expect(await store.transaction((tx) => tx.replay(['r']))).toMatchObject({ callerId: String(index) })
    }
    // Each holds the name until all do.
    let holders = 0
    let all = (): void => {}
    const everybody = new Promise<void>((resolve) => {
      all = resolve
    })
    await Promise.all(
      stores.map((store) =>
        store.transaction(async (tx) => {
          await tx.lockName('the same')
          if (++holders === stores.length) all()
          await everybody
        }),
      ),
    )
  })

  test.each<readonly [string, KyselyPlugin, string]>([
    [
      'puts a query in the place of a table',
      turning(({ node }) =>
        SelectQueryNode.is(node) ? { ...node, from: { kind: 'FromNode', froms: [RawNode.createWithSql('(select 1) as t')] } } : node,
      ),
      'make something else of the table "express_api_keys"',
    ],
    [
      'throws at tables that it does not know',
      turning(() => {
        throw new Error('no such model')
      }),
      'fail over the table "express_api_keys"',
    ],
    ['makes names too long', new Prefix('p'.repeat(40)), 'too long for PostgreSQL'],
    ['makes one name of all', turning(({ node }) => (SelectQueryNode.is(node) ? renamed(node, 'keys') : node)), 'one name'],
    ['makes empty names', turning(({ node }) => (SelectQueryNode.is(node) ? renamed(node, '') : node)), 'empty name'],
  ])('a plugin that %s is refused at start-up', (_what, plugin, sentence) => {
    const db = new Kysely({ dialect: new PostgresDialect({ pool: new Pool() }), plugins: [plugin] })
    expect(() => sqlStore(db)).toThrow(expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining(sentence) }))
  })
})

describe('roles as people make them', () => {
  test('migrate() with a role that may only read and write: tables up to date are done, missing ones say who has to make them', async () => {
    const { admin, role, url } = await databaseWithRole('default_transaction_read_only = on')
    await admin.query('revoke create on schema public from public')
    const store = postgresStore(pool(url))
    await expect(store.migrate()).rejects.toMatchObject({
      code: 'store_misconfigured',
      message: expect.stringContaining('call keys.migrate() once with a role that may'),
      cause: { code: '42501' },
    })
    await postgresStore(admin).migrate()
    await admin.query(`grant select, insert, update, delete on all tables in schema public to ${role}`)
    const before = (await admin.query('select max(oid) as oid from pg_class')).rows
    await store.migrate()
    expect((await admin.query('select max(oid) as oid from pg_class')).rows).toEqual(before)
    await worksWith(store)
  })

  test('tables are found wherever the search_path of a role leads, and not made twice', async () => {
    const { admin, role, url } = await databaseWithRole('search_path = app, keys')
    await admin.query('create schema app; create schema keys')
    await sqlStore(kysely(admin).withSchema('keys')).migrate()
    await admin.query(`grant all on schema app, keys to ${role}; grant all on all tables in schema keys to ${role}`)
    await worksWith(postgresStore(pool(url)))
    const { rows } = await admin.query("select schemaname from pg_tables where tablename like 'express%' group by 1")
    expect(rows).toEqual([{ schemaname: 'keys' }])
  })

  test('migrations that are missing are made where the tables are, and not where the role would make new ones', async () => {
    const { admin, role, url } = await databaseWithRole('search_path = app, keys')
    await admin.query(`create schema app authorization ${role}; create schema keys authorization ${role}`)
    await postgresStore(pool(url, { options: '-c search_path=keys' })).migrate()
    // As the release before left them.
    await admin.query(`delete from keys.express_api_key_migrations where version >= 3;
      alter table keys.express_api_key_replays add column replays integer not null default 0, add column refusals integer not null default 0,
        drop column window_ms, drop column grace_ms;
      alter table keys.express_api_key_settings add column earlier_until bigint not null default 0, drop column lease_version, drop column protocol;
      drop table keys.express_api_key_feed, keys.express_api_key_changes, keys.express_api_key_instances;
      drop index keys.express_api_keys_by_creation, keys.express_api_keys_by_last4, keys.express_api_keys_by_expiry, keys.express_api_keys_by_end,
        keys.express_api_key_events_by_time, keys.express_api_key_events_by_owner, keys.express_api_key_replays_by_time;
      alter table keys.express_api_keys drop column secret_created_at, drop column allowed_ips, drop column disabled_at`)
    await worksWith(postgresStore(pool(url)))
    const { rows } = await admin.query("select schemaname from pg_tables where tablename like 'express%' group by 1")
    expect(rows).toEqual([{ schemaname: 'keys' }])
  })

  test('a role whose search_path names nothing that it may use is told so', async () => {
    const { url } = await databaseWithRole('search_path = nowhere')
    await expect(postgresStore(pool(url)).migrate()).rejects.toMatchObject({
      code: 'store_misconfigured',
      message: expect.stringContaining('search_path'),
    })
    const { pool: admin } = await freshDatabase()
    await expect(sqlStore(kysely(admin).withSchema('nowhere')).migrate()).rejects.toMatchObject({
      code: 'store_misconfigured',
      message: expect.stringContaining('schema does not exist'),
    })
  })

  test.each([
    'default_transaction_read_only = on',
    "default_transaction_isolation = 'serializable'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_isolation = 'serializable'; default_transaction_read_only = on; default_transaction_deferrable = on",
    "statement_timeout = '150ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '20ms'",
    "transaction_timeout = '150ms'",
    "lc_messages = 'C'; datestyle = 'German'; timezone = 'Asia/Kathmandu'; bytea_output = 'escape'; extra_float_digits = -15",
  ])('all that is written is written under %s', async (settings) => {
    const { admin, role, url } = await databaseWithRole(...settings.split('; '))
    await admin.query(`grant all on schema public to ${role}`)
    const store = postgresStore(pool(url))
    await worksWith(store)

    // Others hold a row, and work takes its time, for longer than the role is given.
    const { keys } = await serve(store)
    const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'held' })
    const holder = await session(admin)
    await holder.query('begin')
    await holder.query('select 1 from express_api_keys where id = $1 for update', [key.id])
    const used = store.recordUses([{ keyId: key.id, agoMs: 0, ip: '192.0.2.1', userAgent: null }])
    const worked = store.transaction(async (tx) => {
      await tx.now()
      await admin.query('select pg_sleep(0.3)')
      await tx.lockName('n')
      return tx.waitMs()
    })
    await holder.query('select pg_sleep(0.3); commit')
    await used
    expect(await worked).toBeGreaterThan(0)
    expect((await store.key(key.id))?.key.lastUsedIp).toBe('192.0.2.1')
  })
})

describe('drivers as people set them', () => {
  const getTypeParser = ((oid: number, format?: 'text') => {
    if (oid === types.builtins.INT8) return (value: string) => BigInt(value)
    if (oid === types.builtins.INT4) return (value: string) => value
    if (oid === types.builtins.BOOL) return (value: string) => value
    return types.getTypeParser(oid, format)
  }) as typeof types.getTypeParser

  test.each<readonly [string, PoolConfig]>([
    ['parsers that give int8 as BigInt, int4 and bool as text', { types: { getTypeParser } }],
    ['binary results', { binary: true } as PoolConfig],
    ['one connection', { max: 1 }],
    ['a query_timeout', { query_timeout: 1_000 }],
    ['a short life for connections', { maxUses: 1, idleTimeoutMillis: 1 }],
  ])('pg with %s', async (_what, config) => {
    await worksWith(postgresStore(pool((await freshDatabase()).url, config)))
    const { url } = await freshDatabase()
    const store = sqlStore(kysely(pool(url, config)))
    if ('binary' in config) await expect(store.migrate()).rejects.toThrow('The driver reads other numbers than the database sends')
    else await worksWith(store)
  })

  test('a connection that is lent to the store gives binary results to the application again afterwards', async () => {
    const { url } = await freshDatabase()
    const own = pool(url, { max: 1, binary: true } as PoolConfig)
    await postgresStore(own).migrate()
    const { fields } = await own.query('select $1::int4 as n', [1])
    expect(fields[0]?.format).toBe('binary')
  })

  storeContract({ describe, test }, 'SQLite that gives every number as BigInt', async () => {
    const { database, store } = sqliteFile()
    database.defaultSafeIntegers(true)
    return { store, close: async () => {} }
  })

  test.each<readonly [string, (own: Pool) => Store]>([
    ['postgresStore', (own) => postgresStore(own)],
    ['sqlStore', (own) => sqlStore(kysely(own))],
  ])('%s: P1: a connection that pg gave up waiting on goes back to nobody with a transaction open on it', async (_what, make) => {
    const { url, pool: admin } = await freshDatabase()
    await postgresStore(admin).migrate()
    await admin.query('create table of_the_application (n int)')
    const own = pool(url, { max: 1, query_timeout: 100 })
    const store = make(own)
    const holder = await session(admin)
    await holder.query('begin; lock table express_api_key_events in access exclusive mode')
    const late = store.transaction(async (tx) => {
      await tx.insertReplay(replay('late'))
      await tx.appendEvent({
        ...{ id: 'e', keyId: 'k', ownerId: 'o', type: 'key.rotated', at: 1, actor: 'system', ip: null, userAgent: null },
        details: {},
      })
    })
    await expect(late).rejects.toMatchObject({ code: 'store_unavailable', cause: { message: 'Query read timeout' } })
    await holder.query('rollback')
    // The only connection of the pool, by now outside of every transaction.
    await own.query('insert into of_the_application values (1)')
    const seen = await admin.query(`select (select count(*)::int from of_the_application) as own,
      (select count(*)::int from express_api_key_replays) as late`)
    expect(seen.rows).toEqual([{ own: 1, late: 0 }])
  })

  test('a pool whose promises are none of this realm or of this language', async () => {
    const own = pool((await freshDatabase()).url)
    const connect = async (): Promise<PoolClient> => {
      const client = await own.connect()
      const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>
      return new Proxy(client, {
        get(target, name) {
          const value: unknown = Reflect.get(target, name, target)
          if (name === 'query') return (...args: unknown[]) => thenable(query(...args))
          return typeof value === 'function' ? value.bind(target) : value
        },
      })
    }
    await worksWith(postgresStore({ connect: () => thenable(connect()) }, { readTimeoutMs: 500 }))
  })

  test('a query whose promise is none of this realm is given up like every other, with its connection', async () => {
    const own = pool((await freshDatabase()).url)
    await postgresStore(own).migrate()
    const removed = new Promise((resolve) => own.once('remove', resolve))
    const connect = async (): Promise<PoolClient> => {
      const client = await own.connect()
      return new Proxy(client, {
        get(target, name) {
          const value: unknown = Reflect.get(target, name, target)
          if (name === 'query') return () => thenable(new Promise(() => {}))
          return typeof value === 'function' ? value.bind(target) : value
        },
      })
    }
    const store = postgresStore({ connect: () => thenable(connect()) }, { readTimeoutMs: 50, transactionTimeoutMs: 50 })
    await expect(store.read([])).rejects.toMatchObject({ code: 'store_unavailable' })
    await removed
  })

  test('a pool that was ended and a handle that was closed are stores that cannot be asked', async () => {
    const { url } = await freshDatabase()
    const own = new Pool({ connectionString: url })
    const handle = sqliteFile()
    const theirs = sqliteFile()
    for (const [store, end] of [
      [postgresStore(own), () => own.end()],
      [handle.store, async () => void handle.database.close()],
      [sqlStore(new Kysely({ dialect: new SqliteDialect({ database: theirs.database }) })), async () => void theirs.database.close()],
    ] as const) {
      const { keys, url: at } = await serve(store)
      const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
      await end()
      await expect(store.transaction((tx) => tx.now())).rejects.toMatchObject({ code: 'store_unavailable' })
      await expect(store.read([])).rejects.toMatchObject({ code: 'store_unavailable' })
      const answer = await call(`${at}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
      expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
    }
  })
})

describe('an SQLite file that is not yet in WAL mode and that somebody holds', () => {
  test('is waited for like every other lock, with the event loop free', async () => {
    const { database, store, file } = sqliteFile()
    const other = new Database(file)
    atEnd(async () => void other.close())
    other.exec('create table of_the_application (n)')
    other.exec('begin exclusive')
    let done = false
    const migrated = store.migrate().then(() => {
      done = true
    })
    let turns = 0
    const until = performance.now() + 600
    while (performance.now() < until) {
      turns++
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    expect(done).toBe(false)
    expect(turns).toBeGreaterThan(10)
    other.exec('rollback')
    await migrated
    expect(database.prepare('pragma journal_mode').all()).toEqual([{ journal_mode: 'wal' }])
  })

  test('for longer than may be waited is a store that cannot be asked, and is tried again', async () => {
    const { database, store, file } = sqliteFile({ transactionTimeoutMs: 100, readTimeoutMs: 100 })
    const other = new Database(file)
    atEnd(async () => void other.close())
    other.exec('create table of_the_application (n)')
    other.exec('begin exclusive')
    for (let n = 0; n < 3; n++) await expect(store.migrate()).rejects.toMatchObject({ code: 'store_unavailable' })
    await expect(store.read([])).rejects.toMatchObject({ code: 'store_unavailable' })
    other.exec('rollback')
    await store.migrate()
    expect(await store.read([])).toMatchObject({ found: [] })
    expect(database.prepare('pragma journal_mode').all()).toEqual([{ journal_mode: 'wal' }])
  })

  test("readers over the application's own handle wait too", async () => {
    const { database, file } = sqliteFile()
    const store = sqlStore(new Kysely({ dialect: new SqliteDialect({ database }) }))
    await store.migrate()
    const other = new Database(file)
    atEnd(async () => void other.close())
    other.exec('begin exclusive')
    const read = store.read([])
    await new Promise(setImmediate)
    other.exec('rollback')
    await expect(read).resolves.toMatchObject({ found: [] })
  })
})

describe('refused at start-up', () => {
  const unused = new Pool()
  const handle = new Database(':memory:')
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool: unused }) })
  const lite = new Kysely<unknown>({ dialect: new SqliteDialect({ database: handle }) })
  atEnd(async () => void handle.close())

  test.each([Number.NaN, '2s', 0, -1, 9, 1.5, Number.POSITIVE_INFINITY, 600_001, null, '2000', true])('a time-out of %p', (value) => {
    for (const name of ['readTimeoutMs', 'transactionTimeoutMs']) {
      const options = { [name]: value } as object
      const refusal = `${name} must be a whole number from 10 to 600000`
      for (const make of [() => postgresStore(unused, options), () => sqliteStore(handle, options), () => sqlStore(db, options)]) {
        expect(make).toThrow(expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining(refusal) }))
      }
    }
  })

  test.each([null, 'sqlite', 5, [], () => {}])('options of %p', (options) => {
    for (const make of [
      () => postgresStore(unused, options as object),
      () => sqliteStore(handle, options as object),
      () => sqlStore(db, options as object),
    ]) {
      expect(make).toThrow(expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining('are an object') }))
    }
  })

  test('options with other names', () => {
    expect(() => sqlStore(db, { readTimeoutMS: 1_000 } as object)).toThrow('Write "readTimeoutMs" instead.')
    expect(() => postgresStore(unused, { dialect: 'sqlite' } as object)).toThrow('The store has no option "dialect"')
    expect(() => sqlStore(db, { dialect: 'oracle' as 'sqlite' })).toThrow('dialect must be "postgres" or "sqlite" or "mysql", not oracle.')
    expect(() => sqlStore(db, { dialect: 'sqlite' })).toThrow('this Kysely instance speaks "postgres"')
  })

  test.each<readonly [string, unknown, string]>([
    ['a Client', new Client(), 'One client cannot serve'],
    ['a connection string', 'postgres://u:p4ssw0rd@db/d', 'postgresStore(new Pool({ connectionString }))'],
    ['a Kysely instance', db, 'sqlStore(db)'],
    ['an SQLite handle', handle, 'sqliteStore(database)'],
    ['the class', Pool, 'new Pool'],
    ['a configuration', { connectionString: 'postgres://u:p4ssw0rd@db/d' }, 'new Pool'],
    ['nothing', undefined, 'new Pool'],
    ['null', null, 'new Pool'],
  ])('postgresStore of %s', (_what, given, sentence) => {
    expect(messageOf(() => postgresStore(given as Pool))).toContain(sentence)
  })

  test('postgresStore of a client that a pool has lent', async () => {
    const { pool: admin } = await freshDatabase()
    const client = await admin.connect()
    expect(messageOf(() => postgresStore(client as unknown as Pool))).toContain('One client cannot serve')
    client.release()
  })

  test.each<readonly [string, unknown, string]>([
    ['a file name', '/tmp/keys.db', 'sqliteStore(new Database(file))'],
    ['a Kysely instance', lite, 'sqlStore(db)'],
    ['a Pool', unused, 'postgresStore(pool)'],
    ['a handle that calls back', { prepare() {}, exec() {}, each() {} }, 'better-sqlite3 style'],
    ['nothing', undefined, 'new Database(file)'],
  ])('sqliteStore of %s', (_what, given, sentence) => {
    expect(messageOf(() => sqliteStore(given as InstanceType<typeof Database>))).toContain(sentence)
  })

  test.each<readonly [string, unknown, string]>([
    ['a Pool', unused, 'postgresStore(pool)'],
    ['an SQLite handle', handle, 'sqliteStore(database)'],
    ['a connection string', 'postgres://u:p4ssw0rd@db/d', 'sqlStore(new Kysely({ dialect }))'],
    ['a dialect', new PostgresDialect({ pool: unused }), 'sqlStore(new Kysely({ dialect }))'],
    ['nothing', undefined, 'sqlStore(new Kysely({ dialect }))'],
  ])('sqlStore of %s', (_what, given, sentence) => {
    expect(messageOf(() => sqlStore(given as Kysely<unknown>))).toContain(sentence)
  })

  test('sqlStore of a transaction', async () => {
    await lite.transaction().execute(async (tx) => {
      expect(messageOf(() => sqlStore(tx))).toContain('not a transaction')
    })
    const controlled = await lite.startTransaction().execute()
    expect(messageOf(() => sqlStore(controlled))).toContain('not a transaction')
    await controlled.rollback().execute()
  })
})

/** Everything that a store is asked for, over HTTP and behind it; what is written behind fails no test by itself, so `onError` is heard. */
async function worksWith(store: Store): Promise<void> {
  const trouble: unknown[] = []
  const { keys, url } = await serve(store, { onError: (error) => void trouble.push(error) })
  const { key, secret } = await keys.create({
    as: 'application',
    ownerId: 'acme',
    name: 'n',
    scopes: ['a:b'],
    metadata: { aB: { c_d: '[1]' }, list: '[2]' },
  })
  expect(await verdict(url, secret)).toBe(200)
  const rotate = (): Promise<Answer> => call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
  const rotated = await rotate()
  expect(rotated.status).toBe(200)
  expect((await rotate()).body).toEqual(rotated.body)
  const renewed = (rotated.body as { secret: string }).secret
  expect(await Promise.all([verdict(url, secret), verdict(url, renewed)])).toEqual([401, 200])
  await store.recordUses([{ keyId: key.id, agoMs: 0, ip: '192.0.2.7', userAgent: 'a/1' }])
  await store.settleFirstUse('nothing')
  await store.settle('nothing', 0)
  expect((await keys.list({ ownerId: 'acme' })).items).toMatchObject([
    { id: key.id, generation: 2, scopes: ['a:b'], metadata: { aB: { c_d: '[1]' }, list: '[2]' }, lastUsedIp: '192.0.2.7' },
  ])
  expect((await store.events({ keyId: key.id, limit: 9 })).map(({ type }) => type)).toEqual(
    expect.arrayContaining(['key.created', 'key.rotated']),
  )
  expect((await call(`${url}/keys/${key.id}`, { secret: renewed })).status).toBe(403)
  await keys.close()
  expect(trouble).toEqual([])
}

/** What is waited for like a promise and is none, as libraries of promises and other realms give. */
function thenable<T>(promise: Promise<T>): PromiseLike<T> {
  // biome-ignore lint/suspicious/noThenProperty: that is what it is for
  return { then: (...listeners) => promise.then(...listeners) }
}

async function databaseWithRole(...settings: string[]): Promise<{ admin: Pool; role: string; url: string }> {
  const role = `r_${randomUUID().replaceAll('-', '')}`
  const server = new Client({ connectionString: process.env.TEST_POSTGRES_URL ?? '' })
  await server.connect()
  // Before the database, so that it is dropped after it.
  atEnd(async () => {
    await server.query(`drop role ${role}`)
    await server.end()
  })
  await server.query(`create role ${role} login password 'p'`)
  for (const setting of settings) await server.query(`alter role ${role} set ${setting}`)
  const { pool: admin, url } = await freshDatabase()
  return { admin, role, url: Object.assign(new URL(url), { username: role, password: 'p' }).href }
}

function pool(connectionString: string, config: PoolConfig = {}): Pool {
  const made = new Pool({ connectionString, ...config })
  atEnd(() => made.end())
  return made
}

async function session(from: Pool): Promise<Client> {
  const client = new Client({ connectionString: from.options.connectionString ?? '' })
  atEnd(() => client.end())
  await client.connect()
  return client
}

function kysely(own: Pool, plugins: KyselyPlugin[] = []): Kysely<unknown> {
  return new Kysely({ dialect: new PostgresDialect({ pool: own }), plugins })
}

function sqliteFile(options: Parameters<typeof sqliteStore>[1] = {}): {
  file: string
  database: InstanceType<typeof Database>
  store: Store
} {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-'))
  const file = join(folder, 'keys.db')
  const database = new Database(file)
  atEnd(async () => {
    if (database.open) database.close()
    rmSync(folder, { recursive: true })
  })
  return { file, database, store: sqliteStore(database, options) }
}

function replay(id: string): Parameters<Parameters<Parameters<Store['transaction']>[0]>[0]['insertReplay']>[0] {
  return {
    ...{ id, callerId: 'c', keyId: 'k', generation: null, fingerprint: 'f', sealed: null, createdAt: 1, expiresAt: 2 },
    ...{ settledAt: null, windowMs: 600_000, graceMs: 0 },
  }
}

function renamed(node: SelectQueryNode, name: string): SelectQueryNode {
  return { ...node, from: { kind: 'FromNode', froms: [TableNode.create(name)] } }
}

/** What a call that throws `invalid_option` says; nothing of a password. */
function messageOf(make: () => unknown): string {
  try {
    make()
  } catch (error) {
    expect((error as ApiKeyError).code).toBe('invalid_option')
    const { message } = error as ApiKeyError
    expect(message).not.toContain('p4ssw0rd')
    return message
  }
  throw new Error('It was taken.')
}
