import type { IncomingMessage } from 'node:http'
import type { RequestHandler } from 'express'
import { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import { type OnFailure, onFailureOption, refuse, STDERR } from './problem.js'
import { headerValues } from './source.js'

declare global {
  namespace Express {
    interface Request {
      /** The request's Idempotency-Key without its quotes; set by `idempotencyKey`. */
      idempotencyKey?: string
    }
  }
}

export interface IdempotencyKeyOptions {
  /** Whether a request without the header is refused. Default false. */
  required?: boolean | undefined
  /** As in `bearerAuth`. */
  onFailure?: OnFailure | undefined
}

export const MAX_IDEMPOTENCY_KEY_LENGTH = 255
/** The bare items of RFC 9651 §3.3: numbers, dates, strings, tokens, byte sequences, booleans, display strings. */
const BARE_ITEM = [
  String.raw`-?(?:\d{1,12}\.\d{1,3}|\d{1,15})`,
  String.raw`@-?\d{1,15}`,
  String.raw`"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"`,
  "[A-Za-z*][\\w!#$%&'*+\\-.^`|~:/]*",
  ':[A-Za-z\\d+/=]*:',
  String.raw`\?[01]`,
  String.raw`%"(?:[\x20\x21\x23\x24\x26-\x7e]|%[\da-f]{2})*"`,
].join('|')
/** A quoted string, with `\"` and `\\`. The parameters behind it mean nothing here. @see RFC 9651 §3.3.3, §3.1.2 */
const QUOTED = new RegExp(String.raw`^"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?:; *[a-z*][a-z\d_.*-]*(?:=(?:${BARE_ITEM}))?)*$`)
/** What most clients send: visible ASCII without commas, which would make it a list, and without quotes. */
const BARE = /^[\x21\x23-\x2b\x2d-\x7e]+$/

/**
 * Reads and checks the Idempotency-Key header, and sets `req.idempotencyKey`. Answers 400 if the header is required and missing, or if it is doubled,
 * a list, empty, not ASCII or over 255 characters.
 *
 * @see draft-ietf-httpapi-idempotency-key-header-07 §2.1
 */
export function idempotencyKey(options: IdempotencyKeyOptions = {}): RequestHandler {
  refuseUnknown(options, ['required', 'onFailure'], 'idempotencyKey')
  const { required = false } = options
  if (typeof required !== 'boolean') throw new ApiKeyError('invalid_option', 'required must be true or false.')

  const onFailure = onFailureOption(options.onFailure)

  return function idempotencyKey(req, res, next) {
    try {
      const value = readIdempotencyKey(req, required)
      if (value === undefined) delete req.idempotencyKey
      else req.idempotencyKey = value
    } catch (error) {
      refuse({ listener: STDERR, onFailure }, { req, res, next }, error)
      return
    }
    next()
  }
}

/** The Idempotency-Key of a request; the quoted and the bare form of one value mean the same. */
export function readIdempotencyKey(req: IncomingMessage, required: boolean): string | undefined {
  const [header, ...more] = headerValues(req, 'idempotency-key')
  if (more.length > 0) throw invalid('Send one Idempotency-Key header, not two.')
  if (header === undefined) {
    if (required) throw new ApiKeyError('idempotency_key_missing', 'This needs an Idempotency-Key header, such as a new UUID.')
    return undefined
  }
  const quoted = QUOTED.exec(header)?.[1]
  const value = quoted === undefined ? (BARE.test(header) ? header : undefined) : quoted.replaceAll(/\\(["\\])/g, '$1')
  if (value === undefined || value === '') throw invalid('The Idempotency-Key must be one value of printable ASCII, and not empty.')
  if (value.length > MAX_IDEMPOTENCY_KEY_LENGTH)
    throw invalid(`The Idempotency-Key must be at most ${MAX_IDEMPOTENCY_KEY_LENGTH} characters.`)
  return value
}

function invalid(message: string): ApiKeyError {
  return new ApiKeyError('idempotency_key_invalid', message)
}
