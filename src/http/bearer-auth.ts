import type { NextFunction, Request, RequestHandler, Response } from 'express'
import type { AnyApiKeys, Verified, VerifyResult } from '../core/api-keys.js'
import { invalidKey } from '../core/change/replay-decision.js'
import { internalsOf } from '../core/internals.js'
import type { ApiKey } from '../core/key.js'
import { hasScope } from '../core/scope.js'
import { ApiKeyError } from '../errors.js'
import { integerOption, refuseUnknown } from '../options.js'
import { DEFAULT_FAILURES_PER_MINUTE, failureGuard } from './limits/route-limits.js'
import { originOf, refuse } from './problem.js'
import { setApiKey } from './req-api-key.js'
import { bearerSecret } from './source.js'

declare global {
  namespace Express {
    interface Request {
      /** The key that this request was let in with; set by `bearerAuth`. Inherited, so give it `undefined` to take it away. */
      apiKey?: ApiKey | undefined
    }
  }
}

export interface BearerAuthOptions {
  /**
   * The scope that the key must have, or several that it must have all of. A key's `reports:*` covers `reports:read`, and its `*` covers all but
   * `api_keys:admin`. Default none.
   */
  scope?: string | readonly string[]
  /** Names the protected space in challenges (RFC 9110 §11.5). Default `api`. */
  realm?: string
  /**
   * How many bad keys one address (IPv6: one /56 network) may present in a minute, 1 to 1,000,000. Beyond it, keys that this process
   * has not met before are answered 429 without asking the store. Counted in each process. `false` for no limit. Default 300.
   */
  failuresPerMinute?: number | false
  /** Whether requests with a secret in its grace period are answered with `Deprecation` (RFC 9745) and `Sunset` (RFC 8594) too. Default false. */
  deprecation?: boolean
}

/**
 * Lets a request pass that presents a good API key, as `Authorization: Bearer <key>`, and sets `req.apiKey`.
 *
 * Answers 400 to a malformed or doubled header, 401 to a missing or bad key, 403 to a missing scope, and 503 with `Retry-After`
 * when no trustworthy verdict can be had: never 401 for that, since clients delete their key on 401. 429 to an address that keeps
 * presenting bad keys. A secret in its grace period is let in with `Api-Key-Expires-At` in the answer.
 *
 * @see RFC 6750 §3
 */
export function bearerAuth(keys: AnyApiKeys, options: BearerAuthOptions = {}): RequestHandler {
  const internals = internalsOf(keys, 'bearerAuth')
  refuseUnknown(options, ['scope', 'realm', 'failuresPerMinute', 'deprecation'], 'bearerAuth')
  if ('scope' in options && options.scope === undefined) {
    throw new ApiKeyError('invalid_option', 'scope is undefined, which would let every key in. Leave it out if that is meant.')
  }
  const scopes = scopeOption(options.scope)
  const realm = realmOption(options.realm)
  const scope = scopes.join(' ')
  const maxFailures = failuresOption(options.failuresPerMinute)
  const guard = failureGuard(internals)
  const { deprecation = false } = options
  if (typeof deprecation !== 'boolean') throw new ApiKeyError('invalid_option', 'deprecation must be true or false.')

  return function bearerAuth(req, res, next) {
    let secret: string
    let known: VerifyResult | undefined
    try {
      secret = bearerSecret(req)
      // The hot path: a live lease answers at once, and nothing is awaited between its check and next().
      known = keys.peek(secret)
      if (known !== undefined) enter(req, res, secret, known)
    } catch (error) {
      refuse(internals, req, res, error, { realm, scope })
      return
    }
    if (known !== undefined) next()
    // Were it to fail, that came from next() or from what answers.
    else askAndEnter(req, res, next, secret).catch(next)
  }

  async function askAndEnter(req: Request, res: Response, next: NextFunction, secret: string): Promise<void> {
    let blockedFor: number | undefined
    try {
      if (maxFailures !== false && internals.familiar(secret) === undefined) blockedFor = guard.blockedFor(req, maxFailures)
      if (blockedFor !== undefined) throw new ApiKeyError('rate_limited', 'Too many bad API keys came from this address; try again later.')
      await ask(req, res, secret)
    } catch (error) {
      refuse(internals, req, res, error, { realm, scope, retryAfterSeconds: blockedFor })
      return
    }
    next()
  }

  async function ask(req: Request, res: Response, secret: string): Promise<void> {
    for (let tries = 0; tries < 2; tries++) {
      const result = await keys.verify(secret)
      // Between the verdict and here the process may have been paused for longer than its lease.
      if (result.ok && !result.live()) continue
      if (!result.ok) guard.note(req)
      enter(req, res, secret, result)
      return
    }
    throw new ApiKeyError('store_unavailable', 'No verdict came back in time to be relied on.')
  }

  function enter(req: Request, res: Response, secret: string, result: VerifyResult): void {
    if (!result.ok && (result.reason === 'rotated' || result.reason === 'revoked')) internals.refused(secret, originOf(req))
    // One answer for every bad key: whether it ever was one is nobody's business.
    if (!result.ok) throw invalidKey(result.reason)
    for (const wanted of scopes) {
      if (!hasScope(result.key.scopes, wanted)) {
        throw new ApiKeyError('insufficient_scope', `This needs the scope ${scope}.`, { keyId: result.key.id })
      }
    }
    setApiKey(req, result.key)
    if (result.grace !== undefined) announceEnd(res, result.grace, deprecation)
    internals.used(result.key.id, () => originOf(req))
  }
}

/** Tells a client that goes on with the secret of before a rotation. @see RFC 9745 §2, RFC 8594 §3 */
export function announceEnd(res: Response, { replacedAt, expiresAt }: NonNullable<Verified['grace']>, deprecation: boolean): void {
  res.setHeader('Api-Key-Expires-At', expiresAt)
  if (!deprecation) return
  res.setHeader('Deprecation', `@${Math.floor(Date.parse(replacedAt) / 1_000)}`)
  res.setHeader('Sunset', new Date(expiresAt).toUTCString())
}

export function failuresOption(value: number | false | undefined): number | false {
  return value === false ? false : integerOption('failuresPerMinute', value, DEFAULT_FAILURES_PER_MINUTE, 1, 1_000_000)
}

function scopeOption(scope: BearerAuthOptions['scope']): readonly string[] {
  const scopes = scope === undefined ? [] : typeof scope === 'string' ? [scope] : scope
  const good = Array.isArray(scopes) && scopes.every((one: unknown) => typeof one === 'string' && /^[\x21\x23-\x5b\x5d-\x7e]+$/.test(one))
  if (!good) throw new ApiKeyError('invalid_option', 'scope must be a scope token such as "reports:read", or a list of them.')
  return [...scopes]
}

function realmOption(realm: string | undefined): string {
  if (realm === undefined) return 'api'
  if (typeof realm === 'string' && /^[\x20\x21\x23-\x5b\x5d-\x7e]{1,128}$/.test(realm)) return realm
  throw new ApiKeyError('invalid_option', 'realm must be 1 to 128 printable ASCII characters without quotes and backslashes.')
}
