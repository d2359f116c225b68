import { ApiKeyError } from '../../errors.js'
import type { GenerationRow, KeyRow, ReplayRow } from '../../store/store.js'
import { operatorOf } from '../actor.js'
import { invalidKey, keyDisabled, keyNotFound } from '../refusals.js'
import { type Facts, type KnownSecret, refusalOf } from './refusal-order.js'

/** What is sealed in a replay record. */
export interface SealedAnswer {
  readonly key: KeyRow
  readonly secret?: string
  readonly rotationSecret?: string
  readonly acceptedUntil?: number
  /** How long the grace period is, counted from the commit; only while `acceptedUntil` is provisional. */
  readonly graceMs?: number
}

/** A commit takes this long at most before a record that nobody settled closes, counted from its creation and its window. */
export const COMMIT_ALLOWANCE_MS = 600_000

/** What a replay is decided by. */
export interface ReplayCase extends Pick<Facts, 'change' | 'command' | 'target'> {
  readonly presented: KnownSecret | undefined
  readonly record: ReplayRow
  /** The generation that the recorded change made; undefined where it made none. */
  readonly made: GenerationRow | undefined
  /** The store's clock. */
  readonly now: number
  /** Whether the request is the recorded one. */
  readonly sameRequest: boolean
  /** Whether the record was found without an Idempotency-Key. */
  readonly withoutKey: boolean
  /** How long beyond its window a record may be open whose commit nobody has timed. */
  readonly allowanceMs: number
  /** Opens the seal with the caller's credentials; undefined where it does not open. */
  open(sealed: string): string | undefined
}

export type ReplayDecision =
  | { readonly kind: 'given'; readonly answer: SealedAnswer }
  /** `audited` where somebody has failed to open a record. */
  | { readonly kind: 'refused'; readonly error: ApiKeyError; readonly audited: boolean }
  /** Nothing is said of the record: the caller has not named it, and is told what it would be told without it. */
  | { readonly kind: 'passed over' }

/**
 * Decides whether a recorded answer is given. Limits do not matter, nor does how often it was given before: a thief needs it once, and a client may lose
 * any number of answers. The window, the first use of the new secret and the next change close a record.
 */
export function decideReplay(about: ReplayCase): ReplayDecision {
  const { change, command, presented, target } = about
  // A change of the caller's own key was lawful when it was made. The answer of one to another key is given only while the caller may still make it.
  const forbidden =
    presented?.own === true ? undefined : refusalOf({ change, command, presented, target, proof: undefined, overLimit: false })
  if (forbidden !== undefined) return { kind: 'refused', error: forbidden, audited: false }
  const answer = openedAnswer(about)
  if (answer instanceof ApiKeyError) {
    if (about.withoutKey) return { kind: 'passed over' }
    return { kind: 'refused', error: answer, audited: answer.code === 'invalid_key' || answer.code === 'idempotency_key_spent' }
  }
  const owners = operatorOf(command.as)?.owners
  // What was done for one owner is not shown to an operator that may act for another only.
  if (owners !== undefined && owners !== 'all' && !owners.includes(answer.key.ownerId)) {
    return { kind: 'refused', error: keyNotFound(), audited: false }
  }
  return { kind: 'given', answer }
}

function openedAnswer({ presented, record, made, now, sameRequest, allowanceMs, open }: ReplayCase): SealedAnswer | ApiKeyError {
  if (presented !== undefined && presented.key.revokedAt === null && presented.key.disabledAt !== null) return keyDisabled(presented.key.id)
  if (presented !== undefined && isDead(presented, record.id, now)) return invalidKey(presented.ended, presented.key.id)
  if (!sameRequest) {
    return new ApiKeyError('idempotency_key_mismatch', 'This Idempotency-Key was used for another request; a new request needs a new one.')
  }
  if (record.generation !== null && (made === undefined || made.retiredReason === 'rotated')) return superseded()
  const closed =
    isClosed(record, allowanceMs, now) || (made !== undefined && (made.retiredAt !== null || isUsedUp(made, record.graceMs, now)))
  const opened = closed || record.sealed === null ? undefined : open(record.sealed)
  if (opened !== undefined) return answerOf(opened, made)
  // A live caller must not be told 401: clients delete their key on it.
  return presented?.ended === undefined ? spent() : invalidKey()
}

/** An answer that was sealed before keys had `secretCreatedAt` gets it from its generation; one from before `allowedIps` was about a key without. */
function answerOf(opened: string, made: GenerationRow | undefined): SealedAnswer {
  const answer = JSON.parse(opened) as SealedAnswer
  const secretCreatedAt = answer.key.secretCreatedAt ?? made?.createdAt ?? answer.key.createdAt
  return {
    ...answer,
    key: { ...answer.key, secretCreatedAt, allowedIps: answer.key.allowedIps ?? null, disabledAt: answer.key.disabledAt ?? null },
  }
}

/** The one thing that a dead secret is still good for is the answer of the very change that retired it, and not once its key has expired. */
function isDead({ ended, key, generation }: KnownSecret, recordId: string, at: number): boolean {
  if (ended === undefined) return false
  return generation.retiredBy !== recordId || (key.expiresAt !== null && key.expiresAt <= at)
}

/** The stored end may have been moved by somebody who can write to the store; creation and window are under the seal. */
function isClosed({ expiresAt, createdAt, windowMs }: ReplayRow, allowanceMs: number, now: number): boolean {
  return !(now < Math.min(expiresAt, createdAt + windowMs + allowanceMs))
}

function isUsedUp({ firstUsedAt }: GenerationRow, graceMs: number, now: number): boolean {
  return firstUsedAt !== null && firstUsedAt + graceMs <= now
}

export function superseded(): ApiKeyError {
  return new ApiKeyError('rotation_superseded', 'The key has been rotated again since; the secret of this rotation is no longer active.')
}

function spent(): ApiKeyError {
  return new ApiKeyError(
    'idempotency_key_spent',
    'What this Idempotency-Key stands for was done, and its answer can no longer be given; use a new one.',
  )
}
