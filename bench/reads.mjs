import { setTimeout as pause } from 'node:timers/promises'
import { databaseOf, mintSecrets } from './keys.mjs'
import { builds } from './packages.mjs'
import { startInstances, startLoad, startPostgres } from './services.mjs'
import { KINDS } from './statements.mjs'
import { markdown, number } from './stats.mjs'
import { zipf } from './zipf.mjs'

/** As in `traffic.mjs`: a prime, so that the order falls in step with nothing. */
const DRAWS = 262_139
const CONNECTIONS = 32
/** Until the last uses of the last requests are written, which is a second later. */
const BEFORE_IDLE_MS = 3_000
const IDLE_MS = 5_000

/** How many keys take part, and how often any of them comes. */
const PATTERNS = [
  { keys: 1, perSecond: 100 },
  { keys: 1_000, perSecond: 100 },
  { keys: 1_000, perSecond: 1_000 },
  { keys: 100_000, perSecond: 1_000 },
]

/** @typedef {Awaited<ReturnType<ReturnType<typeof startInstances>['ask']>>} Answer */

/**
 * What one process asks of PostgreSQL under requests that come at a fixed rate, whether they are answered or not: both builds at once, each in a process of its
 * own and over a database of its own.
 *
 * @param {{ quick: boolean }} options
 */
export async function reads({ quick }) {
  // What is read again after a while is read again for the first time after 17 s.
  const times = quick ? { settleMs: 3_000, recordMs: 5_000 } : { settleMs: 20_000, recordMs: 30_000 }
  const server = await startPostgres()
  const most = Math.max(...PATTERNS.map(({ keys }) => keys))
  console.error(`making ${most} keys, twice`)
  const secrets = mintSecrets(most)
  const sides = []
  for (const build of builds()) sides.push({ build, url: (await databaseOf(server, secrets)).url })

  const result = []
  for (const pattern of PATTERNS) {
    console.error(`${pattern.keys} key(s), ${pattern.perSecond} requests a second`)
    const order = zipf(pattern.keys, DRAWS)
    const tokens = secrets.slice(0, pattern.keys)
    const both = await Promise.all(sides.map((side) => oneSide(side, { tokens, order, ...pattern, ...times })))
    result.push(...both)
  }
  return { result, text: table(result) }
}

/**
 * @param {{ build: import('./packages.mjs').Build, url: string }} side
 * @param {{ tokens: string[], order: Uint32Array, keys: number, perSecond: number, settleMs: number, recordMs: number }} how
 */
async function oneSide({ build, url }, { tokens, order, keys, perSecond, settleMs, recordMs }) {
  const { name, folder, title } = build
  const [served, load] = [startInstances(), startLoad()]
  const { origin } = await served.ask('start', { instances: [{ name, folder, database: url }] })
  await load.ask('prepare', { name, origins: [origin], path: `/${name}/data`, tokens, order, connections: CONNECTIONS, status: 200 })
  await load.ask('start', { name, perSecond })
  await pause(settleMs)
  const before = await served.ask('usage', { name })
  await load.ask('record')
  await pause(recordMs)
  const after = await served.ask('usage', { name })
  const { p50, p99 } = await load.ask('stop')
  await pause(BEFORE_IDLE_MS)
  const atRest = await served.ask('usage', { name })
  await pause(IDLE_MS)
  const rested = await served.ask('usage', { name })
  await Promise.all([served.end(), load.end()])

  const more = (/** @type {'requests' | 'firstSights' | 'atOnce' | 'cpuMicros' | typeof KINDS[number]} */ what) =>
    after[what] - before[what]
  const seconds = (after.atMs - before.atMs) / 1_000
  return {
    ...{ build: title, keys, perSecond, p50, p99 },
    served: more('requests') / seconds,
    statements: Object.fromEntries(KINDS.map((kind) => [kind, more(kind) / seconds])),
    firstSights: more('firstSights') / seconds,
    atOnce: more('atOnce') / (more('requests') - more('firstSights')),
    cpuMicros: more('cpuMicros') / more('requests'),
    atRest: KINDS.reduce((sum, kind) => sum + rested[kind] - atRest[kind], 0),
  }
}

/** @param {readonly Awaited<ReturnType<typeof oneSide>>[]} result */
function table(result) {
  const head = [
    '',
    '',
    'requests/s',
    'reads/s',
    'last uses written/s',
    'other statements/s',
    'first sights/s',
    'known keys answered at once',
    'p50 ms',
    'p99 ms',
    'CPU µs/request',
    'statements in 5 s without traffic',
  ]
  const lines = result.map((row) => [
    `${number(row.keys)} ${row.keys === 1 ? 'key' : 'keys'}`,
    row.build,
    number(row.served),
    ...KINDS.map((kind) => number(row.statements[kind] ?? Number.NaN)),
    number(row.firstSights),
    `${(100 * row.atOnce).toFixed(2)} %`,
    ...[row.p50, row.p99, row.cpuMicros, row.atRest].map(number),
  ])
  return markdown(head, lines)
}
