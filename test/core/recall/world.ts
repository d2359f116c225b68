import { randomBytes } from 'node:crypto'
import type { Channel } from '../../../src/channel.js'
import type { Recalled } from '../../../src/core/api-keys.js'
import { neighbours } from '../../../src/core/recall/neighbours.js'
import { Recalls } from '../../../src/core/recall/recalls.js'
import { type Contradiction, Verifier } from '../../../src/core/verify/verifier.js'
import { nextTurn } from '../../../src/real-time.js'
import type {
  AuthorityAnswer,
  FeedChange,
  FeedPosition,
  GenerationRow,
  KeyRow,
  Member,
  MemberRow,
  Membership,
  Store,
} from '../../../src/store/store.js'
import { TestClock } from '../../support/clock.js'

const LEASE: number = 1_000
/** A lease and its margin: the longest that a change may have to wait. */
export const FULL: number = LEASE + 50
export const SECRET: Buffer = Buffer.alloc(32, 7)
export const DIGEST: string = 'd'.repeat(43)

/** What a test may do to a message: deliver it as it is, not at all, twice, otherwise. */
export type Fault = (message: string, address: string) => readonly string[]

/** One database, one channel, and the instances between them, on one clock that a test turns. */
export class World {
  readonly clock: TestClock = new TestClock()
  readonly data: Data = new Data(this.clock)
  readonly hub: Hub = new Hub('fake')
  /** Whether the instances are of one process, and reach each other without messages. */
  oneProcess = false
  readonly #instances: Instance[] = []

  instance(options: InstanceOptions = {}): Instance {
    const one = new Instance(this, options)
    this.#instances.push(one)
    return one
  }

  /** An instance that has read the digest and holds a lease. */
  async member(options: InstanceOptions = {}): Promise<Instance> {
    const one = this.instance(options)
    await one.follow()
    return one
  }

  /** Lets as much time pass as it takes until a server is trusted to have all members, with everybody still following. */
  async trusted(ms: number = 2 * FULL): Promise<void> {
    this.clock.advance(ms)
    for (const one of this.#instances) if (one.sessions.length > 0) await one.follow()
  }

  /** Lets time pass in steps, and everything go on in between. */
  async pass(ms: number, stepMs = 10): Promise<void> {
    await turns()
    for (let left = ms; left > 0; left -= stepMs) {
      this.clock.advance(Math.min(stepMs, left))
      await turns()
    }
  }

  async close(): Promise<void> {
    for (const one of this.#instances) {
      one.verifier.close()
      one.recalls.close()
    }
  }
}

/** Lets everything go on that waits for nothing but its turn. */
export async function turns(count = 5): Promise<void> {
  for (let turn = 0; turn < count; turn++) await nextTurn()
}

export interface InstanceOptions {
  readonly recall?: boolean
  /** The channels it is given; the one of the world by default. */
  readonly channels?: readonly Channel[]
  readonly secrets?: readonly Uint8Array[]
  readonly leaseMs?: number
  /** What its store does otherwise. */
  readonly store?: Partial<Store>
}

/** What is done about one change. */
export interface Settling {
  done: boolean
  readonly ended: Promise<void>
  readonly seq: number
}

export class Instance {
  readonly verifier: Verifier
  readonly recalls: Recalls
  readonly told: Recalled[] = []
  readonly reported: unknown[] = []
  readonly #world: World
  readonly #leaseMs: number

  constructor(
    world: World,
    { recall = true, channels = [world.hub.channel()], secrets = [SECRET], leaseMs = LEASE, store: other }: InstanceOptions,
  ) {
    const { clock } = world
    const store = { ...world.data.store(), ...other } as Store
    const report = (error: unknown): void => void this.reported.push(error)
    this.#world = world
    this.#leaseMs = leaseMs
    this.verifier = new Verifier({
      ...{ store, cache: undefined, clock, serverSecrets: secrets, leaseMs, maxKnownSecrets: 1_000, report },
      mode: recall ? 'recall' : 'feed',
      channels: recall ? channels.slice(0, 1).map(({ name }) => name) : [],
      hearsRecalls: () => this.recalls.isHeard(),
      answeredBy: (server, position) => this.recalls.answeredBy(server, position),
      listen: () => this.recalls.listen(),
      settled: async () => {},
    })
    this.recalls = new Recalls({
      ...{ store, clock, channels: recall ? channels : [], serverSecrets: secrets, report },
      tell: (recalled) => void this.told.push(recalled),
      follower: this.verifier.follower,
      enabled: recall,
      contradict: (change, position) => this.verifier.contradict(change, position),
      inBackground: (work) => this.verifier.inBackground(work),
    })
  }

