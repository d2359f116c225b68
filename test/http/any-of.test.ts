import express5, { type ErrorRequestHandler, type Request, type RequestHandler } from 'express'
import {
  type ApiKeyError,
  type ApiKeys,
  anyOf,
  type BearerAuthOptions,
  basic,
  bearer,
  bearerAuth,
  createApiKeys,
  type Denial,
  header,
  type Login,
  memoryStore,
  requireScope,
  scheme,
} from 'express-api-keys'
import express4 from 'express4'
import { type Checked, exchange } from '../support/contract.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

/** The deadlines of logins: the test says when they are over. */
const deadlines: (() => void)[] = []
jest.mock('../../src/real-time.js', () => {
  const real = jest.requireActual('../../src/real-time.js')
  return {
    ...real,
    setTimeout(work: () => void, ms: number) {
      if (ms !== 10_000) return real.setTimeout(work, ms)
      deadlines.push(work)
      return real.setTimeout(() => {}, 0)
    },
  }
})

const errors: ApiKeyError[] = []
const denials: Denial[] = []
const asked: string[] = []
let keys: ApiKeys
let secret: string

beforeAll(async () => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: (error) => void errors.push(error) })
  keys.on('denied', (denial) => void denials.push(denial))
  ;({ secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' }))
})
afterAll(() => keys.close())
afterEach(() => {
  for (const each of [errors, denials, asked, deadlines]) each.splice(0)
})

/** Somebody has signed in where the cookie says so. */
const session: Login = {
  use(_req, res, next) {
    asked.push('session')
    res.setHeader('X-Session', 'seen')
    next()
  },
  signedIn: (req) => req.headers.cookie === 'session=alice',
}
/** `good.jwt.x` is a good token, and every other is a bad one. */
const tokens: Login = {
  from: bearer(),
  use(req, res, next) {
    asked.push('tokens')
    res.setHeader('X-Tokens', 'seen')
    const token = /^Bearer (.*)$/i.exec(req.headers.authorization ?? '')?.[1]
    Object.assign(req, { auth: token?.startsWith('good.jwt.') ? { sub: 'bob' } : undefined })
    next(token?.startsWith('good.jwt.') ? undefined : Object.assign(new Error('jwt expired'), { status: 401, code: 'invalid_token' }))
  },
  signedIn: (req) => (req as { auth?: unknown }).auth !== undefined,
}
/** Says who is in, in the body. */
const who: RequestHandler = (req, res) =>
  void res.json({ key: req.apiKey?.ownerId ?? null, auth: (req as { auth?: unknown }).auth ?? null })
const byError: ErrorRequestHandler = (error, _req, res, _next) =>
  void res.status(error.status ?? 500).json({ caught: error.code ?? error.message })

const bearing = (credential: string): string[] => ['Authorization', `Bearer ${credential}`]
const ALICE = ['Cookie', 'session=alice']
const KEY = { key: 'acme', auth: null }
const NOBODYS_KEY = { key: null, auth: null }

type Ask = (...headers: string[]) => Promise<Checked>
const frameworks = [
  ['Express 5', express5],
  ['Express 4', express4 as unknown as typeof express5],
] as const

async function serve(
  ways: readonly (RequestHandler | Login)[],
  framework: typeof express5 = express5,
  ...more: RequestHandler[]
): Promise<Ask> {
  const app = framework()
  app.all('/data', anyOf(...ways), ...more, who)
  // What a skipped route would end in.
  app.all('/data', (_req, res) => void res.json({ skipped: true }))
  app.use(byError)
  const url = await listen(app)
  return (...headers) => exchange(url, { method: 'GET', path: '/data', headers })
}
const auth = (options?: BearerAuthOptions): RequestHandler => bearerAuth(keys, options)

