import type { Request, RequestHandler, Response } from 'express'
import { type ClientRateLimitInfo, ipKeyGenerator, rateLimit, type Store } from 'express-rate-limit'
import type { Counters } from '../cache/cache.js'
import type { ApiKeys } from '../core/api-keys.js'
import { clientAddress } from './address.js'
import type { Limit } from './contract.js'

/** What routes without a limit of their own are held to: nobody rotates keys this often, and a loop that does is stopped. */
export const DEFAULT_LIMIT: Limit = { max: 120, windowMs: 60_000, by: 'credential' }

/**
 * How often one lost answer may be asked for beyond the limit of its route. Counted by what is asked for, never by where from: nobody
 * else can use up these, so nobody can be kept from recovering a key.
 */
const REPLAYS = 30

/**
 * How often somebody over the limit may ask for an answer that is not there. Counted by who asks and from where: a stranger with a dead
 * secret uses up their own, and each miss costs a transaction.
 */
const MISSES = 30

/** Requests with one name, counted. */
interface Bucket {
  /** Counts a request; `within` says whether the limit allows it. */
  hit(req: Request, res: Response, name: string): Promise<{ readonly within: boolean; readonly retryAfterSeconds: number }>
  /** Takes a request back, which turns out not to have been one that counts. */
  takeBack(name: string): Promise<void>
}

/** The buckets of a route: `requests`, and for whoever is over its limit and asks for an answer that was lost, `replays` of it and `misses`. */
export interface RouteBuckets {
  readonly requests: Bucket
  readonly replays: Bucket
  readonly misses: Bucket
}

export function routeBuckets(keys: ApiKeys, name: string, limit: Limit): RouteBuckets {
  return {
    requests: bucket(keys, name, limit, true),
    misses: bucket(keys, `${name}-misses`, { ...limit, max: MISSES }, false),
    replays: bucket(keys, `${name}-replays`, { ...limit, max: REPLAYS }, false),
  }
}

/** Where a request comes from: an IPv4 address or an IPv6 network, since a household has 2^64 addresses and more of the latter. */
export function network(req: Request): string {
  const address = clientAddress(req)
  return address === undefined ? 'unknown' : ipKeyGenerator(address)
}

