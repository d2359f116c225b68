import type { Cache } from 'express-api-keys'
import { cacheContract } from 'express-api-keys/testing'

/** A cache in this process. It serves no other instance, but shows what each method has to do. */
function memoryCache(): Cache {
  const entries = new Map<string, { value: string; endsAtMs: number }>()
  const live = (digest: string): { value: string; endsAtMs: number } | undefined => {
    const entry = entries.get(digest)
    return entry !== undefined && entry.endsAtMs > Date.now() ? entry : undefined
  }
  const isTombstone = (digest: string): boolean => live(digest)?.value.startsWith('r') ?? false

  return {
    async get(digest) {
      return { value: live(digest)?.value ?? null, timeMs: Date.now() }
    },
    async fill(digest, value, expiresAtMs) {
      if (isTombstone(digest) || (live(digest)?.endsAtMs ?? Date.now()) >= expiresAtMs) return
      entries.set(digest, { value, endsAtMs: expiresAtMs })
    },
    async bury(digest, value, ttlMs) {
      entries.set(digest, { value, endsAtMs: Date.now() + ttlMs })
      return true
    },
    async forget(digest) {
      if (!isTombstone(digest)) entries.delete(digest)
    },
    async close() {
      entries.clear()
    },
  }
}

cacheContract({ describe, test }, 'a cache in memory', async () => {
  const cache = memoryCache()
  return { cache, close: () => cache.close() }
})
