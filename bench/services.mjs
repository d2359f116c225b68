import { spawn, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import pg from 'pg'

const CORES = availableParallelism()
const PINNED = CORES >= 2 && spawnSync('taskset', ['-V'], { stdio: 'ignore' }).status === 0
const ANSWERS_WITHIN_MS = 60_000

export const pinning = PINNED ? `one of ${CORES} cores` : `no core of its own (no taskset, or one core only): mind that this is less exact`

/**
 * Moves this process, and so everything that it starts from now on but for pinned servers, off the cores of `servers` servers.
 *
 * @param {number} servers
 */
export function leaveCoresTo(servers) {
  if (PINNED) spawnSync('taskset', ['-a', '-c', '-p', `0-${Math.max(CORES - 1 - servers, 0)}`, String(process.pid)], { stdio: 'ignore' })
}

/** @typedef {{ readonly [name: string]: (content: never) => unknown }} Functions */

/**
 * A process that answers messages with what its functions return.
 *
 * @template {Functions} F
 * @typedef {object} Process
 * @property {() => Promise<void>} end
 * @property {(name: NodeJS.Signals) => void} signal
 * @property {<Name extends keyof F & string>(name: Name, ...content: Parameters<F[Name]>) => Promise<Awaited<ReturnType<F[Name]>>>} ask
 */

/** @typedef {{ core?: number, env?: Record<string, string>, execArgv?: string[] }} Start with `core`, the process gets one core for itself: 0 is the machine's last. */

/**
 * Starts the server of a row.
 *
 * @param {Start} how
 * @returns {Process<import('./server.mjs').Server>}
 */
export function startServer(how) {
  return startProcess('server.mjs', how)
}

/**
 * Starts a load generator.
 *
 * @returns {Process<import('./load.mjs').Load>}
 */
export function startLoad() {
  return startProcess('load.mjs', {})
}

/**
 * Starts a process that runs any number of instances.
 *
 * @returns {Process<import('./instances.mjs').Instances>}
 */
export function startInstances() {
  return startProcess('instances.mjs', {})
}

/**
 * @template {Functions} F
 * @param {string} script a file of this folder
 * @param {Start} how
 * @returns {Process<F>}
 */
function startProcess(script, { core, env = {}, execArgv = [] }) {
  const pin = PINNED && core !== undefined ? ['taskset', '-c', String(CORES - 1 - core)] : []
  const [command = '', ...args] = [...pin, process.execPath, ...execArgv, fileURLToPath(new URL(script, import.meta.url))]
  // Standard output is for the table, so children speak on standard error.
  const child = spawn(command, args, {
    env: { ...process.env, NODE_ENV: 'production', ...env },
    stdio: ['ignore', 2, 2, 'ipc'],
    serialization: 'advanced',
  })
  /** @type {Map<number, { resolve(answer: unknown): void, reject(error: Error): void }>} */
  const waiting = new Map()
  let ids = 0
  child.on('message', (message) => {
    const { id, answer, error } = /** @type {Answer} */ (message)
    const { resolve, reject } = waiting.get(id) ?? {}
    waiting.delete(id)
    if (error === undefined) resolve?.(answer)
    else reject?.(new Error(`${script}: ${error}`))
  })
  const gone = once(child, 'exit')
  gone.then(([code, signal]) => {
    for (const { reject } of waiting.values()) reject(new Error(`${script} ended (${signal ?? code}).`))
  })
  const end = async () => {
    if (child.connected) child.disconnect()
    const timer = setTimeout(() => child.kill('SIGKILL'), 5_000)
    await gone
    clearTimeout(timer)
  }
  atEnd(end)
  return {
    end,
    signal: (name) => void child.kill(name),
    ask(name, ...[content]) {
      return new Promise((resolve, reject) => {
        if (child.exitCode !== null) return reject(new Error(`${script} has ended.`))
        const id = ids++
        const timer = setTimeout(() => {
          waiting.delete(id)
          reject(new Error(`${script} did not answer "${name}" within ${ANSWERS_WITHIN_MS} ms.`))
        }, ANSWERS_WITHIN_MS)
        waiting.set(id, {
          resolve(answer) {
            clearTimeout(timer)
            resolve(/** @type {never} */ (answer))
          },
          reject(error) {
            clearTimeout(timer)
            reject(error)
          },
        })
        child.send({ id, name, content })
      })
    },
  }
}

/** @typedef {{ id: number, name: string, content: never }} Question */
/** @typedef {{ id: number, answer?: unknown, error?: string }} Answer */

/**
 * The other end: answers each message with what the function of its name returns, and ends with the process that asks.
 *
 * @param {Functions} functions
 */
export function answer(functions) {
  process.on('message', async (/** @type {Question} */ { id, name, content }) => {
    try {
      process.send?.({ id, answer: await functions[name]?.(content) })
    } catch (error) {
      process.send?.({ id, error: error instanceof Error ? error.stack : String(error) })
    }
  })
  process.on('disconnect', () => process.exit())
}

/** Starts a PostgreSQL of our own, as it comes but for the number of connections and the size of its log; resolves with its URL. */
export async function startPostgres() {
  /** @type {typeof import('../test/support/postgres-server.ts')} */
  const { embeddedPostgres } = await ofTheTests('postgres-server.ts')
  const { url, stop } = await embeddedPostgres(['max_wal_size=4GB'])
  atEnd(stop)
  return url
}

/**
 * Makes an empty database on a server and resolves with its URL.
 *
 * @param {string} serverUrl
 */
export async function freshDatabase(serverUrl) {
  const name = `bench_${randomUUID().replaceAll('-', '')}`
  const client = new pg.Client({ connectionString: serverUrl })
  await client.connect()
  await client.query(`create database ${name}`)
  await client.end()
  return Object.assign(new URL(serverUrl), { pathname: `/${name}` }).href
}

/** Starts a Redis of our own that writes nothing to disk; resolves with its URL. */
export async function startRedis() {
  /** @type {typeof import('../test/support/redis-server.ts')} */
  const { redisServer } = await ofTheTests('redis-server.ts')
  const { url, close } = await redisServer()
  atEnd(close)
  return url
}

/**
 * Loads a file of the tests. The compiler for it is loaded only here: a server that is measured has none of it.
 *
 * @param {string} file
 */
async function ofTheTests(file) {
  const { tsImport } = await import('tsx/esm/api')
  return tsImport(`../test/support/${file}`, import.meta.url)
}

/** @type {(() => Promise<unknown>)[]} */
const closers = []

/** @param {() => Promise<unknown>} close */
function atEnd(close) {
  closers.push(close)
}

/** Ends everything that was started here, the last first. */
export async function endAll() {
  for (const close of closers.splice(0).reverse()) await close().catch((error) => console.error(String(error)))
}
