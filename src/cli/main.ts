#!/usr/bin/env node
import { createRequire } from 'node:module'
import { CommanderError } from 'commander'
import { errorLine } from '../core/report.js'
import { ApiKeyError } from '../errors.js'
import { refuseSecrets } from './arguments.js'
import type { Room } from './command.js'
import { CliError, EXIT, exitOf } from './exit.js'
import { ClosedPipe, type Output, output } from './output.js'
import { program } from './program.js'
import { handleSignals } from './session.js'
import { variable } from './sources.js'

const { version } = createRequire(import.meta.url)('express-api-keys/package.json') as { readonly version: string }

// Only what was asked for goes to stdout. A module of the application's, or what it loads, may print anything.
console.log = console.info = console.debug = console.error.bind(console)
handleSignals()
const code = await run(process.argv.slice(2))
// A pool of the application's may keep the process alive, so it ends here, once everything is written.
process.stdout.write('', () => process.stderr.write('', () => process.exit(code)))

async function run(args: readonly string[]): Promise<number> {
  let out: Output = output(args.includes('--json'))
  const room: Room = {
    version,
    output({ json }) {
      out = output(json === true)
      return out
    },
  }
  try {
    loadEnvFile(args)
    refuseSecrets(args, variable('API_KEYS_SECRET'))
    await silentIn(program(room), out.json).parseAsync(args, { from: 'user' })
    return Number(process.exitCode ?? EXIT.done)
  } catch (error) {
    return failed(error, out)
  }
}

/** With `--json`, commander's own words come as JSON too. */
function silentIn(root: ReturnType<typeof program>, json: boolean): ReturnType<typeof program> {
  const each = [root, ...root.commands]
  if (json) for (const one of each) one.configureOutput({ writeErr: () => {} })
  return root
}

function failed(error: unknown, out: Output): number {
  if (error instanceof ClosedPipe) return error.exit
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return EXIT.done
    // Without --json commander has said it already.
    if (out.json) out.fail(error.message.replace(/^error: /, ''), { code: 'usage', exit: EXIT.usage })
    return EXIT.usage
  }
  const exit = exitOf(error)
  if (error instanceof ApiKeyError) out.fail(forShell(errorLine(error)), { code: error.code, exit })
  else if (error instanceof CliError) out.fail(error.message, { code: error.code, exit })
  else out.fail(error instanceof Error ? error.message : 'Something unforeseen went wrong.', { code: 'internal_error', exit })
  return exit
}

/** Messages speak to programmers; whoever types commands has one for it. */
function forShell(message: string): string {
  return message.replaceAll('call keys.migrate()', 'run npx express-api-keys migrate')
}

/** Before anything else is read: what the file says may be looked at by any option. */
function loadEnvFile(args: readonly string[]): void {
  const at = args.findIndex((argument) => argument === '--env-file' || argument.startsWith('--env-file='))
  if (at < 0) return
  const file = args[at]?.includes('=') ? args[at]?.split('=').slice(1).join('=') : args[at + 1]
  try {
    process.loadEnvFile(file)
  } catch (error) {
    throw new CliError(`--env-file names a file that cannot be used (${(error as NodeJS.ErrnoException).code ?? 'unknown'}).`)
  }
}
