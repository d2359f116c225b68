/**
 * Everything that can go wrong, as one closed union.
 *
 * A wrong key is a result of `verify()`, not an error. A command that cannot go on with it (`rotate`, `revoke`, …) throws `invalid_key`.
 */
export type ApiKeyErrorCode =
  | 'invalid_option'
  | 'invalid_request'
  | 'credential_missing'
  | 'credential_malformed'
  | 'invalid_key'
  | 'insufficient_scope'
  | 'wrong_environment'
  | 'ip_not_allowed'
  | 'cross_origin'
  | 'rotation_secret_missing'
  | 'rotation_secret_required'
  | 'rotation_secret_not_configured'
  | 'key_id_invalid'
  | 'key_not_found'
  | 'key_revoked'
  | 'key_expired'
  | 'key_disabled'
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
  | 'operators_unavailable'
  | 'retried_without_key'
  | 'internal_error'

/** Why a secret is not accepted. */
export type RejectionReason = 'malformed' | 'unknown' | 'expired' | 'revoked' | 'rotated' | 'disabled' | 'ip_not_allowed'

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
  /** Why a key was refused, where the code is `invalid_key`. For the server's own logs: a client gets the same answer for every reason. */
  declare readonly reason: RejectionReason | 'rotation_secret' | undefined
  /** The id of the key that was refused, where it is known. For the server's own logs too. */
  declare readonly keyId: string | undefined

  constructor(
    code: ApiKeyErrorCode,
    message: string,
    options: {
      cause?: unknown
      reason?: RejectionReason | 'rotation_secret' | undefined
      keyId?: string | undefined
      /** Default: those of the code. */
      headers?: { readonly [name: string]: string }
    } = {},
  ) {
    super(message, 'cause' in options ? { cause: options.cause } : undefined)
    this.code = code
    this.status = statusOf(code)
    this.headers = Object.freeze(options.headers === undefined ? failureHeaders(code) : sendable(options.headers))
    this.expose = this.status < 500
    // Not enumerable, like `cause`: an error handler that sends the error as JSON must not tell a client why its key was refused.
    Object.defineProperties(this, { reason: { value: options.reason }, keyId: { value: options.keyId } })
    Object.defineProperty(this, BRAND, { value: true })
  }

  /** The status once more: `isHttpError` of http-errors asks for both. */
  get statusCode(): number {
    return this.status
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    // biome-ignore lint/complexity/noThisInStatic: a subclass is known by its prototype, not by the brand that all share
    if (this !== ApiKeyError) return Object.prototype.isPrototypeOf.call(this.prototype, value as object)
    return typeof value === 'object' && value !== null && (value as { [BRAND]?: unknown })[BRAND] === true
  }
}

/** The same symbol in every copy of the package, so that the router of one copy knows the errors of another. */
const BRAND = Symbol.for('express-api-keys.error')

/** The page that has a heading for each code. */
const DOCUMENTATION = 'https://express-api-keys.github.io/reference/errors'

/** Headers that Node can send: a handler of the application's must not fail for the sake of an error. */
function sendable(headers: { readonly [name: string]: string }): { readonly [name: string]: string } {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, value.replaceAll(/[^\t\x20-\x7e]/g, ' ')]))
}

/** The HTTP status of a code; 500 for an unknown one. */
export function statusOf(code: ApiKeyErrorCode): number {
  return STATUS[code] ?? 500
}

/** The `type` and the `title` of problem details. Neither changes from one occurrence to the next. @see RFC 9457 §3.1.1, §3.1.4 */
export function problemType(code: ApiKeyErrorCode): { readonly type: string; readonly title: string } {
  return { type: `${DOCUMENTATION}#${code}`, title: TITLE[code] ?? TITLE.internal_error }
}

/** Whether a failure carries a challenge: every 401 does, and every code that RFC 6750 has an `error` for. @see RFC 6750 §3 */
export function challenges(code: ApiKeyErrorCode, status: number): boolean {
  return status === 401 || CHALLENGE[code] !== undefined
}

