import { randomUUID } from 'node:crypto'
import express, { type ErrorRequestHandler, type Request, type RequestHandler, type Response, type Router } from 'express'
import type { Actor, AnyApiKeys, Command, MutationResult, Operator, RotateOptions } from '../core/api-keys.js'
import { invalidKey } from '../core/change/replay-decision.js'
import { type Internals, internalsOf } from '../core/internals.js'
import { type ApiKey, type CreateInput, isKeyId, type KeyChanges } from '../core/key.js'
import { hasScope, READ_SCOPE, WRITE_SCOPE } from '../core/scope.js'
import { digestOf } from '../core/secret.js'
import { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import { announceEnd, failuresOption } from './bearer-auth.js'
import { beginBody } from './body.js'
import type { Answers, Contract, Route } from './contract.js'
import { contracts } from './contracts/contracts.js'
import { readIdempotencyKey } from './idempotency-key.js'
import { type Bucket, DEFAULT_LIMIT, failureGuard, network, routeBucket } from './limits/route-limits.js'
import { openApiDocument } from './openapi.js'
import type { Operators } from './operator-jwt.js'
import { type FailureContext, isThenable, originOf, refuse, swallowed } from './problem.js'
import { bearerSecret, headerValues, MAX_TOKEN_LENGTH } from './source.js'

export interface KeyRouterOptions {
  /** The wire shape to serve. Default `contracts.standard`. */
  contract?: Contract
  /** Names the protected space in challenges. Default `api`. */
  realm?: string
  /** Who may call besides keys, where the contract lets operators in: what `operatorJwt` returned. Default nobody. */
  operators?: Operators
  /** Set to false where something in front limits requests already. Default true: as the contract says. */
  limits?: boolean
  /** As in `bearerAuth`. */
  failuresPerMinute?: number | false
  /**
   * Whether a key that rotates itself without an Idempotency-Key can repeat the request with its dead secret and get the same answer: from the same network
   * (IPv4 address or IPv6 /56), for 60 s at most, until the new secret is first used, never in an emergency. The price: whoever holds the old secret in the
   * same network can do so too. Needs a `trust proxy` setting that fits. Default: only where a rotation secret is presented as well.
   */
  retryWithoutKey?: boolean
}

const JWT = /^[\w-]+\.[\w-]+\.[\w-]*$/
/** Nor one that could hold a secret, which would come back with the answer and lie in every log that the id is for. */
const SANE_REQUEST_ID = /^(?!.*\w{49})[A-Za-z0-9._-]+$/
const LONGEST_REQUEST_ID = 128
/** Documents that are kept: one for each path that the router is mounted at, which a request may make up where that path has parameters. */
const MOST_DOCUMENTS = 10

const NO_BODY: Promise<object> = Promise.resolve({})

/** A client that is over a limit may be asking for an answer that another process is about to commit: it is looked for once more after this long. */
const TWIN_ELSEWHERE_MS = 1_000
/** More of them than this do not wait. */
const MAX_WAITING_FOR_TWINS = 100

type Caller = { readonly secret: string } | { readonly operator: Operator }

/**
 * Makes a router that serves a contract over these keys; mount it anywhere with `app.use(path, keyRouter(keys))`. Its OpenAPI document is at
 * `openapi.json`. Paths that the contract does not name fall through to the application.
 */
export function keyRouter(keys: AnyApiKeys, options: KeyRouterOptions = {}): Router {
  const internals = internalsOf(keys, 'keyRouter')
  refuseUnknown(options, ['contract', 'realm', 'operators', 'limits', 'failuresPerMinute', 'retryWithoutKey'], 'keyRouter')
  const { contract = contracts.standard, realm = 'api', limits = true, operators, retryWithoutKey } = options
  if (!Array.isArray(contract?.routes)) throw new ApiKeyError('invalid_option', 'contract must be a contract, such as contracts.standard.')
  if (operators !== undefined && (typeof operators.authenticate !== 'function' || contract.operators !== true)) {
    throw new ApiKeyError(
      'invalid_option',
      'operators must come from operatorJwt, and the contract must let operators in, as contracts.standard does.',
    )
  }
  if (typeof limits !== 'boolean') throw new ApiKeyError('invalid_option', 'limits must be true or false.')
  if (retryWithoutKey !== undefined && typeof retryWithoutKey !== 'boolean') {
    throw new ApiKeyError('invalid_option', 'retryWithoutKey must be true or false.')
  }
  const maxFailures = failuresOption(options.failuresPerMinute)
  const guard = failureGuard(internals)
  /** Requests that can be repeated, while they are under way here: a repetition waits for its twin, and then finds the answer. */
  const underWay = new Map<string, Promise<void>>()
  let waitingForTwins = 0
  let misplacedTold = false
  const documents = new Map<string, object>()
  const router = express.Router()
  router.get('/openapi.json', (req, res) => {
    requestId(req, res)
    res.json(documentAt(req.baseUrl))
  })
  for (const route of contract.routes as readonly Route[]) router[route.method](route.path, serve(route))
  router.use(refuseUndecodable as ErrorRequestHandler)
  return router

  function documentAt(path: string): object {
    const document = documents.get(path) ?? openApiDocument(contract, path)
    if (documents.size < MOST_DOCUMENTS) documents.set(path, document)
    return document
  }

  /** A path that is not well-formed percent-encoding never reaches a route. */
  function refuseUndecodable(error: unknown, req: Request, res: Response, next: (error: unknown) => void): void {
    if (error instanceof URIError)
      refuse(
        internals,
        req,
        res,
        new ApiKeyError('invalid_request', 'The path is not well-formed.'),
        { realm, requestId: requestId(req, res) },
        contract.failure,
      )
    else next(error)
  }

  function serve(route: Route): RequestHandler {
    const scope = route.method === 'get' ? READ_SCOPE : WRITE_SCOPE
    const limited = limits && route.method !== 'get' ? (route.limit ?? DEFAULT_LIMIT) : undefined
    const name = `${contract.name}-${route.method}${route.path.replaceAll(/[^A-Za-z]+/g, '-')}`
    const limit = limited && { bucket: routeBucket(internals, name, limited), by: limited.by }
    return function serveKeys(req, res) {
      const said: FailureContext & { retryAfterSeconds?: number } = { realm, scope, requestId: requestId(req, res) }
      // Begun before anything is awaited: who reads the body in another turn of the event loop comes too late to take any of it away.
      const body = settled(route.method === 'get' ? NO_BODY : beginBody(req, route.fields ?? []))
      answer(route, limit, req, res, body, said).catch((error: unknown) => {
        refuse(internals, req, res, error, said, (told, request) => contract.failure(told, request))
      })
    }
  }

  async function answer(
    route: Route,
    limit: RouteLimit | undefined,
    req: Request,
    res: Response,
    reading: Promise<Attempt<object>>,
    said: { retryAfterSeconds?: number },
  ): Promise<void> {
    // Limits first, then all that can be refused without I/O, then the credential, then the rest.
    const found = attempt(() => callerOf(req))
    const body = await reading
    warnIfGuarded(req)
    const again = repetition(route, req, found, body)
    if (again === undefined) {
      if ('value' in found) refuseFlood(found.value, req, said)
      return limitAndCarryOut(route, limit, req, res, found, body, undefined, said)
    }
    // Whoever may be asking for an answer that was lost is not held up here, or a flood from beside a client could lock it out.
    for (let twin = underWay.get(again.name); twin !== undefined; twin = underWay.get(again.name)) await twin
    const work = limitAndCarryOut(route, limit, req, res, found, body, again, said)
    const ended = work.then(
      () => {},
      () => {},
    )
    underWay.set(again.name, ended)
    try {
      await work
    } finally {
      if (underWay.get(again.name) === ended) underWay.delete(again.name)
    }
  }

  async function limitAndCarryOut(
    route: Route,
    limit: RouteLimit | undefined,
    req: Request,
    res: Response,
    found: Attempt<Caller>,
    body: Attempt<object>,
    again: Repetition | undefined,
    said: { retryAfterSeconds?: number },
  ): Promise<void> {
    let takeBack = async (): Promise<void> => {}
    let replayOnly = false
    if (limit !== undefined) {
      const name = limit.by === 'ip' || !('value' in found) ? network(req) : nameOf(found.value)
      takeBack = () => limit.bucket.takeBack(name)
      const { within, retryAfterSeconds } = await limit.bucket.hit(req, res, name)
      // Whoever asks for an answer that was lost is not to be locked out by having asked too often; whoever asks for anything else gets nothing.
      replayOnly = !within
      said.retryAfterSeconds = retryAfterSeconds
      if (replayOnly && again === undefined) throw tooMany()
    }
    const how = { replayOnly, takeBack, retryFrom: again?.retryFrom }
    try {
      await carryOut(route, found, req, res, body, how).catch(async (error: unknown) => {
        if (!(replayOnly && isRateLimited(error) && (await twinElsewhere(found)))) throw error
        await carryOut(route, found, req, res, body, how)
      })
    } catch (error) {
      if ('value' in found && error instanceof ApiKeyError && error.code === 'invalid_key') guard.note(req)
      const serverSide = !(error instanceof ApiKeyError) || error.status >= 500
      // What the server's own trouble cost is given back: a request that found the store away is to be repeated.
      if (serverSide) await takeBack()
      if (!replayOnly || serverSide) throw error
      throw tooMany(error)
    }
  }

  /** Whether another process may be carrying out the same request: only while the secret is good here, since what ends it is recorded with its end. */
  async function twinElsewhere(found: Attempt<Caller>): Promise<boolean> {
    if (!('value' in found) || familiar(found.value) === undefined || waitingForTwins >= MAX_WAITING_FOR_TWINS) return false
    waitingForTwins++
    await internals.clock.sleep(TWIN_ELSEWHERE_MS)
    waitingForTwins--
    return true
  }

  /** What makes a request one that can be repeated: its Idempotency-Key or, where that may stand for it, its dead secret and its network. */
  function repetition(route: Route, req: Request, found: Attempt<Caller>, body: Attempt<object>): Repetition | undefined {
    if (route.method === 'get' || !('value' in found) || !('value' in body)) return undefined
    const [idempotencyKey] = headerValues(req, 'idempotency-key')
    const retryFrom = idempotencyKey === undefined ? retryNetwork(route, req, body.value) : undefined
    if (idempotencyKey === undefined && retryFrom === undefined) return undefined
    const parts = [req.method, req.originalUrl, found.value, idempotencyKey, retryFrom, body.value]
    return { name: digestOf(JSON.stringify(parts)), retryFrom }
  }

  /** The network that a rotation may be repeated from without an Idempotency-Key; undefined where it may not. */
  function retryNetwork(route: Route, req: Request, body: object): string | undefined {
    const { emergency, rotationSecret } = body as { emergency?: unknown; rotationSecret?: unknown }
    const allowed = retryWithoutKey ?? typeof rotationSecret === 'string'
    if (!allowed || route.action !== 'rotate' || emergency === true || hidesItsClients(req)) return undefined
    const from = network(req)
    return from === 'unknown' ? undefined : from
  }

  /** Where the guard stands first, the one request that matters most never gets here: the retry with the dead key. */
  function warnIfGuarded(req: Request): void {
    if (misplacedTold || req.apiKey === undefined) return
    misplacedTold = true
    internals.report(
      new ApiKeyError(
        'invalid_option',
        'bearerAuth stands before keyRouter, so a client that repeats a rotation with its dead key is refused. Mount keyRouter first.',
      ),
    )
  }

  async function carryOut(
    route: Route,
    found: Attempt<Caller>,
    req: Request,
    res: Response,
    read: Attempt<object>,
    { replayOnly, takeBack, retryFrom }: { replayOnly: boolean; takeBack: () => Promise<void>; retryFrom: string | undefined },
  ): Promise<void> {
    const { requires = [] } = route
    // Where a second secret is asked for, whether it is there is looked at before whether the first one is any good.
    if (!('value' in found) && !requires.includes('rotationSecret')) throw found.error
    const reads = route.method === 'get'
    const idempotencyKey = reads ? undefined : readIdempotencyKey(req, requires.includes('idempotencyKey'))
    const [id] = Object.values(req.params)
    if (id !== undefined && (typeof id !== 'string' || !isKeyId(id))) throw new ApiKeyError('key_id_invalid', 'A key id must be a UUID.')
    if (!('value' in read)) throw read.error
    const body = read.value
    const { rotationSecret } = body as { rotationSecret?: unknown }
    if (requires.includes('rotationSecret') && (typeof rotationSecret !== 'string' || rotationSecret === '')) {
      throw new ApiKeyError('rotation_secret_missing', 'Send the rotation secret in the body, as "rotationSecret".')
    }
    if (!('value' in found)) throw found.error
    const caller = found.value

    const [path = '', query] = splitOnce(req.originalUrl, '?')
    const command: Command = {
      as: caller satisfies Actor,
      ...(idempotencyKey === undefined ? {} : { idempotencyKey }),
      request: { method: req.method, path, ...(query === undefined ? {} : { query }), body: withoutSecrets(body) },
      ...(replayOnly ? { replayOnly } : {}),
      origin: originOf(req),
      delegation: contract.delegation ?? 'bounded',
    }
    const target = id === undefined ? {} : { id: id as string }
    // Asked also beforehand: a key that rotates itself is no longer known by the secret it came with.
    const usedBefore = familiar(caller)
    switch (route.action) {
      case 'create': {
        const { ownerId: named, ...fields } = body as Omit<CreateInput, 'ownerId'> & { ownerId?: string }
        const ownerId = ownerOf(caller, named)
        // The owner that a token names is part of the request, also where the body leaves it to the token.
        const request = { ...command.request, method: req.method, path, body: { ...body, ownerId } }
        return give(await keys.create({ ...fields, ...(ownerId === undefined ? {} : { ownerId }), ...command, request }))
      }
      case 'rotate': {
        const { identity = 'same', caller: allowed, rotatesRotationSecret = false } = route
        const how = { identity, scopeRequired: allowed === 'writer', keepRotationSecret: !rotatesRotationSecret }
        const retry = retryFrom === undefined ? {} : { retryFrom }
        return give(await keys.rotate({ ...(body as RotateOptions), ...command, ...target, ...how, ...retry }))
      }
      case 'revoke':
        return give(await keys.revoke({ ...command, ...target, ...(body as { reason?: string }) }))
      case 'update':
        return give(await keys.update({ ...command, ...target, changes: body as KeyChanges }))
      case 'get':
        return give(await visible(caller, id as string, req, res))
      case 'list': {
        const { ownerId, ...page } = pageOf(req, contract.operators === true ? ['ownerId'] : [])
        const reader = await readerOf(caller, req, res)
        const named = ownerOf(caller, ownerId)
        return give(await keys.list({ ownerId: reader ?? named ?? '', ...page }))
      }
      case 'events': {
        const page = pageOf(req, [])
        const key = await visible(caller, id as string, req, res)
        return give(existing(await keys.events({ id: key.id, ...page })))
      }
    }

    async function give(result: Answers[Route['action']]): Promise<void> {
      const used = usedBefore ?? familiar(caller)
      if (used !== undefined) internals.used(used, () => originOf(req))
      if ((result as MutationResult).replayed === true) await takeBack()
      send(internals, route, res, result)
    }
  }

  function callerOf(req: Request): Caller {
    const token = bearerSecret(req, contract.bareToken, operators === undefined ? undefined : MAX_TOKEN_LENGTH)
    if (keys.wellFormed(token)) return { secret: token }
    if (operators !== undefined && JWT.test(token)) {
      const operator: unknown = operators.authenticate(token)
      if (isThenable(operator)) throw swallowed(operator, 'authenticate() must not be asynchronous.')
      return { operator: operator as Operator }
    }
    throw invalidKey('malformed')
  }

  /**
   * Whose requests are counted together: those of a key, also across its rotations, where this instance knows whose secret it is. Never the
   * secret itself, since a shared counter is named by it.
   */
  function nameOf(caller: Caller): string {
    if ('operator' in caller) return `operator:${digestOf(JSON.stringify([caller.operator.issuer, caller.operator.subject]))}`
    return familiar(caller) ?? digestOf(caller.secret)
  }

  function familiar(caller: Caller): string | undefined {
    return 'secret' in caller ? internals.familiar(caller.secret) : undefined
  }

  /** An address that keeps presenting bad keys is not let through to the store with another unknown one. */
  function refuseFlood(caller: Caller, req: Request, said: { retryAfterSeconds?: number }): void {
    if (maxFailures === false || !('secret' in caller) || familiar(caller) !== undefined) return
    const blockedFor = guard.blockedFor(req, maxFailures)
    if (blockedFor === undefined) return
    said.retryAfterSeconds = blockedFor
    throw new ApiKeyError('rate_limited', 'Too many bad API keys came from this address; try again later.')
  }

  /** The owner whose keys a caller may read, or `undefined` for an operator, who may have several. */
  async function readerOf(caller: Caller, req: Request, res: Response): Promise<string | undefined> {
    const scopes = 'operator' in caller ? caller.operator.scopes : undefined
    const key = 'secret' in caller ? await callerKey(caller.secret, req, res) : undefined
    if (!hasScope(scopes ?? key?.scopes ?? [], READ_SCOPE))
      throw new ApiKeyError('insufficient_scope', `This needs the scope ${READ_SCOPE}.`)
    return key?.ownerId
  }

  /** A key that the caller may read; a foreign one is as unknown as one that does not exist. */
  async function visible(caller: Caller, id: string, req: Request, res: Response): Promise<ApiKey> {
    const ownerId = await readerOf(caller, req, res)
    const key = existing(await keys.get(id, ownerId === undefined ? {} : { ownerId }))
    const foreign = 'operator' in caller && caller.operator.owners !== 'all' && !caller.operator.owners.includes(key.ownerId)
    return existing(foreign ? undefined : key)
  }

  /** The caller of a route that only reads, by its lease. */
  async function callerKey(secret: string, req: Request, res: Response): Promise<ApiKey> {
    const result = await keys.verify(secret)
    if (!result.ok) {
      if (result.reason === 'rotated' || result.reason === 'revoked') internals.refused(secret, originOf(req))
      throw invalidKey(result.reason)
    }
    if (result.grace !== undefined) announceEnd(res, result.grace, false)
    if (!result.live()) throw new ApiKeyError('store_unavailable', 'No verdict came back in time to be relied on.')
    return result.key
  }

  /** Where a contract has request ids, also sets the header. */
  function requestId(req: Request, res: Response): string {
    if (contract.requestId !== true) return ''
    const given = headerValues(req, 'x-request-id')
    const id = given.length === 1 && isSaneRequestId(given[0] ?? '') ? (given[0] as string) : randomUUID()
    res.setHeader('X-Request-Id', id)
    return id
  }
}

/** The length first: the pattern takes milliseconds for a header of 15 KB. */
function isSaneRequestId(id: string): boolean {
  return id.length <= LONGEST_REQUEST_ID && SANE_REQUEST_ID.test(id)
}

function isRateLimited(error: unknown): boolean {
  return error instanceof ApiKeyError && error.code === 'rate_limited'
}

function tooMany(cause?: unknown): ApiKeyError {
  return new ApiKeyError('rate_limited', 'Too many requests; try again later.', { cause })
}

/** A request that can be repeated, by all that it is; `retryFrom` where it has no Idempotency-Key. */
interface Repetition {
  readonly name: string
  readonly retryFrom: string | undefined
}

interface RouteLimit {
  readonly bucket: Bucket
  readonly by: 'ip' | 'credential'
}

/** What proxies write about the client behind them. */
const PROXY_HEADERS = [
  'x-forwarded-for',
  'forwarded',
  'via',
  'x-real-ip',
  'x-client-ip',
  'cf-connecting-ip',
  'true-client-ip',
  'fastly-client-ip',
]

/**
 * Whether `req.ip` may be a proxy's address, or one that the client wrote itself: the address is one that the application trusts to be a proxy, or
 * headers speak of more proxies than it knows of. Every client then seems to come from one place, or from any place that it likes.
 */
function hidesItsClients(req: Request): boolean {
  try {
    const known = req.ips.length
    const listed = String(req.headers['x-forwarded-for'] ?? '')
      .split(',')
      .filter((address) => address.trim() !== '').length
    if (listed !== known) return true
    if (known === 0 && PROXY_HEADERS.some((name) => req.headers[name] !== undefined)) return true
    const trusts = req.app.get('trust proxy fn') as (address: string | undefined, hop: number) => boolean
    return trusts(req.ip, known)
  } catch {
    return true
  }
}

type Attempt<T> = { readonly value: T } | { readonly error: unknown }

function attempt<T>(work: () => T): Attempt<T> {
  try {
    return { value: work() }
  } catch (error) {
    return { error }
  }
}

/** The same for what is under way; it never rejects. */
function settled<T>(work: Promise<T>): Promise<Attempt<T>> {
  return work.then(
    (value) => ({ value }),
    (error: unknown) => ({ error }),
  )
}

/** The owner that an operator is about: the one it names, or else its only one. A key's is its own, and said by nobody. */
function ownerOf(caller: Caller, named: unknown): string | undefined {
  if (!('operator' in caller)) {
    if (named !== undefined) throw new ApiKeyError('invalid_request', 'ownerId is for operators; a key acts for its own owner.')
    return undefined
  }
  const { owners } = caller.operator
  const [only, ...more] = owners === 'all' ? [] : owners
  const ownerId = named ?? (more.length === 0 ? only : undefined)
  if (typeof ownerId !== 'string')
    throw new ApiKeyError('invalid_request', 'Say which owner: this token names none, or several. Send ownerId.')
  if (owners !== 'all' && !owners.includes(ownerId)) throw new ApiKeyError('insufficient_scope', 'This token does not name that owner.')
  return ownerId
}

/** The body as the fingerprint sees it: no secret goes into it, not even hashed. The seal depends on the rotation secret anyway. */
function withoutSecrets(body: object): object {
  if (typeof (body as { rotationSecret?: unknown }).rotationSecret !== 'string') return body
  const { rotationSecret: _, ...rest } = body as { rotationSecret: string }
  return rest
}

function send<R extends Route>(internals: Internals, route: R, res: Response, answer: Answers[R['action']]): void {
  try {
    // The route's action and its success agree by the type of Route; the compiler loses sight of that inside a switch.
    const made: unknown = (route.success as (answer: Answers[R['action']]) => object)(answer)
    if (isThenable(made)) throw swallowed(made, 'success() must not be asynchronous.')
    if (typeof made !== 'object' || made === null) throw new TypeError('success() must return an object.')
    const body = JSON.stringify(made)
    const { replayed } = answer as { replayed?: boolean }
    if (replayed === true) res.setHeader('Idempotent-Replayed', 'true')
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

function existing<T>(found: T | undefined): T {
  if (found === undefined) throw new ApiKeyError('key_not_found', 'There is no such key.')
  return found
}

/** From the URL itself: what `req.query` holds is up to the application's query parser, which may leave everything out. */
function pageOf(req: Request, more: readonly string[]): { limit?: number; cursor?: string; ownerId?: string } {
  const known = ['limit', 'cursor', ...more]
  const page: { limit?: string; cursor?: string; ownerId?: string } = {}
  for (const [name, value] of new URLSearchParams(splitOnce(req.originalUrl, '?')[1])) {
    if (!known.includes(name) || Object.hasOwn(page, name))
      throw new ApiKeyError('invalid_request', `The query may hold ${known.join(' and ')}, each once.`)
    page[name as keyof typeof page] = value
  }
  const { limit, ...rest } = page
  if (limit !== undefined && !/^\d{1,3}$/.test(limit))
    throw new ApiKeyError('invalid_request', 'limit must be a whole number from 1 to 100.')
  return { ...(limit === undefined ? {} : { limit: Number(limit) }), ...rest }
}

function splitOnce(text: string, mark: string): [string, string?] {
  const at = text.indexOf(mark)
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)]
}
