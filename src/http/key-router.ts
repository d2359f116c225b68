import express, { type ErrorRequestHandler, type Request, type RequestHandler, type Response, type Router } from 'express'
import type { ApiKeys, CommandContext } from '../core/api-keys.js'
import { type ApiKey, type CreateInput, isKeyId, type KeyChanges } from '../core/key.js'
import { WRITE_SCOPE } from '../core/mutation.js'
import { refuseUnknown } from '../core/options.js'
import { ApiKeyError } from '../errors.js'
import type { Answers, Contract, Route } from './contract.js'
import { contracts } from './contracts.js'
import { bearerSecret } from './credential.js'
import { readIdempotencyKey } from './idempotency-key.js'
import { refuse } from './problem.js'

export interface KeyRouterOptions {
  /** The wire shape to serve. Default `contracts.standard`. */
  contract?: Contract
  /** Names the protected space in challenges. Default `api`. */
  realm?: string
}

/** The scope that lets a key see the keys of its owner. */
const READ_SCOPE = 'api_keys:read'
const MAX_BODY_BYTES = 16 * 1024

/**
 * Makes a router that serves a contract over these keys; mount it anywhere with `app.use(path, keyRouter(keys))`. Paths that the contract does not
 * name fall through to the application.
 */
export function keyRouter(keys: ApiKeys, options: KeyRouterOptions = {}): Router {
  if (typeof keys?.rotate !== 'function')
    throw new ApiKeyError('invalid_option', 'keyRouter takes what createApiKeys returned as its first argument.')
  refuseUnknown(options, ['contract', 'realm'], 'keyRouter')
  const { contract = contracts.standard, realm = 'api' } = options
  if (!Array.isArray(contract?.routes)) throw new ApiKeyError('invalid_option', 'contract must be a contract, such as contracts.standard.')
  const router = express.Router()
  for (const route of contract.routes as readonly Route[]) router[route.method](route.path, serve(route))
  router.use(refuseUndecodable as ErrorRequestHandler)
  return router

  /** A path that is not well-formed percent-encoding never reaches a route. */
  function refuseUndecodable(error: unknown, _req: Request, res: Response, next: (error: unknown) => void): void {
    if (error instanceof URIError)
      refuse(keys, res, new ApiKeyError('invalid_request', 'The path is not well-formed.'), { realm }, contract.failure)
    else next(error)
  }

  function serve(route: Route): RequestHandler {
    const scope = route.method === 'get' ? READ_SCOPE : WRITE_SCOPE
    return function serveKeys(req, res) {
      answer(route, req, res).catch((error: unknown) => refuse(keys, res, error, { realm, scope }, contract.failure))
    }
  }

  async function answer(route: Route, req: Request, res: Response): Promise<void> {
    // All that can be refused without I/O is refused first.
    const secret = bearerSecret(req)
    if (!keys.wellFormed(secret)) throw new ApiKeyError('invalid_key', 'The API key is not valid.')
    const reads = route.method === 'get'
    const idempotencyKey = reads ? undefined : readIdempotencyKey(req, route.idempotencyKeyRequired ?? false)
    const id = req.params.id
    if (id !== undefined && (typeof id !== 'string' || !isKeyId(id))) throw new ApiKeyError('invalid_request', 'A key id must be a UUID.')
    const body = reads ? {} : await readBody(req, res, route.fields ?? [])
    const [path = '', query] = splitOnce(req.originalUrl, '?')
    const userAgent = req.headers['user-agent']
    const context: CommandContext = {
      secret,
      ...(idempotencyKey === undefined ? {} : { idempotencyKey }),
      request: { method: req.method, path, ...(query === undefined ? {} : { query }), body },
      ...(req.ip === undefined ? {} : { ip: req.ip }),
      ...(userAgent === undefined ? {} : { userAgent }),
    }
    const target = id === undefined ? {} : { id }
    switch (route.action) {
      case 'create':
        return send(route, res, await keys.create({ ...(body as Omit<CreateInput, 'ownerId'>), ownerId: '' }, context))
      case 'rotate':
        return send(route, res, await keys.rotate({ ...context, ...target }))
      case 'revoke':
        return send(route, res, await keys.revoke({ ...context, ...target, ...(body as { reason?: string }) }))
      case 'update':
        return send(route, res, await keys.update({ ...context, ...target, changes: body as KeyChanges }))
      case 'get': {
        const caller = await reader(secret)
        return send(route, res, existing(await keys.get(id ?? caller.id, { ownerId: caller.ownerId })))
      }
      case 'list': {
        const { ownerId } = await reader(secret)
        return send(route, res, await keys.list({ ownerId, ...pageOf(req) }))
      }
      case 'events': {
        const caller = await reader(secret)
        return send(route, res, existing(await keys.events({ id: id ?? caller.id, ownerId: caller.ownerId, ...pageOf(req) })))
      }
    }
  }

  /** The caller of a route that only reads, by its lease. */
  async function reader(secret: string): Promise<ApiKey> {
    const result = await keys.verify(secret)
    if (!result.ok) throw new ApiKeyError('invalid_key', 'The API key is not valid.')
    if (!result.live()) throw new ApiKeyError('store_unavailable', 'No verdict came back in time to be relied on.')
    if (!result.key.scopes.includes(READ_SCOPE)) throw new ApiKeyError('insufficient_scope', `This needs the scope ${READ_SCOPE}.`)
    return result.key
  }
}

