import { ApiKeyError } from '../../errors.js'
import { clearTimeout, setTimeout } from '../../real-time.js'
import type { AuthorityAnswer, FeedPosition } from '../../store/store.js'
import { elapsedMs, type Instant, instant } from '../clock.js'
import { Feed } from './feed.js'
import { declaration, type Membership, type MembershipParts, membership } from './membership.js'

/** An answer of the store, and what this instance may do with it. */
export interface Read {
  readonly answer: AuthorityAnswer
  readonly askedAt: Instant
  /** Whether the feed goes on through this answer. What is read beside a break in it serves who asked, and is not kept. */
  readonly continuous: boolean
}

export interface FollowerParts extends MembershipParts {
  /** Whether recalls arrive, as far as can be told. */
  readonly hearsRecalls: () => boolean
  /** Hears which server has answered, and how far the feed was followed there; undefined where it does not go on from where it was. */
  readonly answeredBy: (server: string | undefined, position: FeedPosition | undefined) => void
  /** Called before this instance joins: from then on it may be asked to say that it knows of a change. */
  readonly listen: () => void
  /** Drops what is known of a digest; of all of them. */
  readonly drop: (digest: string) => void
  readonly dropAll: () => void
  /** The digests to be read again with the next poll, whether there are any, and what to do with the answer. */
  readonly due: () => readonly string[]
  readonly isDue: () => boolean
  readonly refresh: (digests: readonly string[], read: Read) => void
}

/** Steady traffic has the feed read at this part of a lease, so that no request waits; the jitter makes it earlier, never later. */
const POLL_AT = 0.6
const POLL_JITTER = 0.1
/** A poll that failed is repeated after this part of a lease. */
const POLL_AGAIN = 0.1
/** An instance that is further behind than this many answers of 1,000 changes has no use for them. */
const MOST_BEHIND = 20
/** Changes are remembered for this long: two leases of the longest kind, and longer than a store's answer is under way. */
const MEMORY_MS = 120_000
/** For this long a recall of a change that was read already is waited for; then the change is acknowledged in the store. */
const RECALL_DUE_MS = 200
/** No lease is longer. */
const LONGEST_LEASE_MS = 60_000

interface Sent {
  readonly era: number
  readonly from: FeedPosition | undefined
  readonly session: string | undefined
}

/** Follows the feed of changes for one instance: reads the store, holds the one lease, and is a member. */
export class Follower {
  readonly #parts: FollowerParts
  readonly #feed: Feed
  readonly #member: Membership
  readonly #lease: ReturnType<typeof declaration>
  /** Where the store can be looked into at once, nobody needs a lease. */
  readonly #watch: (() => FeedPosition | undefined) | undefined
  /** Counts the starts: what was asked before the latest one is of the past. */
  #era = 0
  #closed = false
  #granted: { readonly since: Instant; readonly forMs: number } | undefined
  #storeId: string | undefined
  #storeClock: { readonly at: number; readonly askedAt: Instant } | undefined
  #leaseMs: number
  /** When the latest read was sent that the feed goes on through to its end. */
  #followedAt: Instant | undefined
  /** When the next poll is due, on the monotonic clock. */
  #dueMs = Number.NEGATIVE_INFINITY
  /** When to look next whether digests have to be read again. Only polls do that, and reads for requests put the next poll off. */
  #refreshMs = Number.NEGATIVE_INFINITY
  #polling: Promise<void> | undefined
  /** Whether there are changes to be read beyond those of the latest answer. */
  #isBehind = false
  /** Whether there was traffic since the last read was sent. */
  #busy = false
  #timer: ReturnType<typeof setTimeout> | undefined
  /** What was read to have changed and no recall has come of yet: the digests, each with the number of the change. Whoever waits for that goes by the store. */
  readonly #unrecalled = new Map<string, number>()
  #acknowledging = false

