import { ApiKeyError } from '../../errors.js'
import type { KeyRow, ReplayRow, Store, StoreTransaction } from '../../store/store.js'
import type { Background } from '../background.js'
import type { Clock } from '../clock.js'
import { failureOf } from '../failures.js'
import type { Recalls } from '../recall/recalls.js'
import { digestOf } from '../secret.js'
import { marginMs } from '../verify/verdict.js'
import type { Contradiction, Verifier } from '../verify/verifier.js'
import type { FinishedChange } from './change.js'
import { type SealedAnswer, superseded } from './replay-decision.js'
import { sealable } from './replay-record.js'
import type { SealCredentials, Seals } from './replay-seal.js'

/** A change that is committed, and what its answer has to wait for. */
export interface CommittedChange {
  readonly answer: SealedAnswer
  /** null where it is recorded nowhere. */
  readonly recordId: string | null
  /** Whether its leases are known to be over. */
  readonly settled: boolean
  readonly replayed: boolean
  /** Whether what instances know may contradict it. */
  readonly contradicted: boolean
  /** What it ended and changed; undefined where that is not known. */
  readonly change: Contradiction | undefined
  /** The longest such lease. */
  readonly waitMs: number
  /** What the store's clock showed. */
  readonly now: number
  /** What this process's clock showed before that. */
  readonly askedAt: number
  /** When this process knew that the change is committed. */
  readonly committedAt: number
  /** When this process knew that all of it is, the end of a grace period too: every lease that can contradict it was asked for before. */
  readonly waitFrom: number
}

export interface FinishParts {
  readonly store: Store
  readonly clock: Clock
  readonly verifier: Verifier
  readonly recalls: Recalls
  readonly waitForLease: boolean
  readonly background: Background
  readonly report: (error: unknown) => void
}

/** An answer that took longer than this from the commit needs another look at whether a rotation came in between. */
const AT_ONCE_MS = 100

export interface Finisher {
  /** Waits for the leases that may contradict a change, settles its record, and makes its answer. */
  finish(committed: CommittedChange): Promise<FinishedChange>
  /** Resolves when none of these records is just being settled by this process. Whoever reads one before that would wait for the leases once more. */
  settled(recordIds: readonly string[]): Promise<void>
}

export function finisher(parts: FinishParts): Finisher {
  const { store, clock, verifier, recalls, waitForLease, background, report } = parts
  const settling = new Map<string, Promise<void>>()
  return { finish, settled: async (recordIds) => void (await Promise.all(recordIds.map((id) => settling.get(id)))) }

  async function finish(committed: CommittedChange): Promise<FinishedChange> {
    const { answer, settled } = committed
    if (answer.secret !== undefined) verifier.introduce(digestOf(answer.secret), answer.key.id)
    // A record is settled when its leases are over, even if this answer does not wait for that: another instance may, and goes by it.
    // Another rotation may have come in between: a secret that is dead already is not handed out. Asked at the same time as the wait begins, and again where it took long.
    const asks = answer.secret !== undefined && !settled
    const atOnce = asks ? supersededSince(answer.key) : Promise.resolve(false)
    if (waitForLease) await settle(committed)
    else background.add(settle(committed))
    const late = clock.monotonicMs() - committed.committedAt > AT_ONCE_MS
    if ((await atOnce) || (asks && late && (await supersededSince(answer.key)))) throw superseded()
    return finished(committed, waitForLease || !store.shared)
  }

  async function settle(committed: CommittedChange): Promise<void> {
    const { recordId, settled, contradicted, change, committedAt, waitFrom, waitMs } = committed
    const known = contradicted ? recalls.settled({ change, committedAt: waitFrom, waitMs }) : Promise.resolve()
    if (mustWait(committed)) await known
    else background.add(known)
    // The answer need not wait for this: without it a replay waits once more.
    if (recordId === null || settled) return
    const written = store.settle(recordId, clock.monotonicMs() - committedAt).catch(report)
    const under = written.finally(() => {
      if (settling.get(recordId) === under) settling.delete(recordId)
    })
    settling.set(recordId, under)
    background.add(under)
  }

  async function supersededSince(key: KeyRow): Promise<boolean> {
    try {
      const current = await store.key(key.id)
      return current === undefined || current.key.generation !== key.generation || current.generation.retiredAt !== null
    } catch (error) {
      // The client may hold a dead key by now: an answer that is probably good beats none.
      report(error)
      return false
    }
  }
}

/** Where the old secret ends at an instant to come, only a lease that may outlast that can contradict the change. */
function mustWait(committed: CommittedChange): boolean {
  return committed.contradicted && !((committed.answer.acceptedUntil ?? 0) > leasesOverAt(committed))
}

