import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { builds, thisBuild } from './packages.mjs'
import { freshDatabase, startInstances, startLoad, startPostgres, startRedis } from './services.mjs'
import { markdown, number, quantile } from './stats.mjs'

/** A rotation is sent this long after the last one, answered or not: a wait of a second costs the run a second, not one for each. */
const EVERY_MS = 20
/** Requests a second that each process gets for each instance. */
const TRAFFIC = 15
/** Keys that the traffic is about; none of them is rotated. */
const USED = 10
/** Rotations of each kind before any is measured. */
const WARM_UP = 4
/** How often a request that was answered 503 is sent again, and how long after: a client would do the same, so its rotation takes that much longer. */
const TRIES = 5
const AGAIN_AFTER_MS = 50
/** How long a process that was stopped gets to find its way back. */
const RECOVERY_MS = 2_500

/**
 * @typedef {object} Setup
 * @property {string} title
 * @property {number} processes
 * @property {'postgres' | 'sqlite' | 'memory'} store
 * @property {boolean} [redis]
 * @property {object} [options]
 */

/** @type {readonly Setup[]} */
const SETUPS = [
  { title: '1 process, PostgreSQL', processes: 1, store: 'postgres' },
  { title: '1 process, SQLite', processes: 1, store: 'sqlite' },
  { title: '1 process, memoryStore', processes: 1, store: 'memory' },
  ...[2, 4].flatMap((processes) => [
    { title: `${processes} processes, PostgreSQL and Redis`, processes, store: /** @type {const} */ ('postgres'), redis: true },
    { title: `${processes} processes, PostgreSQL alone`, processes, store: /** @type {const} */ ('postgres') },
    { title: `${processes} processes, \`recall: false\``, processes, store: /** @type {const} */ ('postgres'), options: { recall: false } },
  ]),
]

/**
 * A build of the package, as it comes or with `waitForLease: false`, in each process of a setup.
 *
 * @typedef {object} Arm
 * @property {string} name
 * @property {string} title
 * @property {boolean} waits
 * @property {string[]} secrets of the keys that are rotated, as they are now
 * @property {number[]} latencies
 * @property {ReturnType<typeof startLoad>} load
 * @property {string[]} used
 */

/** @typedef {{ processes: ReturnType<typeof startInstances>[], origins: string[], arms: Arm[], end: () => Promise<void> }} Fleet */

/**
 * How long a rotation over HTTP takes, from sending the request to its 200. The builds and both settings take turns in the same processes, all of which
 * have traffic meanwhile.
 *
 * @param {{ quick: boolean }} options
 */
export async function rotations({ quick }) {
  const many = quick ? { rounds: 2, keys: 6 } : { rounds: 3, keys: 25 }
  const services = { postgres: await startPostgres(), redis: await startRedis() }
  const loads = Array.from({ length: 4 }, startLoad)
  const measured = []
  for (const setup of quick ? SETUPS.slice(0, 6) : SETUPS) {
    console.error(setup.title)
    const fleet = await started(setup, services, loads, many.keys)
    await inTurns(fleet, many.rounds)
    measured.push(...fleet.arms.filter(({ waits }) => waits).map((arm) => figures(setup.title, arm, fleet.arms)))
    await fleet.end()
  }
  console.error('one of four processes stopped')
  const stopped = await withOneStopped(services, loads)
  return { result: { measured, stopped }, text: [table(measured), stoppedTable(stopped)].join('\n\n') }
}

/**
 * The ratio of medians of one process on PostgreSQL, by default options and without any wait; for the guard.
 *
 * @param {string} postgres the URL of a server
 */
export async function priceOfWaiting(postgres) {
  const [setup] = /** @type {[Setup]} */ (SETUPS.slice(0, 1))
  const fleet = await started(setup, { postgres, redis: '' }, Array.from({ length: 4 }, startLoad), 25, [thisBuild()])
  await inTurns(fleet, 6)
  const [arm] = fleet.arms.filter(({ waits }) => waits)
  await fleet.end()
  return arm === undefined ? Number.NaN : figures(setup.title, arm, fleet.arms).ratio
}

