import type { Cache } from '../../cache/cache.js'
import { dropOldest } from '../../drop-oldest.js'
import { ApiKeyError } from '../../errors.js'
import { nextTurn } from '../../real-time.js'
import type { FeedPosition, GenerationRow, KeyRow, MemberMode, Store } from '../../store/store.js'
import type { Verified, VerifyResult } from '../api-keys.js'
import { type Clock, elapsedMs, type Instant, instant } from '../clock.js'
import { apiKey } from '../key.js'
import { batchedRead } from './batched-read.js'
import { type CacheEntry, cacheEntryCodec } from './cache-entry.js'
import { FACT_MS, type Facts, facts } from './facts.js'
import { type FirstUses, firstUses } from './first-use.js'
import { Follower, type Read } from './follower.js'
import { Signals } from './signals.js'
import { endedBecause, gracePeriod, lifeMsOf, limited, REJECTED, verified } from './verdict.js'

export interface VerifierParts {
  readonly store: Store
  readonly cache: Cache | undefined
  readonly clock: Clock
  /** Authenticate cache entries; the current one first. */
  readonly serverSecrets: readonly Uint8Array[]
  readonly leaseMs: number
  readonly maxKnownSecrets: number
  readonly mode: MemberMode
  readonly channels: readonly string[]
  readonly hearsRecalls: () => boolean
  readonly answeredBy: (server: string | undefined, position: FeedPosition | undefined) => void
  readonly listen: () => void
  /** Waits until nobody relies any more on what was before a change of these digests, which is committed. */
  readonly settled: (change: Contradiction, waitMs: number) => Promise<unknown>
  readonly report: (error: unknown) => void
}

/** What the store says of a digest, however it was asked. */
interface Found {
  readonly key: KeyRow
  readonly generation: GenerationRow
}

/** What was found out about a digest, and for how long it counts without a lease. */
interface Told {
  readonly result: VerifyResult
  readonly askedAt: Instant
  readonly forMs: number
}

/** What a change ended, and what it changed. */
export interface Contradiction {
  /** Digests that are no longer accepted, and why. */
  readonly retired?: { readonly digests: readonly string[]; readonly reason: 'rotated' | 'revoked' } | undefined
  /** Digests whose verdict has changed but stays good. */
  readonly changed?: readonly string[] | undefined
}

/** This many reads run at once: a flood of unknown secrets fills batches, not the pool. */
const READS_AT_ONCE = 2
/** A read takes no more digests than this. */
const MOST_DIGESTS = 100
/** Longest life of a tombstone in the cache. It saves reads; nothing depends on it. */
const TOMBSTONE_MS = 60_000

/** Says which secrets are good: from what this instance knows, the cache, the store. */
export class Verifier {
  readonly follower: Follower
  readonly #parts: VerifierParts
  readonly #facts: Facts
  readonly #signals: Signals
  readonly #firstUses: FirstUses
  readonly #entries: ReturnType<typeof cacheEntryCodec>
  readonly #read: (digest: string) => Promise<Read>
  readonly #flights = new Map<string, Promise<Told>>()
  /** Which key each digest belongs to, of those that were good when last asked about: for telling a client from a flood. */
  readonly #met = new Map<string, string>()
  readonly #background = new Set<Promise<unknown>>()
  #closed = false

