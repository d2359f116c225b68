import type { IssuedKey, MutationResult } from '../core/api-keys.js'
import type { ApiKey, KeyEvent, Page } from '../core/key.js'
import type { ApiKeyError } from '../errors.js'
import type { Failure } from './problem.js'

/** What each action hands to the route's `success`. */
export interface Answers {
  create: IssuedKey
  rotate: IssuedKey
  revoke: MutationResult
  update: MutationResult
  get: ApiKey
  list: Page<ApiKey>
  events: Page<KeyEvent>
}

export type Action = keyof Answers

/** One route: where it is, what it does, and what its success looks like. */
export type Route = { readonly [A in Action]: RouteOf<A> }[Action]

interface RouteOf<A extends Action> {
  readonly method: 'get' | 'post' | 'patch'
  /** Relative to where the router is mounted. `:id` names the target; without it the caller's own key is the target. */
  readonly path: string
  readonly action: A
  /** Whether a request without an Idempotency-Key is refused. Default false. */
  readonly idempotencyKeyRequired?: boolean
  /** The fields that the JSON body may have; any other is refused. Default none. */
  readonly fields?: readonly string[]
  /** The status of a success. */
  readonly status: number
  success(answer: Answers[A]): object
}

/**
 * The wire shape of a rotate API, as a plain value: routes, success bodies and failure bodies. What happens behind it is the
 * same for all.
 */
export interface Contract {
  readonly name: string
  /** In the order they are tried. */
  readonly routes: readonly Route[]
  failure(error: ApiKeyError): Failure
}
