import type { EventType, JsonObject, KeyRow, StoreTransaction } from '../../store/store.js'
import type { Command } from '../api-keys.js'
import type { Reach } from './authorise.js'
import type { MintedRotationSecret } from './rotation-secret.js'

/** What a caller asks for, whatever the change is. */
export type ChangeCommand = Command & { readonly rotationSecret?: string; readonly retryFrom?: string }

/** One change that is asked for, as the run needs to know it. */
export interface Change {
  /** Names the command in the default fingerprint. */
  readonly name: 'create' | 'rotate' | 'revoke' | 'update' | 'disable' | 'enable'
  /** The key to change; `self` for the caller's own, null where the change makes one. */
  readonly target: string | 'self' | null
  /** Whose key it makes, where it makes one; undefined for the caller's own owner. */
  readonly ownerId?: string | undefined
  /** What it makes of the key, as far as that matters for who may do it; left out where it hands nothing out. */
  reach?(target: KeyRow | undefined): Reach | undefined
  /** Whether a key may do this to itself without `api_keys:write`. */
  readonly selfAllowed: boolean
  /** Whether a key that has a rotation secret needs it to do this to itself. Default false. */
  readonly rotationSecretGuards?: boolean
  /** Whether `apply` needs a new rotation secret, which takes too long to be made inside the transaction. Default never. */
  readonly mintsRotationSecret?: 'never' | 'like the target' | { readonly start: string }
  /** Whether its answer must not be kept, not even sealed. Default false. */
  readonly neverReplayed?: boolean
  /** Everything that a retry must repeat, for callers that gave no request of their own. */
  readonly fingerprint: unknown
  /** Writes the change, or throws why it cannot be made. */
  apply(tx: StoreTransaction, scene: Scene): Promise<Effect>
}

/** What a change starts from, under the locks. */
interface Scene {
  readonly caller: KeyRow | undefined
  readonly target: KeyRow | undefined
  /** The store's clock. */
  readonly now: number
  /** The replay record that retired generations point to; null where there is none. */
  readonly recordId: string | null
  readonly minted: MintedRotationSecret | undefined
}

/** What a change has written, before it is durable. */
export interface Effect {
  readonly key: KeyRow
  /** The new secret, where one was made. */
  readonly secret?: string
  /** The new rotation secret, where one was made. */
  readonly rotationSecret?: string
  /** Until when the old secret is still accepted, where it has a grace period. */
  readonly acceptedUntil?: number
  /** How long after the commit that is to be, where `acceptedUntil` is provisional. */
  readonly graceMs?: number
  /** Digests that are no longer accepted, and why. */
  readonly retired?: { readonly digests: readonly string[]; readonly reason: 'rotated' | 'revoked' }
  /** Digests whose verdict has changed but stays good. */
  readonly changed?: readonly string[]
  readonly events: readonly { readonly type: EventType; readonly key: KeyRow; readonly details: JsonObject }[]
  /** False where no lease can contradict the answer (a new key). */
  readonly waits: boolean
}

/** A change that is done and may be answered. */
export interface FinishedChange {
  readonly key: KeyRow
  readonly secret: string | undefined
  readonly rotationSecret: string | undefined
  readonly replayed: boolean
  /** Until when (ms since the epoch) what was retired may still be accepted, where it may. */
  readonly acceptedUntil: number | undefined
}
