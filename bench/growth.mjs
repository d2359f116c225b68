import { randomUUID } from 'node:crypto'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import pg from 'pg'
import { createApiKeys, memoryStore, postgresStore } from './built.mjs'
import { countingReads, databaseOf, mintSecrets, mistyped, SERVER_SECRET } from './keys.mjs'
import { knowing, thisBuild } from './packages.mjs'
import { leaveCoresTo, startInstances, startLoad, startPostgres, startRedis, startServer } from './services.mjs'
import { markdown, number, quantile } from './stats.mjs'

/** How many of the keys are presented; the others are only there. */
const USED = 10_000
const HERD = 5_000
const ROTATING_MS = 2_500
/** How many instances there are at once, each with a pool and a client of Redis of its own, in up to so many processes. */
const MEMBERS = [1, 2, 10, 100]
const MEMBER_PROCESSES = 4
const MEMBER_ROTATIONS = 30

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc')

/**
 * What grows with the number of keys, of clients that rotate at once, and of requests that meet one cold key.
 *
 * @param {{ full: boolean }} options
 */
export async function growth({ full }) {
  leaveCoresTo(1)
  const server = await startPostgres()
  const redis = await startRedis()
  const sizes = []
  for (const count of full ? [1_000, 100_000, 5_000_000] : [1_000, 100_000]) sizes.push(await size(server, count))
  const rotations = await rotating(server)
  const memberships = []
  for (const count of MEMBERS) memberships.push(await members(server, redis, count))
  const herds = await herd(server, redis)
  const refusals = await strangers(server, full ? 1_000_000 : 100_000)
  const tables = [sizesTable(sizes), rotationsTable(rotations), membersTable(memberships), herdsTable(herds), refusalsTable(refusals)]
  return { result: { sizes, rotations, memberships, herds, refusals }, text: tables.join('\n\n') }
}

/** @param {readonly Awaited<ReturnType<typeof size>>[]} sizes */
function sizesTable(sizes) {
  const head = [
    'keys',
    'tables and indexes MB',
    'verify from PostgreSQL p50 ms',
    'p99 ms',
    '64 at once: verified/s',
    'memory per lease bytes',
  ]
  return markdown(
    head,
    sizes.map(({ keys, tableBytes, p50, p99, perSecond, bytesPerLease }) =>
      [keys, tableBytes / 1e6, p50, p99, perSecond, bytesPerLease].map(number),
    ),
  )
}

/** @param {Awaited<ReturnType<typeof rotating>>} rotations */
function rotationsTable(rotations) {
  return markdown(
    ['rotating clients', 'waits for leases (1 s)', 'rotations/s', 'p50 ms', 'p99 ms', 'CPU ms/rotation'],
    rotations.map(({ clients, waits, perSecond, p50, p99, cpuMs }) => [
      ...[clients, waits ? 'yes' : 'no'],
      ...[perSecond, p50, p99, cpuMs].map(number),
    ]),
  )
}

/** @param {readonly Awaited<ReturnType<typeof members>>[]} memberships */
function membersTable(memberships) {
  return markdown(
    ['instances', 'processes', 'rotation p50 ms', 'p90 ms', 'slowest ms'],
    memberships.map(({ count, processes, p50, p90, slowest }) => [count, processes, p50, p90, slowest].map(number)),
  )
}

/** @param {Awaited<ReturnType<typeof herd>>} herds */
function herdsTable(herds) {
  return markdown(
    ['herd', 'requests', 'authority reads', 'slowest ms'],
    herds.map(({ what, requests, reads, slowestMs }) => [what, ...[requests, reads, slowestMs].map(number)]),
  )
}

/** @param {Awaited<ReturnType<typeof strangers>>} refusals */
function refusalsTable(refusals) {
  return markdown(
    ['refused', 'secrets', 'heap MB before', 'heap MB after', 'authority reads', 'CPU µs/refusal'],
    refusals.map(({ what, secrets, before, after, reads, cpuMicros }) => [
      what,
      ...[secrets, before / 1e6, after / 1e6, reads, cpuMicros].map(number),
    ]),
  )
}

/**
 * @param {string} server
 * @param {number} count
 */
