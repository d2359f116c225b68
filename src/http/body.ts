import { types } from 'node:util'
import { brotliDecompressSync, gunzipSync, inflateRawSync, inflateSync } from 'node:zlib'
import type { Request } from 'express'
import { ApiKeyError } from '../errors.js'
import { clearInterval, setImmediate, setInterval } from '../real-time.js'

/** Of a body, as it comes and as it is when decoded. */
const MAX_BODY_BYTES = 16 * 1024
/** An object with a member takes this many bytes at least: `{"a":1}`. */
const SHORTEST_MEMBER = 7
/** What may be quoted of a body: too short for a secret that ended up on the wrong side of a colon. */
const FIELD_NAME = /^\w{1,32}$/
/** What may be quoted of a Content-Type, for the same reason. */
const MEDIA_TYPE = /^[a-z]{1,16}\/[a-z\d.+-]{1,32}$/
const JSON_TYPE = /^(?:application\/json|[\w!#$&^.+-]+\/[\w!#$&^.+-]+\+json)$/
const UTF8 = new TextDecoder('utf-8', { fatal: true })
/** How long a request may wait because somebody has taken the listeners off its body. */
const LOOK_MS = 250

const READ_BEFORE = 'The body was read before the router could; mount keyRouter before what reads bodies, or let that put it into req.body.'
const CLOSED = 'The connection was closed before the body was read.'

/**
 * Begins to read the JSON object of a request, before anything can be awaited: later, somebody else may have read it. Waiting for it is optional.
 *
 * Takes what the application has put into `req.body`, as an object, a text or bytes. A request without a body has an empty object. A body that
 * was announced and cannot be had is never taken for an empty one.
 *
 * @throws ApiKeyError `invalid_request`, `body_too_large` or `unsupported_media_type`, by rejecting.
 */
export function beginBody(req: Request, fields: readonly string[]): Promise<object> {
  const body = readBody(req, fields)
  // The request may be refused before anybody waits for its body.
  body.catch(() => {})
  return body
}

/** Up to its first `await` it runs before `beginBody` returns. */
async function readBody(req: Request, fields: readonly string[]): Promise<object> {
  const length = announcedLength(req)
  const found = find(req, length)
  if (found.as === 'nothing') return {}
  if (length !== undefined && length > MAX_BODY_BYTES) throw tooLarge()
  const wrongType = typeError(req, length)
  // A body of unknown length may still turn out to be empty, and then needs no type.
  if (wrongType !== undefined && (found.as !== 'stream' || length !== undefined)) throw wrongType
  switch (found.as) {
    case 'lost':
      throw invalid(found.why)
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

function checkedBytes(req: Request, bytes: Buffer, fields: readonly string[]): object {
  const codings = codingsOf(req)
  // Somebody who decodes the body for a log may take the header away; the bytes are as they came.
  if (codings.length === 0) return checked(parseEither(bytes, sentCodingsOf(req)), fields)
  const plain = decode(bytes, codings)
  return plain.length === 0 ? {} : checked(parse(plain), fields)
}

/** How many bytes a request says it brings; 0 for none, undefined where it does not say how many. @see RFC 9112 §6.3, RFC 9113 §8.1 */
function announcedLength(req: Request): number | undefined {
  // An application may delete or change headers. What came over the wire counts too.
  const codings = [req.headers?.['transfer-encoding'], ...sentValues(req, 'transfer-encoding')]
  if (codings.some((coding) => coding !== undefined && coding !== '')) return undefined
  const lengths = [req.headers?.['content-length'], ...sentValues(req, 'content-length')].map(lengthOf)
  const known = lengths.filter((length) => length !== undefined)
  if (known.length < lengths.length) return undefined
  const longest = Math.max(...known)
  if (longest > 0 || lengthIsSaid(req)) return longest
  const { stream } = req as { stream?: { endAfterHeaders?: boolean } }
  // HTTP/2 announces nothing: there is a body where the headers do not end the stream. And what is here already was announced by coming.
  return stream?.endAfterHeaders === false || (isStream(req) && req.readableLength > 0) ? undefined : 0
}

function lengthIsSaid(req: Request): boolean {
  return [req.headers?.['content-length'], ...sentValues(req, 'content-length')].some((length) => String(length ?? '').trim() !== '')
}

/** Zero where nothing is said, undefined where what is said is no length. */
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
  | { readonly as: 'lost'; readonly why: string }

const NOTHING: Found = { as: 'nothing' }

function find(req: Request, length: number | undefined): Found {
  const given: unknown = req.body
  const raw = rawOf(given)
  if (raw !== undefined && raw.length > 0) return { as: 'raw', value: raw }
  const placeholder = given === undefined || given === null || raw !== undefined || isEmptyObject(given)
  // What the application has put there counts, whether or not a header announced it.
  if (!placeholder) return { as: 'parsed', value: given }
  // Nothing was announced, and yet somebody has read something.
  if (length === 0) return isStream(req) && req.readableDidRead ? { as: 'lost', why: READ_BEFORE } : NOTHING
  const { begun, ended, destroyed } = stateOf(req)
  if (!begun && !ended && !destroyed) return { as: 'stream' }
  // A stream that ended and never had any data was empty.
  if (!begun && ended && length === undefined) return NOTHING
  // body-parser leaves an empty object also where it has read nothing, or has failed: it is believed only where nothing can have got lost.
  if (isEmptyObject(given) && length !== undefined && length < SHORTEST_MEMBER) return { as: 'parsed', value: given }
  return { as: 'lost', why: destroyed && !ended ? CLOSED : READ_BEFORE }
}

/** Express gives a mock, too, a prototype that looks like a stream. */
function isStream(req: Request): boolean {
  return typeof (req as { _readableState?: unknown })._readableState === 'object'
}

/** What is no stream counts as one that was read. */
function stateOf(req: Request): { readonly begun: boolean; readonly ended: boolean; readonly destroyed: boolean } {
  if (!isStream(req)) return { begun: true, ended: true, destroyed: false }
  return { begun: req.readableDidRead, ended: req.readableEnded, destroyed: req.destroyed }
}

/** A body that nobody has parsed yet. */
function rawOf(given: unknown): string | Buffer | undefined {
  if (typeof given === 'string') return given
  if (ArrayBuffer.isView(given)) return Buffer.from(given.buffer, given.byteOffset, given.byteLength)
  return types.isAnyArrayBuffer(given) ? Buffer.from(given) : undefined
}

/** Only of a plain object can be seen that it is empty: a Map, a FormData or an instance with private fields shows nothing of what it holds. */
function isEmptyObject(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || Object.keys(value).length > 0) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

/** What speaks against the media type; nothing does where an adapter hands over a body with no headers at all. */
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

/**
 * All bytes of a stream that nobody has read yet. The listeners stay: a body that is too large is read to its end and thrown away, or the
 * connection would be of no more use. Somebody may take them off; the stream is then looked at from time to time.
 */
function collect(req: Request, length: number | undefined): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    let chunks: Buffer[] = []
    let size = 0
    let settled = false
    const settle = (): void => {
      settled = true
      clearInterval(looking)
    }
    const fail = (error: ApiKeyError): void => {
      settle()
      chunks = []
      reject(error)
    }
    const take = (chunk: string | Uint8Array): void => {
      if (settled) return
      // A text where somebody has called setEncoding.
      const bytes = typeof chunk === 'string' ? Buffer.from(chunk, req.readableEncoding ?? 'utf8') : Buffer.from(chunk)
      size += bytes.length
      if (size > MAX_BODY_BYTES) fail(tooLarge())
      else chunks.push(bytes)
    }
    const end = (): void => {
      // Bytes that were announced, or were there, and that never got here.
      if (size === 0 && (length !== undefined || req.readableDidRead)) fail(invalid(READ_BEFORE))
      settle()
      resolve(Buffer.concat(chunks))
    }
    const look = (): void => {
      if (req.readableEnded) end()
      else if (req.destroyed) fail(invalid(CLOSED))
      else if (!req.listeners('data').includes(take)) fail(invalid(READ_BEFORE))
      else if (req.readableFlowing === false) req.resume()
    }
    const looking = setInterval(look, LOOK_MS)
    looking.unref()
    req.on('data', take)
    req.on('end', end)
    for (const event of ['error', 'aborted', 'close']) req.on(event, () => (req.readableEnded ? end() : fail(invalid(CLOSED))))
    keepFlowing(req, () => settled)
  })
}

/** Whoever has paused the stream, pipes it somewhere slow, or reads it in portions, is not to keep the request waiting. */
function keepFlowing(req: Request, done: () => boolean): void {
  if (req.listenerCount('readable') > 0) {
    // Such a stream does not flow. What others read of it comes as data too; what they leave is read after them.
    const drain = (): void => {
      while (!done() && req.read() !== null);
    }
    req.on('readable', () => setImmediate(drain))
    setImmediate(drain)
    return
  }
  const resume = (): void => {
    if (!done()) req.resume()
  }
  // After whoever has paused it, and by no timer that a test may have faked.
  req.on('pause', () => void Promise.resolve().then(resume))
  if (req.readableFlowing === false) resume()
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

/** Somebody may have undone the coding and left the header, or handed on the bytes as they came. */
function parseEither(raw: string | Buffer, codings: readonly string[]): unknown {
  if (Buffer.byteLength(raw) > MAX_BODY_BYTES) throw tooLarge()
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
    if ((error as { code?: string }).code === 'ERR_BUFFER_TOO_LARGE') throw tooLarge()
    throw invalid('The body is not compressed as its Content-Encoding says.')
  }
}

function decoderOf(coding: string, bytes: Buffer): typeof gunzipSync | undefined {
  switch (coding) {
    case 'gzip':
    case 'x-gzip':
      return gunzipSync
    case 'deflate':
      // Some clients leave out the zlib header, whose first half byte is 8.
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
    throw invalid('The body is not valid JSON.')
  }
}

function checked(value: unknown, fields: readonly string[]): object {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid('The body must be a JSON object.')
  const body = membersOf(value, fields)
  if (bytesOf(body) > MAX_BODY_BYTES) throw tooLarge()
  for (const name of Object.keys(body)) {
    if (fields.includes(name)) continue
    const known = fields.length === 0 ? 'It takes none.' : `It takes ${fields.join(', ')}.`
    throw invalid(`The body has a field${FIELD_NAME.test(name) ? ` "${name}"` : ''} that this request does not take. ${known}`)
  }
  return body
}

/** Its own members, and those fields that the class of an instance has accessors for. */
function membersOf(value: object, fields: readonly string[]): object {
  const members: { [name: string]: unknown } = { ...value }
  for (const name of fields) {
    if (!(name in members) && name in value) members[name] = (value as { [name: string]: unknown })[name]
  }
  if (Object.keys(members).length === 0 && !isEmptyObject(value)) throw invalid('The body must be a JSON object.')
  return members
}

function bytesOf(body: object): number {
  try {
    return Buffer.byteLength(JSON.stringify(body))
  } catch {
    throw invalid('The body is nested too deeply, or is not plain JSON.')
  }
}

function tooLarge(): ApiKeyError {
  return new ApiKeyError('body_too_large', `The body must be at most ${MAX_BODY_BYTES} bytes.`)
}

function invalid(message: string): ApiKeyError {
  return new ApiKeyError('invalid_request', message)
}
