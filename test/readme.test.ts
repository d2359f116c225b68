import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { outputWithNumberedSecrets, quickStart } from './support/quick-start.js'

const ROOT = join(__dirname, '..')
const README = readFileSync(join(ROOT, 'README.md'), 'utf8')

test('the README is short', () => {
  expect(README.trimEnd().split('\n').length).toBeLessThanOrEqual(150)
})

test('the first application of the README is example-app/quick-start.mjs, and prints what the README says', async () => {
  const { code, output } = quickStart(README)
  expect(code).toBe(readFileSync(join(ROOT, 'example-app/quick-start.mjs'), 'utf8'))
  mkdirSync(join(ROOT, '.tmp'), { recursive: true })
  const TSX_TSCONFIG_PATH = join(ROOT, '.tmp/readme.tsconfig.json')
  writeFileSync(TSX_TSCONFIG_PATH, JSON.stringify({ extends: '../tsconfig.json', compilerOptions: { allowJs: true } }))
  const env = { ...process.env, TSX_TSCONFIG_PATH }
  const { stdout, stderr } = await promisify(execFile)(process.execPath, ['--import', 'tsx', 'example-app/quick-start.mjs'], {
    cwd: ROOT,
    env,
  })
  expect(stderr).toBe('')
  expect(outputWithNumberedSecrets(stdout)).toBe(outputWithNumberedSecrets(output))
})

test('the README has the two commands with which a clone is tried', () => {
  for (const command of ['npm ci && npm start', 'npm ci && npm test']) expect(README).toContain(`\`${command}\``)
})

test('the README names a test file for each promise, and the promises in full are in docs/design.md', () => {
  const design = readFileSync(join(ROOT, 'docs/design.md'), 'utf8')
  const rows = [...README.matchAll(/^\| (P\d) \| .*\]\((test\/promises\/[\w-]+\.test\.ts)\) \|$/gm)]
  expect(rows.map(([, promise]) => promise)).toEqual(['P1', 'P2', 'P3', 'P4', 'P5', 'P6'])
  for (const [, promise, file = ''] of rows) {
    expect(readFileSync(join(ROOT, file), 'utf8')).toContain(`${promise}`)
    expect(design).toMatch(new RegExp(`^\\| ${promise} \\| \\*\\*`, 'm'))
  }
})

test('the lines of the benchmark are those of docs/performance.md', () => {
  const table = readFileSync(join(ROOT, 'docs/performance.md'), 'utf8')
  const rows: [string, string][] = [
    ['**this package**, one key in use', '**ours, local lease**'],
    ['**this package**, 1,000 keys in turn', '**ours, 1,000 keys in turn**'],
    ['by hand: SHA-256 and a Redis GET', 'by hand: SHA-256 + ioredis GET'],
    ['better-auth API keys over Redis', 'better-auth API keys, Redis'],
  ]
  for (const [short, long] of rows) {
    const cells =
      table
        .split('\n')
        .find((line) => line.startsWith(`| ${long} |`))
        ?.split('|') ?? []
    const figure = cells[4]
      ?.trim()
      .replace(/ \(.*–.*/, '')
      .replace(/^tie \((.*)\)$/, '$1 (within noise)')
    expect(README).toContain(`| ${short} | ${figure} |`)
  }
})
