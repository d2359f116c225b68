import { request } from 'node:http'
import express5 from 'express'
import { ApiKeyError, bearerAuth, createApiKeys, idempotencyKey, keyRouter, memoryStore } from 'express-api-keys'
import express4 from 'express4'
import supertest from 'supertest'
import { exchange } from '../support/contract.js'
import { type Instance, serve } from '../support/instance.js'
import { type Answer, call } from '../support/traffic.js'

const FOREIGN = '01890000-0000-7000-8000-000000000000'

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
])('on %s', (_name, framework) => {
  let here: Instance
  let admin: { id: string; secret: string }
  let worker: { id: string; secret: string }

  beforeEach(async () => {
    here = await serve(memoryStore(), {}, framework)
    const issue = async (name: string, scopes: string[]): Promise<{ id: string; secret: string }> => {
      const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name, scopes })
      return { id: key.id, secret }
    }
    admin = await issue('admin', ['api_keys:read', 'api_keys:write', 'reports:read'])
    worker = await issue('worker', [])
  })

  const ask = (path: string, options: Parameters<typeof call>[1] = {}): Promise<Answer> =>
    call(here.url + path, { secret: admin.secret, ...options })
  const post = (path: string, options: Parameters<typeof call>[1] = {}): Promise<Answer> => ask(path, { method: 'POST', ...options })

  describe('bearerAuth', () => {
    test('lets a good key through and tells the route which one it was', async () => {
      const answer = await call(`${here.url}/data`, { secret: worker.secret })
      expect([answer.status, answer.body]).toEqual([200, { id: worker.id }])
    })

    test('gives the request its key and no other, whoever looks at it how', async () => {
      const app = framework()
      const seen: (string | undefined)[][] = []
      const look: express5.RequestHandler = (req, _res, next) => {
        const [derived, proxy] = [Object.create(req), new Proxy(req, {})]
        seen.push([req, derived, proxy].map((each) => each.apiKey?.id))
        // Stays on the derived object.
        derived.apiKey = { id: 'another key' }
        expect(derived.apiKey.id).toBe('another key')
        next()
      }
      const inner = framework()
      inner.use(look, bearerAuth(here.keys), look)
      app.use('/guarded', inner, look)
      app.use(look, (req, res) => {
        req.apiKey = undefined
        look(req, res, () => res.end())
      })
      const [without, other] = [
        await supertest(app).get('/'),
        await here.keys.create({ as: 'application', ownerId: 'acme', name: 'another' }),
      ]
      expect(without.status).toBe(200)
      for (const { secret } of [worker, other]) await supertest(app).get('/guarded').auth(secret, { type: 'bearer' }).expect(200)
      const none = [undefined, undefined, undefined]
      const through = (id: string): (string | undefined)[][] => [none, [id, id, id], [id, id, id], [id, id, id], none]
      expect(seen).toEqual([none, none, ...through(worker.id), ...through(other.key.id)])
      // One request, two applications of two copies of Express: each has the property of its own.
      const [five, four] = [express5(), express4()]
      four.use(bearerAuth(here.keys), (req, res) => res.json(req.apiKey?.id))
      five.use(bearerAuth(here.keys), (req, res, next) => (req.query.on === undefined ? res.json(req.apiKey?.id) : next()), four)
      for (const path of ['/', '/?on']) {
        const { body } = await supertest(five).get(path).auth(worker.secret, { type: 'bearer' })
        expect(body).toBe(worker.id)
      }
    })

    test('is not outdone by an apiKey that somebody put on the request, or before its prototype', async () => {
      const app = framework()
      app.use('/own', (req, _res, next) => {
        Object.defineProperty(req, 'apiKey', { value: { id: 'forged' }, writable: true })
        next()
      })
      app.use('/derived', (req, res, next) => {
        const derived = Object.create(req)
        bearerAuth(here.keys)(derived, res, (error) => (error === undefined ? res.json([derived.apiKey?.id, req.apiKey?.id]) : next(error)))
      })
      const between = framework()
      between.use(bearerAuth(here.keys), (req, res) => res.json(req.apiKey?.id))
      app.use('/between', between)
      app.use(bearerAuth(here.keys), (req, res) => res.json(req.apiKey?.id))
      const id = async (path: string): Promise<unknown> => (await supertest(app).get(path).auth(worker.secret, { type: 'bearer' })).body
      expect([await id('/'), await id('/own'), await id('/between')]).toEqual([worker.id, worker.id, worker.id])
      // Who is let in is the derived request; the other one asked for nothing.
      expect(await id('/derived')).toEqual([worker.id, null])
      between.request.apiKey = { id: 'forged' } as never
      expect(await id('/between')).toBe(worker.id)
    })

    test('gives its key also to what only looks like a request of Express, and leaves an apiKey of others alone', async () => {
      await here.keys.verify(worker.secret)
      for (const prototype of [Object.prototype, { apiKey: 'of others' }]) {
        const req = Object.assign(Object.create(prototype), { headers: { authorization: `Bearer ${worker.secret}` } })
        const next = jest.fn()
        bearerAuth(here.keys)(req, {} as never, next)
        expect([next.mock.calls.length, Object.hasOwn(req, 'apiKey'), req.apiKey.id]).toEqual([1, true, worker.id])
      }
      expect('apiKey' in {}).toBe(false)
    })

    test.each([
      ['no header', [], 401, 'credential_missing', 'Bearer realm="api"'],
      ['another scheme', ['Basic YTpi'], 401, 'credential_missing', 'Bearer realm="api"'],
      ['a scheme that only begins like it', ['Bearers x'], 401, 'credential_missing', 'Bearer realm="api"'],
      ['the scheme alone', ['Bearer'], 400, 'credential_malformed', 'Bearer realm="api", error="invalid_request"'],
      ['two tokens', ['Bearer a b'], 400, 'credential_malformed', 'Bearer realm="api", error="invalid_request"'],
      ['a list of tokens', ['Bearer a, Bearer b'], 400, 'credential_malformed', 'Bearer realm="api", error="invalid_request"'],
      ['two headers', ['Bearer GOOD', 'Bearer GOOD'], 400, 'credential_malformed', 'Bearer realm="api", error="invalid_request"'],
      [
        'more than 1,024 characters',
        [`Bearer ${'a'.repeat(1_020)}`],
        400,
        'credential_malformed',
        'Bearer realm="api", error="invalid_request"',
      ],
      ['a token that is no key', ['Bearer abc'], 401, 'invalid_key', 'Bearer realm="api", error="invalid_token"'],
      ['a key with a typo', ['Bearer TYPO'], 401, 'invalid_key', 'Bearer realm="api", error="invalid_token"'],
      ['a rotation secret', [`Bearer rot_live_${'0'.repeat(49)}`], 401, 'invalid_key', 'Bearer realm="api", error="invalid_token"'],
    ])('refuses %s', async (_what, headers, status, code, challenge) => {
      const typo = `${worker.secret.slice(0, -1)}${worker.secret.endsWith('0') ? '1' : '0'}`
      const sent = headers.map((header) => header.replace('GOOD', worker.secret).replace('TYPO', typo))
      for (const [method, path] of [
        ['GET', '/data'],
        ['POST', '/keys/self/rotate'],
      ] as const) {
        const answer = await raw(
          here.url,
          method,
          path,
          sent.flatMap((value) => ['Authorization', value]),
        )
        expect([answer.status, answer.body]).toMatchObject([status, { status, code }])
        expect(answer.headers['www-authenticate']).toBe(challenge)
        expect(answer.headers['content-type']).toBe('application/problem+json')
        expect(answer.headers['cache-control']).toBe('no-store')
      }
      expect((await here.keys.get(worker.id))?.generation).toBe(1)
    })

    test('takes the scheme in any case, and a space or more', async () => {
      for (const header of [`bearer ${worker.secret}`, `BEARER   ${worker.secret}`]) {
        expect((await raw(here.url, 'GET', '/data', ['Authorization', header])).status).toBe(200)
      }
    })

    test('answers alike to an unknown, an expired, a revoked and a rotated key', async () => {
      const expired = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'e' })
      await here.keys.update({ as: 'application', id: expired.key.id, changes: { expiresAt: '2020-01-01T00:00:00Z' } })
      const revoked = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'r' })
      await here.keys.revoke({ as: 'application', id: revoked.key.id })
      await here.keys.rotate({ as: 'application', id: worker.id })
      const unknown = await createApiKeys({ store: memoryStore(), serverSecret: 'x'.repeat(32) }).create({
        as: 'application',
        ownerId: 'o',
        name: 'u',
      })
      const answers = await Promise.all(
        [expired.secret, revoked.secret, worker.secret, unknown.secret].map((secret) => call(`${here.url}/data`, { secret })),
      )
      for (const { status, body } of answers) expect([status, body]).toEqual([401, answers[0]?.body])
    })

    test('asks for the scope that is missing', async () => {
      const answer = await call(`${here.url}/scoped`, { secret: worker.secret })
      expect([answer.status, answer.body]).toMatchObject([403, { code: 'insufficient_scope' }])
      expect(answer.headers.get('www-authenticate')).toBe('Bearer realm="api", error="insufficient_scope", scope="reports:read"')
      expect((await ask('/scoped')).status).toBe(200)
    })

    test('P3: a verdict that is over by the time it is used is asked for once more, and then no request is let in with it', async () => {
      const { keys } = here
      let asked = 0
      const paused: typeof keys = Object.assign(Object.create(keys), {
        peek: () => undefined,
        async verify(secret: string) {
          asked++
          return { ...(await keys.verify(secret)), live: () => false }
        },
      })
      const app = framework()
      app.get('/', bearerAuth(paused), (_req, res) => {
        res.json({})
      })
      await supertest(app).get('/').set('Authorization', `Bearer ${worker.secret}`).expect(503)
      expect(asked).toBe(2)
    })

    test('answers 503 with Retry-After, and never hangs, when the store cannot be asked', async () => {
      const store = {
        ...memoryStore(),
        read: () => Promise.reject(new Error('down')),
        transaction: () => Promise.reject(new Error('down')),
      }
      const { url } = await serve(store, {}, framework)
      for (const [method, path] of [
        ['GET', '/data'],
        ['GET', '/keys'],
        ['POST', '/keys/self/rotate'],
      ] as const) {
        const answer = await call(url + path, { method, secret: worker.secret })
        expect([answer.status, answer.body]).toMatchObject([503, { code: 'store_unavailable' }])
        expect(answer.headers.get('retry-after')).toBe('1')
      }
    })

    test('answers 500 to a fault inside without a word about it, and reports it', async () => {
      const reported: ApiKeyError[] = []
      const store = memoryStore()
      const { url, keys } = await serve(store, { onError: (error) => reported.push(error) }, framework)
      const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
      Object.assign(store, { transaction: () => Promise.reject(new TypeError('an inner matter')) })
      const answer = await call(`${url}/keys/self/rotate`, { method: 'POST', secret })
      expect([answer.status, answer.body]).toMatchObject([500, { code: 'internal_error' }])
      expect(JSON.stringify(answer.body)).not.toContain('inner')
      expect(reported.map(({ code }) => code)).toEqual(['internal_error'])
    })
  })

  describe('idempotencyKey', () => {
    test.each([
      ['two headers', ['a', 'b'], 'idempotency_key_invalid'],
      ['a list', ['a, b'], 'idempotency_key_invalid'],
      ['a quoted string with something else behind it', ['"a"b'], 'idempotency_key_invalid'],
      ['a quoted string and a space before its parameters', ['"a" ;b'], 'idempotency_key_invalid'],
      ['a parameter without a name', ['"a";'], 'idempotency_key_invalid'],
      ['a parameter in capitals', ['"a";B=1'], 'idempotency_key_invalid'],
      ['a parameter without a value', ['"a";b='], 'idempotency_key_invalid'],
      ['a parameter with an unfinished value', ['"a";b="c'], 'idempotency_key_invalid'],
      ['a second item behind the parameters', ['"a";b=1, "c"'], 'idempotency_key_invalid'],
      ['an unfinished quoted string', ['"a'], 'idempotency_key_invalid'],
      ['an empty value', [''], 'idempotency_key_invalid'],
      ['an empty quoted string', ['""'], 'idempotency_key_invalid'],
      ['more than 255 characters', ['k'.repeat(256)], 'idempotency_key_invalid'],
      ['letters beyond ASCII', ['\u00e9'], 'idempotency_key_invalid'],
    ])('refuses %s, and nothing changes', async (_what, values, code) => {
      const headers = ['Authorization', `Bearer ${worker.secret}`, ...values.flatMap((value) => ['Idempotency-Key', value])]
      const answer = await raw(here.url, 'POST', '/keys/self/rotate', headers)
      expect([answer.status, answer.body]).toMatchObject([400, { code }])
      expect((await here.keys.get(worker.id))?.generation).toBe(1)
    })

    test('takes the quoted and the bare form of one value for the same, whatever parameters follow', async () => {
      const bare = await post('/keys/self/rotate', { secret: worker.secret, idempotencyKey: 'a-b' })
      const items = ['1', '-1.5', '"x;\\"y"', 'token/x', ':YQ==:', '?1', '@1659578233', '%"f%c3%bc"'].map((item) => `;v=${item}`)
      for (const parameters of ['', ';v', ';v=1', ';a=1; *b.c-d_e', items.join('')]) {
        const quoted = await post('/keys/self/rotate', { secret: worker.secret, idempotencyKey: `"a-b"${parameters}` })
        expect([parameters, bare.status, quoted.status, quoted.body]).toEqual([parameters, 200, 200, bare.body])
      }
    })

    test('serves an application of its own as middleware', async () => {
      const app = framework()
      app.post('/', idempotencyKey({ required: true }), (req, res) => {
        res.json({ key: req.idempotencyKey })
      })
      await supertest(app)
        .post('/')
        .expect(400)
        .expect(/idempotency_key_missing/)
      await supertest(app).post('/').set('Idempotency-Key', '"with \\"quotes\\""').expect(200, { key: 'with "quotes"' })
    })
  })

  describe('POST /:id/rotate and /self/rotate', () => {
    test('answer with the key and its new secret, once, for a key of the same owner or the key itself', async () => {
      const other = await post(`/keys/${worker.id}/rotate`)
      expect([other.status, other.body]).toMatchObject([
        200,
        { key: { id: worker.id, generation: 2 }, secret: expect.stringMatching(/^sk_live_/) },
      ])
      expect(other.headers.get('cache-control')).toBe('no-store')
      const { secret } = other.body as { secret: string }
      expect((await post(`/keys/${worker.id}/rotate`, { secret })).status).toBe(200)
      expect(JSON.stringify((await ask(`/keys/${worker.id}`)).body)).not.toContain('secret"')
    })

    test('keep the name, scopes, metadata and expiry', async () => {
      const expiresAt = '2099-01-01T00:00:00.000Z'
      const made = await here.keys.create({
        as: 'application',
        ownerId: 'acme',
        name: 'm',
        scopes: ['a'],
        metadata: { b: 1 },
        environment: 'test',
        expiresAt,
      })
      const { key, secret } = await here.keys.rotate({ as: { secret: made.secret } })
      expect(key).toEqual({
        ...made.key,
        generation: 2,
        updatedAt: key.updatedAt,
        secretLast4: secret.slice(-4),
        secretCreatedAt: key.secretCreatedAt,
      })
      expect(secret).toMatch(/^sk_test_/)
    })

    test('refuse a path or body that differs under the same Idempotency-Key', async () => {
      const send = (path: string, body?: object): Promise<Answer> =>
        post(path, { idempotencyKey: 'same', ...(body === undefined ? {} : { body }) })
      expect((await send(`/keys/${worker.id}/rotate`)).status).toBe(200)
      for (const [path, body] of [
        [`/keys/${admin.id}/rotate`, undefined],
        ['/keys/self/rotate', undefined],
        [`/keys/${worker.id}/revoke`, { reason: 'x' }],
        [`/keys/${worker.id}/rotate?x=1`, undefined],
        ['/keys', { name: 'n' }],
      ] as const) {
        const answer = await send(path, body)
        expect([answer.status, answer.body]).toMatchObject([422, { code: 'idempotency_key_mismatch' }])
      }
      expect((await here.keys.get(worker.id))?.generation).toBe(2)
    })

    test('without the scope: 403 for a key of the same owner', async () => {
      const answer = await post(`/keys/${admin.id}/rotate`, { secret: worker.secret })
      expect([answer.status, answer.body]).toMatchObject([403, { code: 'insufficient_scope' }])
    })

    test('a revoked key: 409 to others, 401 to itself', async () => {
      await here.keys.revoke({ as: 'application', id: worker.id })
      const answer = await post(`/keys/${worker.id}/rotate`)
      expect([answer.status, answer.body]).toMatchObject([409, { code: 'key_revoked' }])
      expect((await post('/keys/self/rotate', { secret: worker.secret })).status).toBe(401)
    })

    test('an expired key: 409 to others, 401 to itself', async () => {
      const expired = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'e' })
      await here.keys.update({ as: 'application', id: expired.key.id, changes: { expiresAt: '2020-01-01T00:00:00Z' } })
      const answer = await post(`/keys/${expired.key.id}/rotate`)
      expect([answer.status, answer.body]).toMatchObject([409, { code: 'key_expired' }])
      expect((await post('/keys/self/rotate', { secret: expired.secret })).status).toBe(401)
    })
  })

  describe('every route with an id', () => {
    test('answers alike to an unknown id and to one of another owner', async () => {
      const foreign = await here.keys.create({ as: 'application', ownerId: 'rival', name: 'f' })
      for (const [method, path, body] of [
        ['GET', '', undefined],
        ['GET', '/events', undefined],
        ['PATCH', '', { name: 'n' }],
        ['POST', '/rotate', undefined],
        ['POST', '/revoke', undefined],
      ] as const) {
        const send = (id: string): Promise<Answer> => ask(`/keys/${id}${path}`, { method, ...(body === undefined ? {} : { body }) })
        const [unknown, other] = [await send(FOREIGN), await send(foreign.key.id)]
        expect([unknown.status, unknown.body]).toMatchObject([404, { code: 'key_not_found' }])
        expect([other.status, other.body]).toEqual([404, unknown.body])
      }
      expect(await here.keys.get(foreign.key.id)).toMatchObject({ name: 'f', generation: 1, status: 'active' })
    })

    test.each(['not-a-uuid', '%00', '%0a', '%zz', "'; drop table x; --", '..%2f..', 'x'.repeat(1_000)])('refuses the id %j', async (id) => {
      const path = `/keys/${id.includes('%') ? id : encodeURIComponent(id)}/rotate`
      const answer = await raw(here.url, 'POST', path, ['Authorization', `Bearer ${admin.secret}`])
      expect([answer.status, answer.body]).toMatchObject([400, { code: id === '%zz' ? 'invalid_request' : 'key_id_invalid' }])
    })
  })

  describe('POST /', () => {
    test("makes a key for the caller's owner", async () => {
      const body = { name: 'n', scopes: ['a'], metadata: { b: [1] }, environment: 'test', expiresAt: '2099-01-01T00:00:00+02:00' }
      const scopes = ['api_keys:write', 'a']
      const { secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'sandbox', environment: 'test', scopes })
      const answer = await post('/keys', { body, secret })
      expect([answer.status, answer.body]).toMatchObject([
        201,
        { key: { ...body, ownerId: 'acme', expiresAt: '2098-12-31T22:00:00.000Z' }, secret: expect.stringMatching(/^sk_test_/) },
      ])
    })

    test.each([
      [{}],
      [{ name: '' }],
      [{ name: 'x'.repeat(256) }],
      [{ name: 'a\u0000b' }],
      [{ name: 1 }],
      [{ name: 'n', nam: 'typo' }],
      [{ name: 'n', ownerId: 'rival' }],
      [{ name: 'n', environment: 'prod' }],
      [{ name: 'n', scopes: 'a' }],
      [{ name: 'n', scopes: ['a b'] }],
      [{ name: 'n', scopes: Array.from({ length: 101 }, (_, n) => `s${n}`) }],
      [{ name: 'n', metadata: [] }],
      [{ name: 'n', metadata: { constructor: 1 } }],
      [{ name: 'n', metadata: { x: 'y'.repeat(9_000) } }],
      [{ name: 'n', expiresAt: 'tomorrow' }],
      [{ name: 'n', expiresAt: 5 }],
      [[]],
    ])('refuses %j', async (body) => {
      const answer = await post('/keys', { body })
      expect([answer.status, answer.body]).toMatchObject([400, { code: 'invalid_request' }])
      expect((await here.keys.list({ ownerId: 'acme' })).items).toHaveLength(2)
    })

    test.each([
      ['broken JSON', 'application/json', '{"name":', 400, 'invalid_request'],
      ['a prototype in the metadata', 'application/json', '{"name":"n","metadata":{"a":{"__proto__":{"b":1}}}}', 400, 'invalid_request'],
      ['a bare string', 'application/json', '"name"', 400, 'invalid_request'],
      ['another content type', 'text/plain', '{"name":"n"}', 415, 'unsupported_media_type'],
      ['a form', 'application/x-www-form-urlencoded', 'name=n', 415, 'unsupported_media_type'],
      ['more than 16 KiB', 'application/json', JSON.stringify({ name: 'x'.repeat(17_000) }), 413, 'body_too_large'],
    ])('refuses %s, also where the application parses bodies itself', async (_what, type, text, status, code) => {
      const parsing = framework()
      parsing.use(framework.json(), framework.urlencoded({ extended: true }), framework.text())
      parsing.use('/keys', keyRouter(here.keys))
      const apps = [here.url, parsing]
      for (const app of _what === 'broken JSON' || _what === 'a bare string' ? [here.url] : apps) {
        const answer = await supertest(app)
          .post('/keys')
          .set('Authorization', `Bearer ${admin.secret}`)
          .set('Content-Type', type)
          .send(text)
        expect([answer.status, answer.body]).toMatchObject([status, { code }])
      }
    })
  })

  test('a body of unknown length needs a type, unless it turns out to be empty', async () => {
    const send = (path: string, body?: object): ReturnType<typeof exchange> =>
      exchange(here.url, { path, secret: admin.secret, chunked: true, body })
    expect((await send('/keys', { name: 'n' })).status).toBe(415)
    expect((await here.keys.list({ ownerId: 'acme' })).items).toHaveLength(2)
    expect((await send('/keys/self/rotate')).status).toBe(200)
  })

  test('GET / lists the keys of the owner, page by page, and never a secret', async () => {
    await here.keys.create({ as: 'application', ownerId: 'rival', name: 'f' })
    const first = await ask('/keys?limit=1')
    const { keys: one, nextCursor } = first.body as { keys: { id: string }[]; nextCursor: string }
    const { keys: two, nextCursor: end } = (await ask(`/keys?limit=1&cursor=${nextCursor}`)).body as typeof first.body & {
      keys: { id: string }[]
      nextCursor: null
    }
    expect([one[0]?.id, two[0]?.id, end]).toEqual([worker.id, admin.id, null])
    expect(JSON.stringify(first.body)).not.toMatch(/sk_live_\w/)
    for (const query of ['limit=0', 'limit=101', 'limit=x', 'cursor=x', 'cursor=%27%3B--', 'cursor=a&cursor=b', 'page=2']) {
      const answer = await ask(`/keys?${query}`)
      expect([answer.status, answer.body]).toMatchObject([400, { code: 'invalid_request' }])
    }
    expect((await ask('/keys', { secret: worker.secret })).status).toBe(403)
  })

  test('GET / finds keys of the owner by filters, never those of another owner', async () => {
    await here.keys.create({ as: 'application', ownerId: 'rival', name: 'f' })
    const found = async (query: string): Promise<unknown> =>
      ((await ask(`/keys?${query}`)).body as { keys: { id: string }[] }).keys.map(({ id }) => id)
    expect(await found('status=active&environment=live')).toEqual([worker.id, admin.id])
    expect([await found('status=revoked'), await found('environment=test'), await found('name=f%25')]).toEqual([[], [], []])
    expect(await found(`last4=${worker.secret.slice(-4)}`)).toEqual([worker.id])
    expect(await found('lastUsedBefore=2999-01-01T00:00:00Z&limit=1')).toEqual([worker.id])
    const wrong = ['status=dead', 'status=active&status=active', 'last4=%25%25%25%25', 'expiresBefore=soon', 'name=', 'ownerId=rival']
    for (const query of wrong) {
      const answer = await ask(`/keys?${query}`)
      expect([answer.status, answer.body]).toMatchObject([400, { code: 'invalid_request' }])
    }
    expect((await ask('/keys?status=active', { secret: worker.secret })).status).toBe(403)
  })

  test('PATCH /:id changes what it is told, with the scope only, and the next request sees it', async () => {
    expect((await call(`${here.url}/scoped`, { secret: worker.secret })).status).toBe(403)
    const answer = await ask(`/keys/${worker.id}`, { method: 'PATCH', body: { scopes: ['reports:read'], name: 'new', expiresAt: null } })
    expect([answer.status, answer.body]).toMatchObject([200, { key: { name: 'new', scopes: ['reports:read'] } }])
    expect((await call(`${here.url}/scoped`, { secret: worker.secret })).status).toBe(200)
    expect((await ask(`/keys/${worker.id}`, { method: 'PATCH', body: { name: 'x' }, secret: worker.secret })).status).toBe(403)
    expect((await ask(`/keys/${worker.id}`, { method: 'PATCH', body: {} })).status).toBe(400)
  })

  test('POST /:id/revoke ends a key, once and for all', async () => {
    const first = await post(`/keys/${worker.id}/revoke`, { body: { reason: 'leaked' } })
    expect([first.status, first.body]).toMatchObject([200, { key: { status: 'revoked', revokedReason: 'leaked' } }])
    expect((await call(`${here.url}/data`, { secret: worker.secret })).status).toBe(401)
    expect((await post(`/keys/${worker.id}/revoke`, { body: { reason: 'again' } })).body).toEqual(first.body)
    expect((await ask(`/keys/${worker.id}`, { method: 'PATCH', body: { name: 'x' } })).body).toMatchObject({ code: 'key_revoked' })
  })

  test('GET /:id/events tells what happened, newest first, to keys with the scope', async () => {
    await post('/keys/self/rotate', { secret: worker.secret, idempotencyKey: 'e' })
    await post('/keys/self/rotate', { secret: worker.secret, idempotencyKey: 'e' })
    await post('/keys/self/rotate', { secret: worker.secret })
    await post(`/keys/${worker.id}/revoke`)
    const answer = await ask(`/keys/${worker.id}/events`)
    const { events } = answer.body as { events: { type: string; actor: string; ip: string | null }[] }
    expect(events.map(({ type, actor }) => [type, actor])).toEqual([
      ['key.revoked', `key:${admin.id}`],
      ['key.retired_secret_refused', `key:${worker.id}`],
      ['key.replayed', `key:${worker.id}`],
      ['key.rotated', `key:${worker.id}`],
      ['key.created', 'system'],
    ])
    expect(events[0]?.ip).toMatch(/127\.0\.0\.1$/)
    expect((await ask(`/keys/${admin.id}/events`, { secret: worker.secret })).status).toBe(401)
  })

  test('paths that the contract does not name are left to the application', async () => {
    const app = framework()
    app.use('/keys', keyRouter(here.keys))
    app.use((_req: unknown, res: { status(code: number): { send(text: string): void } }) => res.status(404).send('of the application'))
    await supertest(app).get('/keys/a/b/c').expect(404, 'of the application')
  })
})

