import { randomBytes } from 'node:crypto'
import type { Channel } from '../../channel.js'
import type { FeedPosition, MemberRow, Membership, Store } from '../../store/store.js'
import type { Recalled } from '../api-keys.js'
import type { Clock } from '../clock.js'
import type { Follower } from '../verify/follower.js'
import { marginMs } from '../verify/verdict.js'
import type { Contradiction } from '../verify/verifier.js'
import { type Message, type MessageCodec, MOST_DIGESTS, messageCodec } from './messages.js'
import { type Neighbour, neighbours } from './neighbours.js'
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

/** Waits for those that may not know of a change, and answers those that wait for this instance. */
export class Recalls {
  readonly #parts: RecallParts
  readonly #codec: MessageCodec
  readonly #inbox = randomBytes(16).toString('base64url')
  readonly #reaper = reaper()
  /** Who waits for the answers to which recall. */
  readonly #waiting = new Map<string, (sessions: readonly string[]) => void>()
  readonly #listening = new Map<Channel, Promise<(() => void) | undefined>>()
  readonly #neighbour: Neighbour
  /** The server that answers, how far its feed is known, and since when it is known to answer with this history. */
  #authority: { readonly server: string; readonly position: FeedPosition; readonly sinceMs: number } | undefined
  #closed = false

