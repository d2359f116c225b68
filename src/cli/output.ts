import { CliError, EXIT } from './exit.js'

/** Where a command speaks: what was asked for goes to stdout, and everything else to stderr. */
export interface Output {
  readonly json: boolean
  /** Prints what was asked for: as JSON, or as lines. Rejects with `ClosedPipe` where nobody reads any more. */
  result(value: object, lines: () => readonly string[]): Promise<void>
  /** Tells people something beside it; nothing with `--json`. */
  say(line: string): void
  /** Reports a failure. */
  fail(message: string, failure: { readonly code: string; readonly exit: number }): void
}

/** Nobody reads stdout any more. */
export class ClosedPipe extends CliError {
  constructor() {
    super('Nobody reads the output any more.', { exit: EXIT.done, code: 'closed_pipe' })
  }
}

export function output(json: boolean): Output {
  // Without listeners, a pipe that is closed would end the process with a stack trace.
  for (const stream of [process.stdout, process.stderr]) if (stream.listenerCount('error') === 0) stream.on('error', () => {})
  const say = (line: string): void => void process.stderr.write(`${line}\n`)
  return {
    json,
    result(value, lines) {
      const text = json ? `${JSON.stringify(value, null, 2)}\n` : lines().map((line) => `${line}\n`)
      return written(typeof text === 'string' ? text : text.join(''))
    },
    say: (line) => (json ? undefined : say(line)),
    fail(message, failure) {
      say(json ? JSON.stringify({ error: { code: failure.code, message, exit: failure.exit } }) : `express-api-keys: ${message}`)
    },
  }
}

function written(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => {
      if (!error) resolve()
      else reject((error as NodeJS.ErrnoException).code === 'EPIPE' ? new ClosedPipe() : error)
    })
  })
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it is for
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g

/** A text of somebody else, for a terminal: it must not move the cursor, nor turn the line around. */
export function plain(text: string): string {
  return text.replaceAll(UNSAFE, '?')
}

/** Lines with columns of even width. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): readonly string[] {
  const all = [head, ...rows.map((row) => row.map(plain))]
  const widths = head.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  return all.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  )
}
