import type { Request } from 'express'
import type { AnyApiKeys, Operator } from '../core/api-keys.js'
import type { Internals } from '../core/internals.js'
import { invalidKey } from '../core/refusals.js'
import { digestOf } from '../core/secret.js'
import { ApiKeyError } from '../errors.js'
import type { OperatorDesk } from './operators.js'
import { credentialOf, missingCredential, OPERATORS_TOKEN, refuseLost, type Source } from './source.js'

/** Who asks: the key of a secret, which nobody has authenticated yet, or an operator, who has been. */
export type Caller = { readonly secret: string } | { readonly operator: Operator }

/** Who asks, or why that cannot be told. */
export type Identified = { readonly caller: Caller } | { readonly refusal: unknown }

const JWT = /^[\w-]+\.[\w-]+\.[\w-]*$/

/** Tells who asks, with no I/O but what operators need. What looks like a secret is one, whoever the operators are. */
export function identify(
  req: Request,
  keys: AnyApiKeys,
  sources: readonly Source[],
  operators: OperatorDesk | undefined,
): Identified | Promise<Identified> {
  try {
    const token = operators === undefined ? undefined : tokenOf(req, keys, sources, operators)
    const credential = token === undefined ? credentialOf(req, sources) : undefined
    if (credential !== undefined)
      return keys.wellFormed(credential) ? { caller: { secret: credential } } : { refusal: invalidKey('malformed') }
    // A key that got lost on its way must not turn into whoever is signed in.
    if (operators?.takesLogins === true) refuseLost(req, sources, (text) => keys.wellFormed(text))
    const asked = operators?.ask(req, token)
    const identified = (operator: Operator | undefined): Identified =>
      operator === undefined ? { refusal: missingCredential(sources) } : { caller: { operator } }
    return asked instanceof Promise ? asked.then(identified).catch((refusal: unknown) => ({ refusal })) : identified(asked)
  } catch (refusal) {
    return { refusal }
  }
}

/** The JWT of an operator; undefined where there is none. Throws where a key came along. */
function tokenOf(req: Request, keys: AnyApiKeys, sources: readonly Source[], { takesLogins }: OperatorDesk): string | undefined {
  const elsewhere = sources.filter(({ header }) => header !== 'authorization')
  // Where keys come in another header only, what is in this one is the application's own affair.
  if (takesLogins && elsewhere.length === sources.length) return undefined
  const token = OPERATORS_TOKEN.read(req)
  if (token === undefined || !JWT.test(token) || keys.wellFormed(token)) return undefined
  credentialOf(req, [OPERATORS_TOKEN, ...elsewhere])
  return token
}

/** The id of the caller's key, where this instance has met its secret lately and it was good then. No I/O, and no verdict. */
export function familiarKey(internals: Internals, caller: Caller): string | undefined {
  return 'secret' in caller ? internals.familiar(caller.secret) : undefined
}

/**
 * Whose requests are counted together: those of a key, across its rotations and whichever instance they reach, so an instance that has not met the secret
 * asks the store whose it is. Bad secrets are counted each for itself. Never the secret itself: the name goes to a shared counter.
 */
export async function countedAs(internals: Internals, caller: Caller): Promise<string> {
  if ('operator' in caller) return `operator:${digestOf(JSON.stringify([caller.operator.issuer, caller.operator.subject]))}`
  return (await internals.keyIdOf(caller.secret)) ?? digestOf(caller.secret)
}

/** The owner that an operator acts for: the one it names, or its only one. Undefined for a key, which acts for its own and names none. */
export function ownerOf(caller: Caller, named: unknown): string | undefined {
  if (!('operator' in caller)) {
    if (named !== undefined) throw new ApiKeyError('invalid_request', 'ownerId is for operators; a key acts for its own owner.')
    return undefined
  }
  const { owners } = caller.operator
  const [only, ...more] = owners === 'all' ? [] : owners
  const ownerId = named ?? (more.length === 0 ? only : undefined)
  if (typeof ownerId !== 'string') {
    throw new ApiKeyError('invalid_request', 'Say which owner: this token names none, or several. Send ownerId.')
  }
  if (!mayActFor(caller, ownerId)) throw new ApiKeyError('insufficient_scope', 'This token does not name that owner.')
  return ownerId
}

/** Whether an operator's token names this owner. True for a key, which acts for its own owner only. */
export function mayActFor(caller: Caller, ownerId: string): boolean {
  return !('operator' in caller) || caller.operator.owners === 'all' || caller.operator.owners.includes(ownerId)
}
