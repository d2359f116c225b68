// Runs the tests of the promises once for each place where requests may carry their key; bearer() is that of `npm test`.
import { spawnSync } from 'node:child_process'

const HELP = `npm run test:sources -- [name ...]

Runs test/promises with clients and servers that have their keys elsewhere than in "Authorization: Bearer".
Names: header, scheme, basic, bare, own. Default: all of them.`

const [, , ...asked] = process.argv
if (asked.includes('--help')) {
  console.log(HELP)
  process.exit(0)
}
const NAMES = ['header', 'scheme', 'basic', 'bare', 'own']
const unknown = asked.find((name) => !NAMES.includes(name))
if (unknown !== undefined) {
  console.error(`There is no source "${unknown}".\n${HELP}`)
  process.exit(2)
}
for (const name of asked.length > 0 ? asked : NAMES) {
  console.log(`\n${name}`)
  const { status } = spawnSync('npx', ['jest', 'test/promises'], { stdio: 'inherit', env: { ...process.env, TEST_SOURCE: name } })
  if (status !== 0) process.exit(status ?? 1)
}
