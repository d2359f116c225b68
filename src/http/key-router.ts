import express, { type ErrorRequestHandler, type Request, type Response, type Router } from 'express'
import type { AnyApiKeys } from '../core/api-keys.js'
import { internalsOf } from '../core/internals.js'
import { ApiKeyError } from '../errors.js'
import { invalidOption, refuseUnknown } from '../options.js'
import { checkContract } from './check-contract.js'
import type { Contract, Route } from './contract.js'
import { contracts } from './contracts/contracts.js'
import { failureGuard } from './limits/failure-guard.js'
import { openApiDocument } from './openapi.js'
import type { Operators } from './operator-jwt.js'
import { type OperatorOf, operatorsOption } from './operators.js'
import { type OnFailure, onFailureOption, realmOption, refuse } from './problem.js'
import { twins } from './repetition.js'
import { nameRequest } from './request-id.js'
import { type Service, serveRoute } from './serve-route.js'
import { challengesOf, type Source, sourcesOption } from './source.js'
import { failuresOption } from './verdict.js'

export interface KeyRouterOptions {
  /** The wire shape to serve. Default `contracts.standard`. */
  contract?: Contract | undefined
  /** Where requests carry their key, as in `bearerAuth`. Default: as the contract says. */
  from?: Source | readonly Source[] | undefined
  /** As in `bearerAuth`. */
  onFailure?: OnFailure | undefined
  /** Names the protected space in challenges. Default `api`. */
  realm?: string | undefined
  /**
   * Who may call besides keys, if the contract lets operators in: what `operatorJwt` returned, or a function of the request that says who is signed in. A
   * presented key wins, and the function is then not asked. A change that it is asked about must come from a page of this origin. An operator without
   * `grants` hands out nothing. Default nobody.
   */
  operators?: Operators | OperatorOf | undefined
  /** Further origins whose pages may ask for changes where `operators` is a function, such as `https://app.example.com`. Default none. */
  trustedOrigins?: readonly string[] | undefined
  /** Set to false if something in front limits requests already. Default true: as the contract says. */
  limits?: boolean | undefined
  /** As in `bearerAuth`. */
  failuresPerMinute?: number | false | undefined
  /**
   * Whether a key that rotates itself without an Idempotency-Key can repeat the request with its dead secret and get the same answer: from the same network
   * (IPv4 address or IPv6 /56), for at most 60 s, until the first use of the new secret, and never in an emergency. The price: a thief of the old secret in
   * the same network can do it too. Needs a correct `trust proxy` setting. Default: only for requests that also present a rotation secret.
   */
  retryWithoutKey?: boolean | undefined
}

/**
 * Makes a router that serves a contract over these keys. Mount it anywhere with `app.use(path, keyRouter(keys))`. Its OpenAPI document is at
 * `openapi.json`. Paths that the contract does not name go on to the application.
 */
export function keyRouter(keys: AnyApiKeys, options: KeyRouterOptions = {}): Router {
  const service = serviceOf(keys, options)
  const { contract } = service
  const router = express.Router()
  const documentAt = documents(options.from === undefined ? contract : { ...contract, from: service.sources })
  router.get('/openapi.json', (req, res) => {
    service.begin(req, res)
    res.json(documentAt(req.baseUrl))
  })
  for (const route of contract.routes as readonly Route[]) router[route.method](route.path, serveRoute(service, route))
  router.use(refuseUndecodable(service))
  return router
}

/** Checks the options. Throws `invalid_option`. */
function serviceOf(keys: AnyApiKeys, options: KeyRouterOptions): Service {
  const internals = internalsOf(keys, 'keyRouter')
  refuseUnknown(
    options,
    ['contract', 'from', 'onFailure', 'realm', 'operators', 'trustedOrigins', 'limits', 'failuresPerMinute', 'retryWithoutKey'],
    'keyRouter',
  )
  const { contract = contracts.standard, limits = true, retryWithoutKey } = options
  checkContract(contract)
  if (typeof limits !== 'boolean') throw invalidOption('limits must be true or false.')
  if (retryWithoutKey !== undefined && typeof retryWithoutKey !== 'boolean') throw invalidOption('retryWithoutKey must be true or false.')
  const { requestId = false } = contract
  const sources = sourcesOption(options.from, contract.from)
  const challenge = { challenges: challengesOf(sources), realm: realmOption(options.realm) }
  const onFailure = onFailureOption(options.onFailure)
  return {
    ...{ keys, internals, contract, sources, limits, retryWithoutKey },
    operators: operatorsOption(options.operators, options.trustedOrigins, contract.operators === true, internals),
    maxFailures: failuresOption(options.failuresPerMinute),
    guard: failureGuard(internals),
    twins: twins(internals.clock),
    begin: (req, res) => ({ ...challenge, requestId: requestId === true ? nameRequest(req, res) : '' }),
    fail(req, res, next, error, context) {
      refuse(
        { listener: internals, onFailure, shape: (told, request) => contract.failure(told, request) },
        { req, res, next },
        error,
        context,
      )
    },
    warnOfGuard: once(() => {
      internals.report(
        invalidOption(
          'bearerAuth stands before keyRouter, so a client that repeats a rotation with its dead key is refused. Mount keyRouter first.',
        ),
      )
    }),
  }
}

/** Documents that are kept: one for each path that the router is mounted at. If that path has parameters, requests can make up any number of them. */
const MAX_DOCUMENTS = 10

function documents(contract: Contract): (path: string) => object {
  const kept = new Map<string, object>()
  return (path) => {
    const document = kept.get(path) ?? openApiDocument(contract, path)
    if (kept.size < MAX_DOCUMENTS) kept.set(path, document)
    return document
  }
}

/** Express cannot match a path that is not well-formed percent-encoding to any route. */
function refuseUndecodable(service: Service): ErrorRequestHandler {
  return (error: unknown, req: Request, res: Response, next: (error: unknown) => void) => {
    if (!(error instanceof URIError)) return next(error)
    service.fail(req, res, next, new ApiKeyError('invalid_request', 'The path is not well-formed.'), service.begin(req, res))
  }
}

function once(work: () => void): () => void {
  let done = false
  return () => {
    if (done) return
    done = true
    work()
  }
}
