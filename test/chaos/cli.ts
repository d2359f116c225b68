import { join } from 'node:path'
import { parseArgs } from 'node:util'
import setUp from '../support/global-setup.ts'
import tearDown from '../support/global-teardown.ts'
import { duringFaults, type FaultCounts, type Op, type Rule, rules, tally } from './check.js'
import { kinds } from './nemesis.js'
import { type Plant, plants } from './plants.js'
import { type RunResult, run, saveHistory } from './run.js'

const HELP = `Usage: npm run chaos -- [--seed N] [--seconds S] [--seeds K] [--plant NAME] [--help]

Runs three server processes on a PostgreSQL and a Redis of their own, clients that rotate their keys and use them, and faults on every
line, process, store and clock; then judges what the clients saw. Ends with 1 if a promise was broken or nobody was let in, and writes
the history to .tmp/chaos/.

  --seed N      decides which faults come, and in which order (default: by chance)
  --seconds S   for how long they come (default 30)
  --seeds K     so many runs, with the seeds N, N+1, … and N = 1 if it is not given; ends with a table of the faults (default 1)
  --plant NAME  breaks the system on purpose, for S seconds or until that is seen, with up to K seeds, and ends with 0 only if it is
                seen; "all" for one after the other:
${Object.entries(plants)
  .map(([name, { what }]) => `                  ${name.padEnd(22)} ${what}`)
  .join('\n')}

What is done, on seven lanes at a time, each of which is off half of the time: the lines, the processes, Redis, what instances say to
each other, COMMIT and the data, in the first part the clock of Redis, in the second that of PostgreSQL:
${Object.entries(kinds)
  .map(([name, how]) => `  ${name.padEnd(36)} ${how}`)
  .join('\n')}

What the clients do: they rotate at once, with a grace period, until the first use, or in an emergency. Some lose 6 to 15 answers in a
row, with pauses or without, and have to end with the one live secret. Two of the servers read every body before the router does.

The rules:
${Object.entries(rules)
  .map(([name, what]) => `  ${name.padEnd(14)} ${what}`)
  .join('\n')}
`

const MAX_SHOWN = 5

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130))
process.exit(await main())

async function main(): Promise<number> {
  const options = readOptions()
  if (typeof options === 'string') {
    console.error(`${options}\nTry --help.`)
    return 2
  }
  if (options.help) {
    console.log(HELP)
    return 0
  }
  await setUp({ rootDir: join(import.meta.dirname, '..', '..') })
  try {
    if (options.planted.length > 0) return await huntAll(options)
    return options.seeds === 1 ? await single(options) : await sweep(options)
  } finally {
    await tearDown()
  }
}

interface Options {
  readonly help: boolean
  readonly seed: number
  readonly seconds: number
  readonly seeds: number
  readonly planted: readonly Plant[]
}

/** The options, or what is wrong with them. */
function readOptions(): Options | string {
  try {
    const { values } = parseArgs({
      options: {
        help: { type: 'boolean', default: false },
        seed: { type: 'string' },
        seconds: { type: 'string', default: '30' },
        seeds: { type: 'string', default: '1' },
        plant: { type: 'string' },
      },
    })
    const { help, plant } = values
    const names = Object.keys(plants) as Plant[]
    const [seconds, seeds] = [Number(values.seconds), Number(values.seeds)]
    const seed = values.seed === undefined ? (seeds > 1 ? 1 : Math.floor(Math.random() * 1_000_000)) : Number(values.seed || Number.NaN)
    if (!Number.isSafeInteger(seed) || seed < 0) return '--seed must be a whole number, such as --seed 1.'
    if (!(seconds > 0 && seconds <= 86_400)) return '--seconds must be a number above 0 and up to 86400, such as --seconds 30.'
    if (!Number.isSafeInteger(seeds) || seeds < 1) return '--seeds must be a whole number above 0, such as --seeds 10.'
    if (plant !== undefined && plant !== 'all' && !names.includes(plant as Plant))
      return `--plant must be all or one of ${names.join(', ')}.`
    return { help, seed, seconds, seeds, planted: plant === undefined ? [] : plant === 'all' ? names : [plant as Plant] }
  } catch (error) {
    return (error as Error).message
  }
}

async function single(options: Options): Promise<number> {
  const result = await oneRun(options.seed, options)
  console.log(`Seed ${options.seed}, ${options.seconds} s`)
  tell(result)
  verdict(`seed-${options.seed}`, result)
  return kept(result) ? 0 : 1
}

/** Whether every promise was kept, by a system that let somebody in. */
function kept({ counts, violations }: RunResult): boolean {
  return violations.length === 0 && (counts.operations['read ok'] ?? 0) > 0
}

