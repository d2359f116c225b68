import { ApiKeyError } from '../errors.js'
import { canonicalNetwork, networkMatcher } from './ip-address.js'
import { invalidRequest } from './refusals.js'

/** So many addresses and networks a key may have. */
export const MAX_ALLOWED_IPS = 100

/** The addresses that a key may be used from, in one form only; null for any. Throws `invalid_request`. */
export function allowedIpsList(value: unknown): readonly string[] | null {
  if (value === null) return null
  if (!Array.isArray(value) || value.length > MAX_ALLOWED_IPS)
    throw invalidRequest(
      `allowedIps must be a list of at most ${MAX_ALLOWED_IPS} addresses and networks, such as ["192.0.2.0/24"], or null.`,
    )
  // A list that was computed and came out empty must not open a key to everybody, nor to nobody.
  if (value.length === 0) throw invalidRequest('allowedIps is an empty list. Write null for a key that may be used from any address.')
  return [...new Set(value.map(networkOf))]
}

function networkOf(entry: unknown, index: number): string {
  if (typeof entry !== 'string' || entry.length > 64) throw invalidRequest(`allowedIps[${index}] must be a string such as "192.0.2.0/24".`)
  const found = canonicalNetwork(entry)
  if ('wrong' in found) throw invalidRequest(`allowedIps[${index}] ${found.wrong}.`)
  return found.network
}

interface Limited {
  readonly id: string
  readonly allowedIps: readonly string[] | null
}

/** By the list itself, which lives as long as what is known of its key: most keys have none, and pay nothing. */
const matchers = new WeakMap<readonly string[], (address: string | undefined) => boolean>()

/** Whether a key may be used from an address; an address that is not known is not one of a list. */
export function isAllowedFrom({ allowedIps }: Limited, address: string | undefined): boolean {
  if (allowedIps === null) return true
  const known = matchers.get(allowedIps)
  const matches = known ?? networkMatcher(allowedIps)
  if (known === undefined) matchers.set(allowedIps, matches)
  return matches(address)
}

/** The refusal that the holder of a key gets. It names no address: neither those of the list nor the one that was seen. */
export function ipNotAllowed({ id }: { readonly id: string | undefined }): ApiKeyError {
  return new ApiKeyError('ip_not_allowed', 'The API key may not be used from this address.', { keyId: id })
}
