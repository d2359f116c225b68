import { ApiKeyError } from '../../errors.js'
import type { GenerationRow, KeyRow } from '../../store/store.js'
import { operatorOf } from '../actor.js'
import { invalidKey, keyDisabled, keyRevoked } from '../refusals.js'
import type { EndReason } from '../verify/verdict.js'
import { authorise } from './authorise.js'
import type { Change, ChangeCommand } from './change.js'

/** The credentials of a command as they are written. */
interface Credentials {
  readonly secret: Form
  readonly rotationSecret: Form
  readonly target: Change['target']
}
export type Form = 'none' | 'malformed' | 'well-formed'

/** What a change is refused by. */
export interface Facts {
  readonly change: Change
  readonly command: Pick<ChangeCommand, 'as' | 'delegation'>
  /** The secret that is presented, where one is. */
  readonly presented: 'unknown' | KnownSecret | undefined
  /** What came of comparing the rotation secret that is presented; undefined where none is, and where a seal proves it. */
  readonly proof: Proof | undefined
  /** The key to change; undefined where one is made or where there is none of that id. */
  readonly target: KeyRow | undefined
  /** Whether only a recorded answer may be given. */
  readonly overLimit: boolean
}

/** A secret that was issued once, as the authority knows it. */
export interface KnownSecret {
  readonly key: KeyRow
  readonly generation: GenerationRow
  /** Why it is not accepted any more; undefined while it is. */
  readonly ended: EndReason | undefined
  /** Whether the change is to its own key. */
  readonly own: boolean
}

/** The hash that a rotation secret fits, or why it fits none. */
export type Proof = { readonly hash: string } | 'wrong' | 'not configured'

export type Check<Known> = (known: Known) => ApiKeyError | undefined

export interface RefusalOrder {
  /** How the credentials are written. Nothing is read for this. */
  readonly form: readonly Check<Credentials>[]
  /** Whose secret it is. After this a recorded answer is looked for, and may be given whatever stands below: see replay-decision.ts. */
  readonly identity: readonly Check<Pick<Facts, 'presented'>>[]
  /** Whether the secret is still accepted. */
  readonly life: readonly Check<Facts>[]
  /** Whether the caller has the second credential, where it presents one. */
  readonly proof: readonly Check<Facts>[]
  /** Whether the caller may make this change to this key. */
  readonly rights: readonly Check<Facts>[]
}

/**
 * Why a change is refused. The order is the security policy: the first check that refuses, from the top, is the answer. So what stands below is told only
 * to callers that have passed what stands above. Each part is checked as soon as what it needs is known, and all but the first once more under the locks.
 */
export const REFUSAL_ORDER: RefusalOrder = {
  form: [
    rotationSecretWithoutSecret,
    selfWithoutSecret,
    malformedSecret,
    // Refused like a wrong one: the answer must not tell which of two credentials is bad.
    malformedRotationSecret,
  ],
  identity: [unknownSecret],
  life: [
    // Told only to the holder of both credentials, and with 403: clients delete their key on 401.
    revokedForBothCredentials,
    // The same for a key that has no second credential.
    revokedWithoutRotationSecret,
    // With 403 too: it may be enabled again.
    disabledKey,
    // The same 401 whatever ended it, over the limit too.
    endedSecret,
    // Before anything is compared: that costs bcrypt.
    secretOverLimit,
  ],
  proof: [
    rotationSecretNotConfigured,
    wrongRotationSecret,
    // Refuses under the locks only: the hash that was compared before them has to be the one that counts now.
    rotationSecretComparedWithAnotherHash,
    // Before the rights: a thief of the old secret could end the new one.
    secretInGrace,
  ],
  rights: [
    // A key of another owner is as unknown as one that does not exist; then the scope; then what it may hand out.
    unauthorised,
    // Before a new rotation secret is made, which costs bcrypt.
    missingRotationSecret,
    // Of an operator or the application; a key over its limit does not come this far.
    overLimit,
  ],
}

/** Why a change of which everything is known is refused; undefined where it is not. */
export function refusalOf(facts: Facts): ApiKeyError | undefined {
  const { identity, life, proof, rights } = REFUSAL_ORDER
  return firstRefusal<Facts>([...identity, ...life, ...proof, ...rights], facts)
}

export function firstRefusal<Known>(checks: readonly Check<Known>[], known: Known): ApiKeyError | undefined {
  for (const check of checks) {
    const refusal = check(known)
    if (refusal !== undefined) return refusal
  }
  return undefined
}

