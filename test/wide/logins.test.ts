import express5, { type ErrorRequestHandler, type Request, type Response } from 'express'
import { type ApiKeys, anyOf, bearer, bearerAuth, createApiKeys, header, type Login, memoryStore } from 'express-api-keys'
import { expressjwt } from 'express-jwt'
import session from 'express-session'
import express4 from 'express4'
import createError, { isHttpError } from 'http-errors'
import jwt from 'jsonwebtoken'
import { Passport } from 'passport'
import { Strategy as BearerStrategy } from 'passport-http-bearer'
import { Strategy as LocalStrategy } from 'passport-local'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

type Framework = typeof express5
type Ask = (headers?: Record<string, string>) => Promise<{ status: number; headers: Headers; body: { [name: string]: unknown } }>

const JWT_SECRET = 'the-secret-of-the-tokens-0123456789'
let keys: ApiKeys
let secret: string
let revoked: string

beforeAll(async () => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: () => {} })
  ;({ secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' }))
  const dead = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  await keys.revoke({ as: 'application', id: dead.key.id })
  revoked = dead.secret
})
afterAll(() => keys.close())

/** Whether the application's users cannot be read. */
let down = false

const tokens: Login = {
  from: bearer(),
  use: expressjwt({ secret: JWT_SECRET, algorithms: ['HS256'] }),
  signedIn: (req) => (req as { auth?: unknown }).auth !== undefined,
}

/** An application with real sessions, tokens and keys: where it listens, who asks it, and the cookie of somebody who has signed in. */
async function serve(
  framework: Framework,
  ways: (passport: InstanceType<typeof Passport>) => Parameters<typeof anyOf>,
): Promise<[Ask, string]> {
  const passport = new Passport()
  passport.serializeUser((user: unknown, done: (error: unknown, id: unknown) => void) => done(null, user))
  passport.deserializeUser((id: unknown, done: (error: unknown, user: unknown) => void) =>
    done(down ? new Error('the users are down') : null, id),
  )
  passport.use(
    new LocalStrategy((name: string, password: string, done: (error: unknown, user: unknown) => void) =>
      done(null, password === 'right' && { name }),
    ),
  )
  passport.use(
    new BearerStrategy((token: string, done: (error: unknown, user: unknown) => void) =>
      done(null, token === 'of-carol' && { name: 'carol' }),
    ),
  )
  const app = framework()
  app.use(session({ secret: 'the-secret-of-the-sessions', resave: false, saveUninitialized: false }))
  app.post('/login', passport.authenticate('local'), (_req: Request, res: Response) => void res.sendStatus(204))
  app.get('/data', anyOf(...ways(passport)), (req, res) => {
    const { auth, user } = req as unknown as { auth?: { sub: string }; user?: { name: string } }
    res.json({ key: req.apiKey?.ownerId, token: auth?.sub, user: user?.name })
  })
  app.use(((error, _req, res, _next) => {
    res.status(error.status ?? 500).json({ caught: error.message })
  }) as ErrorRequestHandler)
  const url = await listen(app)
  const login = await fetch(`${url}/login?username=alice&password=right`, { method: 'POST' })
  const cookie = login.headers
    .getSetCookie()
    .map((one) => one.split(';')[0])
    .join('; ')
  const ask: Ask = async (headers = {}) => {
    const response = await fetch(`${url}/data`, { headers })
    return { status: response.status, headers: response.headers, body: (await response.json()) as { [name: string]: unknown } }
  }
  return [ask, cookie]
}

const sessionOf = (passport: InstanceType<typeof Passport>): Login => ({
  use: passport.session(),
  signedIn: (req) => (req as Request & { isAuthenticated(): boolean }).isAuthenticated(),
})
const signed = (claims: object, options: jwt.SignOptions = {}, key = JWT_SECRET): string => jwt.sign(claims, key, options)
const bearing = (credential: string): { authorization: string } => ({ authorization: `Bearer ${credential}` })

