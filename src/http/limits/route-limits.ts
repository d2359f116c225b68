import type { Request, RequestHandler, Response } from 'express'
import { ipKeyGenerator, rateLimit, type Store } from 'express-rate-limit'
import type { Counters, Hit } from '../../cache/cache.js'
import type { Clock } from '../../core/clock.js'
import type { Internals } from '../../core/internals.js'
import type { Limit } from '../contract.js'
import { clientAddress } from '../origin.js'
import { hitsIn, NewestNames, slide, type Window, waitMs, withHit, withoutHit } from './window.js'

/** What routes without a limit of their own are held to: nobody rotates keys this often, and a loop that does is stopped. */
export const DEFAULT_LIMIT: Limit = { max: 120, windowMs: 60_000, by: 'credential' }

/** Requests with one name, counted. */
export interface Bucket {
  /** Counts a request, unless the limit leaves it no room, and sets the RateLimit headers. */
  hit(
    req: Request,
    res: Response,
    name: string,
  ): Promise<{
    readonly within: boolean
    readonly retryAfterSeconds: number
    /** Takes this request back, which turned out not to be one that counts. Does nothing the second time, nor for one that had no room. */
    takeBack(): Promise<void>
  }>
}

/** Where a request comes from: an IPv4 address or an IPv6 network, since a household has 2^64 addresses and more of the latter. */
export function network(req: Request): string {
  const address = clientAddress(req)
  return address === undefined ? 'unknown' : ipKeyGenerator(address)
}

/** The count of a route's requests. Answers that were lost can be asked for beyond it, and do not count. */
export function routeBucket(internals: Internals, route: string, limit: Limit): Bucket {
  return bucketOf(internals, { count: route, shown: route }, limit)
}

/** Counts requests under the name `count`, which has one limit for good, and calls the limit as `shown` in the RateLimit headers. */
export function bucketOf(
  internals: Internals,
  { count, shown }: { readonly count: string; readonly shown: string },
  { max, windowMs }: Pick<Limit, 'max' | 'windowMs'>,
): Bucket {
  const counter = routeCounter({ max, windowMs }, internals.counters?.(count, { max, windowMs }), internals.clock)
  // Which hit a request became is known by the Date that the limiter hands on in `req.rateLimit`. An AsyncLocalStorage would say it too, but
  // before Node 24 a single one makes every promise of the process slower.
  const hits = new WeakMap<Date, RouteHit>()
  const store: Store = {
    localKeys: internals.counters === undefined,
    async increment(name) {
      const hit = await counter(name)
      const resetTime = new Date(Date.now() + hit.waitMs)
      hits.set(resetTime, hit)
      return { totalHits: hit.within ? hit.hits : max + 1, resetTime }
    },
    // The interface wants these. Hits are taken back one by one, and counters end by themselves.
    decrement() {},
    resetKey() {},
  }
  const limiter: RequestHandler = rateLimit({
    windowMs,
    limit: max,
    store,
    // RateLimit and RateLimit-Policy. @see draft-ietf-httpapi-ratelimit-headers-08
    standardHeaders: 'draft-8',
    legacyHeaders: false,
    identifier: shown,
    // It would look at the address itself, which may not be had; the names of requests are made here.
    validate: false,
    keyGenerator: ({ ip }) => ip as string,
    // What happens to a request over the limit is the router's to say.
    handler: (_req, _res, next) => next(),
  })

  return {
    async hit(request, res, name) {
      // The library looks at the address in passing, and an address may not be had.
      const req = Object.create(request, { ip: { value: name } }) as Request
      await new Promise<void>((resolve, reject) => {
        const next = (error?: unknown): void => (error === undefined ? resolve() : reject(error))
        Promise.resolve(limiter(req, res, next)).catch(reject)
      })
      res.removeHeader('Retry-After')
      const { within, waitMs, takeBack } = hits.get((req as Limited).rateLimit.resetTime) as RouteHit
      return { within, retryAfterSeconds: Math.max(1, Math.ceil(waitMs / 1_000)), takeBack }
    },
  }
}

/** A request that the limiter has looked at. */
type Limited = Request & { readonly rateLimit: { readonly resetTime: Date } }

