import type { RequestHandler } from 'express'
import { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import { ADMISSION, type AdmissionOptions, admission } from './admission.js'
import { refuseForGood } from './problem.js'
import { guardOf, unguarded } from './req-api-key.js'

/**
 * Asks more of the key behind a `bearerAuth` that stands before it: one scope, a list of scopes of which it must have all, or
 * `{ scope, anyScope, environment }`. Answers 403 to a key that lacks them, as that `bearerAuth` answers: its realm, its `onFailure`. Answers 401 where it let a request
 * without a key pass, unless that was a CORS preflight, and 500 where there is none. The key is not looked up again: it was good when the request came in.
 *
 * @throws ApiKeyError `invalid_option` for anything that would ask for nothing.
 */
export function requireScope(wanted: string | readonly string[] | AdmissionOptions, ...more: never[]): RequestHandler {
  // A second scope would be asked of nobody.
  if (more.length > 0)
    throw new ApiKeyError(
      'invalid_option',
      'requireScope takes one argument, and no keys. For several scopes write a list: requireScope(["a", "b"]).',
    )
  const options =
    typeof wanted === 'string' || Array.isArray(wanted) ? { scope: wanted as string | readonly string[] } : (wanted as AdmissionOptions)
  if (
    typeof options !== 'object' ||
    options === null ||
    Object.keys(options).length === 0 ||
    (Array.isArray(wanted) && wanted.length === 0)
  ) {
    throw new ApiKeyError(
      'invalid_option',
      'requireScope takes a scope such as "reports:read", a list of scopes, or { scope, anyScope, environment }.',
    )
  }
  refuseUnknown(options, ADMISSION, 'requireScope')
  const { scope, check } = admission(options)

  return function requireScope(req, res, next) {
    const { telling, context, missing, letsPreflight } = guardOf(req) ?? unguarded('requireScope')
    try {
      if (req.apiKey !== undefined) check(req.apiKey)
      else if (!letsPreflight(req)) throw missing()
    } catch (error) {
      refuseForGood(telling, { req, res, next }, error, { ...context, scope })
      return
    }
    next()
  }
}
