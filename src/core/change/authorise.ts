import { ApiKeyError } from '../../errors.js'
import type { Environment, KeyRow } from '../../store/store.js'
import type { Grants, Operator } from '../api-keys.js'
import { coversNetworks } from '../ip-address.js'
import { keyNotFound } from '../refusals.js'
import { ADMIN_SCOPE, hasScope, WRITE_SCOPE } from '../scope.js'

/** What a change makes of a key, or what a key is before it, as far as it matters for who may do that. */
export interface Reach {
  readonly scopes: readonly string[]
  readonly environment: Environment
  readonly expiresAt: number | null
  readonly allowedIps: readonly string[] | null
}

/** What is decided by: who asks, about whose key, and what the key is before and after. */
export interface AuthorisationCase {
  readonly caller: KeyRow | undefined
  readonly operator: Operator | undefined
  /** The key as it is; undefined where one is made or where there is none of that id. */
  readonly target: KeyRow | undefined
  /** Whose key is made, where one is made. */
  readonly newOwnerId: string | undefined
  /** The key as it would be; undefined where the change hands nothing out (a revocation). */
  readonly after: Reach | undefined
  /** Whether a key may do this to itself without `api_keys:write`. */
  readonly selfAllowed: boolean
  readonly delegation: 'bounded' | 'open'
}

/** Why this may not be done, or undefined where it may. A foreign key is as unknown as one that does not exist. */
export function authorise(attempt: AuthorisationCase): ApiKeyError | undefined {
  const { caller, operator, target, newOwnerId, selfAllowed } = attempt
  const makes = newOwnerId !== undefined
  const ownerId = makes ? newOwnerId : target?.ownerId
  const foreign =
    operator !== undefined
      ? operator.owners !== 'all' && (ownerId === undefined || !operator.owners.includes(ownerId))
      : caller !== undefined && ownerId !== undefined && ownerId !== caller.ownerId
  if (!makes && (target === undefined || foreign)) return keyNotFound()
  const scopes = operator?.scopes ?? caller?.scopes
  if (scopes === undefined) return undefined
  if (caller !== undefined && selfAllowed && target?.id === caller.id) return beyondItself(caller, attempt.after)
  if (!hasScope(scopes, WRITE_SCOPE)) return forbidden(`This needs the scope ${WRITE_SCOPE}.`)
  if (foreign)
    return forbidden(operator === undefined ? 'A key makes keys for its own owner only.' : 'This token does not name that owner.')
  return operator === undefined ? beyondCaller(attempt) : beyondGrants(attempt, operator.grants)
}

/** A key that may do something to itself without any scope cannot prolong its own life by that: whoever has stolen it would keep it for ever. */
function beyondItself(caller: KeyRow, after: Reach | undefined): ApiKeyError | undefined {
  if (after === undefined || caller.scopes.includes(ADMIN_SCOPE) || !outlives(after, caller)) return undefined
  return forbidden(`A key does not prolong its own life; that needs ${ADMIN_SCOPE}.`)
}

function outlives(one: Pick<Reach, 'expiresAt'>, other: Pick<Reach, 'expiresAt'>): boolean {
  return other.expiresAt !== null && (one.expiresAt === null || one.expiresAt > other.expiresAt)
}

/** A key hands out no more than it has itself, looked at before and after the change. */
function beyondCaller({ caller, target, after, delegation }: AuthorisationCase): ApiKeyError | undefined {
  if (caller === undefined || caller.scopes.includes(ADMIN_SCOPE)) return undefined
  if (after === undefined) {
    // A revocation hands nothing out, so scopes do not bound it. But a test key must not end a live one.
    const ends = target?.environment === 'live' && caller.environment === 'test'
    return ends ? forbidden('A test key handles test keys only.') : undefined
  }
  for (const reach of target === undefined ? [after] : [target, after]) {
    if (reach.environment !== caller.environment) return forbidden(`A ${caller.environment} key handles ${caller.environment} keys only.`)
    if (delegation === 'open') continue
    const missing = reach.scopes.find((scope) => !hasScope(caller.scopes, scope))
    if (missing !== undefined) return forbidden(`A key hands out only scopes that it has; this needs ${missing}, or ${ADMIN_SCOPE}.`)
    if (!coversNetworks(caller.allowedIps, reach.allowedIps)) {
      return forbidden(`A key hands out nothing that may be used from more addresses; this needs narrower allowedIps, or ${ADMIN_SCOPE}.`)
    }
    if (outlives(reach, caller)) {
      return forbidden(`A key hands out nothing that outlives it; this needs an earlier expiry, or ${ADMIN_SCOPE}.`)
    }
  }
  return undefined
}

function beyondGrants({ target, after }: AuthorisationCase, grants: Grants = { scopes: [], environments: [] }): ApiKeyError | undefined {
  if (after === undefined) return undefined
  for (const reach of target === undefined ? [after] : [target, after]) {
    if (!grants.environments.includes(reach.environment)) return forbidden(`This operator may not hand out ${reach.environment} keys.`)
    const missing = reach.scopes.find((scope) => !hasScope(grants.scopes, scope))
    if (missing !== undefined) return forbidden(`This operator may not hand out the scope ${missing}.`)
  }
  return undefined
}

function forbidden(message: string): ApiKeyError {
  return new ApiKeyError('insufficient_scope', message)
}
