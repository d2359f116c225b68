import { request } from 'node:http'
import express5, { type RequestHandler } from 'express'
import { type ApiKeys, bearerAuth, createApiKeys, idempotencyKey, keyRouter, memoryStore } from 'express-api-keys'
import express4 from 'express4'
import { headerValues } from '../../src/http/source.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
] as [string, typeof express5][])('on %s', (_name, framework) => {
  let keys: ApiKeys
  beforeAll(() => {
    keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, leaseMs: 5_000, waitForLease: false, onError: () => {} })
  })
  afterAll(() => keys.close())

  async function serve(...before: RequestHandler[]): Promise<string> {
    const app = framework()
    for (const each of before) app.use(each)
    app.use('/keys', keyRouter(keys))
    app.get('/data', bearerAuth(keys), (req, res) => void res.json(req.apiKey?.id))
    return listen(app)
  }

  async function issue(): Promise<{ id: string; secret: string }> {
    const { key, secret } = await keys.create({
      as: 'application',
      ownerId: 'acme',
      name: 'a',
      scopes: ['api_keys:read', 'api_keys:write'],
    })
    return { id: key.id, secret }
  }

  /** What a route behind `bearerAuth`, a reading route and a rotation answer. */
  async function statuses(url: string, headers: readonly string[]): Promise<number[]> {
    const found: number[] = []
    for (const [method, path] of [
      ['GET', '/data'],
      ['GET', '/keys'],
      ['POST', '/keys/self/rotate'],
    ] as const) {
      found.push(await send(url + path, method, headers))
    }
    return found
  }

  test('a credential that a middleware has put into the headers counts', async () => {
    const { secret } = await issue()
    const url = await serve((req, _res, next) => {
      const given = req.get('x-api-key')
      if (given !== undefined) req.headers.authorization = `Bearer ${given}`
      next()
    })
    expect(await statuses(url, ['X-API-Key', secret])).toEqual([200, 200, 200])
    const other = await issue()
    // It has replaced the one that came.
    expect(await statuses(url, ['Authorization', 'Basic YTpi', 'X-API-Key', other.secret])).toEqual([200, 200, 200])
    expect(await statuses(url, ['Authorization', `Bearer ${other.secret}`])).toEqual([401, 401, 401])
  })

  test.each<[string, RequestHandler]>([
    ['deleted', (req, _res, next) => next(void delete req.headers.authorization)],
    [
      'set to undefined',
      (req, _res, next) => {
        req.headers.authorization = undefined
        next()
      },
    ],
    [
      'left out of a copy of the headers',
      (req, _res, next) => {
        const { authorization: _, ...rest } = req.headers
        req.headers = rest
        next()
      },
    ],
  ])('a credential that a middleware has %s is none', async (_what, before) => {
    const { id, secret } = await issue()
    expect(await statuses(await serve(before), ['Authorization', `Bearer ${secret}`])).toEqual([401, 401, 401])
    expect((await keys.get(id))?.generation).toBe(1)
  })

  test('an Idempotency-Key that a middleware has set, changed or deleted is the one that holds', async () => {
    const app = framework()
    app.use((req, _res, next) => {
      if (req.query.key === undefined) delete req.headers['idempotency-key']
      else req.headers['idempotency-key'] = String(req.query.key)
      next()
    })
    app.post('/', idempotencyKey(), (req, res) => void res.json([req.idempotencyKey ?? null]))
    const url = await listen(app)
    const ask = async (query: string, headers: { [name: string]: string }): Promise<unknown> =>
      (await fetch(`${url}/${query}`, { method: 'POST', headers })).json()
    expect(await ask('?key=a', {})).toEqual(['a'])
    expect(await ask('?key=a', { 'idempotency-key': 'b' })).toEqual(['a'])
    expect(await ask('', { 'idempotency-key': 'b' })).toEqual([null])
  })

  test('two lines of one header are refused, also where adapters show them as a list', async () => {
    const { id, secret } = await issue()
    const one = ['Authorization', `Bearer ${secret}`]
    expect(await statuses(await serve(), [...one, ...one])).toEqual([400, 400, 400])
    const listed = await serve((req, _res, next) => {
      Object.assign(req, { rawHeaders: [], headers: { ...req.headers, authorization: [`Bearer ${secret}`, `Bearer ${secret}`] } })
      next()
    })
    expect(await statuses(listed, one)).toEqual([400, 400, 400])
    expect(await send(`${await serve()}/keys/self/rotate`, 'POST', [...one, 'Idempotency-Key', 'a', 'idempotency-key', 'a'])).toBe(400)
    expect((await keys.get(id))?.generation).toBe(1)
  })

  test.each([
    ['missing', undefined],
    ['empty', []],
    ['frozen', Object.freeze([])],
    ['no list', 'Authorization'],
    ['a list of other things', [1, null, {}, undefined]],
  ])('a list of raw headers that is %s, and the same for all requests, gives each request its own key', async (_what, rawHeaders) => {
    const app = framework()
    app.use((req, _res, next) => {
      Object.defineProperty(req, 'rawHeaders', { value: rawHeaders })
      next()
    })
    const held: (() => void)[] = []
    let reached: () => void = () => {}
    app.get('/held', bearerAuth(keys), (req, res) => {
      held.push(() => res.json(req.apiKey?.id))
      reached()
    })
    app.use('/keys', keyRouter(keys))
    app.get('/open', (req, res) => void res.json([req.apiKey?.id ?? null]))
    app.get('/data', bearerAuth(keys), (req, res) => void res.json(req.apiKey?.id))
    const url = await listen(app)
    const [first, second] = [await issue(), await issue()]
    const get = async (path: string, secret?: string): Promise<unknown> =>
      (await fetch(url + path, secret === undefined ? {} : { headers: { authorization: `Bearer ${secret}` } })).json()
    const there = new Promise<void>((resolve) => {
      reached = resolve
    })
    const waiting = get('/held', first.secret)
    await there
    expect([await get('/data', second.secret), await get('/open'), await get('/open', second.secret)]).toEqual([second.id, [null], [null]])
    held[0]?.()
    expect(await waiting).toBe(first.id)
    expect(await statuses(url, ['Authorization', `Bearer ${second.secret}`])).toEqual([200, 200, 200])
  })
})