  constructor(parts: RecallParts) {
    const { follower } = parts
    this.#parts = parts
    this.#codec = messageCodec(parts.serverSecrets)
    this.#neighbour = {
      storeId: () => follower.storeId,
      sessions: () => follower.sessions,
      hear: (digests, seq) => this.#hear(digests, seq),
    }
    neighbours.add(this.#neighbour)
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

  /** Listens for the recalls of others from here on. */
  listen(): void {
    const { channels, follower } = this.#parts
    const [channel] = channels
    if (channel !== undefined && follower.storeId !== undefined) void this.#listenOn(channel, follower.storeId)
  }

  /** Whether recalls of others arrive, as far as can be told. */
  isHeard(): boolean {
    return this.#parts.channels[0]?.isOpen() ?? false
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
    const knowsItself = await this.#tellOwn(change, reached)
    const others = this.#othersOf(reached, longestMs)
    const silent = new Set(others.map(({ session }) => session))
    const earliest = knowsItself ? this.#earliest(reached, longestMs) : deadline
    if (silent.size > 0 && earliest < deadline) await this.#recall(change, reached, others, silent, deadline)
    const until = silent.size > 0 ? deadline : Math.min(deadline, earliest)
    if (until > clock.monotonicMs()) await clock.sleep(until - clock.monotonicMs())
    this.#revoke(others.filter(({ session, mode }) => silent.has(session) && mode === 'recall'))
    this.#parts.tell({
      position: reached.seq,
      members: others.length,
      answered: others.length - silent.size,
      silent: [...silent],
      waitedMs: clock.monotonicMs() - committedAt,
      early: until < deadline,
    })
  }

  /** From when on an answer may be given before the lease is over, on the monotonic clock. */
  #earliest({ server, lowered }: Membership, longestMs: number): number {
    if (this.#parts.store.currentPosition !== undefined) return Number.NEGATIVE_INFINITY
    // Where members are missing after a fail-over or a restore, their leases are over a lease after that was first seen.
    if (lowered || server === undefined || this.#authority === undefined) return Number.POSITIVE_INFINITY
    return this.#authority.sinceMs + longestMs + marginMs(longestMs)
  }

  /** Drops what this instance and the cache know; whether that is done. */
  async #tellOwn(change: Contradiction | undefined, { seq, tag }: Membership): Promise<boolean> {
    const { contradict, follower, inBackground, store } = this.#parts
    if (change !== undefined) {
      inBackground(contradict(change, { seq, tag }))
      return true
    }
    return store.currentPosition !== undefined || follower.sessions.length === 0 || (await follower.catchUp(seq))
  }

  async #members(): Promise<Membership> {
    const { store, clock, inBackground } = this.#parts
    const known = this.#authority
    const reached = await store.members(known?.position.seq)
    const now = clock.monotonicMs()
    if (known !== undefined && reached.tagAfter !== known.position.tag) this.answeredBy(undefined, undefined)
    this.answeredBy(reached.server, { seq: reached.seq, tag: reached.tag })
    this.#reaper.saw(reached, now)
    const over = this.#over(reached, reached.waitMs)
    if (over.length > 0) inBackground(store.removeMembers(over))
    const gone = longSilent(reached.members, reached.at)
    this.#revoke(gone)
    return reached
  }

  /** The members whose leases are over. */
  #over({ members }: Membership, longestMs: number): readonly string[] {
    const now = this.#parts.clock.monotonicMs()
    const forMs = longestMs + marginMs(longestMs)
    return members.map(({ session }) => session).filter((session) => this.#reaper.isOver(session, forMs, now))
  }

  #othersOf(reached: Membership, longestMs: number): readonly MemberRow[] {
    const none = new Set([...this.#parts.follower.sessions, ...this.#over(reached, longestMs)])
    return reached.members.filter(({ session }) => !none.has(session))
  }

  /** Asks the others, until all have answered or it is too late. What is left in `silent` has not. */
  async #recall(
    change: Contradiction | undefined,
    reached: Membership,
    others: readonly MemberRow[],
    silent: Set<string>,
    deadline: number,
  ): Promise<void> {
    const digests = namedDigests(change)
    const { seq, tag, storeId } = reached
    const answered = (sessions: readonly string[]): void => {
      for (const session of sessions) silent.delete(session)
    }
    await this.#askNeighbours(digests, reached, answered)
    if (silent.size === 0 || !this.#parts.enabled || others.some(({ session, mode }) => mode === 'feed' && silent.has(session))) return
    const nonce = randomBytes(16).toString('base64url')
    const message: Message = { type: 'recall', storeId, nonce, inbox: this.#inbox, position: { seq, tag }, digests }
    const all = new Promise<void>((resolve) => {
      this.#waiting.set(nonce, (sessions) => {
        answered(sessions)
        if (silent.size === 0) resolve()
      })
    })
    await this.#ask({ message, seq, others, silent, deadline, all })
    this.#waiting.delete(nonce)
  }

  /** Sends a recall, again and again, and looks at what members say in the store, until all have answered or it is too late. */
  async #ask({ message, seq, others, silent, deadline, all }: Asked): Promise<void> {
    const { clock, follower } = this.#parts
    const began = clock.monotonicMs()
    const suspectAt = began + Math.max(SUSPECT_MS, SUSPECT_AT * follower.leaseMs)
    const sendings = SENT_AT_MS.map((ms) => began + ms)
    let lookAt = began + LOOK_MS
    let suspected = false
    for (let now = began; silent.size > 0 && now < deadline && !this.#closed; now = clock.monotonicMs()) {
      if (now >= (sendings[0] ?? deadline)) {
        sendings.shift()
        this.#send(message, others, silent)
      }
      if (now >= lookAt) {
        lookAt = now + LOOK_MS
        this.#look(seq, silent)
      }
      if (now >= suspectAt && !suspected) {
        suspected = true
        this.#revoke(others.filter((one) => silent.has(one.session) && this.#reached(one)))
      }
      const next = Math.min(deadline, sendings[0] ?? deadline, lookAt, suspected ? deadline : suspectAt)
      await Promise.race([all, clock.sleep(next - now)])
    }
  }

  /** Sends a message over every channel on which somebody listens who has not answered. */
  #send(message: Message, others: readonly MemberRow[], silent: ReadonlySet<string>): void {
    if (message.type !== 'recall') return
    const text = this.#codec.write(message)
    for (const channel of this.#parts.channels) {
      if (!others.some(({ session, channels }) => silent.has(session) && channels.includes(channel.name))) continue
      void this.#listenOn(channel, message.storeId)
      const [address = ''] = this.#codec.addresses(message.storeId)
      void channel.send(address, text)
    }
  }

  /** Looks at what members have written into the store, and at who has left. */
  #look(seq: number, silent: Set<string>): void {
    const { inBackground } = this.#parts
    inBackground(
      this.#members().then((reached) => {
        const rows = new Map(reached.members.map((one) => [one.session, one]))
        const over = new Set(this.#over(reached, reached.waitMs))
        const done = [...silent].filter((session) => over.has(session) || (rows.get(session)?.acked ?? seq) >= seq)
        for (const session of done) silent.delete(session)
      }),
    )
  }

  #reached({ channels }: MemberRow): boolean {
    return this.#parts.channels.some((channel) => channel.isOpen() && channels.includes(channel.name))
  }

  #revoke(members: readonly MemberRow[]): void {
    const sessions = members.filter(({ revoked }) => !revoked).map(({ session }) => session)
    if (sessions.length === 0) return
    const { store, clock, inBackground } = this.#parts
    inBackground(store.revokeMembers(sessions).then(() => this.#reaper.revoked(sessions, clock.monotonicMs())))
  }

  /** Asks the other instances of this process, which need no message. */
  async #askNeighbours(
    digests: readonly string[] | null,
    { storeId, seq }: Membership,
    answered: (sessions: readonly string[]) => void,
  ): Promise<void> {
    await Promise.all(
      [...neighbours].map(async (one) => {
        if (one === this.#neighbour || one.storeId() !== storeId) return
        if (await one.hear(digests, seq)) answered(one.sessions())
      }),
    )
  }

  /** Drops what this instance knows from before a change, for another instance; whether that is done. */
  #hear(digests: readonly string[] | null, seq: number): boolean | Promise<boolean> {
    const { follower } = this.#parts
    if (digests === null) return follower.catchUp(seq)
    follower.hear(digests, seq)
    return true
  }

  #listenOn(channel: Channel, storeId: string): Promise<unknown> {
    const known = this.#listening.get(channel)
    if (known !== undefined || this.#closed) return known ?? Promise.resolve()
    const addresses = [...this.#codec.addresses(storeId), this.#inbox]
    const listening = channel.listen(addresses, (text) => this.#heard(channel, text))
    this.#listening.set(channel, listening)
    return listening
  }

  #heard(channel: Channel, text: string): void {
    const { follower, report } = this.#parts
    const message = this.#codec.read(text)
    if (message === undefined || message.storeId !== follower.storeId || this.#closed) {
      // Answers may come to an instance that has read nothing itself.
      if (message?.type === 'acknowledgement' && follower.storeId === undefined) this.#waiting.get(message.nonce)?.(message.sessions)
      return
    }
    if (message.type === 'acknowledgement') {
      this.#waiting.get(message.nonce)?.(message.sessions)
      return
    }
    if (message.inbox === this.#inbox) return
    const { sessions } = follower
    if (sessions.length === 0) return
    // The answer goes out from here, after what it is about was dropped, and with no `await` between where digests are named.
    const answer = (): void => {
      const { storeId, nonce } = message
      void channel.send(message.inbox, this.#codec.write({ type: 'acknowledgement', storeId, nonce, sessions: [...sessions] }))
    }
    const dropped = this.#hear(message.digests, message.position.seq)
    if (dropped === true) answer()
    else if (dropped !== false) dropped.then((done) => (done ? answer() : undefined)).catch(report)
  }

  /** Answers no recall any more. */
  async close(): Promise<void> {
    this.#closed = true
    neighbours.delete(this.#neighbour)
    const listening = [...this.#listening.values()]
    this.#listening.clear()
    for (const end of await Promise.all(listening)) end?.()
  }
}

/** What a recall is about; null where that is too much for a message, or not known. */
function namedDigests(change: Contradiction | undefined): readonly string[] | null {
  if (change === undefined) return null
  const digests = [...(change.retired?.digests ?? []), ...(change.changed ?? [])]
  return digests.length > MOST_DIGESTS ? null : digests
}

interface Asked {
  readonly message: Message
  readonly seq: number
  readonly others: readonly MemberRow[]
  /** Those that have not answered. */
  readonly silent: Set<string>
  readonly deadline: number
  /** Resolves when all have answered by message. */
  readonly all: Promise<void>
}
