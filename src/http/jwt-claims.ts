import type { Grants, Operator } from '../core/api-keys.js'
import { ADMIN_SCOPE } from '../core/scope.js'
import { ApiKeyError } from '../errors.js'
import { invalidOption } from '../options.js'

/** The name of a claim, or the names that lead into nested ones: `['realm_access', 'roles']`. */
export type ClaimName = string | readonly string[]

/** How the claims of a token are read. */
export interface ClaimsReading {
  readonly issuer: string
  readonly scopeClaim: readonly string[]
  readonly ownersClaim: readonly string[]
  /** Undefined where operators may hand out everything. */
  readonly grantsClaim: readonly string[] | undefined
  readonly maxLifetimeMs: number
  readonly clockToleranceMs: number
}

const EVERYTHING: Grants = { scopes: ['*', ADMIN_SCOPE], environments: ['live', 'test'] }
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it refuses
const SUBJECT = /^[^\u0000-\u001f\u007f-\u009f]{1,255}$/u

/** An option that names a claim, checked. Throws `invalid_option`. */
export function claimOption(option: string, name: ClaimName): readonly string[] {
  const path: readonly unknown[] = Array.isArray(name) ? [...name] : [name]
  if (path.length === 0 || path.some((one) => typeof one !== 'string' || one === '')) {
    throw invalidOption(`${option} must be the name of a claim, or a list of names that leads into nested ones, such as ["a", "b"].`)
  }
  return path as readonly string[]
}

/**
 * The operator that the claims of a good token name.
 *
 * @throws ApiKeyError `invalid_key` where they name none.
 */
export function operatorOf(payload: object, reading: ClaimsReading): Operator {
  const now = Date.now()
  const { issuer, scopeClaim, ownersClaim, maxLifetimeMs, clockToleranceMs } = reading
  const { exp, iat, sub } = payload as { readonly [claim: string]: unknown }
  // An issuer whose tokens are good for exactly the longest time may have a clock that is ahead.
  if (typeof exp !== 'number' || exp * 1_000 > now + maxLifetimeMs + clockToleranceMs) {
    throw refused('The access token must expire, and soon enough.')
  }
  if (iat !== undefined && !(typeof iat === 'number' && iat * 1_000 <= now + clockToleranceMs)) {
    throw refused('The access token is from the future.')
  }
  if (typeof sub !== 'string' || !SUBJECT.test(sub) || !sub.isWellFormed()) throw refused('The access token names nobody in "sub".')
  const scopes = scopesIn(claimAt(payload, scopeClaim))
  if (scopes === undefined)
    throw refused(`The claim "${scopeClaim.join('.')}" must be a list of scopes, or a text with spaces between them.`)
  const owners = ownersIn(claimAt(payload, ownersClaim))
  if (owners === undefined) throw refused(`The claim "${ownersClaim.join('.')}" must be a list of owners, or one.`)
  return { issuer, subject: sub, scopes, owners, grants: grantsOf(payload, reading) }
}

/** What is at the end of a path of own members, so that nothing comes from a prototype. */
function claimAt(payload: object, path: readonly string[]): unknown {
  let at: unknown = payload
  for (const name of path) {
    if (typeof at !== 'object' || at === null || Array.isArray(at) || !Object.hasOwn(at, name)) return undefined
    at = (at as { readonly [name: string]: unknown })[name]
  }
  return at
}

/** A token without the claim has no scopes. */
function scopesIn(claim: unknown): readonly string[] | undefined {
  if (claim === undefined) return []
  if (typeof claim === 'string') return claim.split(' ').filter(Boolean)
  return isTexts(claim) ? claim : undefined
}

/** A text is one owner, never all of them: that takes a list of its own. */
function ownersIn(claim: unknown): readonly string[] | 'all' | undefined {
  if (typeof claim === 'string') return claim === '' || claim === '*' ? undefined : [claim]
  if (!isTexts(claim)) return undefined
  return claim.length === 1 && claim[0] === '*' ? 'all' : claim
}

function grantsOf(payload: object, { grantsClaim }: ClaimsReading): Grants {
  // The issuer decides what an operator may do, and may leave it to the scopes of the token.
  if (grantsClaim === undefined) return EVERYTHING
  const { scopes, environments } = (claimAt(payload, grantsClaim) ?? {}) as { scopes?: unknown; environments?: unknown }
  const known = (one: string): one is Grants['environments'][number] => one === 'live' || one === 'test'
  if (!isTexts(scopes) || !isTexts(environments) || !environments.every(known)) {
    throw refused(`The claim "${grantsClaim.join('.')}" must hold scopes and environments.`)
  }
  return { scopes, environments: environments.filter(known) }
}

function isTexts(list: unknown): list is readonly string[] {
  return Array.isArray(list) && list.every((one) => typeof one === 'string')
}

function refused(message: string): ApiKeyError {
  return new ApiKeyError('invalid_key', message)
}