  constructor(parts: FollowerParts) {
    const { store, drop, leaseMs } = parts
    this.#parts = parts
    this.#feed = new Feed((digest, seq) => {
      drop(digest)
      if (!this.#feed.isHeard(digest, seq)) this.#unrecalled.set(digest, seq)
    }, MEMORY_MS)
    this.#member = membership(parts)
    this.#lease = declaration(parts)
    // Taken once: it is asked at each request.
    this.#watch = store.currentPosition?.bind(store)
    this.#leaseMs = leaseMs
  }

  /** Names the data; undefined before the first answer. */
  get storeId(): string | undefined {
    return this.#storeId
  }

  /** The lease in force, as the store last said. */
  get leaseMs(): number {
    return this.#leaseMs
  }

  /** How often the feed is read while there is traffic. */
  get pollEveryMs(): number {
    return this.#leaseMs * POLL_AT
  }

  /** Every session of this instance that may be waited for. */
  get sessions(): readonly string[] {
    return this.#member.sessions()
  }

  /** Whether facts may be relied on at this instant. Does no I/O that waits. */
  isFollowed(monotonicMs: number, wallMs: number): boolean {
    if (this.#closed) return false
    if (this.#watch !== undefined) {
      const [there, here] = [this.#watch(), this.#feed.position]
      return there !== undefined && there.tag === here?.tag && there.seq === here.seq
    }
    const granted = this.#granted
    if (granted === undefined) return false
    // Written so that a lease that is no number is over.
    return Math.max(monotonicMs - granted.since.monotonicMs, wallMs - granted.since.wallMs) < granted.forMs
  }

  /** When all changes were known for the last time; undefined before the first. */
  followedAt(now: Instant): Instant | undefined {
    return this.#watch !== undefined && this.isFollowed(now.monotonicMs, now.wallMs) ? now : this.#followedAt
  }

  /** In how many milliseconds the feed is to be read by whoever relies on it without any traffic. */
  pollInMs({ monotonicMs, wallMs }: Instant): number {
    if (this.#watch !== undefined) return this.isFollowed(monotonicMs, wallMs) ? this.pollEveryMs : 0
    return Math.max(0, this.#dueMs - monotonicMs)
  }

  /** Whether what was read about a digest at this position may still be taken. */
  admits(digest: string, seq: number): boolean {
    return this.#feed.admits(digest, seq)
  }

  /** Whether this instance has followed the feed through this very position. */
  hasSeen(position: FeedPosition): boolean {
    return this.#feed.hasSeen(position)
  }

  /** Drops what is known of these digests from before `seq`, and takes nothing of before it any more. */
  hear(digests: readonly string[], seq: number): void {
    for (const digest of digests) this.#parts.drop(digest)
    this.#feed.hear(digests, seq, this.#parts.clock.monotonicMs())
    for (const digest of digests) if ((this.#unrecalled.get(digest) ?? Number.POSITIVE_INFINITY) <= seq) this.#unrecalled.delete(digest)
  }

  /** What the store's clock shows at this instant, or later; undefined before the first answer. */
  storeTime({ monotonicMs, wallMs }: Instant): number | undefined {
    if (this.#storeClock === undefined) return undefined
    const { at, askedAt } = this.#storeClock
    return at + Math.max(0, monotonicMs - askedAt.monotonicMs, wallMs - askedAt.wallMs)
  }

  /** Reads the store. Every read follows the feed too, and renews the lease. */
  async read(digests: readonly string[]): Promise<Read> {
    const { store, clock } = this.#parts
    const askedAt = instant(clock)
    const sent: Sent = { era: this.#era, from: this.#feed.position, session: this.#member.current() }
    this.#busy = false
    this.#dueMs = askedAt.monotonicMs + this.pollEveryMs * (1 - Math.random() * POLL_JITTER)
    const answer = checked(await store.read(digests, { session: sent.session, after: sent.from?.seq }))
    return { answer, askedAt, continuous: this.#take(answer, sent, askedAt) }
  }

  /** Handles what an answer says of the feed, before anything else in it is looked at; answers whether the feed goes on through it. */
  #take(answer: AuthorityAnswer, sent: Sent, askedAt: Instant): boolean {
    if (sent.era !== this.#era || this.#closed) return false
    this.#leaseMs = answer.leaseMs
    this.#lease.answered()
    // It grants nothing any more, and may be of a server that has been replaced since: no part of it counts for anybody but who asked.
    if (this.#watch === undefined && elapsedMs(this.#parts.clock, askedAt) >= answer.leaseMs) return false
    const other = this.#storeId !== undefined && this.#storeId !== answer.storeId
    const state = other ? 'lost' : this.#feed.take(answer.feed, sent.from, this.#parts.clock.monotonicMs())
    const gone = sent.session !== undefined && sent.session === this.#member.current() && answer.member === 'none'
    this.#parts.answeredBy(answer.server, state === 'lost' ? undefined : this.#feed.position)
    if (state === 'lost' || gone) {
      this.#startOver()
      return false
    }
    this.#storeId = answer.storeId
    this.#storeClock = { at: answer.at, askedAt }
    if (this.#watch === undefined) this.#takeMembership(answer, sent, state === 'followed' ? askedAt : undefined)
    this.#isBehind = state === 'more'
    if (state === 'followed') this.#followedAt = askedAt
    if (this.#unrecalled.size > 0) this.#acknowledgeSoon()
    return true
  }

  #takeMembership(answer: AuthorityAnswer, sent: Sent, askedAt: Instant | undefined): void {
    // An answer of before the present session says nothing about it.
    if (sent.session !== this.#member.current()) return
    if (sent.session === undefined || answer.member === 'revoked') this.#join()
    else if (askedAt !== undefined && !(this.#granted !== undefined && this.#granted.since.monotonicMs > askedAt.monotonicMs)) {
      this.#granted = { since: askedAt, forMs: answer.leaseMs }
    }
  }

  /** The answer to the registration grants nothing: a read that is sent after it does. */
  #join(): void {
    this.#parts.listen()
    this.#member.join(() => this.#pollInBackground())
  }

  /** What was followed is not the feed any more, or nobody waits for this instance any more. */
  #startOver(): void {
    this.#era++
    this.#granted = undefined
    this.#storeId = undefined
    this.#storeClock = undefined
    this.#unrecalled.clear()
    this.#isBehind = false
    this.#dueMs = Number.NEGATIVE_INFINITY
    this.#feed.startOver()
    this.#parts.dropAll()
    this.#member.lapse()
  }

  /** Reads what is due, or nothing but the feed. One at a time: who asks while one is on its way waits for that one. */
  poll(): Promise<void> {
    this.#polling ??= this.#followToEnd().finally(() => {
      this.#polling = undefined
      this.#watchOver()
    })
    return this.#polling
  }

  async #followToEnd(): Promise<void> {
    const { clock, due, refresh } = this.#parts
    for (let behind = 0; behind < MOST_BEHIND; behind++) {
      const digests = behind === 0 ? due() : []
      if (behind === 0) this.#refreshMs = clock.monotonicMs() + this.pollEveryMs
      const era = this.#era
      try {
        const read = await this.read(digests)
        if (read.continuous) refresh(digests, read)
      } catch (error) {
        this.#dueMs = clock.monotonicMs() + this.#leaseMs * POLL_AGAIN
        throw error
      }
      if (this.#era !== era || !this.#isBehind) return
    }
    this.#startOver()
  }

  /** Says that there is traffic: the feed is read ahead of the end of the lease. Costs next to nothing. */
  poke(monotonicMs: number): void {
    this.#busy = true
    if (monotonicMs >= this.#dueMs) this.#pollInBackground()
    else if (monotonicMs >= this.#refreshMs) this.#refreshSoon(monotonicMs)
    else if (this.#timer === undefined && this.#watch === undefined) this.#watchOver()
  }

  #refreshSoon(monotonicMs: number): void {
    this.#refreshMs = monotonicMs + this.pollEveryMs
    if (this.#parts.isDue()) this.#pollInBackground()
  }

  #pollInBackground(): void {
    // Its failure is told to whoever needs the answer.
    if (this.#polling === undefined && !this.#closed) this.#parts.inBackground(this.poll().catch(() => {}))
  }

  /** Polls when that is due, if there was traffic meanwhile. */
  #watchOver(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#closed || !this.#busy || this.#watch !== undefined) return
    const inMs = Math.max(1, this.#dueMs - this.#parts.clock.monotonicMs())
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      if (this.#busy && this.#parts.clock.monotonicMs() >= this.#dueMs) this.#pollInBackground()
    }, inMs)
    this.#timer.unref()
  }

  /** Polls until all changes up to `seq` are handled; resolves with whether they are. Never rejects. */
  async catchUp(seq: number): Promise<boolean> {
    // Who accepts nothing any more relies on nothing.
    if (this.#closed) return true
    const reached = (): boolean => (this.#feed.position?.seq ?? -1) >= seq
    // One that is on its way may have been sent too early, and so may have one that began meanwhile.
    for (let tries = 0; tries < 3 && !reached(); tries++) {
      try {
        await this.poll()
      } catch {
        return false
      }
    }
    return reached()
  }

  /** Says in the store that changes are known, where no recall has come of them. */
  #acknowledgeSoon(): void {
    const { store, mode, hearsRecalls, inBackground } = this.#parts
    const session = this.#member.current()
    if (this.#acknowledging) return
    if (this.#watch !== undefined || mode !== 'recall' || session === undefined) {
      this.#unrecalled.clear()
      return
    }
    this.#acknowledging = true
    const acknowledged = async (): Promise<void> => {
      try {
        if (hearsRecalls()) await pause(RECALL_DUE_MS)
        const known = this.#feed.position
        const due = this.#unrecalled.size > 0
        this.#unrecalled.clear()
        // The one before is waited for, too, where this instance was suspected meanwhile and has joined again.
        const sessions = [...new Set([session, this.#member.current() ?? session])]
        if (due && known !== undefined && !this.#closed)
          await Promise.all(sessions.map((one) => store.acknowledge(one, { seq: known.seq, tag: known.tag })))
      } finally {
        this.#acknowledging = false
      }
      if (this.#unrecalled.size > 0) this.#acknowledgeSoon()
    }
    inBackground(acknowledged())
  }

  declareLease(): Promise<void> {
    return this.#lease.declare()
  }

  /** Stops: from here on nothing is followed. */
  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
  }

  /** Takes this instance out of the members, once it accepts nothing any more. */
  leave(): Promise<void> {
    return this.#member.leave()
  }
}

function checked(answer: AuthorityAnswer): AuthorityAnswer {
  const { leaseMs, at, feed } = answer
  if (leaseMs > 0 && leaseMs <= LONGEST_LEASE_MS && Number.isFinite(at) && Number.isSafeInteger(feed?.seq)) return answer
  throw new ApiKeyError('store_unavailable', 'The store answered with a lease, a time or a position that makes no sense.')
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}