async function size(server, count) {
  console.error(`making ${count} keys`)
  const secrets = mintSecrets(Math.min(count, USED))
  const { url, bytes } = await databaseOf(server, secrets, count - secrets.length)
  const pool = new pg.Pool({ connectionString: url })
  const one = async (/** @type {string} */ secret) => {
    const since = performance.now()
    const { ok } = await keys.verify(secret)
    if (!ok) throw new Error('A key that is in the table was refused.')
    return performance.now() - since
  }

  // With the fewest leases there can be, and each secret met again only after many others, every look-up goes to PostgreSQL.
  let keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, ...knowing({ createApiKeys, memoryStore }, 100) })
  const latencies = []
  for (const secret of secrets.slice(0, 2_000)) latencies.push(await one(secret))
  const since = performance.now()
  await Promise.all(
    Array.from({ length: 64 }, async (_, i) => {
      for (let n = i; n < secrets.length; n += 64) await one(secrets[n] ?? '')
    }),
  )
  const perSecond = (secrets.length / (performance.now() - since)) * 1_000

  await keys.close()
  keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, leaseMs: 60_000 })
  collect()
  const before = process.memoryUsage().heapUsed
  for (let i = 0; i < secrets.length; i += 100) await Promise.all(secrets.slice(i, i + 100).map(one))
  collect()
  const bytesPerLease = (process.memoryUsage().heapUsed - before) / secrets.length
  await keys.close()
  await pool.end()
  return {
    keys: count,
    tableBytes: bytes,
    p50: quantile(latencies.slice(200), 0.5),
    p99: quantile(latencies.slice(200), 0.99),
    perSecond,
    bytesPerLease,
  }
}

/** @param {string} server */
async function rotating(server) {
  const { url } = await databaseOf(server, [])
  const results = []
  for (const waits of [false, true]) {
    const pool = new pg.Pool({ connectionString: url })
    const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, waitForLease: waits })
    for (const clients of [1, 8, 64]) {
      console.error(`rotating with ${clients} client(s), ${waits ? 'with' : 'without'} the wait`)
      const made = await Promise.all(
        Array.from({ length: clients }, () => keys.create({ as: 'application', ownerId: 'acme', name: 'bench' })),
      )
      /** @type {number[]} */
      const latencies = []
      const client = async (/** @type {{ secret: string }} */ { secret }, /** @type {number} */ until) => {
        while (performance.now() < until) {
          const since = performance.now()
          ;({ secret } = await keys.rotate({ as: { secret }, idempotencyKey: randomUUID() }))
          latencies.push(performance.now() - since)
        }
        return { secret }
      }
      const warm = await Promise.all(made.map((issued) => client(issued, performance.now() + (waits ? 1 : 500))))
      latencies.length = 0
      const cpu = process.cpuUsage()
      const since = performance.now()
      await Promise.all(warm.map((issued) => client(issued, since + ROTATING_MS)))
      const tookMs = performance.now() - since
      const { user, system } = process.cpuUsage(cpu)
      results.push({
        clients,
        waits,
        perSecond: (latencies.length / tookMs) * 1_000,
        p50: quantile(latencies, 0.5),
        p99: quantile(latencies, 0.99),
        cpuMs: (user + system) / 1_000 / latencies.length,
      })
    }
    await keys.close()
    await pool.end()
  }
  return results
}

/**
 * How long a rotation takes, by default options, with many instances that are all in use.
 *
 * @param {string} server
 * @param {string} redis
 * @param {number} count
 */
async function members(server, redis, count) {
  console.error(`rotating with ${count} instance(s)`)
  const [used = '', ...secrets] = mintSecrets(1 + MEMBER_PROCESSES)
  const { url } = await databaseOf(server, [used, ...secrets])
  const { folder } = thisBuild()
  const processes = Array.from({ length: Math.min(count, MEMBER_PROCESSES) }, startInstances)
  await Promise.all(
    processes.map(async (one, at) => {
      const names = Array.from({ length: count }, (_, i) => String(i)).filter((_, i) => i % processes.length === at)
      // PostgreSQL has 300 connections for all of them.
      await one.ask('start', { instances: names.map((name) => ({ name, folder, database: url, redis, connections: 2 })) })
      await one.ask('use', { secrets: [used], everyMs: 200 })
    }),
  )
  /** @type {number[]} */
  const latencies = []
  for (let i = -processes.length; i < MEMBER_ROTATIONS; i++) {
    const at = (i + processes.length) % processes.length
    const one = /** @type {ReturnType<typeof startInstances>} */ (processes[at])
    // Each process rotates a key of its own, by the first of its instances.
    const { secret, tookMs } = await one.ask('rotate', { name: String(at), secret: secrets[at] ?? '' })
    secrets[at] = secret
    if (i >= 0) latencies.push(tookMs)
  }
  await Promise.all(processes.map((one) => one.end()))
  const [p50, p90, slowest] = [0.5, 0.9, 1].map((part) => quantile(latencies, part))
  return { count, processes: processes.length, p50: p50 ?? Number.NaN, p90: p90 ?? Number.NaN, slowest: slowest ?? Number.NaN }
}

