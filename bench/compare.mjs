import { setTimeout as pause } from 'node:timers/promises'
import { NAMES } from './names.mjs'
import { rows as allRows } from './rows.mjs'
import { leaveCoresTo, pinning, startPostgres, startProcess, startRedis } from './services.mjs'
import { isTie, markdown, number, spread, widest, withSpread } from './stats.mjs'

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
const EMPTY = ['empty', 'empty-again']
const METRICS = ['perSecond', 'cpuMicros', 'p50', 'p99', 'p99AtHalfLoad']

const LOCAL_AT_MOST = 1.1
/** How many times a local lease each of these has to cost at least. */
const AT_LEAST = { passport: 1.25, 'better-auth-memory': 2.5 }
/** No more than this is a tie for the guard; without a limit next to everything would be one on a busy host. */
const WIDEST_TIE_IN_TURNS = 1.1
const WIDEST_TIE_IN_SLICES = 1.3

/**
 * Measures rows side by side: all servers are up, one at a time has traffic, for a short slice, in an order that turns around each round. So what
 * the machine does meanwhile falls on all rows alike.
 *
 * With `turns`, a row's slice in a round comes in so many parts, with a turn of each other row in between. Neighbours on the host that come and go
 * within a second then fall on all rows alike too, but all that can be told is the CPU time of a round's parts together.
 *
 * `lives` says how many processes each row gets, one after the other: two processes of one program can differ by some per cent for as long as they
 * live, as the compiler and the allocator happened to go about it, and that is no news about the program.
 *
 * @param {{
 *   only?: string[], rounds: number, sliceMs: number, turns?: number, lives?: number, warmUpMs: number, connections: number, cpuProf?: string,
 *   halfLoad?: boolean,
 * }} options
 */
export async function compare({ only, rounds, sliceMs, turns, lives = 2, warmUpMs, connections, cpuProf, halfLoad = true }) {
  const rows = chosen(only)
  leaveCoresTo(1)
  const POSTGRES_URL = await startPostgres()
  const REDIS_URL = await startRedis()
  const load = startProcess('load.mjs')
  const servers = new Map()
  const measured = new Map(rows.map(({ name }) => [name, { slices: [], halfLoad: [], requests: 0, reads: 0, commands: 0 }]))
  const until =
    performance.now() + 60_000 + rows.length * (lives * (2 * warmUpMs + 5_000) + rounds * 4.5 * ((turns ?? 1) * sliceMs + LEAD_IN_MS + 500))
  for (let round = 0; round < rounds; round++) {
    if (round % Math.ceil(rounds / lives) === 0) await startAll()
    say(`round ${round + 1} of ${rounds}`)
    const inOrder = round % 2 === 0 ? rows : rows.toReversed()
    if (turns !== undefined) await inTurns(inOrder)
    else for (const row of inOrder) note(row, await slice(row, sliceMs))
  }
  // At half of what each can do, latency is that of a server with room to breathe, not that of its queue.
  for (let round = 0; halfLoad && round < Math.ceil(rounds / 2); round++) {
    say(`half load, round ${round + 1} of ${Math.ceil(rounds / 2)}`)
    for (const row of round % 2 === 0 ? rows : rows.toReversed()) {
      const own = measured.get(row.name)
      const perSecond = spread(own.slices.map((one) => one.perSecond)).median / 2
      own.halfLoad.push((await slice(row, sliceMs, perSecond)).numbers.p99)
    }
  }
  // Before the next comparison: even idle, they would share the core with its servers.
  for (const { end } of servers.values()) await end()
  await load.end()
  return evaluate(rows, measured)

  function note({ name }, { numbers, ...sums }) {
    if (performance.now() > until) throw new Error('The run takes three times as long as it should: is the machine busy?')
    const own = measured.get(name)
    own.slices.push(numbers)
    for (const [what, count] of Object.entries(sums)) own[what] += count
  }

  async function startAll() {
    for (const row of rows) {
      await servers.get(row.name)?.end()
      if (servers.has(row.name)) await load.ask('forget', { name: row.name })
      say(`starting ${row.name}`)
      const execArgv = cpuProf === row.name ? ['--cpu-prof', '--cpu-prof-dir', '.tmp'] : []
      const env = { ROW: row.name, POSTGRES_URL, REDIS_URL, ...(turns !== undefined && { LEASE_MS: String(LEASE_MS * rows.length) }) }
      const server = startProcess('server.mjs', { core: 0, env, execArgv })
      const { origin, tokens } = await server.ask('start')
      await load.ask('prepare', {
        name: row.name,
        origins: [origin],
        tokens,
        connections: row.connections ?? connections,
        status: row.status ?? 200,
      })
      servers.set(row.name, server)
    }
    for (const row of rows) {
      say(`warming up ${row.name}`)
      await slice(row, warmUpMs)
    }
  }

  /** In the same order at each turn, so that all rows are idle for equally long before theirs. */
  async function inTurns(inOrder) {
    const sums = new Map(rows.map(({ name }) => [name, { cpuMicros: 0, measured: 0, requests: 0, reads: 0, commands: 0 }]))
    for (let turn = 0; turn < turns; turn++) {
      for (const { name } of inOrder) {
        const server = servers.get(name)
        const idle = await server.ask('usage')
        await load.ask('start', { name })
        await pause(TURN_LEAD_IN_MS)
        const before = await server.ask('usage')
        await pause(sliceMs)
        const after = await server.ask('usage')
        await load.ask('stop')
        const sum = sums.get(name)
        sum.cpuMicros += after.cpuMicros - before.cpuMicros
        sum.measured += after.requests - before.requests
        for (const [what, count] of Object.entries(counted(idle, await server.ask('usage')))) sum[what] += count
      }
    }
    for (const row of rows) {
      const { cpuMicros, measured, ...counts } = sums.get(row.name)
      refuseIdle(row, measured)
      note(row, { numbers: { cpuMicros: cpuMicros / measured }, ...counts })
    }
  }

  async function slice(row, ms, perSecond) {
    const { name } = row
    const server = servers.get(name)
    const idle = await server.ask('usage')
    await load.ask('start', { name, perSecond })
    await pause(LEAD_IN_MS)
    const [before] = await Promise.all([server.ask('usage'), load.ask('record')])
    await pause(ms)
    const [after, { p50, p99 }] = await Promise.all([server.ask('usage'), load.ask('stop')])
    const end = await server.ask('usage')
    const requests = after.requests - before.requests
    if (perSecond === undefined) refuseIdle(row, requests)
    return {
      numbers: {
        perSecond: (requests / (after.atMs - before.atMs)) * 1_000,
        cpuMicros: (after.cpuMicros - before.cpuMicros) / requests,
        p50,
        p99,
      },
      ...counted(idle, end),
    }
  }
}