function send<R extends Route>(route: R, res: Response, answer: Answers[R['action']]): void {
  const { replayed } = answer as { replayed?: boolean }
  if (replayed === true) res.setHeader('Idempotent-Replayed', 'true')
  res.status(route.status)
  res.setHeader('Cache-Control', 'no-store')
  res.setHeader('Content-Type', 'application/json; charset=utf-8')
  // The route's action and its success agree by the type of Route; the compiler loses sight of that inside a switch.
  res.end(JSON.stringify((route.success as (answer: Answers[R['action']]) => object)(answer)))
}

function existing<T>(found: T | undefined): T {
  if (found === undefined) throw new ApiKeyError('key_not_found', 'There is no such key.')
  return found
}

function pageOf(req: Request): { limit?: number; cursor?: string } {
  for (const name of Object.keys(req.query)) {
    if (name !== 'limit' && name !== 'cursor') throw new ApiKeyError('invalid_request', 'The query may hold limit and cursor.')
  }
  const { limit, cursor } = req.query
  if (limit !== undefined && !(typeof limit === 'string' && /^\d{1,3}$/.test(limit))) {
    throw new ApiKeyError('invalid_request', 'limit must be a whole number from 1 to 100.')
  }
  return { ...(limit === undefined ? {} : { limit: Number(limit) }), ...(cursor === undefined ? {} : { cursor: cursor as string }) }
}

const parseJson = express.json({ limit: MAX_BODY_BYTES, strict: true, type: () => true })

/** The JSON object of a request; an empty body is an empty object. Also takes one that the application parsed before us. */
async function readBody(req: Request, res: Response, fields: readonly string[]): Promise<object> {
  const length = req.headers['content-length']
  const has = req.headers['transfer-encoding'] !== undefined || (length !== undefined && length !== '0')
  if (!has) return {}
  if (Number(length) > MAX_BODY_BYTES) throw tooLarge()
  if (!req.is(['json', '+json'])) throw new ApiKeyError('unsupported_media_type', 'Send the body as application/json.')
  if (!req.readableDidRead) {
    await new Promise<void>((resolve, reject) => {
      parseJson(req, res, (error?: unknown) => (error === undefined ? resolve() : reject(bodyError(error))))
    })
  }
  const body: unknown = req.body ?? {}
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw new ApiKeyError('invalid_request', 'The body must be a JSON object.')
  if (Buffer.byteLength(JSON.stringify(body)) > MAX_BODY_BYTES) throw tooLarge()
  for (const name of Object.keys(body)) {
    if (!fields.includes(name)) {
      const known = fields.length === 0 ? 'It takes none.' : `It takes ${fields.join(', ')}.`
      throw new ApiKeyError(
        'invalid_request',
        `The body has a field ${JSON.stringify(name.slice(0, 64))} that this request does not take. ${known}`,
      )
    }
  }
  return body
}

function bodyError(error: unknown): ApiKeyError {
  const { status } = error as { status?: number }
  if (status === 413) return tooLarge()
  if (status === 415)
    return new ApiKeyError('unsupported_media_type', 'Send the body as application/json in UTF-8, not compressed in an unusual way.')
  // The parser's own message quotes the body, which may hold anything.
  return new ApiKeyError('invalid_request', 'The body is not valid JSON.')
}

function tooLarge(): ApiKeyError {
  return new ApiKeyError('body_too_large', `The body must be at most ${MAX_BODY_BYTES} bytes.`)
}

function splitOnce(text: string, mark: string): [string, string?] {
  const at = text.indexOf(mark)
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)]
}
