// A real process that serves keys, for the chaos runs. Its environment says over which PostgreSQL and Redis, and which promise it is to break.
import express from 'express'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import type { Cache } from '../../src/cache/cache.js'
import { type Clock, systemClock } from '../../src/core/clock.js'
import { hmac, subkey } from '../../src/core/replay.js'
import { bearerAuth, createApiKeys, keyRouter, type Store } from '../../src/index.js'
import { postgresStore } from '../../src/postgres.js'
import { redisCache } from '../../src/redis.js'
import type { Plant } from './plants.js'

const { STORE_URL = '', REDIS_URL = '', PORT = '0', SERVER_SECRET = '', LEASE_MS = '250' } = process.env
const PLANT = process.env.PLANT as Plant | undefined
const leaseMs = Number(LEASE_MS)

// Whoever started this holds the other end, and is gone when it closes.
process.stdin.on('end', () => process.exit()).resume()

// The administrator who sets the clock of this machine.
const trueNow = Date.now
let skewMs = 0
Date.now = () => trueNow() + skewMs

const pool = new Pool({ connectionString: STORE_URL, max: 12, connectionTimeoutMillis: 1_000 })
pool.on('error', () => {})
const redis = new Redis(REDIS_URL, { lazyConnect: true })
redis.on('error', () => {})

const keys = createApiKeys({
  store: plantedStore(postgresStore(pool, { readTimeoutMs: 700, transactionTimeoutMs: 2_000 })),
  cache: plantedCache(redisCache(redis)),
  clock: plantedClock(),
  secret: SERVER_SECRET,
  leaseMs,
  waitForLease: PLANT !== 'no-wait',
  onError: (error) => {
    if (error.code === 'internal_error') console.error(error)
  },
})

const app = express()
app.post('/chaos/wall-clock', (req, res) => {
  skewMs = Number(req.query.ms)
  res.end()
})
app.use('/keys', keyRouter(keys))
app.get('/whoami', bearerAuth(keys), (req, res) => {
  res.json({ key: req.apiKey?.id, generation: req.apiKey?.generation })
})
app.listen(Number(PORT), '127.0.0.1', () => console.log('ready'))

function plantedStore(store: Store): Store {
  const plant = (methods: Partial<Store>): Store => Object.assign(Object.create(store) as Store, methods)
  switch (PLANT) {
    case 'longer-verifier-lease':
      return plant({ read: async (digests) => ({ ...(await store.read(digests)), leaseMs: leaseMs * 3 }) })
    case '401-on-store-down':
      return plant({ read: (digests) => store.read(digests).catch(() => ({ at: Date.now(), leaseMs, found: [] })) })
    case 'no-replay':
      return plant({ transaction: (work) => store.transaction((tx) => work({ ...tx, replay: async () => undefined })) })
    case 'not-idempotent':
      return plant({
        transaction: (work) =>
          store.transaction((tx) =>
            work({
              ...tx,
              replay: async () => undefined,
              insertReplay: async () => {},
              async generation(digest) {
                const found = await tx.generation(digest)
                return found && { ...found, retiredAt: null }
              },
            }),
          ),
      })
    case 'active-only':
      return plant({
        transaction: (work) =>
          store.transaction((tx) =>
            work({
              ...tx,
              async generation(digest) {
                const found = await tx.generation(digest)
                return found?.retiredAt === null ? found : undefined
              },
            }),
          ),
      })
    case 'own-lease':
      return plant({ transaction: (work) => store.transaction((tx) => work({ ...tx, waitMs: async () => leaseMs })) })
    case 'settled-at-once':
      return plant({
        transaction: (work) =>
          store.transaction((tx) => work({ ...tx, insertReplay: (row) => tx.insertReplay({ ...row, settledAt: row.createdAt }) })),
      })
    default:
      return store
  }
}

function plantedCache(cache: Cache): Cache {
  if (PLANT !== 'lease-from-relay' && PLANT !== 'cache-clock-trusted') return cache
  const macKey = subkey(Buffer.from(SERVER_SECRET), 'cache entry')
  const granted = { grantedAt: Date.now() + 3_600_000 }
  return Object.assign(Object.create(cache) as Cache, {
    async get(digest: string) {
      const found = await cache.get(digest)
      const [kind, , body = ''] = found?.value?.split('.') ?? []
      if (found === undefined || kind !== 'a') return found
      const changes = PLANT === 'lease-from-relay' ? { ...granted, cacheExpiry: found.timeMs + leaseMs } : granted
      const entry = { ...(JSON.parse(Buffer.from(body, 'base64url').toString()) as object), ...changes }
      const content = Buffer.from(JSON.stringify(entry)).toString('base64url')
      return { ...found, value: `a.${hmac(macKey, ['a', digest, content])}.${content}` }
    },
    ...(PLANT === 'lease-from-relay'
      ? { fill: (digest: string, value: string, expiresAtMs: number) => cache.fill(digest, value, expiresAtMs + 1_000) }
      : {}),
  })
}

function plantedClock(): Clock {
  return PLANT === 'wall-clock-lease' ? { ...systemClock, monotonicMs: () => Date.now() } : systemClock
}
