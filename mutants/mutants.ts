// npm run mutants: see README.md beside this file.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readFlags, refuse, wholeNumber } from './command-line.ts'

const HELP = `npm run mutants -- [options]

Changes one operator, condition or value at a time in the core, the sealing, the feed and the recall, and runs their unit tests against each change.
Ends with 1 when fewer than ${90} of 100 changes turn a test red.

  --only a,b         these groups only
  --concurrency 2    how many changes are tried at once
  --survivors        list the changes that no test noticed
  --help`

interface Group {
  readonly mutate: readonly string[]
  readonly tests: readonly string[]
}

/** What is changed, and the tests that have to notice: the unit tests of the file itself. */
const GROUPS: { readonly [name: string]: Group } = {
  secret: { mutate: ['src/core/secret.ts'], tests: ['test/core/secret.test.ts'] },
  sealing: {
    mutate: ['src/core/change/replay-seal.ts', 'src/core/keyed-hash.ts'],
    tests: ['test/core/change/replay-seal.test.ts', 'test/core/keyed-hash.test.ts'],
  },
  feed: { mutate: ['src/core/verify/feed.ts'], tests: ['test/core/verify/feed.test.ts'] },
  follower: {
    mutate: ['src/core/verify/follower.ts', 'src/core/verify/membership.ts', 'src/core/clock.ts'],
    tests: ['test/core/verify/verifier.test.ts', 'test/core/verify/watching.test.ts', 'test/core/clock.test.ts'],
  },
  facts: {
    mutate: [
      ...['src/core/verify/facts.ts', 'src/core/verify/verdict.ts', 'src/core/verify/cache-entry.ts'],
      ...['src/core/verify/verifier.ts', 'src/core/verify/batched-read.ts', 'src/core/verify/first-use.ts'],
    ],
    tests: ['test/core/verify/verifier.test.ts', 'test/core/verify/verdict.test.ts', 'test/core/verify/cache-entry.test.ts'],
  },
  recall: {
    mutate: ['src/core/recall/*.ts'],
    tests: [
      ...['test/core/recall/recalls.test.ts', 'test/core/recall/messages.test.ts', 'test/core/recall/neighbours.test.ts'],
      ...['test/core/recall/reaper.test.ts', 'test/core/recall/at-commit.test.ts'],
      'test/core/recall/post.test.ts',
    ],
  },
  'rotation-secret': {
    mutate: ['src/core/change/rotation-secret.ts', 'src/core/semaphore.ts'],
    tests: ['test/core/change/rotation-secret.test.ts'],
  },
  input: {
    mutate: ['src/core/input.ts', 'src/options.ts', 'src/core/key.ts'],
    tests: ['test/core/input.test.ts', 'test/core/key.test.ts'],
  },
  uses: { mutate: ['src/core/last-use.ts'], tests: ['test/core/last-use.test.ts'] },
}
const ENOUGH = 90

interface Caught {
  readonly all: number
  readonly caught: number
}

/** As Stryker's report tells of a change. */
interface Mutant {
  readonly status: string
  readonly replacement: string
  readonly location: { readonly [end in 'start' | 'end']: { readonly line: number; readonly column: number } }
}

const flags = readFlags(HELP, {
  only: { type: 'string', default: Object.keys(GROUPS).join(',') },
  concurrency: { type: 'string', default: '2' },
  survivors: { type: 'boolean' },
})
const concurrency = wholeNumber(flags, 'concurrency')
const names = String(flags.only).split(',')
if (!names.every((name) => Object.hasOwn(GROUPS, name)))
  refuse(`--only takes groups with a comma between them, out of ${Object.keys(GROUPS).join(', ')}.`)

process.chdir(fileURLToPath(new URL('..', import.meta.url)))
const installed = 'mutants/node_modules'
if (!existsSync(join(installed, '.package-lock.json')))
  run('npm', ['ci', '--prefix', 'mutants', '--no-audit', '--no-fund', '--loglevel', 'error'])
