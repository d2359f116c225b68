import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { Agent, request } from 'node:http'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { atEnd } from '../support/cleanup.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET, startServer } from '../support/process.js'
import { startRedis } from '../support/redis.js'

/** `npm run test:flood` watches for longer and asks for more; here it is enough that a busy machine, which also carries the flood itself, keeps up somehow. */
const SHOWN = process.env.FLOOD_RATE !== undefined
/** Unknown secrets a second, and how many of them have to be answered. */
const RATE = Number(process.env.FLOOD_RATE ?? 2_000)
const ANSWERED = SHOWN ? 2_000 : 200
/** What 99 of 100 calls with the good key have to stay below, on a machine of one's own. */
const P99_MS = SHOWN ? 250 : Number.POSITIVE_INFINITY
/**
 * By how much longer 9 of 10 calls with the good key may take than calls without a key to the same process at the same moment. A machine that halts delays
 * both.
 */
const ADDED_MS = 100
/** How long the good client is watched, and how often it calls. */
const WATCHED_MS = SHOWN ? 15_000 : 3_000
const CALLS_A_SECOND = 50

test.each([
  ['one address, the same as the good client has', 'one'],
  ['a new address for each', 'many'],
])('a flood of well-formed unknown secrets neither refuses nor delays a good key: from %s', async (_whence, addresses) => {
  const [database, redis] = [await freshDatabase(), await startRedis()]
  const keys = createApiKeys({ store: postgresStore(database.pool), serverSecret: SERVER_SECRET })
  await keys.migrate()
  const issue = async (): Promise<string> =>
    (await keys.create({ as: 'application', ownerId: 'acme', name: 'good', scopes: ['api_keys:write'] })).secret
  const server = await startServer({
    STORE_URL: database.url,
    REDIS_URL: redis.url,
    ...(addresses === 'many' ? { TRUST_PROXY: '1' } : {}),
  })
  const [good, rested] = [await issue(), await issue()]
  // Connections are there before the flood: Node accepts new ones one in each turn of the event loop, whoever knocks.
  await Promise.all(Array.from({ length: CONNECTIONS }, () => [timed(server.url, good), timed(server.url)]).flat())
  expect((await timed(server.url, rested)).status).toBe(200)
  const calm = await watch(server.url, good, until(WATCHED_MS))
  const flood = startFlood(server.url, addresses)
  await watch(server.url, good, flood.inSpate)
  const flooded = await watch(server.url, good, until(WATCHED_MS))
  // One whose lease is long over, one that this process has never met, and a rotation: all have to ask the store in the midst of it. From the
  // flood's own address only keys that were met before are let through.
  const back = await timed(server.url, rested)
  const cold = addresses === 'many' ? await timed(server.url, await issue()) : undefined
  const { perSecond, statuses } = flood.rate()
  const rotated = await fetch(`${server.url}/keys/self/rotate`, { method: 'POST', headers: { authorization: `Bearer ${good}` } })
  await flood.stop()

  console.info(
    [
      `flood from ${addresses}: ${Math.round(perSecond)} answers a second ${JSON.stringify(statuses)}`,
      `good key without: p50 ${calm.p50} ms, p99 ${calm.p99} ms; with: p50 ${flooded.p50} ms, p99 ${flooded.p99} ms, of ${flooded.count}`,
      `a call without a key in the flood: p50 ${flooded.open.p50} ms, p99 ${flooded.open.p99} ms; the key adds at most ${flooded.added} ms to 9 of 10`,
      cold === undefined ? '' : `a key never met before: ${cold.ms.toFixed(1)} ms`,
    ].join('\n'),
  )
  expect([calm.statuses, flooded.statuses, back.status, rotated.status, cold?.status ?? 200]).toEqual([[200], [200], 200, 200, 200])
  expect(flooded.p99).toBeLessThan(P99_MS)
  expect(flooded.added).toBeLessThan(ADDED_MS)
  expect(perSecond).toBeGreaterThan(ANSWERED)
  // Of strangers, from one address nearly all are told 429 without a look; of those from everywhere each is looked for, and none found.
  expect(Object.keys(statuses).sort()).toEqual(addresses === 'many' ? ['401'] : ['401', '429'])
  expect(server.child.exitCode).toBeNull()
  await keys.close()
})

