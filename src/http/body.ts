import { types } from 'node:util'
import { brotliDecompressSync, gunzipSync, inflateRawSync, inflateSync } from 'node:zlib'
import type { Request } from 'express'
import { invalidRequest } from '../core/refusals.js'
import { ApiKeyError } from '../errors.js'
import { bodyLost, bodyTooLarge, CLOSED, collect, MAX_BODY_BYTES, READ_BEFORE } from './body-stream.js'

/** The JSON object of a request, or why there is none: `invalid_request`, `body_too_large` or `unsupported_media_type`. */
export type BodyRead = { readonly body: object } | { readonly refusal: unknown }

/**
 * Begins to read the JSON object of a request, before anything can be awaited: later, somebody else may have read it. Never rejects.
 *
 * Takes what the application has put into `req.body`, as an object, a string or bytes. A request without a body has an empty object. A body that
 * was announced and is lost never counts as an empty one.
 */
export function beginBody(req: Request, fields: readonly string[]): Promise<BodyRead> {
  return readBody(req, fields).then(
    (body) => ({ body }),
    (refusal: unknown) => ({ refusal }),
  )
}

/** Up to its first `await` it runs before `beginBody` returns. */
async function readBody(req: Request, fields: readonly string[]): Promise<object> {
  const length = announcedLength(req)
  const found = find(req, length)
  if (found.as === 'nothing') return {}
  if (length !== undefined && length > MAX_BODY_BYTES) throw bodyTooLarge()
  const wrongType = typeError(req, length)
  // A body of unknown length may turn out to be empty, and then needs no type.
  if (wrongType !== undefined && (found.as !== 'stream' || length !== undefined)) throw wrongType
  switch (found.as) {
    case 'lost':
      throw bodyLost(found.why)
    case 'parsed':
      return checked(found.value, fields)
    case 'raw':
      return checked(parseEither(found.value, codingsOf(req)), fields)
    case 'stream': {
      const bytes = await collect(req, length).catch((error: unknown) => {
        throw wrongType !== undefined && (error as ApiKeyError).code === 'body_too_large' ? wrongType : error
      })
      if (bytes.length === 0) return {}
      if (wrongType !== undefined) throw wrongType
      return checkedBytes(req, bytes, fields)
    }
  }
}

