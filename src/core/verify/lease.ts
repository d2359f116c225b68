import { crc32 } from 'node:zlib'
import type { Cache } from '../../cache/cache.js'
import { dropOldest } from '../../drop-oldest.js'
import { ApiKeyError, type RejectionReason } from '../../errors.js'
import { clearTimeout, setTimeout } from '../../real-time.js'
import type { AuthorityAnswer, GenerationRow, KeyRow, Store } from '../../store/store.js'
import type { Rejected, Verified, VerifyResult } from '../api-keys.js'
import { type Clock, elapsedMs, type Instant, instant } from '../clock.js'
import { apiKey } from '../key.js'
import { type Asked, batchedRead } from './batched-read.js'
import { type CacheEntry, cacheEntryCodec } from './cache-entry.js'
import { endedBecause, type GracePeriod, gracePeriod, lifeMsOf, marginMs, REJECTED, verified } from './verdict.js'

/** What the leases of one process are made of. */
export interface LeaseParts {
  readonly store: Store
  readonly cache: Cache | undefined
  readonly clock: Clock
  /** Authenticate cache entries; the current one first. */
  readonly serverSecrets: readonly Uint8Array[]
  readonly leaseMs: number
  readonly maxLeases: number
  /** Whether anybody but this instance may hold a lease on the store's keys. */
  readonly othersHoldLeases: () => boolean
  readonly report: (error: unknown) => void
}

/** The verdicts that this process may rely on, by digest. */
export interface Leases {
  peek(digest: string): VerifyResult | undefined
  verify(digest: string): Promise<VerifyResult>
  /** Ends what this process knows of digests that were retired, and buries them in the cache; bounded, never rejects. */
  retire(digests: readonly string[], reason: 'rotated' | 'revoked'): Promise<void>
  /** Forgets what is known of a digest whose key changed; bounded, never rejects. */
  forget(digest: string): Promise<void>
  /** What the authority says about a digest right now, past every lease. */
  look(
    digest: string,
  ): Promise<{ readonly at: number; readonly found: { readonly key: KeyRow; readonly generation: GenerationRow } | undefined }>
  /** The id of the key of a digest that this process has met lately, and that was good then. */
  familiar(digest: string): string | undefined
  introduce(digest: string, keyId: string): void
  /** Tells the store, in the background, that a secret was presented. */
  noteFirstUse(digest: string): void
  /** Declares the lease of this instance to the store. */
  declareLease(): Promise<void>
  /** Resolves when the background work under way has ended. */
  idle(): Promise<void>
  /** From here on nothing is accepted on the word of these leases. */
  close(): void
}

/** A hot verdict is renewed at this part of its life, so that steady traffic never waits; the jitter makes it earlier, never later. */
const REFRESH_AT = 0.6
const REFRESH_JITTER = 0.1
/** A lease from another process is renewed this part of its life later: by then the process it was granted to has, as a rule, left a new one in the cache. */
const RELAYED_LATER = 0.08
/** Renewals that fall due within this part of a lease, and no longer than this, go together: alone, each would cost a command and a query. */
const REFRESH_ROUND = 0.02
const REFRESH_ROUND_MS = 20

/** How long "unknown" is believed. Seconds: a mistake in the store can be mended. */
const NEGATIVE_MS = 3_000
/** Retired is for ever; what ends after ten minutes is only the memory of it. */
const RETIRED_MS = 600_000
/** Refused digests are what a stranger can make us remember, so their table is small. */
const MAX_REFUSED = 10_000
/** Of secrets whose first use was told; forgetting one costs a write that changes nothing. */
const MAX_KNOWN_USED = 50_000

/** Longest life of a tombstone in the cache. It saves reads; nothing depends on it. */
const TOMBSTONE_MS = 3_600_000

/** This many reads run at once: a flood of unknown secrets fills batches, not the pool. */
const READS_AT_ONCE = 2
/** A lease that could not be declared is declared again after this long. */
const DECLARE_AGAIN_MS = 1_000

/**
 * How old this process's reading of the authority's clock may be before relayed leases are refused, and the drift between two
 * clocks that is allowed for meanwhile (1 in 1,000; NTP slews at most half of that).
 */
const READING_MS = 30_000
const DRIFT = 0.001
/** A reading this far below what the last one allows means that the authority's clock was set back. */
const STEP_MS = 20
/** No lease is longer, so after this long nothing granted before a step is left. */
const LONGEST_LEASE_MS = 60_000