  constructor(parts: VerifierParts) {
    const { store, clock, serverSecrets, maxKnownSecrets } = parts
    const inBackground = (work: Promise<unknown>): void => this.inBackground(work)
    this.#parts = parts
    this.#entries = cacheEntryCodec(serverSecrets)
    this.#signals = new Signals({
      ...{ clock, inBackground, report: parts.report },
      poll: () => this.follower.poll(),
      pollInMs: (now) => this.follower.pollInMs(now),
      pollEveryMs: () => this.follower.pollEveryMs,
      followedAt: (now) => this.follower.followedAt(now),
      storeTime: (when) => this.follower.storeTime(when),
    })
    this.#facts = facts({
      signals: this.#signals,
      clock,
      max: maxKnownSecrets,
      isFollowed: () => this.follower.isFollowed(clock.monotonicMs(), clock.wallMs()),
      storeTime: (when) => this.follower.storeTime(when),
      refreshEveryMs: () => this.follower.pollEveryMs,
    })
    this.follower = new Follower({
      ...parts,
      drop: (digest) => {
        this.#facts.drop(digest)
        this.#signals.doubt(digest)
      },
      dropAll: () => {
        this.#facts.clear()
        this.#signals.doubtAll()
        this.#firstUses.startOver()
      },
      due: () => [...new Set([...this.#signals.due(MOST_DIGESTS), ...this.#facts.due()])].slice(0, MOST_DIGESTS),
      isDue: () => this.#facts.isDue() || this.#signals.isDue(),
      refresh: (digests, read) => {
        for (const digest of digests) this.#judge(digest, read)
      },
      inBackground,
    })
    this.#firstUses = firstUses(store, parts.settled, inBackground)
    this.#read = batchedRead((digests) => this.follower.read(digests), {
      first: (digest) => this.#met.has(digest),
      atOnce: READS_AT_ONCE,
    })
  }

  /** The verdict on a digest that can be given at once, to be acted on with no `await` between; undefined where there is none. */
  peek(digest: string): VerifyResult | undefined {
    if (this.#closed) return undefined
    const monotonicMs = this.#parts.clock.monotonicMs()
    const wallMs = this.#parts.clock.wallMs()
    const fact = this.#facts.good(digest, monotonicMs, wallMs)
    if (fact === undefined) {
      const refusal = this.#facts.refusal(digest, () => this.follower.isFollowed(monotonicMs, wallMs))
      if (refusal !== undefined) this.follower.poke(monotonicMs)
      return refusal
    }
    if (!this.follower.isFollowed(monotonicMs, wallMs)) return undefined
    fact.usedMs = monotonicMs
    this.follower.poke(monotonicMs)
    return fact.result
  }

  async verify(digest: string): Promise<VerifyResult> {
    const known = this.peek(digest) ?? (await this.#followedAgain(digest)) ?? (await this.#shared(digest))
    if (known !== undefined) return known
    // Only what was asked after this request came in may answer it where nothing can be relied on.
    const read = await this.#read(digest)
    const told = this.peek(digest) ?? (await this.#judged(digest, read))
    if ('result' in told && !this.#isFresh(told)) throw tooLate()
    return 'result' in told ? told.result : told
  }

  /** Where only the feed is behind, one read of it does for all keys together. */
  async #followedAgain(digest: string): Promise<VerifyResult | undefined> {
    const { clock } = this.#parts
    if (this.#closed || this.#facts.good(digest, clock.monotonicMs(), clock.wallMs()) === undefined) return undefined
    await this.follower.poll()
    return this.peek(digest)
  }

  /** What came of the one look at the cache and the store that all who ask for a digest at about the same time share. */
  async #shared(digest: string): Promise<VerifyResult | undefined> {
    const under = this.#flights.get(digest)
    const flight =
      under ??
      this.#look(digest).finally(() => {
        this.#flights.delete(digest)
      })
    if (under === undefined) this.#flights.set(digest, flight)
    const told = await flight
    // Who began it was there before anything was asked. The others take only what can be relied on.
    return this.peek(digest) ?? (under === undefined && this.#isFresh(told) ? told.result : undefined)
  }

  async #look(digest: string): Promise<Told> {
    const { cache, clock } = this.#parts
    const since = instant(clock)
    const cached = await cache?.get(digest)
    if (typeof cached?.value === 'string') {
      const relayed = this.#relay(digest, cached.value, since)
      if (relayed !== undefined) return { result: relayed, askedAt: since, forMs: Number.POSITIVE_INFINITY }
    }
    return this.#judged(digest, await this.#read(digest), cached?.timeMs)
  }

  #isFresh({ result, askedAt, forMs }: Told): boolean {
    return !result.ok || elapsedMs(this.#parts.clock, askedAt) < forMs
  }

  /**
   * Takes over what another instance has read, if this one has followed the feed through the position at which it was read, and knows of no change since. No
   * clock but its own tells for how long: not the one of a cache that is restored from an old snapshot, or lying.
   */
  #relay(digest: string, value: string, since: Instant): VerifyResult | undefined {
    const { clock } = this.#parts
    const { storeId } = this.follower
    const entry = storeId === undefined ? undefined : this.#entries.open(storeId, digest, value)
    if (entry === undefined || !this.follower.hasSeen(entry.position) || !this.follower.admits(digest, entry.position.seq)) return undefined
    // A history that a restore has undone is noticed by whoever follows the feed.
    if (!this.follower.isFollowed(clock.monotonicMs(), clock.wallMs())) return undefined
    if ('retired' in entry) return this.#facts.refuse(digest, entry.retired)
    const storeNow = this.follower.storeTime(since)
    if (storeNow === undefined) return undefined
    const lifeMs = lifeMsOf(entry.key, entry.grace, FACT_MS - Math.max(0, storeNow - entry.at), storeNow)
    if (!(lifeMs > 0 && lifeMs > elapsedMs(clock, since))) return undefined
    if (!entry.used) this.#firstUses.note(digest)
    this.introduce(digest, entry.key.id)
    return this.#facts.hold(digest, entry.key, entry.grace, since, lifeMs)
  }

  /**
   * What an answer of the store means for a digest. One that a change has overtaken is asked for once more. The first use of a secret that ends the one before it is not
   * accepted before that has ended.
   */
  async #judged(digest: string, first: Read, cacheTimeMs?: number): Promise<Told> {
    const late = elapsedMs(this.#parts.clock, first.askedAt) >= first.answer.leaseMs
    const read = late || this.#keeps(digest, first) ? first : await this.#read(digest)
    const found = foundIn(read, digest)
    if (!found?.generation.retiresEarlier || endedBecause(found.key, found.generation, read.answer.at) !== undefined) {
      return this.#judge(digest, read, cacheTimeMs)
    }
    await this.#firstUses.endEarlier(digest)
    return this.#judge(digest, await this.#read(digest), cacheTimeMs)
  }

  /** Whether what was read about a digest may be kept. */
  #keeps(digest: string, { continuous, answer }: Read): boolean {
    return continuous && this.follower.admits(digest, answer.feed.seq)
  }

  #judge(digest: string, read: Read, cacheTimeMs?: number): Told {
    const { answer, askedAt } = read
    const found = foundIn(read, digest)
    const ended = found === undefined ? 'unknown' : endedBecause(found.key, found.generation, answer.at)
    this.#meet(digest, ended === undefined ? found?.key.id : undefined)
    const keeps = this.#keeps(digest, read)
    if (found === undefined || ended !== undefined) {
      const reason = ended ?? 'unknown'
      if (keeps && (reason === 'rotated' || reason === 'revoked')) this.inBackground(this.#bury([digest], reason, answer.feed))
      return { result: keeps ? this.#facts.refuse(digest, reason) : REJECTED[reason], askedAt, forMs: Number.POSITIVE_INFINITY }
    }
    const { key, generation } = found
    const grace = gracePeriod(generation)
    const lifeMs = lifeMsOf(key, grace, Number.POSITIVE_INFINITY, answer.at)
    const forMs = Math.min(lifeMs, answer.leaseMs)
    const used = generation.firstUsedAt !== null
    if (!used) this.#firstUses.note(digest)
    if (!keeps || generation.retiresEarlier) {
      const alone = verified(
        apiKey(key),
        grace,
        () => false,
        (verdict) => this.#signals.of(digest, verdict, undefined),
      )
      return { result: this.#once(alone, askedAt, forMs), askedAt, forMs }
    }
    if (cacheTimeMs !== undefined) {
      const entry: CacheEntry = { key, ...(grace && { grace }), used, position: positionOf(answer.feed), at: answer.at }
      this.#fill(digest, entry, cacheTimeMs + Math.min(lifeMs, FACT_MS))
    }
    return { result: this.#once(this.#facts.hold(digest, key, grace, askedAt, lifeMs), askedAt, forMs), askedAt, forMs }
  }

  /**
   * A result for the one request that it was read for, after that had come in. It is good for that one without a lease, and says so once, before anything else has its
   * turn: whoever keeps it and asks later is told what holds then, since a change may have been answered meanwhile without a word to this instance.
   */
  #once(result: Verified, askedAt: Instant, forMs: number): Verified {
    let spent = false
    void nextTurn().then(() => {
      spent = true
    })
    const live = (): boolean => {
      if (result.live()) return true
      if (spent || this.#closed || !(elapsedMs(this.#parts.clock, askedAt) < forMs)) return false
      spent = true
      return true
    }
    return limited(result, live)
  }

  #meet(digest: string, keyId: string | undefined): void {
    // A secret that is dead no longer speaks for its key: nothing that it does is the key's doing.
    if (keyId === undefined) this.#met.delete(digest)
    else this.introduce(digest, keyId)
  }

  /** The id of the key of a digest that this process has met lately, and that was good then. */
  familiar(digest: string): string | undefined {
    return this.#met.get(digest)
  }

  introduce(digest: string, keyId: string): void {
    this.#met.delete(digest)
    this.#met.set(digest, keyId)
    dropOldest(this.#met, this.#parts.maxKnownSecrets)
  }

  /** What the authority says about a digest right now, past everything that is known. */
  async look(digest: string): Promise<{ readonly at: number; readonly found: Found | undefined }> {
    const read = await this.#read(digest)
    const found = foundIn(read, digest)
    const ended = found && endedBecause(found.key, found.generation, read.answer.at)
    this.#meet(digest, ended === undefined ? found?.key.id : undefined)
    return { at: read.answer.at, found }
  }

  /** Has digests asked about again that were unknown. */
  forget(digests: readonly string[]): void {
    for (const digest of digests) this.#facts.drop(digest)
  }

  /** Tells the store, in the background, that a secret was presented. */
  noteFirstUse(digest: string): void {
    this.#firstUses.note(digest)
  }

  /** Ends what this process and the cache know from before a change that is committed, and that every read of `position` or later shows. */
  async contradict({ retired, changed = [] }: Contradiction, position: FeedPosition): Promise<void> {
    this.follower.hear([...(retired?.digests ?? []), ...changed], position.seq)
    for (const digest of retired?.digests ?? []) {
      this.#met.delete(digest)
      this.#facts.refuse(digest, retired?.reason ?? 'rotated')
    }
    const { cache } = this.#parts
    if (cache === undefined) return
    await Promise.all([
      retired === undefined ? undefined : this.#bury(retired.digests, retired.reason, position),
      ...changed.map((digest) => cache.forget(digest)),
    ])
  }

  declareLease(): Promise<void> {
    return this.follower.declareLease()
  }

  /** Resolves when the background work under way has ended. */
  async idle(): Promise<void> {
    while (this.#background.size > 0) await Promise.allSettled([...this.#background])
  }

  /** From here on nothing is accepted on the word of this instance. */
  close(): void {
    this.#closed = true
    this.follower.close()
    this.#facts.clear()
    this.#signals.close()
  }

  #fill(digest: string, entry: CacheEntry, expiresAtMs: number): void {
    const { cache } = this.#parts
    const { storeId } = this.follower
    if (cache === undefined || storeId === undefined) return
    // Counted from the cache's own clock before the authority was asked: a fill that lands late is born dead.
    this.inBackground(cache.fill(digest, this.#entries.active(storeId, digest, entry), Math.floor(expiresAtMs)))
  }

  async #bury(digests: readonly string[], reason: 'rotated' | 'revoked', at: FeedPosition): Promise<void> {
    const { cache } = this.#parts
    const { storeId } = this.follower
    if (cache === undefined || storeId === undefined) return
    const tombstone = { retired: reason, position: positionOf(at) }
    await Promise.all(digests.map((digest) => cache.bury(digest, this.#entries.tombstone(storeId, digest, tombstone), TOMBSTONE_MS)))
  }

  /** Runs what no answer waits for; `idle` does. */
  inBackground(work: Promise<unknown>): void {
    const tracked = work.catch(this.#parts.report).finally(() => this.#background.delete(tracked))
    this.#background.add(tracked)
  }
}

function foundIn({ answer }: Read, digest: string): Found | undefined {
  return answer.found.find(({ generation }) => generation.digest === digest)
}

function positionOf({ seq, tag }: FeedPosition): FeedPosition {
  return { seq, tag }
}

function tooLate(): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'The store answered too late for its answer to be relied on.')
}
