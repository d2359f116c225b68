import { createPublicKey, createSecretKey, KeyObject } from 'node:crypto'
import jwt, { type JwtHeader, type JwtPayload } from 'jsonwebtoken'
import type { Grants, Operator } from '../core/api-keys.js'
import { ADMIN_SCOPE } from '../core/scope.js'
import { ApiKeyError } from '../errors.js'
import { integerOption, refuseUnknown } from '../options.js'

/** Authenticates operators by their access tokens. */
export interface Operators {
  /** @throws ApiKeyError `invalid_key` if the token is not good. */
  authenticate(token: string): Operator
}

export interface OperatorJwtOptions {
  /** The `iss` that a token must have. */
  issuer: string
  /** The `aud` that a token must have, alone or among others. */
  audience: string
  /** The algorithms that a token may be signed with, all of one family, and never `none`. */
  algorithms: readonly OperatorAlgorithm[]
  /** A public key in PEM, or for HS256, HS384 and HS512 a shared secret of at least 32 bytes. Instead of `keys`. */
  key?: OperatorKey | undefined
  /** Keys by their `kid`, which every token must then name. Add the next key before it signs, and remove an old one once its tokens have expired. */
  keys?: { readonly [kid: string]: OperatorKey } | undefined
  /** The claim that lists the owners whose keys the operator may see and change. `["*"]` means all of them. Default `owners`. */
  ownersClaim?: string | undefined
  /**
   * The claim with what the operator may hand out, as `{ "scopes": [], "environments": [] }`. Every token must then have it. Default: no claim, and the
   * operator may hand out everything.
   */
  grantsClaim?: string | undefined
  /** The longest that a token may still be good for, in milliseconds. Default 86,400,000 (a day). */
  maxLifetimeMs?: number | undefined
}

/** What a token may be signed with (RFC 7518 §3.1). */
export type OperatorAlgorithm = `${'HS' | 'RS' | 'PS' | 'ES'}${256 | 384 | 512}`

export type OperatorKey = string | Uint8Array | KeyObject

