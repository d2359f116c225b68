// The rows of the table: each is a server that answers `{"ok":true}` on /data, behind another door. It shows those in `names.mjs`.
import { createSecretKey, hash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { apiKey } from '@better-auth/api-key'
import bcrypt from 'bcrypt'
import { betterAuth } from 'better-auth'
import { memoryAdapter } from 'better-auth/adapters/memory'
import express5 from 'express'
import bearerToken from 'express-bearer-token'
import { expressjwt } from 'express-jwt'
import express4 from 'express4'
import { Redis } from 'ioredis'
import jwt from 'jsonwebtoken'
import Database from 'libsql'
import { Passport } from 'passport'
import { Strategy as BearerStrategy } from 'passport-http-bearer'
import pg from 'pg'
import { bearerAuth, createApiKeys, memoryStore, postgresStore, redisCache, sqliteStore } from './built.mjs'
import { countingReads, mintSecrets, mistyped, SCOPE, SERVER_SECRET } from './keys.mjs'
import { knowing } from './packages.mjs'
import { freshDatabase } from './services.mjs'

/**
 * @import { RequestListener } from 'node:http'
 * @import { Request, RequestHandler } from 'express'
 * @import { SecondaryStorage } from 'better-auth'
 * @import { ApiKeys, ApiKeysOptions } from '../src/core/api-keys.js'
 * @import { BearerAuthOptions } from '../src/http/bearer-auth.js'
 * @import { Store } from './keys.mjs'
 */

/** @typedef {{ POSTGRES_URL: string, REDIS_URL: string, LEASE_MS: string | undefined, CONFIG: string | undefined }} Env */
/** @typedef {{ reads?: number, digests?: number, misses?: number, relays?: number }} Counts */
/** @typedef {{ listener: RequestListener, tokens: string[], counts?: () => Counts }} Started */

/**
 * @typedef {object} Row
 * @property {string} name for `--only`
 * @property {string} title
 * @property {string} [baseline] the row of the same app with an empty middleware; default: the mean of the two of Express 5
 * @property {number} [connections] default as `--connections` says
 * @property {number} [status] default 200
 * @property {(env: Env) => Promise<Started>} start
 */

const unchecked = mintSecrets(1)
/** As few secrets as a process can be told to know. */
const few = knowing({ createApiKeys, memoryStore }, 100)
/** @type {RequestHandler} */
const empty = (_req, _res, next) => next()
/** @type {RequestHandler} */
const ok = (_req, res) => void setImmediate(() => res.json({ ok: true }))

/** @type {readonly Row[]} */
export const rows = [
  {
    name: 'http',
    title: 'node:http',
    async start() {
      const body = JSON.stringify({ ok: true })
      const headers = { 'content-type': 'application/json; charset=utf-8', 'content-length': Buffer.byteLength(body) }
      return { tokens: unchecked, listener: (_req, res) => res.writeHead(200, headers).end(body) }
    },
  },
  { name: 'express', title: 'Express 5, no middleware', start: async () => ({ tokens: unchecked, listener: express5().get('/data', ok) }) },
  { name: 'empty', title: 'Express 5, empty middleware (A)', start: async () => ({ tokens: unchecked, listener: app(empty) }) },
  { name: 'empty-again', title: 'Express 5, empty middleware (A again)', start: async () => ({ tokens: unchecked, listener: app(empty) }) },
  {
    name: 'empty-later',
    title: 'Express 5, empty middleware, a turn of the event loop later',
    // What a door that has to wait for an answer would cost if the answer were free: its own floor. Express 5 likes it better so.
    start: async () => ({ tokens: unchecked, listener: app((_req, _res, next) => void setImmediate(next)) }),
  },
  {
    name: 'empty4',
    title: 'Express 4, empty middleware',
    baseline: 'empty4',
    start: async () => ({ tokens: unchecked, listener: app(empty, express4) }),
  },

  // Ours, set up as README.md says: PostgreSQL, Redis, a scope.
  { name: 'local', title: '**ours, local lease**', start: (env) => ours(env) },
  // Keys that take turns, as many as a process of a busy service meets in a second or two. Renewed more than once while they are measured.
  { name: 'thousand', title: '**ours, 1,000 keys in turn**', start: (env) => ours(env, { count: 1_000 }) },
  { name: 'local4', title: '**ours, local lease**, Express 4', baseline: 'empty4', start: (env) => ours(env, { framework: express4 }) },
  {
    name: 'relay',
    title: '**ours, lease relayed by Redis**',
    // 200 keys take turns and the process keeps 100 leases, the last granted: none is left when its turn comes. With the longest
    // lease there is, next to all of them come from Redis.
    start: (env) => ours(env, { count: 200, options: { ...few, leaseMs: 60_000 } }),
  },
  {
    name: 'postgres',
    title: '**ours, PostgreSQL at every request**',
    // The same, with no Redis to relay them. Reads that are asked for together are made together, so there are fewer than requests.
    start: (env) => ours(env, { count: 200, cached: false, options: few }),
  },
  {
    name: 'sqlite',
    title: '**ours, SQLite at every request**',
    start: (env) => ours(env, { count: 200, cached: false, store: sqlite, options: few }),
  },
  {
    name: 'malformed',
    title: '**ours, refuses a mistyped secret**',
    status: 401,
    start: (env) => ours(env, { tokens: async (_keys, secrets) => secrets.map(mistyped) }),
  },
  {
    name: 'unknown',
    title: '**ours, refuses an unknown secret**',
    status: 401,
    start: (env) => ours(env, { tokens: async () => mintSecrets(1) }),
  },
  {
    name: 'unknown-new',
    title: '**ours, refuses unknown secrets, each another one**',
    status: 401,
    // Twice as many as a process remembers.
    start: (env) => ours(env, { auth: { failuresPerMinute: false }, tokens: async () => mintSecrets(20_000) }),
  },
  {
    name: 'retired',
    title: '**ours, refuses a rotated secret**',
    status: 401,
    start: (env) =>
      ours(env, {
        async tokens(keys, secrets) {
          for (const secret of secrets) await keys.rotate({ as: { secret } })
          return secrets
        },
      }),
  },

  // What people write by hand: SHA-256 of the secret, one GET, the record as JSON.
  { name: 'get', title: 'by hand: SHA-256 + ioredis GET', start: (env) => byHand(env, false) },
  { name: 'get-pipelined', title: 'by hand: SHA-256 + ioredis GET, auto-pipelining', start: (env) => byHand(env, true) },
  {
    name: 'passport',
    title: 'passport-http-bearer over the same GET, auto-pipelining',
    async start(env) {
      const { tokens, find } = await recordsInRedis(env, true)
      const passport = new Passport()
      passport.use(
        new BearerStrategy((token, done) => {
          find(token).then((record) => done(null, record ?? false, { scope: SCOPE }), done)
        }),
      )
      return { tokens, listener: app(passport.authenticate('bearer', { session: false })) }
    },
  },

  // A signed token says itself who comes, and cannot be taken back. The key as a KeyObject: as a string it is parsed at each request.
  {
    name: 'express-jwt',
    title: 'express-jwt, HS256',
    async start() {
      const { tokens, secret } = signed()
      return { tokens, listener: app(expressjwt({ secret, algorithms: ['HS256'] })) }
    },
  },
  {
    name: 'jsonwebtoken',
    title: 'by hand: jsonwebtoken, HS256',
    async start() {
      const { tokens, secret } = signed()
      return {
        tokens,
        listener: app((req, res, next) => {
          const authenticated = /** @type {{ auth?: unknown }} */ (req)
          try {
            authenticated.auth = jwt.verify(bearer(req) ?? '', secret, { algorithms: ['HS256'] })
          } catch {
            res.status(401).end()
            return
          }
          next()
        }),
      }
    },
  },
  {
    name: 'better-auth-redis',
    title: 'better-auth API keys, Redis',
    async start({ REDIS_URL }) {
      const redis = new Redis(REDIS_URL, { enableAutoPipelining: true })
      return throughBetterAuth({
        get: (key) => redis.get(key),
        set: (key, value, ttl) => (ttl ? redis.set(key, value, 'EX', ttl) : redis.set(key, value)),
        delete: (key) => redis.del(key),
      })
    },
  },
  {
    name: 'better-auth-memory',
    title: 'better-auth API keys, in memory',
    async start() {
      /** @type {Map<string, string>} */
      const map = new Map()
      return throughBetterAuth({
        get: (key) => map.get(key) ?? null,
        set: (key, value) => void map.set(key, value),
        delete: (key) => void map.delete(key),
      })
    },
  },
  {
    name: 'bcrypt',
    title: 'express-bearer-token + bcrypt (cost 10), in memory, 4 connections',
    // With more, an answer takes longer than a slice.
    connections: 4,
    async start() {
      const tokens = mintSecrets(1).map((secret) => `id.${secret}`)
      const hashes = new Map(await Promise.all(tokens.map(hashed)))
      return {
        tokens,
        listener: app([
          bearerToken(),
          async (req, res, next) => {
            const { token = '' } = /** @type {{ token?: string }} */ (req)
            const [id = '', presented = ''] = token.split('.')
            if (await bcrypt.compare(presented, hashes.get(id) ?? '')) next()
            else res.status(401).end()
          },
        ]),
      }
    },
  },

  // For --traffic and --growth; not in the table.
  { name: 'configured', title: 'ours, as told', start: (env) => ours(env, JSON.parse(env.CONFIG ?? '{}')) },
]

/** @param {RequestHandler | RequestHandler[]} middleware */
function app(middleware, framework = express5) {
  return framework().get('/data', middleware, ok)
}

/**
 * @typedef {object} Ours
 * @property {typeof express5} [framework]
 * @property {(env: Env, database?: string) => Promise<Store>} [store]
 * @property {string} [database]
 * @property {boolean} [cached]
 * @property {Partial<ApiKeysOptions>} [options]
 * @property {BearerAuthOptions} [auth]
 * @property {number} [count]
 * @property {(keys: ApiKeys, made: string[]) => Promise<string[]>} [tokens]
 */

/**
 * @param {Env} env
 * @param {Ours} how
 * @returns {Promise<Started>}
 */
async function ours(
  env,
  {
    framework = express5,
    store = postgres,
    database,
    cached = true,
    options = {},
    auth = {},
    count = 1,
    tokens = async (_, made) => made,
  } = {},
) {
  const own = { misses: 0, relays: 0 }
  const { store: counting, counts } = countingReads(await store(env, database))
  const keys = createApiKeys({
    store: counting,
    ...(cached && { cache: countingRelays(env, own) }),
    serverSecret: SERVER_SECRET,
    ...(env.LEASE_MS !== undefined && { leaseMs: Number(env.LEASE_MS) }),
    ...options,
  })
  await keys.migrate()
  /** @type {string[]} */
  const made = []
  while (made.length < count) {
    const few = Array.from({ length: Math.min(8, count - made.length) }, () =>
      keys.create({ as: 'application', ownerId: 'acme', name: 'bench', scopes: [SCOPE] }),
    )
    made.push(...(await Promise.all(few)).map(({ secret }) => secret))
  }
  /** @type {ApiKeys} */
  const guarded = {
    ...keys,
    verify(secret) {
      own.misses++
      return keys.verify(secret)
    },
  }
  return {
    tokens: await tokens(keys, made),
    listener: app(bearerAuth(guarded, { scope: SCOPE, ...auth }), framework),
    counts: () => ({ ...counts, ...own }),
  }
}

/**
 * A cache in Redis that counts the leases that came from it.
 *
 * @param {Env} env
 * @param {{ relays: number }} own
 */
function countingRelays({ REDIS_URL }, own) {
  const outer = redisCache(new Redis(REDIS_URL))
  /** @type {typeof outer} */
  const cache = {
    ...outer,
    async get(digest) {
      const entry = await outer.get(digest)
      if (entry !== undefined && entry.value !== null) own.relays++
      return entry
    },
  }
  return cache
}

/**
 * @param {Env} env
 * @param {string} [database]
 */
async function postgres({ POSTGRES_URL }, database) {
  const connectionString = database ?? (await freshDatabase(POSTGRES_URL))
  return postgresStore(new pg.Pool({ connectionString }).on('error', () => {}))
}

async function sqlite() {
  const folder = mkdtempSync(join(tmpdir(), 'bench-sqlite-'))
  process.on('exit', () => rmSync(folder, { recursive: true }))
  return sqliteStore(new Database(join(folder, 'keys.db')))
}

/**
 * @param {string} token `<id>.<secret>`
 * @returns {Promise<[id: string, hash: string]>}
 */
async function hashed(token) {
  const [id = '', secret = ''] = token.split('.')
  return [id, await bcrypt.hash(secret, 10)]
}

/** @param {Request} req */
function bearer(req) {
  const header = req.headers.authorization
  return header?.startsWith('Bearer ') ? header.slice(7) : undefined
}

/**
 * @param {Env} env
 * @param {boolean} enableAutoPipelining
 */
async function recordsInRedis({ REDIS_URL }, enableAutoPipelining) {
  const redis = new Redis(REDIS_URL, { enableAutoPipelining })
  const tokens = mintSecrets(1)
  const place = (/** @type {string} */ token) => `by-hand:${hash('sha256', token)}`
  const record = {
    id: '0190f3a2-6c1e-7cc3-9f5a-1b2c3d4e5f60',
    ownerId: 'acme',
    name: 'bench',
    environment: 'live',
    scopes: [SCOPE],
    metadata: {},
  }
  for (const token of tokens) await redis.set(place(token), JSON.stringify(record))
  return {
    tokens,
    /**
     * @param {string} token
     * @returns {Promise<typeof record | undefined>}
     */
    async find(token) {
      const text = await redis.get(place(token))
      return text === null ? undefined : JSON.parse(text)
    },
  }
}

/**
 * @param {Env} env
 * @param {boolean} pipelined
 * @returns {Promise<Started>}
 */
async function byHand(env, pipelined) {
  const { tokens, find } = await recordsInRedis(env, pipelined)
  return {
    tokens,
    listener: app(async (req, res, next) => {
      const token = bearer(req)
      const record = token === undefined ? undefined : await find(token)
      if (record === undefined || !record.scopes.includes(SCOPE)) {
        res.status(401).end()
        return
      }
      const authenticated = /** @type {{ apiKey?: object }} */ (req)
      authenticated.apiKey = record
      next()
    }),
  }
}

function signed() {
  const secret = createSecretKey(SERVER_SECRET, 'utf8')
  return { secret, tokens: [jwt.sign({ sub: 'acme', scope: SCOPE }, secret, { algorithm: 'HS256', expiresIn: '1d' })] }
}

/**
 * @param {SecondaryStorage} secondaryStorage
 * @returns {Promise<Started>}
 */
async function throughBetterAuth(secondaryStorage) {
  const auth = betterAuth({
    secret: SERVER_SECRET,
    baseURL: 'http://localhost:3000',
    telemetry: { enabled: false },
    database: memoryAdapter({ user: [], session: [], account: [], verification: [], apikey: [] }),
    secondaryStorage,
    plugins: [apiKey({ storage: 'secondary-storage', rateLimit: { enabled: false } })],
  })
  const { internalAdapter } = await auth.$context
  const user = await internalAdapter.createUser({ email: 'bench@example.com', name: 'bench', emailVerified: true })
  const { key } = await auth.api.createApiKey({ body: { userId: user.id, name: 'bench' } })
  return {
    tokens: [key],
    listener: app(async (req, res, next) => {
      const result = await auth.api.verifyApiKey({ body: { key: bearer(req) } })
      if (!result.valid) {
        res.status(401).end()
        return
      }
      const authenticated = /** @type {{ apiKey?: unknown }} */ (req)
      authenticated.apiKey = result.key
      next()
    }),
  }
}