mkdirSync('.tmp', { recursive: true })

const rows = Object.entries(GROUPS)
  .filter(([name]) => names.includes(name))
  .flatMap(([name, group]) => tried(name, group))
const total = rows.reduce((sum, row) => ({ caught: sum.caught + row.caught, all: sum.all + row.all }), { caught: 0, all: 0 })
console.log('\n| file | changes | caught | of which by time-out | not caught | share |\n|---|---:|---:|---:|---:|---:|')
for (const { file, all, caught, timeouts } of rows)
  console.log(`| ${file} | ${all} | ${caught} | ${timeouts} | ${all - caught} | ${share({ all, caught })} % |`)
console.log(`| together | ${total.all} | ${total.caught} | | ${total.all - total.caught} | ${share(total)} % |`)
process.exitCode = rows.every((row) => share(row) >= ENOUGH) ? 0 : 1

/** Runs Stryker on one group, on the Node that it needs, and counts for each file. */
function tried(name: string, { mutate, tests }: Group): (Caught & { file: string; timeouts: number })[] {
  const report = `.tmp/mutants-${name}.json`
  const config = {
    mutate,
    testRunner: 'jest',
    plugins: ['@stryker-mutator/jest-runner'],
    jest: { projectType: 'custom', configFile: 'mutants/jest.config.mjs', enableFindRelatedTests: false },
    coverageAnalysis: 'perTest',
    reporters: ['json', 'progress-append-only'],
    jsonReporter: { fileName: report },
    // Not in the project, where a run of its tests would find them twice.
    tempDirName: join(tmpdir(), 'api-keys-mutants'),
    ignorePatterns: ['dist', 'bench', 'docs', 'example-app', 'mutants/node_modules'],
    // It would rewrite the one there is with a compiler API that TypeScript 7 has not.
    tsconfigFile: 'none',
    concurrency,
    // What has not ended by then hangs: the slowest of these tests takes a second.
    timeoutMS: 8_000,
  }
  const configFile = `.tmp/mutants-${name}.config.json`
  writeFileSync(configFile, JSON.stringify(config))
  const bin = join(process.cwd(), installed, 'node', 'bin')
  run(join(bin, 'node'), [join(installed, '@stryker-mutator/core/bin/stryker.js'), 'run', configFile], {
    ...process.env,
    PATH: `${bin}${delimiter}${process.env.PATH}`,
    MUTANTS_TESTS: tests.join(','),
  })
  const { files } = JSON.parse(readFileSync(report, 'utf8')) as { files: { [file: string]: { mutants: Mutant[]; source: string } } }
  return Object.entries(files).map(([file, { mutants, source }]) => {
    // What does not compile or load at all says nothing about the tests.
    const counted = mutants.filter(({ status }) => !['RuntimeError', 'CompileError', 'Ignored', 'Pending'].includes(status))
    const caught = counted.filter(({ status }) => status === 'Killed' || status === 'Timeout')
    if (flags.survivors) for (const mutant of counted) if (!caught.includes(mutant)) show(file, source, mutant)
    return { file, all: counted.length, caught: caught.length, timeouts: caught.filter(({ status }) => status === 'Timeout').length }
  })
}

function show(file: string, source: string, { location: { start, end }, replacement, status }: Mutant): void {
  const lines = source.split('\n').slice(start.line - 1, end.line)
  const before = lines.join('\n')
  const after = before.slice(0, start.column - 1) + replacement + (lines.at(-1) ?? '').slice(end.column - 1)
  console.log(`\n${file}:${start.line}:${start.column} ${status}\n- ${before.trim()}\n+ ${after.trim()}`)
}

function share({ all, caught }: Caught): number {
  return all === 0 ? 100 : Math.round((1_000 * caught) / all) / 10
}

function run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env): void {
  const { status } = spawnSync(command, args, { stdio: ['ignore', 2, 2], env })
  if (status !== 0) process.exit(status ?? 1)
}
