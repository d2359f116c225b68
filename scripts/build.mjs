// Builds both module formats: two plain compiler runs, so that what is published reads like what is written.
import { spawnSync } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'

rmSync('dist', { recursive: true, force: true })
const tsc = (/** @type {string} */ project, /** @type {string[]} */ ...args) => {
  const { status } = spawnSync(process.execPath, ['node_modules/typescript/bin/tsc', '-p', project, ...args], {
    stdio: 'inherit',
  })
  if (status !== 0) process.exit(status ?? 1)
}
tsc('tsconfig.build.json', '--outDir', 'dist/esm')
// Nobody requires the command line, which is a module.
tsc(
  'tsconfig.build.cjs.json',
  '--outDir',
  'dist/cjs',
  '--module',
  'commonjs',
  '--moduleResolution',
  'bundler',
  '--verbatimModuleSyntax',
  'false',
)
writeFileSync('dist/cjs/package.json', '{"type":"commonjs"}\n')