describe.each(frameworks)('anyOf on %s', (_name, framework) => {
  test('lets in by a key, a token or a session, whichever comes', async () => {
    for (const ways of [
      [auth(), tokens, session],
      [session, tokens, auth()],
    ]) {
      const ask = await serve(ways, framework)
      expect((await ask(...bearing(secret))).body).toEqual(KEY)
      expect((await ask(...bearing('good.jwt.x'))).body).toEqual({ key: null, auth: { sub: 'bob' } })
      expect((await ask(...ALICE)).body).toEqual(NOBODYS_KEY)
      expect(asked.splice(0)).toEqual(['tokens', 'session'])
    }
  })

  test('refuses a bad credential beside a good session, and does not ask the session', async () => {
    const ask = await serve([session, auth(), tokens], framework)
    const revoked = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    await keys.revoke({ as: 'application', id: revoked.key.id })
    for (const bad of [revoked.secret, `${secret}x`, 'bad.jwt.x', 'nonsense']) {
      const { status, body, headers } = await ask(...bearing(bad), ...ALICE)
      expect([bad, status, body.code]).toEqual([bad, 401, 'invalid_key'])
      expect(headers['www-authenticate']).toBe('Bearer realm="api", error="invalid_token"')
      expect([headers['x-session'], headers['x-tokens']]).toEqual([undefined, undefined])
    }
    expect(asked).not.toContain('session')
    expect(denials.map(({ code, reason }) => [code, reason])).toEqual([
      ['invalid_key', 'revoked'],
      ...Array.from({ length: 3 }, () => ['invalid_key', undefined]),
    ])
  })

  test('answers a request without any credential with the challenges of all ways, and nothing of a login', async () => {
    const ask = await serve(
      [auth({ from: [header('X-API-Key'), basic()], realm: 'acme' }), tokens, { ...tokens, from: scheme('DPoP') }, session],
      framework,
    )
    const { status, body, headers } = await ask()
    expect([status, body.code]).toEqual([401, 'credential_missing'])
    expect(headers['www-authenticate']).toBe(
      'ApiKey realm="acme", header="X-API-Key", Basic realm="acme", charset="UTF-8", Bearer realm="acme", DPoP realm="acme"',
    )
    expect([headers['x-session'], headers['x-tokens']]).toEqual([undefined, undefined])
    expect(asked).toEqual(['session'])
    const refused = await ask(...bearing('bad.jwt.x'))
    expect(refused.headers['www-authenticate']).toBe(
      'ApiKey realm="acme", header="X-API-Key", Basic realm="acme", charset="UTF-8", Bearer realm="acme", error="invalid_token", DPoP realm="acme"',
    )
    expect((await ask('X-API-Key', secret)).body).toEqual(KEY)
  })

  test('refuses two different credentials, wherever they are', async () => {
    const ask = await serve([auth({ from: header('X-API-Key') }), tokens, session], framework)
    for (const two of [
      ['X-API-Key', secret, ...bearing('good.jwt.x')],
      ['X-API-Key', secret, 'X-API-Key', secret],
      [...bearing('good.jwt.x'), ...bearing('good.jwt.y')],
    ]) {
      const { status, body } = await ask(...two)
      expect([status, body.code]).toEqual([400, 'credential_malformed'])
    }
    expect(asked).toEqual([])
  })

  test.each<[string, unknown]>([
    ['undefined', undefined],
    ["'route'", 'route'],
    ["'router'", 'router'],
    ['false', false],
    ['a text', 'why'],
  ])('lets nobody in where a login throws %s', async (_what, thrown) => {
    for (const login of [
      { ...session, use: () => Promise.reject(thrown) },
      { ...session, signedIn: () => Promise.reject(thrown) },
      {
        ...session,
        signedIn: () => {
          throw thrown
        },
      },
      ...(thrown === undefined ? [] : [{ ...session, use: ((_req, _res, next) => next(thrown)) as RequestHandler }]),
    ]) {
      const { status, body } = await (await serve([auth(), login], framework))(...ALICE)
      expect([status, body.code]).toEqual([500, 'internal_error'])
    }
    expect(errors.length).toBeGreaterThanOrEqual(3)
  })
})

test('an empty header is a credential that got lost, as is a key without its scheme, whoever has signed in', async () => {
  const ask = await serve([auth({ from: [bearer(), header('X-API-Key')] }), session])
  for (const lost of [
    ['X-API-Key', ''],
    ['Authorization', ' '],
    ['Authorization', 'Bearer '],
    ['Authorization', secret],
    ['Authorization', `Bearer\t${secret}`],
  ]) {
    const { status, body } = await ask(...lost, ...ALICE)
    expect([status, body.code]).toEqual([400, 'credential_malformed'])
  }
  expect(asked).toEqual([])
})

test('a token may be longer than any key, and goes to the login', async () => {
  const long = `good.jwt.${'x'.repeat(5_000)}`
  expect((await (await serve([auth(), tokens]))(...bearing(long))).body.auth).toEqual({ sub: 'bob' })
  for (const [ways, given] of [
    [[auth(), tokens], `good.jwt.${'x'.repeat(9_000)}`],
    [[auth(), session], long],
  ] as const) {
    expect((await (await serve(ways))(...bearing(given), ...ALICE)).status).toBe(400)
  }
})

