import { type KeyObject, verify } from 'node:crypto'

/** What a token must say besides being signed. */
export interface Expected {
  readonly algorithms: readonly string[]
  readonly issuer: string
  /** One of these will do. */
  readonly audience: readonly string[]
  /** In seconds. */
  readonly clockTolerance: number
}

const TOKEN = /^[\w-]+\.[\w-]+\.[\w-]{86}$/

/**
 * The claims of a token that is signed with Ed25519, which jsonwebtoken cannot check; undefined where it is not good. Looks at signature, `iss`, `aud`, `exp`
 * and `nbf`, as jsonwebtoken does for the other algorithms.
 *
 * @see RFC 8037 §3.1, RFC 8032 §5.1.7
 */
export function verifiedEd25519(token: string, key: KeyObject, expected: Expected): object | undefined {
  if (!TOKEN.test(token)) return undefined
  const [header = '', payload = '', signature = ''] = token.split('.')
  const bytes = Buffer.from(signature, 'base64url')
  const { alg } = object(header) as { alg?: unknown }
  if (typeof alg !== 'string' || !expected.algorithms.includes(alg)) return undefined
  // One signature has one form.
  if (bytes.toString('base64url') !== signature) return undefined
  if (!verify(null, Buffer.from(`${header}.${payload}`), key, bytes)) return undefined
  const claims = object(payload)
  return fits(claims, expected) ? claims : undefined
}

/** The object that a part of a token holds; an empty one where it is something else. Throws where it is no JSON. */
function object(part: string): object {
  const value: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.from(part, 'base64url')))
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : {}
}

function fits(
  { iss, aud, exp, nbf }: { iss?: unknown; aud?: unknown; exp?: unknown; nbf?: unknown },
  { issuer, audience, clockTolerance }: Expected,
): boolean {
  const now = Date.now() / 1_000
  const audiences: readonly unknown[] = Array.isArray(aud) ? aud : [aud]
  return (
    iss === issuer &&
    audiences.some((one) => typeof one === 'string' && audience.includes(one)) &&
    typeof exp === 'number' &&
    now < exp + clockTolerance &&
    (nbf === undefined || (typeof nbf === 'number' && nbf <= now + clockTolerance))
  )
}
