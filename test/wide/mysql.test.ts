import { type ApiKeyError, createApiKeys, type Store } from 'express-api-keys'
import { mysqlStore } from 'express-api-keys/mysql'
import { sqlStore } from 'express-api-keys/sql'
import { storeContract } from 'express-api-keys/testing'
import { Kysely, MysqlDialect } from 'kysely'
import { createConnection, createPool } from 'mysql2'
import { createPool as createPromisePool } from 'mysql2/promise'
import { atEnd } from '../support/cleanup.js'
import { cli } from '../support/cli.js'
import { freshMysql, mariadbServer } from '../support/mariadb.js'
import { SERVER_SECRET } from '../support/process.js'

storeContract({ describe, test }, 'mysqlStore on MariaDB, two stores on one database', async () => {
  const { pool } = await freshMysql()
  return { store: mysqlStore(pool), sibling: mysqlStore(pool), close: async () => {} }
})

storeContract({ describe, test }, "sqlStore over the application's own Kysely, MariaDB", async () => {
  const { pool } = await freshMysql()
  return { store: sqlStore(new Kysely({ dialect: new MysqlDialect({ pool }) })), close: async () => {} }
})

const codeOf = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => 'fine',
    (error: ApiKeyError) => [error.code, error.message],
  )

async function migrated(): Promise<{ url: string; store: Store }> {
  const { url, pool } = await freshMysql()
  const store = mysqlStore(pool)
  await store.migrate()
  return { url, store }
}

/** A store whose connections begin with these statements. */
function storeWith(url: string, ...first: string[]): Store {
  const pool = createPool({ uri: url, connectionLimit: 10 })
  pool.on('connection', (connection) => first.forEach((statement) => void connection.query(statement)))
  atEnd(() => pool.promise().end())
  return mysqlStore(pool)
}

test('a server has the same name until it is started again', async () => {
  const server = await mariadbServer()
  const admin = createConnection({ uri: server.url }).promise()
  await admin.query('create database keys_here')
  await admin.end()
  const pool = createPool({ uri: `${server.url}/keys_here` })
  const store = mysqlStore(pool)
  await store.migrate()
  const nameNow = async (): Promise<string | undefined> => (await store.read([])).server
  const before = await nameNow()
  expect([before, await nameNow()]).toEqual([expect.stringContaining(':'), before])
  // Two starts within one second are none.
  const startedBy = Date.now()
  while (Math.floor(Date.now() / 1_000) === Math.floor(startedBy / 1_000)) await store.read([])
  await server.kill()
  expect(await codeOf(store.read([]))).toEqual(['store_unavailable', expect.any(String)])
  await server.start()
  // Connections from before the end fail once each.
  for (let tries = 0; tries < 20 && (await codeOf(store.read([]))) !== 'fine'; tries++) {}
  const after = await nameNow()
  expect(after).toEqual(expect.stringContaining(':'))
  expect(after).not.toBe(before)
  await pool.promise().end()
  await server.close()
})

test('a server that is read only is a standby', async () => {
  const server = await mariadbServer()
  const admin = createConnection({ uri: server.url }).promise()
  await admin.query('create database keys_here')
  const pool = createPool({ uri: `${server.url}/keys_here` })
  const store = mysqlStore(pool)
  await store.migrate()
  await admin.query("create user replica identified by 'x'")
  await admin.query('grant all on keys_here.* to replica')
  await admin.query('set global read_only = 1')
  const replica = createPool({ uri: `${server.url.replace('root@', 'replica:x@')}/keys_here` })
  const standby = mysqlStore(replica)
  expect(await codeOf(standby.read([]))).toEqual(['store_unavailable', expect.stringContaining('standby')])
  expect(await codeOf(standby.setLease(2_000))).toEqual(['store_unavailable', expect.stringContaining('standby')])
  await admin.end()
  await Promise.all([pool.promise().end(), replica.promise().end()])
  await server.close()
})

test('a session that would show what is no longer so, or read text otherwise, is refused', async () => {
  const { url } = await migrated()
  for (const [statement, said] of [
    ['set autocommit = 0', 'sits in a transaction of somebody else'],
    ['set timestamp = 1700000000', 'sits in a transaction of somebody else'],
    ['set names latin1', 'latin1'],
  ] as const)
    expect([statement, await codeOf(storeWith(url, statement).read([]))]).toEqual([
      statement,
      ['store_misconfigured', expect.stringContaining(said)],
    ])
  // A session with an isolation of its own, and one that waits for locks for long, are put right for each transaction and back again.
  const other = storeWith(url, 'set session transaction isolation level serializable', 'set innodb_lock_wait_timeout = 77')
  expect(await codeOf(other.transaction((tx) => tx.now()))).toBe('fine')
})

