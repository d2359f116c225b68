import type { Recogniser } from './legacy-format.js'
import { digestOf, type SecretFormat } from './secret.js'

/** Every form of secrets that an instance takes. */
export interface KnownFormats extends SecretFormat {
  /** What is kept of a secret; undefined for what is none. */
  digestIn(candidate: unknown): string | undefined
  /** How a secret that was issued elsewhere can be found in the old system; undefined where it cannot. */
  legacyOf(candidate: string): Recogniser | undefined
}

/** Secrets of a format, and those that were issued elsewhere: the first form that one has counts. */
export function knownFormats(own: SecretFormat, legacy: readonly Recogniser[]): KnownFormats {
  const legacyOf = (candidate: string): Recogniser | undefined =>
    own.wellFormed(candidate) ? undefined : legacy.find(({ matches }) => matches(candidate))
  return {
    ...own,
    wellFormed: (candidate) => own.wellFormed(candidate) || legacyOf(candidate) !== undefined,
    digestIn(candidate) {
      if (typeof candidate !== 'string') return undefined
      return own.wellFormed(candidate) ? digestOf(candidate) : legacyOf(candidate)?.digestOf(candidate)
    },
    legacyOf,
  }
}
