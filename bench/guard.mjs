import { compare, EMPTY, present, ratios } from './compare.mjs'
import { MIDDLEWARE, measured, SHA256 } from './micro.mjs'
import { priceOfWaiting } from './rotations.mjs'
import { startPostgres } from './services.mjs'
import { markdown, spread, widest } from './stats.mjs'
import { table } from './table.mjs'

/**
 * @import { Comparison } from './compare.mjs'
 */

/** How much of an empty middleware's CPU a local lease may cost, Express and HTTP included. It costs 1.03 to 1.10; 15 µs more make that 1.18 to 1.24. */
const LOCAL_AT_MOST = 1.15
/** How many times SHA-256 of a secret the whole middleware may cost in this process: it needs one, and was seen to cost some four. */
const HASHES_AT_MOST = 8
/** How much longer a rotation may take than one that waits for nobody, where there is nobody to wait for. A lease of a second makes that some 60. */
const WAITING_AT_MOST = 1.5
/** The widest tie: without a limit, almost everything would be one on a busy host. */
const WIDEST_TIE = 1.3
/** With fewer requests, a thousand keys in turn meet leases of a second that have ended before. */
const ENOUGH_PER_SECOND = 2_000

/** @typedef {{ what: string, ratio: number, most: number, kept: boolean }} Rule */

/**
 * The few rows of the guard. What a lease costs is a matter of some per cent, so those rows take short turns. A thousand keys need longer ones: in short
 * turns none of their leases would live to be used again. Only our own rows can break a rule; what they are compared with is an empty middleware, a GET
 * written by hand and a hash, none of which changes with ours.
 *
 * @param {{ connections: number }} options
 * @returns {Promise<{ result: object, text: string, complaints: string[] }>} `complaints` says what costs more than it may; empty is good news.
 */
export async function guard({ connections }) {
  const usual = { connections, halfLoad: false }
  const parts = await measured([SHA256, MIDDLEWARE])
  const inTurns = await compare({ ...usual, only: ['local'], rounds: 5, lives: 5, warmUpMs: 1_000, sliceMs: 200, turns: 8 })
  const only = ['local', 'thousand', 'get-pipelined']
  const inSlices = await compare({ ...usual, only, rounds: 4, lives: 1, warmUpMs: 2_500, sliceMs: 1_000 })
  const waiting = await priceOfWaiting(await startPostgres())
  const rules = rulesFor({ hashes: hashesOf(parts), waiting }, inTurns, inSlices)
  const broken = rules
    .filter(({ kept }) => !kept)
    .map(({ what, ratio, most }) => `${what}: ${exact(ratio)}, where it has to be ${exact(most)} at most.`)
  const lines = rules.map(({ what, ratio, most, kept }) => [what, exact(ratio), exact(most), kept ? 'yes' : '**no**'])
  return {
    result: { parts, inTurns, inSlices, rules },
    text: [table(inTurns), table(inSlices), markdown(['', 'found', 'at most', 'kept'], lines)].join('\n\n'),
    complaints: broken.length === 0 ? [] : [...broken, ...excuses(inTurns, inSlices)],
  }
}

/**
 * The rules and what was found. `kept` is false for a ratio that is not a number.
 *
 * @param {{ hashes: number, waiting: number }} ratios
 * @param {Comparison} inTurns
 * @param {Comparison} inSlices
 * @returns {Rule[]}
 */
function rulesFor({ hashes, waiting }, inTurns, inSlices) {
  const atMost = (/** @type {string} */ what, /** @type {number} */ ratio, /** @type {number} */ most) => {
    return { what, ratio, most, kept: ratio <= most }
  }
  return [
    atMost('a local lease in this process, without Express, × SHA-256 of the secret', hashes, HASHES_AT_MOST),
    // Between the two runs: short turns find a server's code out of the caches, and slices of a second catch neighbours that others do not.
    atMost('a local lease, × an empty middleware', (median(inTurns, 'local', EMPTY) + median(inSlices, 'local', EMPTY)) / 2, LOCAL_AT_MOST),
    atMost('a local lease, × a GET for each request', median(inSlices, 'local', ['get-pipelined']), 1),
    // A tie is enough.
    atMost(
      '1,000 keys in turn, × a GET for each request',
      median(inSlices, 'thousand', ['get-pipelined']),
      Math.min(widest(inSlices.same.cpuMicros), WIDEST_TIE),
    ),
    atMost('a rotation in one process on PostgreSQL, × one with `waitForLease: false`', waiting, WAITING_AT_MOST),
  ]
}

/**
 * Signs that the machine is busy, which may be why a rule is broken.
 *
 * @param {Comparison} inTurns
 * @param {Comparison} inSlices
 */
function excuses(inTurns, inSlices) {
  const apart = Math.max(...[inTurns, inSlices].map(({ same }) => widest(same.cpuMicros)))
  const perSecond = present(inSlices.results.find(({ name }) => name === 'thousand')).perSecond.median
  return [
    ...(apart > LOCAL_AT_MOST ? [`The machine may be busy: two empty middlewares differ by ${exact(apart)}.`] : []),
    ...(perSecond < ENOUGH_PER_SECOND ? [`The machine may be busy: a thousand keys had ${Math.round(perSecond)} requests a second.`] : []),
  ]
}

/** @param {Awaited<ReturnType<typeof measured>>} parts */
function hashesOf(parts) {
  const [sha256, middleware] = [SHA256, MIDDLEWARE].map((name) => present(parts.find((part) => part.name === name)).medianNs)
  return present(middleware) / present(sha256)
}

/**
 * @param {Comparison} comparison
 * @param {string} name
 * @param {readonly string[]} others
 */
function median({ results }, name, others) {
  const cpuMicros = (/** @type {string} */ of) => present(results.find((row) => row.name === of)).slices.map((slice) => slice.cpuMicros)
  return spread(ratios(cpuMicros, name, others)).median
}

/**
 * With two decimals, what is refused could read like what is allowed.
 *
 * @param {number} ratio
 */
function exact(ratio) {
  return `×${ratio.toFixed(3)}`
}