test("sqlStore refuses a mode in which the driver's own text would be unsafe", async () => {
  const { url } = await migrated()
  const pool = createPool({ uri: url })
  pool.on('connection', (connection) => void connection.query("set sql_mode = 'NO_BACKSLASH_ESCAPES'"))
  atEnd(() => pool.promise().end())
  expect(await codeOf(sqlStore(new Kysely({ dialect: new MysqlDialect({ pool }) })).read([]))).toEqual([
    'store_misconfigured',
    expect.any(String),
  ])
})

test('what the session had is there again after a transaction, kept or not', async () => {
  const { url } = await migrated()
  const pool = createPool({ uri: url, connectionLimit: 1 })
  atEnd(() => pool.promise().end())
  await pool.promise().query('set innodb_lock_wait_timeout = 77, max_statement_time = 55')
  const store = mysqlStore(pool)
  await store.transaction((tx) => tx.lockName('a'))
  await codeOf(store.transaction(() => Promise.reject(new Error('no'))))
  const [rows] = await pool
    .promise()
    .query('select @@innodb_lock_wait_timeout as wait, @@max_statement_time as most, @@in_transaction as open')
  expect(rows).toEqual([{ wait: 77, most: 55, open: 0 }])
})

test('texts are told apart byte for byte, and come back as they were', async () => {
  const { pool } = await freshMysql()
  const keys = createApiKeys({ store: mysqlStore(pool), serverSecret: SERVER_SECRET })
  await keys.migrate()
  const owners = ['acme', 'Acme', 'acme ', 'ácme', 'acme\u0301', '😀', "a'; drop table express_api_keys; --", 'a\\', 'a\\"b', '%', '_']
  for (const ownerId of owners) await keys.create({ as: 'application', ownerId, name: ownerId, metadata: { ownerId } })
  for (const ownerId of owners) {
    const { items } = await keys.list({ ownerId })
    expect(items.map(({ ownerId: owner, name, metadata }) => [owner, name, metadata])).toEqual([[ownerId, ownerId, { ownerId }]])
  }
  expect((await keys.list({ name: 'ACME' })).items).toHaveLength(4)
  await keys.close()
})

test('no text becomes a statement, whatever the session takes backslashes for', async () => {
  const { pool } = await freshMysql()
  const keys = createApiKeys({ store: mysqlStore(pool), serverSecret: SERVER_SECRET })
  await keys.migrate()
  await keys.create({ as: 'application', ownerId: 'secret owner', name: 'n' })
  for (const mode of ['NO_BACKSLASH_ESCAPES', 'ANSI_QUOTES', 'PAD_CHAR_TO_FULL_LENGTH', 'PIPES_AS_CONCAT', '']) {
    // On connections that have been used before.
    const connections = await Promise.all(Array.from({ length: 10 }, () => pool.promise().getConnection()))
    for (const connection of connections) await connection.query(`set session sql_mode = '${mode}'`)
    for (const connection of connections) connection.release()
    for (const ownerId of ["y\\' or 1=1 -- \\", "' or 1=1 -- ", '" or 1=1 -- ', '\\', "?'?", '`?`', "/* ? */'"]) {
      expect((await keys.list({ ownerId })).items).toEqual([])
      const name = `of ${ownerId} in ${mode}`
      const { key } = await keys.create({ as: 'application', ownerId, name })
      expect((await keys.list({ ownerId })).items.map((one) => [one.id, one.ownerId, one.name])).toEqual([[key.id, ownerId, name]])
      await keys.update({ as: 'application', id: key.id, changes: { name: `${name}'s` } })
      expect((await keys.get(key.id))?.name).toBe(`${name}'s`)
      const { items } = await keys.list({ name: `${name}'S` })
      expect(items.map(({ id }) => id)).toEqual([key.id])
      await keys.update({ as: 'application', id: key.id, changes: { name: 'moved on' } })
      // So that the next mode finds no key of this owner.
      await pool.promise().query('delete from express_api_keys where id = ?', [key.id])
    }
  }
  await keys.close()
})