interface Flight {
  answer: Promise<VerifyResult>
  /** Whether what it asked about was retired or changed since it took off. */
  stale: boolean
}

interface Held {
  readonly result: Verified
  readonly monotonicMs: number
  readonly wallMs: number
  readonly lifeMs: number
  /** Of the entry in the cache that this lease came from or went to: CRC-32 tells it from a later one, which may be more use. */
  readonly entryCrc: number | undefined
  refreshMs: number
  refreshing: boolean
}

interface Refused {
  readonly result: Rejected
  readonly since: Instant
  readonly forMs: number
}

export function leases({ store, cache, clock, serverSecrets, leaseMs, maxLeases, othersHoldLeases, report }: LeaseParts): Leases {
  const held = new Map<string, Held>()
  const refused = new Map<string, Refused>()
  const flights = new Map<string, Flight>()
  /** Which key each digest belongs to, of those that were good when last asked about: for telling a client from a flood. */
  const met = new Map<string, string>()
  const background = new Set<Promise<unknown>>()
  const firstUses = new Set<string>()
  /** Secrets whose use the store has been told of: an entry in the cache from before that goes on saying otherwise. */
  const knownUsed = new Set<string>()
  /** The renewals that are being gathered: when they set out, and how to have them do so at once. */
  let round: { readonly ends: Promise<void>; readonly end: () => void } | undefined
  let closed = false
  /** When the lease of this instance was last declared; undefined before. */
  let declaredAt: number | undefined
  let declared = false
  /** An earlier, longer lease that may still be held: since when this process knows that nobody is granted it any more. */
  let lowered: { readonly version: number; readonly since: Instant; readonly waitMs: number } | undefined
  /** As the authority last said. */
  let inForceMs = leaseMs
  /** When this process last changed a key. */
  let changedAt: Instant | undefined
  /** Known from the first answer of the authority on; before it no entry of the cache is believed. */
  let storeId: string | undefined
  const readAuthority = batchedRead(clock, (digests) => store.read(digests), { first: (digest) => met.has(digest), atOnce: READS_AT_ONCE })
  const authorityClock = clockReading(clock)
  const entries = cacheEntryCodec(serverSecrets)

  return {
    peek,
    verify,
    look,
    familiar: (digest) => met.get(digest),
    introduce,
    retire,
    forget,
    noteFirstUse,
    declareLease,
    idle,
    close() {
      closed = true
      held.clear()
    },
  }

  function peek(digest: string): VerifyResult | undefined {
    if (closed) return undefined
    const lease = held.get(digest)
    if (lease !== undefined) {
      const passed = Math.max(clock.monotonicMs() - lease.monotonicMs, clock.wallMs() - lease.wallMs)
      // Written so that a life that is no number is over.
      if (!(passed < lease.lifeMs)) return undefined
      if (passed >= lease.refreshMs && !lease.refreshing) refreshAhead(digest, lease)
      return lease.result
    }
    const refusal = refused.get(digest)
    if (refusal === undefined) return undefined
    if (elapsedMs(clock, refusal.since) < refusal.forMs) return refusal.result
    refused.delete(digest)
    return undefined
  }

  async function verify(digest: string): Promise<VerifyResult> {
    // The second try is for a process that was paused between the authority's answer and here: its lease may have run out.
    for (let tries = 0; tries < 2; tries++) {
      const known = peek(digest)
      if (known !== undefined) return known
      const answer = await singleFlight(digest, false)
      if (!answer.ok || answer.live()) return answer
    }
    throw new ApiKeyError('store_unavailable', 'The store answered too late for its answer to be relied on.')
  }

  function singleFlight(digest: string, ahead: boolean): Promise<VerifyResult> {
    const under = flights.get(digest)
    if (under !== undefined) return under.answer
    const flight: Flight = { answer: Promise.resolve(REJECTED.malformed), stale: false }
    flight.answer = ask(digest, ahead, flight).finally(() => {
      if (flights.get(digest) === flight) flights.delete(digest)
    })
    flights.set(digest, flight)
    return flight.answer
  }

  /** Ends what this process knows of a digest, and what is still on its way to being known. */
  function drop(digest: string): void {
    changedAt = instant(clock)
    const flight = flights.get(digest)
    if (flight !== undefined) flight.stale = true
    flights.delete(digest)
    held.delete(digest)
    refused.delete(digest)
  }

  function refreshAhead(digest: string, lease: Held): void {
    lease.refreshing = true
    round ??= gatherRenewals()
    inBackground(
      round.ends
        // Not for one that was dropped, renewed or evicted meanwhile: what is asked for again would be taken for good again.
        .then(() => (held.get(digest) === lease ? singleFlight(digest, true) : undefined))
        .catch(() => {
          // The lease in hand goes on until its deadline; the next attempt comes a tenth of a life later.
          lease.refreshMs = elapsedMs(clock, lease) + lease.lifeMs / 10
          lease.refreshing = false
        }),
    )
  }

  function gatherRenewals(): { readonly ends: Promise<void>; readonly end: () => void } {
    let end = (): void => {}
    const ends = new Promise<void>((resolve) => {
      const timer = setTimeout(() => end(), Math.min(inForceMs * REFRESH_ROUND, REFRESH_ROUND_MS)).unref()
      end = () => {
        clearTimeout(timer)
        round = undefined
        resolve()
      }
    })
    return { ends, end }
  }

  /** Asks the cache, then the authority. `ahead` passes over the lease in hand, and over another that is itself due for renewal. */
  async function ask(digest: string, ahead: boolean, flight: Flight): Promise<VerifyResult> {
    const since = instant(clock)
    const cached = await cache?.get(digest)
    if (flight.stale) return singleFlight(digest, ahead)
    const entryCrc = typeof cached?.value === 'string' ? crc32(cached.value) : undefined
    const inHand = ahead && entryCrc !== undefined && held.get(digest)?.entryCrc === entryCrc
    if (cached !== undefined && cached.value !== null && storeId !== undefined && !inHand) {
      const entry = entries.open(storeId, digest, cached.value)
      if (entry === 'rotated' || entry === 'revoked') return refuse(digest, entry, RETIRED_MS)
      if (entry !== undefined) {
        const relayed = relay(digest, entry, since, cached.timeMs, ahead, entryCrc)
        if (relayed !== undefined) return relayed
      }
    }

    const { answer, askedAt, found } = await askAuthority(digest)
    if (flight.stale) return singleFlight(digest, ahead)
    if (found === undefined) return refuse(digest, 'unknown', NEGATIVE_MS)
    const { key, generation } = found
    const ended = endedBecause(key, generation, answer.at)
    if (ended !== undefined) {
      // An expiry can be moved, and whoever moves it waits for one lease: until then, and no longer, may this be believed.
      if (ended === 'expired') return refuse(digest, ended, answer.leaseMs - elapsedMs(clock, askedAt))
      if (cache !== undefined) inBackground(cache.bury(digest, entries.tombstone(answer.storeId, digest, ended), TOMBSTONE_MS))
      return refuse(digest, ended, RETIRED_MS)
    }
    if (generation.retiresEarlier) {
      await endEarlier(digest)
      return singleFlightAfter(digest, ahead, flight)
    }
    const grace = gracePeriod(generation)
    const lifeMs = lifeMsOf(key, grace, answer.leaseMs, answer.at)
    const used = generation.firstUsedAt !== null
    if (!used) noteFirstUse(digest)
    let filledCrc: number | undefined
    if (cache !== undefined && cached !== undefined) {
      // Counted from the cache's own clock before the authority was asked: a fill that lands late is born dead.
      const cacheExpiry = Math.floor(cached.timeMs + lifeMs)
      const entry: CacheEntry = { key, ...(grace && { grace }), used, grantedAt: answer.at, leaseMs: answer.leaseMs, cacheExpiry }
      const value = entries.active(answer.storeId, digest, entry)
      filledCrc = crc32(value)
      inBackground(cache.fill(digest, value, cacheExpiry))
    }
    return hold(digest, key, grace, askedAt, lifeMs, restAtRenewal() * lifeMs, filledCrc)
  }

  function introduce(digest: string, keyId: string): void {
    met.delete(digest)
    met.set(digest, keyId)
    dropOldest(met, maxLeases)
  }

  async function look(digest: string): ReturnType<Leases['look']> {
    const { answer, found } = await askAuthority(digest)
    return { at: answer.at, found }
  }

  async function askAuthority(digest: string): Promise<Asked<AuthorityAnswer> & { found: AuthorityAnswer['found'][number] | undefined }> {
    const { answer, askedAt } = await readAuthority(digest)
    if (!(answer.leaseMs > 0 && answer.leaseMs <= LONGEST_LEASE_MS && Number.isFinite(answer.at))) {
      throw new ApiKeyError('store_unavailable', 'The store answered with a lease or a time that makes no sense.')
    }
    storeId = answer.storeId
    inForceMs = answer.leaseMs
    authorityClock.take(answer.at, askedAt)
    if (!declared && (declaredAt === undefined || clock.monotonicMs() - declaredAt > DECLARE_AGAIN_MS)) inBackground(declareLease())
    if (lowered !== undefined && hasEnded(lowered)) settleLowering(lowered)
    const found = answer.found.find(({ generation }) => generation.digest === digest)
    // A secret that is dead no longer speaks for its key: nothing that it does is the key's doing.
    if (found !== undefined && endedBecause(found.key, found.generation, answer.at) === undefined) introduce(digest, found.key.id)
    else met.delete(digest)
    return { answer, askedAt, found }
  }

  /**
   * This secret is used for the first time, and with that ends the grace period of the one before it: here and now in the store, and
   * before this use is accepted, in every lease. Whoever meets the mark waits in full by its own clock, and only then takes it away.
   */
  async function endEarlier(digest: string): Promise<void> {
    const { retired, waitMs } = await store.markFirstUse(digest)
    const marked = clock.monotonicMs()
    await retire(retired, 'rotated')
    if (othersHoldLeases()) await clock.sleep(marked + waitMs + marginMs(waitMs) - clock.monotonicMs())
    await store.settleFirstUse(digest)
  }

  /** Asks once more within the same flight. */
  function singleFlightAfter(digest: string, ahead: boolean, flight: Flight): Promise<VerifyResult> {
    return flight.stale ? singleFlight(digest, ahead) : ask(digest, ahead, flight)
  }

  /**
   * Takes over a lease that the authority granted to another process. It ends where that one ends, by three independent bounds: its full
   * length from now, the cache server's clock, and the authority's clock as this process last read it. The third is the one
   * that a cache cannot bend: a server restored from an old snapshot, promoted with a late clock, or lying outright
   * brings back only leases that are long over.
   */
  function relay(
    digest: string,
    entry: CacheEntry,
    since: Instant,
    cacheNow: number,
    ahead: boolean,
    entryCrc?: number,
  ): VerifyResult | undefined {
    const authorityNow = authorityClock.latest(since)
    if (authorityNow === undefined) return undefined
    // Where no change waits for leases to end, one of before it may still be in a cache that lost its tombstone.
    if (!othersHoldLeases() && changedAt !== undefined && elapsedMs(clock, changedAt) < LONGEST_LEASE_MS) return undefined
    const leftMs = Math.min(entry.leaseMs, entry.cacheExpiry - cacheNow, entry.grantedAt + entry.leaseMs - authorityNow)
    const lifeMs = lifeMsOf(entry.key, entry.grace, leftMs, authorityNow)
    if (!(lifeMs > 0 && lifeMs > elapsedMs(clock, since))) return undefined
    if (ahead && lifeMs < (1 - REFRESH_AT) * entry.leaseMs) return undefined
    if (!entry.used && !knownUsed.has(digest)) noteFirstUse(digest)
    introduce(digest, entry.key.id)
    // A part of its life is behind it: its renewal is due soon after that of the whole lease is.
    return hold(digest, entry.key, entry.grace, since, lifeMs, (restAtRenewal() - RELAYED_LATER) * entry.leaseMs, entryCrc)
  }

  function hold(
    digest: string,
    row: KeyRow,
    grace: GracePeriod | undefined,
    since: Instant,
    lifeMs: number,
    restMs: number,
    entryCrc?: number,
  ): Verified {
    const lease: Held = {
      result: verified(apiKey(row), grace, () => !closed && elapsedMs(clock, lease) < lease.lifeMs),
      monotonicMs: since.monotonicMs,
      wallMs: since.wallMs,
      lifeMs,
      entryCrc,
      refreshMs: lifeMs - restMs,
      refreshing: false,
    }
    // Deleted first, so that the map's order is the order of granting and the oldest goes first.
    held.delete(digest)
    refused.delete(digest)
    held.set(digest, lease)
    dropOldest(held, maxLeases)
    return lease.result
  }

  function refuse(digest: string, reason: RejectionReason, forMs: number): Rejected {
    held.delete(digest)
    refused.delete(digest)
    refused.set(digest, { result: REJECTED[reason], since: instant(clock), forMs })
    dropOldest(refused, MAX_REFUSED)
    return REJECTED[reason]
  }

  /** Says which lease this instance was started with; the store keeps all instances at one value. Done once, by the first answer at the latest. */
  async function declareLease(): Promise<void> {
    declaredAt = clock.monotonicMs()
    const { waitMs, version } = await store.setLease(leaseMs)
    declared = true
    if (waitMs > 0) lowered = { version, since: instant(clock), waitMs }
  }

  /** Whether what was granted before a lowering is over: in full by this process's own clock, counted from when the lowering was visible. */
  function hasEnded({ since, waitMs }: NonNullable<typeof lowered>): boolean {
    return clock.monotonicMs() - since.monotonicMs >= waitMs + marginMs(waitMs)
  }

  function settleLowering(over: NonNullable<typeof lowered>): void {
    lowered = undefined
    inBackground(
      store.settleLease(over.version).catch((error: unknown) => {
        lowered = over
        throw error
      }),
    )
  }

  /** The one store write that verifying ever makes: it closes the replay of the rotation that made this secret. */
  function noteFirstUse(digest: string): void {
    if (firstUses.has(digest)) return
    firstUses.add(digest)
    inBackground(
      store
        .markFirstUse(digest)
        .then(({ retired }) => {
          knownUsed.add(digest)
          dropOldest(knownUsed, MAX_KNOWN_USED)
          return retire(retired, 'rotated')
        })
        .catch(report)
        .finally(() => firstUses.delete(digest)),
    )
  }

  async function retire(digests: readonly string[], reason: 'rotated' | 'revoked'): Promise<void> {
    for (const digest of digests) {
      met.delete(digest)
      drop(digest)
      refuse(digest, reason, RETIRED_MS)
    }
    const id = storeId
    if (cache === undefined || id === undefined) return
    await Promise.all(digests.map((digest) => cache.bury(digest, entries.tombstone(id, digest, reason), TOMBSTONE_MS)))
  }

  async function forget(digest: string): Promise<void> {
    drop(digest)
    await cache?.forget(digest)
  }

  async function idle(): Promise<void> {
    while (background.size > 0) {
      // The timer alone would not keep the process alive for those who wait here.
      round?.end()
      await Promise.allSettled([...background])
    }
  }

  function inBackground(work: Promise<unknown>): void {
    const tracked = work.catch(report).finally(() => background.delete(tracked))
    background.add(tracked)
  }
}