/** One seed after the other, a line for each; then what went wrong on purpose, all in all. */
async function sweep({ seed: first, seeds, ...options }: Options): Promise<number> {
  let broken = 0
  const began = performance.now()
  const totals = new Map<string, FaultCounts>()
  const sums = { requests: 0, rotations: 0, replays: 0, outlasted: 0, faults: 0 }
  for (let seed = first; seed < first + seeds; seed++) {
    const result = await oneRun(seed, options).catch((error: unknown) => {
      console.log(`Seed ${seed}: did not come to its end: ${String(error)}`)
    })
    if (result === undefined) {
      broken++
      continue
    }
    const { counts, violations, history } = result
    const requests = total(counts.operations)
    const faults = total(counts.faults)
    const said = kept(result) ? 'kept' : violations.length === 0 ? 'PROVES NOTHING' : `BROKEN ${violations.length} times`
    const { rotations, replays, outlasted } = counts
    console.log(
      `Seed ${seed}: ${requests} requests, ${rotations} rotations, ${replays} replays, ${outlasted} after long losses, ${faults} faults: ${said}`,
    )
    if (!kept(result)) {
      broken++
      verdict(`seed-${seed}`, result)
    }
    sums.requests += requests
    sums.rotations += rotations
    sums.replays += replays
    sums.outlasted += outlasted
    sums.faults += faults
    for (const [kind, found] of duringFaults(history, violations)) {
      const { times = 0, operations = 0, violations: earlier = 0 } = totals.get(kind) ?? {}
      totals.set(kind, {
        times: times + found.times,
        operations: operations + found.operations,
        violations: earlier + found.violations,
      })
    }
  }
  const minutes = ((performance.now() - began) / 60_000).toFixed(1)
  console.log(`\n| fault | how it is made | times | requests under way | violations |\n|---|---|---:|---:|---:|`)
  for (const [kind, how] of Object.entries(kinds)) {
    const { times = 0, operations = 0, violations = 0 } = totals.get(kind) ?? {}
    console.log(`| ${kind} | ${how} | ${times} | ${operations} | ${violations} |`)
  }
  const { requests, rotations, replays, outlasted, faults } = sums
  console.log(`\n${requests} requests, ${rotations} rotations, ${replays} replays, ${faults} faults in ${minutes} minutes.`)
  console.log(`${outlasted} rotations were answered after six or more answers on end had been lost.`)
  console.log(`${seeds - broken} of ${seeds} runs kept every promise.`)
  return broken === 0 ? 0 : 1
}

/** Whether every fault that was planted was found, by the rule that it breaks, with one of the seeds. */
async function huntAll({ planted, seed: first, seeds, ...options }: Options): Promise<number> {
  let missed = 0
  const rows: string[] = []
  for (const plant of planted) {
    const { breaks, what }: { breaks: Rule; what: string } = plants[plant]
    let seen = 'NOT FOUND'
    for (let seed = first; seed < first + seeds && seen === 'NOT FOUND'; seed++) {
      const result = await oneRun(seed, options, plant, breaks)
      const found = result.violations.filter(({ rule }) => rule === breaks)
      if (found.length > 0) seen = `seed ${seed}, after ${firstSeconds(result.history, found)} s`
      if (planted.length > 1) continue
      console.log(`Seed ${seed}, ${options.seconds} s, with ${plant} planted`)
      tell(result)
      verdict(`seed-${seed}-${plant}`, result)
    }
    if (seen === 'NOT FOUND') missed++
    if (planted.length > 1) console.log(`${plant}: ${breaks}, ${seen}`)
    rows.push(`| \`${plant}\` | ${what} | \`${breaks}\` | ${seen} |`)
  }
  if (planted.length > 1) console.log(`\n| planted fault | what is broken | found by | with |\n|---|---|---|---|\n${rows.join('\n')}`)
  if (missed > 0) console.log(`${missed} of ${planted.length} planted faults were not found by the rule that they break.`)
  return missed === 0 ? 0 : 1
}

async function oneRun(seed: number, { seconds }: { seconds: number }, plant?: Plant, stopOn?: Rule): Promise<RunResult> {
  console.error(`Seed ${seed}: faults for ${seconds} s${plant === undefined ? '' : `, with ${plant} planted`}.`)
  const postgresUrl = process.env.TEST_POSTGRES_URL ?? ''
  return await run({ seed, seconds, postgresUrl, plant, stopOn, log: (line) => console.error(`  ${line}`) })
}

function tell({ counts }: RunResult): void {
  console.log(
    `  rotations   ${listed(counts.retirements)}, ${counts.replays} answers that were replayed, ${counts.outlasted} that came after six or more had been lost, and ${counts.early} since all instances knew`,
  )
  console.log(`  requests    ${listed(counts.operations)}`)
  console.log(`  faults      ${listed(counts.faults)}`)
}

function verdict(name: string, result: RunResult): void {
  const { history, violations } = result
  if (kept(result)) {
    console.log('  verdict     every promise was kept')
    return
  }
  if (violations.length === 0) {
    console.log(`  verdict     PROVES NOTHING: no request was let in; see ${saveHistory(name, history)}`)
    return
  }
  const file = saveHistory(name, history)
  console.log(`  verdict     BROKEN ${violations.length} times, first after ${firstSeconds(history, violations)} s; see ${file}`)
  console.log(`              ${listed(tally(violations.map(({ rule }) => rule)))}`)
  for (const { rule, what } of violations.slice(0, MAX_SHOWN)) console.log(`              ${rule}: ${what}`)
}

/** How long traffic had been going on. */
function firstSeconds(history: readonly Op[], violations: RunResult['violations']): string {
  const began = history.find(({ f }) => f === 'read' || f === 'rotate')?.start ?? 0
  return ((Math.min(...violations.map(({ ops }) => Math.max(...ops.map(({ end }) => end)))) - began) / 1_000).toFixed(1)
}

function total(counts: Readonly<Record<string, number>>): number {
  return Object.values(counts).reduce((sum, number) => sum + number, 0)
}

function listed(counts: Readonly<Record<string, number>>): string {
  return Object.entries(counts)
    .map(([name, number]) => `${name}: ${number}`)
    .join(', ')
}
