import { type ApiKeyErrorCode, challenges, statusOf } from '../errors.js'
import { checkContract } from './check-contract.js'
import { type Contract, object, type Route } from './contract.js'
import { SAMPLE_REQUEST_ID, SAMPLES, sampleFailure } from './samples.js'
import {
  FILTERS,
  fieldSchema,
  headerSchemas,
  IDEMPOTENCY_KEY,
  keyIdParameter,
  OWNER,
  PAGE,
  type Parameter,
  REQUEST_ID,
  type SentHeader,
} from './schema.js'
import { bare, bearer, challengesOf, type Source } from './source.js'

/** The parts of an OpenAPI 3.1 document that are always there. */
export interface OpenApiDocument {
  readonly openapi: string
  readonly info: { readonly title: string; readonly version: string; readonly [member: string]: unknown }
  readonly servers: readonly object[]
  readonly security: readonly object[]
  readonly paths: { readonly [path: string]: { readonly [method: string]: object } }
  readonly components: { readonly [member: string]: object }
}

/**
 * Describes a contract as an OpenAPI 3.1 document. Everything in it comes from the contract's own values: the examples are what its `success` and
 * `failure` make.
 *
 * @param path where the router is mounted; default where the contract says it usually is.
 * @throws ApiKeyError `invalid_option` for a broken contract, naming the route.
 * @see https://spec.openapis.org/oas/v3.1.1
 */
export function openApiDocument(contract: Contract, path: string = contract?.path): OpenApiDocument {
  checkContract(contract)
  const schemes = securitySchemes(contract)
  const paths: { [path: string]: { [method: string]: object } } = {}
  const base = path.replace(/\/+$/, '')
  for (const route of contract.routes) {
    const template = (base + (route.path === '/' ? '' : route.path)).replaceAll(/:(\w+)/g, '{$1}') || '/'
    paths[template] = { ...paths[template], [route.method]: operation(contract, route) }
  }
  // Without it, readers of the document would take "openapi.json" for an id.
  paths[`${base}/openapi.json`] = { get: ownOperation(contract) }
  return {
    openapi: '3.1.1',
    info: {
      title: `API keys: ${contract.name}`,
      version: '1.0.0',
      description: 'API keys that rotate with nobody locked out and no old key left alive.',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: '/' }],
    security: Object.keys(schemes).map((name) => ({ [name]: [] })),
    paths,
    components: {
      securitySchemes: schemes,
    },
  }
}

/** How requests can carry a key: any of these. */
function securitySchemes({ from = [bearer()], operators }: Contract): { readonly [name: string]: object } {
  const challenges = challengesOf(from)
  const alone = from.some(({ example }) => example === bare().example)
  if (alone && challenges.length === 1) {
    return { key: { type: 'apiKey', in: 'header', name: 'Authorization', description: 'The key, alone or after `Bearer `.' } }
  }
  const schemes = from.filter(({ challenge }, at) => from.findIndex((one) => one.challenge === challenge) === at)
  return Object.fromEntries(schemes.map((source, at) => [at === 0 ? 'key' : `key${at + 1}`, securityScheme(source, operators === true)]))
}

function securityScheme({ challenge, header }: Source, operators: boolean): object {
  if (header !== undefined && header !== 'authorization') return { type: 'apiKey', in: 'header', name: header, description: 'The key.' }
  const scheme = (challenge.split(' ')[0] ?? '').toLowerCase()
  if (scheme === 'basic') return { type: 'http', scheme, description: 'The key as the user name, with an empty password.' }
  const description = operators && scheme === 'bearer' ? 'The key, or the JWT of an operator where operators may call.' : 'The key.'
  return { type: 'http', scheme, description }
}

