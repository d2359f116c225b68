import express5, { type Request } from 'express'
import { ApiKeyError, type ApiKeys, createApiKeys, keyRouter, memoryStore, type Operator, type OperatorOf } from 'express-api-keys'
import express4 from 'express4'
import supertest from 'supertest'
import { SERVER_SECRET } from '../support/process.js'

const ADA: Operator = {
  issuer: 'the login',
  subject: 'ada',
  scopes: ['api_keys:read', 'api_keys:write'],
  owners: ['acme'],
  grants: { scopes: ['reports:read'], environments: ['live'] },
}
const OWN = { host: 'app.example', origin: 'http://app.example', cookie: 'sid=1' }

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
])('on %s', (_name, framework) => {
  let keys: ApiKeys
  let errors: ApiKeyError[]

  beforeEach(() => {
    errors = []
    keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: (error) => errors.push(error) })
  })

  function serve(operators: OperatorOf, trustedOrigins?: string[]): ReturnType<typeof supertest> {
    const app = framework()
    app.set('trust proxy', 'loopback')
    app.use('/keys', keyRouter(keys, { operators, ...(trustedOrigins === undefined ? {} : { trustedOrigins }) }))
    return supertest(app)
  }

  const create = (agent: ReturnType<typeof supertest>, headers: object, body: object = {}): supertest.Test =>
    agent
      .post('/keys')
      .set(headers as { [name: string]: string })
      .send({ name: 'made', ownerId: 'acme', scopes: ['reports:read'], ...body })

  const countOf = async (): Promise<number> => (await keys.list({ ownerId: 'acme' })).items.length

  test.each<[string, OperatorOf]>([
    ['at once', () => ADA],
    ['later', async () => ADA],
  ])('who is signed in manages the keys of its owners, also where that is said %s', async (_when, operators) => {
    const agent = serve(operators)
    const made = await create(agent, OWN)
    expect([made.status, made.body.key.ownerId]).toEqual([201, 'acme'])
    const listed = await agent.get('/keys?ownerId=acme').set('cookie', 'sid=1')
    expect([listed.status, listed.body.keys]).toMatchObject([200, [{ id: made.body.key.id }]])
    const [event] = (await keys.events({ id: made.body.key.id }))?.items ?? []
    expect(event?.actor).toBe('operator:ada@the login')
    expect((await create(agent, OWN, { ownerId: 'rival' })).status).toBe(403)
  })

  test('nobody who is signed in hands out more than the application has named', async () => {
    const agent = serve(() => ADA)
    const refused = [{ scopes: ['*'] }, { scopes: ['reports:write'] }, { scopes: ['api_keys:write'] }, { environment: 'test' }]
    for (const fields of refused) expect((await create(agent, OWN, fields)).status).toBe(403)
    const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'wide', scopes: ['admin:all'] })
    for (const [method, path, body] of [
      ['patch', `/keys/${key.id}`, { scopes: ['admin:all', 'reports:read'] }],
      ['post', `/keys/${key.id}/rotate`, {}],
    ] as const) {
      expect((await agent[method](path).set(OWN).send(body)).status).toBe(403)
    }
    expect((await keys.get(key.id))?.generation).toBe(1)
  })

  test('an operator without grants hands out nothing', async () => {
    const { grants: _, ...rest } = ADA
    const agent = serve(() => rest)
    for (const scopes of [['*'], ['reports:read'], []]) expect((await create(agent, OWN, { scopes })).status).toBe(403)
    expect(await countOf()).toBe(0)
  })

  test('a key wins, and nobody is asked who is signed in; a key that is bad, doubled, empty or without its scheme is no way to the login', async () => {
    const asked: Request[] = []
    const agent = serve((req) => {
      asked.push(req)
      return ADA
    })
    const { secret } = await keys.create({ as: 'application', ownerId: 'rival', name: 'n', scopes: ['api_keys:read'] })
    const list = (authorization: string): supertest.Test => agent.get('/keys').set({ ...OWN, authorization })
    expect((await list(`Bearer ${secret}`)).body.keys).toMatchObject([{ ownerId: 'rival' }])
    for (const [authorization, status] of [
      [`Bearer ${secret.slice(0, -1)}`, 401],
      [`Bearer ${secret} ${secret}`, 400],
      ['Bearer ', 400],
      ['', 400],
      [secret, 400],
      [`"${secret}"`, 400],
      [`Bearer\t${secret}`, 400],
      [`Bearer:${secret}`, 400],
    ] as const) {
      expect((await list(authorization)).status).toBe(status)
    }
    expect(asked).toEqual([])
  })

  test.each<[string, { [name: string]: string }, number]>([
    ['from a page of this origin', { 'sec-fetch-site': 'same-origin' }, 201],
    ['from a sub-domain', { 'sec-fetch-site': 'same-site', origin: 'http://evil.app.example' }, 403],
    ['from another site', { 'sec-fetch-site': 'cross-site', origin: 'http://evil.example' }, 403],
    ['from the address bar', { 'sec-fetch-site': 'none' }, 403],
    ['of a site that is nothing', { 'sec-fetch-site': '' }, 403],
    ['from an old browser, of this origin', {}, 201],
    ['from an old browser, of another host', { origin: 'http://evil.example' }, 403],
    ['from an old browser, of another scheme', { origin: 'https://app.example' }, 403],
    ['from an old browser, of another port', { origin: 'http://app.example:8080' }, 403],
    ['from a sandboxed frame', { origin: 'null' }, 403],
    ['from a sandboxed frame of a browser of today', { origin: 'null', 'sec-fetch-site': 'cross-site' }, 403],
    ['with a list of origins', { origin: 'http://app.example, http://evil.example' }, 403],
    ['from a page that the application trusts', { 'sec-fetch-site': 'cross-site', origin: 'https://console.example' }, 201],
    ['from a page that looks like it', { 'sec-fetch-site': 'cross-site', origin: 'https://console.example.evil.example' }, 403],
    ['with a cookie, and nothing that says where from', { origin: '' }, 403],
  ])('a change %s: %j answers %i', async (_whence, headers, status) => {
    const asked: Request[] = []
    const agent = serve(
      (req) => {
        asked.push(req)
        return ADA
      },
      ['https://console.example'],
    )
    const { origin, ...rest } = { ...OWN, ...headers }
    const answer = await create(agent, { ...rest, ...(origin === '' ? {} : { origin }) })
    expect([answer.status, status === 403 ? answer.body.code : 'cross_origin']).toEqual([status, 'cross_origin'])
    expect([await countOf(), asked.length]).toEqual(status === 201 ? [1, 1] : [0, 0])
  })

  test('behind a proxy that is trusted, the origin is what the proxy says', async () => {
    const agent = serve(() => ADA)
    const proxied = { ...OWN, host: '10.0.0.7:3000', 'x-forwarded-host': 'app.example', 'x-forwarded-proto': 'https' }
    expect((await create(agent, { ...proxied, origin: 'https://app.example' })).status).toBe(201)
    expect((await create(agent, { ...proxied, origin: 'http://app.example' })).status).toBe(403)
  })

  test('a client with neither an origin nor cookies is no browser, and is asked about', async () => {
    const agent = serve((req) => (req.get('x-internal-user') === 'ada' ? ADA : undefined))
    expect((await create(agent, { 'x-internal-user': 'ada' })).status).toBe(201)
    const nobody = await create(agent, {})
    expect([nobody.status, nobody.body.code]).toEqual([401, 'credential_missing'])
  })

  test('reading needs no origin', async () => {
    const agent = serve(() => ADA)
    expect((await agent.get('/keys?ownerId=acme').set({ ...OWN, origin: 'http://evil.example' })).status).toBe(200)
  })

  test.each<[string, unknown, number, string]>([
    ['throws', () => Promise.reject(new Error('the session store of acme is away')), 503, 'operators_unavailable'],
    ['refuses by itself', () => Promise.reject(new ApiKeyError('invalid_key', 'Sign in again.')), 401, 'invalid_key'],
    ['returns nobody', () => undefined, 401, 'credential_missing'],
    ['returns null', () => null, 401, 'credential_missing'],
    ...[true, 7, 'ada', [], {}, { ...ADA, owners: 'acme' }, { ...ADA, owners: undefined }, { ...ADA, scopes: 'api_keys:write' }].map(
      (nonsense): [string, unknown, number, string] => [`returns ${JSON.stringify(nonsense)}`, () => nonsense, 500, 'internal_error'],
    ),
    ['returns an operator with grants that are none', () => ({ ...ADA, grants: { scopes: '*' } }), 500, 'internal_error'],
    ['returns one with a name of control characters', () => ({ ...ADA, subject: 'a\nb' }), 500, 'internal_error'],
    ['returns one with a field that is not known', () => ({ ...ADA, owner: 'acme' }), 500, 'internal_error'],
  ])('a function that %s changes nothing, and tells the client nothing of it', async (_what, operators, status, code) => {
    const answer = await create(serve(operators as OperatorOf), OWN)
    expect([answer.status, answer.body.code]).toEqual([status, code])
    expect(JSON.stringify(answer.body)).not.toMatch(/session store|acme/)
    expect(await countOf()).toBe(0)
    expect(errors.map((error) => error.code)).toEqual(status >= 500 ? [code] : [])
  })

  test('a function that never answers is waited for up to five seconds', async () => {
    const real = setTimeout
    jest
      .spyOn(globalThis, 'setTimeout')
      .mockImplementation(((run: () => void, ms?: number) => real(run, ms === 5_000 ? 20 : ms)) as typeof setTimeout)
    const answer = await create(
      serve(() => new Promise(() => {})),
      OWN,
    )
    jest.restoreAllMocks()
    expect([answer.status, answer.body.code, await countOf()]).toEqual([503, 'operators_unavailable', 0])
  })

  test('a body that was sent before anybody is known arrives whole', async () => {
    const agent = serve(async () => {
      await new Promise((resolve) => setTimeout(resolve, 50))
      return ADA
    })
    const name = 'n'.repeat(100)
    expect((await create(agent, OWN, { name })).body.key.name).toBe(name)
  })

  test('what the application changes about an operator afterwards changes nothing', async () => {
    const mine = { ...ADA, scopes: ['api_keys:read'], owners: ['acme'] }
    const agent = serve(() => {
      setImmediate(() => mine.scopes.push('api_keys:write'))
      return mine
    })
    expect((await create(agent, OWN)).status).toBe(403)
  })

  test('a repeated request of a person gets the recorded answer', async () => {
    const agent = serve(() => ADA)
    const headers = { ...OWN, 'idempotency-key': 'b1d6c8a4-7a52-4d4f-9a3e-7f0f6f2c1f5e' }
    const [first, second] = [await create(agent, headers), await create(agent, headers)]
    expect([second.headers['idempotent-replayed'], second.body]).toEqual(['true', first.body])
    expect(await countOf()).toBe(1)
  })
})

test.each<[unknown, string]>([
  [{ operators: 'ada' }, 'operators must be'],
  [{ operators: {} }, 'operators must be'],
  [{ trustedOrigins: ['https://a.example'] }, 'trustedOrigins is for operators that are a function'],
  [{ operators: () => ADA, trustedOrigins: ['*'] }, 'trustedOrigins must list origins'],
  [{ operators: () => ADA, trustedOrigins: ['null'] }, 'trustedOrigins must list origins'],
  [{ operators: () => ADA, trustedOrigins: ['https://a.example/'] }, 'write "https://a.example"'],
  [{ operators: () => ADA, trustedOrigins: 'https://a.example' }, 'trustedOrigins must be a list'],
])('%p is refused at start-up', (options, message) => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  expect(() => keyRouter(keys, options as object)).toThrow(message)
})