test('what is wrong with a connection is told in words that help', async () => {
  const { url, store } = await migrated()
  const at = (changed: string): Store => {
    const pool = createPool({ uri: changed })
    atEnd(() => pool.promise().end())
    return mysqlStore(pool)
  }
  expect(await codeOf(at(url.replace('root@', 'root:wrong@')).read([]))).toEqual([
    'store_misconfigured',
    expect.stringContaining('does not let the user in'),
  ])
  expect(await codeOf(at(`${url}x`).read([]))).toEqual(['store_misconfigured', expect.stringContaining('does not exist')])
  expect(await codeOf(at(url.replace(/:\d+\//, ':1/')).read([]))).toEqual(['store_unavailable', expect.any(String)])
  const { url: empty } = await freshMysql()
  expect(await codeOf(at(empty).read([]))).toEqual(['store_misconfigured', expect.stringContaining('keys.migrate()')])
  const admin = createConnection({ uri: url }).promise()
  await admin.query("create or replace user reader identified by 'x'")
  await admin.query('grant select on *.* to reader')
  const reader = at(url.replace('root@', 'reader:x@'))
  expect(await codeOf(reader.read([]))).toBe('fine')
  expect(await codeOf(reader.setLease(2_000))).toEqual(['store_misconfigured', expect.stringContaining('lacks a right')])
  await admin.query('drop user reader')
  await admin.end()
  expect(await codeOf(store.read([]))).toBe('fine')
})

test('mysqlStore takes a pool, with callbacks or promises, and nothing else', async () => {
  const { url } = await freshMysql()
  const pool = createPromisePool({ uri: url })
  atEnd(() => pool.end())
  const store = mysqlStore(pool as never)
  await store.migrate()
  expect((await store.read([])).feed.seq).toBe(0)
  const connection = createConnection({ uri: url })
  for (const [wrong, said] of [
    [undefined, 'mysqlStore takes a mysql2 pool'],
    [{}, 'mysqlStore takes a mysql2 pool'],
    [connection, 'One connection cannot serve requests'],
    [new Kysely({ dialect: new MysqlDialect({ pool: createPool({ uri: url }) }) }), 'goes to sqlStore(db)'],
  ] as const)
    expect(() => mysqlStore(wrong as never)).toThrow(said)
  await connection.promise().end()
})

test('the program of the page about MySQL keeps keys', async () => {
  const { url } = await freshMysql()
  Object.assign(process.env, { DATABASE_URL: url, API_KEYS_SECRET: SERVER_SECRET })
  const { keys, close } = await import('./mysql/keys.js')
  await keys.migrate()
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const { secret: fresh } = await keys.rotate({ as: { secret } })
  expect([(await keys.verify(secret)).ok, (await keys.verify(fresh)).ok]).toEqual([false, true])
  await close()
})

test('the command line keeps house on MariaDB, and its script makes the tables that migrate makes', async () => {
  const { url } = await freshMysql()
  const env = { DATABASE_URL: url, API_KEYS_SECRET: SERVER_SECRET }
  const ran = async (...args: string[]): Promise<unknown> => {
    const { code, stdout, stderr } = await cli([...args, '--json'], { env })
    expect([args, code, stderr]).toEqual([args, 0, expect.any(String)])
    return JSON.parse(stdout)
  }
  await ran('migrate')
  const { secret, key } = (await ran('create', '--owner', 'acme', '--name', 'ci')) as { secret: string; key: { id: string } }
  expect(secret).toMatch(/^sk_live_/)
  await ran('revoke', key.id, '--yes')
  expect(await ran('list', '--status', 'revoked')).toMatchObject({ items: [{ id: key.id }] })
  const { code, stdout } = await cli(['doctor', '--json'], { env })
  expect([code, stdout]).toEqual([0, expect.stringContaining('MySQL')])

  const { url: other, pool } = await freshMysql()
  const { statements } = (await cli(['migrate', '--sql', '--json'], { env: { DATABASE_URL: other } }).then(({ stdout: text }) =>
    JSON.parse(text),
  )) as {
    statements: string[]
  }
  const [tables] = await pool.promise().query('show tables')
  expect(tables).toEqual([])
  for (const statement of statements) await pool.promise().query(statement)
  const shapes = async (database: string): Promise<unknown> => {
    const [rows] = await pool.promise().query(
      `select table_name, column_name, column_type, collation_name, is_nullable, column_key from information_schema.columns
       where table_schema = ? order by table_name, ordinal_position`,
      [new URL(database).pathname.slice(1)],
    )
    return rows
  }
  expect(await shapes(other)).toEqual(await shapes(url))
  expect((await mysqlStore(pool).read([])).feed.seq).toBe(0)
})
