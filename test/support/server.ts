// A process that serves keys, for tests that kill one or need two. Its environment names the store and Redis. The header `crash` of a
// request names the step at which the process is killed.
import type { AddressInfo } from 'node:net'
import express, { type Request, type Response } from 'express'
import express4 from 'express4'
import { Redis } from 'ioredis'
import Database from 'libsql'
import { createPool, type PoolConnection } from 'mysql2'
import { Pool } from 'pg'
import { redisCache } from '../../src/cache/redis/redis-cache.js'
import type { Channel } from '../../src/channel.js'
import { systemClock } from '../../src/core/clock.js'
import { type ApiKeysOptions, bearerAuth, contracts, createApiKeys, keyRouter, type Store } from '../../src/index.js'
import { type MysqlPool, mysqlStore } from '../../src/store/sql/mysql.js'
import { postgresStore } from '../../src/store/sql/postgres.js'
import { sqliteStore } from '../../src/store/sql/sqlite.js'
import { SOURCE } from './source.js'

const { STORE_URL = '', REDIS_URL, SERVER_SECRET = '', EXPRESS, CONTRACT = 'standard', OPTIONS = '{}', TRUST_PROXY } = process.env

let crashAt: string | undefined

const redis = REDIS_URL === undefined ? undefined : new Redis(REDIS_URL)
redis?.on('error', () => {})
const keys = createApiKeys({
  store: mortalStore(
    STORE_URL.startsWith('postgres:')
      ? postgresStore(mortalPool())
      : STORE_URL.startsWith('mysql:')
        ? mysqlStore(mortalMysqlPool())
        : sqliteStore(new Database(STORE_URL)),
  ),
  ...(redis === undefined ? {} : { cache: mortal('cache', redisCache(redis)) }),
  clock: { ...systemClock, sleep: mortalSleep },
  serverSecret: SERVER_SECRET,
  ...(JSON.parse(OPTIONS) as Partial<ApiKeysOptions>),
})
await keys.migrate()
const app = EXPRESS === '4' ? express4() : express()
if (TRUST_PROXY !== undefined) app.set('trust proxy', Number(TRUST_PROXY))
app.use(crashing)
app.use('/keys', keyRouter(keys, { contract: contracts[CONTRACT as keyof typeof contracts], from: SOURCE.source }))
app.use('/successors', keyRouter(keys, { contract: contracts.blendFi, from: SOURCE.source }))
app.get('/data', bearerAuth(keys, { from: SOURCE.source }), (req, res) => {
  res.json({ id: req.apiKey?.id })
})
app.get('/open', (_req, res) => {
  res.json({})
})
const server = app.listen(0, '127.0.0.1', () => {
  console.log(`ready ${(server.address() as AddressInfo).port}`)
})

/** Reads at which step to kill the process, and does so around the answer of that request. */
function crashing(req: Request, res: Response, next: () => void): void {
  crashAt = req.get('crash') ?? crashAt
  if (req.get('crash') === undefined) {
    next()
    return
  }
  const end = res.end.bind(res) as (body: string, done: () => void) => typeof res
  res.end = ((body: string) => {
    reached('before response.end')
    if (crashAt === 'amid response.end') return res.write(body.slice(0, body.length / 2), () => reached('amid response.end'))
    return end(body, () => reached('after response.end'))
  }) as typeof res.end
  reached('before request')
  next()
}

function reached(step: string): void {
  if (crashAt === step) process.kill(process.pid, 'SIGKILL')
}

/** The same part, which can be killed before and after each of its methods. */
function mortal<T extends object>(name: string, part: T): T {
  return new Proxy(part, {
    get(target, method) {
      const value: unknown = Reflect.get(target, method, target)
      if (typeof value !== 'function') return value
      return (...args: unknown[]) => {
        reached(`before ${name}.${String(method)}`)
        const result: unknown = value.apply(target, args)
        if (method === 'channel') return mortalChannel(result as Channel)
        if (result instanceof Promise) result.then(() => reached(`after ${name}.${String(method)}`)).catch(() => {})
        return result
      }
    },
  })
}

/** The same channel, in which the process can be killed before and after it hears a message, too. */
function mortalChannel(channel: Channel): Channel {
  const listen: Channel['listen'] = (addresses, listener) =>
    channel.listen(addresses, (message, address) => {
      reached('before channel.hear')
      listener(message, address)
      reached('after channel.hear')
    })
  return mortal('channel', { ...methodsOf(channel), listen })
}

function methodsOf(channel: Channel): Channel {
  return {
    name: channel.name,
    listen: (...args) => channel.listen(...args),
    send: (...args) => channel.send(...args),
    isOpen: () => channel.isOpen(),
    close: () => channel.close(),
  }
}

function mortalStore(store: Store): Store {
  const transaction: Store['transaction'] = (work) =>
    store.transaction(async (tx) => {
      reached('after begin')
      const result = await work(mortal('tx', tx))
      reached('before commit')
      if (crashAt === 'stall before commit') await stalled()
      return result
    })
  return mortal('store', Object.assign(Object.create(store) as Store, { transaction }))
}

/** Connections on which the process can be killed with COMMIT sent, and its answer not yet there. */
function mortalPool(): Pool {
  const pool = new Pool({ connectionString: STORE_URL })
  pool.on('error', () => {})
  pool.on('connect', (client) => {
    const query = client.query.bind(client) as (...args: unknown[]) => unknown
    // Notes of first uses are committed too, at about the same time.
    let recorded = false
    client.query = ((...args: unknown[]) => {
      const answer = query(...args)
      if (String(args[0]).includes('insert into "express_api_key_replays"')) recorded = true
      // A change goes out together with its COMMIT.
      if (recorded && /(^|; ?)commit$/.test(String(args[0]))) reached('amid commit')
      return answer
    }) as typeof client.query
  })
  return pool
}

function mortalMysqlPool(): MysqlPool {
  const pool = createPool({ uri: STORE_URL, connectionLimit: 20 })
  const getConnection: MysqlPool['getConnection'] = (callback) =>
    pool.getConnection((error, connection) => callback(error, connection && mortalConnection(connection)))
  return Object.assign(Object.create(pool) as MysqlPool, { getConnection })
}

/** The same connection, on which the process can be killed with COMMIT sent, and its answer not yet there. */
function mortalConnection(connection: PoolConnection): object {
  let recorded = false
  return {
    query(text: string, values: undefined, callback: () => void) {
      connection.query(text, values, callback)
      if (text.includes('insert into `express_api_key_replays`')) recorded = true
      if (recorded && text === 'commit') reached('amid commit')
    },
    release: () => connection.release(),
    destroy: () => connection.destroy(),
  }
}

/** Waits to be killed from outside. */
function stalled(): Promise<never> {
  console.log('stalled')
  return new Promise(() => {})
}

async function mortalSleep(ms: number): Promise<void> {
  reached('before sleep')
  if (crashAt === 'amid sleep') await systemClock.sleep(ms / 2)
  reached('amid sleep')
  await systemClock.sleep(ms)
}
