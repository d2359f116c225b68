import type { Cache, Counters } from '../cache/cache.js'
import { ApiKeyError } from '../errors.js'
import type { Store } from '../store/store.js'
import type { AnyApiKeys, Denial, Origin } from './api-keys.js'
import type { Clock } from './clock.js'

/** What the HTTP layer and the command line need of API keys and an application does not. */
export interface Internals {
  /**
   * Notes that a key was used; written behind, for each key at most once a minute, so `lastUsedAt` is right to about a minute. `origin` is
   * asked only when the use is going to be written.
   */
  used(keyId: string, origin: () => Origin): void
  /** Tells those who listen for `denied`; `denial` is asked only where somebody does. */
  denied(denial: () => Denial): void
  /** Notes in the audit trail, in the background, that a retired secret was refused; for each secret at most once a minute. */
  refused(secret: string, origin: Origin): void
  /** The id of the key that a secret belongs to, where this instance has met it lately and it was good then. No I/O, and no verdict. */
  familiar(secret: string): string | undefined
  /**
   * The id of the key of a secret that is good, which the store is asked for where this instance has not met it. That is no use of the secret. Undefined
   * for a bad secret, and where the store cannot be asked. Never rejects.
   */
  keyIdOf(secret: string): Promise<string | undefined>
  /** Hands a failure to `onError`. Never throws. */
  report(error: unknown): void
  /** The clock that was given, or the machine's. */
  readonly clock: Clock
  /** What was given to `createApiKeys`, for the command line. */
  readonly setup: Setup
  /** Makes counters that every instance with this server secret shares, where the cache has some; `name` tells them apart. */
  readonly counters: ((name: string, limit: { readonly max: number; readonly windowMs: number }) => Counters) | undefined
}

/** What API keys were made with. */
export interface Setup {
  readonly store: Store
  readonly cache: Cache | undefined
  /** Those of new secrets first, then the others that are accepted. */
  readonly prefixes: readonly [string, ...string[]]
  readonly leaseMs: number
  readonly recall: boolean
}

/** Registered, so that the router of one installed copy of the package serves the keys of another. Its number names the shape of `Internals`. */
export const INTERNALS: unique symbol = Symbol.for('express-api-keys.internals.1')

/** The internals of what `createApiKeys` returned. Throws `invalid_option` for anything else. */
export function internalsOf(keys: AnyApiKeys, where: string): Internals {
  const internals = (keys as { readonly [INTERNALS]?: Internals } | null | undefined)?.[INTERNALS]
  if (internals !== undefined) return internals
  throw new ApiKeyError('invalid_option', `${where} takes what createApiKeys returned as its first argument.`)
}
