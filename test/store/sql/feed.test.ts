import { randomBytes, randomUUID } from 'node:crypto'
import { copyFileSync } from 'node:fs'
import type { Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { sqlStore } from 'express-api-keys/sql'
import { sqliteStore } from 'express-api-keys/sqlite'
import { Kysely, PostgresDialect } from 'kysely'
import Database from 'libsql'
import { Client, Pool } from 'pg'
import { atEnd } from '../../support/cleanup.js'
import { freshDatabase, throughProxy } from '../../support/postgres.js'
import { COMMIT } from '../../support/proxy.js'
import { stores } from '../../support/stores.js'

describe.each(stores)('the feed on %s', (_name, makeStore) => {
  test('a gap is refused where a reader would pass over it, and nowhere else', async () => {
    const { store, query } = await makeStore()
    await store.migrate()
    for (let n = 0; n < 5; n++) await change(store)
    await query('delete from express_api_key_changes where seq = 3')
    for (const after of [0, 1, 2]) {
      await expect(store.read([], { after })).rejects.toMatchObject({
        code: 'store_misconfigured',
        message: expect.stringContaining('gap'),
      })
    }
    for (const after of [3, 4, 5, undefined]) expect((await store.read([], { after })).feed.seq).toBe(5)
    await query('delete from express_api_key_changes where seq = 5')
    await expect(store.read([], { after: 4 })).rejects.toMatchObject({ code: 'store_misconfigured' })
  })

  test('without its row nothing is read, and no change is committed', async () => {
    const { store, query } = await makeStore()
    await store.migrate()
    await query('delete from express_api_key_feed')
    await expect(store.read([])).rejects.toMatchObject({ code: 'store_misconfigured', message: expect.stringContaining('keys.migrate()') })
    await expect(store.members()).rejects.toMatchObject({ code: 'store_misconfigured' })
    const unheard = store.transaction(async (tx) => {
      await tx.insertReplay(replay('unheard'))
      await tx.appendChange([digest()])
    })
    await expect(unheard).rejects.toMatchObject({ code: 'internal_error' })
    expect(await store.transaction((tx) => tx.replay(['unheard']))).toBeUndefined()
  })

  test('an instance that does not know the protocol of the others is refused, and told what to install', async () => {
    const { store, query } = await makeStore()
    await store.migrate()
    await query('update express_api_key_settings set protocol = 2')
    const refused = { code: 'store_misconfigured', message: expect.stringContaining('protocol 2, and this release knows 1') }
    await expect(store.read([])).rejects.toMatchObject(refused)
    await expect(store.read([digest()])).rejects.toMatchObject(refused)
    await expect(store.replays(['r'])).rejects.toMatchObject(refused)
    await expect(store.members()).rejects.toMatchObject(refused)
    await expect(store.setLease(70)).rejects.toMatchObject(refused)
    await expect(store.transaction((tx) => tx.waitMs())).rejects.toMatchObject(refused)
  })

  test('keeps the newest 10,000 changes, of those older than ten minutes the newest 1,000, and says what is gone', async () => {
    const { store, query } = await makeStore()
    await store.migrate()
    await query(`insert into express_api_key_changes (seq, tag, digests, at)
      with recursive n (i) as (select 1 union all select i + 1 from n where i < 12000) select i, 'tag', '', 9000000000000 from n`)
    await query(`update express_api_key_feed set seq = 12000, tag = 'tag'`)
    const left = async (): Promise<readonly number[]> => {
      await store.pruneFeed()
      const [row] = await query<{ first: unknown; rows: unknown }>(
        'select min(seq) as first, count(*) as rows from express_api_key_changes',
      )
      return [Number(row?.first), Number(row?.rows), (await store.read([])).feed.prunedTo]
    }
    expect(await left()).toEqual([2_001, 10_000, 2_000])
    const { changes } = (await store.read([], { after: 2_000 })).feed
    expect([changes.length, changes.at(-1)?.seq]).toEqual([1_000, 3_000])
    await query('update express_api_key_changes set at = 0 where seq <= 2500')
    expect(await left()).toEqual([2_501, 9_500, 2_500])
    await query('update express_api_key_changes set at = 0')
    expect(await left()).toEqual([11_001, 1_000, 11_000])
    expect((await store.read([], { after: 5 })).feed).toMatchObject({ seq: 12_000, prunedTo: 11_000, tagAfter: undefined, changes: [] })
    expect((await store.read([], { after: 11_000 })).feed.changes).toHaveLength(1_000)
    await change(store)
    expect(await left()).toEqual([11_002, 1_000, 11_001])
  })

  test('a change that the database refuses takes the whole transaction back', async () => {
    const { store, query } = await makeStore()
    await store.migrate()
    await query('alter table express_api_key_changes rename to elsewhere')
    const failed = store.transaction(async (tx) => {
      await tx.insertReplay(replay('r'))
      await tx.appendChange([digest()])
    })
    await expect(failed).rejects.toMatchObject({ code: 'store_misconfigured' })
    await query('alter table elsewhere rename to express_api_key_changes')
    expect(await store.transaction((tx) => tx.replay(['r']))).toBeUndefined()
    await change(store)
    expect((await store.read([], { after: 0 })).feed.seq).toBe(1)
  })
})

describe('a database that was restored', () => {
  test('has other tags from then on, on PostgreSQL', async () => {
    const { url } = await freshDatabase()
    const pool = poolTo(url)
    const store = postgresStore(pool)
    await store.migrate()
    await change(store)
    // A database is copied while nobody is connected to it.
    await pool.end()
    const copy = `t_${randomUUID().replaceAll('-', '')}`
    const server = new Client({ connectionString: process.env.TEST_POSTGRES_URL ?? '' })
    await server.connect()
    await server.query(`create database ${copy} template ${new URL(url).pathname.slice(1)}`)
    const pools = [poolTo(url), poolTo(Object.assign(new URL(url), { pathname: `/${copy}` }).href)]
    atEnd(async () => {
      await pools[1]?.end()
      await server.query(`drop database ${copy} with (force)`)
      await server.end()
    })
    await partWays(pools.map((each) => postgresStore(each)))
  })

  test('has other tags from then on, on SQLite', async () => {
    const { store, url } = await sqlite()
    await store.migrate()
    await change(store)
    const copy = `${url}.copy`
    const outside = new Database(url)
    outside.exec('pragma wal_checkpoint(truncate)')
    outside.close()
    copyFileSync(url, copy)
    const restored = new Database(copy)
    atEnd(async () => void restored.close())
    await partWays([store, sqliteStore(restored)])
  })

  async function partWays(both: readonly Store[]): Promise<void> {
    const feeds = []
    for (const store of both) {
      await change(store)
      const [one, two] = [(await store.read([], { after: 1 })).feed, (await store.read([], { after: 2 })).feed]
      feeds.push({ seq: one.seq, shared: one.tagAfter, own: two.tagAfter })
    }
    const [original, copy] = feeds
    expect([original?.seq, original?.shared]).toEqual([copy?.seq, copy?.shared])
    expect(original?.own).not.toBe(copy?.own)
  }
})

describe('PostgreSQL', () => {
  test('P3: a session that sits in a transaction and shows what was is refused', async () => {
    const { pool: admin, url } = await freshDatabase()
    await postgresStore(admin).migrate()
    for (const [level, refused] of [
      ['repeatable read', true],
      ['serializable', true],
      ['read committed', false],
    ] as const) {
      const client = new Client({ connectionString: url })
      await client.connect()
      atEnd(() => client.end())
      await client.query(`begin isolation level ${level}; select pg_sleep(0.06)`)
      const store = postgresStore({ connect: (callback) => callback(undefined, Object.assign(client, { release() {} })) })
      for (const ask of [() => store.read([]), () => store.read([digest()]), () => store.members(), () => store.replays(['r'])]) {
        if (!refused) await ask()
        else await expect(ask()).rejects.toMatchObject({ code: 'store_misconfigured', message: expect.stringContaining('autocommit') })
      }
    }
  })

  test('a default of REPEATABLE READ is no trouble, since each statement is a transaction of its own', async () => {
    const { pool: admin, url } = await freshDatabase()
    await admin.query(`alter database ${new URL(url).pathname.slice(1)} set default_transaction_isolation = 'repeatable read'`)
    const pool = poolTo(url)
    const store = postgresStore(pool)
    await store.migrate()
    await pool.query('select pg_sleep(0.06)')
    await change(store)
    expect((await store.read([], { after: 0 })).feed.changes).toHaveLength(1)
  })

  test('names the server by its start and timeline; where the role may not ask, it goes on without, for good', async () => {
    const { pool, url } = await freshDatabase()
    const role = `r_${randomUUID().replaceAll('-', '')}`
    await pool.query(`create role ${role} login password 'p'`)
    atEnd(async () => {
      const server = new Client({ connectionString: process.env.TEST_POSTGRES_URL ?? '' })
      await server.connect()
      await server.query(`drop role ${role}`)
      await server.end()
    })
    // Ends before the database, and that before the role: what is registered last ends first.
    const { pool: admin, url: own } = await freshDatabase()
    const named = postgresStore(admin)
    await named.migrate()
    const { server } = await named.read([])
    expect(server).toMatch(/^\d{16}:0000000\d$/)
    expect((await named.members()).server).toBe(server)
    expect(
      await postgresStore(pool)
        .migrate()
        .then(() => postgresStore(pool).read([])),
    ).toMatchObject({ server })

    await admin.query(`grant select, insert, update, delete on all tables in schema public to ${role};
      revoke execute on function pg_walfile_name(pg_lsn) from public`)
    const store = postgresStore(poolTo(Object.assign(new URL(own), { username: role, password: 'p' }).href))
    expect(url).not.toBe(own)
    for (const answer of [await store.read([]), await store.read([digest()]), await store.members()]) expect(answer.server).toBeUndefined()
    await admin.query('grant execute on function pg_walfile_name(pg_lsn) to public')
    expect((await store.read([])).server).toBeUndefined()
  })

  test('row-level security hides no change and no member in silence', async () => {
    const role = `r_${randomUUID().replaceAll('-', '')}`
    atEnd(async () => {
      const server = new Client({ connectionString: process.env.TEST_POSTGRES_URL ?? '' })
      await server.connect()
      await server.query(`drop role ${role}`)
      await server.end()
    })
    const { pool: admin, url } = await freshDatabase()
    await postgresStore(admin).migrate()
    await change(postgresStore(admin))
    await admin.query(
      `create role ${role} login password 'p'; grant select, insert, update, delete on all tables in schema public to ${role}`,
    )
    const store = postgresStore(poolTo(Object.assign(new URL(url), { username: role, password: 'p' }).href))
    const hidden = (table: string): object => ({
      code: 'store_misconfigured',
      message: expect.stringContaining(`Row-level security hides rows of ${table} from this role`),
    })
    await admin.query('alter table express_api_key_changes enable row level security')
    await expect(store.read([], { after: 0 })).rejects.toMatchObject(hidden('express_api_key_changes'))
    await expect(change(store)).rejects.toMatchObject(hidden('express_api_key_changes'))
    await admin.query(`alter table express_api_key_changes disable row level security;
      alter table express_api_key_instances enable row level security`)
    await expect(store.members()).rejects.toMatchObject(hidden('express_api_key_instances'))
    await expect(store.join({ session: 's', mode: 'recall', channels: [] })).rejects.toMatchObject(hidden('express_api_key_instances'))
    await admin.query(`alter table express_api_key_instances disable row level security;
      alter table express_api_key_feed enable row level security`)
    await expect(store.read([])).rejects.toMatchObject(hidden('express_api_key_feed'))
    await expect(store.members()).rejects.toMatchObject(hidden('express_api_key_feed'))
  })

  test('a change that cannot get its number in time is not committed, and nobody is left in doubt', async () => {
    const { pool } = await freshDatabase()
    const makers = [postgresStore(pool), sqlStore(new Kysely({ dialect: new PostgresDialect({ pool }) }))]
    await makers[0]?.migrate()
    const holder = await pool.connect()
    await holder.query('begin; select 1 from express_api_key_feed for update')
    // One after the other: who waits behind another waits twice, and meets the limit of a statement first.
    for (const store of makers) {
      await expect(change(store)).rejects.toMatchObject({ code: 'store_unavailable', cause: { code: '55P03' } })
    }
    await holder.query('rollback')
    holder.release()
    for (const store of makers) await change(store)
    expect((await makers[0]?.read([], { after: 0 }))?.feed.changes).toHaveLength(2)
  })

  test('P1: a connection that is cut when the change and its COMMIT were sent leaves the outcome open', async () => {
    const { pool, url } = await freshDatabase()
    const way = await throughProxy(url)
    const store = postgresStore(way.pool)
    await store.migrate()
    for (const [fate, seq] of [
      ['cut-request', 0],
      ['cut-at-answer', 1],
    ] as const) {
      way.proxy.strike({ at: COMMIT, fate, once: true })
      await expect(change(store)).rejects.toMatchObject({ code: 'outcome_unknown' })
      expect((await postgresStore(pool).read([])).feed.seq).toBe(seq)
    }
  })
})

function digest(): string {
  return randomBytes(32).toString('base64url')
}

async function change(store: Store): Promise<void> {
  await store.transaction((tx) => tx.appendChange([digest()]))
}

async function sqlite(): Promise<Awaited<ReturnType<(typeof stores)[number][1]>>> {
  const made = await stores.find(([name]) => name === 'SQLite')?.[1]()
  if (made === undefined) throw new Error('There is no SQLite.')
  return made
}

function poolTo(connectionString: string): Pool {
  const pool = new Pool({ connectionString })
  pool.on('error', () => {})
  atEnd(async () => {
    if (!pool.ended) await pool.end()
  })
  return pool
}

function replay(id: string): Parameters<Parameters<Parameters<Store['transaction']>[0]>[0]['insertReplay']>[0] {
  return {
    ...{ id, callerId: 'c', keyId: 'k', generation: null, fingerprint: 'f', sealed: null, createdAt: 1, expiresAt: 2 },
    ...{ settledAt: null, windowMs: 600_000, graceMs: 0 },
  }
}