/** Calls with a key, and beside each without one, at a steady pace, whether or not answers have come, until something has happened. */
async function watch(url: string, secret: string, until: Promise<void>): Promise<Watched> {
  const started = performance.now()
  const calls: Promise<[Timed, Timed]>[] = []
  const pace = setInterval(() => {
    while (calls.length < ((performance.now() - started) / 1_000) * CALLS_A_SECOND) {
      calls.push(Promise.all([timed(url, secret), timed(url)]))
    }
  }, 5)
  await until
  clearInterval(pace)
  const answers = await Promise.all(calls)
  const [withKey, open] = [answers.map(([one]) => one.ms), answers.map(([, other]) => other.ms)]
  const added = answers.map(([one, other]) => one.ms - other.ms)
  return {
    ...quantiles(withKey),
    count: answers.length,
    statuses: [...new Set(answers.map(([{ status }]) => status))],
    open: quantiles(open),
    added: quantile(added, 0.9),
  }
}

interface Quantiles {
  readonly p50: number
  readonly p99: number
}

interface Watched extends Quantiles {
  readonly count: number
  readonly statuses: readonly number[]
  readonly open: Quantiles
  /** What the key adds to 9 of 10 calls at most. */
  readonly added: number
}

function quantiles(times: readonly number[]): Quantiles {
  return { p50: quantile(times, 0.5), p99: quantile(times, 0.99) }
}

function quantile(times: readonly number[], part: number): number {
  const sorted = [...times].sort((a, b) => a - b)
  return Number(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]?.toFixed(1))
}

function until(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

const CONNECTIONS = 4
const [agent, withoutKey] = [
  new Agent({ keepAlive: true, maxSockets: CONNECTIONS }),
  new Agent({ keepAlive: true, maxSockets: CONNECTIONS }),
]
atEnd(async () => {
  agent.destroy()
  withoutKey.destroy()
})

interface Timed {
  readonly status: number
  readonly ms: number
}

/** A call with a key, or to the route that asks for none, which has connections of its own. */
function timed(url: string, secret?: string): Promise<Timed> {
  const started = performance.now()
  const [path, how] =
    secret === undefined ? ['/open', { agent: withoutKey }] : ['/data', { agent, headers: { authorization: `Bearer ${secret}` } }]
  return new Promise((resolve, reject) => {
    request(url + path, how, (answer) => {
      answer.resume().once('end', () => resolve({ status: answer.statusCode ?? 0, ms: performance.now() - started }))
    })
      .on('error', reject)
      .end()
  })
}

interface Flood {
  /** Resolves when it has been answered for a while, so that its own connections are there too. */
  readonly inSpate: Promise<void>
  /** Since then. */
  rate(): { perSecond: number; statuses: { [status: string]: number } }
  stop(): Promise<void>
}

function startFlood(url: string, addresses: string): Flood {
  const child: ChildProcess = spawn(process.execPath, ['--import', 'tsx', join(__dirname, '../support/flood.ts')], {
    env: { ...process.env, FLOOD_URL: url, FLOOD_RATE: String(RATE), FLOOD_ADDRESSES: addresses },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const gone = once(child, 'exit')
  const stop = async (): Promise<void> => {
    child.kill('SIGKILL')
    await gone
  }
  atEnd(stop)
  let statuses: { [status: string]: number } = {}
  const total = (): number => Object.values(statuses).reduce((sum, count) => sum + count, 0)
  let began: { at: number; total: number } | undefined
  const inSpate = new Promise<void>((resolve, reject) => {
    createInterface({ input: child.stdout as Readable }).on('line', (line) => {
      statuses = JSON.parse(line)
      if (total() < RATE || began !== undefined) return
      began = { at: performance.now(), total: total() }
      resolve()
    })
    gone.then(() => reject(new Error('The flood ended by itself.')), reject)
  })
  return {
    inSpate,
    rate: () => ({ perSecond: ((total() - (began?.total ?? 0)) / (performance.now() - (began?.at ?? 0))) * 1_000, statuses }),
    stop,
  }
}
