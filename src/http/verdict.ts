import type { Request } from 'express'
import { ipNotAllowed } from '../core/allowed-ips.js'
import type { Verified, VerifyResult } from '../core/api-keys.js'
import type { Internals } from '../core/internals.js'
import { invalidKey, keyDisabled } from '../core/refusals.js'
import { ApiKeyError, failureHeaders } from '../errors.js'
import { integerOption } from '../options.js'
import { DEFAULT_FAILURES_PER_MINUTE, type FailureGuard } from './limits/failure-guard.js'
import { addressIsDoubtful, originOf } from './origin.js'

/** The option `failuresPerMinute`, checked. */
export function failuresOption(value: number | false | undefined): number | false {
  return value === false ? false : integerOption('failuresPerMinute', value, DEFAULT_FAILURES_PER_MINUTE, 1, 1_000_000)
}

/** Refuses to look up another unknown secret for an address that keeps presenting bad ones. Throws `rate_limited`. */
export function refuseFlood(internals: Internals, guard: FailureGuard, max: number | false, req: Request, secret: string): void {
  if (max === false || internals.familiar(secret) !== undefined) return
  const blockedFor = guard.blockedFor(req, max)
  if (blockedFor !== undefined) throw rateLimited('Too many bad API keys came from this address; try again later.', blockedFor)
}

export function rateLimited(message: string, retryAfterSeconds: number, cause?: unknown): ApiKeyError {
  return new ApiKeyError('rate_limited', message, { cause, headers: failureHeaders('rate_limited', { retryAfterSeconds }) })
}

/** The process may have been paused, after the verdict, for longer than its lease. */
export function verdictTooLate(): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'No verdict came back in time to be relied on.')
}

/** The verdict on a good secret. Throws `invalid_key` for a bad one, with one answer for all of them: nobody learns that it once was good. */
export function accepted(internals: Internals, req: Request, secret: string, result: VerifyResult): Verified {
  if (result.ok) {
    if (result.key.allowedIps !== null) doubtAddress(internals, req)
    return result
  }
  if (result.reason === 'disabled') throw keyDisabled(internals.familiar(secret))
  if (result.reason === 'ip_not_allowed') {
    doubtAddress(internals, req)
    throw ipNotAllowed({ id: internals.familiar(secret) })
  }
  if (result.reason === 'rotated' || result.reason === 'revoked') internals.refused(secret, originOf(req))
  throw invalidKey(result.reason, internals.familiar(secret))
}

/** Those who have been told. */
const told = new WeakSet<Internals>()

/** Says once where lists of addresses may keep nobody out, or everybody: they go by `req.ip`, and Express knows too little of the proxies, or believes too much. */
function doubtAddress(internals: Internals, req: Request): void {
  if (told.has(internals) || !addressIsDoubtful(req)) return
  told.add(internals)
  internals.report(
    new ApiKeyError(
      'invalid_option',
      'A key with allowedIps was used, and req.ip may be the address of a proxy, or one that the client chose. Set "trust proxy" of Express to the number of your proxies, or to their addresses.',
    ),
  )
}
