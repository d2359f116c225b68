import type { Request, Response } from 'express'
import type { Origin } from '../core/api-keys.js'
import type { Internals } from '../core/internals.js'
import { ApiKeyError, failureHeaders } from '../errors.js'
import type { Failure } from './contract.js'
import { clientAddress } from './origin.js'

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

/** What the HTTP layer adds to an error: where it happened, which scope would have been enough, and when to come back. */
export interface FailureContext {
  readonly realm: string
  readonly scope?: string | undefined
  readonly requestId?: string
  /** For a 429. Default 1. */
  readonly retryAfterSeconds?: number | undefined
}

/** `type: about:blank` and the status's own phrase, and beside them the stable `code`. @see RFC 9457 §3 */
export function problem(error: ApiKeyError): Required<Failure> {
  const { status } = error
  return {
    status,
    contentType: 'application/problem+json',
    body: { type: 'about:blank', title: PHRASE[status], status, code: error.code, detail: error.message },
  }
}

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
  internals: Internals,
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
    if (known.status === 500) internals.report(known)
    else if (known.status < 500) deny(internals, req, known)
    if (res.headersSent) {
      res.destroy()
      return
    }
    const { status, contentType, text } = composed(internals, forClient(known), requestId, shape)
    res.status(status)
    // By the status that goes out, which a contract may have chosen.
    const headers = failureHeaders(known.code, { status, realm, scope, retryAfterSeconds })
    for (const [name, value] of Object.entries(headers)) res.setHeader(name, value)
    res.setHeader('Content-Type', contentType)
    res.end(text)
  } catch (cause) {
    internals.report(new ApiKeyError('internal_error', 'A failure could not be answered with.', { cause }))
    // What was done and cannot be told of is not to be taken for "nothing has changed".
    lastResort(res, known.code === 'outcome_unknown' ? known : SERVER_ERROR)
  }
}

const SERVER_ERROR = new ApiKeyError('internal_error', 'The server met an unforeseen error.')

/** What went wrong inside is for the log, not for a stranger. */
function forClient(known: ApiKeyError): ApiKeyError {
  if (known.status === 500) return SERVER_ERROR
  if (known.code === 'store_misconfigured') return new ApiKeyError(known.code, 'The store cannot be used at the moment.')
  return known
}

function composed(internals: Internals, told: ApiKeyError, requestId: string, shape: Shape): Answer {
  try {
    const made: unknown = shape(told, { requestId })
    if (isThenable(made)) throw swallowed(made, 'failure() must not be asynchronous.')
    const { status = told.status, contentType = 'application/json', body } = made as Failure
    if (typeof body !== 'object' || body === null) throw new TypeError('failure() must return an object with a body.')
    return { status, contentType, text: JSON.stringify(body) }
  } catch (cause) {
    internals.report(new ApiKeyError('internal_error', "The contract's failure() has failed.", { cause }))
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

function deny(internals: Internals, req: Request, { code, reason, keyId }: ApiKeyError): void {
  internals.denied(() => ({ code, reason, keyId: keyId ?? req.apiKey?.id, origin: originOf(req) }))
}

/** For the audit trail and the last use. */
export function originOf(req: Request): Origin {
  const userAgent: unknown = req.headers?.['user-agent']
  return { ip: clientAddress(req), userAgent: typeof userAgent === 'string' ? userAgent : undefined }
}