/** When the last lease from before the commit is over, by the store's clock. */
function leasesOverAt({ now, askedAt, waitFrom, waitMs }: CommittedChange): number {
  return now + (waitFrom - askedAt) + waitMs + marginMs(waitMs)
}

function finished(committed: CommittedChange, waited: boolean): FinishedChange {
  const { key, secret, rotationSecret, acceptedUntil: graceEndsAt = 0 } = committed.answer
  // On the store's clock, as every instant that is told: that of this machine may be wrong.
  const lastLease = mustWait(committed) && !waited ? Math.ceil(leasesOverAt(committed)) : 0
  const acceptedUntil = Math.max(graceEndsAt, lastLease)
  return { key, secret, rotationSecret, replayed: committed.replayed, acceptedUntil: acceptedUntil === 0 ? undefined : acceptedUntil }
}

/** A record that is kept, and what its seal is made with. */
export interface KeptRecord {
  readonly record: ReplayRow
  /** Of the server secret that named it. */
  readonly index: number
  readonly credentials: SealCredentials
}

/** What became of a grace period after COMMIT. */
export interface GraceEnd {
  /** What the answer says otherwise than before. */
  readonly answer: Pick<SealedAnswer, 'acceptedUntil'>
  /** Of the secret that it is about, where its end may have changed. */
  readonly digest?: string | undefined
  /** The longest lease that may have been granted until then. */
  readonly waitMs?: number
  /** When this process knew. */
  readonly at: number
}

export interface GraceParts {
  readonly store: Store
  readonly clock: Clock
  readonly seals: Seals
  readonly report: (error: unknown) => void
}

/**
 * Counts a grace period from the commit, where its end is provisional, and seals the answer again with the end that it has now. The first to seal it again
 * decides: the process that made the change, or a replay that found it before that was done. Where that fails, nothing is told yet of a rotation that can
 * be asked for again: its repetition decides. Where there is no record, the provisional end stays, and is told.
 */
export function graceEnder(
  parts: GraceParts,
): (answer: SealedAnswer, kept: KeptRecord | undefined, storeCommittedAt?: number) => Promise<GraceEnd> {
  const { store, clock, seals, report } = parts
  return async (answer, kept, storeCommittedAt) => {
    const { acceptedUntil: from, graceMs } = answer
    if (from === undefined || graceMs === undefined) return { answer: {}, at: clock.monotonicMs() }
    // Again where nobody knows whether it was done: the second time tells what the first one did.
    for (let tries = 0, unknown = true; unknown && tries < 2; tries++) {
      try {
        const lowered = await store.transaction((tx) => lower(tx, answer, { from, graceMs }, kept, storeCommittedAt))
        return { ...lowered, at: clock.monotonicMs() }
      } catch (error) {
        report(error)
        unknown = failureOf(error).code === 'outcome_unknown'
        // An end that is told must not be lowered any more, and a replay may still do that.
        if (kept?.record.sealed != null && !(unknown && tries === 0)) throw unanswered(error)
      }
    }
    return { answer: {}, at: clock.monotonicMs() }
  }

  async function lower(
    tx: StoreTransaction,
    answer: SealedAnswer,
    { from, graceMs }: { readonly from: number; readonly graceMs: number },
    kept: KeptRecord | undefined,
    storeCommittedAt: number | undefined,
  ): Promise<Omit<GraceEnd, 'at'>> {
    const { key } = answer
    await tx.lockKeys([key.id])
    const to = Math.min(from, Math.ceil((storeCommittedAt ?? (await tx.now())) + graceMs))
    if (await resealed(tx, { ...answer, acceptedUntil: to }, kept)) await tx.lowerGrace(key.id, key.generation - 1, { from, to })
    const old = await tx.generationOf(key.id, key.generation - 1)
    if (old !== undefined) await tx.appendChange([old.digest])
    return { answer: { acceptedUntil: old?.graceEndsAt ?? to }, digest: old?.digest, waitMs: await tx.waitMs() }
  }

  async function resealed(tx: StoreTransaction, { graceMs: _, ...answer }: SealedAnswer, kept: KeptRecord | undefined): Promise<boolean> {
    const from = kept?.record.sealed ?? null
    if (kept === undefined || from === null) return true
    const { record, index, credentials } = kept
    return tx.reseal(record.id, { from, to: seals.seal(record, credentials, sealable(answer), index) })
  }
}

/** A change that was made, and cannot be answered. */
export function unanswered(cause: unknown): ApiKeyError {
  return new ApiKeyError(
    'outcome_unknown',
    'The change was made, and its answer could not be. Repeat the request with the same Idempotency-Key.',
    { cause },
  )
}
