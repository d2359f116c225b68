import type { NextFunction, Request, RequestHandler, Response } from 'express'
import { ApiKeyError } from '../errors.js'
import { inTime } from '../in-time.js'
import { invalidOption, refuseUnknown } from '../options.js'
import { type KeyWay, keyWayOf } from './bearer-auth.js'
import { setApiKey, turnAway } from './req-api-key.js'
import { challengesOf, credentialOf, MAX_TOKEN_LENGTH, refuseLost, type Source, sourcesOption } from './source.js'

/** A way in besides API keys, for `anyOf`: a session, a JWT, whatever the application has. */
export interface Login {
  /**
   * Where requests carry its credential, as for `bearerAuth`: `bearer()` for a JWT. Requests that have one there are let in or refused by this login
   * alone. Left out for a session, which is asked only for requests that present no credential anywhere.
   */
  from?: Source | readonly Source[] | undefined
  /**
   * The middleware that reads the credential, such as `passport.session()` or that of express-jwt. It calls `next`, with an error for a bad credential.
   * One that has run already is left out.
   */
  use?: ((req: Request, res: Response, next: NextFunction) => unknown) | undefined
  /** Whether somebody has signed in by this: `true` or `false`, or a promise of it. Anything else lets nobody in. */
  signedIn(req: Request): boolean | Promise<boolean>
}

/** A login that fetches its keys from another service takes a second or two at first. A client that waits longer than this has often gone. */
const LOGIN_TIMEOUT_MS = 10_000

/**
 * Lets requests in by an API key or by another login: `anyOf(bearerAuth(keys), { use: passport.session(), signedIn: (req) => req.isAuthenticated() })`.
 *
 * A credential that is presented decides: it lets in or it refuses, and no session is asked. Two different ones are refused. Where a key and a token are sent
 * in the same place, what has the form of a key is one. A request with no credential is let in by the first session that has somebody signed in. A 401 has the
 * challenges of all ways. The `onFailure` and the realm of the first `bearerAuth` are also for refusals of logins. Errors of a login that are not a 401 go to
 * `next`.
 *
 * @throws ApiKeyError `invalid_option`
 */
export function anyOf(...ways: (RequestHandler | Login)[]): RequestHandler {
  const named = ways.map((way) => keyWayOf(way) ?? loginWay(way as Login))
  const challenges = [...new Set(named.flatMap(({ sources }) => challengesOf(sources)))]
  // Refusals name every way in, so each bearerAuth is made once more.
  const all = named.map((way, index) => keyWayOf(ways[index] as object, challenges) ?? way)
  const first = all.find(isKeyWay)
  if (first === undefined || all.length < 2) throw invalidOption(`anyOf takes two ways in or more, one of which is a bearerAuth. ${HOW}`)
  const { guard } = first
  const sources = all.flatMap((way) => way.sources)
  const isKey = (text: string): boolean => all.some((way) => isKeyWay(way) && way.wellFormed(text))
  const sessions = all.flatMap((way) => (isKeyWay(way) || way.sources.length > 0 ? [] : [way]))

  return function anyOf(req, res, next) {
    let deciding: KeyWay | LoginWay | undefined
    try {
      deciding = decidingWay(all, req)
      if (deciding === undefined) refuseLost(req, sources, isKey)
    } catch (error) {
      turnAway(guard, { req, res, next }, error)
      return
    }
    if (deciding === undefined && sessions.length === 0) deciding = first
    // The key's own verdict is looked at right before next(): nothing is awaited here.
    if (deciding !== undefined && isKeyWay(deciding)) deciding.handler(req, res, next)
    else askLogins(deciding, req, res, next).catch(next)
  }

  async function askLogins(presented: LoginWay | undefined, req: Request, res: Response, next: NextFunction): Promise<void> {
    let inside = false
    try {
      for (const login of presented === undefined ? sessions : [presented]) {
        if (!inside && !res.writableEnded) inside = await letIn(login, req, res)
      }
      if (!inside && presented !== undefined) throw invalidCredential()
    } catch (error) {
      if (res.writableEnded) return
      if (isForTheApplication(error)) next(error)
      else turnAway(guard, { req, res, next }, refusalOf(error))
      return
    }
    // A middleware has answered by itself.
    if (res.writableEnded) return
    if (!inside) {
      // Nobody: what that means, its options say.
      first?.handler(req, res, next)
      return
    }
    if (req.apiKey === undefined) setApiKey(req, undefined, guard)
    next()
  }
}

const HOW = 'The others are objects such as { use: passport.session(), signedIn: (req) => req.isAuthenticated() }.'

/** A login as one way in among others. */
interface LoginWay {
  readonly login: Login
  readonly sources: readonly Source[]
}

