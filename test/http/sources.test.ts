import { IncomingMessage } from 'node:http'
import { Socket } from 'node:net'
import express5 from 'express'
import {
  ApiKeyError,
  type ApiKeys,
  bare,
  basic,
  bearer,
  bearerAuth,
  createApiKeys,
  header,
  keyRouter,
  memoryStore,
  type Source,
  scheme,
} from 'express-api-keys'
import { operatorJwt } from 'express-api-keys/jwt'
import express4 from 'express4'
import jwt from 'jsonwebtoken'
import { type Checked, exchange } from '../support/contract.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const JWT_SECRET = 'the-secret-of-the-identity-provider-0123456789'
const errors: ApiKeyError[] = []
let keys: ApiKeys
let secret: string
let other: string

beforeAll(async () => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: (error) => void errors.push(error) })
  const make = async (): Promise<string> => (await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })).secret
  ;[secret, other] = [await make(), await make()]
})
afterAll(() => keys.close())
afterEach(() => void errors.splice(0))

const basicOf = (text: string | Buffer): string => `Basic ${Buffer.from(text).toString('base64')}`

interface Served {
  get(...headers: string[]): Promise<Checked>
  post(path: string, ...headers: string[]): Promise<Checked>
  options(...headers: string[]): Promise<Checked>
}

async function serve(
  options: NonNullable<Parameters<typeof bearerAuth>[1]>,
  framework: typeof express5 = express5,
  before: express5.RequestHandler[] = [],
): Promise<Served> {
  const app = framework()
  for (const one of before) app.use(one)
  app.use('/keys', keyRouter(keys, { ...(options.from === undefined ? {} : { from: options.from }) }))
  app.use('/data', bearerAuth(keys, options), (req, res) => {
    res.json({ key: req.apiKey?.id ?? null, headers: req.headers, raw: req.rawHeaders })
  })
  const url = await listen(app)
  return {
    get: (...headers) => exchange(url, { method: 'GET', path: '/data', headers }),
    post: (path, ...headers) => exchange(url, { path: `/keys${path}`, headers }),
    options: (...headers) => exchange(url, { method: 'OPTIONS', path: '/data', headers }),
  }
}

const PLACES: [what: string, source: () => Source, headers: (secret: string) => string[], challenge: string][] = [
  ['bearer()', bearer, (given) => ['Authorization', `Bearer ${given}`], 'Bearer realm="api"'],
  ['header()', () => header('X-API-Key'), (given) => ['X-API-Key', given], 'ApiKey realm="api", header="X-API-Key"'],
  ['scheme()', () => scheme('Token'), (given) => ['Authorization', `token  ${given}`], 'Token realm="api"'],
  ['basic()', basic, (given) => ['Authorization', basicOf(`${given}:`)], 'Basic realm="api", charset="UTF-8"'],
  ['bare()', bare, (given) => ['Authorization', given], 'Bearer realm="api"'],
]

describe.each([
  ['Express 5', express5],
  ['Express 4', express4 as unknown as typeof express5],
] as const)('on %s', (_name, framework) => {
  test.each(PLACES)(
    '%s lets a key in, asks for one that is missing, and refuses a bad one and two',
    async (_what, source, headers, challenge) => {
      const { get } = await serve({ from: source() }, framework)
      expect((await get(...headers(secret))).status).toBe(200)
      const missing = await get()
      expect([missing.status, missing.headers['www-authenticate']]).toEqual([401, challenge])
      expect(parsed(missing)).toHaveLength(1)
      const bad = await get(...headers(`${secret}x`))
      expect([bad.status, bad.body.code]).toEqual([401, 'invalid_key'])
      expect(parsed(bad)[0]?.params.error).toBe(challenge.startsWith('Bearer') ? 'invalid_token' : undefined)
      const twice = await get(...headers(secret), ...headers(secret))
      expect([twice.status, twice.body.code]).toEqual([400, 'credential_malformed'])
    },
  )

  test.each(PLACES)('%s serves the router too: a rotation, and its repetition with the dead key', async (_what, source, headers) => {
    const { post, get } = await serve({ from: source() }, framework)
    const made = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const ask = (): Promise<Checked> => post('/self/rotate', ...headers(made.secret), 'Idempotency-Key', 'one')
    const [first, again] = [await ask(), await ask()]
    expect([first.status, again.status, again.body.secret]).toEqual([200, 200, first.body.secret])
    expect([(await get(...headers(made.secret))).status, (await get(...headers(first.body.secret))).status]).toEqual([401, 200])
  })
})

