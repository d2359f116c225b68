// npm run docs: builds the site of the documentation from its Markdown.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

const HELP = `Builds the documentation into site/dist: static files, with a search that asks no other host.

  npm run docs              build
  npm run docs -- --dev     serve it while you write, on http://localhost:5173

VitePress is installed into site/ first, where it is missing. Serve site/dist with clean URLs: /guides/rotate is guides/rotate.html.
`

const HOME = 'site'
const STAMP = `${HOME}/node_modules/.installed`

const [option, ...more] = process.argv.slice(2)
if (option === '--help') {
  console.log(HELP)
  process.exit()
}
if (more.length > 0 || !(option === undefined || option === '--dev')) {
  console.error(HELP)
  process.exit(2)
}

const wanted = readFileSync(`${HOME}/package-lock.json`, 'utf8')
if (!existsSync(STAMP) || readFileSync(STAMP, 'utf8') !== wanted) {
  // No package needs its install script.
  run('npm', 'ci', '--prefix', HOME, '--ignore-scripts', '--no-audit', '--no-fund')
  writeFileSync(STAMP, wanted)
}
run(process.execPath, `${HOME}/node_modules/vitepress/bin/vitepress.js`, option === '--dev' ? 'dev' : 'build', HOME)

/**
 * @param {string} command
 * @param {string[]} args
 */
function run(command, ...args) {
  const { status } = spawnSync(command, args, { stdio: 'inherit', shell: process.platform === 'win32' && command === 'npm' })
  if (status !== 0) process.exit(status ?? 1)
}