function isKeyWay(way: KeyWay | LoginWay): way is KeyWay {
  return 'handler' in way
}

/** Checks a login. Throws `invalid_option`. */
function loginWay(login: Login): LoginWay {
  if (typeof login !== 'object' || login === null) throw invalidOption(`anyOf takes no middleware but bearerAuth as it is. ${HOW}`)
  refuseUnknown(login, ['from', 'use', 'signedIn'], 'anyOf')
  const { from, use, signedIn } = login
  if (typeof signedIn !== 'function') throw invalidOption('signedIn must be a function of the request that returns true or false.')
  if (use !== undefined && typeof use !== 'function') throw invalidOption('use must be a middleware (req, res, next).')
  if (use !== undefined && keyWayOf(use) !== undefined) throw invalidOption('use is a bearerAuth, which anyOf takes as it is.')
  return { login, sources: sourcesOption(from, []) }
}

/**
 * The way that a presented credential belongs to; undefined where there is none. Among ways that look in the same place, one over keys has what has the form of
 * its keys, and the first login has the rest.
 *
 * @throws ApiKeyError `credential_malformed` where there are two different ones, and what a source throws.
 */
function decidingWay(ways: readonly (KeyWay | LoginWay)[], req: Request): KeyWay | LoginWay | undefined {
  let found: string | undefined
  const finders: (KeyWay | LoginWay)[] = []
  for (const way of ways) {
    const credential = credentialOf(req, way.sources, MAX_TOKEN_LENGTH)
    if (credential === undefined) continue
    if (found !== undefined && found !== credential) {
      throw new ApiKeyError('credential_malformed', 'Send one credential, not two different ones.')
    }
    found = credential
    finders.push(way)
  }
  if (found === undefined) return undefined
  const secret = found
  return finders.find((way) => isKeyWay(way) && way.wellFormed(secret)) ?? finders.find((way) => !isKeyWay(way)) ?? finders[0]
}

/** Whether this login lets a request in. Where it does not, the response is as it was before. Rejects with what the login fails with. */
async function letIn({ login }: LoginWay, req: Request, res: Response): Promise<boolean> {
  const restore = remembered(res)
  let inside = false
  try {
    inside = await inTime(
      LOGIN_TIMEOUT_MS,
      asked(login, req, res),
      () => new ApiKeyError('store_unavailable', 'A login did not answer in time.'),
    )
  } finally {
    if (!inside && !res.headersSent) restore()
  }
  return inside
}

async function asked(login: Login, req: Request, res: Response): Promise<boolean> {
  const { use } = login
  if (use !== undefined) await ran(use, req, res)
  const signedIn: unknown = await login.signedIn(req)
  // A session object or a forgotten call, as in (req) => req.isAuthenticated, is always truthy.
  if (typeof signedIn !== 'boolean') throw new ApiKeyError('internal_error', 'signedIn() must return true or false.')
  return signedIn
}

/** Runs a middleware until it calls `next`. */
function ran(use: NonNullable<Login['use']>, req: Request, res: Response): Promise<void> {
  return new Promise((resolve, reject) => {
    const next = ((error?: unknown) => (error === undefined || error === null ? resolve() : reject(error))) as NextFunction
    const made: unknown = use(req, res, next)
    if (typeof (made as { then?: unknown } | null | undefined)?.then === 'function') (made as PromiseLike<unknown>).then(undefined, reject)
  })
}

/** Remembers the status and the headers of a response, and returns what puts them back. */
function remembered(res: Response): () => void {
  const { statusCode, statusMessage } = res
  const before = res.getHeaders()
  return () => {
    Object.assign(res, { statusCode, statusMessage })
    const now = res.getHeaders()
    for (const name of Object.keys(now)) if (before[name] === undefined) res.removeHeader(name)
    for (const [name, value] of Object.entries(before)) if (value !== undefined && value !== now[name]) res.setHeader(name, value)
  }
}

function invalidCredential(cause?: unknown): ApiKeyError {
  return new ApiKeyError('invalid_key', 'The credential is not valid.', { cause })
}

/** Whether an error of a login is one that the application's error handler knows. Express takes undefined, 'route' and 'router' for no error. */
function isForTheApplication(error: unknown): boolean {
  return typeof error === 'object' && error !== null && !(error instanceof ApiKeyError) && statusIn(error) !== 401
}

/** A 401 of a login is answered like one of ours: with every challenge. */
function refusalOf(error: unknown): unknown {
  const isTheirs = typeof error === 'object' && error !== null && !(error instanceof ApiKeyError)
  return isTheirs ? invalidCredential(error) : error
}

function statusIn(error: object): unknown {
  const { status, statusCode } = error as { status?: unknown; statusCode?: unknown }
  return status ?? statusCode
}