describe.each<[string, Framework]>([
  ['Express 5', express5],
  ['Express 4', express4 as unknown as Framework],
])('on %s', (_name, framework) => {
  test('a key, a token of express-jwt and a session of passport each let in', async () => {
    for (const order of [
      (passport: InstanceType<typeof Passport>) => [bearerAuth(keys), tokens, sessionOf(passport)],
      (passport: InstanceType<typeof Passport>) => [sessionOf(passport), tokens, bearerAuth(keys)],
    ]) {
      const [ask, cookie] = await serve(framework, order)
      expect((await ask(bearing(secret))).body).toEqual({ key: 'acme' })
      expect((await ask(bearing(signed({ sub: 'bob' })))).body).toEqual({ token: 'bob' })
      expect((await ask({ cookie })).body).toEqual({ user: 'alice' })
      // What is presented counts, and a cookie that comes along does not.
      expect((await ask({ ...bearing(secret), cookie })).body).toEqual({ key: 'acme' })
      expect((await ask({ ...bearing(signed({ sub: 'bob' })), cookie })).body).toEqual({ token: 'bob' })
    }
  })

  test('a bad key or token is refused beside a good session', async () => {
    const [ask, cookie] = await serve(framework, (passport) => [sessionOf(passport), bearerAuth(keys), tokens])
    const unsigned = `${Buffer.from('{"alg":"none","typ":"JWT"}').toString('base64url')}.${Buffer.from('{"sub":"bob"}').toString('base64url')}.`
    for (const bad of [
      revoked,
      `${secret}x`,
      'nonsense',
      unsigned,
      signed({ sub: 'bob' }, {}, 'another-secret'),
      signed({ sub: 'bob' }, { expiresIn: -1 }),
    ]) {
      const { status, body, headers } = await ask({ ...bearing(bad), cookie })
      expect([bad, status, body.code]).toEqual([bad, 401, 'invalid_key'])
      expect(headers.get('www-authenticate')).toBe('Bearer realm="api", error="invalid_token"')
      expect(JSON.stringify(body)).not.toMatch(/jwt|expired|revoked|signature/)
    }
  })

  test('nobody gets in without a login, or with a cookie that somebody made up', async () => {
    const [ask, cookie] = await serve(framework, (passport) => [
      bearerAuth(keys, { from: header('X-API-Key') }),
      tokens,
      sessionOf(passport),
    ])
    for (const headers of [
      {},
      { cookie: 'connect.sid=s%3Amade-up.up' },
      { cookie: cookie.replace(/.$/, 'x') },
      { authorization: 'Basic YTpi' },
    ]) {
      const { status, headers: sent } = await ask(headers)
      expect([status, sent.get('www-authenticate')]).toEqual([401, 'ApiKey realm="api", header="X-API-Key", Bearer realm="api"'])
    }
  })

  test('a strategy of passport that fails with an error is answered like a key, and one that answers by itself lets nobody in', async () => {
    const strategy =
      (failWithError: boolean) =>
      (passport: InstanceType<typeof Passport>): Parameters<typeof anyOf> => [
        bearerAuth(keys, { from: [bearer(), header('X-API-Key')] }),
        {
          from: bearer(),
          use: passport.authenticate('bearer', { session: false, failWithError }),
          signedIn: (req) => (req as { user?: unknown }).user !== undefined,
        },
        sessionOf(passport),
      ]
    const [ask, cookie] = await serve(framework, strategy(true))
    expect((await ask(bearing('of-carol'))).body).toEqual({ user: 'carol' })
    expect((await ask(bearing(secret))).body).toEqual({ key: 'acme' })
    const refused = await ask({ ...bearing('of-nobody'), cookie })
    expect([refused.status, refused.body.code, refused.headers.get('www-authenticate')]).toEqual([
      401,
      'invalid_key',
      'Bearer realm="api", error="invalid_token", ApiKey realm="api", header="X-API-Key"',
    ])
    const [other] = await serve(framework, strategy(false))
    await expect(other({ ...bearing('of-nobody'), cookie })).rejects.toThrow('Unauthorized')
  })

  test('express-jwt that reads a cookie goes without a token, and refuses a bad one', async () => {
    const fromCookie: Login = {
      use: expressjwt({
        secret: JWT_SECRET,
        algorithms: ['HS256'],
        credentialsRequired: false,
        getToken: (req: Request) => /token=([^;]*)/.exec(req.headers.cookie ?? '')?.[1],
      }),
      signedIn: (req) => (req as { auth?: unknown }).auth !== undefined,
    }
    const [ask, cookie] = await serve(framework, (passport) => [bearerAuth(keys), fromCookie, sessionOf(passport)])
    expect((await ask({ cookie: `token=${signed({ sub: 'bob' })}` })).body).toEqual({ token: 'bob' })
    expect((await ask({ cookie })).body).toEqual({ user: 'alice' })
    expect((await ask({ cookie: `${cookie}; token=bad` })).status).toBe(401)
    expect((await ask()).status).toBe(401)
  })

  test('users that cannot be read are an error, and nobody is let in', async () => {
    const [ask, cookie] = await serve(framework, (passport) => [bearerAuth(keys), sessionOf(passport), { signedIn: () => true }])
    down = true
    const { status, body } = await ask({ cookie })
    const withKey = await ask({ ...bearing(secret), cookie })
    down = false
    expect([status, body, withKey.status]).toEqual([500, { caught: 'the users are down' }, 200])
  })
})

test('http-errors knows the errors that are handed to the application, and what of them a client may see', async () => {
  const app = express5()
  app.get('/data', bearerAuth(keys, { onFailure: 'next' }), (_req, res) => void res.json({}))
  app.use(((error, _req, res, _next) => {
    const known = isHttpError(error) ? error : createError(500)
    res
      .status(known.statusCode)
      .set(known.headers ?? {})
      .json({ message: known.expose ? known.message : 'Internal Server Error' })
  }) as ErrorRequestHandler)
  const response = await fetch(`${await listen(app)}/data`, { headers: bearing(revoked) })
  expect([response.status, response.headers.get('www-authenticate'), await response.json()]).toEqual([
    401,
    'Bearer realm="api", error="invalid_token"',
    { message: 'The API key is not valid.' },
  ])
})
