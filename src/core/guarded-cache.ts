import type { Cache } from '../cache/cache.js'

/** The same cache, where trouble reads as "no answer" whatever the cache makes of it: one of an application's own may throw. */
export function guardedCache(cache: Cache, report: (error: unknown) => void): Cache {
  const attempt = async <T>(fallback: T, work: () => Promise<T>): Promise<T> => {
    try {
      return await work()
    } catch (error) {
      report(error)
      return fallback
    }
  }
  const { counters } = cache
  return {
    get: (digest) => attempt(undefined, () => cache.get(digest)),
    fill: (digest, value, expiresAtMs) => attempt(undefined, () => cache.fill(digest, value, expiresAtMs)),
    bury: (digest, value, ttlMs) => attempt(false, () => cache.bury(digest, value, ttlMs)),
    forget: (digest) => attempt(undefined, () => cache.forget(digest)),
    ...(counters === undefined ? {} : { counters: (windowMs: number) => counters.call(cache, windowMs) }),
    close: () => attempt(undefined, () => cache.close()),
  }
}
