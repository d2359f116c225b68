import type { Request, RequestHandler, Response } from 'express'
import { type ClientRateLimitInfo, ipKeyGenerator, rateLimit, type Store } from 'express-rate-limit'
import type { Counters } from '../../cache/cache.js'
import type { Clock } from '../../core/clock.js'
import type { Internals } from '../../core/internals.js'
import type { Limit } from '../contract.js'
import { clientAddress } from '../origin.js'

/** What routes without a limit of their own are held to: nobody rotates keys this often, and a loop that does is stopped. */
export const DEFAULT_LIMIT: Limit = { max: 120, windowMs: 60_000, by: 'credential' }

/** Requests with one name, counted. */
export interface Bucket {
  /** Counts a request; `within` says whether the limit allows it. */
  hit(req: Request, res: Response, name: string): Promise<{ readonly within: boolean; readonly retryAfterSeconds: number }>
  /** Takes a request back, which turns out not to have been one that counts. */
  takeBack(name: string): Promise<void>
}

/** Where a request comes from: an IPv4 address or an IPv6 network, since a household has 2^64 addresses and more of the latter. */
export function network(req: Request): string {
  const address = clientAddress(req)
  return address === undefined ? 'unknown' : ipKeyGenerator(address)
}

/** The count of a route's requests. Answers that were lost can be asked for beyond it, and do not count. */
export function routeBucket(internals: Internals, name: string, { max, windowMs }: Limit): Bucket {
  const store = sharedStore(max, windowMs, internals.counters?.(name, windowMs), internals.clock)
  const named = new WeakMap<Request, string>()
  const limiter: RequestHandler = rateLimit({
    windowMs,
    limit: max,
    store,
    // RateLimit and RateLimit-Policy. @see draft-ietf-httpapi-ratelimit-headers-08
    standardHeaders: 'draft-8',
    legacyHeaders: false,
    identifier: name,
    // It would look at the address itself, which may not be had; the names of requests are made here.
    validate: false,
    requestPropertyName: 'rateLimit',
    keyGenerator: (req) => named.get(req as Request) ?? 'unknown',
    // What happens to a request over the limit is the router's to say.
    handler: (_req, _res, next) => next(),
  })

  return {
    async hit(request, res, by) {
      // The library looks at the address in passing, and an address may not be had.
      const req = Object.create(request, { ip: { value: by } }) as Request
      named.set(req, by)
      await new Promise<void>((resolve, reject) => {
        const next = (error?: unknown): void => (error === undefined ? resolve() : reject(error))
        Promise.resolve(limiter(req, res, next)).catch(reject)
      })
      res.removeHeader('Retry-After')
      const { used, resetTime } = (req as Request & { rateLimit: { used: number; resetTime?: Date } }).rateLimit
      // An instant of the wall clock, made from an interval a moment ago; should the clock have been set in between, no wait is longer than a window.
      const leftMs = Math.min((resetTime?.getTime() ?? Number.POSITIVE_INFINITY) - Date.now(), windowMs)
      return { within: used <= max, retryAfterSeconds: Math.max(1, Math.ceil(Math.round(leftMs) / 1_000)) }
    },
    async takeBack(by) {
      await store.decrement(by)
    },
  }
}

/** Hits in a window, which ends at an instant of the monotonic clock: setting the other one makes no window longer. */
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
function sharedStore(
  max: number,
  windowMs: number,
  counters: Counters | undefined,
  clock: Clock,
): Store & { decrement(name: string): Promise<void> } {
  const own = new Map<string, Count>()
  /** What the shared counter last said. */
  const shared = new Map<string, Count>()
  /** The hits of a window that the shared counter has not heard of, or has lost. */
  const owed = new Map<string, Count>()
  const telling = new Set<string>()
  const running = (count: Count | undefined): Count | undefined => runningAt(clock.monotonicMs(), count)
  /** An instant of the monotonic clock as express-rate-limit wants it. */
  const dateOf = (endsAt: number): Date => new Date(Date.now() + endsAt - clock.monotonicMs())
  const info = ({ hits, endsAt }: Count): ClientRateLimitInfo => ({ totalHits: hits, resetTime: dateOf(endsAt) })

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
        return known > here.totalHits ? { totalHits: known, resetTime: dateOf(before?.endsAt ?? 0) } : here
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
      else if (there !== undefined && there.endsAt > clock.monotonicMs() + 1_000) {
        there.hits--
        await counters?.decrement(name).catch(() => {})
      }
    },
    resetKey(name) {
      own.delete(name)
    },
  }

  function count(name: string): Count {
    const there = running(own.get(name)) ?? { hits: 0, endsAt: clock.monotonicMs() + windowMs }
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
    const leftMs = (said?.endsAt.getTime() ?? Number.NaN) - Date.now()
    const sane = said !== undefined && Number.isInteger(said.hits) && said.hits > 0 && leftMs <= windowMs + 1_000
    return sane ? { hits: said.hits, endsAt: clock.monotonicMs() + leftMs } : undefined
  }
}

function runningAt(now: number, count: Count | undefined): Count | undefined {
  return count !== undefined && count.endsAt > now ? count : undefined
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
const guards = new WeakMap<Internals, FailureGuard>()

/** The count that every middleware over these keys shares. Each process counts for itself: it is its own reads that this protects. */
export function failureGuard(internals: Internals): FailureGuard {
  const known = guards.get(internals)
  if (known !== undefined) return known
  const failures = new Map<string, Count>()
  const guard: FailureGuard = {
    blockedFor(req, max) {
      const { hits = 0, endsAt = 0 } = runningAt(internals.clock.monotonicMs(), failures.get(network(req))) ?? {}
      return hits < max ? undefined : Math.max(1, Math.ceil(Math.round(endsAt - internals.clock.monotonicMs()) / 1_000))
    },
    note(req) {
      const name = network(req)
      const there = runningAt(internals.clock.monotonicMs(), failures.get(name))
      if (there === undefined) keep(failures, name, { hits: 1, endsAt: internals.clock.monotonicMs() + FAILURE_WINDOW_MS })
      else there.hits++
    },
  }
  guards.set(internals, guard)
  return guard
}

/** Failures a minute from one network, after which secrets that this instance has not accepted before are refused unasked. */
export const DEFAULT_FAILURES_PER_MINUTE = 300
