import type { Request, RequestHandler, Response } from 'express'
import { type ClientRateLimitInfo, ipKeyGenerator, MemoryStore, type Options, rateLimit, type Store } from 'express-rate-limit'
import type { Counters } from '../cache/cache.js'
import type { ApiKeys } from '../core/api-keys.js'
import type { Limit } from './contract.js'

/** What routes without a limit of their own are held to: nobody rotates keys this often, and a loop that does is stopped. */
export const DEFAULT_LIMIT: Limit = { max: 120, windowMs: 60_000, by: 'credential' }

/** A lost answer may be asked for this much more often than something new. */
const REPLAYS_PER_REQUEST = 10

/** Requests with one name, counted. */
export interface Bucket {
  /** Counts a request; `within` says whether the limit allows it. */
  hit(req: Request, res: Response, name: string): Promise<{ readonly within: boolean; readonly retryAfterSeconds: number }>
  /** Takes a request back, which turns out not to have been one that counts. */
  takeBack(name: string): Promise<void>
}

/** The two buckets of a route: `requests`, and `replays` for whoever is over its limit and asks for an answer that was lost. */
export function routeBuckets(keys: ApiKeys, name: string, limit: Limit): { readonly requests: Bucket; readonly replays: Bucket } {
  return {
    requests: bucket(keys, name, limit, true),
    replays: bucket(keys, `${name}-replays`, { ...limit, max: limit.max * REPLAYS_PER_REQUEST }, false),
  }
}

/** Where a request comes from: an IPv4 address or an IPv6 network, since a household has 2^64 addresses and more of the latter. */
export function network(req: Request): string {
  return req.ip === undefined ? 'unknown' : ipKeyGenerator(req.ip)
}

function bucket(keys: ApiKeys, name: string, { max, windowMs }: Limit, tells: boolean): Bucket {
  const store = sharedStore(`${name}:`, max, keys.counters?.(windowMs))
  const named = new WeakMap<Request, string>()
  const limiter: RequestHandler = rateLimit({
    windowMs,
    limit: max,
    store,
    // RateLimit and RateLimit-Policy. @see draft-ietf-httpapi-ratelimit-headers-08
    standardHeaders: tells ? 'draft-8' : false,
    legacyHeaders: false,
    identifier: name,
    requestPropertyName: 'rateLimit',
    keyGenerator: (req) => named.get(req) ?? network(req),
    // What happens to a request over the limit is the router's to say.
    handler: (_req, _res, next) => next(),
  })

  return {
    async hit(req, res, by) {
      named.set(req, by)
      await new Promise<void>((resolve, reject) => {
        const next = (error?: unknown): void => (error === undefined ? resolve() : reject(error))
        Promise.resolve(limiter(req, res, next)).catch(reject)
      })
      res.removeHeader('Retry-After')
      const { used, resetTime } = (req as Request & { rateLimit: { used: number; resetTime?: Date } }).rateLimit
      const leftMs = (resetTime?.getTime() ?? Date.now() + windowMs) - Date.now()
      return { within: used <= max, retryAfterSeconds: Math.max(1, Math.ceil(leftMs / 1_000)) }
    },
    async takeBack(by) {
      await store.decrement(by)
    },
  }
}

/**
 * Counts in this process, and with the other instances where they share counters; whichever has counted more is right. So a shared
 * counter that goes away, or comes back empty, leaves every process with what it has seen itself: neither open nor closed. What the
 * shared counter missed it is told, so that the others hear of it.
 */
function sharedStore(prefix: string, max: number, counters: Counters | undefined): Store & { decrement(name: string): Promise<void> } {
  const own = new MemoryStore()
  /** Hits that the shared counter has not heard of, and when its windows end. */
  const unsent = new Map<string, number>()
  const endings = new Map<string, number>()

  return {
    localKeys: counters === undefined,
    prefix,
    init: (options: Options) => own.init(options),
    async increment(name): Promise<ClientRateLimitInfo> {
      const counted = await own.increment(name)
      if (counters === undefined) return counted
      const add = (): ReturnType<Counters['increment']> => counters.increment(prefix + name)
      // What was counted before the window began is nothing any more.
      let owed = counted.totalHits === 1 ? 0 : (unsent.get(name) ?? 0)
      let shared = await add().catch(() => undefined)
      if (shared === undefined) owed++
      else {
        const missed = Math.min(Math.max(owed, counted.totalHits - shared.hits), max + 1)
        for (owed = missed; owed > 0; owed--) {
          const next = await add().catch(() => undefined)
          if (next === undefined) break
          shared = next
        }
      }
      keep(unsent, name, owed)
      if (shared === undefined) return counted
      keep(endings, name, shared.endsAt.getTime())
      return shared.hits >= counted.totalHits ? { totalHits: shared.hits, resetTime: shared.endsAt } : counted
    },
    async decrement(name) {
      await own.decrement(name)
      const owed = unsent.get(name) ?? 0
      if (owed > 0) {
        keep(unsent, name, owed - 1)
        return
      }
      // A counter whose window is over is gone, and taking one back would leave one that never ends.
      if ((endings.get(name) ?? 0) > Date.now() + 1_000) await counters?.decrement(prefix + name).catch(() => {})
    },
    resetKey: (name) => own.resetKey(name),
  }
}

/** Remembers the newest ten thousand; nothing is remembered by 0. */
function keep(table: Map<string, number>, name: string, value: number): void {
  table.delete(name)
  if (value !== 0) table.set(name, value)
  if (table.size > 10_000) table.delete(table.keys().next().value ?? name)
}

/** Failed authentications by network: what keeps well-formed garbage from buying reads of the store without end. */
export interface FailureGuard {
  /** How many seconds until this network may try again a secret that this instance does not know; undefined while it may. */
  blockedFor(req: Request, max: number): Promise<number | undefined>
  note(req: Request): void
}

const FAILURE_WINDOW_MS = 60_000
const guards = new WeakMap<ApiKeys, FailureGuard>()

/** The count that every middleware over these keys shares. Each process counts for itself: it is its own reads that this protects. */
export function failureGuard(keys: ApiKeys): FailureGuard {
  const known = guards.get(keys)
  if (known !== undefined) return known
  const store = new MemoryStore()
  store.init({ windowMs: FAILURE_WINDOW_MS } as Options)
  const guard: FailureGuard = {
    async blockedFor(req, max) {
      const { totalHits = 0, resetTime } = (await store.get(network(req))) ?? {}
      if (totalHits < max) return undefined
      return Math.max(1, Math.ceil(((resetTime?.getTime() ?? 0) - Date.now()) / 1_000))
    },
    note(req) {
      store.increment(network(req)).catch(keys.report)
    },
  }
  guards.set(keys, guard)
  return guard
}

/** Failures a minute from one network, after which secrets that this instance has not accepted before are refused unasked. */
export const DEFAULT_FAILURES_PER_MINUTE = 300
