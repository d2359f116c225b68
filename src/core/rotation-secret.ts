import type { Environment } from '../store/store.js'
import { type SecretFormat, secretFormat } from './secret.js'
import { semaphore } from './semaphore.js'

/** A rotation secret at birth, and what is kept of it. */
export interface MintedRotationSecret {
  readonly rotationSecret: string
  readonly hash: string
}

/** Makes and checks rotation secrets: the second factor of a key that rotates itself. */
export interface RotationSecrets {
  mint(environment: Environment): Promise<MintedRotationSecret>
  /** Whether a rotation secret is the one of this hash. Without a hash it takes as long, and is false. */
  matches(rotationSecret: string, hash: string | null): Promise<boolean>
  wellFormed: SecretFormat['wellFormed']
}

/** 2^10 rounds, some 50 ms. The secret has 256 random bits of its own: this is to slow down nobody, but whoever expects bcrypt finds it. */
const COST = 10
/** bcrypt works on the four threads that files and DNS need too; a flood must leave some of them. */
const AT_ONCE = 2
const MAX_QUEUED = 200
/** The hash of nothing that can be presented, compared where there is none, so that both take as long. */
const NO_HASH = `$2b$${COST}$abcdefghijklmnopqrstuuzRrkYDxm2eYXPjVT4FlxZkGoC2pnXsG`

/** `environmentInSecret` as in `ApiKeysOptions`. The bcrypt library is loaded at the first use. */
export function rotationSecrets(environmentInSecret: boolean): RotationSecrets {
  const format = secretFormat('rot', environmentInSecret)
  const inTurn = semaphore(AT_ONCE, MAX_QUEUED, 'More rotation secrets are waiting to be checked than can be.')

  return {
    async mint(environment) {
      const { secret } = format.mint(environment)
      const { default: bcrypt } = await import('bcrypt')
      return { rotationSecret: secret, hash: await inTurn(() => bcrypt.hash(secret, COST)) }
    },
    async matches(rotationSecret, hash) {
      const { default: bcrypt } = await import('bcrypt')
      const same = await inTurn(() => bcrypt.compare(rotationSecret, hash ?? NO_HASH))
      return same && hash !== null
    },
    wellFormed: format.wellFormed,
  }
}
