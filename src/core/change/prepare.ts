import type { ApiKeyError } from '../../errors.js'
import type { Store } from '../../store/store.js'
import { type AuditTrail, actorName } from '../audit.js'
import type { Verifier } from '../verify/verifier.js'
import type { Authenticator, Presented } from './authenticate.js'
import type { Change } from './change.js'
import { type Facts, firstRefusal, REFUSAL_ORDER } from './refusal-order.js'
import type { PlannedChange } from './replay-record.js'
import type { MintedRotationSecret, RotationSecrets } from './rotation-secret.js'
import type { PreparedChange } from './transaction.js'

export interface PrepareParts {
  readonly store: Store
  readonly verifier: Verifier
  readonly rotationSecrets: RotationSecrets
  readonly audit: AuditTrail
  readonly prove: Authenticator['prove']
}

/**
 * What has to happen before the transaction, since it takes long: bcrypt never runs while a row is locked. A refusal from here is final. Whose secret it
 * is, whose key the target is and whether a key has a rotation secret never change; all else is checked again under the locks.
 */
export function preparer(parts: PrepareParts): (planned: PlannedChange) => Promise<PreparedChange> {
  const { store, verifier, rotationSecrets, audit, prove } = parts
  return async (planned) => {
    const { change, command, presented } = planned
    const refuse = (part: 'life' | 'proof' | 'rights', more: Partial<Facts>): void => {
      const facts = {
        change,
        command,
        presented,
        proof: undefined,
        target: undefined,
        overLimit: command.replayOnly === true,
        ...more,
      }
      const error = firstRefusal<Facts>(REFUSAL_ORDER[part], facts)
      if (error === undefined) return
      auditRefusal(error, planned)
      throw error
    }
    refuse('life', { proof: presented?.ended === undefined ? undefined : await prove(presented, command.rotationSecret) })
    const proof = presented && (await prove(presented, command.rotationSecret))
    const refuted = proof === 'wrong' || proof === 'not configured'
    if (presented?.generation.firstUsedAt === null && !refuted) verifier.noteFirstUse(presented.digest)
    refuse('proof', { proof })
    // Its first use ends the grace period of the secret before it, whatever it is used for.
    if (presented?.generation.retiresEarlier) await verifier.verify(presented.digest)
    const target = await targetOf(change, presented)
    refuse('rights', { proof, target: target?.key })
    return { ...planned, proof, minted: await mintFor(change, target) }
  }

  async function targetOf({ target }: Change, presented: Presented | undefined): ReturnType<Store['key']> {
    if (target === null) return undefined
    return presented?.own === true || target === 'self' ? presented : store.key(target)
  }

  async function mintFor(
    { mintsRotationSecret: when = 'never' }: Change,
    target: Awaited<ReturnType<Store['key']>>,
  ): Promise<MintedRotationSecret | undefined> {
    if (typeof when === 'object') return rotationSecrets.mint(when.start)
    if (when === 'never' || target === undefined || target.generation.rotationSecretHash === null) return undefined
    return rotationSecrets.mint(rotationSecrets.startLike(target.key))
  }

  function auditRefusal(error: ApiKeyError, { command, presented }: PlannedChange): void {
    if (error.code !== 'invalid_key' || presented === undefined) return
    const { key, digest } = presented
    if (error.reason === 'rotation_secret') {
      const actor = actorName(command.as, key)
      audit.writeLater(
        { type: 'key.rotation_secret_refused', key, actor, origin: command.origin, details: {} },
        `rotation secret ${key.id}`,
      )
    } else audit.writeRefusedSecretLater(digest, command.origin ?? {})
  }
}
