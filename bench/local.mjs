import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause, setImmediate as turn } from 'node:timers/promises'
import Database from 'libsql'
import pg from 'pg'
import { databaseOf, mintSecrets, SCOPE, SERVER_SECRET } from './keys.mjs'
import { builds, knowing, known, packageIn } from './packages.mjs'
import { freshDatabase, startInstances, startPostgres } from './services.mjs'
import { markdown, number, spread, withSpread } from './stats.mjs'

const STORES = ['PostgreSQL', 'SQLite', 'memoryStore']
const COUNTS = [1, 1_000]
/** A block is timed as one: a look at the clock costs as much as a tenth of a check. */
const BLOCK = 500
const TURN_MS = 30
/** Checks in each tick of 5 ms: 5,000 a second. */
const PACED = 25
const PACED_MS = 2_500
const MEMORY_KEYS = 100_000

/**
 * An instance of a build in this process, over a store of its own.
 *
 * @typedef {object} Side
 * @property {string} store
 * @property {string} build
 * @property {ReturnType<typeof import('../src/index.js').createApiKeys>} keys
 * @property {string[]} secrets
 */

/** @typedef {{ build: string, store: string, count: number, nanos: number[], cpuNanos: number[], next: number }} Line */

/**
 * What checking a known key costs in this process, without HTTP: both builds in turns. And what a known key takes of memory.
 *
 * @param {{ quick: boolean }} options
 */
export async function local({ quick }) {
  const { rounds, pacedRounds } = quick ? { rounds: 10, pacedRounds: 1 } : { rounds: 60, pacedRounds: 6 }
  const server = await startPostgres()
  const folder = mkdtempSync(join(tmpdir(), 'bench-sqlite-'))
  const sides = await sidesOver(server, folder)
  const lines = STORES.flatMap((store) =>
    COUNTS.flatMap((count) => sides.filter((side) => side.store === store).map((side) => ({ side, line: emptyLine(side, count) }))),
  )
  console.error('one after the other')
  for (let round = 0; round < rounds; round++) {
    for (const { side, line } of round % 2 === 0 ? lines : lines.toReversed()) await timed(side, line)
  }
  console.error('at 5,000 checks a second')
  /** @type {number[]} */
  const idle = []
  for (let round = 0; round < pacedRounds; round++) {
    for (const { side, line } of round % 2 === 0 ? lines : lines.toReversed()) line.cpuNanos.push(await paced(side, line))
    idle.push(await paced(undefined, undefined))
  }
  for (const { keys } of sides) await keys.close()
  rmSync(folder, { recursive: true })

  const memory = []
  for (const build of builds()) memory.push(await memoryOf(build, server, quick ? 10_000 : MEMORY_KEYS))
  const results = lines.map(({ line }) => resultOf(line, idle))
  return { result: { results, memory }, text: [table(results), memoryTable(memory)].join('\n\n') }
}

/**
 * @param {string} server
 * @param {string} folder
 * @returns {Promise<Side[]>}
 */
async function sidesOver(server, folder) {
  console.error(`making ${Math.max(...COUNTS)} keys in each store`)
  const sides = []
  for (const { folder: at, name, title } of builds()) {
    const build = await packageIn(at)
    const pool = new pg.Pool({ connectionString: await freshDatabase(server) }).on('error', () => {})
    const stores = {
      PostgreSQL: build.postgresStore(pool),
      SQLite: build.sqliteStore(new Database(join(folder, `${name}.db`))),
      memoryStore: build.memoryStore(),
    }
    for (const [store, over] of Object.entries(stores)) {
      const keys = build.createApiKeys({ store: over, serverSecret: SERVER_SECRET })
      await keys.migrate()
      sides.push({ store, build: title, keys, secrets: await madeBy(keys, Math.max(...COUNTS)) })
    }
  }
  return sides
}

/**
 * @param {Side['keys']} keys
 * @param {number} count
 */
async function madeBy(keys, count) {
  /** @type {string[]} */
  const secrets = []
  while (secrets.length < count) {
    const few = Array.from({ length: 8 }, () => keys.create({ as: 'application', ownerId: 'acme', name: 'bench', scopes: [SCOPE] }))
    secrets.push(...(await Promise.all(few)).map(({ secret }) => secret))
  }
  return secrets
}

/**
 * @param {Side} side
 * @param {number} count
 * @returns {Line}
 */