interface RouteHit {
  readonly within: boolean
  readonly hits: number
  readonly waitMs: number
  takeBack(): Promise<void>
}

/**
 * Counts in this process and, where there are shared counters, in those as well: a hit needs room in both. So one process alone never lets
 * more than the limit through, whatever becomes of the shared counters. While they are away, the process goes on from what it heard last.
 * Nobody tells them afterwards: until the window has slid on, each process may have let one limit through.
 */
export function routeCounter(
  limit: { readonly max: number; readonly windowMs: number },
  counters: Counters | undefined,
  clock: Clock,
): (name: string) => Promise<RouteHit> {
  const own = new NewestNames<Window>()
  const shared = new NewestNames<Heard>()
  // Of a monotonic clock: setting the other one makes nobody wait. In whole milliseconds, so that no sum of times is off by a fraction.
  const time = (): number => Math.floor(clock.monotonicMs())

  return async function hit(name) {
    const at = time()
    const before = slide(own.get(name) ?? [], limit, at)
    if (hitsIn(before) + 1 > limit.max) {
      own.set(name, before)
      return refused(Math.max(waitMs(before, limit, at), untilRoom(heard(name, at), limit.max, at)))
    }
    const window = withHit(before, limit, at)
    // Before the shared counter is asked: others are counted until it has answered.
    own.set(name, window)
    const said = await counters?.hit(name)
    const now = time()
    const mine = { hits: hitsIn(window), waitMs: waitMs(window, limit, at) }
    const verdict = said === undefined ? alone(mine, heard(name, now), limit.max, now) : together(mine, said, now)
    if (verdict.heard !== undefined) shared.set(name, verdict.heard)
    if (verdict.within) return { ...verdict, takeBack: once(() => takeBack(name, at, said, verdict)) }
    own.set(name, withoutHit(own.get(name) ?? [], limit, at))
    return refused(verdict.waitMs)
  }

  async function takeBack(name: string, at: number, said: Hit | undefined, verdict: Verdict): Promise<void> {
    const now = time()
    const last = heard(name, now)
    own.set(name, withoutHit(own.get(name) ?? [], limit, at))
    if (last !== undefined && verdict.heard !== undefined && at + limit.windowMs > now) {
      shared.set(name, { ...last, hits: Math.max(0, last.hits - 1) })
    }
    if (said !== undefined) await counters?.takeBack(name, said.at)
  }

  function heard(name: string, now: number): Heard | undefined {
    const last = shared.get(name)
    return last !== undefined && last.endsAt > now ? last : undefined
  }
}

/** What the shared counter last said of a name, and how many more were let through since: good until the oldest of its hits slide out. */
interface Heard {
  readonly hits: number
  readonly endsAt: number
}

interface Count {
  readonly hits: number
  readonly waitMs: number
}

interface Verdict extends Count {
  readonly within: boolean
  /** What is known of the shared counter now, this hit included. */
  readonly heard?: Heard
}

/** The shared counter has spoken. Where it has lost hits, those of this process are more. */
function together(mine: Count, said: Hit, now: number): Verdict {
  const more = said.counted && mine.hits > said.hits ? mine : said
  return { within: said.counted, hits: more.hits, waitMs: more.waitMs, heard: { hits: said.hits, endsAt: now + said.waitMs } }
}

/** There is no shared counter, or it is away. */
function alone(mine: Count, last: Heard | undefined, max: number, now: number): Verdict {
  if (last === undefined) return { within: true, ...mine }
  const theirs = { hits: last.hits + 1, waitMs: last.endsAt - now }
  if (theirs.hits > max) return { within: false, ...theirs }
  return { within: true, ...(mine.hits > theirs.hits ? mine : theirs), heard: { ...last, hits: theirs.hits } }
}

function untilRoom(last: Heard | undefined, max: number, now: number): number {
  return last !== undefined && last.hits >= max ? last.endsAt - now : 0
}

function refused(waitMs: number): RouteHit {
  return { within: false, hits: 0, waitMs, takeBack: async () => {} }
}

function once(work: () => Promise<void>): () => Promise<void> {
  let done = false
  return async () => {
    if (done) return
    done = true
    await work()
  }
}
