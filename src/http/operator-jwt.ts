import { createPublicKey, createSecretKey, KeyObject } from 'node:crypto'
import type { JWTVerifyGetKey } from 'jose'
import jwt, { type JwtHeader } from 'jsonwebtoken'
import type { Operator } from '../core/api-keys.js'
import { operatorsUnavailable } from '../core/refusals.js'
import { ApiKeyError } from '../errors.js'
import { integerOption, refuseUnknown } from '../options.js'
import { type ClaimName, type ClaimsReading, claimOption, operatorOf } from './jwt-claims.js'
import { publishedKeys } from './published-keys.js'

export type { ClaimName } from './jwt-claims.js'

/** Authenticates operators by their access tokens. */
export interface Operators {
  /** @throws ApiKeyError `invalid_key` if the token is not good, and `operators_unavailable` if that cannot be found out. A promise rejects with them. */
  authenticate(token: string): Operator | Promise<Operator>
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
   * Where the issuer publishes its public keys (RFC 7517 §5), `https:`. They are kept for 10 minutes, and read again for a `kid` that is not among them, no
   * sooner than 30 seconds after they were read. While they cannot be read, a token that needs them is answered with 503, and each has them asked for again.
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
export function operatorJwt(options: OperatorJwtOptions): Operators {
  refuseUnknown(options, OPTIONS, 'operatorJwt')
  const given = [options.key, options.keys, options.jwksUrl].filter((one) => one !== undefined)
  if (given.length !== 1) throw badOption('Give either key, or keys by their kid, or jwksUrl.')
  const checks = checksOf(options)
  if (options.jwksUrl !== undefined) return throughJose(checks, publishedKeys(jwksUrlOption(options.jwksUrl)))
  const keyFor = keysOf(options)
  if (familyOf(options.algorithms[0] ?? '')?.keyType === 'ed25519')
    return throughJose(checks, async () => async (header) => held(keyFor(header)))
  return {
    authenticate(token) {
      const header = headerOf(token)
      return operatorOf(verified(token, held(header && keyFor(header)), checks), checks.reading)
    },
  }
}

/** What is the same for every token, wherever its key is from. */
interface Checks {
  readonly reading: ClaimsReading
  readonly audience: [string, ...string[]]
  readonly algorithms: string[]
}

function checksOf(options: OperatorJwtOptions): Checks {
  return { reading: readingOf(options), audience: audiencesOf(options.audience), algorithms: algorithmsOf(options) }
}

function verified(token: string, key: KeyObject, { reading, audience, algorithms }: Checks): object {
  const clockTolerance = reading.clockToleranceMs / 1_000
  try {
    const payload = jwt.verify(token, key, { algorithms: algorithms as jwt.Algorithm[], issuer: reading.issuer, audience, clockTolerance })
    if (typeof payload === 'object') return payload
  } catch {
    // Neither the library's message nor its cause, since both quote the token.
  }
  throw notValid()
}

/** By jose, which knows published keys and Ed25519. It is loaded at the first token, by those who need it only. */
function throughJose({ reading, audience, algorithms }: Checks, keysBy: () => Promise<JWTVerifyGetKey>): Operators {
  let keys: Promise<JWTVerifyGetKey> | undefined
  return {
    async authenticate(token) {
      const { jwtVerify } = await import('jose')
      keys ??= keysBy()
      const how = { algorithms, issuer: reading.issuer, audience, clockTolerance: reading.clockToleranceMs / 1_000 }
      const { payload } = await jwtVerify(token, await keys, how).catch((error: unknown) => {
        if (error instanceof ApiKeyError) throw error
        throw isOfToken(error) ? notValid() : operatorsUnavailable(error)
      })
      return operatorOf(payload, reading)
    },
  }
}

/** The option `jwksUrl`, checked. */
function jwksUrlOption(address: unknown): URL {
  const url = typeof address === 'string' && URL.canParse(address) ? new URL(address) : undefined
  if (url === undefined || url.username !== '' || url.password !== '' || url.hash !== '') {
    throw badOption('jwksUrl must be an address such as "https://id.example/.well-known/jwks.json".')
  }
  // Whoever can change the keys on their way decides who is an operator.
  const isLocal = ['localhost', '127.0.0.1', '[::1]'].includes(url.hostname)
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && isLocal)) {
    throw badOption('jwksUrl must be an https: address. http: is for this machine only.')
  }
  return url
}

const OF_TOKEN = ['ERR_JOSE_ALG_NOT_ALLOWED', 'ERR_JOSE_NOT_SUPPORTED', 'ERR_JWKS_NO_MATCHING_KEY', 'ERR_JWKS_MULTIPLE_MATCHING_KEYS']

/** Whether an error of jose is about the token, and not about getting the keys. */
function isOfToken(error: unknown): boolean {
  const { code } = error as { code?: unknown }
  return typeof code === 'string' && (/^ERR_JW[TS]_/.test(code) || OF_TOKEN.includes(code))
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

function algorithmsOf({ algorithms, jwksUrl }: OperatorJwtOptions): string[] {
  const families = new Set(Array.isArray(algorithms) ? algorithms.map(familyOf) : [])
  const one = families.size === 1 || (jwksUrl !== undefined && families.size > 1)
  if (!one || families.has(undefined)) {
    throw badOption(`algorithms must be a list of one family: ${FAMILIES.map((family) => family.algorithms.join(', ')).join('; or ')}.`)
  }
  if (jwksUrl !== undefined && [...families].some((family) => family?.keyType === 'secret')) {
    throw badOption('Nobody publishes a shared secret: with jwksUrl, algorithms must be those of public keys, such as RS256.')
  }
  return [...algorithms]
}

function familyOf(algorithm: string): Family | undefined {
  return FAMILIES.find(({ algorithms }) => algorithms.includes(algorithm))
}

/** Finds the key of a token among those that were given. */
function keysOf(options: OperatorJwtOptions): (header: { readonly kid?: string | undefined }) => KeyObject | undefined {
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

function held(key: KeyObject | undefined): KeyObject {
  if (key === undefined) throw refused('The token does not name a known key.')
  return key
}

function notValid(): ApiKeyError {
  return refused('The access token is not valid.')
}

function refused(message: string): ApiKeyError {
  return new ApiKeyError('invalid_key', message)
}

function badOption(message: string): ApiKeyError {
  return new ApiKeyError('invalid_option', message)
}
