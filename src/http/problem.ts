import type { Request, Response } from 'express'
import type { AnyApiKeys, Origin } from '../core/api-keys.js'
import { ApiKeyError, type ApiKeyErrorCode } from '../errors.js'
import { clientAddress } from './origin.js'

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

/** The HTTP status of an error code, the same for every contract that does not say otherwise; 500 for one that is not known here. */
export function failureStatus(code: ApiKeyErrorCode): number {
  return STATUS[code] ?? 500
}

/** Whether a failure carries a challenge: each 401 does, and what RFC 6750 has an `error` for. @see RFC 6750 §3 */
export function challenges(code: ApiKeyErrorCode, status: number): boolean {
  return status === 401 || CHALLENGE[code] !== undefined
}

/** `type: about:blank` and the status's own phrase, and beside them the stable `code`. @see RFC 9457 §3 */
export function problem(error: ApiKeyError): Required<Failure> {
  const status = failureStatus(error.code)
  return {
    status,
    contentType: 'application/problem+json',
    body: { type: 'about:blank', title: PHRASE[status], status, code: error.code, detail: error.message },
  }
}

/** What a client is told to wait before it comes again, where the answer is 503. What only a person can put right takes longer. */
const RETRY_AFTER_SECONDS: { readonly [code in ApiKeyErrorCode]?: number } = { store_misconfigured: 30 }

type Shape = (error: ApiKeyError, request: { requestId: string }) => Failure

/** A failure as it goes out. */
interface Answer {
  readonly status: number
  readonly contentType: string
  readonly text: string
}

/**
 * Answers with a failure: status, challenge, `Retry-After`, `no-store`, and the body that `shape` gives it. Never throws: where the shape or the response
 * itself fails, `onError` hears of it and the client gets a plain 500.
 */
export function refuse(
  keys: AnyApiKeys,
  req: Request,
  res: Response,
  error: unknown,
  context: FailureContext,
  shape: Shape = problem,
): void {
  const known =
    error instanceof ApiKeyError ? error : new ApiKeyError('internal_error', 'Something unforeseen went wrong.', { cause: error })
  const { realm, scope, requestId = '', retryAfterSeconds = 1 } = context
  try {
    if (failureStatus(known.code) === 500) keys.report(known)
    else if (failureStatus(known.code) < 500) deny(keys, req, known)
    if (res.headersSent) {
      res.destroy()
      return
    }
    const { status, contentType, text } = composed(keys, forClient(known), requestId, shape)
    res.status(status)
    res.setHeader('Cache-Control', 'no-store')
    if (challenges(known.code, status)) res.setHeader('WWW-Authenticate', challenge(known.code, realm, scope))
    if (status === 429) res.setHeader('Retry-After', String(retryAfterSeconds))
    if (status === 503) res.setHeader('Retry-After', String(RETRY_AFTER_SECONDS[known.code] ?? 1))
    res.setHeader('Content-Type', contentType)
    res.end(text)
  } catch (cause) {
    keys.report(new ApiKeyError('internal_error', 'A failure could not be answered with.', { cause }))
    // What was done and cannot be told of is not to be taken for "nothing has changed".
    lastResort(res, known.code === 'outcome_unknown' ? known : SERVER_ERROR)
  }
}

const SERVER_ERROR = new ApiKeyError('internal_error', 'The server met an unforeseen error.')

/** What went wrong inside is for the log, not for a stranger. */
function forClient(known: ApiKeyError): ApiKeyError {
  if (failureStatus(known.code) === 500) return SERVER_ERROR
  if (known.code === 'store_misconfigured') return new ApiKeyError(known.code, 'The store cannot be used at the moment.')
  return known
}

function composed(keys: AnyApiKeys, told: ApiKeyError, requestId: string, shape: Shape): Answer {
  try {
    const made: unknown = shape(told, { requestId })
    if (isThenable(made)) throw swallowed(made, 'failure() must not be asynchronous.')
    const { status = failureStatus(told.code), contentType = 'application/json', body } = made as Failure
    if (typeof body !== 'object' || body === null) throw new TypeError('failure() must return an object with a body.')
    return { status, contentType, text: JSON.stringify(body) }
  } catch (cause) {
    keys.report(new ApiKeyError('internal_error', "The contract's failure() has failed.", { cause }))
    const { status, contentType, body } = problem(SERVER_ERROR)
    return { status, contentType, text: JSON.stringify(body) }
  }
}

export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}

/** What is wrong with a promise that nobody waits for; its own failure must not end the process. */
export function swallowed(promise: PromiseLike<unknown>, what: string): TypeError {
  promise.then(undefined, () => {})
  return new TypeError(what)
}

/** Past every hook that stands on this response: one of them has just thrown. */
function lastResort(res: Response, error: ApiKeyError): void {
  try {
    if (res.headersSent) throw error
    const { status, contentType, body } = problem(error)
    const text = JSON.stringify(body)
    // What stands on the response itself is a hook; Node's own methods are on its prototype.
    for (const hook of ['writeHead', 'setHeader', 'write', 'end'] as const) if (Object.hasOwn(res, hook)) Reflect.deleteProperty(res, hook)
    res.writeHead(status, {
      'Content-Type': contentType,
      'Content-Length': Buffer.byteLength(text),
      'Cache-Control': 'no-store',
      Connection: 'close',
      ...(status === 503 ? { 'Retry-After': '1' } : {}),
    })
    res.end(text)
  } catch {
    // A mock may have no such method.
    res.destroy?.()
  }
}

function deny(keys: AnyApiKeys, req: Request, { code, reason, keyId }: ApiKeyError): void {
  keys.denied(() => ({ code, reason, keyId: keyId ?? req.apiKey?.id, origin: originOf(req) }))
}

/** For the audit trail and the last use. */
export function originOf(req: Request): Origin {
  const userAgent: unknown = req.headers?.['user-agent']
  return { ip: clientAddress(req), userAgent: typeof userAgent === 'string' ? userAgent : undefined }
}

function challenge(code: ApiKeyErrorCode, realm: string, scope: string | undefined): string {
  const error = CHALLENGE[code]
  const parts = [`realm="${realm}"`]
  if (error !== undefined) parts.push(`error="${error}"`)
  if (error === 'insufficient_scope' && scope !== undefined) parts.push(`scope="${scope}"`)
  return `Bearer ${parts.join(', ')}`
}
