import type { Cache, Counters, Hit } from '../cache/cache.js'
import { guardedChannel } from './guarded-channel.js'
import { type Attempt, reportingAttempt } from './reporting-attempt.js'

/** A cache that takes this much longer than its own limit gives no answer. */
const ANSWER_MS = 1_000

type Limit = { readonly max: number; readonly windowMs: number }

/**
 * The same cache, where trouble reads as "no answer": a cache of the application's own may throw, hang or answer nonsense.
 */
export function guardedCache(cache: Cache, report: (error: unknown) => void): Cache {
  const { timeoutMs = 0 } = cache
  const attempt = reportingAttempt('cache', ANSWER_MS + timeoutMs, report)
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
    ...(typeof cache.channel === 'function'
      ? { channel: () => guardedChannel({ of: 'cache', make: () => (cache as Required<Cache>).channel(), timeoutMs, report }) }
      : {}),
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
