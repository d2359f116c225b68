// Runs the suite on other Node releases; the npm package `node` holds their binaries.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'

let failed = 0
for (const major of ['22', '24']) {
  const folder = mkdtempSync(join(tmpdir(), `node-${major}-`))
  console.log(`Fetching Node ${major}`)
  const fetched = spawnSync('npm', ['install', '--prefix', folder, '--no-audit', '--no-fund', '--silent', `node@${major}`], {
    stdio: 'inherit',
  })
  const bin = join(folder, 'node_modules', 'node', 'bin')
  const env = { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` }
  const { status } =
    fetched.status === 0 ? spawnSync(join(bin, 'node'), ['node_modules/jest/bin/jest.js'], { stdio: 'inherit', env }) : { status: 1 }
  console.log(`Node ${major}: ${status === 0 ? 'passed' : 'failed'}`)
  if (status !== 0) failed++
  rmSync(folder, { recursive: true, force: true })
}
process.exit(failed)
