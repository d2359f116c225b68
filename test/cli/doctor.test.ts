import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createApiKeys, legacyFormat } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { Client } from 'pg'
import { atEnd } from '../support/cleanup.js'
import { cli, configModule, ownFolder } from '../support/cli.js'
import { startWithStandby } from '../support/own-postgres.js'
import { freePort } from '../support/port.js'
import { freshDatabase, type TestDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'
import { redisServer } from '../support/redis-server.js'

interface Finding {
  readonly id: string
  readonly level: string
  readonly message: string
  readonly todo: string | null
}

interface Report {
  readonly code: number | null
  /** All but those that are well, as `level id`. */
  readonly found: readonly string[]
  readonly of: (id: string) => Finding | undefined
}

/** What doctor says, with these variables. The server of the tests does not sync to disk, which each report says. */
async function doctor(env: Record<string, string>, ...args: string[]): Promise<Report> {
  const { code, stdout, stderr } = await cli(['doctor', '--json', ...args], { env: { API_KEYS_SECRET: SERVER_SECRET, ...env } })
  if (stdout === '') throw new Error(`doctor said nothing: ${stderr}`)
  const { findings, ok } = JSON.parse(stdout) as { findings: Finding[]; ok: boolean }
  expect(ok).toBe(code === 0)
  // A sentence on what to do, with everything that is not well.
  for (const { level, todo } of findings) expect(todo === null).toBe(level === 'ok')
  return {
    code,
    found: findings.filter(({ level, id }) => level !== 'ok' && id !== 'durability').map(({ level, id }) => `${level} ${id}`),
    of: (id) => findings.find((one) => one.id === id && one.level !== 'ok'),
  }
}

async function migrated(): Promise<TestDatabase> {
  const database = await freshDatabase()
  await postgresStore(database.pool).migrate()
  return database
}

/** A role that may log in, and nothing else; and the way to the database as it. */
async function ownRole({ url, pool }: TestDatabase, more = ''): Promise<{ readonly role: string; readonly url: string }> {
  const role = `role_${Math.random().toString(36).slice(2)}`
  await pool.query(`create role ${role} login password 'of the role' ${more}`)
  atEnd(async () => {
    const client = new Client({ connectionString: process.env.TEST_POSTGRES_URL })
    await client.connect()
    await client.query(`drop owned by ${role}; drop role ${role}`).catch(() => {})
    await client.end()
  })
  return { role, url: Object.assign(new URL(url), { username: role, password: 'of the role' }).href }
}

const RIGHTS = 'grant select, insert, update, delete on all tables in schema public to'

test('where all is well it says so, for people and for scripts', async () => {
  const database = await migrated()
  const redis = await redisServer({ args: () => ['--maxmemory-policy', 'volatile-lru'] })
  atEnd(redis.close)
  const env = { DATABASE_URL: database.url, REDIS_URL: redis.url }
  expect(await doctor(env)).toMatchObject({ code: 0, found: [] })
  const { code, stdout } = await cli(['doctor'], { env: { ...env, API_KEYS_SECRET: SERVER_SECRET } })
  expect([code, stdout.replaceAll(/\d+\.\d+(\.\d+)?/g, 'N')]).toEqual([
    0,
    `ok       The server secret has 43 bytes.
ok       PostgreSQL N answers, as role postgres.
warning  The server loses what is committed when the power fails: a retired secret would work again.
         Set fsync to on (PostgreSQL), innodb_flush_log_at_trx_commit to 1 (MySQL), or synchronous to FULL (SQLite).
ok       The tables are at version 8, as this release needs them.
ok       No instance is running; the feed is at change 0.
ok       Redis N answers.

0 problems, 1 warning.
`,
  ])
  expect((await cli(['doctor', '--strict'], { env: { ...env, API_KEYS_SECRET: SERVER_SECRET } })).code).toBe(1)
})

describe('it finds', () => {
  test('no connection, a wrong password, and a database that is not there', async () => {
    const { url } = await migrated()
    const at = (changed: Partial<URL>): string => Object.assign(new URL(url), changed).href
    const [refused, password, name] = [
      await doctor({ DATABASE_URL: at({ port: String(await freePort()) }) }),
      await doctor({ DATABASE_URL: at({ password: 'wrong-and-not-to-be-shown' }) }),
      await doctor({ DATABASE_URL: at({ pathname: '/nowhere' }) }),
    ]
    expect([refused, password, name].map(({ code, found }) => [code, ...found])).toEqual([
      [1, 'problem connection'],
      [1, 'problem login'],
      [1, 'problem database_name'],
    ])
    expect(refused.of('connection')?.message).toContain('ECONNREFUSED')
    expect(JSON.stringify(password.of('login'))).not.toContain('wrong-and-not-to-be-shown')
  })

  test('a right that the role lacks, and says how to grant it', async () => {
    const database = await migrated()
    const { role, url } = await ownRole(database)
    await database.pool.query(
      `${RIGHTS} ${role}; revoke insert on express_api_keys from ${role}; revoke delete on express_api_key_changes from ${role}`,
    )
    const report = await doctor({ DATABASE_URL: url })
    expect(report).toMatchObject({ code: 1, found: ['problem rights', 'problem rights'] })
    expect(report.of('rights')).toMatchObject({
      message: 'The role lacks INSERT on express_api_keys.',
      todo: `Run, as the owner of the tables: GRANT INSERT ON express_api_keys TO ${role}`,
    })
    await database.pool.query(`grant insert on express_api_keys to ${role}; grant delete on express_api_key_changes to ${role}`)
    expect(await doctor({ DATABASE_URL: url })).toMatchObject({ code: 0, found: [] })
  })

  test('a schema that the role may not use', async () => {
    const database = await migrated()
    const { role, url } = await ownRole(database)
    await database.pool.query(`${RIGHTS} ${role}; revoke usage on schema public from public`)
    const report = await doctor({ DATABASE_URL: url })
    expect(report).toMatchObject({ code: 1, found: ['problem schema_usage'] })
    expect(report.of('schema_usage')?.todo).toBe(`Run, as the owner of the tables: GRANT USAGE ON SCHEMA public TO ${role}`)
  })

  test('row-level security that hides rows', async () => {
    const database = await migrated()
    const { role, url } = await ownRole(database)
    await database.pool.query(`${RIGHTS} ${role}; alter table express_api_keys enable row level security`)
    expect((await doctor({ DATABASE_URL: url })).found).toContain('problem row_security')
  })

  test('tables that are missing, older and newer, and one that was dropped', async () => {
    const empty = await freshDatabase()
    expect(await doctor({ DATABASE_URL: empty.url })).toMatchObject({ code: 1, found: ['problem tables_missing'] })
    const { url, pool } = await migrated()
    const found = async (statement: string): Promise<readonly string[]> => {
      await pool.query(statement)
      return (await doctor({ DATABASE_URL: url })).found
    }
    expect(await found('delete from express_api_key_migrations where version = 8')).toEqual(['problem tables_behind'])
    expect(await found('insert into express_api_key_migrations values (8, 0), (99, 0)')).toEqual(['problem tables_ahead'])
    expect(await found('delete from express_api_key_migrations where version = 99; drop table express_api_key_events')).toEqual([
      'problem tables_missing',
    ])
  })

  test('a standby', async () => {
    const { primary, standby } = await startWithStandby()
    const { code } = await cli(['migrate'], { env: { DATABASE_URL: primary.url } })
    expect(code).toBe(0)
    expect((await doctor({ DATABASE_URL: primary.url })).found).toEqual([])
    expect(await doctor({ DATABASE_URL: standby.url })).toMatchObject({ code: 1, found: expect.arrayContaining(['problem standby']) })
  })

  test('defaults of isolation and of writing that are not those of PostgreSQL', async () => {
    const database = await migrated()
    const { role, url } = await ownRole(database)
    await database.pool.query(`${RIGHTS} ${role}; alter role ${role} set default_transaction_isolation = 'serializable';
      alter role ${role} set default_transaction_read_only = on`)
    const report = await doctor({ DATABASE_URL: url })
    expect(report.found).toEqual(['warning isolation', 'warning read_only'])
    expect(report.of('isolation')?.todo).toContain(`ALTER ROLE ${role} RESET default_transaction_isolation`)
  })

  test('sessions that sit in a transaction already', async () => {
    const { url } = await migrated()
    const config = await configModule(`
      import { createApiKeys } from 'express-api-keys'
      import { postgresStore } from 'express-api-keys/postgres'
      import { Pool } from 'pg'
      const pool = new Pool({ connectionString: '${url}', max: 20 })
      pool.on('connect', (client) => void client.query('begin'))
      export const keys = createApiKeys({ store: postgresStore(pool), serverSecret: '${SERVER_SECRET}' })`)
    expect((await doctor({}, '--config', config)).found).toContain('problem autocommit')
  })

  test('an encoding that is not UTF-8', async () => {
    const { pool, url } = await freshDatabase()
    const name = `latin_${Math.random().toString(36).slice(2)}`
    await pool.query(`create database ${name} encoding 'LATIN1' locale 'C' template template0`)
    atEnd(() => pool.query(`drop database ${name} with (force)`))
    const report = await doctor({ DATABASE_URL: Object.assign(new URL(url), { pathname: `/${name}` }).href })
    expect(report.found).toEqual(expect.arrayContaining(['problem encoding']))
    expect(report.of('encoding')?.message).toBe('The database is encoded in LATIN1, and cannot hold every name.')
  })

  test('clocks that are apart', async () => {
    const { url } = await migrated()
    const clockBy = (ms: number): string => {
      const file = join(ownFolder(), 'clock.mjs')
      writeFileSync(file, `const { now } = Date\nDate.now = () => now() + ${ms}\n`)
      return `--import ${file}`
    }
    const behind = await doctor({ DATABASE_URL: url, NODE_OPTIONS: clockBy(-5_000) })
    expect(behind).toMatchObject({ code: 0, found: ['warning clock'] })
    expect(behind.of('clock')?.message).toMatch(/^The clock of the database is [45]\.\d s ahead of that of this machine\.$/)
    expect(await doctor({ DATABASE_URL: url, NODE_OPTIONS: clockBy(90_000) })).toMatchObject({ code: 1, found: ['problem clock'] })
  })

  test('a pool, or a limit of connections, that is too small', async () => {
    const database = await migrated()
    const { role, url } = await ownRole(database, 'connection limit 4')
    await database.pool.query(`${RIGHTS} ${role}`)
    expect((await doctor({ DATABASE_URL: url })).found).toEqual(['warning connection_limit'])
    const config = await configModule(`
      import { createApiKeys } from 'express-api-keys'
      import { postgresStore } from 'express-api-keys/postgres'
      import { Pool } from 'pg'
      const pool = new Pool({ connectionString: '${database.url}', max: 3 })
      export default () => createApiKeys({ store: postgresStore(pool), serverSecret: '${SERVER_SECRET}', leaseMs: 2_000 })`)
    const report = await doctor({}, '--config', config)
    expect(report.found).toEqual(['warning pool_size', 'warning lease'])
    expect(report.of('pool_size')?.todo).toBe('Make the pool larger: new Pool({ max: 11 }).')
  })

  test('a Redis that cannot be reached, wants a password, or drops entries at random', async () => {
    const { url } = await migrated()
    const random = await redisServer({ args: () => ['--maxmemory-policy', 'allkeys-random'] })
    const locked = await redisServer({ args: () => ['--requirepass', 'of-the-server'] })
    const full = await redisServer({ args: () => ['--maxmemory', '100mb', '--maxmemory-policy', 'noeviction'] })
    for (const one of [random, locked, full]) atEnd(one.close)
    const found = async (redis: string) => doctor({ DATABASE_URL: url, REDIS_URL: redis })
    const gone = await found(`redis://127.0.0.1:${await freePort()}`)
    expect(gone).toMatchObject({ code: 1, found: ['problem redis'] })
    expect(gone.of('redis')?.message).toContain('ECONNREFUSED')
    expect(await found(locked.url)).toMatchObject({ code: 1, found: ['problem redis'] })
    expect(await found(random.url)).toMatchObject({ code: 1, found: ['problem redis_eviction'] })
    expect(await found(full.url)).toMatchObject({ code: 0, found: ['warning redis_eviction'] })
  })

  test('prefixes that hide each other, and keys with a prefix that nobody takes', async () => {
    const { url, pool } = await migrated()
    const legacyFormats = [legacyFormat({ match: /old_.+/ })]
    const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, prefix: 'parcel', legacyFormats })
    await keys.create({ as: 'application', ownerId: 'acme', name: 'ci' })
    // One that was issued elsewhere begins with nothing that is known.
    await keys.import([{ hash: 'a'.repeat(64), ownerId: 'acme', name: 'old' }])
    await keys.close()
    const env = { DATABASE_URL: url }
    const hiding = await doctor(env, '--prefix', 'parcel', '--accepted-prefix', 'parcel_live')
    expect(hiding).toMatchObject({ code: 1, found: ['problem prefixes'] })
    expect(hiding.of('prefixes')?.message).toBe(
      'The prefixes parcel and parcel_live hide each other: a secret that begins with parcel_live_ may be of either.',
    )
    const strange = await doctor(env)
    expect(strange).toMatchObject({ code: 0, found: ['warning prefix_unknown'] })
    expect(await doctor(env, '--accepted-prefix', 'parcel')).toMatchObject({ code: 0, found: [] })
  })

  test('a server secret that is too short or missing, in the environment or a module', async () => {
    const { url } = await migrated()
    const short = await doctor({ DATABASE_URL: url, API_KEYS_SECRET: 'a-secret-of-only-31-bytes-xxxxx' })
    expect(short).toMatchObject({ code: 1, found: ['problem server_secret'] })
    expect(short.of('server_secret')).toMatchObject({ todo: expect.stringContaining('openssl rand -base64 32') })
    expect(await doctor({ DATABASE_URL: url, API_KEYS_SECRET: '' })).toMatchObject({ found: ['problem server_secret'] })
    const config = await configModule(`
      import { createApiKeys, memoryStore } from 'express-api-keys'
      export const keys = createApiKeys({ store: memoryStore(), serverSecret: 'short' })`)
    expect(await doctor({}, '--config', config)).toMatchObject({ code: 1, found: ['problem server_secret'] })
  })

  test('instances that run, that were not heard any more, and that listen where this side cannot speak', async () => {
    const { url, pool } = await migrated()
    const redis = await redisServer()
    atEnd(redis.close)
    const store = postgresStore(pool)
    await store.join({ session: 'one', mode: 'recall', channels: ['postgres'] })
    expect(await doctor({ DATABASE_URL: url })).toMatchObject({ code: 0, found: [] })
    await store.join({ session: 'two', mode: 'recall', channels: ['redis'] })
    await store.join({ session: 'three', mode: 'feed', channels: [] })
    await store.join({ session: 'four', mode: 'recall', channels: ['postgres'] })
    await store.revokeMembers(['four'])
    const report = await doctor({ DATABASE_URL: url })
    expect(report).toMatchObject({
      code: 0,
      found: ['warning instances_silent', 'warning instances_reading', 'warning instances_unreached'],
    })
    expect(report.of('instances_unreached')?.message).toMatch(/^Instances that only redis reaches: 1\. /)
    expect((await doctor({ DATABASE_URL: url, REDIS_URL: redis.url })).found).not.toContain('warning instances_unreached')
  })

  test('a feed of changes from which rows were deleted', async () => {
    const { url, pool } = await migrated()
    const store = postgresStore(pool)
    for (const digest of ['one', 'two', 'three']) await store.transaction((tx) => tx.appendChange([digest]))
    expect((await doctor({ DATABASE_URL: url })).found).toEqual([])
    await pool.query('delete from express_api_key_changes where seq = 2')
    expect(await doctor({ DATABASE_URL: url })).toMatchObject({ code: 1, found: ['problem feed'] })
  })

  test('an SQLite file that is none, or is not there', async () => {
    const folder = ownFolder()
    writeFileSync(join(folder, 'text.db'), 'This is a text, and long enough to be taken for the header of a file of SQLite.'.repeat(40))
    expect(await doctor({ DATABASE_URL: `sqlite:${folder}/text.db` })).toMatchObject({ code: 1, found: ['problem file'] })
    expect(await doctor({ DATABASE_URL: `sqlite:${folder}/none.db` })).toMatchObject({ code: 1, found: ['problem tables_missing'] })
  })
})