/** Which part of a lease is left when its renewal falls due. */
function restAtRenewal(): number {
  return 1 - REFRESH_AT * (1 - Math.random() * REFRESH_JITTER)
}

/**
 * What this process knows of the authority's clock: an upper bound. A reading was taken by the authority after `askedAt`, so
 * at `askedAt` its clock showed no more than the reading, and since then it has gone on about as ours has.
 */
function clockReading(clock: Clock): { take(at: number, askedAt: Instant): void; latest(when: Instant): number | undefined } {
  let reading: { at: number; askedAt: Instant; lowest: number } | undefined
  let distrustedSince: Instant | undefined

  return {
    take(at, askedAt) {
      // Lowest: what the clock may at least have shown at `askedAt`. A later reading below that means it was set back.
      const now = instant(clock)
      if (reading !== undefined) {
        const passed = askedAt.monotonicMs - reading.askedAt.monotonicMs
        const expected = reading.lowest + passed * (1 - DRIFT)
        if (passed < 0) return
        if (at < expected - STEP_MS) distrustedSince = now
      }
      reading = { at, askedAt, lowest: at - (now.monotonicMs - askedAt.monotonicMs) }
    },
    latest(when) {
      if (distrustedSince !== undefined) {
        if (elapsedMs(clock, distrustedSince) < LONGEST_LEASE_MS) return undefined
        distrustedSince = undefined
      }
      if (reading === undefined) return undefined
      const passed = Math.max(when.monotonicMs - reading.askedAt.monotonicMs, when.wallMs - reading.askedAt.wallMs)
      if (passed > READING_MS) return undefined
      return reading.at + Math.max(passed, 0) * (1 + DRIFT)
    },
  }
}
