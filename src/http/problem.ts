import type { NextFunction, Request, Response } from 'express'
import type { Denial } from '../core/api-keys.js'
import { logError } from '../core/report.js'
import { ApiKeyError, failureHeaders, problemType, statusOf } from '../errors.js'
import type { Failure } from './contract.js'
import { originOf } from './origin.js'
import { synchronous } from './synchronous.js'

/** Where a failure happened, as its challenge and its body say it. */
export interface FailureContext {
  /** The challenges, each a scheme with its own parameters if it has any. */
  readonly challenges?: readonly string[]
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

/** For what belongs to no keys, and so has no `onError`. */
export const STDERR: FailureListener = { report: logError, denied: () => {} }

type Shape = (error: ApiKeyError, request: { requestId: string }) => Failure

/** A failure as problem details, and beside them the stable `code`. @see RFC 9457 §3 */
export function problem(error: ApiKeyError): Required<Failure> {
  const { code, status, message } = error
  return { status, contentType: 'application/problem+json', body: { ...problemType(code), status, code, detail: message } }
}

/**
 * What becomes of a failure. `respond`: it is answered, as problem details or as the contract says. `next`: it goes to the application's error handler, with
 * `status`, `headers`, `expose` and `code`. A function: it answers, or calls `next`; what it throws or rejects with goes to `next`.
 * Where it calls `next` without an error, the request goes on without a key, but not past `requireScope` and `keyLimit`.
 */
export type OnFailure = 'respond' | 'next' | ((error: ApiKeyError, req: Request, res: Response, next: NextFunction) => unknown)

/** The option `onFailure`, checked. */
export function onFailureOption(onFailure: OnFailure = 'respond'): OnFailure {
  if (onFailure === 'respond' || onFailure === 'next' || typeof onFailure === 'function') return onFailure
  throw new ApiKeyError('invalid_option', "onFailure must be 'respond', 'next' or a function (error, req, res, next).")
}

/** How failures are told. */
export interface Telling {
  readonly listener: FailureListener
  /** Default `respond`. */
  readonly onFailure?: OnFailure
  /** The body that is answered. Default problem details. */
  readonly shape?: Shape
}

interface Exchange {
  readonly req: Request
  readonly res: Response
  readonly next: NextFunction
}

/** Tells of a failure: the listener, and whoever answers. Never throws. */
export function refuse(telling: Telling, exchange: Exchange, error: unknown, context: FailureContext = {}): void {
  const { listener, onFailure = 'respond', shape = problem } = telling
  const known = knownOf(error)
  tell(listener, exchange.req, known)
  if (onFailure === 'respond' || exchange.res.headersSent) {
    respond(listener, exchange.res, known, context, shape)
    return
  }
  const told = forApplication(known, context)
  if (onFailure === 'next') exchange.next(told)
  else {
    handedTo(onFailure, told, listener, exchange).catch((cause: unknown) => {
      listener.report(new ApiKeyError('internal_error', 'A failure could not be handed on.', { cause }))
    })
  }
}

/**
 * The same for what stands behind the middleware that was told how: a function that lets strangers go on by `next()` lets nobody past this. The error goes to the
 * application's error handler instead.
 */
export function refuseForGood(telling: Telling, exchange: Exchange, error: unknown, context: FailureContext = {}): void {
  const known = knownOf(error)
  const next = ((passed?: unknown) => exchange.next(isError(passed) ? passed : forApplication(known, context))) as NextFunction
  refuse(telling, { ...exchange, next }, known, context)
}

/** Whether Express takes what `next` was called with for a reason not to go on. */
export function isError(passed: unknown): boolean {
  return Boolean(passed)
}

async function handedTo(
  onFailure: Exclude<OnFailure, string>,
  told: ApiKeyError,
  listener: FailureListener,
  { req, res, next }: Exchange,
): Promise<void> {
  let handedOn = false
  const onward = ((error?: unknown) => {
    handedOn = true
    next(error)
  }) as NextFunction
  try {
    await onFailure(told, req, res, onward)
  } catch (cause) {
    const failed = new ApiKeyError('internal_error', 'onFailure() has failed.', { cause })
    // The request is over, or in the hands of the application: there is nothing more to answer.
    if (handedOn || res.writableEnded) listener.report(failed)
    // Express lets a request go on where the error is undefined, 'route' or 'router'.
    else next(isObject(cause) ? cause : failed)
  }
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null
}

function knownOf(error: unknown): ApiKeyError {
  return error instanceof ApiKeyError ? error : new ApiKeyError('internal_error', 'Something unforeseen went wrong.', { cause: error })
}

function tell(listener: FailureListener, req: Request, known: ApiKeyError): void {
  try {
    const status = statusOf(known.code)
    if (status === 500) listener.report(known)
    else if (status < 500) listener.denied(() => denialOf(req, known))
  } catch (cause) {
    listener.report(new ApiKeyError('internal_error', 'A failure could not be told.', { cause }))
  }
}

/** The error with the headers that fit this request. The application may know why; `cause`, `reason` and `keyId` are not enumerable. */
function forApplication(known: ApiKeyError, context: FailureContext): ApiKeyError {
  const { code, message, cause, reason, keyId } = known
  return new ApiKeyError(code, message, { cause, reason, keyId, headers: headersOf(known, statusOf(code), context) })
}

/**
 * Answers with a failure: status, challenge, `Retry-After`, `no-store`, and the body that `shape` gives it. Never throws: where the shape or the response
 * itself fails, the listener hears of it and the client gets a plain 500.
 */
function respond(listener: FailureListener, res: Response, known: ApiKeyError, context: FailureContext, shape: Shape): void {
  try {
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
