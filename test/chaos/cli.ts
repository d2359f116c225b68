import { parseArgs } from 'node:util'
import setUp from '../support/global-setup.ts'
import tearDown from '../support/global-teardown.ts'
import { type Op, rules, tally } from './check.js'
import { type Plant, plants } from './plants.js'
import { run, saveHistory } from './run.js'

const HELP = `Usage: npm run chaos -- [--seed N] [--seconds S] [--seeds K] [--plant NAME] [--help]

Runs three server processes on PostgreSQL and Redis, clients that rotate their keys and use them, and faults on every line, process and
store; then judges what the clients saw. Ends with 1 if a promise was broken, and writes the history to .tmp/chaos/.

  --seed N      decides which faults come, and in which order (default: by chance)
  --seconds S   for how long they come (default 30)
  --seeds K     so many runs, with the seeds N, N+1, … (default 1)
  --plant NAME  breaks the system on purpose; the run must notice:
${Object.entries(plants)
  .map(([name, what]) => `                  ${name.padEnd(22)} ${what}`)
  .join('\n')}

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
    console.error(options)
    return 2
  }
  if (options.help) {
    console.log(HELP)
    return 0
  }
  let broken = 0
  await setUp()
  try {
    for (let seed = options.seed; seed < options.seed + options.seeds; seed++) if (!(await oneRun(seed, options))) broken++
  } finally {
    await tearDown()
  }
  if (options.seeds > 1) console.log(`${options.seeds - broken} of ${options.seeds} runs kept every promise.`)
  return broken === 0 ? 0 : 1
}

interface Options {
  readonly help: boolean
  readonly seed: number
  readonly seconds: number
  readonly seeds: number
  readonly plant: Plant | undefined
}

function readOptions(): Options | string {
  try {
    const { values } = parseArgs({
      options: {
        help: { type: 'boolean', default: false },
        seed: { type: 'string', default: String(Math.floor(Math.random() * 1_000_000)) },
        seconds: { type: 'string', default: '30' },
        seeds: { type: 'string', default: '1' },
        plant: { type: 'string' },
      },
    })
    const { help, plant } = values
    const [seed, seconds, seeds] = [Number(values.seed), Number(values.seconds), Number(values.seeds)]
    if (!Number.isInteger(seed) || seed < 0) return '--seed must be a whole number, such as --seed 1.'
    if (!(seconds > 0)) return '--seconds must be a number above 0, such as --seconds 30.'
    if (!Number.isInteger(seeds) || seeds < 1) return '--seeds must be a whole number above 0, such as --seeds 10.'
    if (plant !== undefined && !(plant in plants)) return `--plant must be one of ${Object.keys(plants).join(', ')}.`
    return { help, seed, seconds, seeds, plant: plant as Plant | undefined }
  } catch (error) {
    return `${(error as Error).message}\nTry --help.`
  }
}

/** Whether every promise was kept. */
async function oneRun(seed: number, { seconds, plant }: Options): Promise<boolean> {
  console.error(`Seed ${seed}: faults for ${seconds} s${plant === undefined ? '' : `, with ${plant} planted`}.`)
  const postgresUrl = process.env.TEST_POSTGRES_URL ?? ''
  const { history, counts, violations } = await run({ seed, seconds, postgresUrl, plant, log: (line) => console.error(`  ${line}`) })
  console.log(`Seed ${seed}${plant === undefined ? '' : `, with ${plant} planted`}`)
  console.log(`  rotations   ${counts.rotations}, and ${counts.replays} answers that were replayed`)
  console.log(`  requests    ${listed(counts.operations)}`)
  console.log(`  faults      ${listed(counts.faults)}`)
  if (violations.length === 0) {
    console.log('  verdict     every promise was kept')
    return true
  }
  const file = saveHistory(seed, history)
  const firstMs = Math.min(...violations.map(({ ops }) => Math.max(...ops.map(({ end }) => end)))) - (history.find(isTraffic)?.start ?? 0)
  console.log(`  verdict     BROKEN ${violations.length} times, first after ${(firstMs / 1_000).toFixed(1)} s; see ${file}`)
  console.log(`              ${listed(tally(violations.map(({ rule }) => rule)))}`)
  for (const { rule, what } of violations.slice(0, MAX_SHOWN)) console.log(`              ${rule}: ${what}`)
  return false
}

function isTraffic({ f }: Op): boolean {
  return f === 'read' || f === 'rotate'
}

function listed(counts: Readonly<Record<string, number>>): string {
  return Object.entries(counts)
    .map(([name, number]) => `${name}: ${number}`)
    .join(', ')
}
