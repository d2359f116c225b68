import type { NextFunction, Request, RequestHandler, Response } from 'express'
import type { AnyApiKeys, ChangeResult, Command } from '../core/api-keys.js'
import type { Internals } from '../core/internals.js'
import { isKeyId } from '../core/key.js'
import { READ_SCOPE, WRITE_SCOPE } from '../core/scope.js'
import { ApiKeyError, statusOf } from '../errors.js'
import { type Asked, carryOut } from './actions.js'
import { type BodyRead, beginBody } from './body.js'
import { type Caller, countedAs, familiarKey, type Identified, identify } from './caller.js'
import type { Action, Answers, Contract, Route } from './contract.js'
import { readIdempotencyKey } from './idempotency-key.js'
import type { FailureGuard } from './limits/failure-guard.js'
import { type Bucket, DEFAULT_LIMIT, network, routeBucket } from './limits/route-limits.js'
import type { OperatorDesk } from './operators.js'
import { originOf } from './origin.js'
import type { FailureContext } from './problem.js'
import { urlOf } from './query.js'
import { type Repetition, repetitionOf, type Twins } from './repetition.js'
import type { Source } from './source.js'
import { synchronous } from './synchronous.js'
import { rateLimited, refuseFlood } from './verdict.js'

/** What the routes of one router share. */
export interface Service {
  readonly keys: AnyApiKeys
  readonly internals: Internals
  readonly contract: Contract
  readonly sources: readonly Source[]
  readonly operators: OperatorDesk | undefined
  readonly limits: boolean
  readonly maxFailures: number | false
  readonly guard: FailureGuard
  readonly retryWithoutKey: boolean | undefined
  readonly twins: Twins
  /** Begins an answer: sets the headers that every answer has, and says what a failure needs to know. */
  begin(req: Request, res: Response): FailureContext
  /** Answers with a failure. */
  fail(req: Request, res: Response, next: NextFunction, error: unknown, context: FailureContext): void
  /** Tells `onError`, once, that a guard stands before the router. */
  warnOfGuard(): void
}

interface Received {
  readonly req: Request
  readonly res: Response
  readonly route: Route
}

/** A request, and what could be read of it. */
interface Incoming extends Received {
  readonly identified: Identified
  readonly read: BodyRead
}

/** What a request may get, and what becomes of the count of its route. */
interface Allowance {
  readonly only: 'replay' | undefined
  readonly retryAfterSeconds: number
  takeBack(): Promise<void>
}

type RouteLimit = { readonly bucket: Bucket; readonly by: 'ip' | 'credential' } | undefined

/** The handler of one route: limits first, then all that can be refused without I/O, then the credential, then the rest. */
export function serveRoute(service: Service, route: Route): RequestHandler {
  const scope = route.method === 'get' ? READ_SCOPE : WRITE_SCOPE
  const limit = limitOf(service, route)
  return function serveKeys(req, res, next) {
    const context = { ...service.begin(req, res), scope }
    // Begun before anything is awaited: whoever reads the body in a later turn of the event loop can no longer take any of it away.
    const reading = route.method === 'get' ? NO_BODY : beginBody(req, route.fields ?? [])
    answer(service, limit, { req, res, route }, reading).catch((error: unknown) => {
      service.fail(req, res, next, error, context)
    })
  }
}

const NO_BODY: Promise<BodyRead> = Promise.resolve({ body: {} })

function limitOf({ internals, contract, limits }: Service, { method, path, limit = DEFAULT_LIMIT }: Route): RouteLimit {
  if (!limits || method === 'get') return undefined
  const name = `${contract.name}-${method}${path.replaceAll(/[^A-Za-z]+/g, '-')}`
  return { bucket: routeBucket(internals, name, limit), by: limit.by }
}

async function answer(service: Service, limit: RouteLimit, received: Received, reading: Promise<BodyRead>): Promise<void> {
  const { req, route } = received
  const { keys, internals, sources, operators, retryWithoutKey, guard, maxFailures, twins } = service
  const identifying = identify(req, keys, sources, operators)
  const read = await reading
  const identified = identifying instanceof Promise ? await identifying : identifying
  // Where bearerAuth stands first, the retry with the dead key never gets here: the one request that matters most.
  if (req.apiKey !== undefined) service.warnOfGuard()
  const incoming = { ...received, identified, read }
  const again =
    'caller' in identified && 'body' in read ? repetitionOf(route, req, identified.caller, read.body, retryWithoutKey) : undefined
  if (again === undefined) {
    if ('caller' in identified && 'secret' in identified.caller) refuseFlood(internals, guard, maxFailures, req, identified.caller.secret)
    return actWithinLimit(service, limit, incoming, undefined)
  }
  // A client that may be asking for an answer it lost is not stopped here, or a flood from its neighbourhood could lock it out.
  return twins.afterTwins(again.name, () => actWithinLimit(service, limit, incoming, again))
}

async function actWithinLimit(service: Service, limit: RouteLimit, incoming: Incoming, again: Repetition | undefined): Promise<void> {
  const allowed = await allowanceOf(service, limit, incoming, again)
  try {
    await act(service, incoming, allowed, again).catch(async (error: unknown) => {
      if (!isRateLimited(error) || !(await twinCameElsewhere(service, incoming, allowed))) throw error
      await act(service, incoming, allowed, again)
    })
  } catch (error) {
    if ('caller' in incoming.identified && error instanceof ApiKeyError && error.code === 'invalid_key') service.guard.note(incoming.req)
    const serverSide = !(error instanceof ApiKeyError) || statusOf(error.code) >= 500
    // A request that failed through the server's own trouble does not count: the client is to repeat it.
    if (serverSide) await allowed.takeBack()
    throw allowed.only === 'replay' && !serverSide ? tooMany(allowed.retryAfterSeconds, error) : error
  }
}

