import type { Request, RequestHandler, Response } from 'express'
import type { AnyApiKeys } from '../../core/api-keys.js'
import { type Internals, internalsOf } from '../../core/internals.js'
import type { ApiKey } from '../../core/key.js'
import { dropOldest } from '../../drop-oldest.js'
import { integerOption, invalidOption, refuseUnknown } from '../../options.js'
import { refuseForGood } from '../problem.js'
import { guardOf, unguarded } from '../req-api-key.js'
import { synchronous } from '../synchronous.js'
import { rateLimited } from '../verdict.js'
import { type Bucket, bucketOf } from './route-limits.js'
import { LONGEST_WINDOW_MS } from './window.js'

/** How many requests a key may make in a stretch of time. */
export interface KeyLimitOptions {
  /** The length of the window in milliseconds, 1,000 to 86,400,000. It slides: the limit holds wherever it begins. */
  windowMs: number
  /**
   * How many requests may be made in it: a whole number, `Infinity` for no limit, or a function that says so for a key. What else that function returns, throws or
   * rejects with is answered with 500.
   */
  limit: number | ((key: ApiKey) => number)
  /** Whose requests are counted together: those of one key, across its rotations, or those of all keys of one owner. Default `key`. */
  by?: 'key' | 'owner' | undefined
  /** Limits of one name and window are one count, wherever they stand. It is shown in the RateLimit headers. Letters, digits and `-`. Default `default`. */
  name?: string | undefined
}

/** Counts that are kept: one for each window and limit. A function that returns any number of limits makes no more than these. */
const MAX_BUCKETS = 1_000

/**
 * Limits the requests of a key, behind `bearerAuth`: `keyLimit(keys, { windowMs: 60_000, limit: 100 })`, or a list of such limits, all of which hold. The counts are
 * shared by all instances that have a cache with counters, as `redisCache`. Answers 429 with `Retry-After` as the `bearerAuth` before it answers, and sends
 * the RateLimit headers of each window. A request that is refused is not counted.
 *
 * @throws ApiKeyError `invalid_option`
 * @see draft-ietf-httpapi-ratelimit-headers-08
 */
export function keyLimit(keys: AnyApiKeys, limits: KeyLimitOptions | readonly KeyLimitOptions[]): RequestHandler {
  const internals = internalsOf(keys, 'keyLimit')
  const windows = (Array.isArray(limits) ? [...limits] : [limits]).map((one: KeyLimitOptions) => windowOf(internals, one))
  if (windows.length === 0) throw invalidOption('keyLimit takes a limit, or a list of at least one.')

  return function keyLimit(req, res, next) {
    const { telling, context, missing, letsPreflight } = guardOf(req) ?? unguarded('keyLimit')
    const key = req.apiKey
    if (key === undefined) {
      if (letsPreflight(req)) next()
      else refuseForGood(telling, { req, res, next }, missing(), context)
      return
    }
    withinAll(windows, key, req, res).then(
      () => next(),
      (error: unknown) => refuseForGood(telling, { req, res, next }, error, context),
    )
  }
}

/** Counts a request in each window. Throws `rate_limited` where one has no room; the others then do not count it either. */
async function withinAll(windows: readonly Window[], key: ApiKey, req: Request, res: Response): Promise<void> {
  const buckets = windows.map((window) => window(key))
  const hits = await Promise.all(buckets.map((bucket) => bucket?.hit(req, res)))
  const refusals = hits.flatMap((hit) => (hit === undefined || hit.within ? [] : [hit.retryAfterSeconds]))
  if (refusals.length === 0) return
  await Promise.all(hits.map((hit) => hit?.takeBack()))
  throw rateLimited('This API key has made too many requests; try again later.', Math.max(...refusals))
}

/** The count of a key in one window; undefined where the key has no limit. */
type Window = (key: ApiKey) => { hit(req: Request, res: Response): ReturnType<Bucket['hit']> } | undefined

/** Checks the options of one window. */
function windowOf(internals: Internals, options: KeyLimitOptions): Window {
  refuseUnknown(options, ['windowMs', 'limit', 'by', 'name'], 'keyLimit')
  const { limit, by = 'key', name = 'default' } = options
  if (options.windowMs === undefined) throw invalidOption('windowMs must be given: the length of the window in milliseconds.')
  const windowMs = integerOption('windowMs', options.windowMs, LONGEST_WINDOW_MS, 1_000, LONGEST_WINDOW_MS)
  if (typeof limit !== 'function' && !isLimit(limit))
    throw invalidOption('limit must be a whole number, Infinity, or a function that returns one.')
  if (by !== 'key' && by !== 'owner') throw invalidOption('by must be "key" or "owner".')
  if (typeof name !== 'string' || !/^[\w-]{1,64}$/.test(name)) throw invalidOption('name must be 1 to 64 letters, digits, "-" and "_".')
  const buckets = bucketsOf(internals)
  const shown = `${name}-${by}-${windowMs / 1_000}s`

  return (key) => {
    const max: unknown = typeof limit === 'function' ? synchronous(limit(key), 'limit()') : limit
    if (!isLimit(max)) throw new TypeError('limit() must return a whole number or Infinity.')
    if (max === Number.POSITIVE_INFINITY) return undefined
    if (max === 0) return { hit: async () => ({ within: false, retryAfterSeconds: Math.ceil(windowMs / 1_000), takeBack: async () => {} }) }
    // The slots of a count depend on its limit, so another limit is another count.
    const count = `limit-${shown}-${max}`
    const bucket = buckets.get(count) ?? bucketOf(internals, { count, shown }, { max, windowMs })
    buckets.set(count, bucket)
    dropOldest(buckets, MAX_BUCKETS)
    return { hit: (req, res) => bucket.hit(req, res, by === 'key' ? key.id : `owner:${key.ownerId}`) }
  }
}

const counted = new WeakMap<Internals, Map<string, Bucket>>()

/** The counts of every `keyLimit` over these keys: those of one name are one. */
function bucketsOf(internals: Internals): Map<string, Bucket> {
  const known = counted.get(internals) ?? new Map<string, Bucket>()
  counted.set(internals, known)
  return known
}

function isLimit(value: unknown): value is number {
  return value === Number.POSITIVE_INFINITY || (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0)
}
