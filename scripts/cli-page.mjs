// Writes the help of every command into docs/reference/cli.md, under the headings that are there. A test compares the two.
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'

const PAGE = 'docs/reference/cli.md'
const help = (/** @type {string} */ command) => {
  const args = ['--import', 'tsx', 'src/cli/main.ts', ...(command === 'express-api-keys' ? [] : [command]), '--help']
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${command}: ${stderr}`)
  return stdout.trimEnd()
}
const text = readFileSync(PAGE, 'utf8').replaceAll(
  /^(### `([\w-]+)`\n\n```\n)(?:.*?\n)??```$/gms,
  (_all, head, command) => `${head}${help(command)}\n\`\`\``,
)
writeFileSync(PAGE, text)
