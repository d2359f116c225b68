import type { ApiKey, KeyEvent } from '../core/key.js'
import { ApiKeyError, type ApiKeyErrorCode } from '../errors.js'
import {
  type Answers,
  type Contract,
  type Field,
  instant,
  object,
  oneOf,
  orNull,
  type Route,
  type Schema,
  text,
  texts,
} from './contract.js'
import { failureStatus } from './problem.js'

/**
 * Describes a contract as an OpenAPI 3.1 document. Everything in it comes from the contract's own values: the examples are what its `success` and
 * `failure` make.
 *
 * @param path where the router is mounted; default where the contract says it usually is.
 * @see https://spec.openapis.org/oas/v3.1.1
 */
export function openApiDocument(contract: Contract, path: string = contract.path): object {
  const paths: { [path: string]: { [method: string]: object } } = {}
  for (const route of contract.routes) {
    const template = (path + (route.path === '/' ? '' : route.path)).replaceAll(/:(\w+)/g, '{$1}')
    paths[template] = { ...paths[template], [route.method]: operation(contract, route) }
  }
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
          : { type: 'http', scheme: 'bearer', description: 'The key.' },
      },
    },
  }
}

const FIELDS: { readonly [field in Field]: Schema } = {
  name: { type: 'string', minLength: 1, maxLength: 255 },
  environment: oneOf('live', 'test'),
  scopes: { ...texts, maxItems: 100 },
  metadata: { type: 'object' },
  expiresAt: orNull(instant),
  ownerId: { type: 'string', minLength: 1, maxLength: 255, description: 'For operators, whose token may name several owners.' },
  rotationSecret: text,
  retire: {
    description: 'When the old secret stops being accepted.',
    oneOf: [oneOf('now', 'on-first-use'), object({ afterMs: { type: 'integer', minimum: 1, description: 'At most 7 days count.' } })],
  },
  emergency: { type: 'boolean' },
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
    ...(target === undefined
      ? []
      : [{ name: target, in: 'path', required: true, description: 'The id of the key.', schema: { type: 'string' } }]),
    ...(method === 'get'
      ? []
      : [
          {
            name: 'Idempotency-Key',
            in: 'header',
            required: requires.includes('idempotencyKey'),
            description: 'Makes a retry safe: the same request with the same value is done once, and answered the same.',
            schema: { type: 'string', minLength: 1, maxLength: 255 },
          },
        ]),
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
  const properties = Object.fromEntries(fields.map((field) => [field, (action === 'create' && FIELDS_OF_CREATE[field]) || FIELDS[field]]))
  return {
    operationId: operationId(route),
    summary,
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(fields.length === 0
      ? {}
      : {
          requestBody: {
            required: required.length > 0,
            content: {
              'application/json': {
                schema: object(
                  properties,
                  fields.filter((field) => !required.includes(field)),
                ),
              },
            },
          },
        }),
    responses: {
      [status]: {
        description: 'Success.',
        headers: headersOf(contract, method === 'get' ? [] : ['Idempotent-Replayed']),
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

const HEADERS: { readonly [name: string]: object } = {
  'Cache-Control': { description: 'Always `no-store`.', schema: text },
  'Idempotent-Replayed': { description: '`true` where this is the answer of an earlier request.', schema: text },
  'Retry-After': { description: 'Seconds.', schema: text },
  'WWW-Authenticate': { description: 'RFC 6750 section 3.', schema: text },
  'X-Request-Id': { description: 'Names this request in the logs.', schema: text },
}

function headersOf(contract: Contract, names: readonly string[]): object {
  const all = ['Cache-Control', ...names, ...(contract.requestId ? ['X-Request-Id'] : [])]
  return Object.fromEntries(all.map((name) => [name, HEADERS[name]]))
}

/** Every way in which a route can fail, by status. */
function failures(contract: Contract, route: Route): object {
  const byStatus = new Map<number, { contentType: string; examples: { [code: string]: object } }>()
  for (const code of failureCodes(contract, route)) {
    const failure = contract.failure(new ApiKeyError(code, MESSAGES[code] ?? 'What went wrong, in one sentence.'), {
      requestId: '3f1c2d9a-5b7e-4c1d-9e8f-0a1b2c3d4e5f',
    })
    const status = failure.status ?? failureStatus(code)
    const { contentType, examples } = byStatus.get(status) ?? { contentType: failure.contentType ?? 'application/json', examples: {} }
    byStatus.set(status, { contentType, examples: { ...examples, [code]: { value: failure.body } } })
  }
  return Object.fromEntries(
    [...byStatus].map(([status, { contentType, examples }]) => [
      status,
      {
        description: Object.keys(examples).join(', '),
        headers: headersOf(contract, status === 401 ? ['WWW-Authenticate'] : status === 429 || status === 503 ? ['Retry-After'] : []),
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

function failureCodes(
  { operators }: Contract,
  { method, path, action, caller, requires = [], fields = [] }: Route,
): readonly ApiKeyErrorCode[] {
  const [reads, targeted, rotates] = [method === 'get', path.includes(':'), action === 'rotate']
  const self = rotates && !targeted
  const asksRotationSecret = rotates && caller !== 'writer'
  const codes: readonly (readonly [boolean, readonly ApiKeyErrorCode[]])[] = [
    [true, ['credential_malformed', 'credential_missing', 'invalid_key', 'rate_limited']],
    [true, ['store_unavailable', 'store_misconfigured', 'internal_error']],
    [!self, ['insufficient_scope']],
    [targeted, ['key_id_invalid', 'key_not_found']],
    [!reads || action === 'list' || action === 'events', ['invalid_request']],
    [!reads, ['idempotency_key_invalid', 'idempotency_key_spent', 'idempotency_key_mismatch', 'outcome_unknown']],
    [!reads, ['body_too_large', 'unsupported_media_type']],
    [requires.includes('idempotencyKey'), ['idempotency_key_missing']],
    [requires.includes('rotationSecret'), ['rotation_secret_missing']],
    [rotates, ['key_expired', 'rotation_superseded', 'rotation_in_grace']],
    [targeted && (rotates || action === 'update'), ['key_revoked']],
    [asksRotationSecret && fields.includes('rotationSecret'), ['rotation_secret_not_configured', 'key_revoked']],
    [asksRotationSecret && !requires.includes('rotationSecret'), ['rotation_secret_required']],
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
  create: { ...ISSUED, key: { ...KEY, generation: 1 } },
  rotate: ISSUED,
  revoke: { key: { ...KEY, status: 'revoked', revokedAt: KEY.updatedAt }, replayed: false },
  update: { key: KEY, replayed: false },
  get: KEY,
  list: { items: [KEY], nextCursor: null },
  events: { items: [EVENT], nextCursor: null },
}
