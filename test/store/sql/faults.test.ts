import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { postgresStore } from 'express-api-keys/postgres'
import { sqliteStore } from 'express-api-keys/sqlite'
import Database from 'libsql'
import { Pool, type PoolClient } from 'pg'
import { atEnd } from '../../support/cleanup.js'
import { freshDatabase, throughProxy } from '../../support/postgres.js'

test('a connection lost before COMMIT was sent changes nothing, and says so', async () => {
  const { pool, url: direct } = await freshDatabase()
  const way = await throughProxy(direct)
  const store = postgresStore(way.pool)
  await store.migrate()
  const failed = store.transaction(async (tx) => {
    await tx.now()
    way.proxy.strike({ at: 'for share', fate: 'cut-at-answer', once: true })
    await tx.waitMs()
  })
  await expect(failed).rejects.toMatchObject({ code: 'store_unavailable' })
  await expect(store.read([])).resolves.toMatchObject({ found: [] })
  expect(
    (await pool.query("select 1 from pg_stat_activity where state like 'idle in transaction%' and datname = current_database()")).rowCount,
  ).toBe(0)
})

test('a session that is ended together with its greeting is a store that cannot be asked, and not the end of the process', async () => {
  const letter = (type: string, body: string): Buffer => {
    const length = Buffer.alloc(4)
    length.writeInt32BE(body.length + 4)
    return Buffer.concat([Buffer.from(type), length, Buffer.from(body)])
  }
  const [authenticated, ready] = [letter('R', '\0\0\0\0'), letter('Z', 'I')]
  const ended = letter('E', 'SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0')
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => socket.end(Buffer.concat([authenticated, ready, ended])))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const pool = new Pool({ host: '127.0.0.1', port: (server.address() as AddressInfo).port, user: 'u', password: 'p', database: 'd' })
  pool.on('error', () => {})
  atEnd(async () => {
    await pool.end()
    await new Promise((closed) => server.close(closed))
  })
  const store = postgresStore(pool)
  await expect(store.read([])).rejects.toMatchObject({ code: 'store_unavailable' })
  await expect(store.transaction((tx) => tx.now())).rejects.toMatchObject({ code: 'store_unavailable' })
})

test('a pool that promises its connections, as one that somebody wrapped does, is as good', async () => {
  const { pool } = await freshDatabase()
  const store = postgresStore({ connect: () => pool.connect() })
  await store.migrate()
  expect(await store.transaction((tx) => tx.now())).toBeGreaterThan(0)
  const away = postgresStore({ connect: async () => Promise.reject(new Error('away')) })
  await expect(away.read([])).rejects.toMatchObject({ code: 'store_unavailable' })
})

test('a black hole is given up in time, its connection is not used again, and nothing is committed later', async () => {
  const { pool, url: direct } = await freshDatabase()
  const way = await throughProxy(direct)
  const store = postgresStore(way.pool, { transactionTimeoutMs: 300, readTimeoutMs: 300 })
  await store.migrate()
  for (const direction of ['up', 'down'] as const) way.proxy.trouble(direction, { kind: 'swallow' })
  await expect(store.read([])).rejects.toMatchObject({ code: 'store_unavailable' })
  const late = store.transaction(async (tx) => {
    // Whoever ignores that a step failed still cannot get to COMMIT.
    await tx.now().catch(() => 0)
  })
  await expect(late).rejects.toMatchObject({ code: 'store_unavailable' })
  way.proxy.heal()
  await expect(store.read([])).resolves.toMatchObject({ found: [] })
  expect((await pool.query('select count(*)::int as n from express_api_keys')).rows).toEqual([{ n: 0 }])
})

test('another process that holds the write lock of SQLite is waited for without stopping the event loop', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-'))
  const [own, other] = [new Database(join(folder, 'keys.db')), new Database(join(folder, 'keys.db'))]
  atEnd(async () => {
    own.close()
    other.close()
    rmSync(folder, { recursive: true })
  })
  const store = sqliteStore(own)
  await store.migrate()
  other.exec('begin immediate')
  let turns = 0
  let done = false
  const waiting = store.setLease(500).then(() => {
    done = true
  })
  while (turns < 100) {
    turns++
    await new Promise(setImmediate)
  }
  expect(done).toBe(false)
  // Nor are a note in passing and what comes after it in each other's.
  const noted = store.markFirstUse('nobody')
  // Readers are not in its way.
  expect((await store.read([])).leaseMs).toBe(50)
  other.exec('rollback')
  await Promise.all([waiting, noted])
  expect((await store.read([])).leaseMs).toBe(500)
  await store.setLease(600)
})

