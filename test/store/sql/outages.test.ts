import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { sqliteStore } from 'express-api-keys/sqlite'
import Database from 'libsql'
import { Client, Pool, type PoolConfig } from 'pg'
import { atEnd } from '../../support/cleanup.js'
import { serve } from '../../support/instance.js'
import { startPostgres, startWithStandby } from '../../support/own-postgres.js'
import { freshDatabase, throughProxy } from '../../support/postgres.js'
import { smallDisk } from '../../support/small-disk.js'
import { type Answer, call, steady, verdict } from '../../support/traffic.js'

/** Well-formed, and known to nobody here. */
const STRANGER = `sk_live_${'0'.repeat(43)}1Vxh1Z`

test.each(['immediate', 'fast'] as const)(
  'P1, P2, P5: PostgreSQL restarted in mid-traffic (%s): answers are right or 503 with Retry-After, and all goes on by itself',
  async (how) => {
    const server = await startPostgres()
    const instances = await Promise.all([1, 2].map(() => serve(postgresStore(pool(server.url)))))
    const [one, other] = instances.map(({ url }) => url) as [string, string]
    const { keys } = instances[0] as (typeof instances)[number]
    const live = await keys.create({ as: 'application', ownerId: 'acme', name: 'live' })
    const { key, secret: first } = await keys.create({ as: 'application', ownerId: 'acme', name: 'rotated all the while' })
    const traffic = [one, other].flatMap((url) => [
      { right: 200, ...steady(() => polite(call(`${url}/data`, { secret: live.secret }))) },
      { right: 401, ...steady(() => polite(call(`${url}/data`, { secret: STRANGER }))) },
    ])
    const goesOn = (): Promise<unknown> => Promise.all(traffic.map(({ seen }) => seen(20)))

    let [secret, rotations, unsure, running] = [first, 0, 0, true]
    const rotating = (async () => {
      while (running) {
        const send = (): Promise<Answer> =>
          polite(call(`${rotations % 2 === 0 ? one : other}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: `k${rotations}` }))
        let answer = await send()
        for (; answer.status === 503; answer = await send()) {
          unsure++
          // As it was told to: a client in a hurry would meet its rate limit.
          await new Promise((resolve) => setTimeout(resolve, 1_000 * Number(answer.headers.get('retry-after'))))
        }
        expect(answer.status).toBe(200)
        const old = secret
        secret = secretOf(answer)
        rotations++
        for (const url of [one, other]) expect([401, 503]).toContain((await call(`${url}/data`, { secret: old })).status)
      }
    })()

    await goesOn()
    await server.stop(how)
    // More than a lease, so that nobody can go by one any more.
    await untilStatus(() => call(`${one}/data`, { secret: live.secret }), 503)
    await Promise.all([goesOn(), until(async () => unsure > 0)])
    await server.start()
    await untilStatus(() => call(`${one}/data`, { secret: live.secret }), 200)
    await goesOn()
    running = false
    await rotating
    for (const { stop, right } of traffic) {
      const seen = await stop()
      expect([...seen.keys()].filter((status) => status !== right && status !== 503)).toEqual([])
      expect(seen.get(right)).toBeGreaterThan(0)
    }
    expect((await keys.get(key.id))?.generation).toBe(rotations + 1)
    for (const url of [one, other]) expect(await verdict(url, secret)).toBe(200)
  },
)

test('an exhausted pool answers 503 in time, carries out nothing of it later, and serves again when it has connections', async () => {
  const database = await freshDatabase()
  const own = pool(database.url, { max: 2 })
  const { keys, url } = await serve(postgresStore(own, { readTimeoutMs: 300, transactionTimeoutMs: 600 }))
  const live = await keys.create({ as: 'application', ownerId: 'acme', name: 'live' })
  const rotated = await keys.create({ as: 'application', ownerId: 'acme', name: 'to be rotated' })
  expect(await verdict(url, rotated.secret)).toBe(200)
  const taken = [await own.connect(), await own.connect()]
  const release = (): void => {
    for (const client of taken.splice(0)) client.release()
  }
  atEnd(async () => release())
  const answers = await Promise.all([
    ...Array.from({ length: 50 }, () => call(`${url}/data`, { secret: live.secret })),
    ...Array.from({ length: 20 }, (_, n) =>
      call(`${url}/keys/self/rotate`, { method: 'POST', secret: rotated.secret, idempotencyKey: `k${n}` }),
    ),
  ])
  for (const answer of answers) refused(answer)
  // These ask nothing before their transactions, which therefore are what waits for a connection.
  const creations = await Promise.allSettled(
    Array.from({ length: 20 }, () => keys.create({ as: 'application', ownerId: 'acme', name: 'too late' })),
  )
  for (const outcome of creations) expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'store_unavailable' } })
  release()
  await untilStatus(() => call(`${url}/data`, { secret: live.secret }), 200)
  // Whatever was still queued has had its turn once these have had theirs.
  await Promise.all([own.query('select 1'), own.query('select 1')])
  expect((await keys.list({ ownerId: 'acme' })).items).toMatchObject([
    { name: 'to be rotated', generation: 1 },
    { name: 'live', generation: 1 },
  ])
  const after = await call(`${url}/keys/self/rotate`, { method: 'POST', secret: rotated.secret, idempotencyKey: 'k0' })
  expect(after.status).toBe(200)
})

test('a statement_timeout answers 503, and the connection serves on', async () => {
  const database = await freshDatabase()
  const own = pool(database.url, { statement_timeout: 200, max: 1 })
  const { keys, url } = await serve(postgresStore(own))
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const send = (): Promise<Answer> => call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
  const blocker = await session(database.url)
  const backend = async (): Promise<number> => (await own.query('select pg_backend_pid() as pid')).rows[0].pid
  const before = await backend()
  await blocker.query('begin')
  await blocker.query('lock table express_api_key_generations in access exclusive mode')
  for (const answer of await Promise.all([call(`${url}/data`, { secret }), call(`${url}/data`, { secret: STRANGER }), send()])) {
    refused(answer)
  }
  await blocker.query('rollback')
  expect(await verdict(url, secret)).toBe(200)
  expect([(await send()).status, (await keys.list({ ownerId: 'acme' })).items[0]?.generation]).toEqual([200, 2])
  expect(await backend()).toBe(before)
})

test('a row that somebody holds for ten seconds delays its own rotation only, which is told 503 meanwhile', async () => {
  const database = await freshDatabase()
  const { keys, url } = await serve(postgresStore(pool(database.url)), { leaseMs: 1_000 })
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'held' })
  const other = await keys.create({ as: 'application', ownerId: 'acme', name: 'other' })
  const rotate = (from: string, idempotencyKey: string): Promise<Answer> =>
    polite(call(`${url}/keys/self/rotate`, { method: 'POST', secret: from, idempotencyKey }))
  const holder = await session(database.url)
  await holder.query('begin')
  await holder.query('select 1 from express_api_keys where id = $1 for update', [key.id])
  const released = holder.query('select pg_sleep(10)').then(() => holder.query('rollback'))
  const reading = steady(() => call(`${url}/data`, { secret }))

  const client = (async () => {
    for (let refusals = 0; ; refusals++) {
      const since = performance.now()
      const answer = await rotate(secret, 'k')
      if (answer.status === 200) return { answer, refusals }
      refused(answer)
      expect(performance.now() - since).toBeLessThan(8_000)
    }
  })()
  const meanwhile = await rotate(other.secret, 'other')
  expect(meanwhile.status).toBe(200)
  // The held key is good until its rotation is answered.
  await released
  const { answer, refusals } = await client
  const statuses = await reading.stop()
  expect(refusals).toBeGreaterThanOrEqual(2)
  expect(statuses.get(200)).toBeGreaterThan(100)
  expect([...statuses.keys()].filter((status) => status !== 200 && status !== 401)).toEqual([])
  expect((await keys.get(key.id))?.generation).toBe(2)
  const verdicts = [secret, secretOf(answer)].map((each) => verdict(url, each))
  expect(await Promise.all(verdicts)).toEqual([401, 200])
})

test('P3: a standby that answers instead of the primary grants no lease, until it is promoted', async () => {
  const { primary, standby } = await startWithStandby()
  const way = await throughProxy(primary.url)
  const { keys, url } = await serve(postgresStore(way.pool))
  const direct = await serve(postgresStore(pool(primary.url)))
  const { key, secret: old } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const cold = await keys.create({ as: 'application', ownerId: 'acme', name: 'cold' })
  expect(await verdict(url, old)).toBe(200)

  const replica = await session(standby.url)
  const has = async (id: string, generation: number): Promise<boolean> => {
    const rows = replica.query('select 1 from express_api_key_generations where key_id = $1 and generation = $2', [id, generation])
    // The table has to get there first.
    return (await rows.catch(() => ({ rowCount: 0 }))).rowCount === 1
  }
  await until(() => has(cold.key.id, 1))
  // From here on it lags behind for good, and would say that the old secret is active.
  await replica.query('select pg_wal_replay_pause()')
  await until(async () => (await replica.query('select pg_get_wal_replay_pause_state() as it')).rows[0].it === 'paused')
  way.proxy.redirect(new URL(standby.url))
  const rotated = await call(`${direct.url}/keys/self/rotate`, { method: 'POST', secret: old, idempotencyKey: 'k' })
  expect(rotated.status).toBe(200)
  expect(await has(key.id, 2)).toBe(false)

  for (const secret of [old, secretOf(rotated), cold.secret, STRANGER]) refused(await call(`${url}/data`, { secret }))
  for (const [path, method] of [
    ['/keys/self/rotate', 'POST'],
    [`/keys/${cold.key.id}/revoke`, 'POST'],
    [`/keys/${cold.key.id}`, 'GET'],
  ]) {
    refused(await call(url + path, { method: method ?? '', secret: cold.secret, idempotencyKey: 'c' }))
  }

  await replica.query('select pg_wal_replay_resume()')
  await until(() => has(key.id, 2))
  await primary.stop('immediate')
  await replica.query('select pg_promote()')
  await untilStatus(() => call(`${url}/data`, { secret: cold.secret }), 200)
  expect(await verdict(url, old)).toBe(401)
  expect(await verdict(url, secretOf(rotated))).toBe(200)
  const replayed = await call(`${url}/keys/self/rotate`, { method: 'POST', secret: old, idempotencyKey: 'k' })
  expect([replayed.status, replayed.body]).toEqual([200, rotated.body])
  expect((await call(`${url}/keys/self/rotate`, { method: 'POST', secret: cold.secret, idempotencyKey: 'c' })).status).toBe(200)
})

test('another process that holds the write lock of SQLite makes rotations answer 503, and its death ends that', async () => {
  const { file, store } = sqliteFile(folderOf(), { transactionTimeoutMs: 500 })
  const { keys, url } = await serve(store)
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const cold = await keys.create({ as: 'application', ownerId: 'acme', name: 'cold' })
  const program = `new (require('libsql'))(${JSON.stringify(file)}).exec('begin immediate'); console.log('held'); setInterval(() => {}, 1000)`
  const holder = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] })
  const gone = once(holder, 'exit')
  atEnd(async () => holder.kill('SIGKILL'))
  await once(holder.stdout, 'data')
  const rotate = { method: 'POST', secret, idempotencyKey: 'k' }
  const answers = await Promise.all(Array.from({ length: 10 }, () => call(`${url}/keys/self/rotate`, rotate)))
  for (const answer of answers) refused(answer)
  for (const each of [secret, cold.secret]) expect(await verdict(url, each)).toBe(200)
  expect(await verdict(url, STRANGER)).toBe(401)
  holder.kill('SIGKILL')
  await gone
  const answer = await call(`${url}/keys/self/rotate`, rotate)
  expect(answer.status).toBe(200)
  expect((await keys.get(key.id))?.generation).toBe(2)
  expect(await verdict(url, secretOf(answer))).toBe(200)
})

const disk = smallDisk(32)
const fullDisks: readonly (readonly [what: string, make: () => Promise<{ store: Store; fill(): Promise<void>; free(): Promise<void> }>])[] =
  [
    [
      'PostgreSQL says disk_full',
      async () => {
        const database = await freshDatabase()
        return {
          store: postgresStore(database.pool),
          async fill() {
            await database.pool.query(`create function full_disk() returns trigger language plpgsql as
            $$ begin raise exception 'No space left on device' using errcode = 'disk_full'; end $$`)
            await database.pool.query(
              'create trigger full_disk before insert on express_api_key_replays for each row execute function full_disk()',
            )
          },
          free: async () => void (await database.pool.query('drop trigger full_disk on express_api_key_replays')),
        }
      },
    ],
    [
      'the SQLite file may not grow',
      async () => {
        const { store, database } = sqliteFile(folderOf())
        const limit = (pages: number): void => void database.prepare(`pragma max_page_count = ${pages}`).all()
        return { store, fill: async () => limit(1), free: async () => limit(1_000_000) }
      },
    ],
    ...(disk === undefined
      ? []
      : ([
          [
            'the disk of the SQLite file is full',
            async () => ({ store: sqliteFile(disk.folder).store, fill: async () => disk.fill(), free: async () => disk.free() }),
          ],
          [
            'the disk of the PostgreSQL tables is full',
            async () => {
              const { url } = await startPostgres()
              const admin = await session(url)
              await admin.query(`copy (select 1) to program 'cat >/dev/null; mkdir ${disk.folder}/tables'`)
              await admin.query(`create tablespace small location '${disk.folder}/tables'`)
              await admin.query('create database small tablespace small')
              const own = pool(Object.assign(new URL(url), { pathname: '/small' }).href)
              return { store: postgresStore(own), fill: async () => disk.fill(), free: async () => disk.free() }
            },
          ],
        ] as const)),
  ]

test.each(fullDisks)(
  'P1, P2: while %s, keys are good and rotations are told 503; with room again the retry succeeds',
  async (_what, make) => {
    const { store, fill, free } = await make()
    const { keys, url } = await serve(store)
    // Each answer that is kept takes up new pages, and cannot be compressed.
    const metadata = { ballast: randomBytes(5_500).toString('base64') }
    const { key, secret: first } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', metadata })
    const cold = await keys.create({ as: 'application', ownerId: 'acme', name: 'cold' })
    await fill()
    let [secret, rotations] = [first, 0]
    const send = (): Promise<Answer> => call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: `k${rotations}` })
    let answer = await send()
    // What was left in pages that the tables have already is soon used up.
    for (; answer.status === 200 && rotations < 50; answer = await send()) {
      secret = secretOf(answer)
      rotations++
    }
    refused(answer)
    refused(await send())
    for (const each of [secret, cold.secret]) expect(await verdict(url, each)).toBe(200)
    expect(await verdict(url, STRANGER)).toBe(401)
    expect((await keys.get(key.id))?.generation).toBe(rotations + 1)

    await free()
    const renewed = await send()
    expect([renewed.status, renewed.headers.get('idempotent-replayed')]).toEqual([200, null])
    expect((await send()).body).toEqual(renewed.body)
    expect((await keys.get(key.id))?.generation).toBe(rotations + 2)
    const verdicts = [secret, secretOf(renewed)].map((each) => verdict(url, each))
    expect(await Promise.all(verdicts)).toEqual([401, 200])
  },
)

function pool(connectionString: string, config: PoolConfig = {}): Pool {
  const made = new Pool({ connectionString, ...config })
  made.on('error', () => {})
  atEnd(() => made.end())
  return made
}

async function session(url: string): Promise<Client> {
  const client = new Client({ connectionString: url })
  client.on('error', () => {})
  atEnd(() => client.end())
  await client.connect()
  return client
}

function folderOf(): string {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-'))
  atEnd(async () => rmSync(folder, { recursive: true }))
  return folder
}

function sqliteFile(
  folder: string,
  options: Parameters<typeof sqliteStore>[1] = {},
): { file: string; database: InstanceType<typeof Database>; store: Store } {
  const file = join(folder, 'keys.db')
  const database = new Database(file)
  atEnd(async () => void database.close())
  return { file, database, store: sqliteStore(database, options) }
}

/** An answer, seen to say when to come back where it is 503. */
async function polite(sent: Promise<Answer>): Promise<Answer> {
  const answer = await sent
  if (answer.status === 503) expect(answer.headers.get('retry-after')).toBe('1')
  return answer
}

function refused({ status, headers, body }: Answer): void {
  expect([status, headers.get('retry-after'), (body as { code: string }).code]).toEqual([503, '1', 'store_unavailable'])
}

function untilStatus(send: () => Promise<Answer>, status: number): Promise<void> {
  return until(async () => (await send()).status === status)
}

async function until(isSo: () => Promise<boolean>): Promise<void> {
  while (!(await isSo())) await new Promise(setImmediate)
}

function secretOf({ body }: Answer): string {
  return (body as { secret: string }).secret
}
