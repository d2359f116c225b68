// A real process that serves keys, for tests that kill one or need two. Its environment says over which store and Redis.
import type { AddressInfo } from 'node:net'
import express from 'express'
import express4 from 'express4'
import { Redis } from 'ioredis'
import Database from 'libsql'
import { Pool } from 'pg'
import { type ApiKeysOptions, bearerAuth, contracts, createApiKeys, keyRouter, type Store } from '../../src/index.js'
import { postgresStore } from '../../src/postgres.js'
import { redisCache } from '../../src/redis.js'
import { sqliteStore } from '../../src/sqlite.js'

const { STORE_URL = '', REDIS_URL, SERVER_SECRET = '', EXPRESS, CRASH, CONTRACT = 'standard', OPTIONS = '{}' } = process.env

const store = STORE_URL.startsWith('postgres:')
  ? postgresStore(new Pool({ connectionString: STORE_URL }).on('error', () => {}))
  : sqliteStore(new Database(STORE_URL))
const redis = REDIS_URL === undefined ? undefined : new Redis(REDIS_URL)
redis?.on('error', () => {})
const keys = createApiKeys({
  store: crashing(store),
  ...(redis === undefined ? {} : { cache: redisCache(redis) }),
  secret: SERVER_SECRET,
  ...(JSON.parse(OPTIONS) as Partial<ApiKeysOptions>),
})
await keys.migrate()
const app = EXPRESS === '4' ? express4() : express()
app.use('/keys', keyRouter(keys, { contract: contracts[CONTRACT as keyof typeof contracts] }))
app.get('/data', bearerAuth(keys), (req, res) => {
  res.json({ id: req.apiKey?.id })
})
const server = app.listen(0, '127.0.0.1', () => {
  console.log(`ready ${(server.address() as AddressInfo).port}`)
})

/** The store, but for a SIGKILL where CRASH says: in a mutation with a replay record, right before COMMIT is sent or right after it is answered. */
function crashing(inner: Store): Store {
  if (CRASH === undefined) return inner
  return Object.assign(Object.create(inner) as Store, {
    async transaction(work: Parameters<Store['transaction']>[0]) {
      let recorded = false
      const result = await inner.transaction(async (tx) => {
        const answer = await work({
          ...tx,
          insertReplay(row) {
            recorded = true
            return tx.insertReplay(row)
          },
        })
        if (recorded && CRASH === 'before-commit') process.kill(process.pid, 'SIGKILL')
        return answer
      })
      if (recorded && CRASH === 'after-commit') process.kill(process.pid, 'SIGKILL')
      return result
    },
  })
}
