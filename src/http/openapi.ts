import type { ApiKey, KeyEvent } from '../core/key.js'
import { ApiKeyError, type ApiKeyErrorCode, challenges, statusOf } from '../errors.js'
import { type Answers, type Contract, type Field, instant, object, oneOf, orNull, type Route, type Schema, text, uuid } from './contract.js'

/**
 * Describes a contract as an OpenAPI 3.1 document. Everything in it comes from the contract's own values: the examples are what its `success` and
 * `failure` make.
 *
 * @param path where the router is mounted; default where the contract says it usually is.
 * @see https://spec.openapis.org/oas/v3.1.1
 */
export function openApiDocument(contract: Contract, path: string = contract.path): object {
  const paths: { [path: string]: { [method: string]: object } } = {}
  const base = path.replace(/\/+$/, '')
  for (const route of contract.routes) {
    const template = (base + (route.path === '/' ? '' : route.path)).replaceAll(/:(\w+)/g, '{$1}') || '/'
    paths[template] = { ...paths[template], [route.method]: operation(contract, route) }
  }
  // A path of its own, or readers of the document would take it for an id.
  paths[`${base}/openapi.json`] = { get: ownOperation(contract) }
  return {
    openapi: '3.1.1',
    info: {
      title: `API keys: ${contract.name}`,
      version: '1.0.0',
      description: 'Keys that can be rotated with nobody locked out and no old key left alive.',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: '/' }],
    security: [{ key: [] }],
    paths,
    components: {
      securitySchemes: {
        key: contract.bareToken
          ? { type: 'apiKey', in: 'header', name: 'Authorization', description: 'The key, alone or after `Bearer `.' }
          : {
              type: 'http',
              scheme: 'bearer',
              description: contract.operators ? 'The key, or the JWT of an operator where operators may call.' : 'The key.',
            },
      },
    },
  }
}

/** The document, as it is served beside what it describes. */
function ownOperation(contract: Contract): object {
  const sent = contract.requestId ? { headers: headers([['X-Request-Id', 'always']]) } : {}
  return {
    operationId: 'openApi',
    summary: 'Read this document',
    security: [],
    ...(contract.requestId ? { parameters: [REQUEST_ID] } : {}),
    responses: {
      200: { description: 'The document.', ...sent, content: { 'application/json': { schema: { type: 'object' } } } },
      304: { description: 'The document still has the ETag that the request names.', ...sent },
    },
  }
}

const REQUEST_ID = {
  name: 'X-Request-Id',
  in: 'header',
  required: false,
  description:
    'Names this request, and comes back with the answer where it is 1 to 128 characters of `A-Z a-z 0-9 . _ -` and holds nothing as long as a key. A new name comes back otherwise.',
  schema: text,
}

const IDEMPOTENCY_KEY = {
  name: 'Idempotency-Key',
  in: 'header',
  description:
    'Makes a retry safe: the same request with the same value is done once, and answered the same. At most 255 characters of visible ASCII without commas and quotes, or a quoted string of RFC 9651.',
  schema: { type: 'string', minLength: 1 },
}

const FIELDS: { readonly [field in Field]: Schema } = {
  name: { type: 'string', minLength: 1, maxLength: 255, description: 'Without control characters.' },
  environment: oneOf('live', 'test'),
  scopes: {
    type: 'array',
    maxItems: 100,
    items: { type: 'string', maxLength: 128, pattern: '^[\\x21\\x23-\\x5b\\x5d-\\x7e]+$', description: 'RFC 6749 section 3.3.' },
  },
  metadata: { type: 'object', description: 'At most 8 KiB of JSON, and at most 16 levels deep.' },
  expiresAt: orNull(instant),
  ownerId: { type: 'string', minLength: 1, maxLength: 255, description: 'For operators, whose token may name several owners.' },
  rotationSecret: { type: 'string', minLength: 1, description: 'The rotation secret of the key that is calling.' },
  retire: {
    description: 'When the old secret stops being accepted.',
    oneOf: [oneOf('now', 'on-first-use'), object({ afterMs: { type: 'integer', minimum: 1, description: 'At most 7 days count.' } })],
  },
  emergency: {
    type: 'boolean',
    description: 'Ends the grace period of an earlier secret too. Not together with a `retire` that is not `now`.',
  },
  reason: { type: 'string', minLength: 1, maxLength: 255 },
}

/** A field that is something else where a key is made. */
const FIELDS_OF_CREATE: { readonly [field in Field]?: Schema } = {
  rotationSecret: { type: 'boolean', description: 'Whether the key gets a rotation secret.' },
}

