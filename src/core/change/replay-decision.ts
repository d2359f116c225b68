import { ApiKeyError, type RejectionReason } from '../../errors.js'
import type { GenerationRow, KeyRow, ReplayRow } from '../../store/store.js'

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
export interface ReplayCase {
  readonly record: ReplayRow
  /** The generation that the recorded mutation made; undefined where it made none. */
  readonly made: GenerationRow | undefined
  /** The store's clock. */
  readonly now: number
  /** Whether the request is the recorded one. */
  readonly sameRequest: boolean
  /** Whether the caller's credential is still good: a live caller must not be told 401, since clients delete their key on it. */
  readonly active: boolean
  /** How long beyond its window a record may be open whose commit nobody has timed. */
  readonly allowanceMs: number
  /** Opens the seal with the caller's credentials; undefined where it does not open. */
  open(sealed: string): string | undefined
}

/**
 * Decides whether a recorded answer is given, or why not. How often it was given before does not matter: a thief needs it once, and a client may lose any
 * number of answers. The window, the first use and the next change close a record.
 */
export function decideReplay({ record, made, now, sameRequest, active, allowanceMs, open }: ReplayCase): SealedAnswer | ApiKeyError {
  if (!sameRequest) {
    return new ApiKeyError('idempotency_key_mismatch', 'This Idempotency-Key was used for another request; a new request needs a new one.')
  }
  if (record.generation !== null && (made === undefined || made.retiredReason === 'rotated')) return superseded()
  const closed =
    isClosed(record, allowanceMs, now) || (made !== undefined && (made.retiredAt !== null || isUsedUp(made, record.graceMs, now)))
  const opened = closed || record.sealed === null ? undefined : open(record.sealed)
  return opened === undefined ? (active ? spent() : invalidKey()) : (JSON.parse(opened) as SealedAnswer)
}

/** The stored end may have been moved by whoever can write to the store; creation and window are under the seal. */
function isClosed({ expiresAt, createdAt, windowMs }: ReplayRow, allowanceMs: number, now: number): boolean {
  return !(now < Math.min(expiresAt, createdAt + windowMs + allowanceMs))
}

function isUsedUp({ firstUsedAt }: GenerationRow, graceMs: number, now: number): boolean {
  return firstUsedAt !== null && firstUsedAt + graceMs <= now
}

export function superseded(): ApiKeyError {
  return new ApiKeyError('rotation_superseded', 'The key has been rotated again since; the secret of this rotation is no longer active.')
}

/** One refusal for every credential that is not good: a stranger learns nothing from it. */
export function invalidKey(reason?: RejectionReason | 'rotation_secret', keyId?: string): ApiKeyError {
  return new ApiKeyError('invalid_key', 'The API key is not valid.', { reason, keyId })
}

function spent(): ApiKeyError {
  return new ApiKeyError(
    'idempotency_key_spent',
    'What this Idempotency-Key stands for was done, and its answer can no longer be given; use a new one.',
  )
}
