// Runs the tests behind libraries of others, after installing those libraries where they are missing or of other versions.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

const HOME = 'test/wide'
const STAMP = `${HOME}/node_modules/.installed`

const run = (command, ...args) => {
  const { status } = spawnSync(command, args, { stdio: 'inherit', shell: process.platform === 'win32' })
  if (status !== 0) process.exit(status ?? 1)
}

const wanted = readFileSync(`${HOME}/package-lock.json`, 'utf8')
if (!existsSync(STAMP) || readFileSync(STAMP, 'utf8') !== wanted) {
  run('npm', 'ci', '--prefix', HOME, '--no-audit', '--no-fund')
  writeFileSync(STAMP, wanted)
}
run('npx', 'jest', '--config', `${HOME}/jest.config.ts`, '--json', '--outputFile=.tmp/jest-wide.json', ...process.argv.slice(2))
