import { secretOf } from '../actor.js'
import type { Finder } from '../import/finder.js'
import type { KnownFormats } from '../known-formats.js'
import type { SecretFormat } from '../secret.js'
import { endedBecause } from '../verify/verdict.js'
import type { Verifier } from '../verify/verifier.js'
import type { Change, ChangeCommand } from './change.js'
import { type Form, firstRefusal, type KnownSecret, type Proof, REFUSAL_ORDER } from './refusal-order.js'
import type { Seals } from './replay-seal.js'
import type { RotationSecrets } from './rotation-secret.js'

/** A caller that presents a secret, as the authority knows it. */
export interface Presented extends KnownSecret {
  readonly secret: string
  readonly digest: string
}

export interface Authenticator {
  /** Finds whose secret is presented; undefined where none is. Takes no lock, and compares no hash. */
  identify(change: Change, command: ChangeCommand): Promise<Presented | undefined>
  /** Compares the rotation secret that is presented; undefined where none is. */
  prove(presented: Presented, rotationSecret: string | undefined): Promise<Proof | undefined>
}

export interface AuthenticatorParts {
  readonly format: KnownFormats
  readonly finder: Finder
  readonly verifier: Verifier
  readonly rotationSecrets: RotationSecrets
  readonly seals: Seals
  readonly readRecord: (id: string) => Promise<unknown>
}

export function authenticator({ format, finder, verifier, rotationSecrets, seals, readRecord }: AuthenticatorParts): Authenticator {
  return {
    async identify(change, command) {
      const secret = secretOf(command.as)
      const { rotationSecret } = command
      const malformed = firstRefusal(REFUSAL_ORDER.form, {
        secret: formOf(secret, format),
        rotationSecret: formOf(rotationSecret, rotationSecrets),
        target: change.target,
      })
      if (malformed !== undefined) throw malformed
      if (secret === undefined) return undefined
      const digest = format.digestIn(secret) ?? ''
      const { at, found } = await lookFor(secret, digest)
      if (found === undefined) {
        await takeAsLongAsDead(command)
        throw firstRefusal(REFUSAL_ORDER.identity, { presented: 'unknown' })
      }
      const { key, generation } = found
      const own = change.target === 'self' || change.target === key.id
      return { secret, digest, key, generation, ended: endedBecause(key, generation, at), own }
    },

    async prove({ ended, generation }, rotationSecret) {
      if (rotationSecret === undefined) return undefined
      // A secret that was rotated or has expired learns nothing of its rotation secret: it only waits as long.
      if (ended === 'rotated' || ended === 'expired') {
        await rotationSecrets.feign(rotationSecret)
        return 'wrong'
      }
      const hash = generation.rotationSecretHash
      if (hash === null) return 'not configured'
      return (await rotationSecrets.matches(rotationSecret, hash)) ? { hash } : 'wrong'
    },
  }

  /** A key that only the old system knows comes in first. */
  async function lookFor(secret: string, digest: string): ReturnType<Verifier['look']> {
    const looked = await verifier.look(digest)
    return looked.found === undefined && (await finder.find(secret, digest)) ? verifier.look(digest) : looked
  }

  /**
   * A secret that never was costs no bcrypt, or a flood of made-up ones could keep it from everybody else. It takes the time of a comparison, and that
   * of the record that is looked for with a dead one.
   */
  async function takeAsLongAsDead({ rotationSecret, idempotencyKey }: ChangeCommand): Promise<void> {
    if (rotationSecret !== undefined) await rotationSecrets.feign(rotationSecret)
    const [id] = idempotencyKey === undefined ? [] : seals.ids('nobody', idempotencyKey)
    if (id !== undefined) await readRecord(id)
  }
}

function formOf(text: string | undefined, { wellFormed }: Pick<SecretFormat, 'wellFormed'>): Form {
  return text === undefined ? 'none' : wellFormed(text) ? 'well-formed' : 'malformed'
}
