// Runs the tests with libraries of others, after installing those libraries where they are missing or of other versions.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'

const HOME = 'test/wide'
/** Packages whose peers fit nobody else's are on their own. */
const HOMES = [HOME, `${HOME}/moving`]

const run = (/** @type {string} */ command, /** @type {string[]} */ ...args) => {
  const { status } = spawnSync(command, args, { stdio: 'inherit', shell: process.platform === 'win32' })
  if (status !== 0) process.exit(status ?? 1)
}

for (const home of HOMES) {
  const [stamp, wanted] = [`${home}/node_modules/.installed`, readFileSync(`${home}/package-lock.json`, 'utf8')]
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) continue
  // Install scripts would download what the tests do without.
  run('npm', 'ci', '--prefix', home, '--no-audit', '--no-fund', '--ignore-scripts')
  writeFileSync(stamp, wanted)
}

// Python, curl, PgBouncer, MariaDB and the browser are the system's. Without Python or Chromium the tests skip what needs them, and say so.
const there = (/** @type {string} */ command, /** @type {string[]} */ ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0
const missing = [
  ...(there('curl', '--version') ? [] : ['curl']),
  ...(there('pgbouncer', '--version') ? [] : ['pgbouncer']),
  ...(there('mariadbd', '--version') ? [] : ['mariadb-server']),
  ...(['chromium', 'chromium-browser', 'google-chrome'].some((name) => there(name, '--version')) ? [] : ['chromium']),
  ...(['python3', '/usr/bin/python3'].some((python) => there(python, '-c', 'import requests, urllib3'))
    ? []
    : ['python3-requests', 'python3-urllib3']),
]
if (missing.length > 0 && there('apt-get', '--version')) {
  const root = process.getuid?.() === 0 ? [] : ['sudo', '-n']
  for (const args of [
    ['update', '-q'],
    ['install', '-y', '-q', '--no-install-recommends', ...missing],
  ]) {
    const [command = '', ...rest] = [...root, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', ...args]
    const { status, stderr } = spawnSync(command, rest, { encoding: 'utf8' })
    if (status !== 0) console.log(`apt-get ${args[0]} failed: ${String(stderr).trim().split('\n').at(-1)}`)
  }
}

mkdirSync('.tmp', { recursive: true })
run('npx', 'jest', '--config', `${HOME}/jest.config.ts`, '--json', '--outputFile=.tmp/jest-wide.json', ...process.argv.slice(2))
// With arguments somebody is after some of the tests in that folder only.
if (process.argv.length === 2) {
  process.env.LONG_TESTS = 'true'
  run('npx', 'jest', '--json', '--outputFile=.tmp/jest-long.json')
  delete process.env.LONG_TESTS
  process.env.TEST_STORE = 'mariadb'
  run('npx', 'jest', 'test/promises', 'test/crash/crash.test.ts', '--json', '--outputFile=.tmp/jest-mariadb.json')
}
