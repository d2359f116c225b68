import type { Cache, Channel, Counters, Hit } from 'express-api-keys'
import { redisCache } from 'express-api-keys/redis'
import { cacheContract } from 'express-api-keys/testing'
import { Redis } from 'ioredis'
import { MessageServer, memoryChannel } from '../support/memory-channel.js'
import { startRedis } from '../support/redis.js'

cacheContract({ describe, test }, 'redisCache, two instances on one Redis', async () => {
  const redis = await startRedis()
  const clients = [new Redis(redis.url), new Redis(redis.url)] as const
  for (const client of clients) client.on('error', () => {})
  const [cache, sibling] = clients.map((client) => redisCache(client, { timeoutMs: 2_000, onStateChange() {} })) as [Cache, Cache]
  for (const each of [cache, sibling]) while ((await each.get('none')) === undefined) await new Promise(setImmediate)
  return {
    cache,
    sibling,
    fail: redis.stop,
    async close() {
      for (const each of [cache, sibling]) await each.close()
      for (const client of clients) client.disconnect()
      await redis.stop()
    },
  }
})

cacheContract({ describe, test }, 'a cache in memory with a channel', async () => {
  const server = new MessageServer()
  const [entries, hits] = [new Map(), new Map()]
  const make = (): Cache => withChannel(memoryCache(entries, hits), server)
  return { cache: make(), sibling: make(), close: async () => {} }
})

cacheContract({ describe, test }, 'a cache in memory', async () => {
  const entries = new Map<string, { value: string; endsAt: number }>()
  const hits = new Map<string, number[]>()
  return { cache: memoryCache(entries, hits), sibling: memoryCache(entries, hits), close: async () => {} }
})

test.each<[string, string, (cache: Cache) => Partial<Cache>]>([
  [
    'gives a fill a life of its own',
    'lands after its expiry',
    ({ fill }) => ({ fill: (it, value) => fill(it, value, Date.now() + 60_000) }),
  ],
  ['keeps entries for a second too long', 'never read after', ({ fill }) => ({ fill: (it, value, at) => fill(it, value, at + 1_000) })],
  [
    'lets a shorter life win',
    'one that lasts longer',
    ({ fill, forget }) => ({ fill: (...all) => forget(all[0]).then(() => fill(...all)) }),
  ],
  ['cuts what is long', 'however long', ({ fill }) => ({ fill: (it, value, at) => fill(it, value.slice(0, 32_768), at) })],
  ['buries without a word', 'over whatever is there', ({ bury }) => ({ bury: (...all) => bury(...all).then(() => false) })],
  ['forgets tombstones', 'a tombstone stays', ({ bury }) => ({ forget: (it) => bury(it, 'a', 60_000).then(() => {}) })],
  ['fills over tombstones', 'a tombstone stays', ({ bury }) => ({ fill: (it, value) => bury(it, value, 60_000).then(() => {}) })],
  ['counts for itself', 'one for all', () => ({ counters: (limit) => counters(new Map(), limit) })],
  [
    'counts twice',
    'one for all',
    (cache) => ({ counters: (limit) => counting(cache, limit, (hit, name) => hit(name).then(() => hit(name))) }),
  ],
  ['begins windows anew', '40 never has more', () => ({ counters: fixedWindow() })],
  ['promises too much', 'waits as long', (cache) => ({ counters: (limit) => counting(cache, limit, (hit, name) => hit(name).then(soon)) })],
  ['takes nothing back', 'takes back a hit', (cache) => ({ counters: (limit) => ({ ...own(cache, limit), takeBack: async () => {} }) })],
  ['leaves its channel open', 'ends its channels', () => ({ channel: () => memoryChannel(new MessageServer()) })],
  ['has a channel that is silent', 'channel: a message reaches everyone', () => ({ channel: () => memoryChannel(new MessageServer()) })],
  ['rejects without a server', 'its server is gone', () => ({ get: () => Promise.reject(new Error('gone')) })],
])('the contract notices a cache that %s', async (_fault, title, fault) => {
  const [entries, hits] = [new Map(), new Map()]
  const sound = memoryCache(entries, hits)
  const runs: (() => Promise<void>)[] = []
  const runner = {
    describe: (_name: string, tests: () => void) => tests(),
    test: (name: string, run: () => Promise<void>) =>
      name.includes(title) && name.startsWith('channel') === title.startsWith('channel') && runs.push(run),
  }
  cacheContract(runner, 'faulty', async () => ({ cache: { ...sound, ...fault(sound) }, fail: async () => {}, close: async () => {} }))
  expect(runs).toHaveLength(1)
  await expect(runs[0]?.()).rejects.toThrow()
})

