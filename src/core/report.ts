import type { ApiKeyError, ApiKeyErrorCode } from '../errors.js'
import type { Clock } from './clock.js'
import { failureOf } from './failures.js'
import { onceIn } from './once-in.js'

/** Faults that last and that every request meets. Each cause is reported once a minute. */
const LASTING: readonly ApiKeyErrorCode[] = ['store_unavailable', 'store_misconfigured', 'outcome_unknown', 'operators_unavailable']
const ONCE_IN_MS = 60_000
const MAX_CAUSES = 100
/** What looks like a secret of this package, or of most others: a word of 32 letters and digits or more. */
const SECRET_LIKE = /\b(?:\w+_)?[0-9A-Za-z]{32,}\b/g

export interface Reports {
  /** Hands an error to `onError`. Never throws. */
  report(error: unknown): void
  /** The same where it is a fault of the store, and nothing otherwise. */
  reportStoreFault(error: ApiKeyError): void
}

/** `onError` as in `ApiKeysOptions`. */
export function reports(onError: (error: ApiKeyError) => unknown, clock: Clock): Reports {
  const isDue = onceIn(ONCE_IN_MS, MAX_CAUSES, () => clock.monotonicMs())
  return {
    report,
    reportStoreFault(error) {
      if (LASTING.includes(error.code)) report(error)
    },
  }

  function report(error: unknown): void {
    try {
      const known = failureOf(error)
      if (LASTING.includes(known.code) && !isDue(causeOf(known))) return
      // `onError` may be an async function, and its failure must not end the process.
      Promise.resolve(onError(known)).catch(complain)
    } catch (failure) {
      complain(failure)
    }
  }
}

/** The default `onError`. */
export function logError(error: ApiKeyError): void {
  console.error(`express-api-keys: ${error.code}: ${errorLine(error)}`)
}

/** What an error says and what lies behind it, on one line and without what looks like a secret. */
export function errorLine(error: ApiKeyError): string {
  return `${oneLine(error.message)}${causes(error.cause)}`
}

function complain(failure: unknown): void {
  try {
    console.error(`express-api-keys: onError has failed:${causes(failure)}`)
  } catch {
    // There is nothing left to report to: the console throws, or the failure does when it is read.
  }
}

function causeOf({ code, message, cause }: ApiKeyError): string {
  const inner = (cause ?? {}) as { code?: unknown; message?: unknown }
  if (typeof inner.code === 'string') return `${code} ${inner.code}`
  // Without its numbers, which may be of one request.
  return `${code} ${typeof inner.message === 'string' ? inner.message.replaceAll(/\d+/g, '') : message}`
}

/** What lies behind an error, on one line: names, codes and messages; never the errors themselves, which carry statements and their values. */
function causes(error: unknown, depth = 0): string {
  if (error === undefined || error === null || depth === 3) return ''
  const { name, code, message, cause } = error as { name?: unknown; code?: unknown; message?: unknown; cause?: unknown }
  const parts = [
    typeof name === 'string' ? name : typeof error,
    typeof code === 'string' ? code : '',
    typeof message === 'string' ? message : '',
  ]
  return ` (${oneLine(parts.filter((part) => part !== '').join(' '))}${causes(cause, depth + 1)})`
}

function oneLine(text: string): string {
  return text.replaceAll(/\s+/g, ' ').replaceAll(SECRET_LIKE, '[redacted]').slice(0, 500)
}
