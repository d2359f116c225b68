import { setTimeout as pause } from 'node:timers/promises'
import { NAMES } from './names.mjs'
import { rows as allRows } from './rows.mjs'
import { leaveCoresTo, pinning, startLoad, startPostgres, startRedis, startServer } from './services.mjs'
import { isTie, spread } from './stats.mjs'

/**
 * @import { Row } from './rows.mjs'
 * @import { Usage } from './server.mjs'
 * @import { Spread } from './stats.mjs'
 */

/**
 * How long a server gets to settle before anything is measured: expired leases are renewed, and a process that was idle while others had their turn
 * needs some 500 to 750 ms until a request costs what it did before, whatever it does.
 */
const LEAD_IN_MS = 750
/** The same, for one that was idle for as long as the other rows have their turns only. */
const TURN_LEAD_IN_MS = 100
/** In turns a server has a share of the time; its leases last as many times longer, so that it has one in hand when its turn comes. */
const LEASE_MS = 1_000
/** The empty middleware of Express 5 is measured twice. */
export const EMPTY = ['empty', 'empty-again']

/**
 * What is measured, and how often. With `turns`, a row's slice in a round comes in so many parts, with a turn of each other row in between. Neighbours on
 * the host that come and go within a second then fall on all rows alike too, but all that can be told is the CPU time of a round's parts together.
 *
 * `lives` says how many processes each row gets, one after the other: two processes of one program can differ by some per cent for as long as they
 * live, by chance of the compiler and the allocator. That says nothing about the program.
 *
 * @typedef {object} Plan
 * @property {string[]} [only]
 * @property {number} rounds
 * @property {number} sliceMs
 * @property {number} [turns]
 * @property {number} [lives] default 2
 * @property {number} warmUpMs
 * @property {number} connections
 * @property {string} [cpuProf] the row whose servers leave a CPU profile
 * @property {boolean} [halfLoad] default true
 */

/**
 * The figures of one slice.
 *
 * @typedef {object} Slice
 * @property {number} cpuMicros
 * @property {number} [perSecond]
 * @property {number} [p50]
 * @property {number} [p99]
 */

/** @typedef {{ requests: number, reads: number, commands: number }} Counts */
/** @typedef {Counts & { slices: Slice[], halfLoad: number[] }} Measured */
/** @typedef {keyof Slice | 'p99AtHalfLoad'} Metric */
/** @typedef {Spread & { ratio: Spread, tie: boolean }} Figure `ratio` is × the empty middleware. */
/** @typedef {Record<Metric, Figure> & { name: string, title: string, commandsPerRequest: number, readsPerRequest: number, slices: Slice[] }} Result */
/** @typedef {{ node: string, pinning: string, rounds: number, same: Record<Metric, Spread>, results: Result[] }} Comparison */

/**
 * Measures rows side by side: all servers are up, one at a time has traffic, for a short slice, in an order that turns around each round. So what
 * the machine does meanwhile falls on all rows alike.
 *
 * @param {Plan} plan
 * @returns {Promise<Comparison>}
 */
export async function compare(plan) {
  const rows = chosen(plan.only)
  leaveCoresTo(1)
  const services = { POSTGRES_URL: await startPostgres(), REDIS_URL: await startRedis() }
  const measuring = new Measuring(plan, rows, services)
  await measuring.rounds()
  // At half of what each can do, latency is that of a server with room to breathe, not that of its queue.
  if (plan.halfLoad ?? true) await measuring.halfLoad()
  // Before the next comparison: even idle, they would share the core with its servers.
  await measuring.end()
  return evaluate(rows, measuring.measured)
}

/** @param {readonly string[] | undefined} only */
function chosen(only) {
  const shown = NAMES.map((name) => present(allRows.find((row) => row.name === name)))
  if (only === undefined) return shown
  // What everything is compared with is always there.
  const wanted = new Set([...EMPTY, ...only])
  for (const { name, baseline } of shown) if (baseline !== undefined && wanted.has(name)) wanted.add(baseline)
  return shown.filter(({ name }) => wanted.has(name))
}

class Measuring {
  /** @type {Map<string, ReturnType<typeof startServer>>} */
  #servers = new Map()
  #load = startLoad()