/** What a server counted between two readings. */
function counted(before, after) {
  const of = (what) => (after[what] ?? 0) - (before[what] ?? 0)
  return { requests: of('requests'), reads: of('reads'), commands: of('commands') }
}

/** What cost nothing because nothing was done would pass for cheap, or for dear. */
function refuseIdle({ name }, requests) {
  if (requests === 0) throw new Error(`${name}: no request came in while it was measured.`)
}

function chosen(only) {
  const shown = NAMES.map((name) => allRows.find((row) => row.name === name))
  if (only === undefined) return shown
  // What everything is compared with is always there.
  const wanted = new Set([...EMPTY, ...only])
  for (const { name, baseline } of shown) if (baseline !== undefined && wanted.has(name)) wanted.add(baseline)
  return shown.filter(({ name }) => wanted.has(name))
}

/** By which factor a row differs, round by round, from the mean of others in the same round. */
function ratios(figures, name, others) {
  return figures(name).map((own, i) => own / (others.reduce((sum, other) => sum + figures(other)[i], 0) / others.length))
}

function evaluate(rows, measured) {
  /** A row's figure in each round. */
  const figures = (metric) => (name) =>
    metric === 'p99AtHalfLoad' ? measured.get(name).halfLoad : measured.get(name).slices.map((slice) => slice[metric] ?? Number.NaN)
  const same = Object.fromEntries(METRICS.map((metric) => [metric, spread(ratios(figures(metric), 'empty-again', ['empty']))]))
  const results = rows.map((row) => {
    const { slices, requests, reads, commands } = measured.get(row.name)
    const baselines = row.baseline === undefined ? EMPTY : [row.baseline]
    const metrics = METRICS.map((metric) => {
      const ratio = spread(ratios(figures(metric), row.name, baselines))
      return [metric, { ...spread(figures(metric)(row.name)), ratio, tie: isTie(ratio.median, same[metric]) }]
    })
    return {
      name: row.name,
      title: row.title,
      ...Object.fromEntries(metrics),
      commandsPerRequest: commands / requests,
      readsPerRequest: reads / requests,
      slices,
    }
  })
  return { node: process.version, pinning, rounds: measured.get('empty').slices.length, same, results }
}