test('what a route asks of a key holds: a good key without the scope is refused, whoever has signed in', async () => {
  const ask = await serve([auth({ scope: 'reports:read', realm: 'acme' }), { ...tokens, from: scheme('DPoP') }, session])
  const { status, headers } = await ask(...bearing(secret), ...ALICE)
  expect([status, headers['www-authenticate']]).toEqual([403, 'Bearer realm="acme", error="insufficient_scope", scope="reports:read"'])
  expect(asked).toEqual([])
})

test('no failure of the store lets a session in', async () => {
  const broken = createApiKeys({
    store: { ...memoryStore(), read: () => Promise.reject(new Error('down')), members: () => Promise.reject(new Error('down')) },
    serverSecret: SERVER_SECRET,
    onError: () => {},
  })
  const ask = await serve([bearerAuth(broken), session])
  const { status } = await ask(...bearing(secret), ...ALICE)
  expect([status >= 500, asked]).toEqual([true, []])
  expect((await ask(...ALICE)).status).toBe(200)
  await broken.close()
})

test('two kinds of keys may be sent in the same place: each goes to where its form is known', async () => {
  const partners = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, prefix: 'pk', onError: () => {} })
  const theirs = await partners.create({ as: 'application', ownerId: 'partner', name: 'n' })
  const ask = await serve([auth(), bearerAuth(partners), session])
  expect((await ask(...bearing(theirs.secret))).body.key).toBe('partner')
  expect((await ask(...bearing(secret))).body.key).toBe('acme')
  expect((await ask(...bearing('nonsense'), ...ALICE)).status).toBe(401)
  await partners.close()
})

test.each<[string, unknown]>([
  ['a session object', {}],
  ['a forgotten call', () => true],
  ['a name', 'alice'],
  ['1', 1],
  ['undefined', undefined],
  ['null', null],
])('signedIn that returns %s lets nobody in, and onError hears of it', async (_what, returned) => {
  const login = { signedIn: () => returned } as unknown as Login
  const { status, body } = await (await serve([auth(), login]))()
  expect([status, body.code]).toEqual([500, 'internal_error'])
  expect(errors.map(({ message }) => message)).toEqual(['signedIn() must return true or false.'])
})

test('a token that its login does not accept without an error is refused all the same', async () => {
  const lax: Login = { ...tokens, use: (_req, _res, next) => next(), signedIn: async () => false }
  const { status, body } = await (await serve([auth(), lax, session]))(...bearing('bad.jwt.x'), ...ALICE)
  expect([status, body.code, asked]).toEqual([401, 'invalid_key', []])
})

test('an error of a login that is no 401 goes to the error handler, and no other login is asked', async () => {
  const down: Login = {
    ...session,
    use: (_req, res, next) => next(Object.assign(new Error('no session store'), { status: 503 }, res.set('X-Down', '1') && {})),
  }
  const { status, body, headers } = await (await serve([auth(), down, session]))(...ALICE)
  expect([status, body, headers['x-down'], asked]).toEqual([503, { caught: 'no session store' }, undefined, []])
})

test('a login that does not answer in time is a 503, and what it does later changes nothing', async () => {
  const [begun, later] = [gate(), gate()]
  const hanging: Login = {
    use(_req, _res, next) {
      void later.passed.then(() => next())
      begun.open()
    },
    signedIn: () => true,
  }
  const ask = await serve([auth(), hanging, session])
  const answer = ask(...ALICE)
  await begun.passed
  deadlines.splice(0).forEach((fire) => {
    fire()
  })
  const { status, body, headers } = await answer
  expect([status, body.code, headers['retry-after'], asked]).toEqual([503, 'store_unavailable', '1', []])
  later.open()
  await new Promise(setImmediate)
})

function gate(): { passed: Promise<void>; open: () => void } {
  let open: () => void = () => {}
  const passed = new Promise<void>((resolve) => {
    open = resolve
  })
  return { passed, open }
}

test('a middleware that has answered by itself is not answered over', async () => {
  const own: Login = { use: (_req, res) => void res.status(418).json({ own: true }), signedIn: () => true }
  const both: Login = { use: (_req, res, next) => next(res.status(418).json({ own: true }) && undefined), signedIn: () => true }
  const failing: Login = { use: (_req, res, next) => next(res.status(418).json({ own: true }) && new Error('x')), signedIn: () => true }
  for (const login of [own, both, failing]) {
    const { status, body } = await (await serve([auth(), login, session]))(...ALICE)
    expect([status, body]).toEqual([418, { own: true }])
  }
  expect(asked).toEqual([])
})

