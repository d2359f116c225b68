import { setTimeout as pause } from 'node:timers/promises'
import { databaseOf, mintSecrets } from './keys.mjs'
import { leaveCoresTo, startLoad, startPostgres, startRedis, startServer } from './services.mjs'
import { markdown, number } from './stats.mjs'
import { zipf } from './zipf.mjs'

const KEYS = 100_000
const LEASES_MS = [250, 1_000, 5_000]
/** The order of requests is drawn once and repeated; a prime, so that it does not fall in step with anything. */
const DRAWS = 262_139

/**
 * @typedef {object} Pattern
 * @property {string} title
 * @property {string[]} tokens
 * @property {Uint32Array} [order]
 */

/** @typedef {{ process: ReturnType<typeof startServer>, origin: string }} Started */

/**
 * How keys are used decides how often the authority is asked. Throughput stands beside it, on one core per process.
 *
 * @param {{ connections: number }} options
 */
export async function traffic({ connections }) {
  leaveCoresTo(2)
  const services = { POSTGRES_URL: await startPostgres(), REDIS_URL: await startRedis() }
  console.error(`making ${KEYS} keys`)
  const secrets = mintSecrets(KEYS)
  const { url } = await databaseOf(services.POSTGRES_URL, secrets)
  const load = startLoad()
  /** @type {Pattern[]} */
  const patterns = [
    { title: '1 key', tokens: secrets.slice(0, 1) },
    { title: '1,000 keys, evenly', tokens: secrets.slice(0, 1_000) },
    { title: '100,000 keys, Zipf', tokens: secrets, order: zipf(KEYS, DRAWS) },
  ]

  const result = []
  for (const redis of [true, false]) {
    for (const leaseMs of LEASES_MS) {
      const CONFIG = JSON.stringify({ database: url, cached: redis, count: 0, options: { leaseMs } })
      const started = [0, 1].map((core) => startServer({ core, env: { ROW: 'configured', CONFIG, ...services } }))
      const servers = await Promise.all(started.map(async (process) => ({ process, ...(await process.ask('start')) })))
      for (const pattern of patterns) {
        for (const processes of [1, 2]) {
          const { title: keys } = pattern
          console.error(`${keys}, lease ${leaseMs} ms, ${processes} process(es), ${redis ? 'with' : 'without'} Redis`)
          const measured = await run({ load, servers: servers.slice(0, processes), pattern, leaseMs, connections })
          result.push({ keys, redis, processes, leaseMs, ...measured })
        }
      }
      for (const { process } of servers) await process.end()
    }
  }
  return { result, text: table(result) }
}

/**
 * @param {{ load: ReturnType<typeof startLoad>, servers: readonly Started[], pattern: Pattern, leaseMs: number, connections: number }} how
 */
async function run({ load, servers, pattern: { tokens, order }, leaseMs, connections }) {
  await load.ask('prepare', {
    ...{ name: 'traffic', origins: servers.map(({ origin }) => origin), connections: connections * servers.length, tokens, status: 200 },
    ...(order && { order }),
  })
  await load.ask('start', { name: 'traffic' })
  // Until leases of the first moment have been renewed twice: they began together, and so do their first renewals.
  await pause(1.2 * leaseMs + 500)
  const usage = () => Promise.all(servers.map(({ process }) => process.ask('usage')))
  const [before] = await Promise.all([usage(), load.ask('record')])
  await pause(Math.max(2_500, 3 * leaseMs))
  const [after, { p99 }] = await Promise.all([usage(), load.ask('stop')])
  await load.ask('forget', { name: 'traffic' })
  const spans = after.flatMap((now, i) => {
    const then = before[i]
    return then === undefined ? [] : [{ then, now }]
  })
  /** @typedef {keyof typeof after[number]} What */
  const sum = (/** @type {What} */ what) => spans.reduce((total, { then, now }) => total + now[what] - then[what], 0)
  const perSecond = (/** @type {What} */ what) =>
    spans.reduce((total, { then, now }) => total + (now[what] - then[what]) / (now.atMs - then.atMs), 0) * 1_000
  return {
    perSecond: perSecond('requests'),
    p99,
    localShare: 1 - sum('misses') / sum('requests'),
    relaysPerSecond: perSecond('relays'),
    readsPerSecond: perSecond('reads'),
    secretsPerSecond: perSecond('digests'),
  }
}

/** @param {readonly (Awaited<ReturnType<typeof run>> & { keys: string, redis: boolean, processes: number, leaseMs: number })[]} result */
function table(result) {
  const head = [
    '',
    'over',
    'processes',
    'lease ms',
    'requests/s',
    'p99 ms',
    'answered at once',
    'leases from Redis/s',
    'authority reads/s',
    'secrets in them/s',
  ]
  const lines = result.map((row) => [
    row.keys,
    row.redis ? 'Redis + PostgreSQL' : 'PostgreSQL',
    row.processes,
    number(row.leaseMs),
    number(row.perSecond),
    number(row.p99),
    `${(100 * row.localShare).toFixed(1)} %`,
    number(row.relaysPerSecond),
    number(row.readsPerSecond),
    number(row.secretsPerSecond),
  ])
  return markdown(head, lines)
}
