import type { KeyRow } from '../../store/store.js'
import type { Clock } from '../clock.js'
import { type SecretFormat, secretFormat } from '../secret.js'
import { semaphore } from '../semaphore.js'

/** A rotation secret at birth, and what is kept of it. */
export interface MintedRotationSecret {
  readonly rotationSecret: string
  readonly hash: string
}

/** Makes and checks rotation secrets: the second factor of a key that rotates itself. */
export interface RotationSecrets {
  /** What a new key's rotation secrets begin with. */
  startFor: SecretFormat['startFor']
  /** The same for a key that exists: its rotation secrets have the form of its secrets. */
  startLike(key: Pick<KeyRow, 'secretStart' | 'environment'>): string
  mint(start: string): Promise<MintedRotationSecret>
  /** Whether a rotation secret is the one of this hash. Without a hash it takes as long, and is false. */
  matches(rotationSecret: string, hash: string | null): Promise<boolean>
  /** Takes as long as `matches` has taken lately, and fails as often, without the work: for a request that has nothing to compare with. */
  feign(rotationSecret: string): Promise<void>
  wellFormed: SecretFormat['wellFormed']
}

/** 2^10 rounds, some 50 ms. The secret has 256 random bits, so nothing depends on how slow this is; bcrypt is what a reviewer looks for. */
const COST = 10
/** bcrypt works on the four threads that files and DNS need too; a flood must leave some of them. */
const AT_ONCE = 2
const MAX_QUEUED = 200
/** How many past comparisons `feign` chooses from, and how old they may be. */
const MAX_REMEMBERED = 64
const REMEMBERED_MS = 10_000
/** A hash that no rotation secret fits. It is compared where there is no other, so that both take as long. */
const NO_HASH = `$2b$${COST}$abcdefghijklmnopqrstuuzRrkYDxm2eYXPjVT4FlxZkGoC2pnXsG`

/** `environmentInSecret` as in `ApiKeysOptions`. The bcrypt library is loaded at the first use. */
export function rotationSecrets(environmentInSecret: boolean, clock: Clock): RotationSecrets {
  const format = secretFormat('rot', environmentInSecret)
  let measuring: Promise<boolean> | undefined
  const recent: { readonly at: number; readonly tookMs: number; readonly error?: unknown }[] = []
  const inTurn = semaphore(AT_ONCE, MAX_QUEUED, 'More rotation secrets are waiting to be checked than can be.')

  return {
    startFor: format.startFor,
    startLike: ({ secretStart, environment }) => (secretStart.endsWith(`_${environment}_`) ? `rot_${environment}_` : 'rot_'),
    async mint(start) {
      const { secret } = format.mint(start)
      const { default: bcrypt } = await import('bcrypt')
      return { rotationSecret: secret, hash: await inTurn(() => bcrypt.hash(secret, COST)) }
    },
    matches,
    async feign(rotationSecret) {
      const from = clock.monotonicMs() - REMEMBERED_MS
      while (recent.length > 0 && (recent[0]?.at ?? 0) < from) recent.shift()
      if (recent.length === 0) {
        // No recent comparison: one real one measures how long it takes now, for everyone who asks meanwhile.
        measuring ??= matches(rotationSecret, null)
          .catch(() => false)
          .finally(() => {
            measuring = undefined
          })
        await measuring
        return
      }
      const { tookMs = 0, error } = recent[Math.floor(Math.random() * recent.length)] ?? {}
      await clock.sleep(tookMs)
      if (error !== undefined) throw error
    },
    wellFormed: format.wellFormed,
  }

  async function matches(rotationSecret: string, hash: string | null): Promise<boolean> {
    const { default: bcrypt } = await import('bcrypt')
    const began = clock.monotonicMs()
    try {
      const same = await inTurn(() => bcrypt.compare(rotationSecret, hash ?? NO_HASH))
      remember(began)
      return same && hash !== null
    } catch (error) {
      remember(began, error)
      throw error
    }
  }

  function remember(began: number, error?: unknown): void {
    const at = clock.monotonicMs()
    recent.push({ at, tookMs: at - began, error })
    if (recent.length > MAX_REMEMBERED) recent.shift()
  }
}