describe('several sources', () => {
  const from = [bearer(), header('X-API-Key'), basic()]

  test('take a key in any of them, and the same key in two', async () => {
    const { get } = await serve({ from })
    for (const headers of [
      ['Authorization', `Bearer ${secret}`],
      ['x-api-key', secret],
      ['Authorization', basicOf(`${secret}:`)],
      ['Authorization', `Bearer ${secret}`, 'X-API-Key', secret],
    ]) {
      expect((await get(...headers)).status).toBe(200)
    }
  })

  test('refuse two different keys, whether they are good or not', async () => {
    const { get, post } = await serve({ from })
    for (const [one, two] of [
      [secret, other],
      [secret, 'nonsense'],
      ['nonsense', secret],
    ]) {
      const headers = ['Authorization', `Bearer ${one}`, 'X-API-Key', two as string]
      for (const answer of [await get(...headers), await post('/self/rotate', ...headers)]) {
        expect([answer.status, answer.body.code]).toEqual([400, 'credential_malformed'])
      }
    }
  })

  test('each add a challenge, which a strict reader tells apart', async () => {
    const { get } = await serve({ from, realm: 'a, b="c'.replace('"', '') })
    const asked = parsed(await get())
    expect(asked.map((one) => one.scheme)).toEqual(['Bearer', 'ApiKey', 'Basic'])
    expect(new Set(asked.map(({ params }) => params.realm))).toEqual(new Set(['a, b=c']))
    const bad = parsed(await get('X-API-Key', `${secret}x`))
    expect(bad.map(({ params }) => params.error)).toEqual(['invalid_token', undefined, undefined])
  })

  test('are in the OpenAPI document that the router serves', async () => {
    const app = express5().use('/keys', keyRouter(keys, { from }))
    const document = (await (await fetch(`${await listen(app)}/keys/openapi.json`)).json()) as {
      security: unknown
      components: { securitySchemes: unknown }
    }
    expect(document.security).toEqual([{ key: [] }, { key2: [] }, { key3: [] }])
    expect(document.components.securitySchemes).toMatchObject({
      key: { type: 'http', scheme: 'bearer' },
      key2: { type: 'apiKey', in: 'header', name: 'x-api-key' },
      key3: { type: 'http', scheme: 'basic' },
    })
  })
})

describe('what is no credential', () => {
  test.each([
    ['an empty header', 'X-API-Key', ''],
    ['whitespace', 'X-API-Key', '   '],
    ['a list', 'X-API-Key', 'a, b'],
    ['two words', 'X-API-Key', 'Bearer abc'],
    ['quotes', 'X-API-Key', '"abc"'],
    ['bytes that are not ASCII', 'X-API-Key', 'ab\u00e9c'],
    ['a very long value', 'X-API-Key', 'x'.repeat(1_025)],
    ['Basic without a colon', 'Authorization', basicOf('abc')],
    ['Basic with a colon in the key', 'Authorization', basicOf('a:b:')],
    ['Basic with a password', 'Authorization', basicOf('abc:def')],
    ['Basic with the key as password', 'Authorization', basicOf(':abc')],
    ['Basic in bad base64', 'Authorization', 'Basic YWJj*Og=='],
    ['Basic in base64 with stray bits', 'Authorization', 'Basic YWJjOh=='],
    ['Basic in bad UTF-8', 'Authorization', basicOf(Buffer.from([0x61, 0xff, 0x3a]))],
    ['Basic with nothing', 'Authorization', 'Basic'],
  ])('%s: 400, and nothing of it is repeated', async (_what, name, value) => {
    const { get } = await serve({ from: [header('X-API-Key'), basic()] })
    const { status, body } = await get(name, value)
    expect([status, body.code]).toEqual([400, 'credential_malformed'])
    if (value.trim().length > 5) expect(JSON.stringify(body)).not.toContain(value)
  })

  test('a scheme that no source names is not looked at', async () => {
    const { get } = await serve({ from: header('X-API-Key') })
    expect((await get('Authorization', `Bearer ${other}`, 'X-API-Key', secret)).status).toBe(200)
    expect((await get('Authorization', `Bearer ${secret}`)).body.code).toBe('credential_missing')
  })
})