/**
 * @param {string} server
 * @param {string} redis
 */
async function herd(server, redis) {
  const secrets = mintSecrets(HERD)
  const { url } = await databaseOf(server, secrets)
  const pool = new pg.Pool({ connectionString: url })
  const results = []
  const cold = secrets.slice(0, 1)
  for (const { what, presented } of [
    { what: 'verify(), one cold key', presented: Array.from({ length: HERD }, () => cold).flat() },
    { what: 'verify(), each another cold key', presented: secrets },
  ]) {
    console.error(`a herd: ${what}`)
    const { store, counts } = countingReads(postgresStore(pool))
    const keys = createApiKeys({ store, serverSecret: SERVER_SECRET })
    const since = performance.now()
    const verdicts = await Promise.all(presented.map((secret) => keys.verify(secret)))
    if (verdicts.some(({ ok }) => !ok)) throw new Error('A key that is in the table was refused.')
    results.push({ what, requests: presented.length, reads: counts.reads, slowestMs: performance.now() - since })
    await keys.close()
  }
  await pool.end()

  console.error('a herd: HTTP, one cold key')
  const config = JSON.stringify({ database: url, count: 0, options: { leaseMs: 60_000 } })
  const served = startServer({
    core: 0,
    env: { ROW: 'configured', CONFIG: config, POSTGRES_URL: server, REDIS_URL: redis },
  })
  const load = startLoad()
  const { origin } = await served.ask('start')
  await load.ask('prepare', { name: 'herd', origins: [origin], tokens: cold, connections: HERD, status: 200 })
  const before = await served.ask('usage')
  const { count, slowest } = await load.ask('once', { name: 'herd' })
  const after = await served.ask('usage')
  results.push({
    what: 'HTTP, one cold key, each request on a connection of its own',
    requests: count,
    reads: after.reads - before.reads,
    slowestMs: slowest,
  })
  return results
}

/**
 * What is left in memory of secrets that were refused, each another one.
 *
 * @param {string} server
 * @param {number} count
 */
async function strangers(server, count) {
  const { url } = await databaseOf(server, [])
  const pool = new pg.Pool({ connectionString: url })
  const results = []
  for (const { what, spoil } of [
    { what: 'well formed and unknown', spoil: (/** @type {string} */ secret) => secret },
    { what: 'mistyped', spoil: mistyped },
  ]) {
    console.error(`refusing ${count} secrets that are ${what}`)
    const { store, counts } = countingReads(postgresStore(pool))
    const keys = createApiKeys({ store, serverSecret: SERVER_SECRET })
    let cpuMicros = 0
    const some = async (/** @type {number} */ howMany) => {
      for (let left = howMany; left > 0; left -= 1_000) {
        const secrets = mintSecrets(1_000).map((secret) => spoil(secret))
        const cpu = process.cpuUsage()
        const verdicts = await Promise.all(secrets.map((secret) => keys.verify(secret)))
        const { user, system } = process.cpuUsage(cpu)
        cpuMicros += user + system
        if (verdicts.some(({ ok }) => ok)) throw new Error('A key that is in no table was accepted.')
      }
    }
    // The first of them fill the table of refusals, which keeps ten thousand.
    await some(20_000)
    collect()
    const before = process.memoryUsage().heapUsed
    const readsBefore = counts.reads
    cpuMicros = 0
    await some(count)
    collect()
    const reads = counts.reads - readsBefore
    results.push({ what, secrets: count, before, after: process.memoryUsage().heapUsed, reads, cpuMicros: cpuMicros / count })
    await keys.close()
  }
  await pool.end()
  return results
}
