import { createPublicKey, createSecretKey, KeyObject } from 'node:crypto'
import jwt, { type JwtHeader } from 'jsonwebtoken'
import type { Operator } from '../core/api-keys.js'
import { ApiKeyError } from '../errors.js'
import { integerOption, refuseUnknown } from '../options.js'
import { verifiedEd25519 } from './ed25519.js'
import { type IssuersKey, jwkSet, jwksUrlOption } from './jwk-set.js'
import { type ClaimName, type ClaimsReading, claimOption, operatorOf } from './jwt-claims.js'

export type { ClaimName } from './jwt-claims.js'

/** Authenticates operators by their access tokens. */
export interface Operators {
  /**
   * `tell` hears of trouble that did not keep the token from being checked, such as an issuer that is away for a while.
   *
   * @throws ApiKeyError `invalid_key` if the token is not good, and `operators_unavailable` if that cannot be found out. A promise rejects with them.
   */
  authenticate(token: string, tell?: (trouble: ApiKeyError) => void): Operator | Promise<Operator>
}

/** The same by keys that are at hand. */
export interface KnownKeyOperators extends Operators {
  authenticate(token: string): Operator
}

/** The same by keys that the issuer publishes. */
export interface PublishedKeyOperators extends Operators {
  authenticate(token: string, tell?: (trouble: ApiKeyError) => void): Promise<Operator>
}

export interface OperatorJwtOptions {
  /** The `iss` that a token must have. */
  issuer: string
  /** The `aud` that a token must have, alone or among others; of a list, one is enough. */
  audience: string | readonly string[]
  /** The algorithms that a token may be signed with, and never `none`: all of one family, except that those of a `jwksUrl` may be of several. */
  algorithms: readonly OperatorAlgorithm[]
  /** A public key in PEM, or for HS256, HS384 and HS512 a shared secret of at least 32 bytes. Instead of `keys` or `jwksUrl`. */
  key?: OperatorKey | undefined
  /** Keys by their `kid`, which every token must then name. Add the next key before it signs, and remove an old one once its tokens have expired. */
  keys?: { readonly [kid: string]: OperatorKey } | undefined
  /**
   * Where the issuer publishes its public keys (RFC 7517 §5), `https:`. Every token must name one by its `kid`. They are kept for 10 minutes, read again for a
   * `kid` that is not among them, and used for an hour at most while the issuer is away.
   */
  jwksUrl?: string | undefined
  /** The claim with the scopes: a text with spaces between them, or a list. Default `scope`. */
  scopeClaim?: ClaimName | undefined
  /** The claim with the owner, or the list of owners, whose keys the operator may see and change. `["*"]` means all of them. Default `owners`. */
  ownersClaim?: ClaimName | undefined
  /**
   * The claim with what the operator may hand out, as `{ "scopes": [], "environments": [] }`. Every token must then have it. Default: no claim, and the
   * operator may hand out everything.
   */
  grantsClaim?: ClaimName | undefined
  /** The longest that a token may still be good for, in milliseconds. Default 86,400,000 (a day). */
  maxLifetimeMs?: number | undefined
  /** How far the clock of the issuer may be from this one, in milliseconds: 0 to 300,000. Default 5,000. */
  clockToleranceMs?: number | undefined
}

/** What a token may be signed with (RFC 7518 §3.1, RFC 8037 §3.1, RFC 9864 §2.2). `EdDSA` and `Ed25519` are the same, with an Ed25519 key. */
export type OperatorAlgorithm = `${'HS' | 'RS' | 'PS' | 'ES'}${256 | 384 | 512}` | 'EdDSA' | 'Ed25519'

export type OperatorKey = string | Uint8Array | KeyObject

interface Family {
  readonly algorithms: readonly string[]
  readonly keyType: string
}