/**
 * @param {Setup} setup
 * @param {{ postgres: string, redis: string }} services
 * @param {ReturnType<typeof startLoad>[]} loads
 * @param {number} keys how many are rotated in each turn
 * @param {readonly import('./packages.mjs').Build[]} [of]
 * @returns {Promise<Fleet>}
 */
async function started({ processes: count, store, redis = false, options = {} }, services, loads, keys, of = builds()) {
  const folder = mkdtempSync(join(tmpdir(), 'bench-sqlite-'))
  const processes = Array.from({ length: count }, startInstances)
  const kinds = of.flatMap((build) =>
    [true, false].map((waits) => ({ ...build, waits, name: `${build.name}-${waits ? 'waits' : 'answers'}` })),
  )
  const instances = await Promise.all(
    kinds.map(async ({ name, folder: build, waits }) => ({
      ...{ name, folder: build },
      ...(store === 'postgres' && { database: await freshDatabase(services.postgres) }),
      ...(store === 'sqlite' && { database: join(folder, `${name}.db`) }),
      ...(redis && { redis: services.redis }),
      options: { ...options, ...(!waits && { waitForLease: false }) },
    })),
  )
  const origins = (await Promise.all(processes.map((one) => one.ask('start', { instances })))).map(({ origin }) => origin)
  const arms = await Promise.all(
    kinds.map(async ({ name, title, waits }, i) => {
      const first = /** @type {ReturnType<typeof startInstances>} */ (processes[0])
      await first.ask('migrate', { name })
      const made = await first.ask('create', { name, count: USED + keys })
      const load = /** @type {ReturnType<typeof startLoad>} */ (loads[i])
      return { name, title, waits, load, used: made.slice(0, USED), secrets: made.slice(USED), latencies: [] }
    }),
  )
  const fleet = {
    ...{ processes, origins, arms },
    async end() {
      await quiet(fleet)
      await Promise.all(processes.map((one) => one.end()))
      rmSync(folder, { recursive: true })
    },
  }
  await busy(fleet, origins)
  // By then everybody has met every key that is in use.
  await pause(500)
  return fleet
}

/**
 * Gives each instance of some processes its requests.
 *
 * @param {Fleet} fleet
 * @param {string[]} origins
 */
async function busy({ arms }, origins) {
  for (const { load, name, used } of arms) {
    await load.ask('prepare', { name, origins, path: `/${name}/data`, tokens: used, connections: 4 * origins.length, status: 200 })
    await load.ask('start', { name, perSecond: TRAFFIC * origins.length })
  }
}

/** @param {Fleet} fleet */
async function quiet({ arms }) {
  for (const { load, name } of arms) {
    // What became of the traffic is no figure here.
    await load.ask('stop').catch((error) => console.error(String(error)))
    await load.ask('forget', { name })
  }
}

/**
 * @param {Fleet} fleet
 * @param {number} rounds
 */
async function inTurns({ origins, arms }, rounds) {
  for (const arm of arms) await inARow(origins, arm, WARM_UP)
  for (let round = 0; round < rounds; round++) {
    for (const arm of round % 2 === 0 ? arms : arms.toReversed()) {
      await everywhere(origins, arm)
      arm.latencies.push(...(await inARow(origins, arm, arm.secrets.length)))
    }
  }
}

/**
 * Rotates the first keys, each by another process than the one before.
 *
 * @param {readonly string[]} origins
 * @param {Arm} arm
 * @param {number} count
 */
function inARow(origins, arm, count) {
  return Promise.all(
    arm.secrets.slice(0, count).map(async (_, i) => {
      await pause(i * EVERY_MS)
      return rotated(origins[i % origins.length] ?? '', arm, i)
    }),
  )
}

const agent = new Agent({ keepAlive: true })

/**
 * Presents the secrets that are about to be rotated to all processes, so that each knows them.
 *
 * @param {readonly string[]} origins
 * @param {Arm} arm
 */
async function everywhere(origins, { name, secrets }) {
  for (const origin of origins)
    await Promise.all(secrets.map((secret) => sent('GET', `${origin}/${name}/data`, { authorization: `Bearer ${secret}` })))
}

/**
 * Rotates one of the keys; resolves with how long that took, in milliseconds.
 *
 * @param {string} origin
 * @param {Arm} arm
 * @param {number} which
 */
