import { IncomingMessage } from 'node:http'
import type { Request } from 'express'
import type { ApiKey } from '../core/key.js'
import { ApiKeyError } from '../errors.js'
import type { JsonObject } from '../store/store.js'

/**
 * The key that `bearerAuth` let this request in with, for TypeScript: `req.apiKey` may be undefined by its type, and this cannot. `Metadata` is the type
 * that `createApiKeys<Metadata>` was given.
 *
 * @throws ApiKeyError `internal_error` where the request has no key, since no `bearerAuth` stands before this handler.
 */
export function apiKeyOf<Metadata extends object = JsonObject>(req: { readonly apiKey?: ApiKey | undefined }): ApiKey<Metadata> {
  if (req.apiKey !== undefined) return req.apiKey as ApiKey<object> as ApiKey<Metadata>
  throw new ApiKeyError('internal_error', 'This request has no API key: no bearerAuth stands before this handler.')
}

/** The key of each request, by its `identityOf`. */
const keyOf = new WeakMap<object, ApiKey | undefined>()
/** Prototypes of requests that have been looked at. */
const prepared = new WeakSet<object>()
/** Prototypes that have the property defined below. */
const extended = new WeakSet<object>()

/**
 * Sets `req.apiKey`. Express gives each request another prototype, and from then on V8 makes a hidden class of its own, that lives until the next
 * major collection, for each property that is added: that would cost more than checking the key. So `apiKey` is a property of
 * `express.request`, the prototype of all requests that Express documents as the place for more. And assigning to it would have V8 look
 * the property up for the hidden class of this request, and remember what it found long after: so the key goes where the setter would put it.
 */
export function setApiKey(req: Request, key: ApiKey): void {
  const prototype: object = Object.getPrototypeOf(req)
  if (!prepared.has(prototype)) {
    prepared.add(prototype)
    extend(prototype)
  }
  if (inherits(req)) keyOf.set(identityOf(req) as object, key)
  else req.apiKey = key
}

/**
 * What a request shares with a proxy around it and with an object derived from it, and with no other request: the state of its stream. Its list of
 * headers will not do, since an adapter may give all its requests the same empty one.
 */
function identityOf(req: object): object | undefined {
  return (req as { _readableState?: object })._readableState
}

function hasIdentity(req: object): boolean {
  return Object.hasOwn(req, '_readableState') && typeof identityOf(req) === 'object'
}

/** Whether `req.apiKey` is the property defined below, and none that somebody put before it. */
function inherits(req: Request): boolean {
  if (!hasIdentity(req)) return false
  for (let at: object | null = req; at !== null; at = Object.getPrototypeOf(at)) {
    if (extended.has(at)) return true
    if (Object.hasOwn(at, 'apiKey')) return false
  }
  return false
}

/** Leaves alone what is no request of Express, and what has an `apiKey` already, such as that of another copy of this module. */
function extend(prototype: object): void {
  let root: object | undefined
  let next: object | null = prototype
  for (; next !== null && next !== IncomingMessage.prototype; next = Object.getPrototypeOf(next)) root = next
  if (next === null || root === undefined || 'apiKey' in prototype || !Object.isExtensible(root)) return
  Object.defineProperty(root, 'apiKey', {
    // For good: `inherits` need not look again.
    configurable: false,
    enumerable: true,
    get(this: Request) {
      return keyOf.get(identityOf(this) as object)
    },
    set(this: Request, key: ApiKey | undefined) {
      // A derived object gets a property of its own, as it always did: another key on it is not to become the request's.
      if (hasIdentity(this)) keyOf.set(identityOf(this) as object, key)
      else Object.defineProperty(this, 'apiKey', { value: key, writable: true, enumerable: true, configurable: true })
    },
  })
  extended.add(root)
}
