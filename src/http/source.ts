import type { IncomingMessage } from 'node:http'
import { ApiKeyError } from '../errors.js'
import { invalidOption } from '../options.js'
import { identityOf } from './identity.js'
import { synchronous } from './synchronous.js'

/** One place in which a request may carry its credential, and the challenge that asks for it there. */
export interface Source {
  /**
   * The credential, or undefined where this place has none. Synchronous.
   *
   * @throws ApiKeyError `credential_malformed` where there are two, or where it is not a credential.
   */
  read(req: IncomingMessage): string | undefined
  /** The scheme of the challenge, with parameters of its own if it has any, and no realm: `Bearer`, `ApiKey header="X-API-Key"`. @see RFC 9110 §11.6.1 */
  readonly challenge: string
  /** The one header that it is in, in lower case: what `hideCredential` removes. */
  readonly header?: string
  /** How a client sends it, for the message that asks for one: `X-API-Key: <key>`. */
  readonly example?: string
}

/** A source that can also read what is longer than a key. */
interface SizedSource extends Source {
  read(req: IncomingMessage, maxLength?: number): string | undefined
}

const FIRST_WORD = /[^\s,;"']+/
/** A secret has some 60 characters. A longer header is not worth a look. */
const MAX_LENGTH = 1_024
/** The JWT of an operator has a few thousand. */
export const MAX_TOKEN_LENGTH = 8_192
/** @see RFC 6750 §2.1 */
const B64TOKEN = String.raw`[A-Za-z0-9\-._~+/]+=*`
const BARE = new RegExp(`^${B64TOKEN}$`)
/** @see RFC 9110 §5.6.2 */
const NAME_CHARACTER = "[\\w!#$%&'*+.^`|~-]"
const NAME = `${NAME_CHARACTER}+`
const TOKEN = new RegExp(`^${NAME}$`)
const PARAMETER = String.raw`${NAME}="[\x20\x21\x23-\x5b\x5d-\x7e]*"`
/** A scheme, and parameters as RFC 9110 §11.2 has them. */
const CHALLENGE = new RegExp(`^${NAME}(?: ${PARAMETER}(?:, ${PARAMETER})*)?$`)

const OURS = / (?:realm|error|scope)=/i

/** `Authorization: Bearer <key>`. @see RFC 6750 §2.1 */
export function bearer(): Source {
  return scheme('Bearer')
}

/** `Authorization: <name> <key>`, such as `ApiKey` or `Token`. The name goes by no case. */
export function scheme(name: string): Source {
  if (typeof name === 'string' && name.toLowerCase() === 'basic')
    throw invalidOption('For Basic there is basic(), which reads the key from the user name.')
  return schemeOf(name, MAX_LENGTH)
}

/** Where the JWT of an operator is, wherever keys are. */
export const OPERATORS_TOKEN: Source = schemeOf('Bearer', MAX_TOKEN_LENGTH)

function schemeOf(name: string, longest: number): SizedSource {
  if (typeof name !== 'string' || !TOKEN.test(name)) throw invalidOption('scheme takes the name of a scheme, such as "ApiKey".')
  const [escaped, example] = [name.replaceAll(/[.*+?^$|]/g, String.raw`\$&`), `Authorization: ${name} <key>`]
  const whole = new RegExp(`^${escaped} +(${B64TOKEN})$`, 'i')
  const begun = begins(escaped)
  return {
    ...{ challenge: name, header: 'authorization', example },
    read(req, maxLength = longest) {
      const value = authorization(req, maxLength)
      if (value === undefined) return undefined
      const secret = whole.exec(value)?.[1]
      if (secret === undefined && begun.test(value)) throw malformed(`Send the API key as: ${example}.`)
      return secret
    },
  }
}

/** Whether a value is of this scheme, whatever comes after it: a tab or a colon where a space should be makes no other scheme of it. */
function begins(scheme: string): RegExp {
  return new RegExp(`^${scheme}(?!${NAME_CHARACTER})`, 'i')
}

/** `<name>: <key>`, such as `X-API-Key`. */
export function header(name: string): Source {
  if (typeof name !== 'string' || !TOKEN.test(name) || name.toLowerCase() === 'authorization') {
    throw invalidOption(
      'header takes the name of a header, such as "X-API-Key". For Authorization there are bearer, scheme, basic and bare.',
    )
  }
  const lower = name.toLowerCase()
  const source: SizedSource = {
    // No scheme is registered for this. The name tells people where the key goes.
    ...{ challenge: `ApiKey header="${name.replaceAll(/["\\]/g, '')}"`, header: lower, example: `${name}: <key>` },
    read(req, maxLength) {
      const value = only(req, lower, name, maxLength)
      if (value === undefined) return undefined
      if (!BARE.test(value)) throw malformed(`Send one API key as: ${name}: <key>, without a scheme such as Bearer.`)
      return value
    },
  }
  return source
}

/** `Authorization: Basic <base64 of "<key>:">`: the key is the user name, and the password is empty, as `curl -u <key>:` sends it. @see RFC 7617 §2 */
export function basic(): Source {
  const example = 'Authorization: Basic, with the API key as the user name and an empty password'
  const begun = begins('basic')
  return {
    ...{ challenge: 'Basic charset="UTF-8"', header: 'authorization', example },
    read(req, maxLength?: number) {
      const value = authorization(req, maxLength)
      if (value === undefined || !begun.test(value)) return undefined
      const userPass = decoded(/^basic +([A-Za-z0-9+/]+={0,2})$/i.exec(value)?.[1])
      const secret = userPass?.endsWith(':') === true ? userPass.slice(0, -1) : ''
      if (!BARE.test(secret)) throw malformed(`Send the API key as: ${example}.`)
      return secret
    },
  }
}

/** `Authorization: <key>`, without a scheme. */
export function bare(): Source {
  const source: SizedSource = {
    // A 401 needs a challenge, and of the registered schemes this is the nearest.
    ...{ challenge: 'Bearer', header: 'authorization', example: 'Authorization: <key>' },
    read(req, maxLength) {
      const value = authorization(req, maxLength)
      return value !== undefined && BARE.test(value) && !/^(?:basic|bearer)$/i.test(value) ? value : undefined
    },
  }
  return source
}

/** The option `from`, checked. Throws `invalid_option`. */
export function sourcesOption(from: Source | readonly Source[] | undefined, standard: readonly Source[] = [bearer()]): readonly Source[] {
  if (from === undefined) return standard
  const sources: readonly Source[] = Array.isArray(from) ? [...from] : [from as Source]
  for (const one of sources) {
    const { read, challenge, header } = (one ?? {}) as { [name in keyof Source]?: unknown }
    const good = typeof read === 'function' && typeof challenge === 'string' && CHALLENGE.test(challenge)
    // A parameter may be there once. These are added to it.
    if (good && OURS.test(challenge)) {
      throw invalidOption(
        'The challenge of a source must not have realm, error or scope, which are added: for the first there is the option realm.',
      )
    }
    const named = header === undefined || (typeof header === 'string' && TOKEN.test(header) && header === header.toLowerCase())
    if (!good || !named) {
      throw invalidOption(
        'from takes bearer(), header(name), scheme(name), basic(), bare() or { read(req), challenge }, or a list of them.',
      )
    }
  }
  if (sources.length === 0) throw invalidOption('from is an empty list, so no request could bring a key.')
  return sources
}

/**
 * The one credential of a request; undefined where there is none. Every source is looked at: two credentials are no credential.
 *
 * @throws ApiKeyError `credential_malformed` where there are two different ones, and what a source throws.
 */
export function credentialOf(req: IncomingMessage, sources: readonly Source[], maxLength?: number): string | undefined {
  let found: string | undefined
  for (const source of sources as readonly SizedSource[]) {
    const secret: unknown = synchronous(source.read(req, maxLength), 'read() of a source')
    if (secret === undefined) continue
    if (typeof secret !== 'string' || secret === '') throw new TypeError('read() of a source must return the credential or undefined.')
    if (found !== undefined && found !== secret) throw malformed('Send one API key, not two different ones.')
    found = secret
  }
  return found
}

/** Refuses a credential that got lost on its way: a header of these sources that is there and empty, or that begins with a key which none of them reads. */
export function refuseLost(req: IncomingMessage, sources: readonly Source[], isKey: (text: string) => boolean): void {
  const values = sources.flatMap(({ header }) => (header === undefined ? [] : headerValues(req, header)))
  if (values.includes('')) throw malformed('The header for the API key is empty.')
  if (values.some((value) => isKey(FIRST_WORD.exec(value)?.[0] ?? ''))) throw malformed(missingCredential(sources).message)
}

/** Says how a key is to be sent. */
export function missingCredential(sources: readonly Source[]): ApiKeyError {
  const examples = [...new Set(sources.flatMap(({ example }) => example ?? []))]
  return new ApiKeyError(
    'credential_missing',
    examples.length === 0 ? 'Send an API key.' : `Send an API key as: ${examples.join(', or ')}.`,
  )
}

/** The challenges of sources, each once. */
export function challengesOf(sources: readonly Source[]): readonly string[] {
  return [...new Set(sources.map(({ challenge }) => challenge))]
}

/** What was removed from requests, by their `identityOf`, and by header: a guard behind a wrapper of the request finds it too. */
const hidden = new WeakMap<object, Map<string, string[]>>()

/** Removes the headers of these sources from a request, for whatever comes after. Sources find what was in them all the same. */
export function hideCredentials(req: IncomingMessage, sources: readonly Source[]): void {
  for (const { header } of sources) {
    if (header === undefined) continue
    const values = headerValues(req, header)
    if (values.length === 0) continue
    const identity = identityOf(req) ?? req
    hidden.set(identity, (hidden.get(identity) ?? new Map()).set(header, values))
    delete req.headers[header]
    // Computed from the raw headers at the first look, and kept.
    delete req.headersDistinct?.[header]
    const raw = req.rawHeaders
    if (!Array.isArray(raw)) continue
    for (let i = raw.length - 2; i >= 0; i -= 2) if (String(raw[i]).toLowerCase() === header) raw.splice(i, 2)
  }
}

/** The one `Authorization` header. */
function authorization(req: IncomingMessage, maxLength?: number): string | undefined {
  return only(req, 'authorization', 'Authorization', maxLength)
}

function only(req: IncomingMessage, lower: string, name: string, maxLength: number = MAX_LENGTH): string | undefined {
  const [value, ...more] = headerValues(req, lower)
  if (more.length > 0) throw malformed(`Send one ${name} header, not two.`)
  if (value !== undefined && value.length > maxLength) throw malformed(`The ${name} header is longer than ${maxLength} characters.`)
  return value
}

/** Base64 in its one form, of UTF-8; undefined for anything else. */
function decoded(text: string | undefined): string | undefined {
  if (text === undefined) return undefined
  const bytes = Buffer.from(text, 'base64')
  if (bytes.toString('base64') !== text) return undefined
  const read = bytes.toString('utf8')
  return Buffer.from(read).equals(bytes) ? read : undefined
}

/**
 * Every value of a header. Whether there is one, and which, is for `req.headers` to say: Node, Express and adapters agree on it, and middleware
 * changes it. `rawHeaders` shows doubles: Node silently drops a second `Authorization` and joins a second `Idempotency-Key`.
 */
export function headerValues(req: IncomingMessage, name: string): string[] {
  const given: unknown = req.headers?.[name]
  if (given === undefined || given === null) return hidden.get(identityOf(req) ?? req)?.get(name) ?? []
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

function malformed(message: string): ApiKeyError {
  return new ApiKeyError('credential_malformed', message)
}
