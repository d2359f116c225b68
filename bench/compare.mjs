import { NAMES } from './names.mjs'
import { rows as allRows } from './rows.mjs'
import { leaveCoresTo, pinning, redisCounter, startPostgres, startProcess, startRedis } from './services.mjs'
import { isTie, markdown, number, spread, withSpread } from './stats.mjs'

/**
 * How long a server gets to settle before anything is measured: expired leases are renewed, and a process that was idle while others had their turn
 * needs some 500 to 750 ms until a request costs what it did before, whatever it does.
 */
const LEAD_IN_MS = 750
/**
 * Servers are started anew half-way: two processes of one program can differ by some per cent for as long as they live, as the compiler and the
 * allocator happened to go about it, and that is no news about the program.
 */
const LIVES = 2
const METRICS = ['perSecond', 'cpuMicros', 'p50', 'p99']

/** What stands in the guard: few rows, and what must not become slower. */
const GUARDED = ['empty', 'empty-again', 'local', 'thousand', 'get-pipelined', 'jsonwebtoken', 'passport', 'better-auth-memory']
const LOCAL_AT_MOST = 1.1
/** How many times a local lease each of these has to cost at least. */
const AT_LEAST = { passport: 1.25, 'better-auth-memory': 2.5 }

/**
 * Measures rows side by side: all servers are up, one at a time has traffic, for a short slice, in an order that turns around each round. So what
 * the machine does meanwhile falls on all rows alike.
 *
 * @param {{ only?: string[], rounds: number, sliceMs: number, warmUpMs: number, connections: number, cpuProf?: string, halfLoad?: boolean }} options
 */