function bucket(keys: ApiKeys, name: string, { max, windowMs }: Limit, tells: boolean): Bucket {
  const store = sharedStore(max, windowMs, keys.counters?.(name, windowMs))
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

interface Count {
  hits: number
  readonly endsAt: number
}

/** Names that one process counts at most; beyond it the oldest is forgotten, which is some stranger's long before it is a client's. */
const MAX_NAMES = 50_000

/**
 * Counts with the other instances where they share counters, and in this process as well, which is what goes while they are away: a limit is
 * then neither open nor closed. Hits that the shared counter did not hear of, or that it lost, it is told when it is back.
 */
function sharedStore(max: number, windowMs: number, counters: Counters | undefined): Store & { decrement(name: string): Promise<void> } {
  const own = new Map<string, Count>()
  /** What the shared counter last said. */
  const shared = new Map<string, Count>()
  /** The hits of a window that the shared counter has not heard of, or has lost. */
  const owed = new Map<string, Count>()
  const telling = new Set<string>()

  return {
    localKeys: counters === undefined,
    async increment(name): Promise<ClientRateLimitInfo> {
      // Read at once: by the time the shared counter has answered, others have been counted too.
      const mine = count(name)
      const here = info(mine)
      if (counters === undefined) return here
      const said = await add(name)
      // Read after that, so that of those who hear of a loss together one takes note of it.
      const before = running(shared.get(name))
      if (said === undefined) {
        owe(name, 1, before?.endsAt ?? mine.endsAt)
        const known = before === undefined ? 0 : before.hits + owing(name)
        return known > here.totalHits ? { totalHits: known, resetTime: new Date(before?.endsAt ?? 0) } : here
      }
      // A new window although the old one is not over: the counter was lost. Others may have told it by now.
      if (before !== undefined && said.endsAt > before.endsAt + 1_000) owe(name, Math.max(0, before.hits + 1 - said.hits), before.endsAt)
      keep(shared, name, said)
      const total = { hits: said.hits + owing(name), endsAt: said.endsAt }
      await tell(name)
      return info(total)
    },
    async decrement(name) {
      const here = running(own.get(name))
      if (here !== undefined && here.hits > 0) here.hits--
      const debt = running(owed.get(name))
      const there = running(shared.get(name))
      if (debt !== undefined && debt.hits > 0) debt.hits--
      // A counter whose window is over is gone, and taking one back would leave one that never ends.
      else if (there !== undefined && there.endsAt > Date.now() + 1_000) {
        there.hits--
        await counters?.decrement(name).catch(() => {})
      }
    },
    resetKey(name) {
      own.delete(name)
    },
  }

  function count(name: string): Count {
    const there = running(own.get(name)) ?? { hits: 0, endsAt: Date.now() + windowMs }
    there.hits++
    keep(own, name, there)
    return there
  }

  function owing(name: string): number {
    return running(owed.get(name))?.hits ?? 0
  }

  function owe(name: string, hits: number, endsAt: number): void {
    const debt = running(owed.get(name)) ?? { hits: 0, endsAt }
    // More than would go over the limit makes no difference.
    debt.hits = Math.min(debt.hits + hits, max + 1)
    keep(owed, name, debt)
  }

  /** Tells the shared counter what it is owed; one at a time for each name, and as far as it hears. */
  async function tell(name: string): Promise<void> {
    if (telling.has(name)) return
    telling.add(name)
    for (let debt = running(owed.get(name)); debt !== undefined && debt.hits > 0; debt = running(owed.get(name))) {
      const said = await add(name)
      if (said === undefined) break
      // One may have been taken back meanwhile.
      debt.hits = Math.max(0, debt.hits - 1)
      keep(shared, name, said)
    }
    telling.delete(name)
  }

  /** One hit more in the shared counter, or undefined when there is no answer that makes sense. */
  async function add(name: string): Promise<Count | undefined> {
    const said = await counters?.increment(name).catch(() => undefined)
    const endsAt = said?.endsAt.getTime() ?? Number.NaN
    const sane = said !== undefined && Number.isInteger(said.hits) && said.hits > 0 && endsAt <= Date.now() + windowMs + 1_000
    return sane ? { hits: said.hits, endsAt } : undefined
  }
}

function running(count: Count | undefined): Count | undefined {
  return count !== undefined && count.endsAt > Date.now() ? count : undefined
}

function info({ hits, endsAt }: Count): ClientRateLimitInfo {
  return { totalHits: hits, resetTime: new Date(endsAt) }
}

/** The newest last, and the oldest goes when there are too many. */
function keep<T>(table: Map<string, T>, name: string, value: T): void {
  table.delete(name)
  table.set(name, value)
  if (table.size > MAX_NAMES) table.delete(table.keys().next().value ?? name)
}

/** Failed authentications by network: what keeps well-formed garbage from buying reads of the store without end. */
export interface FailureGuard {
  /** How many seconds until this network may try again a secret that this instance does not know; undefined while it may. */
  blockedFor(req: Request, max: number): number | undefined
  note(req: Request): void
}

const FAILURE_WINDOW_MS = 60_000
const guards = new WeakMap<ApiKeys, FailureGuard>()

/** The count that every middleware over these keys shares. Each process counts for itself: it is its own reads that this protects. */
export function failureGuard(keys: ApiKeys): FailureGuard {
  const known = guards.get(keys)
  if (known !== undefined) return known
  const failures = new Map<string, Count>()
  const guard: FailureGuard = {
    blockedFor(req, max) {
      const { hits = 0, endsAt = 0 } = running(failures.get(network(req))) ?? {}
      return hits < max ? undefined : Math.max(1, Math.ceil((endsAt - Date.now()) / 1_000))
    },
    note(req) {
      const name = network(req)
      const there = running(failures.get(name))
      if (there === undefined) keep(failures, name, { hits: 1, endsAt: Date.now() + FAILURE_WINDOW_MS })
      else there.hits++
    },
  }
  guards.set(keys, guard)
  return guard
}

/** Failures a minute from one network, after which secrets that this instance has not accepted before are refused unasked. */
export const DEFAULT_FAILURES_PER_MINUTE = 300
