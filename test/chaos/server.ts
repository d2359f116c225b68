// A real process that serves keys, for the chaos runs. Its environment says over which PostgreSQL and Redis, and which promise it is to break.
import express, { type NextFunction, type Request, type Response } from 'express'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { redisCache } from '../../src/cache/redis/redis-cache.js'
import type { Channel } from '../../src/channel.js'
import { type Clock, systemClock } from '../../src/core/clock.js'
import { digestOf, secretFormat } from '../../src/core/secret.js'
import { type Actor, ApiKeyError, type ApiKeys, bearerAuth, createApiKeys, keyRouter, type Store, type Verified } from '../../src/index.js'
import { postgresStore } from '../../src/store/sql/postgres.js'
import type { AuthorityAnswer, StoreTransaction } from '../../src/store/store.js'
import { meter } from './meter.js'
import { plantedRecall } from './planted-recall.js'
import type { Plant } from './plants.js'
import { traps } from './traps.js'
import { messages, type Sent, type Trouble } from './troubled-channel.js'

const {
  STORE_URL = '',
  STORE_ID = '',
  REDIS_URL = '',
  PORT = '0',
  SERVER_SECRET = '',
  LEASE_MS = '250',
  READS_BODIES = '',
  RECALL = '1',
} = process.env
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

const { store: metered, recalled, time } = meter(leaseMs)
const steps = traps()
const mail = messages()
const planted = plantedRecall({ plant: PLANT, serverSecret: SERVER_SECRET, storeId: STORE_ID, leaseMs })

let current = instance()

const app = express()
app.use('/chaos', control())
app.use(time)
// What an application does that logs bodies, or counts their bytes.
if (READS_BODIES !== '') {
  app.use((req, _res, next) => {
    req.on('data', () => {})
    next()
  })
}
if (PLANT === 'body-after-await') app.use('/keys', anotherTurn)
app.use((req, res, next) => current.app(req, res, next))
app.listen(Number(PORT), '127.0.0.1', () => console.log('ready'))

/** A member of its own, over a store and a cache of its own. */
function instance(): { readonly keys: ApiKeys; readonly app: express.Express } {
  const store = steps.around('store', postgresStore(pool, { readTimeoutMs: 700, transactionTimeoutMs: 2_000 }))
  const keys = plantedKeys(
    createApiKeys({
      store: planted.store(plantedStore(metered(withTroubledChannel(store)))),
      cache: planted.cache(withTroubledChannel(steps.around('cache', redisCache(redis)))),
      clock: plantedClock(),
      serverSecret: SERVER_SECRET,
      leaseMs,
      recall: RECALL !== '0',
      waitForLease: PLANT !== 'no-wait',
      onError: (error) => {
        if (error.code === 'internal_error') console.error(error)
      },
    }),
  )
  keys.on('recalled', recalled)
  const app = express()
  // Every client has the same address and presents bad keys all the time: limits would end the run.
  app.use('/keys', keyRouter(keys, { limits: false, failuresPerMinute: false }))
  app.get('/whoami', bearerAuth(keys, { failuresPerMinute: false }), (req, res) => {
    res.json({ key: req.apiKey?.id, generation: req.apiKey?.generation })
  })
  return { keys, app }
}

function withTroubledChannel<Part extends { channel?(): Channel }>(part: Part): Part {
  if (part.channel === undefined) return part
  const channel = (): Channel => {
    const own = planted.channel(mail.through((part.channel as () => Channel)()))
    return {
      ...own,
      send: steps.aroundCall('channel.send', own.send),
      listen: (addresses, listener) => own.listen(addresses, steps.aroundCall('channel.hear', listener)),
    }
  }
  return Object.assign(Object.create(part) as Part, { channel })
}

/** How a run steers this process. */
function control(): express.Router {
  const router = express.Router()
  router.use(express.json({ limit: '10mb' }))
  router.post('/wall-clock', (req, res) => {
    skewMs = (req.body as { ms: number }).ms
    res.json({})
  })
  router.post('/trap', (req, res) => {
    steps.set((req.body as { trap?: Parameters<typeof steps.set>[0] }).trap)
    res.json(steps.met())
  })
  router.post('/messages', (req, res) => {
    const { trouble, library } = req.body as { trouble?: Trouble; library?: Sent[] }
    mail.set(trouble)
    mail.library.push(...(library ?? []))
    res.json({ met: mail.met(), library: mail.library.slice(-100) })
  })
  // Another instance takes the place of this one, as in an application that is loaded anew.
  router.post('/renew', (_req, res) => {
    const old = current
    current = instance()
    old.keys.close().then(
      () => res.json({}),
      (error: unknown) => res.status(500).json(String(error)),
    )
  })
  return router
}

function plantedKeys(inner: ApiKeys): ApiKeys {
  const plant = (methods: Partial<ApiKeys>): ApiKeys => Object.assign(Object.create(inner) as ApiKeys, methods)
  if (PLANT === 'regenerated-on-replay') {
    return plant({
      async rotate(command) {
        const issued = await inner.rotate(command)
        const { secret } = issued.replayed ? secretFormat('sk', true).mint('sk_live_') : issued
        return { ...issued, secret }
      },
    })
  }
  if (PLANT === 'active-only') {
    return plant({
      async rotate(command) {
        if ((await known(command.as))?.active === false) throw new ApiKeyError('invalid_key', 'The API key is not valid.')
        return inner.rotate(command)
      },
    })
  }
  if (PLANT === 'not-idempotent') {
    return plant({
      async rotate({ idempotencyKey: _, ...command }) {
        const id = command.id ?? (await known(command.as))?.id
        return id === undefined ? inner.rotate(command) : inner.rotate({ ...command, as: 'application', id })
      },
    })
  }
  if (PLANT === 'deadline-ignored') {
    const met = new Map<string, Verified>()
    return plant({
      peek: (secret) => inner.peek(secret) ?? met.get(secret),
      async verify(secret) {
        const result = await inner.verify(secret)
        if (!result.ok) return result
        met.set(secret, { ...result, live: () => true })
        return result
      },
    })
  }
  return inner
}

