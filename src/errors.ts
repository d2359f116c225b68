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
  | 'rate_limited'
  | 'body_too_large'
  | 'unsupported_media_type'
  | 'store_unavailable'
  | 'store_misconfigured'
  | 'outcome_unknown'
  | 'internal_error'

/**
 * Reports a failure with a stable `code`, one plain sentence and, where there is one, its `cause`.
 * Neither ever holds a secret.
 */
export class ApiKeyError extends Error {
  override readonly name = 'ApiKeyError'
  readonly code: ApiKeyErrorCode

  constructor(code: ApiKeyErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.code = code
  }
}
