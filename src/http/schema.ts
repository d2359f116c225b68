import { MAX_ALLOWED_IPS } from '../core/allowed-ips.js'
import { FIELD_LIMITS, LONGEST_GRACE_MS, SCOPE_TOKEN } from '../core/input.js'
import { type Action, type Field, instant, object, oneOf, orNull, type Schema, text, uuid } from './contract.js'
import { MAX_IDEMPOTENCY_KEY_LENGTH } from './idempotency-key.js'

/** The schema of a field of a body. */
export function fieldSchema(field: Field, action: Action): Schema {
  return (action === 'create' && FIELDS_OF_CREATE[field]) || FIELDS[field]
}

const LINE: Schema = { type: 'string', minLength: 1, maxLength: FIELD_LIMITS.text }

const FIELDS: { readonly [field in Field]: Schema } = {
  name: { ...LINE, description: 'Without control characters.' },
  environment: oneOf('live', 'test'),
  scopes: {
    type: 'array',
    maxItems: FIELD_LIMITS.scopes,
    items: { type: 'string', maxLength: FIELD_LIMITS.scopeLength, pattern: SCOPE_TOKEN.source, description: 'RFC 6749 section 3.3.' },
  },
  metadata: {
    type: 'object',
    description: `At most ${FIELD_LIMITS.metadataBytes / 1_024} KiB of JSON, and at most ${FIELD_LIMITS.metadataDepth} levels deep.`,
  },
  allowedIps: {
    description: 'The addresses and networks that the key may be used from: IPv4, IPv6, and both in CIDR notation. Null for any.',
    oneOf: [
      {
        type: 'array',
        minItems: 1,
        maxItems: MAX_ALLOWED_IPS,
        items: { type: 'string', maxLength: 64, description: 'Such as 192.0.2.0/24.' },
      },
      { type: 'null' },
    ],
  },
  expiresAt: orNull(instant),
  ownerId: { ...LINE, description: 'For operators, whose token may name several owners.' },
  rotationSecret: { type: 'string', minLength: 1, description: 'The rotation secret of the key that is calling.' },
  retire: {
    description: 'When the old secret stops being accepted.',
    oneOf: [
      oneOf('now', 'on-first-use'),
      object({
        afterMs: { type: 'integer', minimum: 1, maximum: LONGEST_GRACE_MS },
      }),
    ],
  },
  emergency: {
    type: 'boolean',
    description: 'Ends the grace period of an earlier secret too. Not together with a `retire` other than `now`.',
  },
  reason: LINE,
}

/** The fields that are something else where a key is made. */
const FIELDS_OF_CREATE: { readonly [field in Field]?: Schema } = {
  rotationSecret: { type: 'boolean', description: 'Whether the key gets a rotation secret.' },
}

export interface Parameter {
  readonly name: string
  readonly in: 'path' | 'header' | 'query'
  readonly required?: boolean
  readonly description: string
  readonly schema: Schema
}

export function keyIdParameter(name: string): Parameter {
  return { name, in: 'path', required: true, description: 'The id of the key.', schema: uuid }
}

export const IDEMPOTENCY_KEY: Parameter = {
  name: 'Idempotency-Key',
  in: 'header',
  description: `Makes a retry safe: the same request with the same value is carried out once, and gets the same answer. At most ${MAX_IDEMPOTENCY_KEY_LENGTH} characters of visible ASCII without commas and quotes, or a quoted string of RFC 9651.`,
  schema: { type: 'string', minLength: 1 },
}

export const REQUEST_ID: Parameter = {
  name: 'X-Request-Id',
  in: 'header',
  required: false,
  description:
    'Names this request. The answer has the same value if it is 1 to 128 characters of `A-Z a-z 0-9 . _ -` and holds nothing as long as a key, and a new one otherwise.',
  schema: text,
}

export const PAGE: readonly Parameter[] = [
  {
    name: 'limit',
    in: 'query',
    description: 'How many items a page has at most.',
    schema: { type: 'integer', minimum: 1, maximum: FIELD_LIMITS.page, default: FIELD_LIMITS.defaultPage },
  },
  { name: 'cursor', in: 'query', description: 'The `nextCursor` of the page before. Without it, the first page.', schema: text },
]

export const FILTERS: readonly Parameter[] = [
  {
    name: 'status',
    in: 'query',
    description: 'Keys with this status. `expired` is past its expiry, and neither disabled nor revoked.',
    schema: { type: 'string', enum: ['active', 'disabled', 'expired', 'revoked'] },
  },
  { name: 'environment', in: 'query', description: 'Keys of this environment.', schema: { type: 'string', enum: ['live', 'test'] } },
  {
    name: 'expiresBefore',
    in: 'query',
    description: 'Keys that expire before this instant, or already have. Keys that never expire are left out.',
    schema: { type: 'string', format: 'date-time' },
  },
  {
    name: 'lastUsedBefore',
    in: 'query',
    description: 'Keys last used before this instant. A key that was never used counts from its creation.',
    schema: { type: 'string', format: 'date-time' },
  },
  {
    name: 'name',
    in: 'query',
    description: 'Keys with this text in their name. A to Z match in either case; nothing is a wildcard.',
    schema: text,
  },
  {
    name: 'last4',
    in: 'query',
    description: 'Keys whose active secret ends in these four characters.',
    schema: { type: 'string', pattern: '^[0-9A-Za-z]{4}$' },
  },
]

export const OWNER: Parameter = {
  name: 'ownerId',
  in: 'query',
  description: 'For operators, whose token may name several owners.',
  schema: text,
}

type HeaderName =
  | 'Cache-Control'
  | 'X-Request-Id'
  | 'WWW-Authenticate'
  | 'Retry-After'
  | 'Idempotent-Replayed'
  | 'RateLimit'
  | 'RateLimit-Policy'
  | 'Api-Key-Expires-At'

/** A header of an answer, and whether the answer always has it. */
export type SentHeader = readonly [name: HeaderName, when: 'always' | 'sometimes']

export function headerSchemas(sent: readonly SentHeader[]): object {
  return Object.fromEntries(sent.map(([name, when]) => [name, { ...HEADERS[name], required: when === 'always' }]))
}

const HEADERS: { readonly [name in HeaderName]: { readonly description: string; readonly schema: Schema } } = {
  'Cache-Control': { description: 'Answers must not be cached.', schema: { const: 'no-store' } },
  'X-Request-Id': { description: 'Names this request in the logs.', schema: text },
  'WWW-Authenticate': { description: 'The challenge of RFC 6750 section 3.', schema: text },
  'Retry-After': { description: 'Seconds to wait before the next try.', schema: { type: 'integer', minimum: 1 } },
  'Idempotent-Replayed': { description: 'Sent if this is the answer to an earlier request.', schema: { const: 'true' } },
  RateLimit: {
    description: 'What is left of the limit (`r`), and the seconds until it is reset (`t`). See draft-ietf-httpapi-ratelimit-headers-08.',
    schema: text,
  },
  'RateLimit-Policy': { description: 'The limit (`q`) and its window in seconds (`w`).', schema: text },
  'Api-Key-Expires-At': {
    description: 'Sent if the request came with a secret in its grace period: the end of that period.',
    schema: instant,
  },
}