const FAMILIES: readonly { readonly algorithms: readonly string[]; readonly keyType: string }[] = [
  { algorithms: ['HS256', 'HS384', 'HS512'], keyType: 'secret' },
  { algorithms: ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'], keyType: 'rsa' },
  { algorithms: ['ES256', 'ES384', 'ES512'], keyType: 'ec' },
]
const EVERYTHING: Grants = { scopes: ['*', ADMIN_SCOPE], environments: ['live', 'test'] }
const MIN_SECRET_BYTES = 32
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it refuses
const SUBJECT = /^[^\u0000-\u001f\u007f-\u009f]{1,255}$/u
/** How far the clocks of two machines may be apart. */
const TOLERANCE_SECONDS = 5

/**
 * Lets people and back offices call the standard routes with a signed JWT: `keyRouter(keys, { operators: operatorJwt({ … }) })`. A token needs `exp`, `iss`,
 * `aud`, `sub`, the scopes in `scope` (space-separated) and the owners in `owners`.
 *
 * @throws ApiKeyError `invalid_option` if a key does not fit the algorithms, or anything is missing or unknown.
 * @see RFC 8725 (JWT best current practices), RFC 9068 (the profile of access tokens)
 */
export function operatorJwt(options: OperatorJwtOptions): Operators {
  refuseUnknown(options, ['issuer', 'audience', 'algorithms', 'key', 'keys', 'ownersClaim', 'grantsClaim', 'maxLifetimeMs'], 'operatorJwt')
  const { issuer, audience, ownersClaim = 'owners', grantsClaim } = options
  for (const [name, value] of Object.entries({ issuer, audience, ownersClaim, grantsClaim: grantsClaim ?? 'none' })) {
    if (typeof value !== 'string' || value === '') throw badOption(`${name} must be a string that is not empty.`)
  }
  const family = FAMILIES.find(({ algorithms }) => options.algorithms?.[0] !== undefined && algorithms.includes(options.algorithms[0]))
  if (family === undefined || !options.algorithms.every((one) => family.algorithms.includes(one))) {
    throw badOption(`algorithms must be a list of one family: ${FAMILIES.map(({ algorithms }) => algorithms.join(', ')).join('; or ')}.`)
  }
  if ((options.key === undefined) === (options.keys === undefined)) throw badOption('Give either key, or keys by their kid.')
  const only = options.key === undefined ? undefined : keyObject(options.key, family.keyType)
  const byKid = new Map(Object.entries(options.keys ?? {}).map(([kid, key]) => [kid, keyObject(key, family.keyType)]))
  if (only === undefined && byKid.size === 0) throw badOption('keys must have at least one key.')
  const maxLifetimeMs = integerOption('maxLifetimeMs', options.maxLifetimeMs, 86_400_000, 1_000, 366 * 86_400_000)
  const algorithms = [...options.algorithms]

  return {
    authenticate(token) {
      try {
        const { header } = jwt.decode(token, { complete: true }) ?? {}
        const key = keyFor(header)
        if (key === undefined) throw refused('The token does not name a known key.')
        const payload = jwt.verify(token, key, { algorithms, issuer, audience, clockTolerance: TOLERANCE_SECONDS })
        return operatorOf(payload)
      } catch (cause) {
        // Neither the library's message nor its cause, since both quote the token.
        if (cause instanceof ApiKeyError) throw cause
        throw refused('The access token is not valid.')
      }
    },
  }

  function keyFor(header: JwtHeader | undefined): KeyObject | undefined {
    // An extension that must be understood, and is not. @see RFC 7515 §4.1.11
    if (header === undefined || 'crit' in header) return undefined
    return only ?? (typeof header.kid === 'string' ? byKid.get(header.kid) : undefined)
  }

  function operatorOf(payload: string | JwtPayload): Operator {
    if (typeof payload === 'string') throw refused('The access token has no claims.')
    const now = Date.now() / 1_000
    const { exp, iat, sub, scope } = payload
    if (typeof exp !== 'number' || exp > now + maxLifetimeMs / 1_000) throw refused('The access token must expire, and soon enough.')
    if (iat !== undefined && !(typeof iat === 'number' && iat <= now + TOLERANCE_SECONDS))
      throw refused('The access token is from the future.')
    if (typeof sub !== 'string' || !SUBJECT.test(sub) || !sub.isWellFormed()) throw refused('The access token names nobody in "sub".')
    if (scope !== undefined && typeof scope !== 'string') throw refused('The claim "scope" must be a string.')
    const owners: unknown = Object.hasOwn(payload, ownersClaim) ? payload[ownersClaim] : undefined
    if (!Array.isArray(owners) || !owners.every((owner) => typeof owner === 'string')) {
      throw refused(`The claim "${ownersClaim}" must be a list of owners.`)
    }
    const all = owners.length === 1 && owners[0] === '*'
    return {
      issuer,
      subject: sub,
      scopes: scope?.split(' ').filter(Boolean) ?? [],
      owners: all ? 'all' : owners,
      grants: grantsOf(payload),
    }
  }

  function grantsOf(payload: JwtPayload): Grants {
    // The issuer decides what an operator may do, and may leave it to the scopes of the token.
    if (grantsClaim === undefined) return EVERYTHING
    const grants: unknown = Object.hasOwn(payload, grantsClaim) ? payload[grantsClaim] : undefined
    const { scopes, environments } = (grants ?? {}) as { scopes?: unknown; environments?: unknown }
    const known = (one: unknown): boolean => one === 'live' || one === 'test'
    if (
      !Array.isArray(scopes) ||
      !scopes.every((one) => typeof one === 'string') ||
      !Array.isArray(environments) ||
      !environments.every(known)
    ) {
      throw refused(`The claim "${grantsClaim}" must hold scopes and environments.`)
    }
    return { scopes, environments }
  }
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

function refused(message: string): ApiKeyError {
  return new ApiKeyError('invalid_key', message)
}

function badOption(message: string): ApiKeyError {
  return new ApiKeyError('invalid_option', message)
}
