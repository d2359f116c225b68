import { userInfo } from 'node:os'
import type { Command } from 'commander'
import type { Command as KeyCommand, Origin } from '../core/api-keys.js'
import type { Purpose } from './connection/open.js'
import type { Output } from './output.js'
import { type GlobalOptions, inSession, type Session } from './session.js'
import { idempotencyKeyFrom } from './sources.js'

/** What the commands share. */
export interface Room {
  readonly version: string
  /** Made when a command runs: `--json` may stand anywhere. */
  output(globals: GlobalOptions): Output
}

type RequestShape = NonNullable<KeyCommand['request']>

/** Adds a command to the program. */
export type AddCommand = (program: Command, room: Room) => void

/** Makes what commander calls: opens a session, and does the work in it. */
export function inRoom<Options>(
  room: Room,
  purpose: Purpose | ((options: Options) => Purpose),
  work: (session: Session, options: Options, argument: string) => Promise<void>,
): (...args: unknown[]) => Promise<void> {
  return async (...args) => {
    const command = args.at(-1) as Command
    const globals = command.optsWithGlobals<GlobalOptions>()
    const argument = typeof args[0] === 'string' ? args[0] : ''
    const options = command.opts<Options & object>()
    const meant = typeof purpose === 'function' ? purpose(options) : purpose
    await inSession(globals, room.output(globals), meant, (session) => work(session, options, argument))
  }
}

/** Who was it, for the audit trail: the application, by way of this program and this user of the machine. */
export function originOf({ version }: Room): Origin {
  return { userAgent: `express-api-keys-cli/${version} (${userName()})` }
}

function userName(): string {
  try {
    return userInfo().username
  } catch {
    // A container may run as a number without a name.
    return `uid ${process.getuid?.() ?? 'unknown'}`
  }
}

/** The option by which a command that prints a secret can be run again. */
export const IDEMPOTENCY_KEY_FROM: readonly [flags: string, description: string] = [
  '--idempotency-key-from <source>',
  'a file or env:NAME: run again with the same one, it prints the same secret. A file is made if need be',
]

/**
 * What such a command repeats when it is run again: the options as they were typed. What they come to, such as `90d` from now, is another instant at each run. Nothing
 * where it cannot be run again.
 */
export async function repetitionOf(
  command: string,
  id: string,
  { idempotencyKeyFrom: source, ...repeated }: { readonly idempotencyKeyFrom?: string },
): Promise<{ idempotencyKey?: string; request?: RequestShape }> {
  if (source === undefined) return {}
  const body = JSON.parse(JSON.stringify(repeated)) as object
  return { idempotencyKey: await idempotencyKeyFrom(source), request: { method: 'CLI', path: `${command}/${id}`, body } }
}

/** The examples at the end of a command's help. */
export function examples(...lines: readonly string[]): string {
  return `\nExamples:\n${lines.map((line) => (line === '' ? '' : `  ${line}`)).join('\n')}\n`
}
