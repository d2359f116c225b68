import express5, { type ErrorRequestHandler, type RequestHandler } from 'express'
import {
  ApiKeyError,
  type ApiKeys,
  anyOf,
  bearerAuth,
  contracts,
  createApiKeys,
  type Denial,
  idempotencyKey,
  keyLimit,
  keyRouter,
  memoryStore,
  type OnFailure,
  requireScope,
} from 'express-api-keys'
import express4 from 'express4'
import { type Checked, exchange } from '../support/contract.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const errors: ApiKeyError[] = []
const denials: Denial[] = []
let keys: ApiKeys
let secret: string

beforeAll(async () => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: (error) => void errors.push(error) })
  keys.on('denied', (denial) => void denials.push(denial))
  ;({ secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' }))
})
afterAll(() => keys.close())
afterEach(() => {
  errors.splice(0)
  denials.splice(0)
})

const presented = (given: string): string[] => ['Authorization', `Bearer ${given}`]

/** What every error handler of the kind that http-errors is for looks at. */
const byHttpErrors: ErrorRequestHandler = (error, _req, res, _next) => {
  res.set(error.headers ?? {})
  res.status(error.status ?? 500).json({ message: error.expose === true ? error.message : 'Internal Server Error' })
}
const byProblemDetails: ErrorRequestHandler = (error, req, res, _next) => {
  res.set(error.headers).status(error.status).type('application/problem+json')
  res.send(
    JSON.stringify({
      type: `https://acme.example/errors/${error.code}`,
      title: error.code,
      status: error.status,
      instance: req.originalUrl,
    }),
  )
}
const inOneShape: ErrorRequestHandler = (error, _req, res, _next) => {
  res
    .set(error.headers)
    .status(error.status)
    .json({ ok: false, error: { id: error.code, text: error.message } })
}
const FRENCH: { readonly [code in string]?: string } = {
  invalid_key: 'Clé invalide.',
  credential_missing: 'Clé absente.',
  insufficient_scope: 'Accès refusé.',
}
const translated: ErrorRequestHandler = (error, _req, res, _next) => {
  res
    .set(error.headers)
    .status(error.status)
    .json({ message: FRENCH[error.code] ?? 'Erreur.' })
}

async function serve(onFailure: OnFailure | undefined, handler: ErrorRequestHandler | undefined, framework: typeof express5 = express5) {
  const app = framework()
  app.use('/keys', keyRouter(keys, { onFailure }))
  app.use('/suwappu', keyRouter(keys, { onFailure, contract: contracts.suwappu }))
  app.use('/data', bearerAuth(keys, { onFailure }), (_req, res) => void res.json({ in: true }))
  app.use('/scoped', bearerAuth(keys, { onFailure, scope: 'reports:read', realm: 'acme' }), (_req, res) => void res.json({ in: true }))
  app.use('/once', idempotencyKey({ required: true, onFailure }), (_req, res) => void res.json({ in: true }))
  if (handler !== undefined) app.use(handler)
  const url = await listen(app)
  return (method: string, path: string, ...headers: string[]): Promise<Checked> => exchange(url, { method, path, headers })
}