test('headers of before are as they were, whatever a login that lets nobody in did to them', async () => {
  const app = express5()
  app.use((_req, res, next) => next(res.set({ 'X-Before': 'kept', Vary: 'Origin' }) && undefined))
  const meddling: Login = {
    use: (_req, res, next) => next(res.status(401).set({ 'X-Before': 'changed', 'X-Mine': '1' }).removeHeader('Vary') as undefined),
    signedIn: () => false,
  }
  app.get('/data', anyOf(auth({ optional: true }), meddling), who)
  const { status, headers } = await exchange(await listen(app), { method: 'GET', path: '/data' })
  expect([status, headers['x-before'], headers.vary, headers['x-mine']]).toEqual([200, 'kept', 'Origin', undefined])
})

test('the first bearerAuth says what becomes of nobody, and of preflights', async () => {
  const app = express5()
  app.use('/optional', anyOf(auth({ optional: true }), session), who)
  app.use('/preflight', anyOf(auth({ preflight: true }), session), who)
  const url = await listen(app)
  const preflight = ['Origin', 'https://a.example', 'Access-Control-Request-Method', 'GET']
  expect((await exchange(url, { method: 'GET', path: '/optional' })).body).toEqual(NOBODYS_KEY)
  expect((await exchange(url, { method: 'OPTIONS', path: '/preflight', headers: preflight })).status).toBe(200)
  expect((await exchange(url, { method: 'GET', path: '/preflight' })).status).toBe(401)
})

test('refusals of every way go through onFailure of the first bearerAuth', async () => {
  const ask = await serve([auth({ onFailure: 'next' }), tokens, session])
  for (const [headers, code] of [
    [[], 'credential_missing'],
    [bearing(`${secret}x`), 'invalid_key'],
    [bearing('bad.jwt.x'), 'invalid_key'],
    [[...bearing('a'), ...bearing('b')], 'credential_malformed'],
  ] as const) {
    expect((await ask(...headers)).body).toEqual({ caught: code })
  }
  let cause: unknown
  const told = await serve([
    auth({
      onFailure: (error, _req, res) => {
        cause = error.cause
        res.status(error.status).end()
      },
    }),
    tokens,
  ])
  await told(...bearing('bad.jwt.x'))
  expect((cause as Error).message).toBe('jwt expired')
})

test('requireScope behind it refuses whoever has no key, as the bearerAuth would', async () => {
  const ask = await serve([auth({ realm: 'acme' }), tokens, session], express5, requireScope('reports:read'))
  const { status, headers } = await ask(...ALICE)
  expect([status, headers['www-authenticate']]).toEqual([401, 'Bearer realm="acme"'])
  expect((await ask(...bearing(secret))).status).toBe(403)
})

test('hideCredential, grace headers and announcements are those of the bearerAuth', async () => {
  const made = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  await keys.rotate({ as: { secret: made.secret }, idempotencyKey: 'one', retire: { afterMs: 60_000 } })
  const hidden: RequestHandler = (req: Request, res) => void res.json({ seen: req.headers.authorization ?? null })
  const ask = await serve([auth({ hideCredential: true }), session], express5, hidden)
  const { status, body, headers } = await ask(...bearing(made.secret))
  expect([status, body]).toEqual([200, { seen: null }])
  expect(headers['api-key-expires-at']).toBeDefined()
})

test.each<[string, () => unknown]>([
  ['nothing', () => anyOf()],
  ['one way', () => anyOf(auth())],
  ['no bearerAuth', () => anyOf(session, tokens)],
  ['a middleware of its own', () => anyOf(auth(), (_req: Request, _res: unknown, next: () => void) => next())],
  ['another anyOf', () => anyOf(auth(), anyOf(auth(), session))],
  ['null', () => anyOf(auth(), null as unknown as Login)],
  ['a login without signedIn', () => anyOf(auth(), { use: session.use } as unknown as Login)],
  ['a login with an unknown option', () => anyOf(auth(), { ...session, using: 1 } as Login)],
  ['a use that is no function', () => anyOf(auth(), { ...session, use: true } as unknown as Login)],
  ['a bearerAuth in use', () => anyOf(auth(), { ...session, use: auth() })],
  ['a from that is no source', () => anyOf(auth(), { ...tokens, from: 'Bearer' } as unknown as Login)],
  ['an empty from', () => anyOf(auth(), { ...tokens, from: [] })],
])('%s is refused at start-up', (_what, start) => {
  expect(start).toThrow(expect.objectContaining({ code: 'invalid_option' }))
})
