import type { Cache } from './cache.js'

/** What whoever runs a cache wants to know of it, for the command line. No application needs it. */
export interface CacheTools {
  /** Rejects where the cache cannot be asked in `ms`. */
  inspect(ms: number): Promise<readonly CacheServerFacts[]>
}

/** Of one server of a cache. */
export interface CacheServerFacts {
  readonly version: string | undefined
  /** Which entries the server drops when its memory is full, such as `allkeys-lru`. */
  readonly eviction: string | undefined
  /** In bytes; 0 for no limit. */
  readonly maxMemory: number | undefined
}

/** Registered, for the command line of another installed copy. Its number names the shape of `CacheTools`. */
export const CACHE_TOOLS: unique symbol = Symbol.for('express-api-keys.cache-tools.1')

/** Undefined for a cache that has none, such as one of the application's own. */
export function cacheTools(cache: Cache): CacheTools | undefined {
  return (cache as { readonly [CACHE_TOOLS]?: CacheTools })[CACHE_TOOLS]
}