describe.each([
  ['Express 5', express5],
  ['Express 4', express4 as unknown as typeof express5],
] as const)("onFailure: 'next' on %s", (_name, framework) => {
  test.each<[string, ErrorRequestHandler, unknown, unknown]>([
    [
      'looks at what http-errors has',
      byHttpErrors,
      { message: 'The API key is not valid.' },
      { message: 'This needs the scope reports:read.' },
    ],
    [
      'sends problem details',
      byProblemDetails,
      expect.objectContaining({ title: 'invalid_key', status: 401 }),
      expect.objectContaining({ title: 'insufficient_scope' }),
    ],
    [
      'has its own shape',
      inOneShape,
      { ok: false, error: { id: 'invalid_key', text: 'The API key is not valid.' } },
      expect.objectContaining({ ok: false }),
    ],
    ['translates by code', translated, { message: 'Clé invalide.' }, { message: 'Accès refusé.' }],
  ])('serves a handler that %s, with status and headers of the failure', async (_what, handler, invalid, lacking) => {
    const ask = await serve('next', handler, framework)
    const bad = await ask('GET', '/data', ...presented(`${secret}x`))
    expect([bad.status, bad.headers['www-authenticate'], bad.body]).toEqual([401, 'Bearer realm="api", error="invalid_token"', invalid])
    expect(bad.headers['cache-control']).toBe('no-store')
    const scoped = await ask('GET', '/scoped', ...presented(secret))
    expect([scoped.status, scoped.headers['www-authenticate'], scoped.body]).toEqual([
      403,
      'Bearer realm="acme", error="insufficient_scope", scope="reports:read"',
      lacking,
    ])
    expect((await ask('GET', '/data', ...presented(secret))).body).toEqual({ in: true })
    expect(denials.map(({ code }) => code)).toEqual(['invalid_key', 'insufficient_scope'])
  })

  test('covers the router, whatever its contract says, a path that cannot be decoded, and idempotencyKey', async () => {
    const ask = await serve('next', inOneShape, framework)
    const answers = [
      await ask('POST', '/keys/self/rotate', ...presented(`${secret}x`)),
      await ask('POST', '/suwappu/keys/rotate', ...presented(`${secret}x`)),
      await ask('POST', '/keys/%zz/rotate', ...presented(secret)),
      await ask('POST', '/once'),
    ]
    expect(answers.map(({ status, body }) => [status, body.error?.id])).toEqual([
      [401, 'invalid_key'],
      [401, 'invalid_key'],
      [400, 'invalid_request'],
      [400, 'idempotency_key_missing'],
    ])
    expect(denials.map(({ code }) => code)).toEqual(['invalid_key', 'invalid_key', 'invalid_request'])
  })

  test('does not change what a rotation does: a lost answer can be asked for again', async () => {
    const ask = await serve('next', inOneShape, framework)
    const made = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const rotate = (): Promise<Checked> => ask('POST', '/keys/self/rotate', ...presented(made.secret), 'Idempotency-Key', 'one')
    const [first, again] = [await rotate(), await rotate()]
    expect([first.status, again.status, again.body.secret]).toEqual([200, 200, first.body.secret])
  })
})

test('the application may know why, and JSON of the error does not say it', async () => {
  let told: ApiKeyError | undefined
  const ask = await serve((error, _req, res) => {
    told = error
    res.status(error.status).json({ ...error, message: error.message })
  }, undefined)
  const made = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  expect((await ask('GET', '/data', ...presented(made.secret))).status).toBe(200)
  await keys.revoke({ as: 'application', id: made.key.id })
  const { body } = await ask('GET', '/data', ...presented(made.secret))
  expect([told instanceof ApiKeyError, told?.code, told?.reason]).toEqual([true, 'invalid_key', 'revoked'])
  expect(JSON.stringify(body)).not.toContain('revoked')
})

test.each<[string, Exclude<OnFailure, string>]>([
  [
    'throws',
    () => {
      throw new Error('a bug')
    },
  ],
  ['rejects', () => Promise.reject(new Error('a bug'))],
  ['calls next with another error', (_error, _req, _res, next) => next(new Error('a bug'))],
])('a function that %s leaves the answer to the error handler', async (_what, onFailure) => {
  const handler: ErrorRequestHandler = (error, _req, res, _next) => void res.status(500).json({ caught: error.message })
  const ask = await serve(onFailure, handler)
  for (const path of ['/data', '/keys/00000000-0000-4000-8000-000000000000']) {
    const { status, body } = await ask('GET', path)
    expect([status, body]).toEqual([500, { caught: 'a bug' }])
  }
})

test.each<[string, Exclude<OnFailure, string>]>([
  ['throws undefined', () => throwing(undefined)],
  ['throws null', () => throwing(null)],
  ["throws 'route'", () => throwing('route')],
  ["throws 'router'", () => throwing('router')],
  ['throws 0', () => throwing(0)],
  ['rejects with undefined', () => Promise.reject()],
  ["rejects with 'route'", () => Promise.reject('route')],
])('a function that %s lets nobody in', async (_what, onFailure) => {
  const app = express5()
  app.get('/data', bearerAuth(keys, { onFailure }), (_req, res) => void res.json({ in: true }))
  app.get('/data', (_req, res) => void res.json({ in: true }))
  app.use(byHttpErrors)
  const { status, body } = await exchange(await listen(app), { method: 'GET', path: '/data' })
  expect([status, body]).toEqual([500, { message: 'Internal Server Error' }])
})

