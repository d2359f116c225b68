import type { Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { sqlStore } from 'express-api-keys/sql'
import { Kysely, PostgresDialect } from 'kysely'
import { Pool } from 'pg'
import type { Channel } from '../../../src/channel.js'
import { channelContract } from '../../support/channel-contract.js'
import { atEnd } from '../../support/cleanup.js'
import { freshDatabase, throughProxy } from '../../support/postgres.js'

channelContract('the channel of postgresStore', async () => {
  const { url } = await freshDatabase()
  const [one, two] = [await throughProxy(url), await throughProxy(url)]
  const stores = [postgresStore(one.pool), postgresStore(two.pool)] as const
  return {
    channel: channelOf(stores[0]),
    sibling: channelOf(stores[1]),
    async fail() {
      for (const { proxy } of [one, two]) proxy.refuse()
    },
    async close() {
      for (const store of stores) await store.close()
    },
  }
})

test('listens again by itself once its session was ended', async () => {
  const { url, pool: admin } = await freshDatabase()
  const [mine, theirs] = [channelOf(postgresStore(poolTo(url))), channelOf(postgresStore(admin))]
  const heard: string[] = []
  expect(await mine.listen(['here'], (message) => void heard.push(message))).toBeDefined()
  await endListeners(admin)
  await until(() => !mine.isOpen())
  await until(() => mine.isOpen())
  await theirs.send('here', 'again')
  await until(() => heard.includes('again'))
  await Promise.all([mine.close(), theirs.close()])
})

test('behind a pooler that gives each statement another session it does not open, and says so in time', async () => {
  const { pool } = await freshDatabase()
  const channel = channelOf(
    postgresStore({
      connect: (callback) =>
        callback(undefined, {
          query: (...args: Parameters<Pool['query']>) => pool.query(...args),
          release() {},
          on() {},
          removeListener() {},
        }),
    }),
  )
  const begun = performance.now()
  expect(await channel.listen(['here'], () => {})).toBeUndefined()
  expect(performance.now() - begun).toBeLessThan(3_000)
  expect(channel.isOpen()).toBe(false)
  await channel.close()
})

test('takes no connection before it listens, one while it does, and gives back none that listens', async () => {
  const { url, pool: admin } = await freshDatabase()
  const pool = poolTo(url)
  const store = postgresStore(pool)
  const channel = channelOf(store)
  expect(pool.totalCount).toBe(0)
  await channel.listen(['here', 'there'], () => {})
  expect(pool.totalCount - pool.idleCount).toBe(1)
  await store.close()
  await until(() => pool.totalCount === pool.idleCount)
  const { rows } = await admin.query(`select query from pg_stat_activity where datname = current_database() and query ilike '%listen%'
    and pid <> pg_backend_pid()`)
  expect(rows).toEqual([])
})

test('a pool too small to spare a connection is left to the store', async () => {
  const { url } = await freshDatabase()
  const pool = poolTo(url, 2)
  const store = postgresStore(pool)
  await store.migrate()
  const channel = channelOf(store)
  const listening = channel.listen(['here'], () => {})
  expect(await store.read([])).toMatchObject({ member: 'none' })
  expect(pool.totalCount).toBe(pool.idleCount)
  await channel.close()
  expect(await listening).toBeUndefined()
})

test('two databases of one server hear nothing of each other', async () => {
  const [one, two] = [await freshDatabase(), await freshDatabase()]
  const [mine, theirs] = [channelOf(postgresStore(one.pool)), channelOf(postgresStore(two.pool))]
  const heard: string[] = []
  for (const channel of [mine, theirs]) await channel.listen(['here'], (message) => void heard.push(message))
  await theirs.send('here', 'theirs')
  await mine.send('here', 'mine')
  await until(() => heard.includes('theirs') && heard.includes('mine'))
  expect(heard.sort()).toEqual(['mine', 'theirs'])
  await Promise.all([mine.close(), theirs.close()])
})

test('sqlStore has no channel, since no connection of a Kysely instance says what it hears', async () => {
  const { pool } = await freshDatabase()
  expect(sqlStore(new Kysely({ dialect: new PostgresDialect({ pool }) })).channel).toBeUndefined()
})

function channelOf(store: Store): Channel {
  const channel = store.channel?.()
  if (channel === undefined) throw new Error('The store has no channel.')
  return channel
}

function poolTo(connectionString: string, max = 10): Pool {
  const pool = new Pool({ connectionString, max })
  pool.on('error', () => {})
  atEnd(() => pool.end())
  return pool
}

async function endListeners(admin: Pool): Promise<void> {
  await admin.query(`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and query like 'listen%' and pid <> pg_backend_pid()`)
}

async function until(isSo: () => boolean): Promise<void> {
  const endsAt = performance.now() + 5_000
  while (!isSo()) {
    if (performance.now() > endsAt) throw new Error('It did not come to that.')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
