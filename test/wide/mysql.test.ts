import { type ApiKeyError, createApiKeys, type Store } from 'express-api-keys'
import { mysqlStore } from 'express-api-keys/mysql'
import { sqlStore } from 'express-api-keys/sql'
import { storeContract } from 'express-api-keys/testing'
import { Kysely, MysqlDialect } from 'kysely'
import { createConnection, createPool } from 'mysql2'
import { createPool as createPromisePool } from 'mysql2/promise'
import { atEnd } from '../support/cleanup.js'
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

test('a server has another name after a restart, and none until somebody has written', async () => {
  const server = await mariadbServer()
  const admin = createConnection({ uri: server.url }).promise()
  await admin.query('create database keys_here')
  await admin.end()
  const pool = createPool({ uri: `${server.url}/keys_here` })
  const store = mysqlStore(pool)
  await store.migrate()
  const nameNow = async (): Promise<string | undefined> => (await store.read([])).server
  const write = (): Promise<unknown> => store.transaction((tx) => tx.now())
  await write()
  const before = await nameNow()
  expect([before, await nameNow()]).toEqual([expect.stringContaining(':'), before])
  await server.kill()
  expect(await codeOf(store.read([]))).toEqual(['store_unavailable', expect.any(String)])
  await server.start()
  // Connections from before the end fail once each.
  for (let tries = 0; tries < 20 && (await codeOf(store.read([]))) !== 'fine'; tries++) {}
  expect(await nameNow()).toBeUndefined()
  await write()
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
    ["set sql_mode = concat(@@sql_mode, ',NO_BACKSLASH_ESCAPES')", 'NO_BACKSLASH_ESCAPES'],
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