async function rotated(origin, { name, secrets }, which) {
  const headers = { authorization: `Bearer ${secrets[which]}`, 'idempotency-key': randomUUID() }
  const since = performance.now()
  const { secret } = JSON.parse(await sent('POST', `${origin}/${name}/keys/self/rotate`, headers))
  const took = performance.now() - since
  secrets[which] = secret
  return took
}

/**
 * @param {'GET' | 'POST'} method
 * @param {string} url
 * @param {{ [name: string]: string }} headers
 * @returns {Promise<string>} the body of a 200
 */
async function sent(method, url, headers) {
  for (let tries = 1; ; tries++) {
    const { status, body } = await answerTo(method, url, headers)
    if (status === 200) return body
    if (status !== 503 || tries === TRIES) throw new Error(`${method} ${new URL(url).pathname} was answered ${status}.`)
    console.error(`${method} ${new URL(url).pathname} was answered 503, and is sent again.`)
    await pause(AGAIN_AFTER_MS)
  }
}

/**
 * @param {'GET' | 'POST'} method
 * @param {string} url
 * @param {{ [name: string]: string }} headers
 * @returns {Promise<{ status: number | undefined, body: string }>}
 */
function answerTo(method, url, headers) {
  return new Promise((resolve, reject) => {
    const asked = request(url, { method, headers, agent }, async (response) => {
      try {
        let body = ''
        for await (const part of response.setEncoding('utf8')) body += part
        resolve({ status: response.statusCode, body })
      } catch (error) {
        reject(error)
      }
    })
    asked.on('error', reject)
    asked.end()
  })
}

/**
 * The first rotations after one of four processes was stopped in the middle of its traffic, which nobody is told of.
 *
 * @param {{ postgres: string, redis: string }} services
 * @param {ReturnType<typeof startLoad>[]} loads
 */
async function withOneStopped(services, loads) {
  const fleet = await started({ title: '', processes: 4, store: 'postgres', redis: true }, services, loads, 5)
  const last = /** @type {ReturnType<typeof startInstances>} */ (fleet.processes[3])
  const others = fleet.origins.slice(0, 3)
  const results = []
  for (const arm of fleet.arms.filter(({ waits }) => waits)) {
    await everywhere(fleet.origins, arm)
    await quiet(fleet)
    last.signal('SIGSTOP')
    await busy(fleet, others)
    const tookMs = []
    for (let i = 0; i < arm.secrets.length; i++) tookMs.push(await rotated(others[i % others.length] ?? '', arm, i))
    last.signal('SIGCONT')
    await quiet(fleet)
    await busy(fleet, fleet.origins)
    await pause(RECOVERY_MS)
    results.push({ title: arm.title, tookMs })
  }
  await fleet.end()
  return results
}

/**
 * @param {string} setup
 * @param {Arm} arm
 * @param {readonly Arm[]} arms
 */
function figures(setup, { title, latencies }, arms) {
  const without = arms.find((other) => other.title === title && !other.waits)?.latencies ?? []
  const spreadOf = (/** @type {readonly number[]} */ all) => ({
    median: quantile(all, 0.5),
    p90: quantile(all, 0.9),
    p99: quantile(all, 0.99),
  })
  const [usual, atCommit] = [spreadOf(latencies), spreadOf(without)]
  return { setup, build: title, rotations: latencies.length, usual, atCommit, ratio: usual.median / atCommit.median }
}

/** @param {readonly ReturnType<typeof figures>[]} measured */
function table(measured) {
  const head = ['', '', 'rotation ms', 'p90', 'p99', '`waitForLease: false` ms', 'p90', 'p99', 'ratio']
  const lines = measured.map(({ setup, build, usual, atCommit, ratio }) => [
    ...[setup, build],
    ...[usual.median, usual.p90, usual.p99, atCommit.median, atCommit.p90, atCommit.p99, ratio].map(number),
  ])
  return `${markdown(head, lines)}\n\n${measured[0]?.rotations} rotations in each line and setting.`
}

/** @param {readonly { title: string, tookMs: readonly number[] }[]} stopped */
function stoppedTable(stopped) {
  const head = ['one of four processes stopped', ...[1, 2, 3, 4, 5].map((nth) => `rotation ${nth} ms`)]
  return markdown(
    head,
    stopped.map(({ title, tookMs }) => [title, ...tookMs.map(number)]),
  )
}
