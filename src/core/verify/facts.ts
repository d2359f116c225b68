import { dropOldest } from '../../drop-oldest.js'
import type { RejectionReason } from '../../errors.js'
import type { KeyRow } from '../../store/store.js'
import type { Rejected, Verified } from '../api-keys.js'
import { type Clock, elapsedMs, type Instant, instant } from '../clock.js'
import { apiKey } from '../key.js'
import type { Signals } from './signals.js'
import { endOf, type GracePeriod, REJECTED, verified } from './verdict.js'

/** A good verdict that this instance has read, and may act on for as long as it follows the feed. */
interface Fact {
  readonly result: Verified
  readonly monotonicMs: number
  readonly wallMs: number
  /** Until its key expires or its grace period ends; nothing is relied on for longer. */
  readonly lifeMs: number
  /** When that is on the store's clock, which may be set forward meanwhile. */
  readonly endsAt: number
  /** When a request last asked for it, on the monotonic clock. */
  usedMs: number
}

/** What this instance has read, by digest. */
export interface Facts {
  /** The fact about a digest that has not run out at this instant. */
  good(digest: string, monotonicMs: number, wallMs: number): Fact | undefined
  /** @param isFollowed whether the feed is: a refusal counts no longer than that, either */
  refusal(digest: string, isFollowed: () => boolean): Rejected | undefined
  hold(digest: string, key: KeyRow, grace: GracePeriod | undefined, since: Instant, lifeMs: number): Verified
  refuse(digest: string, reason: RejectionReason): Rejected
  drop(digest: string): void
  /** The digests that are due to be read again, the oldest first, as many as one read takes. Drops what nobody has asked for in a long time. */
  due(): readonly string[]
  /** Whether there are any of those. Cheap: looks at the oldest alone. */
  isDue(): boolean
  size(): number
  clear(): void
}

export interface FactsParts {
  readonly clock: Clock
  readonly max: number
  /** Whether whoever asks may act on a fact right now, as far as the feed goes. */
  readonly isFollowed: () => boolean
  /** What the store's clock shows at an instant, or later; undefined where that is not known. */
  readonly storeTime: (when: Instant) => number | undefined
  /** How often what is due is read again, in milliseconds. */
  readonly refreshEveryMs: () => number
  readonly signals: Pick<Signals, 'of' | 'confirm' | 'end'>
}

/**
 * How long a fact is relied on without being read again (L). Changes through this package show in the feed; only those that somebody makes by hand in the
 * database are seen after this long. With more facts in use than refreshes can carry it becomes longer.
 */
export const FACT_MS = 30_000
/** A fact is read again at this part of its time. */
const REFRESH_AT = 0.57
/** This many facts are read again by one read. */
const REFRESHED_AT_ONCE = 100
/** A fact that nobody has asked for in this time is not read again. */
const IDLE_MS = 600_000

/** How long "unknown" is believed. Seconds: a mistake in the store can be mended. */
const NEGATIVE_MS = 3_000
/** Retired is for ever; what ends after ten minutes is only the memory of it. */
const RETIRED_MS = 600_000
/** Refused digests are what a stranger can make us remember, so their table is small. */
const MAX_REFUSED = 10_000

export function facts({ clock, max, isFollowed, storeTime, refreshEveryMs, signals }: FactsParts): Facts {
  // In the order of reading: what was read first is due first, and is the first to go.
  const good = new Map<string, Fact>()
  const refused = refusals(clock)

  return {
    good(digest, monotonicMs, wallMs) {
      const fact = good.get(digest)
      return fact !== undefined && hasTime(fact, monotonicMs, wallMs) ? fact : undefined
    },

    refusal: refused.get,

    hold(digest, row, grace, since, lifeMs) {
      const end = endOf(row, grace)
      const isKnown = (): boolean => good.get(digest) === fact
      const fact: Fact = {
        result: verified(
          apiKey(row),
          grace,
          () => isKnown() && hasTime(fact, clock.monotonicMs(), clock.wallMs()) && isFollowed(),
          (verdict) => signals.of(digest, verdict, isKnown() ? end : undefined),
        ),
        monotonicMs: since.monotonicMs,
        wallMs: since.wallMs,
        lifeMs,
        endsAt: end.at,
        usedMs: good.get(digest)?.usedMs ?? since.monotonicMs,
      }
      drop(digest)
      good.set(digest, fact)
      dropOldest(good, max)
      signals.confirm(digest, fact.result.key, end)
      return fact.result
    },

    refuse(digest, reason) {
      drop(digest)
      const result = refused.set(digest, reason)
      signals.end(digest, reason)
      return result
    },

    drop,

    due: () => dueIn(good, instant(clock), hasTime),

    isDue() {
      const [oldest] = good.values()
      return oldest !== undefined && isDue(oldest, instant(clock))
    },

    size: () => good.size,

    clear() {
      good.clear()
      refused.clear()
    },
  }

  function hasTime(fact: Fact, monotonicMs: number, wallMs: number): boolean {
    const passed = Math.max(monotonicMs - fact.monotonicMs, wallMs - fact.wallMs)
    // Written so that a life that is no number is over.
    if (!(passed < fact.lifeMs && (passed < FACT_MS || passed < factMs()))) return false
    return fact.endsAt === Number.POSITIVE_INFINITY || (storeTime({ monotonicMs, wallMs }) ?? Number.POSITIVE_INFINITY) < fact.endsAt
  }

  function drop(digest: string): void {
    good.delete(digest)
    refused.delete(digest)
  }

  /** L, stretched to how long it takes to read all of them again. */
  function factMs(): number {
    return Math.max(FACT_MS, ((good.size / REFRESHED_AT_ONCE) * refreshEveryMs()) / REFRESH_AT)
  }
}

function dueIn(
  good: Map<string, Fact>,
  now: Instant,
  hasTime: (fact: Fact, monotonicMs: number, wallMs: number) => boolean,
): readonly string[] {
  const digests: string[] = []
  for (const [digest, fact] of good) {
    if (digests.length >= REFRESHED_AT_ONCE || !isDue(fact, now)) break
    if (!hasTime(fact, now.monotonicMs, now.wallMs) || now.monotonicMs - fact.usedMs > IDLE_MS) good.delete(digest)
    else digests.push(digest)
  }
  return digests
}

function isDue(fact: Fact, now: Instant): boolean {
  return Math.max(now.monotonicMs - fact.monotonicMs, now.wallMs - fact.wallMs) >= REFRESH_AT * FACT_MS
}

interface Refused {
  readonly result: Rejected
  readonly since: Instant
  readonly forMs: number
}

/** The verdicts that are not good. */
function refusals(clock: Clock): {
  get: Facts['refusal']
  set(digest: string, reason: RejectionReason): Rejected
  delete(digest: string): void
  clear(): void
} {
  const refused = new Map<string, Refused>()
  return {
    get(digest, isFollowed) {
      const refusal = refused.get(digest)
      // A key can be given a later expiry, and what was retired is live again in a backup that was restored.
      if (refusal === undefined || !isFollowed()) return undefined
      if (elapsedMs(clock, refusal.since) < refusal.forMs) return refusal.result
      refused.delete(digest)
      return undefined
    },
    set(digest, reason) {
      const forMs = reason === 'unknown' ? NEGATIVE_MS : reason === 'expired' || reason === 'disabled' ? FACT_MS : RETIRED_MS
      refused.set(digest, { result: REJECTED[reason], since: instant(clock), forMs })
      dropOldest(refused, MAX_REFUSED)
      return REJECTED[reason]
    },
    delete: (digest) => void refused.delete(digest),
    clear: () => refused.clear(),
  }
}