test('P1: a transaction that was given up is never committed, however it goes on', async () => {
  const database = new Database(':memory:')
  atEnd(async () => database.close())
  const store = sqliteStore(database, { transactionTimeoutMs: 100 })
  await store.migrate()
  let goOn = (): void => {}
  const stalled = store.transaction(async (tx) => {
    await tx.appendEvent({
      id: 'e',
      keyId: 'k',
      ownerId: 'o',
      type: 'key.rotated',
      at: 1,
      actor: 'system',
      ip: null,
      userAgent: null,
      details: {},
    })
    await new Promise<void>((resolve) => {
      goOn = resolve
    })
  })
  await expect(stalled).rejects.toMatchObject({ code: 'store_unavailable' })
  goOn()
  expect(await store.events({ keyId: 'k', limit: 1 })).toEqual([])
})

test('tables that were never made are told apart from a database that is away', async () => {
  const { pool } = await freshDatabase()
  await expect(postgresStore(pool).read([])).rejects.toThrow('call keys.migrate() first')
  const away = new Pool({ connectionString: 'postgres://postgres@127.0.0.1:1/none' })
  await expect(postgresStore(away).read([])).rejects.toMatchObject({ code: 'store_unavailable', cause: { code: 'ECONNREFUSED' } })
})

test('P3: PostgreSQL reads the clock before it looks, or a lease would outlive what was committed in between', async () => {
  const { pool } = await freshDatabase()
  const store = postgresStore(pool, { readTimeoutMs: 60_000 })
  await store.migrate()
  const holder = await pool.connect()
  await holder.query('begin; lock table express_api_key_generations in access exclusive mode')
  const read = store.read(['d'])
  await aSessionWaits(pool)
  const { rows } = await pool.query<{ at: number }>('select extract(epoch from clock_timestamp())::float8 * 1000 as at')
  // Long enough to tell the two apart, at a clock that is read in whole milliseconds.
  await holder.query('select pg_sleep(0.02); commit')
  holder.release()
  expect((await read).at).toBeLessThanOrEqual(rows[0]?.at ?? 0)
})

test.each([
  ['off', 'on'],
  ['remote_apply', 'remote_apply'],
])('what a transaction has committed survives a crash: synchronous_commit %s becomes %s', async (set, used) => {
  const { pool, url } = await freshDatabase()
  await pool.query(`alter database ${new URL(url).pathname.slice(1)} set synchronous_commit = ${set}`)
  const later = new Pool({ connectionString: url })
  atEnd(() => later.end())
  const sessions: PoolClient[] = []
  later.on('acquire', (client) => sessions.push(client))
  const seen = await postgresStore(later).transaction(async () => {
    const { rows } = (await sessions.at(-1)?.query('show synchronous_commit')) ?? {}
    return rows
  })
  expect([seen, (await later.query('show synchronous_commit')).rows]).toEqual([
    [{ synchronous_commit: used }],
    [{ synchronous_commit: set }],
  ])
  expect(sessions[0]).toBe(sessions[1])
})

test('P3: a lease becomes no longer while a transaction is open that goes by the one before', async () => {
  const { pool } = await freshDatabase()
  const [store, sibling] = [postgresStore(pool, { transactionTimeoutMs: 60_000 }), postgresStore(pool)]
  await store.migrate()
  let changed = false
  let end = (): void => {}
  const open = new Promise<void>((resolve) => {
    end = resolve
  })
  let lease: Promise<void> = Promise.resolve()
  const waits = store.transaction(async (tx) => {
    const waitMs = await tx.waitMs()
    lease = sibling.setLease(9_000).then(() => {
      changed = true
    })
    await open
    return waitMs
  })
  try {
    await aSessionWaits(pool, () => changed)
    expect(changed).toBe(false)
  } finally {
    end()
  }
  expect(await waits).toBe(50)
  await lease
  expect((await store.read([])).leaseMs).toBe(9_000)
})

/** Resolves when a session waits for a lock, or when there is no more point in that. */
async function aSessionWaits(pool: Pool, over = (): boolean => false): Promise<void> {
  const end = performance.now() + 15_000
  while (!over()) {
    const { rowCount } = await pool.query("select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
    if (rowCount !== 0) return
    if (performance.now() > end) throw new Error('No session waits for a lock.')
  }
}