function operation(contract: Contract, route: Route): object {
  const { method, path, action, requires = [], fields = [], status, summary = action, schema = { type: 'object' } } = route
  const target = /:(\w+)/.exec(path)?.[1]
  const required = fields.filter((field) => requires.some((name) => name === field) || (action === 'create' && field === 'name'))
  const parameters = [
    ...(target === undefined ? [] : [{ name: target, in: 'path', required: true, description: 'The id of the key.', schema: uuid }]),
    ...(method === 'get' ? [] : [{ ...IDEMPOTENCY_KEY, required: requires.includes('idempotencyKey') }]),
    ...(contract.requestId ? [REQUEST_ID] : []),
    ...(action === 'list' || action === 'events'
      ? [
          { name: 'limit', in: 'query', schema: { type: 'integer', minimum: 1, maximum: 100, default: 50 } },
          { name: 'cursor', in: 'query', schema: text },
          ...(action === 'list' && contract.operators
            ? [{ name: 'ownerId', in: 'query', description: 'For operators.', schema: text }]
            : []),
        ]
      : []),
  ]
  // A change of nothing is refused.
  const changes = action === 'update'
  const properties = Object.fromEntries(fields.map((field) => [field, (action === 'create' && FIELDS_OF_CREATE[field]) || FIELDS[field]]))
  return {
    operationId: operationId(route),
    summary,
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(fields.length === 0
      ? {}
      : {
          requestBody: {
            required: required.length > 0 || changes,
            content: {
              'application/json': {
                schema: {
                  ...object(
                    properties,
                    fields.filter((field) => !required.includes(field)),
                  ),
                  ...(changes ? { minProperties: 1 } : {}),
                },
              },
            },
          },
        }),
    responses: {
      [status]: {
        description: 'Success.',
        headers: headersOf(contract, route, status, []),
        content: { 'application/json': { schema, example: (route.success as (answer: unknown) => object)(SAMPLES[action]) } },
      },
      ...failures(contract, route),
    },
  }
}

function operationId({ action, path, method }: Route): string {
  const words = path
    .replaceAll(/:\w+/g, '')
    .split(/[^A-Za-z]+/)
    .filter((word) => word !== '' && word !== action)
  return [action, ...words, ...(action === 'list' || method !== 'get' || words.length > 0 ? [] : ['key'])]
    .map((word, index) => (index === 0 ? word : word.charAt(0).toUpperCase() + word.slice(1)))
    .join('')
}

const HEADERS = {
  'Cache-Control': { description: 'Answers are never cached.', schema: { const: 'no-store' } },
  'X-Request-Id': { description: 'Names this request in the logs.', schema: text },
  'WWW-Authenticate': { description: 'The challenge of RFC 6750 section 3.', schema: text },
  'Retry-After': { description: 'Seconds.', schema: { type: 'integer', minimum: 1 } },
  'Idempotent-Replayed': { description: 'Sent when this is the answer to an earlier request.', schema: { const: 'true' } },
  RateLimit: {
    description: 'What is left of the limit (`r`) and for how many seconds (`t`), as draft-ietf-httpapi-ratelimit-headers-08 has it.',
    schema: text,
  },
  'RateLimit-Policy': { description: 'The limit (`q`) and its window in seconds (`w`).', schema: text },
  'Api-Key-Expires-At': {
    description: 'Sent when the request came with a secret in its grace period: until when that secret is accepted.',
    schema: instant,
  },
} as const

type Sent = readonly [name: keyof typeof HEADERS, when: 'always' | 'sometimes']

function headers(sent: readonly Sent[]): object {
  return Object.fromEntries(sent.map(([name, when]) => [name, { ...HEADERS[name], required: when === 'always' }]))
}

/** Codes that a reader may get once its key is known. */
const TOLD_TO_READERS: readonly ApiKeyErrorCode[] = ['insufficient_scope', 'key_not_found', 'store_unavailable', 'internal_error']

/** The headers of the answers with one status; `codes` says why a failure has it. */
function headersOf({ requestId }: Contract, { method, action }: Route, status: number, codes: readonly ApiKeyErrorCode[]): object {
  const succeeds = codes.length === 0
  const reads = method === 'get'
  const challenged = codes.filter((code) => challenges(code, status)).length
  const known = succeeds || codes.some((code) => TOLD_TO_READERS.includes(code) || (code === 'invalid_request' && action !== 'get'))
  const rows: readonly (readonly [applies: boolean, ...Sent])[] = [
    [true, 'Cache-Control', 'always'],
    [requestId === true, 'X-Request-Id', 'always'],
    [challenged > 0, 'WWW-Authenticate', challenged === codes.length ? 'always' : 'sometimes'],
    [status === 429 || status === 503, 'Retry-After', 'always'],
    [succeeds && !reads, 'Idempotent-Replayed', 'sometimes'],
    [!reads, 'RateLimit', 'sometimes'],
    [!reads, 'RateLimit-Policy', 'sometimes'],
    [reads && known, 'Api-Key-Expires-At', 'sometimes'],
  ]
  return headers(rows.flatMap(([applies, ...sent]) => (applies ? [sent] : [])))
}