  /**
   * @param {Plan} plan
   * @param {readonly Row[]} rows
   * @param {{ POSTGRES_URL: string, REDIS_URL: string }} services
   */
  constructor(plan, rows, services) {
    this.plan = plan
    this.rows = rows
    this.services = services
    /** @type {Map<string, Measured>} */
    this.measured = new Map(rows.map(({ name }) => [name, { slices: [], halfLoad: [], requests: 0, reads: 0, commands: 0 }]))
    const { rounds, lives = 2, warmUpMs, turns = 1, sliceMs } = plan
    const roundMs = 4.5 * (turns * sliceMs + LEAD_IN_MS + 500)
    this.until = performance.now() + 60_000 + rows.length * (lives * (2 * warmUpMs + 5_000) + rounds * roundMs)
  }

  async rounds() {
    const { rounds, lives = 2, turns, sliceMs } = this.plan
    for (let round = 0; round < rounds; round++) {
      if (round % Math.ceil(rounds / lives) === 0) await this.#startAll()
      say(`round ${round + 1} of ${rounds}`)
      const inOrder = this.#inOrder(round)
      if (turns !== undefined) await this.#inTurns(inOrder, turns)
      else for (const row of inOrder) this.#note(row, await this.#slice(row, sliceMs))
    }
  }

  async halfLoad() {
    const { rounds, sliceMs } = this.plan
    for (let round = 0; round < Math.ceil(rounds / 2); round++) {
      say(`half load, round ${round + 1} of ${Math.ceil(rounds / 2)}`)
      for (const row of this.#inOrder(round)) {
        const own = present(this.measured.get(row.name))
        const perSecond = spread(own.slices.map((slice) => slice.perSecond ?? Number.NaN)).median / 2
        const { p99 = Number.NaN } = (await this.#slice(row, sliceMs, perSecond)).figures
        own.halfLoad.push(p99)
      }
    }
  }

  async end() {
    for (const { end } of this.#servers.values()) await end()
    await this.#load.end()
  }

  /** @param {number} round */
  #inOrder(round) {
    return round % 2 === 0 ? this.rows : this.rows.toReversed()
  }

  /**
   * @param {Row} row
   * @param {{ figures: Slice, counts: Counts }} slice
   */
  #note({ name }, { figures, counts }) {
    if (performance.now() > this.until) throw new Error('The run takes three times as long as it should: is the machine busy?')
    const own = present(this.measured.get(name))
    own.slices.push(figures)
    add(own, counts)
  }

