import type { NextFunction, Request, RequestHandler, Response } from 'express'
import type { AnyApiKeys, VerifyResult } from '../core/api-keys.js'
import { internalsOf } from '../core/internals.js'
import type { ApiKey } from '../core/key.js'
import { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import { ADMISSION, type AdmissionOptions, admission } from './admission.js'
import { announceEnd } from './grace-headers.js'
import { failureGuard } from './limits/failure-guard.js'
import { ClientAddress, originOf } from './origin.js'
import { type OnFailure, onFailureOption, realmOption } from './problem.js'
import { type Guard, setApiKey, turnAway } from './req-api-key.js'
import { challengesOf, credentialOf, hideCredentials, missingCredential, refuseLost, type Source, sourcesOption } from './source.js'
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
  /**
   * Where requests carry their key: `bearer()`, `header(name)`, `scheme(name)`, `basic()`, `bare()`, one of your own, or a list of them, any of which will do.
   * Two different keys in one request are refused. Default `bearer()`.
   */
  from?: Source | readonly Source[] | undefined
  /** Whether a request without any credential passes, with `req.apiKey` undefined. A bad credential is refused all the same. Default false. */
  optional?: boolean | undefined
  /** Whether CORS preflights pass, which browsers send without a credential. Default false. */
  preflight?: boolean | undefined
  /** Whether the headers that carried the key are removed from a request that is let in, for whatever comes after. Default false. */
  hideCredential?: boolean | undefined
  /**
   * What becomes of a refusal: `'respond'` answers with problem details, `'next'` hands the error to the application's error handler, and a function answers
   * itself. Default `'respond'`.
   */
  onFailure?: OnFailure | undefined
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
  const way = keyWay(keys, options)
  const kept = { ...options }
  ways.set(way.handler, { ...way, asking: (challenges) => keyWay(keys, kept, challenges) })
  return way.handler
}

/** A `bearerAuth` as one way in among others. */
export interface KeyWay {
  readonly handler: RequestHandler
  readonly sources: readonly Source[]
  readonly guard: Guard
  wellFormed(secret: string): boolean
}

const ways = new WeakMap<object, KeyWay & { asking(challenges: readonly string[]): KeyWay }>()

/** The way that a `bearerAuth` is, with the challenges that its refusals shall have; undefined for any other middleware. */
export function keyWayOf(handler: object, challenges?: readonly string[]): KeyWay | undefined {
  const way = ways.get(handler)
  return challenges === undefined ? way : way?.asking(challenges)
}

function keyWay(keys: AnyApiKeys, options: BearerAuthOptions, challenges?: readonly string[]): KeyWay {
  const internals = internalsOf(keys, 'bearerAuth')
  refuseUnknown(options, OPTIONS, 'bearerAuth')
  const admitted = admission(options)
  const maxFailures = failuresOption(options.failuresPerMinute)
  const guard = failureGuard(internals)
  const sources = sourcesOption(options.from)
  const context = { challenges: challenges ?? challengesOf(sources), realm: realmOption(options.realm), scope: admitted.scope }
  const telling = { listener: internals, onFailure: onFailureOption(options.onFailure) }
  const flag = flagsOf(options)
  const letsPreflight = (req: Request): boolean => flag.preflight && req.method === 'OPTIONS' && isPreflight(req)
  const guardian = { telling, context, missing: () => missingCredential(sources), letsPreflight }

  return { handler: bearerAuth, sources, guard: guardian, wellFormed: (secret) => keys.wellFormed(secret) }

  function bearerAuth(req: Request, res: Response, next: NextFunction): void {
    let secret: string | undefined
    let known: VerifyResult | undefined
    try {
      secret = credentialOf(req, sources)
      if (secret === undefined) {
        if (!passes(req)) throw missingCredential(sources)
        if (req.apiKey === undefined) setApiKey(req, undefined, guardian)
      } else {
        // The hot path: a live lease answers at once, and nothing is awaited between its check and next().
        known = keys.peek(secret, new ClientAddress(req))
        if (known !== undefined) enter(req, res, secret, known)
      }
    } catch (error) {
      turnAway(guardian, { req, res, next }, error)
      return
    }
    if (secret === undefined || known !== undefined) next()
    // What fails here came from next(), or from answering.
    else askAndEnter(req, res, next, secret).catch(next)
  }

  async function askAndEnter(req: Request, res: Response, next: NextFunction, secret: string): Promise<void> {
    try {
      refuseFlood(internals, guard, maxFailures, req, secret)
      const from = new ClientAddress(req)
      let result = await keys.verify(secret, from)
      // Looked at right before next(), with no await between.
      for (let tries = 1; result.ok && !result.live(); tries++) {
        if (tries === 2) throw verdictTooLate()
        result = await keys.verify(secret, from)
      }
      if (!result.ok) guard.note(req)
      enter(req, res, secret, result)
    } catch (error) {
      turnAway(guardian, { req, res, next }, error)
      return
    }
    next()
  }

  /** Whether a request without a credential goes on all the same. */
  function passes(req: Request): boolean {
    if (letsPreflight(req)) return true
    if (!flag.optional) return false
    refuseLost(req, sources, (text) => keys.wellFormed(text))
    return true
  }

  function enter(req: Request, res: Response, secret: string, result: VerifyResult): void {
    const verdict = accepted(internals, req, secret, result)
    const { key, grace } = verdict
    admitted.check(key)
    setApiKey(req, verdict, guardian)
    if (grace !== undefined) announceEnd(res, grace, flag.deprecation)
    if (flag.hideCredential) hideCredentials(req, sources)
    internals.used(key.id, () => originOf(req))
  }
}

const FLAGS = ['optional', 'preflight', 'hideCredential', 'deprecation'] as const
const OPTIONS: readonly string[] = [...ADMISSION, 'from', 'onFailure', 'realm', 'failuresPerMinute', ...FLAGS]

function flagsOf(options: BearerAuthOptions): { readonly [name in (typeof FLAGS)[number]]: boolean } {
  for (const name of FLAGS) {
    if (![undefined, true, false].includes(options[name])) throw new ApiKeyError('invalid_option', `${name} must be true or false.`)
  }
  const { optional = false, preflight = false, hideCredential = false, deprecation = false } = options
  return { optional, preflight, hideCredential, deprecation }
}

/** @see https://fetch.spec.whatwg.org/#cors-preflight-request */
function isPreflight({ headers }: Request): boolean {
  return headers.origin !== undefined && headers['access-control-request-method'] !== undefined
}
