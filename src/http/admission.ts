import { SCOPE_TOKEN } from '../core/input.js'
import type { ApiKey } from '../core/key.js'
import { hasScope } from '../core/scope.js'
import { ApiKeyError } from '../errors.js'

/** What a route asks of a key besides that it is good. */
export interface AdmissionOptions {
  /**
   * The scope that the key must have, or a list of which it must have all. A key's `reports:*` covers `reports:read`, and its `*` covers all but
   * `api_keys:admin`. Default none.
   */
  scope?: string | readonly string[]
}

/** Says whether a good key may use a route, and what the challenge of a refusal names. */
export interface Admission {
  /** The scopes in the challenge of a refusal, as `scope` has them (RFC 6750 §3); empty for none. */
  readonly scope: string
  /** @throws ApiKeyError what the holder of the key may know: what is missing. */
  check(key: ApiKey): void
}

/** Checks the options. Throws `invalid_option`. */
export function admission(options: AdmissionOptions): Admission {
  if ('scope' in options && options.scope === undefined) {
    throw new ApiKeyError('invalid_option', 'scope is undefined, which would let every key in. Leave it out if you mean that.')
  }
  const scopes = scopeOption(options.scope)
  return {
    scope: scopes.join(' '),
    check(key) {
      for (const wanted of scopes) if (!hasScope(key.scopes, wanted)) throw lacksScopes(key, scopes)
    },
  }
}

function lacksScopes(key: ApiKey, scopes: readonly string[]): ApiKeyError {
  const missing = scopes.filter((wanted) => !hasScope(key.scopes, wanted))
  const what = missing.length === 1 ? 'the scope' : 'the scopes'
  return new ApiKeyError('insufficient_scope', `This needs ${what} ${missing.join(', ')}.`, { keyId: key.id })
}

function scopeOption(scope: AdmissionOptions['scope']): readonly string[] {
  const scopes = scope === undefined ? [] : typeof scope === 'string' ? [scope] : scope
  const good = Array.isArray(scopes) && scopes.every((one: unknown) => typeof one === 'string' && SCOPE_TOKEN.test(one))
  if (!good) throw new ApiKeyError('invalid_option', 'scope must be a scope token such as "reports:read", or a list of them.')
  return [...scopes]
}