export async function compare({ only, rounds, sliceMs, warmUpMs, connections, cpuProf, halfLoad = true }) {
  const rows = chosen(only)
  leaveCoresTo(1)
  const POSTGRES_URL = await startPostgres()
  const REDIS_URL = await startRedis()
  const countCommands = redisCounter(REDIS_URL)
  const load = startProcess('load.mjs')
  const servers = new Map()
  const measured = new Map(rows.map(({ name }) => [name, { slices: [], halfLoad: [], requests: 0, reads: 0, commands: 0 }]))
  const until = performance.now() + 60_000 + rows.length * (LIVES * (2 * warmUpMs + 5_000) + rounds * 4.5 * (sliceMs + LEAD_IN_MS + 500))
  for (let round = 0; round < rounds; round++) {
    if (round % Math.ceil(rounds / LIVES) === 0) await startAll()
    say(`round ${round + 1} of ${rounds}`)
    for (const row of round % 2 === 0 ? rows : rows.toReversed()) {
      if (performance.now() > until) throw new Error('The run takes three times as long as it should: is the machine busy?')
      const { numbers, ...sums } = await slice(row, sliceMs)
      const own = measured.get(row.name)
      own.slices.push(numbers)
      for (const [what, count] of Object.entries(sums)) own[what] += count
    }
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
  return evaluate(rows, measured)

  async function startAll() {
    for (const row of rows) {
      await servers.get(row.name)?.end()
      if (servers.has(row.name)) await load.ask('forget', { name: row.name })
      say(`starting ${row.name}`)
      const execArgv = cpuProf === row.name ? ['--cpu-prof', '--cpu-prof-dir', '.tmp'] : []
      const server = startProcess('server.mjs', { core: 0, env: { ROW: row.name, POSTGRES_URL, REDIS_URL }, execArgv })
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

  async function slice({ name }, ms, perSecond) {
    const server = servers.get(name)
    const [idle, commandsSent] = await Promise.all([server.ask('usage'), countCommands()])
    await load.ask('start', { name, perSecond })
    await pause(LEAD_IN_MS)
    const [before] = await Promise.all([server.ask('usage'), load.ask('record')])
    await pause(ms)
    const [after, { p50, p99, failures, last }] = await Promise.all([server.ask('usage'), load.ask('stop')])
    if (failures > 0) throw new Error(`${name}: ${failures} requests failed, the last one because the server ${last}.`)
    const [commands, end] = await Promise.all([commandsSent(), server.ask('usage')])
    const requests = after.requests - before.requests
    return {
      numbers: {
        perSecond: (requests / (after.atMs - before.atMs)) * 1_000,
        cpuMicros: (after.cpuMicros - before.cpuMicros) / requests,
        p50,
        p99,
      },
      requests: end.requests - idle.requests,
      reads: (end.reads ?? 0) - (idle.reads ?? 0),
      commands,
    }
  }
}

function chosen(only) {
  const shown = NAMES.map((name) => allRows.find((row) => row.name === name))
  if (only === undefined) return shown
  // What everything is compared with is always there.
  const wanted = new Set(['empty', 'empty-again', ...only])
  for (const row of shown) if (wanted.has(row.name)) wanted.add(row.baseline ?? 'empty')
  return shown.filter(({ name }) => wanted.has(name))
}

function evaluate(rows, measured) {
  const slicesOf = (name) => measured.get(name).slices
  /** In one round, by how much a row differs from the same app with an empty middleware; that one is measured twice on Express 5. */
  const ratios = (row, metric) => {
    const base = row.baseline ?? 'empty'
    const bases = base === 'empty' ? ['empty', 'empty-again'] : [base]
    return slicesOf(row.name).map((own, i) => {
      const mean = bases.reduce((sum, name) => sum + slicesOf(name)[i][metric], 0) / bases.length
      return own[metric] / mean
    })
  }
  const atHalfLoad = (row) => {
    const base = measured.get(row.baseline ?? 'empty').halfLoad
    return measured.get(row.name).halfLoad.map((own, i) => own / base[i])
  }
  const same = Object.fromEntries(
    METRICS.map((metric) => [metric, spread(slicesOf('empty-again').map((own, i) => own[metric] / slicesOf('empty')[i][metric]))]),
  )
  const results = rows.map((row) => {
    const { slices, halfLoad, requests, reads, commands } = measured.get(row.name)
    const metrics = Object.fromEntries(
      METRICS.map((metric) => {
        const ratio = spread(ratios(row, metric))
        return [metric, { ...spread(slices.map((slice) => slice[metric])), ratio, tie: isTie(ratio.median, same[metric]) }]
      }),
    )
    return {
      name: row.name,
      title: row.title,
      ...metrics,
      p99AtHalfLoad: { ...spread(halfLoad), ratio: spread(atHalfLoad(row)), tie: false },
      commandsPerRequest: commands / requests,
      readsPerRequest: reads / requests,
      slices,
    }
  })
  return { node: process.version, pinning, rounds: slicesOf('empty').length, same, results }
}

export function table({ node, pinning, rounds, same, results }) {
  const cell = ({ ratio, tie, ...values }) => `${withSpread(values)} ${tie ? `tie (×${number(ratio.median)})` : `×${number(ratio.median)}`}`
  const share = (value) => (value === 0 ? '–' : value < 0.005 ? '<0.01' : number(value))
  const lines = results.map((row) => [
    row.title,
    cell(row.perSecond),
    withSpread(row.cpuMicros),
    row.cpuMicros.tie ? `tie (${number(row.cpuMicros.ratio.median)})` : withSpread(row.cpuMicros.ratio),
    cell(row.p50),
    cell(row.p99),
    cell(row.p99AtHalfLoad),
    share(row.commandsPerRequest),
    share(row.readsPerRequest),
  ])
  return [
    markdown(
      [
        '',
        'requests/s',
        'CPU µs/request',
        'CPU × empty',
        'p50 ms',
        'p99 ms',
        'p99 ms at half load',
        'Redis commands/request',
        'authority reads/request',
      ],
      lines,
    ),
    '',
    `Median (p10–p90) over ${rounds} rounds, × the same app with an empty middleware; Node ${node}; the server on ${pinning}.`,
    `"tie": no further away than the two empty middlewares are from each other (CPU ×${number(same.cpuMicros.p10)}–${number(same.cpuMicros.p90)}).`,
  ].join('\n')
}

/** Says what became slower than it may be; an empty list is good news. */
export function complaints({ same, results }) {
  const of = (name) => results.find((row) => row.name === name)
  const local = of('local')
  const against = (peer) => spread(of(peer).slices.map((slice, i) => slice.cpuMicros / local.slices[i].cpuMicros)).median
  const said = []
  if (local.cpuMicros.ratio.median > LOCAL_AT_MOST) {
    said.push(`A local lease costs ×${number(local.cpuMicros.ratio.median)} of an empty middleware; ×${number(LOCAL_AT_MOST)} is allowed.`)
  }
  for (const peer of ['get-pipelined', 'jsonwebtoken', 'passport', 'better-auth-memory']) {
    const ratio = against(peer)
    const least = AT_LEAST[peer] ?? 1
    if (ratio < least && !(least === 1 && isTie(ratio, same.cpuMicros))) {
      said.push(`${of(peer).title} costs ×${number(ratio)} of a local lease; it should be ×${number(least)} or more.`)
    }
  }
  const warm = against('thousand') / against('get-pipelined')
  if (warm > 1 && !isTie(warm, same.cpuMicros)) {
    said.push(`1,000 keys in turn cost ×${number(warm)} of a GET for each request; they should cost less.`)
  }
  return said
}

export { GUARDED }

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

function say(line) {
  console.error(line)
}
