import type { Request, RequestHandler } from 'express'
import type { ApiKeys, VerifyResult } from '../core/api-keys.js'
import type { ApiKey } from '../core/key.js'
import { refuseUnknown } from '../core/options.js'
import { ApiKeyError } from '../errors.js'
import { bearerSecret } from './credential.js'
import { refuse } from './problem.js'

declare global {
  namespace Express {
    interface Request {
      /** The key that this request was let in with; set by `bearerAuth`. */
      apiKey?: ApiKey
    }
  }
}

export interface BearerAuthOptions {
  /** The scope that the key must have, or several that it must have all of. Default none. */
  scope?: string | readonly string[]
  /** Names the protected space in challenges (RFC 9110 §11.5). Default `api`. */
  realm?: string
}

/**
 * Lets a request pass that presents a good API key, as `Authorization: Bearer <key>`, and sets `req.apiKey`.
 *
 * Answers 400 to a malformed or doubled header, 401 to a missing or bad key, 403 to a missing scope, and 503 with `Retry-After`
 * when no trustworthy verdict can be had: never 401 for that, since clients delete their key on 401.
 *
 * @see RFC 6750 §3
 */
export function bearerAuth(keys: ApiKeys, options: BearerAuthOptions = {}): RequestHandler {
  if (typeof keys?.peek !== 'function')
    throw new ApiKeyError('invalid_option', 'bearerAuth takes what createApiKeys returned as its first argument.')
  refuseUnknown(options, ['scope', 'realm'], 'bearerAuth')
  const scopes = scopeOption(options.scope)
  const realm = realmOption(options.realm)
  const scope = scopes.join(' ')

  return function bearerAuth(req, res, next) {
    let secret: string
    let known: VerifyResult | undefined
    try {
      secret = bearerSecret(req)
      // The hot path: a live lease answers at once, and nothing is awaited between its check and next().
      known = keys.peek(secret)
      if (known !== undefined) enter(req, known)
    } catch (error) {
      refuse(keys, res, error, { realm, scope })
      return
    }
    if (known !== undefined) {
      next()
      return
    }
    askAndEnter(req, secret).then(
      () => next(),
      (error: unknown) => refuse(keys, res, error, { realm, scope }),
    )
  }

  async function askAndEnter(req: Request, secret: string): Promise<void> {
    for (let tries = 0; tries < 2; tries++) {
      const result = await keys.verify(secret)
      // Between the verdict and here the process may have been paused for longer than its lease.
      if (result.ok && !result.live()) continue
      enter(req, result)
      return
    }
    throw new ApiKeyError('store_unavailable', 'No verdict came back in time to be relied on.')
  }

  function enter(req: Request, result: VerifyResult): void {
    // One answer for every bad key: whether it ever was one is nobody's business.
    if (!result.ok) throw new ApiKeyError('invalid_key', 'The API key is not valid.')
    for (const wanted of scopes) {
      if (!result.key.scopes.includes(wanted)) throw new ApiKeyError('insufficient_scope', `This needs the scope ${scope}.`)
    }
    req.apiKey = result.key
  }
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