test.each<[string, Exclude<OnFailure, string>, number, unknown]>([
  ['has answered', (_error, _req, res) => throwing(new Error('a bug'), res.status(418).json({})), 418, {}],
  ['has called next', (error, _req, _res, next) => throwing(new Error('a bug'), next(error)), 401, { message: expect.any(String) }],
])('what a function throws after it %s is told to onError', async (_what, onFailure, status, body) => {
  const ask = await serve(onFailure, byHttpErrors)
  const answer = await ask('GET', '/data')
  expect([answer.status, answer.body]).toEqual([status, body])
  expect(errors.map(({ message, cause }) => [message, (cause as Error).message])).toEqual([['onFailure() has failed.', 'a bug']])
})

/** Throws, once whatever comes first is done. */
function throwing(what: unknown, ..._first: unknown[]): never {
  throw what
}

test('a function may let a request go on without a key', async () => {
  const app = express5()
  app.get(
    '/data',
    bearerAuth(keys, { onFailure: (_error, _req, _res, next) => next() }),
    (req, res) => void res.json({ key: req.apiKey ?? null }),
  )
  const url = await listen(app)
  expect((await exchange(url, { method: 'GET', path: '/data' })).body).toEqual({ key: null })
})

test.each([
  ['Express 5', express5],
  ['Express 4', express4 as unknown as typeof express5],
] as const)('on %s, strangers whom a function lets go on get no further than they should', async (_name, framework) => {
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['a'] })
  const given: unknown[] = []
  for (const passed of [undefined, null, 0, '', false]) {
    const app = framework()
    const onFailure: OnFailure = (_error, _req, _res, next) => next(passed)
    const who: RequestHandler = (req, res) => void res.json({ key: req.apiKey?.ownerId ?? null })
    app.use(bearerAuth(keys, { onFailure }))
    app.get('/open', who)
    app.get('/guarded', requireScope('b'), who)
    app.get('/limited', keyLimit(keys, { windowMs: 60_000, limit: 0 }), who)
    app.get('/live', bearerAuth(keys, { environment: 'test', onFailure }), who)
    app.get('/either', anyOf(bearerAuth(keys, { anyScope: ['b'], onFailure }), { signedIn: () => false }), who)
    app.use(((error, _req, res, _next) => void res.status(error.status).json({ caught: error.code })) as ErrorRequestHandler)
    const url = await listen(app)
    const ask = async (path: string, ...headers: string[]): Promise<unknown> => (await exchange(url, { method: 'GET', path, headers })).body
    const key = ['Authorization', `Bearer ${secret}`]
    expect([await ask('/open'), await ask('/open', ...key)]).toEqual([{ key: null }, { key: 'acme' }])
    expect([await ask('/guarded'), await ask('/guarded', ...key)]).toEqual([
      { caught: 'credential_missing' },
      { caught: 'insufficient_scope' },
    ])
    expect([await ask('/limited'), await ask('/limited', ...key)]).toEqual([{ caught: 'credential_missing' }, { caught: 'rate_limited' }])
    // The key that the first guard let in is not good enough for the second one.
    expect([await ask('/live', ...key), await ask('/either', ...key)]).toEqual([{ key: null }, { key: null }])
    given.push(passed)
  }
  expect(given).toHaveLength(5)
})

test("with 'next', what is wrong on the server is told to onError, and its message is not exposed", async () => {
  const broken = createApiKeys({
    store: { ...memoryStore(), read: () => Promise.reject(new TypeError('a bug with sk_live_x in it')) },
    serverSecret: SERVER_SECRET,
    onError: (error) => void errors.push(error),
  })
  const app = express5()
  app.get('/data', bearerAuth(broken, { onFailure: 'next' }), (_req, res) => void res.json({}))
  app.use(byHttpErrors)
  const { status, body } = await exchange(await listen(app), { method: 'GET', path: '/data', headers: presented(secret) })
  expect([status, body]).toEqual([500, { message: 'Internal Server Error' }])
  expect(errors.map(({ code }) => code)).toContain('internal_error')
  await broken.close()
})

test.each([['reply'], [7], [null], [{}]])('onFailure: %j is refused at start-up', (onFailure) => {
  const given = onFailure as unknown as OnFailure
  for (const start of [
    () => bearerAuth(keys, { onFailure: given }),
    () => keyRouter(keys, { onFailure: given }),
    () => idempotencyKey({ onFailure: given }),
  ]) {
    expect(start).toThrow(expect.objectContaining({ code: 'invalid_option' }))
  }
})
