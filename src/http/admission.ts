import { SCOPE_TOKEN } from '../core/input.js'
import type { ApiKey } from '../core/key.js'
import { hasScope } from '../core/scope.js'
import { ApiKeyError } from '../errors.js'
import { invalidOption } from '../options.js'
import type { Environment } from '../store/store.js'

/** What a route asks of a key besides that it is good. */
export interface AdmissionOptions {
  /**
   * The scope that the key must have, or a list of which it must have all. A key's `reports:*` covers `reports:read`, and its `*` covers all but
   * `api_keys:admin`. Default none.
   */
  scope?: string | readonly string[]
  /** A list of scopes of which the key must have one. Default none. */
  anyScope?: readonly string[]
  /** The environment that the key must be of: with `live`, test keys are refused. Default any. */
  environment?: Environment
}

export const ADMISSION: readonly (keyof AdmissionOptions)[] = ['scope', 'anyScope', 'environment']

/** Says whether a good key may use a route, and what the challenge of a refusal names. */
export interface Admission {
  /** The scopes in the challenge of a refusal, as `scope` has them (RFC 6750 §3); empty for none. */
  readonly scope: string
  /** @throws ApiKeyError what the holder of the key may know: what is missing. */
  check(key: ApiKey): void
}

/** Checks the options. Throws `invalid_option`. What is computed and came out undefined, or empty, would let every key in. */
export function admission(options: AdmissionOptions): Admission {
  for (const name of ADMISSION) {
    if (name in options && options[name] === undefined) {
      throw invalidOption(`${name} is undefined, which would let every key in. Leave it out if you mean that.`)
    }
  }
  const { environment } = options
  if (environment !== undefined && environment !== 'live' && environment !== 'test')
    throw invalidOption('environment must be "live" or "test".')
  const all = scopesOption('scope', options.scope)
  const any = scopesOption('anyScope', options.anyScope)
  if (typeof options.anyScope === 'string') throw invalidOption('anyScope must be a list of scope tokens. For one scope there is scope.')
  return {
    scope: [...all, ...any].join(' '),
    check(key) {
      if (environment !== undefined && key.environment !== environment) throw wrongEnvironment(key, environment)
      for (const wanted of all) if (!hasScope(key.scopes, wanted)) throw lacksScopes(key, all)
      if (any.length > 0 && !any.some((wanted) => hasScope(key.scopes, wanted))) throw lacksAny(key, any)
    },
  }
}

function wrongEnvironment({ id, environment }: ApiKey, wanted: Environment): ApiKeyError {
  return new ApiKeyError('wrong_environment', `This needs a ${wanted} key, and the one presented is a ${environment} key.`, { keyId: id })
}

function lacksScopes(key: ApiKey, scopes: readonly string[]): ApiKeyError {
  const missing = scopes.filter((wanted) => !hasScope(key.scopes, wanted))
  const what = missing.length === 1 ? 'the scope' : 'the scopes'
  return new ApiKeyError('insufficient_scope', `This needs ${what} ${missing.join(', ')}.`, { keyId: key.id })
}

function lacksAny({ id }: ApiKey, scopes: readonly string[]): ApiKeyError {
  const which = scopes.length === 1 ? `the scope ${scopes[0]}` : `one of the scopes ${scopes.join(', ')}`
  return new ApiKeyError('insufficient_scope', `This needs ${which}.`, { keyId: id })
}

function scopesOption(name: string, scope: string | readonly string[] | undefined): readonly string[] {
  if (scope === undefined) return []
  const scopes = typeof scope === 'string' ? [scope] : scope
  const good = Array.isArray(scopes) && [...scopes].every((one: unknown) => typeof one === 'string' && SCOPE_TOKEN.test(one))
  if (!good) throw invalidOption(`${name} must be a scope token such as "reports:read", or a list of them.`)
  if (scopes.length === 0) throw invalidOption(`${name} is an empty list, which would let every key in. Leave it out if you mean that.`)
  // A key holds wildcards; a route asks for what it is about.
  if (scopes.some((one: string) => one.includes('*'))) {
    throw invalidOption(`${name} holds "*". A key's scope may end in it; a route names the scopes that it needs.`)
  }
  return [...scopes]
}