/** Every way in which a route can fail, by status. */
function failures(contract: Contract, route: Route): object {
  const byStatus = new Map<number, { contentType: string; examples: { [code: string]: object } }>()
  for (const code of failureCodes(contract, route)) {
    const failure = contract.failure(new ApiKeyError(code, MESSAGES[code] ?? 'What went wrong, in one sentence.'), {
      requestId: '3f1c2d9a-5b7e-4c1d-9e8f-0a1b2c3d4e5f',
    })
    const status = failure.status ?? statusOf(code)
    const { contentType, examples } = byStatus.get(status) ?? { contentType: failure.contentType ?? 'application/json', examples: {} }
    byStatus.set(status, { contentType, examples: { ...examples, [code]: { value: failure.body } } })
  }
  return Object.fromEntries(
    [...byStatus].map(([status, { contentType, examples }]) => [
      status,
      {
        description: Object.keys(examples).join(', '),
        headers: headersOf(contract, route, status, Object.keys(examples) as ApiKeyErrorCode[]),
        content: { [contentType]: { schema: contract.failureSchema ?? { type: 'object' }, examples } },
      },
    ]),
  )
}

const MESSAGES: { readonly [code in ApiKeyErrorCode]?: string } = {
  credential_missing: 'Send an API key as: Authorization: Bearer <key>.',
  invalid_key: 'The API key is not valid.',
  key_not_found: 'There is no such key.',
  key_revoked: 'The key is revoked; a revoked key cannot be rotated.',
  rate_limited: 'Too many requests; try again later.',
  store_misconfigured: 'The store cannot be used at the moment.',
}

function failureCodes({ operators }: Contract, { method, path, action, requires = [], fields = [] }: Route): readonly ApiKeyErrorCode[] {
  const [reads, targeted, rotates] = [method === 'get', path.includes(':'), action === 'rotate']
  const self = rotates && !targeted
  const takesRotationSecret = rotates && fields.includes('rotationSecret')
  const codes: readonly (readonly [boolean, readonly ApiKeyErrorCode[]])[] = [
    [targeted, ['invalid_request']],
    [true, ['credential_malformed', 'credential_missing', 'invalid_key', 'rate_limited']],
    [true, ['store_unavailable', 'store_misconfigured', 'internal_error']],
    [!self, ['insufficient_scope']],
    [targeted, ['key_id_invalid', 'key_not_found']],
    [!reads || action === 'list' || action === 'events', ['invalid_request']],
    [!reads, ['idempotency_key_invalid', 'idempotency_key_spent', 'idempotency_key_mismatch', 'outcome_unknown']],
    [!reads, ['secret_in_grace']],
    [!reads, ['body_too_large', 'unsupported_media_type']],
    [requires.includes('idempotencyKey'), ['idempotency_key_missing']],
    [requires.includes('rotationSecret'), ['rotation_secret_missing']],
    [rotates, ['rotation_in_grace']],
    [rotates || action === 'create', ['rotation_superseded']],
    [rotates && targeted, ['key_expired']],
    [targeted && (rotates || action === 'update'), ['key_revoked']],
    [takesRotationSecret, ['rotation_secret_not_configured', 'key_revoked']],
    [rotates && !requires.includes('rotationSecret'), ['rotation_secret_required']],
    [operators === true && self, ['invalid_request']],
  ]
  return [...new Set(codes.flatMap(([applies, these]) => (applies ? these : [])))]
}

const KEY: ApiKey = {
  id: '0198c3f2-5e7a-7abc-9def-0123456789ab',
  ownerId: 'acme',
  name: 'Billing service',
  environment: 'live',
  scopes: ['reports:read'],
  metadata: { project_id: 'p_1' },
  generation: 2,
  status: 'active',
  createdAt: '2026-01-31T12:00:00.000Z',
  updatedAt: '2026-06-30T12:00:00.000Z',
  expiresAt: '2030-01-31T12:00:00.000Z',
  revokedAt: null,
  revokedReason: null,
  rotatedTo: null,
  secretStart: 'sk_live_',
  secretLast4: '0000',
  secretCreatedAt: '2026-06-30T12:00:00.000Z',
  lastUsedAt: '2026-06-30T11:59:00.000Z',
  lastUsedIp: '192.0.2.1',
  lastUsedUserAgent: 'curl/8.5.0',
}
const EVENT: KeyEvent = {
  id: '0198c3f2-5e7b-7abc-9def-0123456789ab',
  keyId: KEY.id,
  type: 'key.rotated',
  at: '2026-06-30T12:00:00.000Z',
  actor: `key:${KEY.id}`,
  ip: '192.0.2.1',
  userAgent: 'curl/8.5.0',
  details: { generation: 2 },
}
// Not well-formed: nobody, and no secret scanner, takes these for real ones.
const ISSUED = { key: KEY, secret: `sk_live_${'0'.repeat(49)}`, rotationSecret: `rot_live_${'0'.repeat(49)}`, replayed: false }
const SAMPLES: Answers = {
  create: { ...ISSUED, key: { ...KEY, generation: 1, secretCreatedAt: KEY.createdAt } },
  rotate: ISSUED,
  revoke: { key: { ...KEY, status: 'revoked', revokedAt: KEY.updatedAt }, replayed: false },
  update: { key: KEY, replayed: false },
  get: KEY,
  list: { items: [KEY], nextCursor: null },
  events: { items: [EVENT], nextCursor: null },
}
