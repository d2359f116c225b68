import type { IncomingMessage } from 'node:http'
import { ApiKeyError } from '../errors.js'

/** Where a request carries its credential: one place, and one challenge. */
export interface Source {
  /**
   * The credential, or undefined where this place has none.
   *
   * @throws ApiKeyError `credential_malformed` where there are two, or where it is not a token.
   */
  read(req: IncomingMessage): string | undefined
  /** The scheme of the challenge that asks for it. @see RFC 9110 §11.3 */
  readonly challenge: string
}

/** Reads the one credential of a request. Throws what the source throws, or `credential_missing`. */
export function credentialOf(req: IncomingMessage, source: Source): string {
  return source.read(req) ?? missing()
}

/** A secret has some 60 characters. A longer header is not worth a look. */
const MAX_SECRET_LENGTH = 1_024
/** The JWT of an operator has a few thousand. */
export const MAX_TOKEN_LENGTH = 8_192
/** `Bearer`, one space or more, a b64token. @see RFC 6750 §2.1 */
const BEARER = /^bearer +([A-Za-z0-9\-._~+/]+=*)$/i
const BARE = /^[A-Za-z0-9\-._~+/]+=*$/
const BEARER_SCHEME = /^bearer(?: |$)/i

/** `Authorization: Bearer <key>`; with `bareToken`, also `Authorization: <key>`. `maxLength` is that of the whole header. */
export function bearer({ bareToken = false, maxLength = MAX_SECRET_LENGTH }: { bareToken?: boolean; maxLength?: number } = {}): Source {
  return {
    challenge: 'Bearer',
    read(req) {
      const [header, ...more] = headerValues(req, 'authorization')
      if (more.length > 0) throw malformed('Send one Authorization header, not two.')
      if (header === undefined) return undefined
      if (header.length > maxLength) throw malformed(`The Authorization header is longer than ${maxLength} characters.`)
      const secret = BEARER.exec(header)?.[1]
      if (secret !== undefined) return secret
      if (BEARER_SCHEME.test(header)) throw malformed('Send the API key as: Authorization: Bearer <key>.')
      return bareToken && BARE.test(header) ? header : undefined
    },
  }
}

/**
 * Every value of a header. Whether there is one, and which, is for `req.headers` to say: Node, Express and adapters agree on it, and middleware
 * changes it. `rawHeaders` shows doubles: Node silently drops a second `Authorization` and joins a second `Idempotency-Key`.
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

/** A mock or an adapter may give a number. Anything else counts as an empty header, which is refused wherever a value is needed. */
function textOf(value: unknown): string {
  return typeof value === 'string' ? value.trim() : typeof value === 'number' ? String(value) : ''
}

function missing(): never {
  throw new ApiKeyError('credential_missing', 'Send an API key as: Authorization: Bearer <key>.')
}

function malformed(message: string): ApiKeyError {
  return new ApiKeyError('credential_malformed', message)
}
