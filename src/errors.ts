/**
 * Everything that can go wrong, as one closed union. `src/http/problem.ts` maps each code to its HTTP status.
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

/** The same symbol in every copy of the package, so that the router of one knows the errors of another. */
const BRAND = Symbol.for('express-api-keys.error')

/**
 * Reports a failure with a stable `code`, one plain sentence and, where there is one, its `cause`.
 * Neither ever holds a secret. `instanceof` goes by a brand, so it also knows the errors of another installed copy of the package.
 */
export class ApiKeyError extends Error {
  override readonly name = 'ApiKeyError'
  readonly code: ApiKeyErrorCode
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