describe('a source of your own', () => {
  const cookie: Source = {
    challenge: 'ApiKey cookie="key"',
    read: (req) => /(?:^|; )key=([^;]+)/.exec(req.headers.cookie ?? '')?.[1],
  }

  test('reads where it wants', async () => {
    const { get } = await serve({ from: cookie })
    expect((await get('Cookie', `a=b; key=${secret}`)).status).toBe(200)
    expect((await get('Cookie', 'a=b')).headers['www-authenticate']).toBe('ApiKey realm="api", cookie="key"')
  })

  test.each<[string, () => unknown]>([
    [
      'throws',
      () => {
        throw new Error('a bug')
      },
    ],
    ['is asynchronous', async () => secret],
    ['rejects', () => Promise.reject(new Error('a bug'))],
    ['returns an empty text', () => ''],
    ['returns a number', () => 7],
    ['returns null', () => null],
  ])('that %s lets nobody in: 500, which onError hears of', async (_what, read) => {
    const { get, post } = await serve({ from: { challenge: 'ApiKey', read: read as Source['read'] } })
    for (const answer of [await get(), await post('/self/rotate')])
      expect([answer.status, answer.body.code]).toEqual([500, 'internal_error'])
    expect(errors.map(({ code }) => code)).toEqual(['internal_error', 'internal_error'])
  })

  test('that refuses with an ApiKeyError is taken at its word', async () => {
    const read = (): never => {
      throw new ApiKeyError('credential_malformed', 'Not like this.')
    }
    const { get } = await serve({ from: { challenge: 'ApiKey', read } })
    expect((await get()).body).toMatchObject({ code: 'credential_malformed', detail: 'Not like this.' })
  })

  test.each<[string, unknown]>([
    ['nothing', []],
    ['a text', 'Bearer'],
    ['no challenge', { read: () => undefined }],
    ['a challenge that would break the header', { read: () => undefined, challenge: 'ApiKey\r\nSet-Cookie: a=b' }],
    ['a realm, which would be there twice', { read: () => undefined, challenge: 'ApiKey cookie="key", Realm="mine"' }],
    ['a header in capitals', { read: () => undefined, challenge: 'ApiKey', header: 'X-API-Key' }],
    ['null among others', [bearer(), null]],
  ])('is refused at start-up: %s', (_what, from) => {
    expect(() => bearerAuth(keys, { from: from as Source })).toThrow(ApiKeyError)
    expect(() => keyRouter(keys, { from: from as Source })).toThrow(ApiKeyError)
  })

  test.each<[string, () => Source]>([
    ['a header with a space', () => header('X API Key')],
    ['Authorization as a header', () => header('authorization')],
    ['a scheme with a colon', () => scheme('Api:Key')],
    ['no name', () => header(undefined as unknown as string)],
  ])('%s is refused at once', (_what, make) => {
    expect(make).toThrow(expect.objectContaining({ code: 'invalid_option' }))
  })
})

