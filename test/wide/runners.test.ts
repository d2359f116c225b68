import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

/** `express-api-keys/testing` knows no test runner; test/testing has it under Jest. */
test.each([
  ['Vitest', [join(__dirname, 'node_modules/vitest/vitest.mjs'), 'run', '--config', 'runners/vitest.config.ts']],
  ['node:test', ['--import', 'tsx', '--test', 'runners/node-test.ts']],
])('testApiKeys serves tests of %s', (_name, args) => {
  const { NODE_OPTIONS: _, JEST_WORKER_ID: __, ...env } = process.env
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: __dirname, encoding: 'utf8', env })
  expect([status, stdout + stderr]).toEqual([0, expect.stringMatching(/2 passed|pass 2/)])
})
