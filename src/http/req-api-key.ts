import { IncomingMessage } from 'node:http'
import type { NextFunction, Request, Response } from 'express'
import type { Verified } from '../core/api-keys.js'
import type { ApiKey } from '../core/key.js'
import { ApiKeyError } from '../errors.js'
import type { JsonObject } from '../store/store.js'
import { identityOf } from './identity.js'
import { type FailureContext, isError, refuse, STDERR, type Telling } from './problem.js'

/**
 * Returns the key that let this request in. By its type, `req.apiKey` may be undefined; this cannot. `Metadata` is the type that
 * `createApiKeys<Metadata>` was given.
 *
 * @throws ApiKeyError `internal_error` if no `bearerAuth` stands before this handler, and `credential_missing` if one let the request pass without a key.
 */
export function apiKeyOf<Metadata extends object = JsonObject>(req: { readonly apiKey?: ApiKey | undefined }): ApiKey<Metadata> {
  if (req.apiKey !== undefined) return req.apiKey as ApiKey<object> as ApiKey<Metadata>
  // Behind `optional`, `anyOf` or a preflight there is a bearerAuth, and no key.
  throw (guardOf(req as Request) ?? unguarded('this handler')).missing()
}

/**
 * Returns the signal that fires when the key that let this request in is not good any more: ends a stream of events, say, whose client was let in an hour ago.
 * See `signal` of what `verify` resolves with.
 *
 * @throws ApiKeyError `internal_error` if no `bearerAuth` has let this request in with a key.
 */
export function apiKeySignalOf(req: Request): AbortSignal {
  const verdict = admissionOf(req)?.verdict
  // Not where the application has put another key in its place.
  if (verdict !== undefined && verdict.key === req.apiKey) return verdict.signal
  throw unguarded('this handler').missing()
}

/** What a middleware of ours left at a request: the key, and what a refusal later on needs to know. */
interface Admitted {
  readonly key: ApiKey | undefined
  /** Undefined where the application has set the key. */
  readonly by: Guard | undefined
  /** Undefined there too, and where there was no key. */
  readonly verdict?: Verified | undefined
}

/** How the `bearerAuth` that let a request in tells of failures. */
export interface Guard {
  readonly telling: Telling
  readonly context: FailureContext
  /** The failure of a request without a credential. */
  missing(): ApiKeyError
  /** Whether this request passed as a CORS preflight, which never has a key. */
  letsPreflight(req: Request): boolean
}

/** For requests that came by no `bearerAuth`; `who` asks for their key all the same. */
export function unguarded(who: string): Guard {
  return {
    telling: { listener: STDERR },
    context: {},
    missing: () => new ApiKeyError('internal_error', `This request has no API key: no bearerAuth stands before ${who}.`),
    letsPreflight: () => false,
  }
}

/** What each request was let in with, by its `identityOf`. */
const admitted = new WeakMap<object, Admitted>()
/** Prototypes of requests that `extend` has seen. */
const prepared = new WeakSet<object>()
/** Prototypes that have the property defined below. */
const extended = new WeakSet<object>()

/**
 * Sets `req.apiKey`. Express replaces the prototype of each request. Each property that is then added gives the request a hidden class of its own
 * in V8, which lives until the next major collection: that would cost more than checking the key. So `apiKey` is a property of
 * `express.request`, the prototype of all requests, which Express documents as the place for additions. Assigning to it would still make V8 look
 * the property up for the hidden class of this request, and cache the result: so the key goes directly where the setter would put it.
 */
export function setApiKey(req: Request, verdict: Verified | undefined, by: Guard): void {
  const key = verdict?.key
  const prototype: object = Object.getPrototypeOf(req)
  if (!prepared.has(prototype)) {
    prepared.add(prototype)
    extend(prototype)
  }
  if (inherits(req)) admitted.set(identityOf(req) as object, { key, by, verdict })
  else {
    req.apiKey = key
    apart.set(req, { key, by, verdict })
  }
}

/** Refuses a request. Where the application's `onFailure` lets it go on all the same, it has no key, whatever another guard has let it in with. */
export function turnAway(
  by: Guard,
  exchange: { readonly req: Request; readonly res: Response; readonly next: NextFunction },
  error: unknown,
): void {
  const next = ((passed?: unknown) => {
    if (!isError(passed)) setApiKey(exchange.req, undefined, by)
    exchange.next(passed)
  }) as NextFunction
  refuse(by.telling, { ...exchange, next }, error, by.context)
}

/** What requests were let in with that have `apiKey` as a property of their own. */
const apart = new WeakMap<object, Admitted>()

/** Who let this request in; undefined where no `bearerAuth` did. */
export function guardOf(req: Request): Guard | undefined {
  return admissionOf(req)?.by
}

function admissionOf(req: Request): Admitted | undefined {
  const identity = identityOf(req)
  return apart.get(req) ?? (identity === undefined ? undefined : admitted.get(identity))
}

function hasIdentity(req: object): boolean {
  return Object.hasOwn(req, '_readableState') && identityOf(req) !== undefined
}

/** Whether `req.apiKey` is the property defined below, and not one that somebody put in front of it. */
function inherits(req: Request): boolean {
  if (!hasIdentity(req)) return false
  for (let at: object | null = req; at !== null; at = Object.getPrototypeOf(at)) {
    if (extended.has(at)) return true
    if (Object.hasOwn(at, 'apiKey')) return false
  }
  return false
}

/** Leaves a prototype alone if it is not Express's, or has an `apiKey` already, such as that of another copy of this module. */
function extend(prototype: object): void {
  let root: object | undefined
  let next: object | null = prototype
  for (; next !== null && next !== IncomingMessage.prototype; next = Object.getPrototypeOf(next)) root = next
  if (next === null || root === undefined || 'apiKey' in prototype || !Object.isExtensible(root)) return
  Object.defineProperty(root, 'apiKey', {
    // Never removed, so `inherits` need not look again.
    configurable: false,
    enumerable: true,
    get(this: Request) {
      return admitted.get(identityOf(this) as object)?.key
    },
    set(this: Request, key: ApiKey | undefined) {
      // A derived object gets a property of its own: another key on it must not become the request's.
      if (hasIdentity(this)) admitted.set(identityOf(this) as object, { key, by: admitted.get(identityOf(this) as object)?.by })
      else Object.defineProperty(this, 'apiKey', { value: key, writable: true, enumerable: true, configurable: true })
    },
  })
  extended.add(root)
}
