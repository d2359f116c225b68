import { ApiKeyError, type ApiKeyErrorCode } from '../../errors.js'

/** What a database and its drivers mean by their errors. */
export interface DriverErrors {
  /** What an error means that has a code or words of this database; undefined for any other. */
  verdict(error: unknown): Verdict | undefined
  /** Whether the database itself answered with this error: then it has not done what it was told. */
  answered(error: unknown): boolean
  /** Whether another connection holds the write lock; the store then waits without a connection of its own, and tries again. */
  isBusy(error: unknown): boolean
}

export type Verdict = readonly [code: ApiKeyErrorCode, message: string]

/**
 * Tells which `ApiKeyError` a failure of the database is; the `cause` is what the driver threw. `store_unavailable` passes by itself,
 * `store_misconfigured` needs a person, `invalid_request` is the request's own fault, and `internal_error` is for all else:
 * a constraint or a trigger of the application's, or a mistake in a program.
 *
 * It goes by the code, since messages come in the language of the server; by the message only where there is no code, or one that says nothing.
 */
export function storeError(error: unknown, { verdict }: DriverErrors): ApiKeyError {
  if (error instanceof ApiKeyError) return error
  const [code, message] = verdict(error) ?? elsewhere(error)
  return new ApiKeyError(code, message, { cause: error })
}

export function standbyAnswered(cause?: unknown): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'A standby answered instead of the primary; it cannot grant a lease.', { cause })
}

export function insideTransaction(): ApiKeyError {
  return new ApiKeyError(
    'store_misconfigured',
    'The session of the store sits in a transaction of somebody else, and may show what is no longer so; give the store sessions of its own, in autocommit.',
  )
}

export const UNAVAILABLE: Verdict = ['store_unavailable', 'The store could not be asked.']
export const CLOSED: Verdict = ['store_unavailable', 'The connection to the database has been closed.']
export const REFUSED: Verdict = ['internal_error', 'The database refused what it was given; the cause says why.']
export const TABLES: Verdict = misconfigured('The tables of the keys are missing, or hidden from this role; call keys.migrate() first.')
export const COLUMNS: Verdict = misconfigured('A table of the keys lacks a column; call keys.migrate() first.')
export const FUNCTIONS: Verdict = misconfigured(
  'The database lacks a function that the store calls; use a supported version and call keys.migrate() first.',
)
export const STATEMENT: Verdict = misconfigured('The database cannot run a statement of the store; its version or its tables do not fit.')
export const TLS: Verdict = misconfigured(
  'No TLS connection to the database that can be trusted; check its certificate and the ssl options.',
)
export const FILE_ACCESS: Verdict = misconfigured(
  'The process may not open or write the database; let it write the file and the folder around it.',
)
const MISTAKE: Verdict = ['internal_error', 'Something unforeseen went wrong.']

export function misconfigured(message: string): Verdict {
  return ['store_misconfigured', message]
}

/** One verdict for several codes. */
export function each(codes: readonly string[], verdict: Verdict): { readonly [code: string]: Verdict } {
  return Object.fromEntries(codes.map((code) => [code, verdict]))
}

export interface ErrorFields {
  readonly name?: unknown
  readonly message?: unknown
  readonly code?: unknown
  readonly errcode?: unknown
  readonly routine?: unknown
  readonly where?: unknown
}

/** What an error has; anything can be thrown. */
export function fieldsOf(error: unknown): ErrorFields {
  return (error ?? {}) as ErrorFields
}

export function messageOf(error: unknown): string {
  const { message } = fieldsOf(error)
  return typeof message === 'string' ? message : ''
}

/** Errors of a program. By name, since they may come from another realm. */
const PROGRAM_ERRORS = ['TypeError', 'RangeError', 'ReferenceError', 'SyntaxError']

/** What Node, Kysely or a program means by an error. */
function elsewhere(error: unknown): Verdict {
  const { name, code } = fieldsOf(error)
  if (PROGRAM_ERRORS.includes(String(name))) return MISTAKE
  if (code === 'EACCES' || code === 'EPERM') return FILE_ACCESS
  if (typeof code === 'string') return /CERT|SELF_SIGNED|LEAF_SIGNATURE/.test(code) ? TLS : UNAVAILABLE
  // Kysely, of the one row of settings.
  if (messageOf(error) === 'no result') return TABLES
  return /already been destroyed/.test(messageOf(error)) ? CLOSED : UNAVAILABLE
}
