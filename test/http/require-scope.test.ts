import express5 from 'express'
import {
  ApiKeyError,
  type ApiKeys,
  bearer,
  bearerAuth,
  createApiKeys,
  type Denial,
  header,
  keyLimit,
  memoryStore,
  requireScope,
} from 'express-api-keys'
import express4 from 'express4'
import { type Checked, exchange } from '../support/contract.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const denials: Denial[] = []
let keys: ApiKeys

beforeAll(() => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: () => {} })
  keys.on('denied', (denial) => void denials.push(denial))
})
afterAll(() => keys.close())
afterEach(() => void denials.splice(0))

const make = async (scopes: string[], environment: 'live' | 'test' = 'live'): Promise<string> =>
  (await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes, environment })).secret

const asker =
  (url: string) =>
  (path: string, secret?: string): Promise<Checked> =>
    exchange(url, { method: 'GET', path, ...(secret === undefined ? {} : { secret }) })

describe.each([
  ['Express 5', express5],
  ['Express 4', express4 as unknown as typeof express5],
] as const)('on %s', (_name, framework) => {
  async function serve(): Promise<ReturnType<typeof asker>> {
    const app = framework()
    const inner = framework()
    inner.get('/reports', requireScope('reports:read'), (_req, res) => void res.json({ in: true }))
    app.use(bearerAuth(keys, { realm: 'acme' }))
    app.use('/inner', inner)
    app.get('/both', requireScope(['reports:read', 'reports:write']), (_req, res) => void res.json({ in: true }))
    app.get('/any', requireScope({ anyScope: ['reports:read', 'reports:write'] }), (_req, res) => void res.json({ in: true }))
    app.get('/live', requireScope({ environment: 'live' }), (_req, res) => void res.json({ in: true }))
    app.get('/admin', requireScope('api_keys:admin'), (_req, res) => void res.json({ in: true }))
    return asker(await listen(app))
  }

  test('a route behind a global bearerAuth asks for its own scopes, by wildcards too', async () => {
    const ask = await serve()
    const [reader, writer, all, some, none] = [
      await make(['reports:read']),
      await make(['reports:write']),
      await make(['*']),
      await make(['reports:*']),
      await make(['report:*', 'reports']),
    ]
    const statuses = async (path: string): Promise<number[]> => {
      const found: number[] = []
      for (const secret of [reader, writer, all, some, none]) found.push((await ask(path, secret)).status)
      return found
    }
    expect(await statuses('/inner/reports')).toEqual([200, 403, 200, 200, 403])
    expect(await statuses('/both')).toEqual([403, 403, 200, 200, 403])
    expect(await statuses('/any')).toEqual([200, 200, 200, 200, 403])
    expect(await statuses('/admin')).toEqual([403, 403, 403, 403, 403])
  })

  test('a refusal says what is missing, under the realm of the bearerAuth, and denied hears of it', async () => {
    const ask = await serve()
    const secret = await make(['reports:read'])
    const both = await ask('/both', secret)
    expect([both.status, both.body.detail]).toEqual([403, 'This needs the scope reports:write.'])
    expect(both.headers['www-authenticate']).toBe('Bearer realm="acme", error="insufficient_scope", scope="reports:read reports:write"')
    const any = await ask('/any', await make([]))
    expect(any.body.detail).toBe('This needs one of the scopes reports:read, reports:write.')
    expect(denials.map(({ code }) => code)).toEqual(['insufficient_scope', 'insufficient_scope'])
    // Who holds no key learns nothing of it.
    expect(JSON.stringify([await ask('/both'), await ask('/both', `${secret}x`)])).not.toContain('reports')
  })

  test('test keys do not pass a live route, and their holder is told why', async () => {
    const ask = await serve()
    const { status, body } = await ask('/live', await make(['*'], 'test'))
    expect([status, body.code, body.detail]).toEqual([
      403,
      'wrong_environment',
      'This needs a live key, and the one presented is a test key.',
    ])
    expect((await ask('/live', await make([]))).status).toBe(200)
  })
})

test('bearerAuth takes the same options', async () => {
  const app = express5()
  app.get('/any', bearerAuth(keys, { anyScope: ['a', 'b'] }), (_req, res) => void res.json({}))
  app.get('/test', bearerAuth(keys, { environment: 'test', scope: 'a' }), (_req, res) => void res.json({}))
  const ask = asker(await listen(app))
  const [a, b, c, testA] = [await make(['a']), await make(['b']), await make(['c']), await make(['a'], 'test')]
  expect([(await ask('/any', a)).status, (await ask('/any', b)).status, (await ask('/any', c)).status]).toEqual([200, 200, 403])
  expect([(await ask('/test', a)).body.code, (await ask('/test', testA)).status]).toEqual(['wrong_environment', 200])
})

test('behind an optional bearerAuth a request without a key is asked for one', async () => {
  const app = express5()
  app.use(bearerAuth(keys, { optional: true, from: [bearer(), header('X-API-Key')] }))
  app.get('/a', requireScope('a'), (_req, res) => void res.json({}))
  const ask = asker(await listen(app))
  const missing = await ask('/a')
  expect([missing.status, missing.headers['www-authenticate']]).toEqual([401, 'Bearer realm="api", ApiKey realm="api", header="X-API-Key"'])
  expect((await ask('/a', await make(['a']))).status).toBe(200)
})