describe('a request whose headers were set by middleware, or that never came over a wire', () => {
  test('counts by req.headers', async () => {
    const { get } = await serve({ from: header('X-API-Key') }, express5, [
      (req, _res, next) => {
        req.headers['x-api-key'] = req.get('x-legacy-key')
        next()
      },
    ])
    expect((await get('X-Legacy-Key', secret)).status).toBe(200)
  })

  test('needs no more than headers', () => {
    const req = new IncomingMessage(new Socket())
    req.headers['x-api-key'] = secret
    expect(header('X-API-Key').read(req)).toBe(secret)
    expect(header('X-API-Key').read({ headers: { 'x-api-key': secret } } as unknown as IncomingMessage)).toBe(secret)
    expect(bearer().read({ headers: {} } as unknown as IncomingMessage)).toBeUndefined()
  })
})

describe('optional', () => {
  test('lets a request without a credential pass, and refuses a bad one', async () => {
    const { get } = await serve({ from: [bearer(), header('X-API-Key')], optional: true })
    expect((await get()).body.key).toBeNull()
    expect((await get('Authorization', `Bearer ${secret}`)).body.key).toEqual(expect.any(String))
    for (const headers of [
      ['Authorization', `Bearer ${secret}x`],
      ['X-API-Key', 'nonsense'],
    ]) {
      expect((await get(...headers)).status).toBe(401)
    }
    for (const headers of [
      ['Authorization', ''],
      ['Authorization', 'Bearer '],
      ['X-API-Key', ' '],
      // The scheme that is missing, or what should stand after it, makes nobody of whoever sends a key.
      ['Authorization', secret],
      ['Authorization', `"${secret}"`],
      ['Authorization', `Bearer\t${secret}`],
      ['Authorization', `bearer:${secret}`],
      ['Authorization', 'Bearer,nonsense'],
    ]) {
      expect([headers, (await get(...headers)).status]).toEqual([headers, 400])
    }
    const { get: byName } = await serve({ from: basic(), optional: true })
    expect((await byName('Authorization', `Basic\t${basicOf(`${secret}:`).slice(6)}`)).status).toBe(400)
    // What no source names is the application's own affair.
    for (const own of ['Digest username="a"', 'BearerToken abc', 'Custom abc']) {
      expect([own, (await get('Authorization', own)).body.key]).toEqual([own, null])
    }
  })
})

describe('preflight', () => {
  test('lets CORS preflights pass, and nothing else without a key', async () => {
    const preflight = ['Origin', 'https://app.example', 'Access-Control-Request-Method', 'GET']
    const { get, options } = await serve({ preflight: true })
    expect((await options(...preflight)).status).toBe(200)
    expect((await options('Origin', 'https://app.example')).status).toBe(401)
    expect((await options('Access-Control-Request-Method', 'GET')).status).toBe(401)
    expect((await get(...preflight)).status).toBe(401)
    expect((await options(...preflight, 'Authorization', `Bearer ${secret}x`)).status).toBe(401)
    expect((await (await serve({})).options(...preflight)).status).toBe(401)
  })
})

describe('hideCredential', () => {
  test('removes the key from what comes after, wherever it was, and later middleware of ours still finds it', async () => {
    const from = [bearer(), header('X-API-Key')]
    const app = express5()
    app.use(bearerAuth(keys, { from, hideCredential: true }))
    app.get('/data', bearerAuth(keys, { from }), (req, res) => {
      res.json({ id: req.apiKey?.id, headers: req.headers, raw: req.rawHeaders, distinct: req.headersDistinct })
    })
    const url = await listen(app)
    for (const headers of [
      ['Authorization', `Bearer ${secret}`, 'X-Other', 'kept'],
      ['X-API-Key', secret, 'X-Other', 'kept'],
      ['Authorization', `Bearer ${secret}`, 'x-api-KEY', secret, 'X-Other', 'kept'],
    ]) {
      const { status, body } = await exchange(url, { method: 'GET', path: '/data', headers })
      expect([status, body.id]).toEqual([200, expect.any(String)])
      expect(JSON.stringify(body)).not.toContain(secret)
      expect([body.headers['x-other'], body.raw.includes('X-Other'), body.distinct['x-other']]).toEqual(['kept', true, ['kept']])
    }
  })
})

