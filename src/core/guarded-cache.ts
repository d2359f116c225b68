import type { Cache, Counters, Hit } from '../cache/cache.js'
import { inTime } from '../in-time.js'
import { monotonicMs } from '../real-time.js'
import { onceIn } from './once-in.js'

/** A cache that takes this much longer than its own limit gives no answer. */
const ANSWER_MS = 1_000
/** Trouble is reported once in this time for each method: a cache that is away fails at every request. */
const REPORT_MS = 60_000
const MAX_METHODS = 10

type Limit = { readonly max: number; readonly windowMs: number }
type Attempt = <T>(method: string, work: () => Promise<T>, makesSense?: (answer: T) => boolean) => Promise<T>

/**
 * The same cache, where trouble reads as "no answer": a cache of the application's own may throw, hang or answer nonsense.
 */
export function guardedCache(cache: Cache, report: (error: unknown) => void): Cache {
  const attempt = reportingAttempt(ANSWER_MS + (cache.timeoutMs ?? 0), report)
  const or = <T>(fallback: T, answer: Promise<T>): Promise<T> => answer.catch(() => fallback)
  return {
    get: (digest) =>
      or(
        undefined,
        attempt('get', () => cache.get(digest), isReading),
      ),
    fill: (digest, value, expiresAtMs) =>
      or(
        undefined,
        attempt('fill', () => cache.fill(digest, value, expiresAtMs)),
      ),
    bury: (digest, value, ttlMs) =>
      or(
        false,
        attempt('bury', () => cache.bury(digest, value, ttlMs), isBoolean),
      ),
    forget: (digest) =>
      or(
        undefined,
        attempt('forget', () => cache.forget(digest)),
      ),
    ...(typeof cache.counters === 'function' ? { counters: (limit: Limit) => guardedCounters(cache, limit, attempt) } : {}),
    close: () =>
      or(
        undefined,
        attempt('close', () => cache.close()),
      ),
  }
}

function guardedCounters(cache: Cache, limit: Limit, attempt: Attempt): Counters {
  let made: Counters | undefined
  const counters = (): Counters => {
    // Made when they are first used: the application starts without them too.
    made ??= cache.counters?.(limit)
    return made as Counters
  }
  return {
    hit: (name) =>
      attempt(
        'hit',
        () => counters().hit(name),
        (answer) => isHit(answer, limit),
      ).catch(() => undefined),
    takeBack: (name, at) => attempt('takeBack', () => counters().takeBack(name, at)).catch(() => undefined),
  }
}

function reportingAttempt(limitMs: number, report: (error: unknown) => void): Attempt {
  const isDue = onceIn(REPORT_MS, MAX_METHODS, monotonicMs)
  return async (method, work, makesSense = () => true) => {
    try {
      return await sensible(work, limitMs, makesSense)
    } catch (error) {
      if (isDue(method)) report(error)
      throw error
    }
  }
}

/** What the cache answers; rejects where it throws, hangs, or answers what makes no sense. */
async function sensible<T>(work: () => Promise<T>, limitMs: number, makesSense: (answer: T) => boolean): Promise<T> {
  const answer = await inTime(limitMs, work(), () => new Error(`The cache gave no answer within ${limitMs} ms.`))
  if (!makesSense(answer)) throw new Error('The cache gave an answer that makes no sense.')
  return answer
}

function isReading(answer: unknown): boolean {
  if (answer === undefined) return true
  const { value, timeMs } = (answer ?? {}) as { value?: unknown; timeMs?: unknown }
  return (value === null || typeof value === 'string') && Number.isFinite(timeMs)
}

function isBoolean(answer: unknown): boolean {
  return typeof answer === 'boolean'
}

function isHit(answer: unknown, { max, windowMs }: Limit): boolean {
  if (answer === undefined) return true
  const { counted, hits, waitMs, at } = (answer ?? {}) as { [Member in keyof Hit]?: unknown }
  if (typeof counted !== 'boolean' || !Number.isInteger(hits) || !Number.isFinite(at)) return false
  // Only a full window has no room.
  const isPossible = counted ? Number(hits) >= 1 && Number(hits) <= max : Number(hits) === max
  return isPossible && typeof waitMs === 'number' && waitMs >= 0 && waitMs <= windowMs
}
