import type { Response } from 'express'
import type { ApiKeys } from '../core/api-keys.js'
import { ApiKeyError, type ApiKeyErrorCode } from '../errors.js'

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

const PHRASE: { readonly [status: number]: string } = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  409: 'Conflict',
  413: 'Content Too Large',
  415: 'Unsupported Media Type',
  422: 'Unprocessable Content',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
}

/** The `error` of a challenge, where there is one. @see RFC 6750 §3.1 */
const CHALLENGE: { readonly [code in ApiKeyErrorCode]?: string } = {
  credential_malformed: 'invalid_request',
  invalid_key: 'invalid_token',
  insufficient_scope: 'insufficient_scope',
}

/** How a failure looks on the wire. */
export interface Failure {
  /** Default: the status of the error's code, as `failureStatus` has it. */
  readonly status?: number
  /** Default `application/json`. */
  readonly contentType?: string
  readonly body: object
}

/** What the HTTP layer adds to an error: where it happened, which scope would have been enough, and when to come back. */
export interface FailureContext {
  readonly realm: string
  readonly scope?: string | undefined
  readonly requestId?: string
  /** For a 429. Default 1. */
  readonly retryAfterSeconds?: number | undefined
}

/** The HTTP status of an error code, the same for every contract that does not say otherwise. */
export function failureStatus(code: ApiKeyErrorCode): number {
  return STATUS[code]
}

/** `type: about:blank` and the status's own phrase, and beside them the stable `code`. @see RFC 9457 §3 */
export function problem(error: ApiKeyError): Required<Failure> {
  const status = STATUS[error.code]
  return {
    status,
    contentType: 'application/problem+json',
    body: { type: 'about:blank', title: PHRASE[status], status, code: error.code, detail: error.message },
  }
}

/** Answers with a failure: status, challenge, `Retry-After`, `no-store`, and the body that `shape` gives it. */
export function refuse(
  keys: ApiKeys,
  res: Response,
  error: unknown,
  { realm, scope, requestId = '', retryAfterSeconds = 1 }: FailureContext,
  shape: (error: ApiKeyError, request: { requestId: string }) => Failure = problem,
): void {
  const known =
    error instanceof ApiKeyError ? error : new ApiKeyError('internal_error', 'Something unforeseen went wrong.', { cause: error })
  const unforeseen = STATUS[known.code] === 500
  // What went wrong inside is for the log, not for a stranger.
  const told = unforeseen ? new ApiKeyError('internal_error', 'The server met an unforeseen error.') : withoutInsides(known)
  const { status = STATUS[told.code], contentType = 'application/json', body } = shape(told, { requestId })
  if (unforeseen) keys.report(known)
  if (res.headersSent) {
    res.destroy()
    return
  }
  res.status(status)
  res.setHeader('Cache-Control', 'no-store')
  if (status === 401 || CHALLENGE[known.code] !== undefined) res.setHeader('WWW-Authenticate', challenge(known.code, realm, scope))
  if (status === 429) res.setHeader('Retry-After', String(retryAfterSeconds))
  // What a person has to set right takes longer than what passes by itself.
  if (status === 503) res.setHeader('Retry-After', known.code === 'store_misconfigured' ? '30' : '1')
  res.setHeader('Content-Type', contentType)
  res.end(JSON.stringify(body))
}

function withoutInsides(error: ApiKeyError): ApiKeyError {
  if (error.code !== 'store_misconfigured') return error
  return new ApiKeyError('store_misconfigured', 'The store cannot be used at the moment.')
}

function challenge(code: ApiKeyErrorCode, realm: string, scope: string | undefined): string {
  const error = CHALLENGE[code]
  const parts = [`realm="${realm}"`]
  if (error !== undefined) parts.push(`error="${error}"`)
  if (error === 'insufficient_scope' && scope !== undefined) parts.push(`scope="${scope}"`)
  return `Bearer ${parts.join(', ')}`
}
