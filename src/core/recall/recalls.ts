import { randomBytes } from 'node:crypto'
import type { Channel } from '../../channel.js'
import { nextTurn, setTimeout } from '../../real-time.js'
import type { FeedPosition, MemberRow, Membership, Store } from '../../store/store.js'
import type { Recalled } from '../api-keys.js'
import type { Clock } from '../clock.js'
import type { Follower } from '../verify/follower.js'
import { marginMs } from '../verify/verdict.js'
import type { Contradiction } from '../verify/verifier.js'
import { Answers } from './answers.js'
import { type Acknowledgement, type Message, MOST_DIGESTS, type Recall } from './messages.js'
import { concerns, type Neighbour, neighbours } from './neighbours.js'
import { Post } from './post.js'
import { longSilent, reaper } from './reaper.js'

export interface RecallParts {
  readonly store: Store
  readonly clock: Clock
  readonly follower: Follower
  /** The ways to reach other instances, the one that this one listens on first. */
  readonly channels: readonly Channel[]
  readonly serverSecrets: readonly Uint8Array[]
  /** Whether others are asked. */
  readonly enabled: boolean
  readonly contradict: (change: Contradiction, position: FeedPosition) => Promise<void>
  readonly tell: (recalled: Recalled) => void
  readonly report: (error: unknown) => void
  readonly inBackground: (work: Promise<unknown>) => void
}

/** A change that is committed. */
export interface Committed {
  /** What it ended and changed; undefined where that is not known any more, and everything up to now has to be. */
  readonly change: Contradiction | undefined
  /** When this process knew that it is committed, on the monotonic clock. */
  readonly committedAt: number
  /** The longest lease that may contradict it. */
  readonly waitMs: number
}

/** When a recall is sent, in milliseconds: messages get lost. */
const SENT_AT_MS = [0, 50, 200]
/** What members say in the store is looked at this often. */
const LOOK_MS = 100
/** A member that was asked over a channel on which it listens, and has not answered in this part of a lease, is suspected. */
const SUSPECT_AT = 0.1
const SUSPECT_MS = 100

/** A change that others are asked about. */
interface Round {
  readonly change: Contradiction | undefined
  readonly reached: Membership
  readonly others: readonly MemberRow[]
  readonly answers: Answers
  /** The longest lease that may contradict it. */
  readonly longestMs: number
  /** When it is too late for answers, on the monotonic clock. */
  readonly deadline: number
  /** Since when answers to it can come over a channel, by its name. */
  readonly askedAt: Map<string, number>
  /** Whether what members say in the store is being looked at. */
  looking: boolean
}

/** Waits for those that may not know of a change, and answers those that wait for this instance. */
export class Recalls {
  readonly #parts: RecallParts
  readonly #inbox = randomBytes(16).toString('base64url')
  readonly #post: Post
  readonly #reaper = reaper()
  /** Who waits for the answers to which recall. */
  readonly #waiting = new Map<string, Round>()
  readonly #neighbour: Neighbour
  /** The server that answers, how far its feed is known, and since when it is known to answer with this history. */
  #authority: { readonly server: string; readonly position: FeedPosition; readonly sinceMs: number } | undefined
  #closed = false