test('CORS preflights that bearerAuth lets pass are asked for no key by what stands behind it, and nothing else passes without one', async () => {
  const app = express5()
  app.use('/strict', bearerAuth(keys))
  app.use('/open', bearerAuth(keys, { preflight: true, optional: true }))
  const behind = [requireScope('a'), requireScope({ environment: 'live' }), keyLimit(keys, { windowMs: 60_000, limit: 0 })]
  for (const [index, one] of behind.entries()) app.use([`/strict/${index}`, `/open/${index}`], one, (_req, res) => void res.json({}))
  const url = await listen(app)
  const headers = ['Origin', 'https://app.example', 'Access-Control-Request-Method', 'GET']
  for (const index of behind.keys()) {
    const ask = async (method: string, path: string, sent: string[] = headers): Promise<number> =>
      (await exchange(url, { method, path: `${path}/${index}`, headers: sent })).status
    expect(await ask('OPTIONS', '/open')).toBe(200)
    expect([await ask('GET', '/open'), await ask('OPTIONS', '/open', headers.slice(2)), await ask('OPTIONS', '/strict')]).toEqual([
      401, 401, 401,
    ])
    // Not even a preflight lets a key through that may not pass.
    const [test, limited] = [await make([], 'test'), index === 2 ? 429 : 403]
    expect(await ask('OPTIONS', '/open', [...headers, 'Authorization', `Bearer ${test}`])).toBe(limited)
  }
})

test('a request that bearerAuth let in goes on when its key is revoked meanwhile, and the next one does not', async () => {
  const app = express5()
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['a'] })
  app.use(bearerAuth(keys))
  app.use((_req, _res, next) => void keys.revoke({ as: 'application', id: key.id }).then(() => next(), next))
  app.get('/a', requireScope('a'), (_req, res) => void res.json({}))
  const ask = asker(await listen(app))
  expect([(await ask('/a', secret)).status, (await ask('/a', secret)).status]).toEqual([200, 401])
})

test.each<[string, unknown]>([
  ['a text', 'sk_live_x'],
  ['a key without scopes', { id: 'x' }],
  ['null', null],
])('nobody passes where the application has set req.apiKey to %s', async (_what, apiKey) => {
  const said = jest.spyOn(console, 'error').mockImplementation(() => {})
  const app = express5()
  app.use((req, _res, next) => {
    req.apiKey = apiKey as never
    next()
  })
  app.get('/scope', requireScope('a'), (_req, res) => void res.json({}))
  app.get('/any', requireScope({ anyScope: ['a'] }), (_req, res) => void res.json({}))
  app.get('/live', requireScope({ environment: 'live' }), (_req, res) => void res.json({}))
  const ask = asker(await listen(app))
  for (const path of ['/scope', '/any', '/live']) expect([403, 500]).toContain((await ask(path)).status)
  said.mockRestore()
})

test('an optional bearerAuth leaves the key of one before it', async () => {
  const app = express5()
  app.use(bearerAuth(keys, { from: header('X-API-Key') }))
  app.get('/a', bearerAuth(keys, { optional: true }), requireScope('a'), (_req, res) => void res.json({}))
  const url = await listen(app)
  expect((await exchange(url, { method: 'GET', path: '/a', headers: ['X-API-Key', await make(['a'])] })).status).toBe(200)
})

test('a refusal goes where those of the bearerAuth go', async () => {
  const app = express5()
  app.use(bearerAuth(keys, { onFailure: 'next' }))
  app.get('/a', requireScope('a'), (_req, res) => void res.json({}))
  app.use(((error, _req, res, _next) => void res.status(error.status).json({ mine: error.code })) as express5.ErrorRequestHandler)
  expect((await asker(await listen(app))('/a', await make([]))).body).toEqual({ mine: 'insufficient_scope' })
})

test('without a bearerAuth before it nobody passes: 500, and stderr says what is wrong', async () => {
  const said = jest.spyOn(console, 'error').mockImplementation(() => {})
  const app = express5().get('/a', requireScope('a'), (_req, res) => void res.json({}))
  expect((await asker(await listen(app))('/a', await make(['a']))).status).toBe(500)
  expect(said).toHaveBeenCalledWith(expect.stringContaining('no bearerAuth stands before requireScope'))
  said.mockRestore()
})

test.each<[string, unknown]>([
  ['nothing', undefined],
  ['an empty list', []],
  ['no options', {}],
  ['a scope that came out undefined', { scope: undefined }],
  ['an environment that came out undefined', { environment: undefined }],
  ['an unknown environment', { environment: 'prod' }],
  ['an unknown option', { scopes: ['a'] }],
  ['an empty scope', { scope: [] }],
  ['an empty scope beside an environment', { scope: [], environment: 'live' }],
  ['an empty anyScope', { anyScope: [] }],
  ['anyScope as a text', { anyScope: 'a' }],
  ['a list with a hole', { scope: new Array(1) }],
  ['two scopes in one', 'a b'],
  ['a wildcard', 'reports:*'],
  ['a "*" inside', { anyScope: ['reports:*:read'] }],
])('refuses at start-up: %s', (_what, wanted) => {
  expect(() => requireScope(wanted as string)).toThrow(ApiKeyError)
  if (typeof wanted === 'object' && wanted !== null && !Array.isArray(wanted) && Object.keys(wanted).length > 0) {
    expect(() => bearerAuth(keys, wanted)).toThrow(ApiKeyError)
  }
})

test.each(['a*', 'reports:*:read', '**', '*:read', 'reports:**'])(
  'a key cannot have the scope %s, which would mean nothing',
  async (scope) => {
    const created = keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: [scope] })
    await expect(created).rejects.toMatchObject({ code: 'invalid_request', message: expect.stringContaining('"*" only at its end') })
    const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['reports:*', '*'] })
    await expect(keys.update({ as: 'application', id: key.id, changes: { scopes: [scope] } })).rejects.toMatchObject({
      code: 'invalid_request',
    })
  },
)