/** A type that is JSON. */
const JSON_TYPE = /^(?:application\/json|[\w!#$&^.+-]+\/[\w!#$&^.+-]+\+json)$/
/** What may be quoted of a Content-Type: too short for a secret that ended up there. */
const MEDIA_TYPE = /^[a-z]{1,16}\/[a-z\d.+-]{1,32}$/
/** What may be quoted of a body: too short for a secret on the wrong side of a colon. */
const FIELD_NAME = /^\w{1,32}$/
const UTF8 = new TextDecoder('utf-8', { fatal: true })

function checkedBytes(req: Request, bytes: Buffer, fields: readonly string[]): object {
  const codings = codingsOf(req)
  // Somebody who decodes the body for a log may remove the header. The bytes are as they came.
  if (codings.length === 0) return checked(parseEither(bytes, sentCodingsOf(req)), fields)
  const plain = decode(bytes, codings)
  return plain.length === 0 ? {} : checked(parse(plain), fields)
}

/** How many bytes a request announces: 0 for none, undefined if it does not say how many. @see RFC 9112 §6.3, RFC 9113 §8.1 */
function announcedLength(req: Request): number | undefined {
  // An application may delete or change headers, so what came over the wire counts too.
  const codings = [req.headers?.['transfer-encoding'], ...sentValues(req, 'transfer-encoding')]
  if (codings.some((coding) => coding !== undefined && coding !== '')) return undefined
  const lengths = [req.headers?.['content-length'], ...sentValues(req, 'content-length')].map(lengthOf)
  const known = lengths.filter((length) => length !== undefined)
  if (known.length < lengths.length) return undefined
  const longest = Math.max(...known)
  if (longest > 0 || hasLength(req)) return longest
  const { stream } = req as { stream?: { endAfterHeaders?: boolean } }
  // HTTP/2 need not announce a body: there is one if the headers do not end the stream. And bytes that are here already need no announcement.
  return stream?.endAfterHeaders === false || (isStream(req) && req.readableLength > 0) ? undefined : 0
}

function hasLength(req: Request): boolean {
  return [req.headers?.['content-length'], ...sentValues(req, 'content-length')].some((length) => String(length ?? '').trim() !== '')
}

/** Zero for an empty header, undefined for one that is not a length. */
function lengthOf(declared: unknown): number | undefined {
  const text = String(declared ?? '').trim()
  if (text === '') return 0
  return /^\d+$/.test(text) ? Number(text) : undefined
}

/** The values of a header as they came over the wire. */
function sentValues({ rawHeaders }: { rawHeaders?: unknown }, name: string): string[] {
  if (!Array.isArray(rawHeaders)) return []
  return rawHeaders.flatMap((value: unknown, i) => (i % 2 === 1 && String(rawHeaders[i - 1]).toLowerCase() === name ? [String(value)] : []))
}

/** Where the body is. */
type Found =
  | { readonly as: 'nothing' }
  | { readonly as: 'parsed'; readonly value: unknown }
  | { readonly as: 'raw'; readonly value: string | Buffer }
  | { readonly as: 'stream' }
  | { readonly as: 'lost'; readonly why: typeof READ_BEFORE | typeof CLOSED }

/** An object with a member has at least this many bytes: `{"a":1}`. */
const SHORTEST_MEMBER = 7

const NOTHING: Found = { as: 'nothing' }

function find(req: Request, length: number | undefined): Found {
  const given: unknown = req.body
  const raw = rawOf(given)
  if (raw !== undefined && raw.length > 0) return { as: 'raw', value: raw }
  const placeholder = given === undefined || given === null || raw !== undefined || isEmptyObject(given)
  // What the application put there counts, whether or not a header announced it.
  if (!placeholder) return { as: 'parsed', value: given }
  // Nothing was announced, and still somebody has read something.
  if (length === 0) return isStream(req) && req.readableDidRead ? { as: 'lost', why: READ_BEFORE } : NOTHING
  const { begun, ended, destroyed } = stateOf(req)
  if (!begun && !ended && !destroyed) return { as: 'stream' }
  // A stream that ended without any data was empty.
  if (!begun && ended && length === undefined) return NOTHING
  // body-parser leaves an empty object even if it read nothing, or failed. It counts only if nothing can be lost.
  if (isEmptyObject(given) && length !== undefined && length < SHORTEST_MEMBER) return { as: 'parsed', value: given }
  return { as: 'lost', why: destroyed && !ended ? CLOSED : READ_BEFORE }
}

/** By its state, since Express gives even a mock a prototype that looks like a stream. */
function isStream(req: Request): boolean {
  return typeof (req as { _readableState?: unknown })._readableState === 'object'
}

/** Anything but a stream counts as a stream that was read. */
function stateOf(req: Request): { readonly begun: boolean; readonly ended: boolean; readonly destroyed: boolean } {
  if (!isStream(req)) return { begun: true, ended: true, destroyed: false }
  return { begun: req.readableDidRead, ended: req.readableEnded, destroyed: req.destroyed }
}

/** A body that has not been parsed yet. */
function rawOf(given: unknown): string | Buffer | undefined {
  if (typeof given === 'string') return given
  if (ArrayBuffer.isView(given)) return Buffer.from(given.buffer, given.byteOffset, given.byteLength)
  return types.isAnyArrayBuffer(given) ? Buffer.from(given) : undefined
}

/** Only a plain object shows that it is empty: a Map, a FormData or an instance with private fields hides what it holds. */
function isEmptyObject(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || Object.keys(value).length > 0) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

/** What is wrong with the media type: nothing if an adapter hands over a body without any headers. */
function typeError(req: Request, length: number | undefined): ApiKeyError | undefined {
  const header: unknown = req.headers?.['content-type']
  if (header === undefined && length === 0) return undefined
  const type =
    String(header ?? '')
      .split(';', 1)[0]
      ?.trim()
      .toLowerCase() ?? ''
  if (JSON_TYPE.test(type)) return undefined
  return new ApiKeyError('unsupported_media_type', `Send the body as application/json${MEDIA_TYPE.test(type) ? `, not as ${type}` : ''}.`)
}

function codingsOf(req: Request): string[] {
  return namesIn(String(req.headers?.['content-encoding'] ?? ''))
}

function sentCodingsOf(req: Request): string[] {
  return namesIn(sentValues(req, 'content-encoding').join())
}

function namesIn(list: string): string[] {
  const names = list.split(',')
  return names.map((name) => name.trim().toLowerCase()).filter((name) => name !== '' && name !== 'identity')
}

/** Somebody may have decoded the body and left the header, or may hand on the bytes as they came. */
function parseEither(raw: string | Buffer, codings: readonly string[]): unknown {
  if (Buffer.byteLength(raw) > MAX_BODY_BYTES) throw bodyTooLarge()
  try {
    return parse(raw)
  } catch (error) {
    if (codings.length === 0 || typeof raw === 'string') throw error
    return parse(decode(raw, codings))
  }
}

/** @see RFC 9110 §8.4.1 */
function decode(bytes: Buffer, [coding, ...more]: readonly string[]): Buffer {
  if (coding === undefined) return bytes
  const decoder = more.length === 0 ? decoderOf(coding, bytes) : undefined
  if (decoder === undefined)
    throw new ApiKeyError('unsupported_media_type', 'Send the body as it is, or compressed once with gzip, deflate or br.')
  try {
    return decoder(bytes, { maxOutputLength: MAX_BODY_BYTES })
  } catch (error) {
    if ((error as { code?: string }).code === 'ERR_BUFFER_TOO_LARGE') throw bodyTooLarge()
    throw invalidRequest('The body is not compressed as its Content-Encoding says.')
  }
}

function decoderOf(coding: string, bytes: Buffer): typeof gunzipSync | undefined {
  switch (coding) {
    case 'gzip':
    case 'x-gzip':
      return gunzipSync
    case 'deflate':
      // Some clients leave out the zlib header, which has 8 in the lower half of its first byte.
      return ((bytes[0] ?? 0) & 0x0f) === 8 ? inflateSync : inflateRawSync
    case 'br':
      return brotliDecompressSync
    default:
      return undefined
  }
}

/** Always UTF-8, whatever the Content-Type says. @see RFC 8259 §8.1, §11 */
function parse(raw: string | Buffer): unknown {
  try {
    return JSON.parse(typeof raw === 'string' ? raw.replace(/^\ufeff/, '') : UTF8.decode(raw))
  } catch {
    // The parser's own message quotes the body, which may hold anything.
    throw invalidRequest('The body is not valid JSON.')
  }
}

function checked(value: unknown, fields: readonly string[]): object {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalidRequest('The body must be a JSON object.')
  const body = membersOf(value, fields)
  if (bytesOf(body) > MAX_BODY_BYTES) throw bodyTooLarge()
  for (const name of Object.keys(body)) {
    if (fields.includes(name)) continue
    const known = fields.length === 0 ? 'It takes none.' : `It takes ${fields.join(', ')}.`
    throw invalidRequest(`The body has a field${FIELD_NAME.test(name) ? ` "${name}"` : ''} that this request does not take. ${known}`)
  }
  return body
}

/** Its own members, and the fields that an instance gets from accessors of its class. */
function membersOf(value: object, fields: readonly string[]): object {
  const members: { [name: string]: unknown } = { ...value }
  for (const name of fields) {
    if (!(name in members) && name in value) members[name] = (value as { [name: string]: unknown })[name]
  }
  if (Object.keys(members).length === 0 && !isEmptyObject(value)) throw invalidRequest('The body must be a JSON object.')
  return members
}

function bytesOf(body: object): number {
  try {
    return Buffer.byteLength(JSON.stringify(body))
  } catch {
    throw invalidRequest('The body is nested too deeply, or is not plain JSON.')
  }
}
