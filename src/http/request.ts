import { IncomingMessage } from 'node:http'
import type { Request } from 'express'
import type { ApiKey } from '../core/key.js'

/** By the list of headers, which belongs to one request and is also that of a proxy around it, or of an object derived from it. */
const keys = new WeakMap<object, ApiKey | undefined>()
const met = new WeakSet<object>()

/**
 * Sets `req.apiKey`. Express gives each request another prototype, and from then on V8 makes a hidden class of its own, that lives until the next
 * major collection, for each property that is added: that would cost more than checking the key. So `apiKey` is a property of
 * `express.request`, the prototype of all requests that Express documents as the place for more.
 */
export function setApiKey(req: Request, key: ApiKey): void {
  const prototype: object = Object.getPrototypeOf(req)
  if (!met.has(prototype)) {
    met.add(prototype)
    extend(prototype)
  }
  req.apiKey = key
}

/** Leaves alone what is no request of Express, and what has an `apiKey` already, such as that of another copy of this module. */
function extend(prototype: object): void {
  let root: object | undefined
  let next: object | null = prototype
  for (; next !== null && next !== IncomingMessage.prototype; next = Object.getPrototypeOf(next)) root = next
  if (next === null || root === undefined || 'apiKey' in prototype || !Object.isExtensible(root)) return
  Object.defineProperty(root, 'apiKey', {
    configurable: true,
    enumerable: true,
    get(this: Request) {
      return keys.get(this.rawHeaders)
    },
    set(this: Request, key: ApiKey | undefined) {
      keys.set(this.rawHeaders, key)
    },
  })
}
