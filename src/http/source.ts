import type { IncomingMessage } from 'node:http'
import { ApiKeyError } from '../errors.js'

/** A secret is some 60 characters, an operator's token some thousands; what is far longer is not one, and not worth a look. */
const MAX_SECRET_LENGTH = 1_024
export const MAX_TOKEN_LENGTH = 8_192
/** @see RFC 6750 §2.1: `Bearer`, one space or more, a b64token */
const BEARER = /^bearer +([A-Za-z0-9\-._~+/]+=*)$/i
const BARE = /^[A-Za-z0-9\-._~+/]+=*$/
const BEARER_SCHEME = /^bearer(?: |$)/i

/**
 * Reads the one secret of a request; with `bareToken`, also one that no scheme stands before. `maxLength` is that of the whole header.
 *
 * @throws ApiKeyError `credential_missing` where there is none (or one of another scheme), `credential_malformed` where there are two or it is not a token.
 */
export function bearerSecret(req: IncomingMessage, bareToken = false, maxLength: number = MAX_SECRET_LENGTH): string {
  const [header, ...more] = headerValues(req, 'authorization')
  if (more.length > 0) throw malformed('Send one Authorization header, not two.')
  if (header === undefined) throw missing()
  if (header.length > maxLength) throw malformed(`The Authorization header is longer than ${maxLength} characters.`)
  const secret = BEARER.exec(header)?.[1]
  if (secret !== undefined) return secret
  if (BEARER_SCHEME.test(header)) throw malformed('Send the API key as: Authorization: Bearer <key>.')
  if (bareToken && BARE.test(header)) return header
  throw missing()
}

/**
 * Every value of a header. `req.headers` says whether there is one and what it is: it is what Node, Express and adapters agree on, and what a
 * middleware changes. `rawHeaders` shows doubles, since Node drops a second `Authorization` and joins a second `Idempotency-Key` in silence.
 */
export function headerValues(req: IncomingMessage, name: string): string[] {
  const given: unknown = req.headers?.[name]
  if (given === undefined || given === null) return []
  const raw = req.rawHeaders
  const values: string[] = []
  if (Array.isArray(raw)) {
    for (let i = 0; i + 1 < raw.length; i += 2) {
      const field: unknown = raw[i]
      if (typeof field === 'string' && field.length === name.length && field.toLowerCase() === name) values.push(textOf(raw[i + 1]))
    }
  }
  if (values.length > 1) return values
  return Array.isArray(given) ? given.map(textOf) : [textOf(given)]
}

/** A mock or an adapter may give a number. What is neither stands for a header without a value, which is refused wherever one is needed. */
function textOf(value: unknown): string {
  return typeof value === 'string' ? value.trim() : typeof value === 'number' ? String(value) : ''
}

function missing(): ApiKeyError {
  return new ApiKeyError('credential_missing', 'Send an API key as: Authorization: Bearer <key>.')
}

function malformed(message: string): ApiKeyError {
  return new ApiKeyError('credential_malformed', message)
}
