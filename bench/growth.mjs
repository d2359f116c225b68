import { randomUUID } from 'node:crypto'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import pg from 'pg'
import { createApiKeys } from '../dist/esm/index.js'
import { postgresStore } from '../dist/esm/postgres.js'
import { countingReads, databaseOf, mintSecrets, mistyped, SERVER_SECRET } from './keys.mjs'
import { leaveCoresTo, startPostgres, startProcess, startRedis } from './services.mjs'
import { markdown, number, quantile } from './stats.mjs'

/** How many of the keys are presented; the others are only there. */
const USED = 10_000
const HERD = 5_000
const ROTATING_MS = 2_500

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc')

/** What grows with the number of keys, of clients that rotate at once, and of requests that meet one cold key. */
export async function growth({ full }) {
  leaveCoresTo(1)
  const server = await startPostgres()
  const redis = await startRedis()
  const sizes = []
  for (const count of full ? [1_000, 100_000, 5_000_000] : [1_000, 100_000]) sizes.push(await size(server, count))
  const rotations = await rotating(server)
  const herds = await herd(server, redis)
  const refusals = await strangers(server, full ? 1_000_000 : 100_000)

  const text = [
    markdown(
      ['keys', 'tables and indexes MB', 'verify from PostgreSQL p50 ms', 'p99 ms', '64 at once: verified/s', 'memory per lease bytes'],
      sizes.map((row) => [
        number(row.keys),
        number(row.tableBytes / 1e6),
        number(row.p50),
        number(row.p99),
        number(row.perSecond),
        number(row.bytesPerLease),
      ]),
    ),
    markdown(
      ['rotating clients', 'waits for leases (1 s)', 'rotations/s', 'p50 ms', 'p99 ms', 'CPU ms/rotation'],
      rotations.map((row) => [
        row.clients,
        row.waits ? 'yes' : 'no',
        number(row.perSecond),
        number(row.p50),
        number(row.p99),
        number(row.cpuMs),
      ]),
    ),
    markdown(
      ['herd', 'requests', 'authority reads', 'slowest ms'],
      herds.map((row) => [row.what, number(row.requests), number(row.reads), number(row.slowestMs)]),
    ),
    markdown(
      ['refused', 'secrets', 'heap MB before', 'heap MB after', 'authority reads', 'CPU µs/refusal'],
      refusals.map((row) => [
        row.what,
        number(row.secrets),
        number(row.before / 1e6),
        number(row.after / 1e6),
        number(row.reads),
        number(row.cpuMicros),
      ]),
    ),
  ].join('\n\n')
  return { result: { sizes, rotations, herds, refusals }, text }
}

async function size(server, count) {
  console.error(`making ${count} keys`)
  const secrets = mintSecrets(Math.min(count, USED))
  const { url, bytes } = await databaseOf(server, secrets, count - secrets.length)
  const pool = new pg.Pool({ connectionString: url })
  const one = async (secret) => {
    const since = performance.now()
    const { ok } = await keys.verify(secret)
    if (!ok) throw new Error('A key that is in the table was refused.')
    return performance.now() - since
  }

  // With the fewest leases there can be, and each secret met again only after many others, every look-up goes to PostgreSQL.
  let keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, maxLeases: 100 })
  const latencies = []
  for (const secret of secrets.slice(0, 2_000)) latencies.push(await one(secret))
  const since = performance.now()
  await Promise.all(
    Array.from({ length: 64 }, async (_, i) => {
      for (let n = i; n < secrets.length; n += 64) await one(secrets[n])
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
      const latencies = []
      const client = async ({ secret }, until) => {
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

async function herd(server, redis) {
  const secrets = mintSecrets(HERD)
  const { url } = await databaseOf(server, secrets)
  const pool = new pg.Pool({ connectionString: url })
  const results = []
  for (const [what, presented] of [
    ['verify(), one cold key', Array.from({ length: HERD }, () => secrets[0])],
    ['verify(), each another cold key', secrets],
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
  const served = startProcess('server.mjs', {
    core: 0,
    env: { ROW: 'configured', CONFIG: config, POSTGRES_URL: server, REDIS_URL: redis },
  })
  const load = startProcess('load.mjs')
  const { origin } = await served.ask('start')
  await load.ask('prepare', { name: 'herd', origins: [origin], tokens: secrets.slice(0, 1), connections: HERD, status: 200 })
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

/** What is left in memory of secrets that were refused, each another one. */
async function strangers(server, count) {
  const { url } = await databaseOf(server, [])
  const pool = new pg.Pool({ connectionString: url })
  const results = []
  for (const [what, spoil] of [
    ['well formed and unknown', (secret) => secret],
    ['mistyped', mistyped],
  ]) {
    console.error(`refusing ${count} secrets that are ${what}`)
    const { store, counts } = countingReads(postgresStore(pool))
    const keys = createApiKeys({ store, serverSecret: SERVER_SECRET })
    let cpuMicros = 0
    const some = async (howMany) => {
      for (let left = howMany; left > 0; left -= 1_000) {
        const secrets = mintSecrets(1_000).map(spoil)
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