const FAMILIES: readonly Family[] = [
  { algorithms: ['HS256', 'HS384', 'HS512'], keyType: 'secret' },
  { algorithms: ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'], keyType: 'rsa' },
  { algorithms: ['ES256', 'ES384', 'ES512'], keyType: 'ec' },
  { algorithms: ['EdDSA', 'Ed25519'], keyType: 'ed25519' },
]
const MIN_SECRET_BYTES = 32
const OPTIONS: readonly (keyof OperatorJwtOptions)[] = [
  ...(['issuer', 'audience', 'algorithms', 'key', 'keys', 'jwksUrl'] as const),
  ...(['scopeClaim', 'ownersClaim', 'grantsClaim', 'maxLifetimeMs', 'clockToleranceMs'] as const),
]

/**
 * Lets people and back offices call the standard routes with a signed JWT: `keyRouter(keys, { operators: operatorJwt({ … }) })`. A token needs `exp`, `iss`,
 * `aud`, `sub`, the scopes in `scope` and the owners in `owners`.
 *
 * @throws ApiKeyError `invalid_option` if a key does not fit the algorithms, or anything is missing or unknown.
 * @see RFC 8725 (JWT best current practices), RFC 9068 (the profile of access tokens)
 */
export function operatorJwt(options: OperatorJwtOptions & { readonly jwksUrl: string }): PublishedKeyOperators
export function operatorJwt(options: OperatorJwtOptions & { readonly jwksUrl?: undefined }): KnownKeyOperators
export function operatorJwt(options: OperatorJwtOptions): Operators
export function operatorJwt(options: OperatorJwtOptions): Operators {
  refuseUnknown(options, OPTIONS, 'operatorJwt')
  const given = [options.key, options.keys, options.jwksUrl].filter((one) => one !== undefined)
  if (given.length !== 1) throw badOption('Give either key, or keys by their kid, or jwksUrl.')
  const check = checkOf(options)
  if (options.jwksUrl !== undefined) {
    const published = jwkSet(jwksUrlOption(options.jwksUrl))
    return {
      async authenticate(token, tell) {
        const header = headerOf(token)
        if (header === undefined || !check.takes(header.alg) || typeof header.kid !== 'string') throw unknownKey()
        const fitting = (await published.named(header.kid, tell)).find((one) => fits(one, header.alg))
        return check.operator(token, fitting?.key)
      },
    }
  }
  const keyFor = keysOf(options)
  return {
    authenticate(token) {
      const header = headerOf(token)
      return check.operator(token, header && keyFor(header))
    },
  }
}

/** What is the same for every token, wherever its key is from. */
interface Check {
  takes(algorithm: string): boolean
  operator(token: string, key: KeyObject | undefined): Operator
}

function checkOf(options: OperatorJwtOptions): Check {
  const reading = readingOf(options)
  const { issuer } = reading
  const audience = audiencesOf(options.audience)
  const algorithms = algorithmsOf(options)
  const tolerance = reading.clockToleranceMs / 1_000

  return {
    takes: (algorithm) => (algorithms as readonly string[]).includes(algorithm),
    operator(token, key) {
      if (key === undefined) throw unknownKey()
      return operatorOf(verified(token, key), reading)
    },
  }

  function verified(token: string, key: KeyObject): object {
    try {
      const payload =
        key.asymmetricKeyType === 'ed25519'
          ? verifiedEd25519(token, key, { issuer, audience, algorithms, clockTolerance: tolerance })
          : jwt.verify(token, key, { algorithms, issuer, audience, clockTolerance: tolerance })
      if (typeof payload === 'object') return payload
    } catch {
      // Neither the library's message nor its cause, since both quote the token.
    }
    throw refused('The access token is not valid.')
  }
}

function readingOf(options: OperatorJwtOptions): ClaimsReading {
  const { issuer, scopeClaim = 'scope', ownersClaim = 'owners', grantsClaim } = options
  if (typeof issuer !== 'string' || issuer === '') throw badOption('issuer must be a string that is not empty.')
  return {
    issuer,
    scopeClaim: claimOption('scopeClaim', scopeClaim),
    ownersClaim: claimOption('ownersClaim', ownersClaim),
    grantsClaim: grantsClaim === undefined ? undefined : claimOption('grantsClaim', grantsClaim),
    maxLifetimeMs: integerOption('maxLifetimeMs', options.maxLifetimeMs, 86_400_000, 1_000, 366 * 86_400_000),
    clockToleranceMs: integerOption('clockToleranceMs', options.clockToleranceMs, 5_000, 0, 300_000),
  }
}

function audiencesOf(audience: OperatorJwtOptions['audience']): [string, ...string[]] {
  const [first, ...more]: readonly unknown[] = Array.isArray(audience) ? audience : [audience]
  if ([first, ...more].some((one) => typeof one !== 'string' || one === '')) {
    throw badOption('audience must be a string that is not empty, or a list of them.')
  }
  return [first, ...more] as [string, ...string[]]
}

function algorithmsOf({ algorithms, jwksUrl }: OperatorJwtOptions): jwt.Algorithm[] {
  const families = new Set(Array.isArray(algorithms) ? algorithms.map(familyOf) : [])
  const one = families.size === 1 || (jwksUrl !== undefined && families.size > 1)
  if (!one || families.has(undefined)) {
    throw badOption(`algorithms must be a list of one family: ${FAMILIES.map((family) => family.algorithms.join(', ')).join('; or ')}.`)
  }
  if (jwksUrl !== undefined && [...families].some((family) => family?.keyType === 'secret')) {
    throw badOption('Nobody publishes a shared secret: with jwksUrl, algorithms must be those of public keys, such as RS256.')
  }
  // The two of Ed25519 never reach jsonwebtoken.
  return [...algorithms] as jwt.Algorithm[]
}

function familyOf(algorithm: string): Family | undefined {
  return FAMILIES.find(({ algorithms }) => algorithms.includes(algorithm))
}

/** Finds the key of a token among those that were given. */
function keysOf(options: OperatorJwtOptions): (header: JwtHeader) => KeyObject | undefined {
  const keyType = familyOf(options.algorithms[0] ?? '')?.keyType ?? ''
  const only = options.key === undefined ? undefined : keyObject(options.key, keyType)
  const byKid = new Map(Object.entries(options.keys ?? {}).map(([kid, key]) => [kid, keyObject(key, keyType)]))
  if (only === undefined && byKid.size === 0) throw badOption('keys must have at least one key.')
  return ({ kid }) => only ?? (typeof kid === 'string' ? byKid.get(kid) : undefined)
}

/** The header of a token; undefined where it is none, or has an extension that must be understood, and is not. @see RFC 7515 §4.1.11 */
function headerOf(token: string): JwtHeader | undefined {
  try {
    const { header } = jwt.decode(token, { complete: true }) ?? {}
    return typeof header === 'object' && header !== null && !('crit' in header) ? header : undefined
  } catch {
    return undefined
  }
}

/** Whether a published key is for this algorithm. */
function fits({ key, alg }: IssuersKey, algorithm: string): boolean {
  const family = familyOf(algorithm)
  // Ed25519 has two names.
  const named = alg === undefined || alg === algorithm || (family?.keyType === 'ed25519' && family.algorithms.includes(alg))
  return named && key.asymmetricKeyType === family?.keyType
}

/** A key of the kind that the algorithms need: a public key must never pass for a shared secret. */
function keyObject(key: OperatorKey, keyType: string): KeyObject {
  let made: KeyObject
  try {
    const bytes = key instanceof KeyObject ? undefined : Buffer.from(key as string)
    if (bytes === undefined) made = (key as KeyObject).type === 'private' ? createPublicKey(key as KeyObject) : (key as KeyObject)
    else made = keyType === 'secret' ? createSecretKey(bytes) : createPublicKey(bytes)
  } catch {
    throw badOption('A key must be a public key in PEM that fits the algorithms.')
  }
  const type = made.type === 'secret' ? 'secret' : made.asymmetricKeyType
  if (type !== keyType) throw badOption(`The algorithms need a key of the type "${keyType}", and this one is "${type}".`)
  if (made.type === 'secret') {
    if (made.export().byteLength < MIN_SECRET_BYTES) throw badOption(`A shared secret must have at least ${MIN_SECRET_BYTES} bytes.`)
    if (made.export().includes('-----BEGIN'))
      throw badOption('A PEM key is not a shared secret; name the algorithms that it is for, such as RS256.')
  }
  return made
}

function unknownKey(): ApiKeyError {
  return refused('The token does not name a known key.')
}

function refused(message: string): ApiKeyError {
  return new ApiKeyError('invalid_key', message)
}

function badOption(message: string): ApiKeyError {
  return new ApiKeyError('invalid_option', message)
}
