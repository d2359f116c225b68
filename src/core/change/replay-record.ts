import type { ReplayRow } from '../../store/store.js'
import { operatorOf } from '../actor.js'
import type { Presented } from './authenticate.js'
import type { Change, ChangeCommand, Effect } from './change.js'
import { COMMIT_ALLOWANCE_MS, type SealedAnswer } from './replay-decision.js'
import type { RequestShape, SealCredentials, Seals } from './replay-seal.js'

/** Where the answer of a command is recorded, and what opens it. */
export interface RecordPlan {
  /** The ids that the record may have, one for each server secret, the current one first; none where the answer is recorded nowhere. */
  readonly ids: readonly string[]
  /** Whose record it is. */
  readonly callerId: string
  readonly credentials: SealCredentials
  readonly windowMs: number
  /** How much longer the window may seem to last, where the instant of the commit is not known. */
  readonly allowanceMs: number
  /** How long after the new secret's first use the answer can still be asked for. */
  readonly graceMs: number
  /** Whether the presented secret stands for an Idempotency-Key. */
  readonly withoutKey: boolean
}

/** A command whose answer may be recorded. */
export interface PlannedChange {
  readonly change: Change
  readonly command: ChangeCommand
  readonly presented: Presented | undefined
  readonly plan: RecordPlan
}

export interface RecordSettings {
  readonly seals: Seals
  readonly replayWindowMs: number
  readonly replayGraceMs: number
}

/** How long a rotation without an Idempotency-Key can be asked for again: long enough for some retries of a client, and little for a thief beside it. */
const WITHOUT_KEY_MS = 60_000

/** Plans the record of a command. One of the caller's own rotation needs no Idempotency-Key where `retryFrom` names a network. */
export function recordPlan(
  { seals, replayWindowMs, replayGraceMs }: RecordSettings,
  change: Change,
  command: ChangeCommand,
  presented: Presented | undefined,
): RecordPlan {
  const { idempotencyKey, rotationSecret, retryFrom } = command
  const callerId = callerIdOf(command, presented)
  const secret = presented?.secret ?? ''
  const withKey = {
    callerId,
    windowMs: replayWindowMs,
    allowanceMs: COMMIT_ALLOWANCE_MS,
    graceMs: replayGraceMs,
    withoutKey: false,
  }
  if (idempotencyKey !== undefined) {
    return { ...withKey, ids: seals.ids(callerId, idempotencyKey), credentials: { secret, rotationSecret, idempotencyKey } }
  }
  const credentials = { secret, rotationSecret, idempotencyKey: '', network: retryFrom }
  const repeatable = retryFrom !== undefined && presented?.own === true && change.name === 'rotate' && change.neverReplayed !== true
  if (!repeatable) return { ...withKey, ids: [], credentials }
  // A rotation of a key by itself succeeds once for each secret, so the secret can stand for the Idempotency-Key.
  return {
    ids: seals.idsWithoutKey(callerId, presented.digest),
    callerId,
    credentials,
    windowMs: Math.min(WITHOUT_KEY_MS, replayWindowMs),
    allowanceMs: 0,
    graceMs: 0,
    withoutKey: true,
  }
}

/** The record of a change that was made at `now`; undefined where it has none. */
export function newRecord(seals: Seals, { change, command, plan }: PlannedChange, effect: Effect, now: number): ReplayRow | undefined {
  const [id] = plan.ids
  if (id === undefined) return undefined
  const open = {
    id,
    callerId: plan.callerId,
    keyId: effect.key.id,
    generation: effect.secret === undefined ? null : effect.key.generation,
    fingerprint: seals.fingerprint(0, requestOf(change, command)),
    createdAt: now,
    windowMs: plan.windowMs,
    graceMs: plan.graceMs,
  }
  const sealed = change.neverReplayed ? null : seals.seal(open, plan.credentials, sealable(effect))
  return { ...open, sealed, expiresAt: now + plan.windowMs + plan.allowanceMs, settledAt: null }
}

/** What a retry has to repeat. */
export function requestOf(change: Change, { request }: ChangeCommand): RequestShape {
  return request ?? { method: change.name, path: change.target ?? '', body: change.fingerprint }
}

/** What is sealed of an answer. */
export function sealable({ key, secret, rotationSecret, acceptedUntil, graceMs }: SealedAnswer): string {
  return JSON.stringify({ key, secret, rotationSecret, acceptedUntil, graceMs } satisfies {
    readonly [name in keyof SealedAnswer]: SealedAnswer[name] | undefined
  })
}

function callerIdOf({ as }: ChangeCommand, presented: Presented | undefined): string {
  if (presented !== undefined) return presented.key.id
  const operator = operatorOf(as)
  return operator === undefined ? 'application' : `operator:${JSON.stringify([operator.issuer, operator.subject])}`
}