/** The document, as it is served beside what it describes. */
function ownOperation(contract: Contract): object {
  const sent = contract.requestId ? { headers: headerSchemas([['X-Request-Id', 'always']]) } : {}
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

function operation(contract: Contract, route: Route): object {
  const { action, status, summary = action, schema = { type: 'object' } } = route
  const parameters = parametersOf(contract, route)
  const example = (route.success as (answer: unknown) => object)(SAMPLES[action])
  return {
    operationId: operationId(route),
    summary,
    ...(parameters.length === 0 ? {} : { parameters }),
    ...bodyOf(route),
    responses: {
      [status]: {
        description: 'Success.',
        headers: headersOf(contract, route, status, []),
        content: { 'application/json': { schema, example } },
      },
      ...failures(contract, route),
    },
  }
}

function parametersOf({ requestId, operators }: Contract, { method, path, action, requires = [] }: Route): readonly Parameter[] {
  const target = /:(\w+)/.exec(path)?.[1]
  const pages = action === 'list' || action === 'events'
  return [
    ...(target === undefined ? [] : [keyIdParameter(target)]),
    ...(method === 'get' ? [] : [{ ...IDEMPOTENCY_KEY, required: requires.includes('idempotencyKey') }]),
    ...(requestId ? [REQUEST_ID] : []),
    ...(pages ? PAGE : []),
    ...(action === 'list' ? FILTERS : []),
    ...(action === 'list' && operators ? [OWNER] : []),
  ]
}

function bodyOf({ action, requires = [], fields = [] }: Route): { readonly requestBody?: object } {
  if (fields.length === 0) return {}
  const required = fields.filter((field) => requires.some((name) => name === field) || (action === 'create' && field === 'name'))
  const optional = fields.filter((field) => !required.includes(field))
  const schema = object(Object.fromEntries(fields.map((field) => [field, fieldSchema(field, action)])), optional)
  // A change of nothing is refused.
  const changes = action === 'update'
  return {
    requestBody: {
      required: required.length > 0 || changes,
      content: { 'application/json': { schema: changes ? { ...schema, minProperties: 1 } : schema } },
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

/** Codes that a reading route may answer with once the key is known. */
const TOLD_TO_READERS: readonly ApiKeyErrorCode[] = ['insufficient_scope', 'key_not_found', 'store_unavailable', 'internal_error']

/** The headers of the answers with one status; `codes` says why a failure has it. */
function headersOf({ requestId }: Contract, { method, action }: Route, status: number, codes: readonly ApiKeyErrorCode[]): object {
  const succeeds = codes.length === 0
  const reads = method === 'get'
  const challenged = codes.filter((code) => challenges(code, status)).length
  const known = succeeds || codes.some((code) => TOLD_TO_READERS.includes(code) || (code === 'invalid_request' && action !== 'get'))
  const rows: readonly (readonly [applies: boolean, ...SentHeader])[] = [
    [true, 'Cache-Control', 'always'],
    [requestId === true, 'X-Request-Id', 'always'],
    [challenged > 0, 'WWW-Authenticate', challenged === codes.length ? 'always' : 'sometimes'],
    [status === 429 || status === 503, 'Retry-After', 'always'],
    [succeeds && !reads, 'Idempotent-Replayed', 'sometimes'],
    [!reads, 'RateLimit', 'sometimes'],
    [!reads, 'RateLimit-Policy', 'sometimes'],
    [reads && known, 'Api-Key-Expires-At', 'sometimes'],
  ]
  return headerSchemas(rows.flatMap(([applies, ...sent]) => (applies ? [sent] : [])))
}

/** Every way in which a route can fail, by status. */
function failures(contract: Contract, route: Route): object {
  const byStatus = new Map<number, { contentType: string; examples: { [code: string]: object } }>()
  for (const code of failureCodes(contract, route)) {
    const failure = contract.failure(sampleFailure(code, route.action), { requestId: SAMPLE_REQUEST_ID })
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

function failureCodes({ operators }: Contract, { method, path, action, requires = [], fields = [] }: Route): readonly ApiKeyErrorCode[] {
  const [reads, targeted, rotates] = [method === 'get', path.includes(':'), action === 'rotate']
  const self = !targeted && ['rotate', 'revoke', 'get'].includes(action)
  const takesRotationSecret = rotates && fields.includes('rotationSecret')
  const codes: readonly (readonly [boolean, readonly ApiKeyErrorCode[]])[] = [
    [targeted, ['invalid_request']],
    [true, ['credential_malformed', 'credential_missing', 'invalid_key', 'rate_limited']],
    [true, ['store_unavailable', 'store_misconfigured', 'internal_error']],
    [true, ['ip_not_allowed', 'key_disabled']],
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
    [targeted && (rotates || ['update', 'disable', 'enable'].includes(action)), ['key_revoked']],
    [takesRotationSecret, ['rotation_secret_not_configured', 'key_revoked']],
    [rotates && !requires.includes('rotationSecret'), ['rotation_secret_required']],
    [operators === true && self, ['invalid_request']],
    [operators === true, ['operators_unavailable']],
    [operators === true && !reads, ['cross_origin']],
  ]
  return [...new Set(codes.flatMap(([applies, these]) => (applies ? these : [])))]
}
