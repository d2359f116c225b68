/**
 * Everything that can go wrong, as one closed union.
 *
 * A wrong key is not an error but a result of `verify()`; where a command cannot go on with it (`rotate`, `revoke`, …)
 * it is `invalid_key`.
 */
export type ApiKeyErrorCode =
  | 'invalid_option'
  | 'invalid_request'
  | 'credential_missing'
  | 'credential_malformed'
  | 'invalid_key'
  | 'insufficient_scope'
  | 'rotation_secret_missing'
  | 'rotation_secret_required'
  | 'rotation_secret_not_configured'
  | 'key_id_invalid'
  | 'key_not_found'
  | 'key_revoked'
  | 'key_expired'
  | 'idempotency_key_missing'
  | 'idempotency_key_invalid'
  | 'idempotency_key_mismatch'
  | 'idempotency_key_spent'
  | 'rotation_superseded'
  | 'rotation_in_grace'
  | 'secret_in_grace'
  | 'rate_limited'
  | 'body_too_large'
  | 'unsupported_media_type'
  | 'store_unavailable'
  | 'store_misconfigured'
  | 'outcome_unknown'
  | 'retried_without_key'
  | 'internal_error'

/** Why a secret is not accepted. */
export type RejectionReason = 'malformed' | 'unknown' | 'expired' | 'revoked' | 'rotated'

/**
 * Reports a failure with a stable `code`, one plain sentence and, where there is one, its `cause`.
 * Neither ever holds a secret. `instanceof` goes by a brand, so it also knows the errors of another installed copy of the package.
 */
export class ApiKeyError extends Error {
  override readonly name = 'ApiKeyError'
  readonly code: ApiKeyErrorCode
  /** The HTTP status of the code: Express and http-errors look for it under this name, as for the next two. */
  readonly status: number
  /** What an answer with this error should carry: `Cache-Control`, `WWW-Authenticate`, `Retry-After`. */
  readonly headers: { readonly [name: string]: string }
  /** Whether a client may be shown the message: false from 500 on. */
  readonly expose: boolean
  /** Why a key was refused, where the code is `invalid_key`. For the server's own logs: a client is told the same whatever it is. */
  readonly reason: RejectionReason | 'rotation_secret' | undefined
  /** The key that was refused, where that is known. For the server's own logs too. */
  readonly keyId: string | undefined

  constructor(
    code: ApiKeyErrorCode,
    message: string,
    options: { cause?: unknown; reason?: RejectionReason | 'rotation_secret' | undefined; keyId?: string | undefined } = {},
  ) {
    super(message, 'cause' in options ? { cause: options.cause } : undefined)
    this.code = code
    this.status = statusOf(code)
    this.headers = failureHeaders(code)
    this.expose = this.status < 500
    this.reason = options.reason
    this.keyId = options.keyId
    Object.defineProperty(this, BRAND, { value: true })
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    // biome-ignore lint/complexity/noThisInStatic: a subclass is told by itself, not by the brand of all
    if (this !== ApiKeyError) return Object.prototype.isPrototypeOf.call(this.prototype, value as object)
    return typeof value === 'object' && value !== null && (value as { [BRAND]?: unknown })[BRAND] === true
  }
}

/** The same symbol in every copy of the package, so that the router of one knows the errors of another. */
const BRAND = Symbol.for('express-api-keys.error')

/** The HTTP status of a code; 500 for one that is not known here. */
export function statusOf(code: ApiKeyErrorCode): number {
  return STATUS[code] ?? 500
}

/** Whether a failure carries a challenge: each 401 does, and what RFC 6750 has an `error` for. @see RFC 6750 §3 */
export function challenges(code: ApiKeyErrorCode, status: number): boolean {
  return status === 401 || CHALLENGE[code] !== undefined
}

/** The headers of a failure: `Cache-Control`, a challenge, `Retry-After`. */
export function failureHeaders(
  code: ApiKeyErrorCode,
  context: {
    readonly status?: number
    readonly realm?: string | undefined
    readonly scope?: string | undefined
    readonly retryAfterSeconds?: number | undefined
  } = {},
): { readonly [name: string]: string } {
  const { status = statusOf(code), realm = 'api', scope, retryAfterSeconds = 1 } = context
  return {
    'Cache-Control': 'no-store',
    ...(challenges(code, status) ? { 'WWW-Authenticate': challenge(code, realm, scope) } : {}),
    ...(status === 429 ? { 'Retry-After': String(retryAfterSeconds) } : {}),
    ...(status === 503 ? { 'Retry-After': String(RETRY_AFTER_SECONDS[code] ?? 1) } : {}),
  }
}

/** The one table from codes to HTTP statuses. */
const STATUS: { readonly [code in ApiKeyErrorCode]: number } = {
  invalid_request: 400,
  credential_malformed: 400,
  key_id_invalid: 400,
  rotation_secret_missing: 400,
  idempotency_key_missing: 400,
  idempotency_key_invalid: 400,
  credential_missing: 401,
  invalid_key: 401,
  insufficient_scope: 403,
  rotation_secret_required: 403,
  rotation_secret_not_configured: 403,
  key_not_found: 404,
  key_revoked: 409,
  key_expired: 409,
  idempotency_key_spent: 409,
  rotation_superseded: 409,
  rotation_in_grace: 409,
  secret_in_grace: 409,
  // Told to `onError` only.
  retried_without_key: 500,
  body_too_large: 413,
  unsupported_media_type: 415,
  idempotency_key_mismatch: 422,
  rate_limited: 429,
  invalid_option: 500,
  internal_error: 500,
  store_unavailable: 503,
  store_misconfigured: 503,
  outcome_unknown: 503,
}

/** The `error` of a challenge, where there is one. @see RFC 6750 §3.1 */
const CHALLENGE: { readonly [code in ApiKeyErrorCode]?: string } = {
  credential_malformed: 'invalid_request',
  invalid_key: 'invalid_token',
  insufficient_scope: 'insufficient_scope',
}

/** What a client is told to wait before it comes again, where the answer is 503. What only a person can put right takes longer. */
const RETRY_AFTER_SECONDS: { readonly [code in ApiKeyErrorCode]?: number } = { store_misconfigured: 30 }

function challenge(code: ApiKeyErrorCode, realm: string, scope: string | undefined): string {
  const error = CHALLENGE[code]
  const parts = [`realm="${realm}"`]
  if (error !== undefined) parts.push(`error="${error}"`)
  if (error === 'insufficient_scope' && scope !== undefined) parts.push(`scope="${scope}"`)
  return `Bearer ${parts.join(', ')}`
}