test.each<[string, (req: object) => object]>([
  ['an object derived from the request', (req) => Object.create(req) as object],
  ['a proxy around it', (req) => new Proxy(req, {})],
])('hideCredential hides nothing from a guard behind %s', async (_case, wrapped) => {
  const app = express5()
  app.use(bearerAuth(keys, { hideCredential: true }))
  const guard = bearerAuth(keys)
  app.get(
    '/data',
    (req, res, next) => void guard(wrapped(req) as typeof req, res, next),
    (_req, res) => void res.json({}),
  )
  const url = await listen(app)
  const ask = (one: string): Promise<Checked> =>
    exchange(url, { method: 'GET', path: '/data', headers: ['Authorization', `Bearer ${one}`] })
  expect([(await ask(secret)).status, (await ask(`${secret}x`)).status]).toEqual([200, 401])
})

describe('operators', () => {
  const operators = operatorJwt({ issuer: 'https://idp', audience: 'keys', algorithms: ['HS256'], key: JWT_SECRET })
  const token = (): string =>
    jwt.sign({ scope: 'api_keys:read api_keys:write', owners: ['acme'] }, JWT_SECRET, {
      issuer: 'https://idp',
      audience: 'keys',
      subject: 'ada',
      expiresIn: 60,
    })

  test('bring their JWT as a bearer token, wherever keys are, and never beside a key', async () => {
    const app = express5().use('/keys', keyRouter(keys, { from: header('X-API-Key'), operators }))
    const url = await listen(app)
    const list = (...headers: string[]): Promise<Checked> => exchange(url, { method: 'GET', path: '/keys?ownerId=acme', headers })
    expect((await list('Authorization', `Bearer ${token()}`)).body.code).not.toBe('credential_missing')
    expect((await list('Authorization', `Bearer ${secret}`)).body.code).toBe('credential_missing')
    expect((await list('Authorization', `Bearer ${token()}`, 'X-API-Key', secret)).body.code).toBe('credential_malformed')
  })
})

interface Challenge {
  readonly scheme: string
  readonly params: { readonly [name: string]: string }
}

/** Reads challenges by the grammar of RFC 9110 §11.6.1: `1#( auth-scheme [ 1*SP #auth-param ] )`. Throws at anything else. */
function parsed({ headers }: Checked): Challenge[] {
  const text = headers['www-authenticate'] ?? ''
  const found: { scheme: string; params: { [name: string]: string } }[] = []
  let at = 0
  const take = (pattern: RegExp): string | undefined => {
    const [matched] = new RegExp(pattern.source, 'y').exec(text.slice(at)) ?? []
    if (matched !== undefined) at += matched.length
    return matched
  }
  const TOKEN = /[\w!#$%&'*+.^`|~-]+/
  while (at < text.length) {
    if (found.length > 0 && take(/ *, */) === undefined) throw new Error(`No comma at ${at}: ${text}`)
    const word = take(TOKEN)
    if (word === undefined) throw new Error(`No token at ${at}: ${text}`)
    if (take(/ *= */) === undefined) {
      found.push({ scheme: word, params: {} })
      if (take(/ +/) === undefined) continue
      const name = take(TOKEN)
      if (name === undefined || take(/ *= */) === undefined) throw new Error(`No parameter at ${at}: ${text}`)
      add(name)
    } else add(word)
  }
  return found

  function add(name: string): void {
    const quoted = take(/"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*"/)
    const value = quoted === undefined ? take(TOKEN) : quoted.slice(1, -1).replaceAll(/\\(.)/g, '$1')
    const current = found.at(-1)
    if (value === undefined || current === undefined || name in current.params) throw new Error(`A bad parameter at ${at}: ${text}`)
    current.params[name] = value
  }
}
