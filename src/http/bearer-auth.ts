import type { NextFunction, Request, RequestHandler, Response } from 'express'
import type { AnyApiKeys, VerifyResult } from '../core/api-keys.js'
import { internalsOf } from '../core/internals.js'
import type { ApiKey } from '../core/key.js'
import { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import { type AdmissionOptions, admission } from './admission.js'
import { announceEnd } from './grace-headers.js'
import { failureGuard } from './limits/failure-guard.js'
import { originOf } from './origin.js'
import { realmOption, refuse } from './problem.js'
import { setApiKey } from './req-api-key.js'
import { bearer, credentialOf } from './source.js'
import { accepted, failuresOption, refuseFlood, verdictTooLate } from './verdict.js'

declare global {
  namespace Express {
    interface Request {
      /** The key that let this request in; set by `bearerAuth`. It is inherited: to remove it, assign `undefined`. */
      apiKey?: ApiKey | undefined
    }
  }
}

export interface BearerAuthOptions extends AdmissionOptions {
  /** Names the protected space in challenges (RFC 9110 §11.5). Default `api`. */
  realm?: string | undefined
  /**
   * How many bad keys one address (IPv6: one /56 network) may present in a minute, 1 to 1,000,000. Beyond that, keys new to this process are
   * answered 429 without asking the store. Each process counts for itself. `false` for no limit. Default 300.
   */
  failuresPerMinute?: number | false | undefined
  /** Whether answers to a secret in its grace period also have `Deprecation` (RFC 9745) and `Sunset` (RFC 8594). Default false. */
  deprecation?: boolean | undefined
}

/**
 * Lets requests in that present a good API key as `Authorization: Bearer <key>`, and sets `req.apiKey`.
 *
 * Answers 400 to a malformed or doubled header, 401 to a missing or bad key, 403 to a missing scope, and 429 to an address that keeps
 * presenting bad keys. Answers 503 with `Retry-After` when it can get no verdict to rely on: never 401, since clients delete their key on 401.
 * Lets a secret in its grace period in, with `Api-Key-Expires-At` in the answer.
 *
 * @see RFC 6750 §3
 */
export function bearerAuth(keys: AnyApiKeys, options: BearerAuthOptions = {}): RequestHandler {
  const internals = internalsOf(keys, 'bearerAuth')
  refuseUnknown(options, ['scope', 'realm', 'failuresPerMinute', 'deprecation'], 'bearerAuth')
  const admitted = admission(options)
  const maxFailures = failuresOption(options.failuresPerMinute)
  const guard = failureGuard(internals)
  const source = bearer()
  const context = { scheme: source.challenge, realm: realmOption(options.realm), scope: admitted.scope }
  const { deprecation = false } = options
  if (typeof deprecation !== 'boolean') throw new ApiKeyError('invalid_option', 'deprecation must be true or false.')

  return function bearerAuth(req, res, next) {
    let secret: string
    let known: VerifyResult | undefined
    try {
      secret = credentialOf(req, source)
      // The hot path: a live lease answers at once, and nothing is awaited between its check and next().
      known = keys.peek(secret)
      if (known !== undefined) enter(req, res, secret, known)
    } catch (error) {
      refuse(internals, req, res, error, context)
      return
    }
    if (known !== undefined) next()
    // What fails here came from next(), or from answering.
    else askAndEnter(req, res, next, secret).catch(next)
  }

  async function askAndEnter(req: Request, res: Response, next: NextFunction, secret: string): Promise<void> {
    try {
      refuseFlood(internals, guard, maxFailures, req, secret)
      let result = await keys.verify(secret)
      // Looked at right before next(), with no await between.
      for (let tries = 1; result.ok && !result.live(); tries++) {
        if (tries === 2) throw verdictTooLate()
        result = await keys.verify(secret)
      }
      if (!result.ok) guard.note(req)
      enter(req, res, secret, result)
    } catch (error) {
      refuse(internals, req, res, error, context)
      return
    }
    next()
  }

  function enter(req: Request, res: Response, secret: string, result: VerifyResult): void {
    const { key, grace } = accepted(internals, req, secret, result)
    admitted.check(key)
    setApiKey(req, key)
    if (grace !== undefined) announceEnd(res, grace, deprecation)
    internals.used(key.id, () => originOf(req))
  }
}