function emptyLine({ build, store }, count) {
  return { build, store, count, nanos: [], cpuNanos: [], next: 0 }
}

/**
 * One turn of checks that follow each other at once. Only blocks in which each was answered at once count.
 *
 * @param {Side} side
 * @param {Line} line
 */
async function timed({ keys, secrets }, line) {
  /** @type {number | undefined} */
  let until
  const took = []
  let missed = 1
  do {
    // At first, and after a pause of this process that outlived what it knew.
    if (missed > 0) await Promise.all(secrets.slice(0, line.count).map((secret) => keys.verify(secret)))
    missed = 0
    until ??= performance.now() + TURN_MS
    const since = process.hrtime.bigint()
    for (let i = 0; i < BLOCK; i++) {
      if (keys.peek(secrets[line.next] ?? '') === undefined) missed++
      line.next = (line.next + 1) % line.count
    }
    const nanos = Number(process.hrtime.bigint() - since)
    if (missed === 0) took.push(nanos / BLOCK)
    await turn()
  } while (performance.now() < until || took.length === 0)
  line.nanos.push(spread(took).median)
}

/**
 * One turn of checks at a fixed rate, as a server would make them, with all that is done behind them. Without a side, the same turn without checks.
 *
 * @param {Side | undefined} side
 * @param {Line | undefined} line
 * @returns {Promise<number>} CPU of this process, nanoseconds for each check
 */
async function paced(side, line) {
  const one = async () => {
    if (side === undefined || line === undefined) return
    const secret = side.secrets[line.next] ?? ''
    line.next = (line.next + 1) % line.count
    if (side.keys.peek(secret) === undefined) await side.keys.verify(secret)
  }
  for (let i = 0; i < (line?.count ?? 0); i += 100) await Promise.all(Array.from({ length: 100 }, one))
  const began = performance.now()
  const cpu = process.cpuUsage()
  let ticks = 0
  for (; ticks * 5 < PACED_MS; ticks++) {
    await Promise.all(Array.from({ length: PACED }, one))
    await pause(Math.max(0, began + ticks * 5 - performance.now()))
  }
  const { user, system } = process.cpuUsage(cpu)
  return ((user + system) * 1_000) / (ticks * PACED)
}

/**
 * @param {import('./packages.mjs').Build} build
 * @param {string} server
 * @param {number} count
 */
async function memoryOf({ name, title, folder }, server, count) {
  console.error(`memory of ${count} known keys: ${title}`)
  const secrets = mintSecrets(count)
  const { url } = await databaseOf(server, secrets)
  const served = startInstances()
  const build = await packageIn(folder)
  const hasFeed = Object.keys(known(build, { maxKnownSecrets: count })).length > 0
  // A minute, where each key has a lease of its own: none may end meanwhile.
  const options = { ...knowing(build, count), ...(!hasFeed && { leaseMs: 60_000 }) }
  await served.ask('start', { instances: [{ name, folder, database: url, options }] })
  const { bytes, atOnce } = await served.ask('bytesPerSecret', { name, secrets })
  await served.end()
  return { build: title, count, bytes, atOnce }
}

/**
 * @param {Line} line
 * @param {readonly number[]} idle
 */
function resultOf({ store, build, count, nanos, cpuNanos }, idle) {
  return { store, build, count, nanos: spread(nanos), cpuNanos: spread(cpuNanos).median - spread(idle).median }
}

/** @param {readonly ReturnType<typeof resultOf>[]} results */
function table(results) {
  const first = (/** @type {typeof results[number]} */ { store, count }) =>
    results.find((other) => other.store === store && other.count === count)
  return markdown(
    ['', 'keys in turn', '', 'ns/check', '× before', 'CPU ns/check at 5,000/s'],
    results.map((row) => [
      ...[row.store, number(row.count), row.build, withSpread(row.nanos)],
      number(row.nanos.median / (first(row)?.nanos.median ?? Number.NaN)),
      number(row.cpuNanos),
    ]),
  )
}

/** @param {readonly Awaited<ReturnType<typeof memoryOf>>[]} memory */
function memoryTable(memory) {
  return markdown(
    ['known keys', '', 'bytes of heap for each', 'of these answered at once'],
    memory.map(({ count, build, bytes, atOnce }) => [number(count), build, number(bytes), `${(100 * atOnce).toFixed(1)} %`]),
  )
}