/** Whose secret it is that somebody presents, and whether it is the active one. */
async function known(as: Actor): Promise<{ id: string; active: boolean } | undefined> {
  if (typeof as !== 'object' || !('secret' in as)) return undefined
  const statement = 'select key_id as id, retired_at is null as active from express_api_key_generations where digest = $1'
  return (await pool.query<{ id: string; active: boolean }>(statement, [digestOf(as.secret)])).rows[0]
}

/** What a store would say that knows of nothing. */
const EMPTY: AuthorityAnswer = {
  ...{ at: 0, storeId: 'none', server: undefined, leaseMs, member: 'none', found: [] },
  feed: { seq: 0, tag: '', prunedTo: 0, tagAfter: undefined, changes: [] },
}

function plantedStore(store: Store): Store {
  const plant = (methods: Partial<Store>): Store => Object.assign(Object.create(store) as Store, methods)
  const transaction = (change: (tx: StoreTransaction) => Partial<StoreTransaction>): Store =>
    plant({ transaction: (work) => store.transaction((tx) => work({ ...tx, ...change(tx) })) })
  /** What the store says of how long changes have to wait, here and there. */
  const waiting = (changed: (ms: number) => number): Store =>
    Object.assign(
      transaction((tx) => ({ waitMs: async () => changed(await tx.waitMs()) })),
      {
        async members(...asked) {
          const found = await store.members(...asked)
          return { ...found, waitMs: changed(found.waitMs) }
        },
      } satisfies Partial<Store>,
    )
  switch (PLANT) {
    case 'longer-verifier-lease':
      return plant({ read: async (...asked) => ({ ...(await store.read(...asked)), leaseMs: leaseMs * 3 }) })
    case '401-on-store-down':
      return plant({ read: (...asked) => store.read(...asked).catch(() => ({ ...EMPTY, at: Date.now() })) })
    case 'stays-down': {
      let failed: Promise<never> | undefined
      return plant({
        read: (...asked) =>
          failed ??
          store.read(...asked).catch((error: unknown) => {
            failed = Promise.reject(error)
            return failed
          }),
      })
    }
    case 'grace-outlived':
      return plant({ read: async (...asked) => later(await store.read(...asked)) })
    case 'first-use-ignored':
      return plant({
        read: async (...asked) => unmarked(await store.read(...asked)),
        markFirstUse: async () => ({ retired: [], waitMs: 0 }),
      })
    case 'short-wait':
      return waiting((ms) => ms / 4)
    case 'wait-from-begin': {
      let lastMs = 0
      return Object.assign(
        waiting((ms) => Math.max(0, ms - lastMs)),
        {
          async transaction(work) {
            const began = performance.now()
            const outcome = await store.transaction(work)
            lastMs = performance.now() - began
            const { waitMs } = (outcome ?? {}) as { waitMs?: number }
            return waitMs === undefined ? outcome : { ...outcome, waitMs: Math.max(0, waitMs - lastMs) }
          },
        } satisfies Partial<Store>,
      )
    }
    case 'own-lease':
      return waiting(() => leaseMs)
    case 'not-recorded':
      return transaction(() => ({ insertReplay: async () => {} }))
    case 'record-not-read':
      return plant({ replays: async (ids) => ({ ...(await store.replays(ids)), found: [] }) })
    case 'count-replays': {
      const counting = pool.query('create table if not exists public.given (id text primary key, times int not null)').catch(() => {})
      const isSpent = async (id: string): Promise<boolean> => {
        await counting
        const statement = 'insert into public.given as g values ($1, 1) on conflict (id) do update set times = g.times + 1 returning times'
        return ((await pool.query<{ times: number }>(statement, [id])).rows[0]?.times ?? 0) > 5
      }
      return plant({
        async replays(ids) {
          const answer = await store.replays(ids)
          const found = answer.found.map(async ({ record, made }) => ({
            record: (await isSpent(record.id)) ? { ...record, sealed: null } : record,
            made,
          }))
          return { ...answer, found: await Promise.all(found) }
        },
      })
    }
    case 'early-lowering':
      return plant({
        async setLease(ms) {
          const change = await store.setLease(ms)
          await store.settleLease(change.version)
          return { ...change, waitMs: 0 }
        },
      })
    case 'settled-at-once':
      return transaction((tx) => ({ insertReplay: (row) => tx.insertReplay({ ...row, settledAt: row.createdAt }) }))
    default:
      return store
  }
}

/** What the router would do if it awaited something before it read a body. */
function anotherTurn(req: Request, _res: Response, next: NextFunction): void {
  setImmediate(() => {
    if (req.readableDidRead) {
      req.headers['content-length'] = '0'
      delete req.headers['transfer-encoding']
    }
    next()
  })
}

function later(answer: AuthorityAnswer): AuthorityAnswer {
  const found = answer.found.map(({ key, generation }) => {
    const { graceEndsAt } = generation
    return { key, generation: { ...generation, graceEndsAt: graceEndsAt === null ? null : graceEndsAt + 300 } }
  })
  return { ...answer, found }
}

function unmarked(answer: AuthorityAnswer): AuthorityAnswer {
  return { ...answer, found: answer.found.map(({ key, generation }) => ({ key, generation: { ...generation, retiresEarlier: false } })) }
}

function plantedClock(): Clock {
  return PLANT === 'wall-clock-lease' ? { ...systemClock, monotonicMs: () => Date.now() } : systemClock
}
