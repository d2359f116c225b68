import type { Request } from 'express'
import { isOperator } from '../core/actor.js'
import type { Operator } from '../core/api-keys.js'
import type { Internals } from '../core/internals.js'
import { invalidKey, operatorsUnavailable } from '../core/refusals.js'
import { ApiKeyError } from '../errors.js'
import { inTime } from '../in-time.js'
import { invalidOption, refuseUnknown } from '../options.js'
import type { Operators } from './operator-jwt.js'
import { originsOption, refuseCrossOrigin } from './same-origin.js'

/**
 * Says which operator a request comes from, by the application's own login; undefined where nobody is signed in. What it throws refuses the request: an
 * `ApiKeyError` with its own code, anything else with 503.
 */
export type OperatorOf = (req: Request) => Operator | undefined | Promise<Operator | undefined>

/** What a router asks who an operator is. */
export interface OperatorDesk {
  /** Whether it is asked about requests without a token too. */
  readonly takesLogins: boolean
  /**
   * The operator of a request without a key, or a promise of it; undefined where there is none. `token` is the JWT that it brought.
   *
   * @throws ApiKeyError why it is refused; a promise rejects with one.
   */
  ask(req: Request, token: string | undefined): Operator | undefined | Promise<Operator | undefined>
}

/** How long the application may take to say who is signed in. A session store that has not answered by then is not going to. */
const MAX_WAIT_MS = 5_000
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it refuses
const NAME = /^[^\u0000-\u001f\u007f-\u009f]{1,255}$/u
const FIELDS: readonly (keyof Operator)[] = ['issuer', 'subject', 'scopes', 'owners', 'grants']

/** The options `operators` and `trustedOrigins`, checked. */
export function operatorsOption(
  operators: Operators | OperatorOf | undefined,
  trustedOrigins: readonly string[] | undefined,
  contractTakesThem: boolean,
  internals: Internals,
): OperatorDesk | undefined {
  if (operators !== undefined && !contractTakesThem) {
    throw invalidOption('The contract does not let operators in. contracts.standard does; one of your own says operators: true.')
  }
  if (typeof operators === 'function') return loginDesk(operators, originsOption(trustedOrigins), internals)
  if (trustedOrigins !== undefined) throw invalidOption('trustedOrigins is for operators that are a function of the request.')
  if (operators === undefined) return undefined
  if (typeof operators?.authenticate !== 'function') {
    throw invalidOption('operators must be what operatorJwt returned, or a function of the request that returns an operator.')
  }
  return tokenDesk(operators, internals)
}

/** Operators by the application's own login. */
function loginDesk(operatorOf: OperatorOf, trusted: ReadonlySet<string>, internals: Internals): OperatorDesk {
  return {
    takesLogins: true,
    ask(req, token) {
      // Cookies go along with what the page of a stranger sends. Asked before the function is, so that such a request does not even tell who is signed in.
      if (req.method !== 'GET' && req.method !== 'HEAD') refuseCrossOrigin(req, trusted)
      return named(internals, 'operators()', () => operatorOf(req), token === undefined ? undefined : invalidKey('malformed'))
    },
  }
}

/** Operators by their tokens, which no browser sends on its own. */
function tokenDesk(operators: Operators, internals: Internals): OperatorDesk {
  return {
    takesLogins: false,
    ask(_req, token) {
      if (token === undefined) return undefined
      const missing = new TypeError('authenticate() must return an operator or throw.')
      return named(internals, 'authenticate()', () => operators.authenticate(token), missing)
    },
  }
}

/** The operator that a function of the application names. `nobody` is thrown where it names none. */
function named(
  internals: Internals,
  what: string,
  name: () => unknown,
  nobody: Error | undefined,
): Operator | undefined | Promise<Operator | undefined> {
  try {
    const answer = name()
    if (typeof (answer as { then?: unknown } | null | undefined)?.then !== 'function') return read(answer)
    return inTime(MAX_WAIT_MS, answer as PromiseLike<unknown>, tooLate)
      .then(read)
      .catch(failed)
  } catch (error) {
    return failed(error)
  }

  function read(answer: unknown): Operator | undefined {
    if (answer !== undefined && answer !== null) return operatorIn(answer, what)
    if (nobody !== undefined) throw nobody
    return undefined
  }

  function tooLate(): Error {
    return new Error(`${what} did not say within ${MAX_WAIT_MS} ms who is asking.`)
  }

  function failed(error: unknown): never {
    // Nothing of the application's own error goes to a client. A 500 is reported where it is answered.
    const known = error instanceof ApiKeyError ? error : operatorsUnavailable(error)
    if (known.status > 500) internals.report(known)
    throw known
  }
}

/** A copy of the operator that the application named, so that it is still the same when it is looked at again. Throws where it is none. */
function operatorIn(answer: unknown, what: string): Operator {
  try {
    refuseUnknown(answer as object, FIELDS, 'An operator')
    const { issuer, subject, scopes, owners, grants } = answer as Operator
    const copy: Operator = {
      issuer,
      subject,
      scopes: listed(scopes),
      owners: owners === 'all' ? owners : listed(owners),
      ...(grants === undefined ? {} : { grants: { scopes: listed(grants.scopes), environments: listed(grants.environments) } }),
    }
    if (!isOperator(copy) || ![copy.issuer, copy.subject].every((name) => NAME.test(name) && name.isWellFormed())) {
      throw new TypeError('issuer and subject must be 1 to 255 characters, scopes a list, owners "all" or a list.')
    }
    return copy
  } catch (cause) {
    throw new ApiKeyError('internal_error', `${what} must return { issuer, subject, scopes, owners, grants? }.`, { cause })
  }
}

function listed<T>(list: readonly T[]): readonly T[] {
  if (!Array.isArray(list)) throw new TypeError('scopes, owners and what grants holds must be lists; owners may be "all".')
  return [...list]
}