/** The headers of a failure: `Cache-Control`, a challenge, `Retry-After`. */
export function failureHeaders(
  code: ApiKeyErrorCode,
  context: {
    /** Default: that of the code. A contract may have chosen another one. */
    readonly status?: number
    /** The challenges, each a scheme with its own parameters if it has any. Default `Bearer`. */
    readonly challenges?: readonly string[] | undefined
    readonly realm?: string | undefined
    readonly scope?: string | undefined
    readonly retryAfterSeconds?: number | string | undefined
  } = {},
): { readonly [name: string]: string } {
  const { status = statusOf(code), realm = 'api', scope, retryAfterSeconds = RETRY_AFTER_SECONDS[code] ?? 1 } = context
  const asked = challenges(code, status)
    ? (context.challenges ?? ['Bearer']).flatMap((one) => challenge(code, status, one, realm, scope))
    : []
  return {
    'Cache-Control': 'no-store',
    ...(asked.length > 0 ? { 'WWW-Authenticate': asked.join(', ') } : {}),
    ...(status === 429 || status === 503 ? { 'Retry-After': String(retryAfterSeconds) } : {}),
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
  wrong_environment: 403,
  ip_not_allowed: 403,
  key_disabled: 403,
  cross_origin: 403,
  rotation_secret_required: 403,
  rotation_secret_not_configured: 403,
  key_not_found: 404,
  key_revoked: 409,
  key_expired: 409,
  idempotency_key_spent: 409,
  rotation_superseded: 409,
  rotation_in_grace: 409,
  secret_in_grace: 409,
  // Only `onError` gets this one.
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
  operators_unavailable: 503,
}

/** The title of each code on the page of errors. */
const TITLE: { readonly [code in ApiKeyErrorCode]: string } = {
  invalid_request: 'Invalid request',
  credential_malformed: 'Malformed credential',
  key_id_invalid: 'Invalid key id',
  rotation_secret_missing: 'Missing rotation secret',
  idempotency_key_missing: 'Missing Idempotency-Key',
  idempotency_key_invalid: 'Invalid Idempotency-Key',
  credential_missing: 'Missing API key',
  invalid_key: 'Invalid API key',
  insufficient_scope: 'Insufficient scope',
  wrong_environment: 'Wrong environment',
  ip_not_allowed: 'Address not allowed',
  cross_origin: 'Cross-origin request',
  rotation_secret_required: 'Rotation secret required',
  rotation_secret_not_configured: 'Key without a rotation secret',
  key_not_found: 'Key not found',
  key_revoked: 'Key revoked',
  key_disabled: 'Key disabled',
  key_expired: 'Key expired',
  idempotency_key_spent: 'Answer no longer available',
  rotation_superseded: 'Rotation superseded',
  rotation_in_grace: 'Earlier secret still in its grace period',
  secret_in_grace: 'Replaced secret can change nothing',
  retried_without_key: 'Rotation repeated without an Idempotency-Key',
  body_too_large: 'Body too large',
  unsupported_media_type: 'Unsupported media type',
  idempotency_key_mismatch: 'Idempotency-Key used for another request',
  rate_limited: 'Too many requests',
  invalid_option: 'Invalid option',
  internal_error: 'Internal error',
  store_unavailable: 'Store unavailable',
  store_misconfigured: 'Store misconfigured',
  outcome_unknown: 'Outcome unknown',
  operators_unavailable: 'Operators unavailable',
}

/** The `error` of a challenge, where there is one. @see RFC 6750 §3.1 */
const CHALLENGE: { readonly [code in ApiKeyErrorCode]?: string } = {
  credential_malformed: 'invalid_request',
  invalid_key: 'invalid_token',
  insufficient_scope: 'insufficient_scope',
}

/** How long a client is asked to wait, where that is not one second. A fault that a person has to fix lasts longer. */
const RETRY_AFTER_SECONDS: { readonly [code in ApiKeyErrorCode]?: number } = { store_misconfigured: 30 }

/** One challenge, or none: only Bearer has an `error`, and only a 401 needs the others. @see RFC 9110 §11.6.1, RFC 6750 §3 */
function challenge(code: ApiKeyErrorCode, status: number, asked: string, realm: string, scope: string | undefined): readonly string[] {
  const [scheme = '', ...own] = asked.split(' ')
  const isBearer = scheme.toLowerCase() === 'bearer'
  if (!isBearer && status !== 401) return []
  const error = isBearer ? CHALLENGE[code] : undefined
  const parts = [`realm="${realm}"`, ...(own.length > 0 ? [own.join(' ')] : [])]
  if (error !== undefined) parts.push(`error="${error}"`)
  if (error === 'insufficient_scope' && scope !== undefined) parts.push(`scope="${scope}"`)
  return [`${scheme} ${parts.join(', ')}`]
}