/** A client that asks too often may still ask for an answer that was lost, and for nothing else. Throws `rate_limited` where it cannot be asking for one. */
async function allowanceOf(
  { internals }: Service,
  limit: RouteLimit,
  { req, res, identified }: Incoming,
  again: Repetition | undefined,
): Promise<Allowance> {
  if (limit === undefined) return UNLIMITED
  const name = limit.by === 'ip' || !('caller' in identified) ? network(req) : await countedAs(internals, identified.caller)
  const { within, retryAfterSeconds, takeBack } = await limit.bucket.hit(req, res, name)
  if (!within && again === undefined) throw tooMany(retryAfterSeconds)
  return { only: within ? undefined : 'replay', retryAfterSeconds, takeBack }
}

const UNLIMITED: Allowance = { only: undefined, retryAfterSeconds: 1, takeBack: async () => {} }

function tooMany(retryAfterSeconds: number, cause?: unknown): ApiKeyError {
  return rateLimited('Too many requests; try again later.', retryAfterSeconds, cause)
}

function isRateLimited(error: unknown): boolean {
  return error instanceof ApiKeyError && error.code === 'rate_limited'
}

/** Waits for another process that may be carrying out the same request. Only while the secret is good: its end and the answer are recorded together. */
async function twinCameElsewhere({ internals, twins }: Service, { identified }: Incoming, { only }: Allowance): Promise<boolean> {
  if (only !== 'replay' || !('caller' in identified) || familiarKey(internals, identified.caller) === undefined) return false
  return twins.waitForTwinElsewhere()
}

async function act(service: Service, incoming: Incoming, { only, takeBack }: Allowance, again: Repetition | undefined): Promise<void> {
  const { keys, internals, contract } = service
  const { req, res, route } = incoming
  const { caller, ...checked } = checkedRequest(incoming)
  const { delegation = 'bounded', operators = false } = contract
  const command = commandOf(req, caller, checked, { delegation, ...(only === 'replay' ? { replayOnly: true } : {}) })
  const asked: Asked = { req, res, route, caller, ...checked, takesOwner: operators, command, retryFrom: again?.retryFrom }
  // Looked up before too: once a key has rotated itself, its old secret no longer leads to it.
  const usedBefore = familiarKey(internals, caller)
  const result = await carryOut(keys, internals, asked)
  const used = usedBefore ?? familiarKey(internals, caller)
  if (used !== undefined) internals.used(used, () => originOf(req))
  if ((result as ChangeResult).replayed === true) await takeBack()
  send(internals, route, res, result)
}

interface CheckedRequest {
  readonly caller: Caller
  readonly id: string | undefined
  readonly idempotencyKey: string | undefined
  readonly body: object
}

/** Refuses all that can be refused without I/O. Where several things are wrong, the order decides which one the client hears of. */
function checkedRequest({ req, route, identified, read }: Incoming): CheckedRequest {
  const { method, requires = [] } = route
  // Where a second secret is asked for, its absence is told before anything about the first one.
  if ('refusal' in identified && !requires.includes('rotationSecret')) throw identified.refusal
  const idempotencyKey = method === 'get' ? undefined : readIdempotencyKey(req, requires.includes('idempotencyKey'))
  const [id] = Object.values(req.params)
  if (id !== undefined && (typeof id !== 'string' || !isKeyId(id))) throw new ApiKeyError('key_id_invalid', 'A key id must be a UUID.')
  if ('refusal' in read) throw read.refusal
  const { body } = read
  const { rotationSecret } = body as { rotationSecret?: unknown }
  if (requires.includes('rotationSecret') && (typeof rotationSecret !== 'string' || rotationSecret === '')) {
    throw new ApiKeyError('rotation_secret_missing', 'Send the rotation secret in the body, as "rotationSecret".')
  }
  if ('refusal' in identified) throw identified.refusal
  return { caller: identified.caller, id, idempotencyKey, body }
}

function commandOf(
  req: Request,
  caller: Caller,
  { idempotencyKey, body }: Omit<CheckedRequest, 'caller'>,
  how: Pick<Command, 'delegation' | 'replayOnly'>,
): Asked['command'] {
  return {
    as: caller,
    ...(idempotencyKey === undefined ? {} : { idempotencyKey }),
    request: { method: req.method, ...urlOf(req), body: withoutSecrets(body) },
    origin: originOf(req),
    ...how,
  }
}

/** The body as the fingerprint has it: without any secret, even hashed. The seal depends on the rotation secret anyway. */
function withoutSecrets(body: object): object {
  if (typeof (body as { rotationSecret?: unknown }).rotationSecret !== 'string') return body
  const { rotationSecret: _, ...rest } = body as { rotationSecret: string }
  return rest
}

function send(internals: Internals, route: Route, res: Response, result: Answers[Action]): void {
  try {
    // The route's action and its success agree by the type of Route, which the compiler cannot follow here.
    const made = synchronous((route.success as (answer: Answers[Action]) => object)(result), 'success()')
    if (typeof made !== 'object' || made === null) throw new TypeError('success() must return an object.')
    const body = JSON.stringify(made)
    if ((result as ChangeResult).replayed === true) res.setHeader('Idempotent-Replayed', 'true')
    res.status(route.status)
    res.setHeader('Cache-Control', 'no-store')
    res.setHeader('Content-Type', 'application/json; charset=utf-8')
    res.end(body)
  } catch (cause) {
    if (route.method === 'get') throw cause
    // A 500 would say that nothing has changed.
    const error = new ApiKeyError('outcome_unknown', 'The change was made, and its answer could not be written.', { cause })
    internals.report(error)
    throw error
  }
}
