import type { Request, Response } from 'express'
import type { Denial } from '../core/api-keys.js'
import { ApiKeyError, failureHeaders, problemType, statusOf } from '../errors.js'
import type { Failure } from './contract.js'
import { originOf } from './origin.js'

/** Where a failure happened, as its challenge and its body say it. */
export interface FailureContext {
  /** The scheme of the challenge. */
  readonly scheme?: string
  readonly realm?: string
  /** The scope that would have been enough. */
  readonly scope?: string
  readonly requestId?: string
}

/** What hears of failures on the server. The internals of API keys do. */
export interface FailureListener {
  report(error: ApiKeyError): void
  denied(denial: () => Denial): void
}

type Shape = (error: ApiKeyError, request: { requestId: string }) => Failure

/** A failure as problem details, and beside them the stable `code`. @see RFC 9457 §3 */
export function problem(error: ApiKeyError): Required<Failure> {
  const { code, status, message } = error
  return { status, contentType: 'application/problem+json', body: { ...problemType(code), status, code, detail: message } }
}

/**
 * Answers with a failure: status, challenge, `Retry-After`, `no-store`, and the body that `shape` gives it. Never throws: where the shape or the response
 * itself fails, the listener hears of it and the client gets a plain 500.
 */
export function refuse(
  listener: FailureListener,
  req: Request,
  res: Response,
  error: unknown,
  context: FailureContext = {},
  shape: Shape = problem,
): void {
  const known =
    error instanceof ApiKeyError ? error : new ApiKeyError('internal_error', 'Something unforeseen went wrong.', { cause: error })
  const status = statusOf(known.code)
  try {
    if (status === 500) listener.report(known)
    else if (status < 500) listener.denied(() => denialOf(req, known))
    if (res.headersSent) res.destroy()
    else send(res, composed(listener, forClient(known, context), context, shape))
  } catch (cause) {
    listener.report(new ApiKeyError('internal_error', 'A failure could not be answered.', { cause }))
    // A change that was made must not look like one that was not.
    lastResort(res, known.code === 'outcome_unknown' ? known : serverError())
  }
}

/** A new one each time: a contract's `failure` may change what it gets. */
function serverError(): ApiKeyError {
  return new ApiKeyError('internal_error', 'The server met an unforeseen error.')
}

function denialOf(req: Request, { code, reason, keyId }: ApiKeyError): Denial {
  return { code, reason, keyId: keyId ?? req.apiKey?.id, origin: originOf(req) }
}

/** The error without what is for the server only (`cause`, `reason`, `keyId`), and with the headers that fit this request. */
function forClient(known: ApiKeyError, context: FailureContext): ApiKeyError {
  const status = statusOf(known.code)
  if (status === 500) return serverError()
  const message = known.code === 'store_misconfigured' ? 'The store cannot be used at the moment.' : known.message
  return new ApiKeyError(known.code, message, { headers: headersOf(known, status, context) })
}

/** An error of another installed copy of the package may have no headers. */
function headersOf(
  { code, headers }: Partial<ApiKeyError> & Pick<ApiKeyError, 'code'>,
  status: number,
  context: FailureContext,
): { readonly [name: string]: string } {
  return failureHeaders(code, { ...context, status, retryAfterSeconds: headers?.['Retry-After'] })
}

/** A failure as it goes out. */
interface Answer {
  readonly status: number
  readonly headers: { readonly [name: string]: string }
  readonly text: string
}

function composed(listener: FailureListener, error: ApiKeyError, context: FailureContext, shape: Shape): Answer {
  try {
    const made = synchronous(shape(error, { requestId: context.requestId ?? '' }), 'failure()')
    // A contract may have chosen another status, and the headers follow it.
    const { status = error.status, contentType = 'application/json', body } = made
    if (typeof body !== 'object' || body === null) throw new TypeError('failure() must return an object with a body.')
    if (!(Number.isInteger(status) && status >= 400 && status <= 599))
      throw new TypeError('The status of a failure must be from 400 to 599.')
    const text: unknown = JSON.stringify(body)
    if (typeof text !== 'string') throw new TypeError('The body of a failure must have a form in JSON.')
    return { status, headers: { ...headersOf(error, status, context), 'Content-Type': contentType }, text }
  } catch (cause) {
    listener.report(new ApiKeyError('internal_error', "The contract's failure() has failed.", { cause }))
    return plain(serverError())
  }
}

function plain(error: ApiKeyError): Answer {
  const { status, contentType, body } = problem(error)
  return { status, headers: { ...error.headers, 'Content-Type': contentType }, text: JSON.stringify(body) }
}

function send(res: Response, { status, headers, text }: Answer): void {
  res.status(status)
  for (const [name, value] of Object.entries(headers)) res.setHeader(name, value)
  res.end(text)
}

/** Goes past every hook that stands on this response: one of them has just thrown. */
function lastResort(res: Response, error: ApiKeyError): void {
  try {
    if (res.headersSent) throw error
    const { status, headers, text } = plain(error)
    // What stands on the response itself is a hook; Node's own methods are on its prototype.
    for (const hook of ['writeHead', 'setHeader', 'write', 'end'] as const) if (Object.hasOwn(res, hook)) Reflect.deleteProperty(res, hook)
    res.writeHead(status, { ...headers, 'Content-Length': Buffer.byteLength(text), Connection: 'close' })
    res.end(text)
  } catch {
    // A mock may have no such method.
    res.destroy?.()
  }
}

/** The option `realm`, checked: it stands between quotes in every challenge. */
export function realmOption(realm: string | undefined): string {
  if (realm === undefined) return 'api'
  if (typeof realm === 'string' && /^[\x20\x21\x23-\x5b\x5d-\x7e]{1,128}$/.test(realm)) return realm
  throw new ApiKeyError('invalid_option', 'realm must be 1 to 128 printable ASCII characters without quotes and backslashes.')
}

/** Hands back what a function of the application returned, unless it is a promise, whose own failure must not end the process. */
export function synchronous<T>(made: T, what: string): T {
  if (typeof (made as { then?: unknown } | null | undefined)?.then !== 'function') return made
  ;(made as PromiseLike<unknown>).then(undefined, () => {})
  throw new TypeError(`${what} must not be asynchronous.`)
}
