import type { ApiKeyError } from '../../errors.js'
import type { GenerationRow, KeyRow, ReplayRow, StoreTransaction } from '../../store/store.js'
import { type AuditTrail, actorName } from '../audit.js'
import type { Clock } from '../clock.js'
import { digestOf } from '../secret.js'
import { endedBecause } from '../verify/verdict.js'
import type { Effect } from './change.js'
import { type Facts, type Proof, refusalOf } from './refusal-order.js'
import { newRecord, type PlannedChange } from './replay-record.js'
import type { Seals } from './replay-seal.js'
import type { MintedRotationSecret } from './rotation-secret.js'

/** A change, with all that is known about it before its transaction. */
export interface PreparedChange extends PlannedChange {
  readonly proof: Proof | undefined
  readonly minted: MintedRotationSecret | undefined
}

export type Outcome =
  | { readonly kind: 'refused'; readonly error: ApiKeyError }
  /** Another request has made the change meanwhile, and its answer is there. */
  | { readonly kind: 'recorded' }
  | AppliedChange

interface AppliedChange {
  readonly kind: 'applied'
  readonly effect: Effect
  readonly record: ReplayRow | undefined
  /** The longest lease that may contradict it. */
  readonly waitMs: number
  /** What the store's clock showed. */
  readonly now: number
  /** What this process's clock showed before that. */
  readonly askedAt: number
}

/**
 * The one transaction of a change: effect, replay record and audit line commit together, so there is no "in progress" state that a crash could leave
 * behind. A killed process is a rollback.
 */
export function changeTransaction(parts: {
  readonly clock: Clock
  readonly seals: Seals
  readonly audit: AuditTrail
}): (prepared: PreparedChange) => Promise<Outcome> {
  const { clock, seals, audit } = parts
  return (prepared) =>
    audit.transaction(async (tx, write): Promise<Outcome> => {
      const read = await readUnderLocks(tx, clock, prepared)
      if (read === 'recorded') return { kind: 'recorded' }
      const error = refusalOf(factsOf(prepared, read))
      if (error !== undefined) return { kind: 'refused', error }

      const { change, command, plan, minted } = prepared
      const { caller, target, now, askedAt } = read
      const effect = await change.apply(tx, { caller, target, now, recordId: plan.ids[0] ?? null, minted })
      await tx.appendChange([...(effect.retired?.digests ?? []), ...(effect.changed ?? [])])
      const record = newRecord(seals, prepared, effect, now)
      if (record !== undefined) await tx.insertReplay(record)
      const actor = actorName(command.as, caller)
      for (const event of effect.events) await write(now, { ...event, actor, origin: command.origin })
      return { kind: 'applied', effect, record, waitMs: effect.waits ? await tx.waitMs() : 0, now, askedAt }
    })
}

/** What a change is decided by under the locks. */
interface ReadUnderLocks {
  readonly caller: KeyRow | undefined
  readonly target: KeyRow | undefined
  /** Of the secret that is presented. */
  readonly generation: GenerationRow | undefined
  readonly now: number
  readonly askedAt: number
}

/** Locks first, then reads: what was read before may have changed while this waited for its twin. */
async function readUnderLocks(
  tx: StoreTransaction,
  clock: Clock,
  { change, presented, plan }: PreparedChange,
): Promise<ReadUnderLocks | 'recorded'> {
  // A key's duplicates queue on its row; an operator and the application have none.
  const { idempotencyKey } = plan.credentials
  // Named without the server's secret: while that is being changed, two instances know one record by two ids.
  if (presented === undefined && idempotencyKey !== '') await tx.lockName(digestOf(JSON.stringify([plan.callerId, idempotencyKey])))
  const callerId = presented?.key.id
  const targetId = change.target === 'self' ? callerId : (change.target ?? undefined)
  const locked = await tx.lockKeys([...new Set([callerId, targetId])].filter((id) => id !== undefined))
  const caller = locked.find(({ id }) => id === callerId)
  const target = locked.find(({ id }) => id === targetId)
  if (plan.ids.length > 0 && (await tx.replay(plan.ids)) !== undefined) return 'recorded'
  const generation = presented === undefined ? undefined : await tx.generation(presented.digest)
  const askedAt = clock.monotonicMs()
  const now = await tx.now()
  return { caller, target, generation, now, askedAt }
}

function factsOf({ change, command, presented, proof }: PreparedChange, { caller, target, generation, now }: ReadUnderLocks): Facts {
  const known: Facts['presented'] =
    caller === undefined || generation === undefined
      ? 'unknown'
      : { key: caller, generation, ended: endedBecause(caller, generation, now), own: target?.id === caller.id }
  return { change, command, presented: presented === undefined ? undefined : known, proof, target, overLimit: false }
}
