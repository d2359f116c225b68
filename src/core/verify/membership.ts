import { randomBytes } from 'node:crypto'
import type { MemberMode, Store } from '../../store/store.js'
import type { Clock } from '../clock.js'
import { marginMs } from './verdict.js'

/** What could not be written to the store is tried again after this long, at the next answer. */
const AGAIN_MS = 1_000
/** Older sessions than these have been waited for in full. */
const MOST_SESSIONS = 8

export interface MembershipParts {
  readonly store: Store
  readonly clock: Clock
  /** The lease that this instance was started with. */
  readonly leaseMs: number
  readonly mode: MemberMode
  /** The names of the channels on which this instance hears recalls. */
  readonly channels: readonly string[]
  readonly inBackground: (work: Promise<unknown>) => void
}

/** The sessions of one instance, as a member of those that a change may have to wait for. */
export interface Membership {
  /** The one that leases are granted under; undefined while there is none. */
  current(): string | undefined
  /** All that may still be waited for. */
  sessions(): readonly string[]
  /** Joins under a new session, unless that is under way; calls `done` once it has. */
  join(done: () => void): void
  /** The current session counts no more. */
  lapse(): void
  leave(): Promise<void>
}

export function membership({ store, clock, mode, channels, inBackground }: MembershipParts): Membership {
  let session: string | undefined
  let joining = false
  let left = false
  let failedAt = Number.NEGATIVE_INFINITY
  const all: string[] = []

  return {
    current: () => session,
    sessions: () => all,
    lapse() {
      session = undefined
    },
    join(done) {
      if (joining || left || clock.monotonicMs() - failedAt < AGAIN_MS) return
      joining = true
      inBackground(
        joinAs(randomBytes(16).toString('base64url'), done).finally(() => {
          joining = false
        }),
      )
    },
    async leave() {
      left = true
      session = undefined
      await Promise.all(all.splice(0).map((one) => store.leave(one)))
    },
  }

  async function joinAs(fresh: string, done: () => void): Promise<void> {
    // Before anybody can see it: who is asked answers for it from then on.
    all.push(fresh)
    if (all.length > MOST_SESSIONS) all.shift()
    try {
      await store.join({ session: fresh, mode, channels })
    } catch (error) {
      failedAt = clock.monotonicMs()
      throw error
    }
    if (left) {
      await store.leave(fresh)
      return
    }
    session = fresh
    done()
  }
}

/**
 * Says which lease this instance was started with; the store keeps all instances at one value. Done once, by the first answer at the latest. Whoever
 * lowers it ends what was granted before, in full by its own clock.
 */
export function declaration({ store, clock, leaseMs, inBackground }: MembershipParts): { declare(): Promise<void>; answered(): void } {
  let declaredAt = Number.NEGATIVE_INFINITY
  let declared = false
  /** An earlier, longer lease that may still be held: since when this process knows that nobody is granted it any more. */
  let lowered: { readonly version: number; readonly sinceMs: number; readonly waitMs: number } | undefined

  return {
    declare,
    answered() {
      const now = clock.monotonicMs()
      if (!declared && now - declaredAt > AGAIN_MS) inBackground(declare())
      if (lowered !== undefined && now - lowered.sinceMs >= lowered.waitMs + marginMs(lowered.waitMs)) settle(lowered)
    },
  }

  async function declare(): Promise<void> {
    declaredAt = clock.monotonicMs()
    const { waitMs, version } = await store.setLease(leaseMs)
    declared = true
    if (waitMs > 0) lowered = { version, sinceMs: clock.monotonicMs(), waitMs }
  }

  function settle(over: NonNullable<typeof lowered>): void {
    lowered = undefined
    inBackground(
      store.settleLease(over.version).catch((error: unknown) => {
        lowered = over
        throw error
      }),
    )
  }
}
