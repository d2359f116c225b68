// A process in which any number of instances run, each behind paths of its own, and of any build of the package.
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import express from 'express'
import { Redis } from 'ioredis'
import Database from 'libsql'
import pg from 'pg'
import { SCOPE, SERVER_SECRET } from './keys.mjs'
import { known, packageIn } from './packages.mjs'
import { answer } from './services.mjs'
import { countStatements } from './statements.mjs'

/**
 * How an instance is made. `options` are those of `createApiKeys`; those that a build does not know are left out.
 *
 * @typedef {object} Instance
 * @property {string} name what its paths begin with
 * @property {string} folder of the package
 * @property {string} [database] the URL of a database of PostgreSQL, or a file of SQLite; without it, keys live in memory
 * @property {number} [connections] of its pool at most; default 10
 * @property {string} [redis] default none
 * @property {object} [options]
 */

/** @typedef {Awaited<ReturnType<typeof made>>} Made */

/** @type {Map<string, Made>} */
const instances = new Map()
/** @type {string[]} */
let kept = []

const functions = {
  /**
   * Makes instances and serves them: `/<name>/data` behind `bearerAuth`, `/<name>/keys` by `keyRouter`.
   *
   * @param {{ instances: readonly Instance[] }} what
   */
  async start({ instances: wanted }) {
    const app = express()
    for (const how of wanted) {
      const instance = await made(how)
      instances.set(how.name, instance)
      const { build, keys } = instance
      app.get(`/${how.name}/data`, noticing(instance), build.bearerAuth(keys, { scope: SCOPE }), (_req, res) => void res.json({ ok: true }))
      app.use(`/${how.name}/keys`, build.keyRouter(keys, { limits: false }))
    }
    const server = createServer(app)
    server.keepAliveTimeout = 600_000
    await new Promise((resolve) => server.listen({ port: 0, host: '127.0.0.1' }, () => resolve(undefined)))
    const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
    return { origin: `http://127.0.0.1:${port}` }
  },
  /** @param {{ name: string }} which */
  migrate: ({ name }) => instanceOf(name).keys.migrate(),
  /**
   * Makes keys, and resolves with their secrets.
   *
   * @param {{ name: string, count: number }} how
   */
  async create({ name, count }) {
    const { keys } = instanceOf(name)
    /** @type {string[]} */
    const secrets = []
    while (secrets.length < count) {
      const few = Array.from({ length: Math.min(8, count - secrets.length) }, () =>
        keys.create({ as: 'application', ownerId: 'acme', name: 'bench', scopes: [SCOPE] }),
      )
      secrets.push(...(await Promise.all(few)).map(({ secret }) => secret))
    }
    return secrets
  },
  /**
   * Has every instance check these secrets, now and every so often from now on.
   *
   * @param {{ secrets: readonly string[], everyMs: number }} what
   */
  async use({ secrets, everyMs }) {
    const all = [...instances.values()]
    const by = (/** @type {Made} */ { keys }) => Promise.all(secrets.map((secret) => keys.verify(secret)))
    // One after another: a hundred instances that connect to one database at the same moment would measure how fast that accepts connections.
    for (const instance of all) {
      const verdicts = await by(instance)
      if (verdicts.some(({ ok }) => !ok)) throw new Error('A key that is in the table was refused.')
    }
    setInterval(() => void Promise.all(all.map(by)).catch((error) => console.error(String(error))), everyMs)
  },
  /**
   * Rotates a key here, without HTTP.
   *
   * @param {{ name: string, secret: string }} what
   */
  async rotate({ name, secret }) {
    const since = performance.now()
    const issued = await instanceOf(name).keys.rotate({ as: { secret }, idempotencyKey: randomUUID() })
    return { secret: issued.secret, tookMs: performance.now() - since }
  },
  /** @param {{ name: string }} which */
  usage({ name }) {
    const { seen, statements } = instanceOf(name)
    const { user, system } = process.cpuUsage()
    return { atMs: performance.now(), cpuMicros: user + system, ...seen, ...statements }
  },
  /**
   * How much the heap grows for each of these secrets, once an instance knows them all; and how many of them it knows then.
   *
   * @param {{ name: string, secrets: string[] }} what
   */
  async bytesPerSecret({ name, secrets }) {
    const { keys } = instanceOf(name)
    kept = secrets
    // What is made at the first look-up is not of any secret.
    await keys.verify(kept[0] ?? '')
    const before = heap()
    for (let i = 0; i < kept.length; i += 100) await Promise.all(kept.slice(i, i + 100).map((secret) => keys.verify(secret)))
    const atOnce = kept.filter((secret) => keys.peek(secret) !== undefined).length
    return { bytes: (heap() - before) / kept.length, atOnce: atOnce / kept.length }
  },
}

/** @typedef {typeof functions} Instances */

answer(functions)

/** @param {string} name */
function instanceOf(name) {
  const instance = instances.get(name)
  if (instance === undefined) throw new Error(`There is no instance ${name}.`)
  return instance
}

/** @param {Instance} how */
async function made({ folder, database, connections = 10, redis, options = {} }) {
  const build = await packageIn(folder)
  const { store, statements } = storeOf(build, database, connections)
  const keys = build.createApiKeys({
    store,
    ...(redis !== undefined && { cache: build.redisCache(new Redis(redis)) }),
    serverSecret: SERVER_SECRET,
    ...known(build, options),
  })
  return { build, keys, statements, met: new Set(), seen: { requests: 0, firstSights: 0, atOnce: 0 } }
}

/**
 * @param {import('./packages.mjs').Package} build
 * @param {string | undefined} database
 * @param {number} connections
 */
function storeOf({ memoryStore, postgresStore, sqliteStore }, database, connections) {
  const none = { reads: 0, uses: 0, rest: 0 }
  if (database === undefined) return { store: memoryStore(), statements: none }
  if (!database.startsWith('postgres')) return { store: sqliteStore(new Database(database)), statements: none }
  const pool = new pg.Pool({ connectionString: database, max: connections }).on('error', () => {})
  return { statements: countStatements(pool), store: postgresStore(pool) }
}

/**
 * Looks at a request before `bearerAuth` does: whether its key was here before, and whether there is an answer that needs no waiting.
 *
 * @param {Made} instance
 * @returns {import('express').RequestHandler}
 */
function noticing({ keys, met, seen }) {
  return (req, _res, next) => {
    const secret = req.headers.authorization?.slice('Bearer '.length) ?? ''
    seen.requests++
    if (!met.has(secret)) {
      met.add(secret)
      seen.firstSights++
    } else if (keys.peek(secret) !== undefined) seen.atOnce++
    next()
  }
}

/** The heap in use, with nothing in it that is garbage. */
function heap() {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc')
  collect()
  collect()
  return process.memoryUsage().heapUsed
}