function own(cache: Cache, limit: Limit): Counters {
  return cache.counters?.(limit) as Counters
}

function counting(cache: Cache, limit: Limit, hit: (hit: Counters['hit'], name: string) => ReturnType<Counters['hit']>): Counters {
  const sound = own(cache, limit)
  return { ...sound, hit: (name) => hit(sound.hit, name) }
}

function soon(hit: Hit | undefined): Hit | undefined {
  return hit && { ...hit, waitMs: 1 }
}

function fixedWindow(): (limit: Limit) => Counters {
  const windows = new Map<string, { hits: number; endsAt: number }>()
  return ({ max, windowMs }) => ({
    async hit(name) {
      const at = Date.now()
      const there = windows.get(name)
      const window = there !== undefined && there.endsAt > at ? there : { hits: 0, endsAt: (Math.floor(at / windowMs) + 1) * windowMs }
      const counted = window.hits < max
      if (counted) window.hits++
      windows.set(name, window)
      return { counted, hits: window.hits, waitMs: window.endsAt - at, at }
    },
    async takeBack() {},
  })
}

function withChannel(cache: Cache, server: MessageServer): Cache {
  const channels: Channel[] = []
  return {
    ...cache,
    channel() {
      const channel = memoryChannel(server)
      channels.push(channel)
      return channel
    },
    async close() {
      for (const each of channels) await each.close()
    },
  }
}

/** The least that is a cache: what the contract asks for, and nothing else. */
function memoryCache(entries: Map<string, { value: string; endsAt: number }>, log: Map<string, number[]>): Cache {
  const entry = (digest: string): { value: string; endsAt: number } | undefined => {
    const there = entries.get(digest)
    return there !== undefined && there.endsAt > Date.now() ? there : undefined
  }
  return {
    async get(digest) {
      const timeMs = Date.now()
      return { value: entry(digest)?.value ?? null, timeMs }
    },
    async fill(digest, value, endsAt) {
      const there = entry(digest)
      if (!Number.isFinite(endsAt) || there?.value.startsWith('r') || (there?.endsAt ?? 0) >= endsAt) return
      entries.set(digest, { value, endsAt })
    },
    async bury(digest, value, ttlMs) {
      if (!(ttlMs > 0 && ttlMs < Number.POSITIVE_INFINITY)) return false
      entries.set(digest, { value, endsAt: Date.now() + ttlMs })
      return true
    },
    async forget(digest) {
      if (entry(digest)?.value.startsWith('a')) entries.delete(digest)
    },
    counters: (limit) => counters(log, limit),
    async close() {},
  }
}

function counters(log: Map<string, number[]>, { max, windowMs }: Limit): Counters {
  const since = (name: string, now: number): number[] => (log.get(name) ?? []).filter((at) => at + windowMs > now)
  return {
    async hit(name) {
      const at = Date.now()
      const instants = since(name, at)
      const counted = instants.length < max
      if (counted) instants.push(at)
      log.set(name, instants)
      return { counted, hits: instants.length, waitMs: (instants[0] ?? at) + windowMs - at, at }
    },
    async takeBack(name, at) {
      const instants = since(name, Date.now())
      if (instants.includes(at)) instants.splice(instants.indexOf(at), 1)
      log.set(name, instants)
    },
  }
}

interface Limit {
  readonly max: number
  readonly windowMs: number
}