  get sessions(): readonly string[] {
    return this.verifier.follower.sessions
  }

  /** Reads the feed until it holds a lease, and the digest too. */
  async follow(digest: string = DIGEST): Promise<void> {
    const { follower } = this.verifier
    await this.verifier.verify(digest)
    for (let tries = 0; tries < 5; tries++) {
      await turns()
      await follower.poll()
      if (follower.isFollowed(this.#world.clock.monotonicMs(), this.#world.clock.wallMs())) return
    }
    throw new Error('It is granted no lease.')
  }

  accepts(digest: string = DIGEST): boolean {
    return this.verifier.peek(digest)?.ok === true
  }

  /** Commits a change that retires digests, and waits for the others. */
  retire(digests: readonly string[] = [DIGEST]): Settling {
    this.#world.data.retire(digests)
    return this.settle({ retired: { digests, reason: 'rotated' } })
  }

  /** Waits for the others about a change that is committed. */
  settle(change: Contradiction | undefined, waitMs: number = this.#leaseMs): Settling {
    if (!this.#world.oneProcess) neighbours.clear()
    const ended = this.recalls.settled({ change, committedAt: this.#world.clock.monotonicMs(), waitMs })
    const settling: Settling = { done: false, ended, seq: this.#world.data.seq }
    void ended.then(() => {
      settling.done = true
    })
    return settling
  }
}

/** A database, as far as instances read and join. */
export class Data {
  storeId = 'the data'
  server: string | undefined = 'server one'
  leaseMs: number = LEASE
  lowered = false
  readonly changes: FeedChange[] = [{ seq: 0, tag: tag(), digests: [] }]
  readonly members: Map<string, MemberRow> = new Map()
  readonly retired: Set<string> = new Set()
  readonly removed: string[] = []
  /** The sessions of each call. */
  readonly revocations: (readonly string[])[] = []
  readonly #clock: TestClock
  #held: Promise<void> | undefined

  constructor(clock: TestClock) {
    this.#clock = clock
  }

  /** Takes its changes back to a number, as a restored database does, and makes as many others. */
  forkFrom(seq: number): void {
    const lost = this.changes.splice(seq + 1).length
    for (let n = 0; n < lost; n++) this.retire(['of the other history'])
  }

  /** Where its feed is. */
  get position(): FeedPosition {
    const { seq, tag } = this.#newest
    return { seq, tag }
  }

  get seq(): number {
    return this.#newest.seq
  }

  get #newest(): FeedChange {
    return this.changes.at(-1) as FeedChange
  }

  retire(digests: readonly string[]): void {
    for (const digest of digests) this.retired.add(digest)
    this.changes.push({ seq: this.seq + 1, tag: tag(), digests })
  }

  /** Adds a member that nobody stands behind. */
  ghost(session: string, more: Partial<MemberRow> = {}): void {
    const joinedAt = this.#clock.wallMs()
    this.members.set(session, { session, mode: 'recall', channels: ['fake'], revoked: false, acked: 0, joinedAt, ...more })
  }

  alter(session: string, more: Partial<MemberRow>): void {
    const row = this.members.get(session)
    if (row !== undefined) this.members.set(session, { ...row, ...more })
  }

  /** Keeps the answers of reads back, as they are at the time of asking, until told to let go. */
  hold(): () => void {
    let release = (): void => {}
    this.#held = new Promise((resolve) => {
      release = resolve
    })
    return () => {
      this.#held = undefined
      release()
    }
  }

  membership(after?: number): Membership {
    const { storeId, server, leaseMs: waitMs, lowered } = this
    const { seq, tag } = this.#newest
    return {
      at: this.#clock.wallMs(),
      storeId,
      server,
      waitMs,
      lowered,
      seq,
      tag,
      tagAfter: this.#tagOf(after),
      members: [...this.members.values()],
    }
  }

  store(): Partial<Store> {
    return {
      shared: true,
      read: async (digests, reader) => {
        const answer = this.#answer(digests, reader?.session, reader?.after)
        await this.#held
        return answer
      },
      members: async (after) => this.membership(after),
      join: async (member: Member) => {
        if (!this.members.has(member.session)) this.ghost(member.session, member)
      },
      leave: async (session) => void this.members.delete(session),
      acknowledge: async (session, { seq, tag }) => {
        if (this.#tagOf(seq) === tag) this.alter(session, { acked: Math.max(seq, this.members.get(session)?.acked ?? 0) })
      },
      revokeMembers: async (sessions) => {
        this.revocations.push(sessions)
        for (const session of sessions) this.alter(session, { revoked: true })
      },
      removeMembers: async (sessions) => {
        for (const session of sessions) {
          if (!this.members.get(session)?.revoked) continue
          this.members.delete(session)
          this.removed.push(session)
        }
      },
      setLease: async () => ({ waitMs: 0, version: 1 }),
      markFirstUse: async () => ({ retired: [], waitMs: 0 }),
    }
  }

  #tagOf(seq: number | undefined): string | undefined {
    return this.changes.find((one) => one.seq === seq)?.tag
  }

  #answer(digests: readonly string[], session: string | undefined, after: number | undefined): AuthorityAnswer {
    const { seq, tag } = this.#newest
    const row = session === undefined ? undefined : this.members.get(session)
    const at = this.#clock.wallMs()
    return {
      at,
      storeId: this.storeId,
      server: this.server,
      leaseMs: this.leaseMs,
      feed: {
        seq,
        tag,
        prunedTo: 0,
        tagAfter: this.#tagOf(after),
        changes: after === undefined ? [] : this.changes.filter((one) => one.seq > after),
      },
      member: row === undefined ? 'none' : row.revoked ? 'revoked' : 'active',
      found: digests.map((digest) => ({ key, generation: { ...generation, digest, ...(this.retired.has(digest) ? ENDED : {}) } })),
    }
  }
}

/** Carries messages between the channels that are opened on it, in the next turn, but for what a test does to them. */
export class Hub {
  readonly name: string
  /** Every message that was sent. */
  readonly sent: { readonly address: string; readonly message: string }[] = []
  fault: Fault = (message) => [message]
  isOpen = true
  readonly #listeners = new Map<string, Set<(message: string, address: string) => void>>()

  constructor(name: string) {
    this.name = name
  }

  /** How many listen under some address. */
  get listeners(): number {
    return [...this.#listeners.values()].reduce((sum, { size }) => sum + size, 0)
  }

  channel(): Channel {
    return {
      name: this.name,
      listen: async (addresses, listener) => {
        for (const address of addresses) this.#under(address).add(listener)
        return () => {
          for (const address of addresses) this.#under(address).delete(listener)
        }
      },
      send: async (address, message) => {
        this.sent.push({ address, message })
        for (const one of this.fault(message, address)) setImmediate(() => this.deliver(address, one))
      },
      isOpen: () => this.isOpen,
      close: async () => {},
    }
  }

  deliver(address: string, message: string): void {
    for (const listener of [...this.#under(address)]) listener(message, address)
  }

  #under(address: string): Set<(message: string, address: string) => void> {
    const listeners = this.#listeners.get(address) ?? new Set()
    this.#listeners.set(address, listeners)
    return listeners
  }
}

function tag(): string {
  return randomBytes(16).toString('base64url')
}

const key: KeyRow = {
  ...{
    id: '00000000-0000-7000-8000-000000000001',
    ownerId: 'acme',
    name: 'ci',
    environment: 'live',
    scopes: [],
    metadata: {},
    allowedIps: null,
  },
  ...{
    generation: 1,
    createdAt: 1,
    updatedAt: 1,
    expiresAt: null,
    disabledAt: null,
    revokedAt: null,
    revokedReason: null,
    rotatedTo: null,
  },
  ...{ secretStart: 'sk_live_', secretLast4: '1234', secretCreatedAt: 1 },
  ...{ lastUsedAt: null, lastUsedIp: null, lastUsedUserAgent: null },
}

const generation: GenerationRow = {
  ...{
    digest: DIGEST,
    keyId: key.id,
    generation: 1,
    createdAt: 1,
    retiredAt: null,
    graceEndsAt: null,
    retiredBy: null,
    retiredReason: null,
  },
  ...{ firstUsedAt: 1, retiresEarlier: false, rotationSecretHash: null, secretStart: 'sk_live_', secretLast4: '1234' },
}

const ENDED: Partial<GenerationRow> = { retiredAt: 1, retiredReason: 'rotated' }
