import { hash, randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { Environment } from '../store/store.js'

/** A secret at birth: what the client gets, and what may be kept of it. */
export interface MintedSecret {
  readonly secret: string
  readonly digest: string
  /** Everything before the random part, e.g. `sk_live_`. */
  readonly start: string
  /** The last four characters: part of the checksum. */
  readonly last4: string
}

/** Makes and recognises secrets: `<prefix>_<env>_<43 base62 characters><6 base62 characters of CRC-32>`, with the environment or without. */
export interface SecretFormat {
  /** What a new key's secrets begin with. */
  startFor(environment: Environment): string
  /** `start` is what the secret begins with, before its random part. */
  mint(start: string): MintedSecret
  /** Whether a string has the shape and checksum of a secret. No hash, no I/O, nothing kept. */
  wellFormed(candidate: string): boolean
}

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
/** 62^43 is the first power above 2^256. */
const RANDOM_LENGTH = 43
const CHECKSUM_LENGTH = 6
const TAIL = RANDOM_LENGTH + CHECKSUM_LENGTH
const BASE62 = /^[0-9A-Za-z]+$/

/** `prefix`, `environmentInSecret` and `acceptedPrefixes` as in `ApiKeysOptions`, already validated. */
export function secretFormat(prefix: string, environmentInSecret: boolean, acceptedPrefixes: readonly string[] = []): SecretFormat {
  const starts = [...new Set([prefix, ...acceptedPrefixes])].flatMap((known) => [`${known}_live_`, `${known}_test_`, `${known}_`])

  return {
    startFor: (environment) => (environmentInSecret ? `${prefix}_${environment}_` : `${prefix}_`),
    mint(start) {
      const body = start + base62(BigInt(`0x${randomBytes(32).toString('hex')}`), RANDOM_LENGTH)
      const secret = body + checksum(body)
      return { secret, digest: digestOf(secret), start, last4: secret.slice(-4) }
    },
    wellFormed(candidate) {
      if (!startsWell(candidate) || !BASE62.test(candidate.slice(-TAIL))) return false
      return crc32(candidate.slice(0, -CHECKSUM_LENGTH)) === base62Value(candidate, candidate.length - CHECKSUM_LENGTH)
    },
  }

  function startsWell(candidate: string): boolean {
    const length = candidate.length - TAIL
    for (const start of starts) if (start.length === length && candidate.startsWith(start)) return true
    return false
  }
}

/** A prefix, and what is as long as the random part and the checksum. */
const SECRET_IN_TEXT = /[a-z][a-z0-9_]*_[0-9A-Za-z]{49}(?![0-9A-Za-z])/g

/** Whether a text holds what looks like a secret of this package, of any prefix. */
export function holdsSecret(text: string): boolean {
  return text.search(SECRET_IN_TEXT) >= 0
}

/** The text without what looks like a secret of this package. */
export function redactSecrets(text: string): string {
  return text.replaceAll(SECRET_IN_TEXT, '[redacted]')
}

/**
 * The SHA-256 of a secret, base64url: 43 characters. A fast hash is right for 256 random bits.
 *
 * @see OWASP ASVS 5.0 6.5.2
 */
export function digestOf(secret: string): string {
  return hash('sha256', secret, 'base64url')
}

/** Reads the rest of a string as a number in base62, which is cheaper than writing the checksum to compare the two. */
function base62Value(text: string, from: number): number {
  let value = 0
  for (let i = from; i < text.length; i++) {
    const code = text.charCodeAt(i)
    value = value * 62 + code - (code > 96 ? 61 : code > 64 ? 55 : 48)
  }
  return value
}

function checksum(body: string): string {
  return base62(BigInt(crc32(body)), CHECKSUM_LENGTH)
}

function base62(value: bigint, length: number): string {
  let text = ''
  for (let rest = value; rest > 0n; rest /= 62n) text = (ALPHABET[Number(rest % 62n)] ?? '') + text
  return text.padStart(length, '0')
}