test.each<[string, object, string[]]>([
  ['a text', { headers: { a: ' x ' } }, ['x']],
  ['a list of one', { headers: { a: ['x'] } }, ['x']],
  ['a list of two', { headers: { a: ['x', 'y'] } }, ['x', 'y']],
  ['an empty list', { headers: { a: [] } }, []],
  ['a number', { headers: { a: 5 } }, ['5']],
  ['null', { headers: { a: null } }, []],
  ['an object', { headers: { a: Object.create(null) } }, ['']],
  ['a symbol', { headers: { a: Symbol('x') } }, ['']],
  ['a list of lists', { headers: { a: [['x'], 1] } }, ['', '1']],
  ['no headers at all', {}, []],
  ['no such header', { headers: {}, rawHeaders: ['A', 'x'] }, []],
  ['another value than came', { headers: { a: 'y' }, rawHeaders: ['A', 'x'] }, ['y']],
  ['two lines of it', { headers: { a: 'x' }, rawHeaders: ['A', 'x', 'b', '', 'a', ' y'] }, ['x', 'y']],
  ['headers that inherit', { headers: Object.create({ a: 'x' }) }, ['x']],
])('the values of a header that is %s', (_what, req, values) => {
  expect(headerValues(req as never, 'a')).toEqual(values)
})

/** Sends a request with its headers as they are: two of one name stay two. */
function send(url: string, method: string, headers: readonly string[]): Promise<number> {
  const raw = ['Host', new URL(url).host, 'Connection', 'close', ...headers]
  return new Promise((resolve, reject) => {
    const sent = request(url, { method, headers: raw, agent: false }, (response) => {
      response.resume().on('end', () => resolve(response.statusCode ?? 0))
    })
    sent.on('error', reject)
    sent.end()
  })
}