  constructor(parts: RecallParts) {
    const { channels, follower, serverSecrets } = parts
    this.#parts = parts
    this.#post = new Post({
      channels,
      serverSecrets,
      inbox: this.#inbox,
      heard: (channel, message) => this.#heard(channel, message),
    })
    this.#neighbour = {
      storeId: () => follower.storeId,
      sessions: () => follower.sessions,
      hear: (digests, seq) => this.#hear(digests, seq),
    }
  }

  /**
   * Takes note of which server has answered, and with which history: after a fail-over or a restore members may be missing who hold a lease from before. A position is
   * undefined where the history is another than before.
   */
  answeredBy(server: string | undefined, position: FeedPosition | undefined): void {
    const known = this.#authority
    if (server === undefined || position === undefined) this.#authority = undefined
    else if (known?.server !== server) this.#authority = { server, position, sinceMs: this.#parts.clock.monotonicMs() }
    else if (position.seq > known.position.seq) this.#authority = { ...known, position }
  }

  /** Has the server be known from here on, so that changes two leases later need not wait for that. Never rejects. */
  async meet(): Promise<void> {
    await this.#members().catch(this.#parts.report)
  }

  /** Listens for the recalls of others from here on. Whoever never joins is reached by nobody, and may be forgotten without being closed. */
  listen(): void {
    if (this.#closed) return
    neighbours.add(this.#neighbour)
    const [channel] = this.#post.channels
    const { storeId } = this.#parts.follower
    if (channel !== undefined && storeId !== undefined) this.#post.listenOn(channel, storeId)
  }

  /** Whether recalls of others arrive, as far as can be told. */
  isHeard(): boolean {
    return this.#post.channels[0]?.isOpen() ?? false
  }

  /** Waits until nobody relies on what was before a change, at the latest for the lease. Never rejects. */
  async settled({ change, committedAt, waitMs }: Committed): Promise<void> {
    const { clock, report } = this.#parts
    // After COMMIT, never before: who joins later has read the change.
    const reached = await this.#members().catch(report)
    if (!reached) {
      await clock.sleep(committedAt + waitMs + marginMs(waitMs) - clock.monotonicMs())
      return
    }
    const longestMs = Math.max(waitMs, reached.waitMs)
    const deadline = committedAt + longestMs + marginMs(longestMs)
    const others = this.#othersOf(reached, longestMs)
    const answers = new Answers(others.map(({ session }) => session))
    const asked = await this.#recall({ change, reached, others, answers, longestMs, deadline, askedAt: new Map(), looking: false })
    const until = answers.isComplete ? Math.min(deadline, this.#earliest(reached, longestMs)) : deadline
    if (until > clock.monotonicMs()) await clock.sleep(until - clock.monotonicMs())
    // Who was not asked is under no suspicion.
    if (asked) this.#revoke(others.filter(({ session, mode }) => answers.isSilent(session) && mode === 'recall'))
    const { silent } = answers
    this.#parts.tell({
      position: reached.seq,
      members: others.length,
      answered: others.length - silent.length,
      silent,
      waitedMs: clock.monotonicMs() - committedAt,
      early: clock.monotonicMs() < deadline,
    })
  }

  /** From when on an answer may be given before the lease is over, on the monotonic clock. Asked after the answers are there: the server may have been replaced meanwhile. */
  #earliest({ server, lowered }: Membership, longestMs: number): number {
    if (this.#parts.store.currentPosition !== undefined) return Number.NEGATIVE_INFINITY
    // Where members are missing after a fail-over or a restore, their leases are over two leases after that was first seen: until one lease after it, a late answer from
    // before may have been taken, by a read that overlaps it.
    if (lowered || server === undefined || this.#authority === undefined) return Number.POSITIVE_INFINITY
    return this.#authority.sinceMs + 2 * (longestMs + marginMs(longestMs))
  }

  async #members(): Promise<Membership> {
    const { store, clock, inBackground } = this.#parts
    const known = this.#authority
    const reached = await store.members(known?.position.seq)
    if (known !== undefined && reached.tagAfter !== known.position.tag) this.answeredBy(undefined, undefined)
    this.answeredBy(reached.server, { seq: reached.seq, tag: reached.tag })
    this.#reaper.saw(reached.members, clock.monotonicMs())
    const over = this.#over(reached, reached.waitMs)
    if (over.length > 0) inBackground(store.removeMembers(over))
    this.#revoke(longSilent(reached.members, reached.at))
    return reached
  }

  /** The members whose leases are over. A server or a history that is new may have lost a revocation, and granted leases since: the count begins again. */
  #over({ members }: Membership, longestMs: number): readonly string[] {
    const now = this.#parts.clock.monotonicMs()
    const forMs = longestMs + marginMs(longestMs)
    if (this.#authority !== undefined && now - this.#authority.sinceMs < forMs) return []
    return members.map(({ session }) => session).filter((session) => this.#reaper.isOver(session, forMs, now))
  }

  #othersOf(reached: Membership, longestMs: number): readonly MemberRow[] {
    const none = new Set([...this.#parts.follower.sessions, ...this.#over(reached, longestMs)])
    return reached.members.filter(({ session }) => !none.has(session))
  }

  /**
   * Has everybody drop what is known from before a change, this instance first, until all have said so or it is too late; whether other processes were asked. They are
   * where the answer has to wait for the lease in any case, too: that is how those that are gone are found out.
   */
  async #recall(round: Round): Promise<boolean> {
    const { reached, answers } = round
    const digests = namedDigests(round.change)
    this.#tellOwn(round)
    this.#askNeighbours(digests, round)
    if (answers.isComplete) return false
    const { seq, tag, storeId } = reached
    const nonce = randomBytes(16).toString('base64url')
    this.#waiting.set(nonce, round)
    await this.#ask(round, { type: 'recall', storeId, nonce, inbox: this.#inbox, position: { seq, tag }, digests })
    // What came while this process was busy is heard first.
    if (!answers.isComplete) await nextTurn()
    this.#waiting.delete(nonce)
    return this.#parts.enabled && !this.#closed
  }

  /** Drops what this instance and the cache know. */
  #tellOwn({ change, reached: { seq, tag }, answers }: Round): void {
    const { contradict, follower, inBackground, store } = this.#parts
    if (change !== undefined) inBackground(contradict(change, { seq, tag }))
    if (change !== undefined || store.currentPosition !== undefined || follower.sessions.length === 0) answers.ofItself()
    else inBackground(follower.catchUp(seq).then((done) => (done ? answers.ofItself() : undefined)))
  }

  /** Asks the other instances of this process, which need no message. */
  #askNeighbours(digests: readonly string[] | null, { reached: { storeId, seq }, answers }: Round): void {
    for (const one of neighbours) {
      if (one === this.#neighbour) continue
      this.#whenHeard(
        () => concerns(one, storeId) && one.hear(digests, seq),
        () => answers.of(one.sessions()),
      )
    }
  }

  /** Runs `then` once what was heard is dropped, with no `await` between where that is done at once. Nothing waits for an instance that never says so. */
  #whenHeard(hear: () => boolean | Promise<boolean>, then: () => void): void {
    const { report } = this.#parts
    try {
      const dropped = hear()
      if (dropped === true) then()
      else if (dropped !== false) dropped.then((done) => (done ? then() : undefined)).catch(report)
    } catch (error) {
      report(error)
    }
  }

  /**
   * Sends a recall, again and again, and looks at what members say in the store, until all have answered or it is too late. Where others are not asked, waits only for
   * those of this process.
   */
  async #ask(round: Round, message: Recall & { readonly type: 'recall' }): Promise<void> {
    const { clock, enabled } = this.#parts
    const { answers, deadline } = round
    const began = clock.monotonicMs()
    const sendings = SENT_AT_MS.map((ms) => began + ms)
    let lookAt = began + LOOK_MS
    for (let now = began; !answers.isComplete && now < deadline && !this.#closed; now = clock.monotonicMs()) {
      if (now >= (sendings[0] ?? deadline)) {
        sendings.shift()
        if (enabled) this.#send(message, round)
      }
      if (now >= lookAt) {
        lookAt = now + LOOK_MS
        // What came while this process was busy is heard first.
        await nextTurn()
        if (enabled) this.#suspect(round, now)
        if (enabled) this.#look(round)
      }
      // Short ones only: a sleep that nobody waits for any more keeps the process alive to its end.
      await Promise.race([answers.completed, clock.sleep(Math.min(deadline, sendings[0] ?? deadline, lookAt) - now)])
    }
  }

  /** Sends a message over every channel on which somebody listens who has not answered. */
  #send(message: Message, { others, answers, askedAt }: Round): void {
    for (const channel of this.#post.channels) {
      if (!others.some(({ session, channels }) => answers.isSilent(session) && channels.includes(channel.name))) continue
      this.#post.listenOn(channel, message.storeId)
      // Before it is open here, what others answer is not heard.
      if (channel.isOpen() && !askedAt.has(channel.name)) askedAt.set(channel.name, this.#parts.clock.monotonicMs())
      this.#post.tellAll(channel, message)
    }
  }

  /** Revokes members that could have answered by now, and have not. */
  #suspect({ others, answers, askedAt, reached }: Round, now: number): void {
    const graceMs = Math.max(SUSPECT_MS, SUSPECT_AT * reached.waitMs)
    const due = (channel: Channel): boolean => channel.isOpen() && now - (askedAt.get(channel.name) ?? now) >= graceMs
    const names = this.#post.channels.filter(due).map(({ name }) => name)
    const suspects = ({ session, mode, channels }: MemberRow): boolean =>
      mode === 'recall' && answers.isSilent(session) && channels.some((name) => names.includes(name))
    this.#revoke(others.filter((one) => suspects(one) && !this.#reaper.knows(one.session)))
  }

  /** Looks at what members have written into the store, and at who has left. One look at a time: a slow store is not asked more often. */
  #look(round: Round): void {
    if (round.looking) return
    round.looking = true
    const { answers, longestMs } = round
    const { seq } = round.reached
    const look = this.#members()
      .then((now) => {
        const rows = new Map(now.members.map((one) => [one.session, one]))
        answers.of(this.#over(now, longestMs))
        answers.of(answers.silent.filter((session) => (rows.get(session)?.acked ?? seq) >= seq))
      })
      .finally(() => {
        round.looking = false
      })
    this.#parts.inBackground(look)
  }

  #revoke(members: readonly MemberRow[]): void {
    const sessions = members.filter(({ revoked }) => !revoked).map(({ session }) => session)
    if (sessions.length === 0) return
    const { store, clock, follower, inBackground } = this.#parts
    inBackground(
      store.revokeMembers(sessions).then(() => {
        this.#reaper.revoked(sessions, clock.monotonicMs())
        this.#reapIn(follower.leaseMs)
      }),
    )
  }

  /** Removes who is gone as soon as that may be done, so that changes through other instances need not wait for them either. */
  #reapIn(leaseMs: number): void {
    const { inBackground } = this.#parts
    const reap = (): void => {
      if (!this.#closed) inBackground(this.#members())
    }
    setTimeout(reap, leaseMs + marginMs(leaseMs)).unref()
  }

  /** Drops what this instance knows from before a change, for another instance; whether that is done. */
  #hear(digests: readonly string[] | null, seq: number): boolean | Promise<boolean> {
    const { follower, inBackground } = this.#parts
    if (digests !== null) {
      follower.hear(digests, seq)
      return true
    }
    const caughtUp = follower.catchUp(seq)
    inBackground(caughtUp)
    return caughtUp
  }

  #heard(channel: Channel, message: Message): void {
    if (message.type === 'recall') this.#answer(channel, message)
    else this.#answered(message)
  }

  #answered({ nonce, storeId, sessions }: Acknowledgement): void {
    const round = this.#waiting.get(nonce)
    if (round?.reached.storeId === storeId) round.answers.of(sessions)
  }

  /** Answers after what a recall is about was dropped, from the same turn where digests are named. */
  #answer(channel: Channel, { inbox, storeId, nonce, digests, position }: Recall): void {
    if (inbox === this.#inbox || !concerns(this.#neighbour, storeId)) return
    const { follower } = this.#parts
    this.#whenHeard(
      () => this.#hear(digests, position.seq),
      () => this.#post.tell(channel, inbox, { type: 'acknowledgement', storeId, nonce, sessions: [...follower.sessions] }),
    )
  }

  /** Answers no recall any more. */
  close(): void {
    this.#closed = true
    neighbours.delete(this.#neighbour)
    this.#post.close()
  }
}

/** What a recall is about; null where that is too much for a message, or not known. */
function namedDigests(change: Contradiction | undefined): readonly string[] | null {
  if (change === undefined) return null
  const digests = [...(change.retired?.digests ?? []), ...(change.changed ?? [])]
  return digests.length > MOST_DIGESTS ? null : digests
}
