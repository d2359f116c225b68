import { inspect } from 'node:util'
import { ApiKeyError } from '../errors.js'
import type { ChangeResult, IssuedKey } from './api-keys.js'
import type { FinishedChange } from './change/change.js'
import { type ApiKey, apiKey, iso } from './key.js'

export function issuedKey(change: FinishedChange): IssuedKey {
  return new Issued(change)
}

/** The answer of a change that issues no secret. */
export function changedKey({ key, replayed, acceptedUntil }: FinishedChange): ChangeResult {
  return { key: apiKey(key), replayed, ...(acceptedUntil === undefined ? {} : { acceptedUntil: iso(acceptedUntil) }) }
}

/**
 * Keeps the secret out of logs, and from being lost: `inspect` shows it redacted, and `JSON.stringify` throws. It also throws for a spread copy, since
 * `toJSON` is a property of the object itself.
 */
class Issued implements IssuedKey {
  readonly key: ApiKey
  readonly replayed: boolean
  declare readonly acceptedUntil?: string
  readonly #secret: string
  readonly #rotationSecret: string | undefined

  constructor({ key, secret, rotationSecret, replayed, acceptedUntil }: FinishedChange) {
    if (secret === undefined) throw new ApiKeyError('internal_error', 'A recorded answer lacks its secret.')
    this.key = apiKey(key)
    this.replayed = replayed
    if (acceptedUntil !== undefined) this.acceptedUntil = iso(acceptedUntil)
    this.#secret = secret
    this.#rotationSecret = rotationSecret
  }

  get secret(): string {
    return this.#secret
  }

  get rotationSecret(): string | undefined {
    return this.#rotationSecret
  }

  readonly toJSON = (): never => {
    throw new ApiKeyError(
      'internal_error',
      'An issued key cannot be sent as it is. Pick what the client gets, such as { secret: issued.secret, id: issued.key.id }.',
    )
  }

  readonly [inspect.custom] = (): object => {
    const { key, replayed, acceptedUntil } = this
    return {
      key,
      replayed,
      ...(acceptedUntil === undefined ? {} : { acceptedUntil }),
      secret: '[redacted]',
      ...(this.#rotationSecret === undefined ? {} : { rotationSecret: '[redacted]' }),
    }
  }
}
