import { createHmac, hash } from 'node:crypto'
import { ApiKeyError } from '../errors.js'
import { integerOption, invalidOption, refuseUnknown } from '../options.js'
import type { FoundKey } from './key.js'
import { lengthPrefixed } from './keyed-hash.js'
import { digestOf } from './secret.js'

/** How secrets look that were issued elsewhere, and how they are found. */
export interface LegacyFormatOptions {
  /** What such a secret looks like, from its first character to its last, or a function that says so. It is asked about everything that strangers send: keep it cheap. */
  match: RegExp | ((candidate: string) => boolean)
  /**
   * What the old system kept of a secret: its hash, as bytes or as text in hex, base64 or base64url, 16 to 64 bytes. The same secret always gives the same.
   * An HMAC with the pepper of the old system, say. Synchronous. Default: SHA-256 of the secret.
   */
  digest?: ((secret: string) => string | Uint8Array) | undefined
  /**
   * Finds a key that nobody has imported: by an id inside the secret and a bcrypt hash behind it, or by asking the old system. Resolves with the key, which is then
   * imported, or with undefined. Asked for an unknown secret after the store was, 4 at a time, for 5 seconds each. A rejection becomes 503, never 401.
   */
  find?: ((secret: string) => Promise<FoundKey | undefined> | FoundKey | undefined) | undefined
  /**
   * At least 32 bytes, kept apart from the database. With it only an HMAC of what `digest` makes is kept, so that a reader of the database cannot try
   * out short secrets. It must stay the same for as long as there are keys that were imported with it.
   */
  pepper?: string | Uint8Array | undefined
  /** How many random bits each secret has, by the way it was made. Fewer than 128 need a `pepper`, and so do secrets of which that is not known, where they come in clear. */
  randomBits?: number | undefined
}

/** A form of secrets that were issued elsewhere; made by `legacyFormat`. */
export interface LegacyFormat {
  readonly [LEGACY]: unknown
}

/** What is done with such secrets. */
export interface Recogniser {
  matches(candidate: string): boolean
  /** What is kept of a secret. @throws ApiKeyError `internal_error` where `digest` of the application fails. */
  digestOf(secret: string): string
  /** The same from the hash that the old system kept. @throws ApiKeyError `invalid_request` */
  digestOfHash(hash: unknown): string
  readonly find: ((secret: string) => Promise<FoundKey | undefined>) | undefined
  /** Whether a secret may come in clear: what is kept of it cannot be tried out. */
  readonly takesSecrets: boolean
}

/** Registered, so that one installed copy of the package takes the formats of another. */
const LEGACY: unique symbol = Symbol.for('express-api-keys.legacy-format.1')

const MIN_PEPPER_BYTES = 32
const STRONG_BITS = 128
/** No header is longer. */
const MAX_LENGTH = 1_024
const SMALLEST_HASH = 16
const LARGEST_HASH = 64

/**
 * Describes secrets that were issued elsewhere, for `legacyFormats` of `createApiKeys`. They go on working; at their first rotation they get the form of this package.
 *
 * @throws ApiKeyError `invalid_option`
 */
export function legacyFormat(options: LegacyFormatOptions): LegacyFormat {
  refuseUnknown(options, ['match', 'digest', 'find', 'pepper', 'randomBits'], 'legacyFormat')
  const { digest, find } = options
  for (const [name, given] of Object.entries({ digest, find })) {
    if (given !== undefined && typeof given !== 'function') throw invalidOption(`${name} of legacyFormat must be a function.`)
  }
  const pepper = pepperOption(options.pepper)
  const bits = integerOption('randomBits', options.randomBits, 0, 1, 100_000)
  if (pepper === undefined && options.randomBits !== undefined && bits < STRONG_BITS) throw invalidOption(needsPepper('These secrets have'))
  const takesSecrets = pepper !== undefined || bits >= STRONG_BITS
  if (find !== undefined && !takesSecrets) throw invalidOption(needsPepper('What find() brings in may have'))
  const keep = keeper(digest !== undefined, pepper)
  return Object.freeze({
    [LEGACY]: {
      matches: matcher(options.match),
      digestOf: digest === undefined && pepper === undefined ? digestOf : (secret) => keep(hashBy(digest, secret)),
      digestOfHash: (given) => keep(bytesOfHash(given) ?? badHash()),
      find: find && (async (secret) => find(secret)),
      takesSecrets,
    } satisfies Recogniser,
  })
}

/** The option `legacyFormats`, checked. Throws `invalid_option`. */
export function legacyFormatsOption(formats: readonly LegacyFormat[] | undefined): readonly Recogniser[] {
  if (formats === undefined) return []
  if (!Array.isArray(formats)) throw invalidOption('legacyFormats must be a list: [legacyFormat({ match: /old_[0-9a-f]{64}/ })].')
  return formats.map((format) => recogniserOf(format) ?? notAFormat())
}

