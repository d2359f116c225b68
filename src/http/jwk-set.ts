import { createPublicKey, type JsonWebKey, type KeyObject } from 'node:crypto'
import { type Clock, elapsedMs, type Instant, instant, systemClock } from '../core/clock.js'
import { ApiKeyError } from '../errors.js'
import { invalidOption } from '../options.js'

/** A public key of an issuer. */
export interface IssuersKey {
  readonly key: KeyObject
  /** The one algorithm that it is for, where the issuer says so. */
  readonly alg: string | undefined
}

/** The public keys of an issuer, as it publishes them. */
export interface JwkSet {
  /**
   * The keys of this `kid`; more than one only where an issuer gives a name twice. `tell` hears of trouble that was got over.
   *
   * @throws ApiKeyError `operators_unavailable` where the issuer did not say in time whether there is such a key.
   */
  named(kid: string, tell?: (trouble: ApiKeyError) => void): Promise<readonly IssuersKey[]>
}

/** How long keys are used without asking again: a key that the issuer withdraws is good for as long. */
const FRESH_MS = 600_000
/** How long they are used while the issuer cannot be reached. */
const MAX_AGE_MS = 3_600_000
/** A token with an unknown `kid` makes the keys be read again, but no more often: anyone can send one. */
const ASK_AGAIN_MS = 10_000
const TIMEOUT_MS = 3_000
/** Keycloak with ten keys and their certificates has 30 KB. */
const MAX_BYTES = 262_144
const MAX_KEYS = 100
const MIN_RSA_BITS = 2_048

/** The option `jwksUrl`, checked. Throws `invalid_option`. */
export function jwksUrlOption(url: unknown): string {
  const parsed = typeof url === 'string' && URL.canParse(url) ? new URL(url) : undefined
  if (parsed === undefined || parsed.username !== '' || parsed.password !== '' || parsed.hash !== '') {
    throw invalidOption('jwksUrl must be an address such as "https://id.example/.well-known/jwks.json".')
  }
  // Whoever can change the keys on their way decides who is an operator.
  const local = ['localhost', '127.0.0.1', '[::1]'].includes(parsed.hostname)
  if (parsed.protocol !== 'https:' && !(parsed.protocol === 'http:' && local)) {
    throw invalidOption('jwksUrl must be an https: address. http: is for this machine only.')
  }
  return parsed.href
}

/** The keys at an address, read at the first token and then again as above. One request is under way at a time. */
export function jwkSet(url: string, clock: Clock = systemClock): JwkSet {
  let keys: ReadonlyMap<string, readonly IssuersKey[]> | undefined
  let readAt: Instant | undefined
  let askedAt: Instant | undefined
  let asking: Promise<void> | undefined
  /** Why the last request failed; undefined where it did not. */
  let failure: ApiKeyError | undefined

  return {
    async named(kid, tell) {
      const known = keys?.get(kid)
      if (known !== undefined && ageMs() < FRESH_MS) return known
      if (asking !== undefined || askedAt === undefined || elapsedMs(clock, askedAt) >= ASK_AGAIN_MS) {
        asking ??= ask(tell)
        await asking
      }
      const found = keys !== undefined && ageMs() < MAX_AGE_MS ? keys.get(kid) : undefined
      // While the issuer is away nobody can tell whether a key that is not here is a new one of its.
      if (found === undefined && failure !== undefined) throw failure
      return found ?? []
    },
  }

  function ageMs(): number {
    return readAt === undefined ? Number.POSITIVE_INFINITY : elapsedMs(clock, readAt)
  }

  async function ask(tell: ((trouble: ApiKeyError) => void) | undefined): Promise<void> {
    const at = instant(clock)
    askedAt = at
    try {
      keys = keysIn(await textAt(url))
      readAt = at
      failure = undefined
    } catch (cause) {
      failure = new ApiKeyError('operators_unavailable', 'At the moment it cannot be found out who is asking.', { cause })
      tell?.(failure)
    } finally {
      asking = undefined
    }
  }
}

/** What is at an address. A redirect might lead anywhere, so none is followed. */
async function textAt(url: string): Promise<string> {
  const signal = AbortSignal.timeout(TIMEOUT_MS)
  const response = await fetch(url, { redirect: 'error', signal, headers: { accept: 'application/json, application/jwk-set+json' } })
  if (response.status !== 200 || response.body === null) {
    await response.body?.cancel()
    throw new Error(`The issuer answered ${response.status} instead of its keys.`)
  }
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    bytes += chunk.byteLength
    if (bytes > MAX_BYTES) throw new Error(`The issuer answered with more than ${MAX_BYTES} bytes.`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

function keysIn(text: string): ReadonlyMap<string, readonly IssuersKey[]> {
  const { keys } = (JSON.parse(text) ?? {}) as { keys?: unknown }
  if (!Array.isArray(keys) || keys.length > MAX_KEYS) throw new Error(`The issuer did not answer with a list of at most ${MAX_KEYS} keys.`)
  const byKid = new Map<string, readonly IssuersKey[]>()
  for (const one of keys as readonly unknown[]) {
    const found = issuersKey(one)
    if (found !== undefined) byKid.set(found.kid, [...(byKid.get(found.kid) ?? []), found])
  }
  if (byKid.size === 0) throw new Error('The issuer has published no key that checks signatures.')
  return byKid
}

/** A key that checks signatures; undefined for any other: issuers publish keys for encryption and of kinds to come beside them. */
function issuersKey(jwk: unknown): (IssuersKey & { readonly kid: string }) | undefined {
  const { kid, kty, use, alg, key_ops: operations, n, e, crv, x, y } = (jwk ?? {}) as { readonly [member: string]: unknown }
  if (typeof kid !== 'string' || (use !== undefined && use !== 'sig') || (alg !== undefined && typeof alg !== 'string')) return undefined
  if (operations !== undefined && !(Array.isArray(operations) && operations.includes('verify'))) return undefined
  // The public members only. A shared secret (`oct`) is none.
  const members = kty === 'RSA' ? { n, e } : kty === 'EC' ? { crv, x, y } : kty === 'OKP' ? { crv, x } : undefined
  if (members === undefined) return undefined
  try {
    const key = createPublicKey({ key: { kty, ...members } as JsonWebKey, format: 'jwk' })
    if (key.asymmetricKeyType === 'rsa' && (key.asymmetricKeyDetails?.modulusLength ?? 0) < MIN_RSA_BITS) return undefined
    return { kid, key, alg }
  } catch {
    return undefined
  }
}
