import type { ChangeResult, IssuedKey } from '../core/api-keys.js'
import type { ApiKey, KeyEvent, Page } from '../core/key.js'
import type { ApiKeyError } from '../errors.js'
import type { Source } from './source.js'

/** What each action hands to the route's `success`. */
export interface Answers {
  create: IssuedKey
  rotate: IssuedKey
  revoke: ChangeResult
  disable: ChangeResult
  enable: ChangeResult
  update: ChangeResult
  get: ApiKey
  list: Page<ApiKey>
  events: Page<KeyEvent>
}

export type Action = keyof Answers

/** One route: where it is, who may call it, what it does, and what its success looks like. */
export type Route = { readonly [A in Action]: RouteOf<A> }[Action]

/** A route for one action. */
export interface RouteOf<A extends Action> {
  readonly method: 'get' | 'post' | 'patch'
  /** Relative to where the router is mounted. Its one parameter (`:id`) names the target; without one the caller's own key is the target. */
  readonly path: string
  readonly action: A
  /**
   * Who may do this to the key that the path names: only a key of the same owner that has `api_keys:write`, or also the key itself.
   * Only for `rotate`. Default `writer or self`.
   */
  readonly caller?: 'writer' | 'writer or self'
  /** What a request must bring besides the credential; without it the answer is 400. Default nothing. */
  readonly requires?: readonly ('idempotencyKey' | 'rotationSecret')[]
  /** The fields that the JSON body may have; any other is refused. Default none. */
  readonly fields?: readonly Field[]
  /** Whether a rotated key keeps its id, or a new key takes its place and the old one is revoked. Default `same`. */
  readonly identity?: 'same' | 'successor'
  /** Whether `success` hands out the new rotation secret of a key that has one. If not, the old one stays good. Default false. */
  readonly rotatesRotationSecret?: boolean
  /** How many requests the route takes. Asking for a lost answer does not count against it. Default 120 a minute with one credential. */
  readonly limit?: Limit
  /** The status of a success. */
  readonly status: number
  success(answer: Answers[A]): object
  /** For the OpenAPI document: what the route does in a few words, and the schema of what `success` makes. */
  readonly summary?: string
  readonly schema?: Schema
}

export type Field =
  | 'name'
  | 'environment'
  | 'scopes'
  | 'metadata'
  | 'allowedIps'
  | 'expiresAt'
  | 'ownerId'
  | 'rotationSecret'
  | 'retire'
  | 'emergency'
  | 'reason'

export interface Limit {
  /** Requests in any stretch of time as long as the window, wherever it begins. */
  readonly max: number
  readonly windowMs: number
  /** Whose requests are counted together: those from one address (IPv6: one /56 network), or with one credential. */
  readonly by: 'ip' | 'credential'
}

/** JSON Schema 2020-12, as OpenAPI 3.1 uses it. */
export type Schema = { readonly [keyword: string]: unknown }

/**
 * The wire shape of a rotate API, as a plain value: routes, success bodies and failure bodies. Behind it, all contracts do the same.
 * See docs/contracts.md.
 */
export interface Contract {
  /** One word, for OpenAPI documents and counters. */
  readonly name: string
  /** Where the router is usually mounted. */
  readonly path: string
  /** In the order in which they are tried. */
  readonly routes: readonly Route[]
  /** Where its requests carry their key. Default `[bearer()]`. */
  readonly from?: readonly Source[]
  /** Whether operators may call, where the router has `operators`. Default false. */
  readonly operators?: boolean
  /** Whether every answer has an `X-Request-Id`: that of the request, if it is sane, or a new one. Default false. */
  readonly requestId?: boolean
  /**
   * How far `api_keys:write` reaches. `bounded`: a key creates, changes and rotates only what it could be itself; `open`: any key of its owner and
   * environment, as some published pages have it. Default `bounded`.
   */
  readonly delegation?: 'bounded' | 'open'
  /** What a failure looks like. The error has the status and headers of the answer, and neither `cause`, `reason` nor `keyId`. */
  failure(error: ApiKeyError, request: { readonly requestId: string }): Failure
  /** The schema of the failure bodies, for the OpenAPI document. */
  readonly failureSchema?: Schema
}

/** How a failure looks on the wire. */
export interface Failure {
  /** Default `error.status`. The headers follow it: a challenge with 401, `Retry-After` with 429 and 503. */
  readonly status?: number
  /** Default `application/json`. */
  readonly contentType?: string
  readonly body: object
}

/** An object schema that names every member; all of them are required but those in `optional`. */
export function object(properties: { readonly [name: string]: Schema }, optional: readonly string[] = []): Schema {
  const required = Object.keys(properties).filter((name) => !optional.includes(name))
  return { type: 'object', properties, ...(required.length === 0 ? {} : { required }), additionalProperties: false }
}

export const text: Schema = { type: 'string' }
export const texts: Schema = { type: 'array', items: text }
export const uuid: Schema = { type: 'string', format: 'uuid' }
export const instant: Schema = { type: 'string', format: 'date-time' }
export const oneOf = (...values: readonly string[]): Schema => ({ type: 'string', enum: values })
export const orNull = (schema: Schema): Schema => ({ ...schema, type: [schema.type, 'null'] })
