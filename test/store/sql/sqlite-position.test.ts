import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Store } from 'express-api-keys'
import { sqlStore } from 'express-api-keys/sql'
import { sqliteStore } from 'express-api-keys/sqlite'
import { Kysely, SqliteDialect } from 'kysely'
import Database from 'libsql'
import { atEnd } from '../../support/cleanup.js'
import { stores, type TestStore } from '../../support/stores.js'

/** Adds a change each time it is told to go on, and says when it is written and when it is committed. */
const OTHER_PROCESS = `
const Database = require('libsql')
const database = new Database(process.argv[1])
database.exec('pragma busy_timeout = 5000')
let isOpen = false
require('node:readline').createInterface({ input: process.stdin }).on('line', () => {
  if (!isOpen) database.exec("begin immediate; update express_api_key_feed set seq = seq + 1, tag = 't'; insert into express_api_key_changes select seq, tag, '', 1 from express_api_key_feed")
  else database.exec('commit')
  isOpen = !isOpen
  console.log(isOpen ? 'written' : 'committed')
})
console.log('ready')
`

test('P3: what another process commits is seen at once, every time, and never before', async () => {
  const { store, url } = await migrated()
  const other = spawn(process.execPath, ['-e', OTHER_PROCESS, url], { stdio: ['pipe', 'pipe', 'inherit'] })
  atEnd(async () => {
    if (other.exitCode !== null) return
    other.kill('SIGKILL')
    await once(other, 'exit')
  })
  const lines = createInterface({ input: other.stdout })[Symbol.asyncIterator]()
  const said = async (): Promise<string> => String((await lines.next()).value)
  expect(await said()).toBe('ready')
  for (let n = 0; n < 300; n++) {
    other.stdin.write('\n')
    expect([await said(), seqOf(store)]).toEqual(['written', n])
    other.stdin.write('\n')
    expect([await said(), seqOf(store)]).toEqual(['committed', n + 1])
  }
  await store.close()
})

test('P3: what the store itself is about to commit is not told before', async () => {
  const { url } = await migrated()
  const seen: (number | undefined)[] = []
  class Watched extends Database {
    override exec(source: string): this {
      if (source === 'commit') seen.push(seqOf(store))
      return super.exec(source)
    }
  }
  const own = new Watched(url)
  atEnd(async () => void own.close())
  const store = sqliteStore(own)
  for (let n = 0; n < 3; n++) await change(store)
  expect([seen, seqOf(store)]).toEqual([[0, 1, 2], 3])
  await store.close()
})

test('is told again once what was in the way is gone, and after the store was closed', async () => {
  const { store, query } = await makeStore()
  expect(seqOf(store)).toBeUndefined()
  await store.migrate()
  await until(() => seqOf(store) === 0)
  await query('alter table express_api_key_feed rename to elsewhere')
  expect(seqOf(store)).toBeUndefined()
  await query('alter table elsewhere rename to express_api_key_feed')
  await until(() => seqOf(store) === 0)
  await store.close()
  await change(store)
  expect(seqOf(store)).toBe(1)
  await store.close()
})

test('a lock that would have to be waited for is not waited for', async () => {
  const { store, url } = await migrated()
  expect(seqOf(store)).toBe(0)
  const other = new Database(url)
  atEnd(async () => void other.close())
  // In this mode of SQLite, whoever has the file has it alone: readers have to wait too.
  const alone = new Database(`${url}.alone`)
  atEnd(async () => void alone.close())
  const blocked = sqliteStore(alone)
  await blocked.migrate()
  await blocked.close()
  alone.exec('pragma journal_mode = delete; pragma locking_mode = exclusive; begin exclusive')
  const begun = performance.now()
  expect(seqOf(blocked)).toBeUndefined()
  expect(performance.now() - begun).toBeLessThan(1_000)
  alone.exec('rollback; pragma locking_mode = normal; select 1 from express_api_key_feed')
  await until(() => seqOf(blocked) === 0)
  await Promise.all([blocked.close(), store.close()])
})

test('a database that a second handle cannot see has no such position', async () => {
  const memory = new Database(':memory:')
  const temporary = new Database('')
  const { url } = await makeStore()
  const plain = new Database(url)
  atEnd(async () => {
    for (const each of [memory, temporary, plain]) each.close()
  })
  const wrapped = { prepare: (source: string) => plain.prepare(source), exec: (source: string) => plain.exec(source), close() {} }
  for (const store of [sqliteStore(memory), sqliteStore(temporary), sqliteStore(wrapped)]) {
    expect('currentPosition' in store).toBe(false)
    await store.migrate()
    await change(store)
    expect((await store.read([], { after: 0 })).feed.changes).toHaveLength(1)
  }
  expect(sqlStore(new Kysely({ dialect: new SqliteDialect({ database: plain }) })).currentPosition).toBeUndefined()
})

test('P3: a handle on which somebody else has a transaction open is not read from', async () => {
  const { store, url } = await migrated()
  const own = new Database(url)
  atEnd(async () => void own.close())
  const shared = sqliteStore(own)
  await change(shared)
  own.exec('begin; select * from express_api_key_feed')
  await change(store)
  for (const ask of [() => shared.read([]), () => shared.members(), () => shared.replays(['r'])]) {
    await expect(ask()).rejects.toMatchObject({ code: 'store_misconfigured', message: expect.stringContaining('in a transaction') })
  }
  expect(seqOf(shared)).toBe(2)
  own.exec('rollback')
  expect((await shared.read([])).feed.seq).toBe(2)
  await Promise.all([shared.close(), store.close()])
})

async function makeStore(): Promise<TestStore> {
  const made = await stores.find(([name]) => name === 'SQLite')?.[1]()
  if (made === undefined) throw new Error('There is no SQLite.')
  return made
}

async function migrated(): Promise<TestStore> {
  const made = await makeStore()
  await made.store.migrate()
  return made
}

function seqOf(store: Store): number | undefined {
  return store.currentPosition?.()?.seq
}

async function change(store: Store): Promise<void> {
  await store.transaction((tx) => tx.appendChange(['digest']))
}

async function until(isSo: () => boolean): Promise<void> {
  const endsAt = performance.now() + 5_000
  while (!isSo()) {
    if (performance.now() > endsAt) throw new Error('It did not come to that.')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