test('a misspelt or impossible option is refused at start-up, with what to write instead', () => {
  const store = memoryStore()
  const secret = 'x'.repeat(32)
  const keys = createApiKeys({ store, serverSecret: secret })
  const misuse = (run: () => unknown): string => {
    try {
      run()
    } catch (error) {
      if (error instanceof ApiKeyError && error.code === 'invalid_option') return error.message
    }
    return 'nothing was refused'
  }
  const typo =
    (options: object): (() => unknown) =>
    () =>
      createApiKeys(options as Parameters<typeof createApiKeys>[0])
  expect(misuse(typo({ stroe: store, serverSecret: secret }))).toContain('Write "store" instead')
  expect(misuse(typo({ store, serverSecret: secret, leaseMS: 5 }))).toContain('Write "leaseMs" instead')
  expect(misuse(typo({ store, serverSecret: secret, leaseMs: 49 }))).toContain('50 to 60000')
  expect(misuse(typo({ store, serverSecret: 'short' }))).toContain('at least 32 bytes')
  expect(misuse(typo({ store, serverSecret: [] }))).toContain('at least 32 bytes')
  expect(misuse(typo({ serverSecret: secret }))).toContain('store must be a store')
  expect(misuse(typo({ store, serverSecret: secret, cache: 5 }))).toContain('redisCache')
  for (const prefix of ['', 'rot', 'SK', '1a', 'a-b', 'a_', 'x'.repeat(33)])
    expect(misuse(typo({ store, serverSecret: secret, prefix }))).toContain('prefix')
  expect(misuse(() => bearerAuth(keys, { scopes: 'a' } as object))).toContain('Write "scope" instead')
  expect(misuse(() => bearerAuth(keys, { scope: 'a b' }))).toContain('scope')
  for (const guard of [bearerAuth, keyRouter]) expect(misuse(() => guard(keys, { realm: 'a"b' }))).toContain('realm')
  expect(misuse(() => bearerAuth({} as typeof keys))).toContain('createApiKeys')
  expect(misuse(() => keyRouter(keys, { contrat: 1 } as object))).toContain('Write "contract" instead')
  expect(misuse(() => idempotencyKey({ require: true } as object))).toContain('Write "required" instead')
  expect(misuse(() => memoryStore({ clock: 1 } as object))).toContain('memoryStore has no option "clock"')
})

/** One request with the headers just as given, doubled ones too. */
function raw(
  url: string,
  method: string,
  path: string,
  headers: string[],
): Promise<{ status: number; body: unknown; headers: Record<string, unknown> }> {
  return new Promise((resolve, reject) => {
    const { port } = new URL(url)
    const sent = request({ port, method, path, headers: ['Host', 'x', ...headers, ...(method === 'POST' ? ['Content-Length', '0'] : [])] })
    sent.once('error', reject).once('response', (response) => {
      let text = ''
      response.on('data', (chunk) => {
        text += String(chunk)
      })
      response.once('end', () => resolve({ status: response.statusCode ?? 0, body: JSON.parse(text), headers: response.headers }))
    })
    sent.end()
  })
}
