// The server that `soak.ts` keeps busy: real stores, no limits, and a route that says what it holds on to.
import type { AddressInfo } from 'node:net'
import express from 'express'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { redisCache } from '../../src/cache/redis/redis-cache.js'
import { bearerAuth, createApiKeys, keyRouter } from '../../src/index.js'
import { postgresStore } from '../../src/store/sql/postgres.js'

const { STORE_URL = '', REDIS_URL = '', SERVER_SECRET = '', OPTIONS = '{}' } = process.env

const keys = createApiKeys({
  store: postgresStore(new Pool({ connectionString: STORE_URL })),
  cache: redisCache(new Redis(REDIS_URL)),
  serverSecret: SERVER_SECRET,
  ...(JSON.parse(OPTIONS) as object),
})
await keys.migrate()
const app = express()
app.use('/keys', keyRouter(keys, { limits: false, failuresPerMinute: false }))
app.get('/data', bearerAuth(keys, { failuresPerMinute: false }), (req, res) => {
  res.json({ id: req.apiKey?.id })
})
app.get('/holds', (_req, res) => {
  globalThis.gc?.()
  const { heapUsed, rss } = process.memoryUsage()
  res.json({ heapUsed, rss, handles: process.getActiveResourcesInfo().length })
})
const server = app.listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port))
// A connection that is kept alive is never closed from here: a client that sends on it at that moment would take it for a failure.
server.keepAliveTimeout = 0
process.once('disconnect', () => process.exit())