  async #startAll() {
    const { turns, cpuProf, connections, warmUpMs } = this.plan
    for (const row of this.rows) {
      const { name } = row
      await this.#servers.get(name)?.end()
      if (this.#servers.has(name)) await this.#load.ask('forget', { name })
      say(`starting ${name}`)
      const execArgv = cpuProf === name ? ['--cpu-prof', '--cpu-prof-dir', '.tmp'] : []
      const lease = turns === undefined ? {} : { LEASE_MS: String(LEASE_MS * this.rows.length) }
      const server = startServer({ core: 0, env: { ROW: name, ...this.services, ...lease }, execArgv })
      const { origin, tokens } = await server.ask('start')
      await this.#load.ask('prepare', {
        ...{ name, tokens, origins: [origin] },
        ...{ connections: row.connections ?? connections, status: row.status ?? 200 },
      })
      this.#servers.set(name, server)
    }
    for (const row of this.rows) {
      say(`warming up ${row.name}`)
      await this.#slice(row, warmUpMs)
    }
  }

  /**
   * In the same order at each turn, so that all rows are idle for equally long before theirs.
   *
   * @param {readonly Row[]} inOrder
   * @param {number} turns
   */
  async #inTurns(inOrder, turns) {
    const sums = new Map(inOrder.map((row) => [row, { cpuMicros: 0, measured: 0, counts: { requests: 0, reads: 0, commands: 0 } }]))
    for (let turn = 0; turn < turns; turn++) {
      for (const [{ name }, sum] of sums) {
        const server = present(this.#servers.get(name))
        const idle = await server.ask('usage')
        await this.#load.ask('start', { name })
        await pause(TURN_LEAD_IN_MS)
        const before = await server.ask('usage')
        await pause(this.plan.sliceMs)
        const after = await server.ask('usage')
        await this.#load.ask('stop')
        sum.cpuMicros += after.cpuMicros - before.cpuMicros
        sum.measured += after.requests - before.requests
        add(sum.counts, counted(idle, await server.ask('usage')))
      }
    }
    for (const [row, { cpuMicros, measured, counts }] of sums) {
      refuseIdle(row, measured)
      this.#note(row, { figures: { cpuMicros: cpuMicros / measured }, counts })
    }
  }

  /**
   * @param {Row} row
   * @param {number} ms
   * @param {number} [perSecond]
   */
  async #slice(row, ms, perSecond) {
    const { name } = row
    const server = present(this.#servers.get(name))
    const idle = await server.ask('usage')
    await this.#load.ask('start', { name, ...(perSecond !== undefined && { perSecond }) })
    await pause(LEAD_IN_MS)
    const [before] = await Promise.all([server.ask('usage'), this.#load.ask('record')])
    await pause(ms)
    const [after, { p50, p99 }] = await Promise.all([server.ask('usage'), this.#load.ask('stop')])
    const end = await server.ask('usage')
    const requests = after.requests - before.requests
    if (perSecond === undefined) refuseIdle(row, requests)
    return {
      figures: {
        perSecond: (requests / (after.atMs - before.atMs)) * 1_000,
        cpuMicros: (after.cpuMicros - before.cpuMicros) / requests,
        p50,
        p99,
      },
      counts: counted(idle, end),
    }
  }
}

/**
 * What a server counted between two readings.
 *
 * @param {Usage} before
 * @param {Usage} after
 * @returns {Counts}
 */
function counted(before, after) {
  return { requests: after.requests - before.requests, reads: after.reads - before.reads, commands: after.commands - before.commands }
}

/**
 * @param {Counts} sum
 * @param {Counts} more
 */
function add(sum, { requests, reads, commands }) {
  sum.requests += requests
  sum.reads += reads
  sum.commands += commands
}

/**
 * What cost nothing because nothing was done would pass for cheap, or for dear.
 *
 * @param {Row} row
 * @param {number} requests
 */
function refuseIdle({ name }, requests) {
  if (requests === 0) throw new Error(`${name}: no request came in while it was measured.`)
}

/**
 * @param {readonly Row[]} rows
 * @param {Map<string, Measured>} measured
 * @returns {Comparison}
 */
function evaluate(rows, measured) {
  /** A row's figure in each round. */
  const figures = (/** @type {Metric} */ metric) => (/** @type {string} */ name) => {
    const { slices, halfLoad } = present(measured.get(name))
    return metric === 'p99AtHalfLoad' ? halfLoad : slices.map((slice) => slice[metric] ?? Number.NaN)
  }
  const same = forEachMetric((metric) => spread(ratios(figures(metric), 'empty-again', ['empty'])))
  const results = rows.map(({ name, title, baseline }) => {
    const { slices, requests, reads, commands } = present(measured.get(name))
    const metrics = forEachMetric((metric) => {
      const ratio = spread(ratios(figures(metric), name, baseline === undefined ? EMPTY : [baseline]))
      return { ...spread(figures(metric)(name)), ratio, tie: isTie(ratio.median, same[metric]) }
    })
    return { name, title, ...metrics, commandsPerRequest: commands / requests, readsPerRequest: reads / requests, slices }
  })
  return { node: process.version, pinning, rounds: present(measured.get('empty')).slices.length, same, results }
}

/**
 * By which factor a row differs, round by round, from the mean of others in the same round.
 *
 * @param {(name: string) => readonly number[]} figures
 * @param {string} name
 * @param {readonly string[]} others
 */
export function ratios(figures, name, others) {
  return figures(name).map((own, i) => own / (others.reduce((sum, other) => sum + (figures(other)[i] ?? Number.NaN), 0) / others.length))
}

/**
 * @template T
 * @param {(metric: Metric) => T} of
 * @returns {Record<Metric, T>}
 */
function forEachMetric(of) {
  return {
    ...{ perSecond: of('perSecond'), cpuMicros: of('cpuMicros'), p50: of('p50'), p99: of('p99') },
    p99AtHalfLoad: of('p99AtHalfLoad'),
  }
}

/**
 * @template T
 * @param {T | undefined} value
 * @returns {T}
 */
export function present(value) {
  if (value === undefined) throw new Error('A row that should be there is not.')
  return value
}

/** @param {string} line */
function say(line) {
  console.error(line)
}