export function recogniserOf(format: unknown): Recogniser | undefined {
  return (format as { readonly [LEGACY]?: Recogniser } | null | undefined)?.[LEGACY]
}

function notAFormat(): never {
  throw invalidOption('legacyFormats takes what legacyFormat returned.')
}

function needsPepper(who: string): string {
  return `${who} fewer than ${STRONG_BITS} random bits, so a reader of the database could try them out. Give a pepper of ${MIN_PEPPER_BYTES} bytes, or randomBits if they have more.`
}

function pepperOption(pepper: string | Uint8Array | undefined): Uint8Array | undefined {
  if (pepper === undefined) return undefined
  const bytes: unknown = typeof pepper === 'string' ? Buffer.from(pepper) : pepper
  if (!(bytes instanceof Uint8Array) || bytes.byteLength < MIN_PEPPER_BYTES)
    throw invalidOption(`pepper must be at least ${MIN_PEPPER_BYTES} bytes; make one with: openssl rand -base64 32`)
  return Uint8Array.from(bytes)
}

function matcher(match: LegacyFormatOptions['match']): Recogniser['matches'] {
  if (match instanceof RegExp) {
    // Without g and y, by which an expression remembers where it was; and a part of a secret is no secret.
    const whole = new RegExp(`^(?:${match.source})$`, match.flags.replaceAll(/[gym]/g, ''))
    return (candidate) => candidate.length <= MAX_LENGTH && whole.test(candidate)
  }
  if (typeof match !== 'function') throw invalidOption('match of legacyFormat must be a regular expression, or a function.')
  return (candidate) => {
    if (candidate.length > MAX_LENGTH) return false
    const said: unknown = match(candidate)
    if (typeof said === 'boolean') return said
    throw new ApiKeyError('internal_error', 'match() of a legacy format must return true or false.')
  }
}

/**
 * What is kept of a hash. A SHA-256 of the secret is what is kept of secrets of this package too. Whatever else the application computes is hashed once more, under a name
 * of its own: it might be the secret itself, or something that a reader of the database could choose to be the digest of another key.
 */
function keeper(isOwn: boolean, pepper: Uint8Array | undefined): (bytes: Uint8Array) => string {
  const named = (bytes: Uint8Array): Buffer => lengthPrefixed([isOwn ? 'legacy digest' : 'SHA-256', bytes])
  if (pepper !== undefined) return (bytes) => createHmac('sha256', pepper).update(named(bytes)).digest('base64url')
  if (isOwn) return (bytes) => hash('sha256', named(bytes), 'base64url')
  return (bytes) => (bytes.byteLength === 32 ? Buffer.from(bytes).toString('base64url') : badHash('A SHA-256 has 32 bytes.'))
}

function hashBy(digest: LegacyFormatOptions['digest'], secret: string): Uint8Array {
  if (digest === undefined) return Buffer.from(digestOf(secret), 'base64url')
  let made: unknown
  try {
    made = digest(secret)
  } catch (cause) {
    // Without the cause's own words, which may hold the secret.
    throw new ApiKeyError(
      'internal_error',
      `digest() of a legacy format has failed (${cause instanceof Error ? cause.name : typeof cause}).`,
    )
  }
  if (typeof (made as { then?: unknown } | null | undefined)?.then === 'function') {
    ;(made as PromiseLike<unknown>).then(undefined, () => {})
    throw new ApiKeyError('internal_error', 'digest() of a legacy format must not be asynchronous.')
  }
  const bytes = bytesOfHash(made)
  if (bytes === undefined) throw new ApiKeyError('internal_error', `digest() of a legacy format must return ${HASH}.`)
  return bytes
}

const HASH = `a hash of ${SMALLEST_HASH} to ${LARGEST_HASH} bytes, as bytes or as text in hex, base64 or base64url`

function badHash(more = ''): never {
  throw new ApiKeyError('invalid_request', `hash must be ${HASH}.${more === '' ? '' : ` ${more}`}`)
}

/** Text is hex where it has only such digits and is as long as a hash is in hex: base64 of as many digits would be of another length of hash. */
function bytesOfHash(given: unknown): Uint8Array | undefined {
  const bytes = given instanceof Uint8Array ? given : typeof given === 'string' ? bytesOfText(given) : undefined
  return bytes !== undefined && bytes.byteLength >= SMALLEST_HASH && bytes.byteLength <= LARGEST_HASH ? bytes : undefined
}

const HEX_LENGTHS: readonly number[] = [32, 40, 56, 64, 96, 128]

function bytesOfText(text: string): Uint8Array | undefined {
  if (HEX_LENGTHS.includes(text.length) && /^[0-9a-f]+$/i.test(text)) return Buffer.from(text, 'hex')
  if (!/^[A-Za-z0-9+/_-]+={0,2}$/.test(text)) return undefined
  const bytes = Buffer.from(text, 'base64')
  const plain = text.replace(/=+$/, '').replaceAll('+', '-').replaceAll('/', '_')
  return bytes.toString('base64url') === plain ? bytes : undefined
}