export function table({ node, pinning, rounds, same, results }) {
  const cell = ({ ratio, tie, ...values }) =>
    Number.isNaN(values.median) ? '–' : `${withSpread(values)} ${tie ? `tie (×${number(ratio.median)})` : `×${number(ratio.median)}`}`
  const share = (value) => (value < 0.0001 ? '–' : value < 0.005 ? '<0.01' : number(value))
  const columns = {
    '': (row) => row.title,
    'requests/s': (row) => cell(row.perSecond),
    'CPU µs/request': (row) => withSpread(row.cpuMicros),
    'CPU × empty': (row) => (row.cpuMicros.tie ? `tie (${number(row.cpuMicros.ratio.median)})` : withSpread(row.cpuMicros.ratio)),
    'p50 ms': (row) => cell(row.p50),
    'p99 ms': (row) => cell(row.p99),
    'p99 ms at half load': (row) => cell(row.p99AtHalfLoad),
    'Redis commands/request': (row) => share(row.commandsPerRequest),
    'authority reads/request': (row) => share(row.readsPerRequest),
  }
  // What a run did not measure has no column.
  const shown = Object.entries(columns).filter(([, of]) => results.some((row) => of(row) !== '–'))
  return [
    markdown(
      shown.map(([head]) => head),
      results.map((row) => shown.map(([, of]) => of(row))),
    ),
    '',
    `Median (p10–p90) over ${rounds} rounds, × the same app with an empty middleware; Node ${node}; the server on ${pinning}.`,
    `"tie": no further away than the two empty middlewares are from each other (CPU ×${number(same.cpuMicros.p10)}–${number(same.cpuMicros.p90)}).`,
  ].join('\n')
}

/**
 * The few rows of the guard. What a lease costs is a matter of some per cent, so those rows take short turns. A thousand keys need longer ones: in short
 * turns none of their leases would live to be used again.
 *
 * @returns {Promise<{ result: object, text: string, complaints: string[] }>} `complaints` says what costs more than it may; empty is good news.
 */
export async function guard({ connections }) {
  const usual = { connections, halfLoad: false }
  const inTurns = await compare({
    ...usual,
    only: ['local', 'jsonwebtoken', ...Object.keys(AT_LEAST)],
    rounds: 3,
    lives: 3,
    warmUpMs: 1_500,
    sliceMs: 200,
    turns: 8,
  })
  const inSlices = await compare({
    ...usual,
    only: ['local', 'thousand', 'get-pipelined'],
    rounds: 4,
    lives: 1,
    warmUpMs: 2_500,
    sliceMs: 1_000,
  })
  const rules = rulesFor(inTurns, inSlices)
  const lines = rules.map(({ what, ratio, bound, kept }) => [what, exact(ratio), bound, kept ? 'yes' : '**no**'])
  return {
    result: { inTurns, inSlices, rules },
    text: [table(inTurns), table(inSlices), markdown(['CPU per request', 'found', 'allowed', 'kept'], lines)].join('\n\n'),
    complaints: rules.filter(({ kept }) => !kept).map(({ what, ratio, bound }) => `${what}: ${exact(ratio)}, where it has to be ${bound}.`),
  }
}

/** What the guard asks, with the answers. `kept` is false for a ratio that is no number. */
function rulesFor(inTurns, inSlices) {
  const titleOf = (name) => inTurns.results.find((row) => row.name === name).title
  const median = (name, others, run) => spread(ratios(cpuMicros(run), name, others)).median
  const tie = ({ same }, most) => Math.min(widest(same.cpuMicros), most)
  const atMost = (what, ratio, most) => ({ what, ratio, bound: `${exact(most)} at most`, kept: ratio <= most })
  const atLeast = (what, ratio, least) => ({ what, ratio, bound: `${exact(least)} at least`, kept: ratio >= least })
  return [
    // Between the two runs: short turns find a server's code out of the caches, and slices of a second catch neighbours that others do not.
    atMost('a local lease, × an empty middleware', (median('local', EMPTY, inTurns) + median('local', EMPTY, inSlices)) / 2, LOCAL_AT_MOST),
    ...Object.entries(AT_LEAST).map(([name, least]) =>
      atLeast(`${titleOf(name)}, × a local lease`, median(name, ['local'], inTurns), least),
    ),
    // Of these two a tie is asked for, or better.
    atLeast(
      `${titleOf('jsonwebtoken')}, × a local lease`,
      median('jsonwebtoken', ['local'], inTurns),
      1 / tie(inTurns, WIDEST_TIE_IN_TURNS),
    ),
    atMost(
      '1,000 keys in turn, × a GET for each request',
      median('thousand', ['get-pipelined'], inSlices),
      tie(inSlices, WIDEST_TIE_IN_SLICES),
    ),
  ]
}

/** With two decimals, what is refused could read like what is allowed. */
function exact(ratio) {
  return `×${ratio.toFixed(3)}`
}

/** What each row of a run cost in each round. */
function cpuMicros({ results }) {
  return (name) => results.find((row) => row.name === name).slices.map((slice) => slice.cpuMicros)
}

function say(line) {
  console.error(line)
}
