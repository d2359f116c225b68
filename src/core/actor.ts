import type { Actor, Operator } from './api-keys.js'
import { invalidRequest } from './refusals.js'

const EXPECTED = `as must say who asks: 'application', { secret } or { operator }.`

/** Checks who asks. Authority is never the default, so anything that is missing, undefined, doubled or unknown is refused. */
export function actorOption(as: unknown): Actor {
  if (as === 'application') return as
  if (typeof as !== 'object' || as === null) throw invalidRequest(EXPECTED)
  const names = Object.keys(as)
  const { secret, operator } = as as { secret?: unknown; operator?: unknown }
  if (names.length !== 1 || (secret === undefined) === (operator === undefined)) throw invalidRequest(EXPECTED)
  if (secret !== undefined) {
    if (typeof secret !== 'string') throw invalidRequest('as.secret must be a string.')
    return { secret }
  }
  if (!isOperator(operator))
    throw invalidRequest('as.operator must be { issuer, subject, scopes, owners, grants? }, as operatorJwt gives it.')
  return { operator }
}

export function secretOf(actor: Actor): string | undefined {
  return typeof actor === 'object' && 'secret' in actor ? actor.secret : undefined
}

export function operatorOf(actor: Actor): Operator | undefined {
  return typeof actor === 'object' && 'operator' in actor ? actor.operator : undefined
}

/** Whether this is an operator as commands take them. */
export function isOperator(operator: unknown): operator is Operator {
  if (typeof operator !== 'object' || operator === null) return false
  const { issuer, subject, scopes, owners, grants } = operator as { readonly [name in keyof Operator]?: unknown }
  return (
    typeof issuer === 'string' &&
    typeof subject === 'string' &&
    subject !== '' &&
    subject.length <= 255 &&
    isTexts(scopes) &&
    (owners === 'all' || isTexts(owners)) &&
    (grants === undefined || isGrants(grants))
  )
}

function isGrants(grants: unknown): boolean {
  const { scopes, environments } = (grants ?? {}) as { scopes?: unknown; environments?: unknown }
  return isTexts(scopes) && isTexts(environments)
}

function isTexts(list: unknown): boolean {
  return Array.isArray(list) && list.every((one) => typeof one === 'string')
}
