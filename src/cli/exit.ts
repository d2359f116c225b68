import { ApiKeyError, type ApiKeyErrorCode } from '../errors.js'

/** What the command line exits with. `docs/reference/cli.md` has the table. */
export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  store: 3,
  unknown: 4,
  behind: 5,
  ahead: 6,
  interrupted: 130,
} as const

/** A failure of the command line itself. The message never holds a secret. */
export class CliError extends Error {
  override readonly name = 'CliError'
  readonly exit: number
  /** For `--json`. */
  readonly code: string

  constructor(message: string, { exit = EXIT.usage, code = 'usage' }: { readonly exit?: number; readonly code?: string } = {}) {
    super(message)
    this.exit = exit
    this.code = code
  }
}

/** What was asked for cannot be: a mistake of whoever typed it, or a file or variable that is not as it has to be. */
const USAGE: readonly ApiKeyErrorCode[] = ['invalid_option', 'invalid_request', 'key_id_invalid', 'idempotency_key_invalid']
const STORE: readonly ApiKeyErrorCode[] = ['store_unavailable', 'store_misconfigured']

export function exitOf(error: unknown): number {
  if (error instanceof CliError) return error.exit
  if (!(error instanceof ApiKeyError)) return EXIT.failed
  if (error.code === 'outcome_unknown') return EXIT.unknown
  if (STORE.includes(error.code)) return EXIT.store
  return USAGE.includes(error.code) ? EXIT.usage : EXIT.failed
}
