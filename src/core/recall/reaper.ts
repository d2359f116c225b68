import type { MemberRow } from '../../store/store.js'

/** What this process knows of members that were waited for in vain. */
export interface Reaper {
  /** Takes note of who is revoked, as was just read. */
  saw(members: readonly MemberRow[], nowMs: number): void
  /** Takes note of who was just marked as revoked. */
  revoked(sessions: readonly string[], nowMs: number): void
  /** Whether a member is known to be revoked. */
  knows(session: string): boolean
  /** Whether a member has been known to be revoked for this long: whatever lease it held is over. */
  isOver(session: string, forMs: number, nowMs: number): boolean
}

/**
 * Reaping takes two steps. Who is revoked is granted no lease any more; only a lease later is what it was granted before over, by the clock of whoever counts. So
 * a crash slows down one rotation, and a wrong suspicion costs a registration.
 */
export function reaper(): Reaper {
  /** Since when each is known to be revoked, on the monotonic clock. */
  const revoked = new Map<string, number>()
  return {
    saw(members, nowMs) {
      const now = new Set(members.filter(({ revoked: is }) => is).map(({ session }) => session))
      for (const session of revoked.keys()) if (!now.has(session)) revoked.delete(session)
      for (const session of now) if (!revoked.has(session)) revoked.set(session, nowMs)
    },
    revoked(sessions, nowMs) {
      for (const session of sessions) if (!revoked.has(session)) revoked.set(session, nowMs)
    },
    knows: (session) => revoked.has(session),
    isOver(session, forMs, nowMs) {
      const since = revoked.get(session)
      return since !== undefined && nowMs - since >= forMs
    },
  }
}

/** A member that only reads is waited for in full each time, and never says anything. One that has been there for this long is asked to join again. */
const SILENT_MS = 3_600_000

/** The members that only read and may be long gone, by the store's clock: a mistake costs a registration. */
export function longSilent(members: readonly MemberRow[], at: number): readonly MemberRow[] {
  return members.filter(({ mode, joinedAt }) => mode === 'feed' && at - joinedAt > SILENT_MS)
}