function rotationSecretWithoutSecret({ secret, rotationSecret }: Credentials): ApiKeyError | undefined {
  if (secret !== 'none' || rotationSecret === 'none') return undefined
  return new ApiKeyError('invalid_request', 'A rotation secret belongs to the key that presents it.')
}

function selfWithoutSecret({ secret, target }: Credentials): ApiKeyError | undefined {
  if (secret !== 'none' || target !== 'self') return undefined
  return new ApiKeyError('invalid_request', 'Only a key has a "self"; name the key by its id.')
}

function malformedSecret({ secret }: Credentials): ApiKeyError | undefined {
  return secret === 'malformed' ? invalidKey('malformed') : undefined
}

function malformedRotationSecret({ rotationSecret }: Credentials): ApiKeyError | undefined {
  return rotationSecret === 'malformed' ? invalidKey() : undefined
}

function unknownSecret({ presented }: Pick<Facts, 'presented'>): ApiKeyError | undefined {
  return presented === 'unknown' ? invalidKey('unknown') : undefined
}

function revokedForBothCredentials({ presented, proof }: Facts): ApiKeyError | undefined {
  return isKnown(presented) && presented.ended === 'revoked' && isHash(proof) ? keyRevoked() : undefined
}

function revokedWithoutRotationSecret({ presented, proof }: Facts): ApiKeyError | undefined {
  return isKnown(presented) && presented.ended === 'revoked' && proof === 'not configured' ? noRotationSecret() : undefined
}

function disabledKey({ presented }: Facts): ApiKeyError | undefined {
  return isKnown(presented) && presented.ended === 'disabled' ? keyDisabled(presented.key.id) : undefined
}

function endedSecret({ presented }: Facts): ApiKeyError | undefined {
  return isKnown(presented) && presented.ended !== undefined ? invalidKey(presented.ended, presented.key.id) : undefined
}

function secretOverLimit(facts: Facts): ApiKeyError | undefined {
  return facts.presented === undefined ? undefined : overLimit(facts)
}

function rotationSecretNotConfigured({ proof }: Facts): ApiKeyError | undefined {
  return proof === 'not configured' ? noRotationSecret() : undefined
}

function wrongRotationSecret({ presented, proof }: Facts): ApiKeyError | undefined {
  return proof === 'wrong' ? invalidKey('rotation_secret', isKnown(presented) ? presented.key.id : undefined) : undefined
}

function rotationSecretComparedWithAnotherHash({ presented, proof }: Facts): ApiKeyError | undefined {
  return isKnown(presented) && isHash(proof) && proof.hash !== presented.generation.rotationSecretHash ? invalidKey() : undefined
}

function secretInGrace({ presented }: Facts): ApiKeyError | undefined {
  if (!isKnown(presented) || presented.generation.retiredAt === null) return undefined
  return new ApiKeyError(
    'secret_in_grace',
    'This secret has been replaced. Until it ends it can be used, but it can change nothing; use the new one.',
  )
}

function unauthorised({ change, command: { as, delegation = 'bounded' }, presented, target }: Facts): ApiKeyError | undefined {
  const caller = isKnown(presented) ? presented.key : undefined
  return authorise({
    caller,
    operator: operatorOf(as),
    target,
    newOwnerId: change.target === null ? (change.ownerId ?? caller?.ownerId ?? '') : undefined,
    after: change.reach?.(target),
    selfAllowed: change.selfAllowed,
    delegation,
  })
}

function missingRotationSecret({ change, presented, proof }: Facts): ApiKeyError | undefined {
  const guarded =
    change.rotationSecretGuards === true && isKnown(presented) && presented.own && presented.generation.rotationSecretHash !== null
  if (!guarded || proof !== undefined) return undefined
  return new ApiKeyError('rotation_secret_required', 'This key has a rotation secret, and needs it to rotate itself.')
}

function overLimit(facts: Facts): ApiKeyError | undefined {
  return facts.overLimit ? new ApiKeyError('rate_limited', 'Too many requests; try again later.') : undefined
}

function isKnown(presented: Facts['presented']): presented is KnownSecret {
  return typeof presented === 'object'
}

function isHash(proof: Facts['proof']): proof is { readonly hash: string } {
  return typeof proof === 'object'
}

function noRotationSecret(): ApiKeyError {
  return new ApiKeyError(
    'rotation_secret_not_configured',
    'This key has no rotation secret; rotate it without one, or have it rotated for it.',
  )
}
