import { type IncomingMessage, request } from 'node:http'
import { PassThrough, Readable, Writable } from 'node:stream'
import { brotliCompressSync, createGunzip, deflateRawSync, deflateSync, gzipSync } from 'node:zlib'
import express5, { type Express, type Request, type RequestHandler } from 'express'
import { type ApiKeys, bearerAuth, createApiKeys, keyRouter, memoryStore } from 'express-api-keys'
import express4 from 'express4'
import { beginBody } from '../../src/http/body.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const GRACE = '{"retire":{"afterMs":3600000}}'
const READ_BEFORE = 'The body was read before keyRouter could read it. Mount keyRouter first, or have what reads it put it into req.body.'

interface Answer {
  readonly status: number
  // biome-ignore lint/suspicious/noExplicitAny: what a body holds is what the tests are about
  readonly body: any
}

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
    const app: Express = framework()
    for (const each of before) app.use(each)
    app.use('/keys', keyRouter(keys, { limits: true }))
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

  async function accepted(url: string, secret: string): Promise<number> {
    return (await fetch(`${url}/data`, { headers: { authorization: `Bearer ${secret}` } })).status
  }

  const next: RequestHandler = (_req, _res, go) => go()
  const chunksOf = (into: unknown[]) => (chunk: unknown) => void into.push(chunk)
  /** Does something with the request, and goes on at once or in another turn. */
  const touching = (touch: (req: Request) => unknown, go: (next: () => void) => void = (next) => next()): RequestHandler => {
    return (req, _res, next) => {
      touch(req)
      go(next)
    }
  }

  /** Ways in which an application meets a body first; `kept` says whether the router can still have it. */
  const ways: [what: string, kept: boolean, make: () => RequestHandler[]][] = [
    ['nobody reads it', true, () => [next]],
    ['express.json()', true, () => [framework.json()]],
    ['express.json() with a verify', true, () => [framework.json({ verify: (_req, _res, bytes) => void bytes.length })]],
    ['express.json() that takes everything', true, () => [framework.json({ type: () => true, strict: false })]],
    ['express.raw()', true, () => [framework.raw({ type: () => true })]],
    ['express.text()', true, () => [framework.text({ type: () => true })]],
    ['express.urlencoded(), which lets it pass', true, () => [framework.urlencoded({ extended: true })]],
    ['all parsers one after the other', true, () => [framework.json(), framework.urlencoded({ extended: false }), framework.text()]],
    ["a synchronous on('data')", true, () => [touching((req) => req.on('data', chunksOf([])))]],
    ['req.resume()', true, () => [touching((req) => req.resume())]],
    ['req.pause()', true, () => [touching((req) => req.pause())]],
    ['req.pause() in another turn', true, () => [touching((req) => req.pause(), setImmediate)]],
    ['setEncoding and on(data)', true, () => [touching((req) => req.setEncoding('utf8').on('data', chunksOf([])))]],
    ['setEncoding as base64', true, () => [touching((req) => req.setEncoding('base64'))]],
    ["a text that on('data') adds up in req.body", true, () => [adding()]],
    ['req.pipe() to something fast', true, () => [touching((req) => req.pipe(new PassThrough()).resume())]],
    ['req.pipe() to something that never takes more', true, () => [touching((req) => req.pipe(stuck()))]],
    ["an on('readable') that reads all", true, () => [touching((req) => req.on('readable', () => readAll(req)))]],
    ["an on('readable') that reads nothing", true, () => [touching((req) => req.on('readable', () => {}))]],
    ['an async iterator beside', true, () => [touching((req) => iterate(req).catch(() => {}))]],
    ['another turn of the loop before', true, () => [touching(() => {}, setImmediate)]],
    ['an empty object put there before', true, () => [placeholder({})]],
    ['null put there before', true, () => [placeholder(null)]],
    ['a frozen object', true, () => [framework.json(), remade((body) => Object.freeze(body as object))]],
    ['an object without a prototype', true, () => [framework.json(), remade((body) => Object.assign(Object.create(null), body))]],
    ['an instance of a class', true, () => [framework.json(), remade((body) => Object.assign(new (class Body {})(), body))]],
    ['an instance with accessors only', true, () => [framework.json(), remade((body) => new Hidden(body))]],
    ['an object derived from the body', true, () => [framework.json(), remade((body) => Object.create(body as object))]],
    ['an ArrayBuffer', true, () => [framework.raw({ type: () => true }), remade((body) => new Uint8Array(body as Buffer).buffer)]],
    ['a Uint8Array', true, () => [framework.raw({ type: () => true }), remade((body) => new Uint8Array(body as Buffer))]],
    [
      'a DataView',
      true,
      () => [framework.raw({ type: () => true }), remade((body) => new DataView(new Uint8Array(body as Buffer).buffer))],
    ],
    ['a reader that waits for all and keeps it', false, () => [consuming()]],
    ['a reader that waits for all, after an empty object', false, () => [placeholder({}), consuming()]],
    ['a reader that waits for all, after an empty text', false, () => [placeholder(''), consuming()]],
    ['a reader that waits for all, after empty bytes', false, () => [placeholder(Buffer.alloc(0)), consuming()]],
    ['a reader that waits for all, then urlencoded()', false, () => [consuming(), framework.urlencoded({ extended: true })]],
    ['a reader that takes the first bytes', false, () => [sniffing()]],
    ['a parser that fails, and whose error is passed over', false, () => failing(framework.json({ verify: throwing }))],
    ['a parser for less than there is, whose error is passed over', false, () => failing(framework.json({ limit: 3 }))],
    ['a stream that was destroyed after reading', false, () => [consuming((req) => void req.destroy())]],
    ['an array', false, () => [framework.json(), remade((body) => [body])]],
    ['a Map', false, () => [framework.json(), remade((body) => new Map(Object.entries(body as object)))]],
    ['a form', false, () => [framework.json(), remade((body) => new URLSearchParams(Object.entries(body as object) as never))]],
    ['a promise of the body', false, () => [framework.json(), remade(async (body) => body)]],
    ['a number', false, () => [framework.json(), remade(() => 5)]],
    ['a function', false, () => [framework.json(), remade((body) => () => body)]],
  ]

  describe.each([
    ['with Content-Length', false],
    ['in chunks', true],
  ])('%s', (_how, chunked) => {
    test.each(ways)('where an application has %s, its fields count or nothing changes', async (_what, kept, make) => {
      const url = await serve(...make())
      const [rotated, urgent, revoked] = [await issue(), await issue(), await issue()]
      const grace = await send(url, '/keys/self/rotate', rotated.secret, GRACE, { chunked })
      expect([grace.status, grace.body?.detail]).toEqual(kept ? [200, undefined] : [400, expect.any(String)])
      expect([(await keys.get(rotated.id))?.generation, await accepted(url, rotated.secret)]).toEqual([kept ? 2 : 1, 200])

      // In an emergency the old secret is dead at once, whatever the grace of an earlier rotation.
      const admin = await issue()
      const ends = await send(url, `/keys/${kept ? rotated.id : urgent.id}/rotate`, admin.secret, '{"emergency":true}', { chunked })
      expect([ends.status, await accepted(url, kept ? rotated.secret : urgent.secret)]).toEqual(kept ? [200, 401] : [400, 200])

      const end = await send(url, `/keys/${revoked.id}/revoke`, admin.secret, '{"reason":"leaked"}', { chunked })
      const [event] = (await keys.events({ id: revoked.id }))?.items ?? []
      expect([end.status, event?.type, event?.details.reason]).toEqual(
        kept ? [200, 'key.revoked', 'leaked'] : [400, 'key.created', undefined],
      )
      expect(await accepted(url, revoked.secret)).toBe(kept ? 401 : 200)
    })
  })

  test.each<[string, RequestHandler[], number]>([
    ['all headers of a body deleted', [deleting()], 200],
    [
      'all headers of a body deleted, and piped to a decoder',
      [touching((req) => req.pipe(createGunzip()).on('error', () => {})), deleting()],
      200,
    ],
    ['all headers of a body deleted, and Content-Length set to 0', [deleting(), placeholder({}), zeroing()], 200],
    ['all headers of a body deleted before it is read', [deleting(), consuming()], 400],
    ['all headers of a body deleted after it is read', [consuming(), deleting()], 400],
    ['rawHeaders emptied as well, before it is read', [deleting(), touching((req) => req.rawHeaders.splice(0)), consuming()], 400],
    ["removeAllListeners('data') afterwards", [afterwards((req) => req.removeAllListeners('data'))], 400],
    ["removeAllListeners('end') afterwards", [afterwards((req) => req.removeAllListeners('end'))], 200],
    ['removeAllListeners() afterwards', [afterwards((req) => req.removeAllListeners())], 400],
    ['pause() and no listener for it', [afterwards((req) => req.removeAllListeners('pause').pause())], 200],
    ['removeAllListeners() and pause() afterwards', [afterwards((req) => req.removeAllListeners().pause())], 400],
    ['removeAllListeners() before all', [touching((req) => req.removeAllListeners())], 200],
  ])('where an application has %s, the fields count or nothing changes', async (_what, before, status) => {
    const url = await serve(...before)
    for (const chunked of [false, true]) {
      for (const coding of [undefined, 'gzip']) {
        const { id, secret } = await issue()
        const sent = { chunked, ...(coding === undefined ? {} : { coding }) }
        const answer = await send(url, '/keys/self/rotate', secret, coding === undefined ? GRACE : gzipSync(GRACE), sent)
        expect([sent, answer.status, (await keys.get(id))?.generation]).toEqual([sent, status, status === 200 ? 2 : 1])
        expect(await accepted(url, secret)).toBe(200)
      }
    }
  })

  test('a body that was read before says so', async () => {
    const { secret } = await issue()
    const { body } = await send(await serve(consuming()), '/keys/self/rotate', secret, GRACE)
    expect(body).toMatchObject({ code: 'invalid_request', detail: READ_BEFORE })
  })

  test.each([
    ['no body', undefined, []],
    ['no body, and Content-Length: 0', '', ['Content-Length', '0']],
    ['no body, and Content-Length: 00', '', ['Content-Length', '00']],
    ['no body, of unknown length', '', ['Transfer-Encoding', 'chunked']],
    ['no body, of unknown length and of some type', '', ['Transfer-Encoding', 'chunked', 'Content-Type', 'text/plain']],
    ['no body, of unknown length and JSON', '', ['Transfer-Encoding', 'chunked', 'Content-Type', 'application/json']],
    ['an empty object', '{}', ['Content-Length', '2', 'Content-Type', 'application/json']],
    ['an empty object and a line', ' {}\r\n', ['Content-Length', '5', 'Content-Type', 'application/json']],
  ])('%s is empty, whoever has read it', async (_what, text, headers) => {
    for (const before of [next, framework.json(), framework.raw({ type: () => true }), framework.text({ type: () => true })]) {
      const { id, secret } = await issue()
      expect(await raw(await serve(before), secret, text, headers)).toMatchObject({ status: 200 })
      expect((await keys.get(id))?.generation).toBe(2)
    }
    if (text !== '') return
    const { secret } = await issue()
    expect(await raw(await serve(consuming()), secret, text, headers)).toMatchObject({ status: 200 })
  })

  test.each([
    ['application/json'],
    ['APPLICATION/JSON'],
    ['application/json; charset=utf8'],
    ['application/json;charset=UTF-16'],
    ['application/json; charset="'],
    ['application/json; charset=latin1; v=1'],
    ['application/problem+json'],
    ['Application/Vnd.Api+JSON; v=1'],
  ])('takes %s', async (type) => {
    const { id, secret } = await issue()
    const text = '\ufeff{"name":"\u00fcber"}'
    const answer = await send(await serve(), `/keys/${id}`, secret, text, { method: 'PATCH', type })
    expect([answer.status, (await keys.get(id))?.name]).toEqual([200, '\u00fcber'])
  })

  test.each([
    ['application/x-www-form-urlencoded', 'reason=a', 'Send the body as application/json, not as application/x-www-form-urlencoded.'],
    ['multipart/form-data; boundary=x', '--x--', 'Send the body as application/json, not as multipart/form-data.'],
    ['Text/Plain', GRACE, 'Send the body as application/json, not as text/plain.'],
    ['text/json', GRACE, 'Send the body as application/json, not as text/json.'],
    ['application/json, text/plain', GRACE, 'Send the body as application/json.'],
    ['application/jsonp', GRACE, 'Send the body as application/json, not as application/jsonp.'],
    ['json', GRACE, 'Send the body as application/json.'],
    [`application/${'x'.repeat(33)}`, GRACE, 'Send the body as application/json.'],
    ['', GRACE, 'Send the body as application/json.'],
  ])('refuses %j by name', async (type, text, detail) => {
    for (const before of [[], [framework.urlencoded({ extended: true })], [consuming()]]) {
      for (const chunked of [false, true]) {
        const { id, secret } = await issue()
        const answer = await send(await serve(...before), '/keys/self/rotate', secret, text, { type, chunked })
        expect([answer.status, answer.body.detail]).toEqual([415, detail])
        expect((await keys.get(id))?.generation).toBe(1)
      }
    }
  })

  describe('a body that is compressed', () => {
    const codings: [string, (bytes: Buffer) => Buffer][] = [
      ['identity', (bytes) => bytes],
      ['gzip', (bytes) => gzipSync(bytes)],
      ['x-gzip', (bytes) => gzipSync(bytes)],
      ['GZip', (bytes) => gzipSync(bytes)],
      ['identity, gzip', (bytes) => gzipSync(bytes)],
      ['deflate', (bytes) => deflateSync(bytes)],
      ['deflate', (bytes) => deflateRawSync(bytes)],
      ['br', (bytes) => brotliCompressSync(bytes)],
    ]
    test.each(codings)('with %s is understood, also by somebody before', async (coding, compress) => {
      for (const before of [next, framework.raw({ type: () => true, inflate: true }), handing()]) {
        // body-parser knows fewer names.
        if (before !== next && !['gzip', 'identity'].includes(coding)) continue
        const { id, secret } = await issue()
        const url = await serve(before)
        const answer = await send(url, '/keys/self/rotate', secret, compress(Buffer.from(GRACE)), { coding })
        expect([answer.status, (await keys.get(id))?.generation, await accepted(url, secret)]).toEqual([200, 2, 200])
      }
    })

    test.each<[string, string, Buffer | string, number]>([
      ['in a way that nobody knows', 'zip', GRACE, 415],
      ['twice', 'gzip, gzip', gzipSync(gzipSync(GRACE)), 415],
      ['with a name of Object.prototype', 'constructor', GRACE, 415],
      ['in another way than it says', 'br', gzipSync(GRACE), 400],
      ['not at all', 'gzip', GRACE, 400],
      ['and broken off', 'gzip', gzipSync(GRACE).subarray(0, -9), 400],
      ['from more than 16 KiB', 'gzip', gzipSync(`{"reason":"${'x'.repeat(17_000)}"}`), 413],
      ['from two million bytes', 'br', brotliCompressSync(Buffer.alloc(2_000_000, 32)), 413],
    ])('%s is refused, and nothing changes', async (_what, coding, bytes, status) => {
      const { id, secret } = await issue()
      const answer = await send(await serve(), '/keys/self/rotate', secret, bytes, { coding })
      expect([answer.status, (await keys.get(id))?.generation]).toEqual([status, 1])
    })
  })

  test.each<[string, Buffer | string, number]>([
    ['bytes that are not UTF-8', Buffer.from([...Buffer.from('{"reason":"'), 0xff, ...Buffer.from('"}')]), 400],
    ['UTF-16', Buffer.from(GRACE, 'utf16le'), 400],
    ['two marks of byte order', `\ufeff\ufeff${GRACE}`, 400],
    ['blanks', '   ', 400],
    ['two objects', '{}{}', 400],
    ['null', 'null', 400],
    ['a text', '"retire"', 400],
    ['a list', '[{}]', 400],
    ['an unknown field', '{"retires":"now"}', 400],
    ['a field of Object.prototype', '{"__proto__":{"emergency":true}}', 400],
    ['an infinite number', '{"retire":{"afterMs":1e999}}', 400],
    ['more than 16 KiB', `{"retire":"now"}${' '.repeat(17_000)}`, 413],
    ['much more than 16 KiB', ' '.repeat(600_000), 413],
  ])('refuses %s, and nothing changes', async (_what, text, status) => {
    for (const before of [next, framework.raw({ type: () => true }), framework.text({ type: () => true })]) {
      for (const chunked of [false, true]) {
        // Who makes a text of it drops what it cannot read and a mark of byte order; a parser has its own limit, and its own refusal.
        if (before !== next && (Buffer.isBuffer(text) || text.startsWith('\ufeff') || text.length > 100_000)) continue
        const { id, secret } = await issue()
        const answer = await send(await serve(before), '/keys/self/rotate', secret, text, { chunked })
        expect([chunked, answer.status, (await keys.get(id))?.generation]).toEqual([chunked, status, 1])
      }
    }
  })

  test('a request that is refused before its body is wanted leaves no rejection behind', async () => {
    const unhandled = jest.fn()
    process.on('unhandledRejection', unhandled)
    const url = await serve()
    for (const chunked of [false, true]) expect((await send(url, '/keys/self/rotate', 'x', '{', { chunked })).status).toBe(401)
    await new Promise(setImmediate)
    process.off('unhandledRejection', unhandled)
    expect(unhandled).not.toHaveBeenCalled()
  })

  test('a connection serves further requests after a body that was too large', async () => {
    const { secret } = await issue()
    const url = await serve()
    const big = new Blob(['x'.repeat(400_000)]).stream()
    const init = { method: 'POST', headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json' } }
    const first = await fetch(`${url}/keys/self/rotate`, { ...init, body: big, duplex: 'half' } as RequestInit)
    expect([first.status, ((await first.json()) as Answer['body']).code]).toEqual([413, 'body_too_large'])
    expect((await fetch(`${url}/keys/self/rotate`, init)).status).toBe(200)
  })
})

describe('a request that never came over a wire', () => {
  const begin = async (parts: object): Promise<object> => {
    const read = await beginBody(parts as Request, ['reason', 'retire'])
    if ('refusal' in read) throw read.refusal
    return read.body
  }

  test.each<[string, object, object]>([
    ['an object, and no headers', { body: { reason: 'a' }, headers: {} }, { reason: 'a' }],
    ['an object, and nothing else', { body: { reason: 'a' } }, { reason: 'a' }],
    ['bytes, and no headers', { body: Buffer.from('{"reason":"a"}'), headers: {} }, { reason: 'a' }],
    ['a text, and no headers', { body: '{"reason":"a"}', headers: {} }, { reason: 'a' }],
    ['an empty object', { body: {}, headers: {} }, {}],
    ['nothing', { headers: {} }, {}],
    [
      'a length that is a number',
      { body: '{"reason":"a"}', headers: { 'content-length': 14, 'content-type': 'application/json' } },
      { reason: 'a' },
    ],
    ['a length in a list', { body: {}, headers: { 'content-length': ['0'] } }, {}],
  ])('%s', async (_what, parts, body) => {
    expect(await begin(parts)).toEqual(body)
  })

  test.each<[string, object, string]>([
    ['a length, and an empty object', { body: {}, headers: { 'content-length': '14', 'content-type': 'application/json' } }, READ_BEFORE],
    ['a length, and nothing', { headers: { 'content-length': '14', 'content-type': 'application/json' } }, READ_BEFORE],
    ['a length that is no number', { headers: { 'content-length': 'x', 'content-type': 'application/json' } }, READ_BEFORE],
    ['an unknown length, and nothing', { headers: { 'transfer-encoding': 'chunked', 'content-type': 'application/json' } }, READ_BEFORE],
    [
      'a form',
      { body: { reason: 'a' }, headers: { 'content-type': 'multipart/form-data' } },
      'Send the body as application/json, not as multipart/form-data.',
    ],
    ['a circle', { body: circle() }, 'The body is nested too deeply, or is not plain JSON.'],
  ])('%s is refused', async (_what, parts, message) => {
    await expect(begin(parts)).rejects.toThrow(message)
  })

  const headers = { 'content-length': '14', 'content-type': 'application/json' }
  const message = (stream: Readable, more: object = { headers }): object => Object.assign(stream, more)

  test('a stream that has ended, was destroyed or yields less than it says is not waited for', async () => {
    const ended = Readable.from([])
    await ended.toArray()
    await expect(begin(message(ended))).rejects.toThrow(READ_BEFORE)
    const destroyed = new Readable({ read() {} }).destroy()
    await expect(begin(message(destroyed))).rejects.toThrow('The connection was closed before the body was read.')
    await expect(begin(message(Readable.from([])))).rejects.toThrow(READ_BEFORE)
    const failing = new Readable({ read() {} })
    const waits = begin(message(failing))
    failing.destroy(new Error('reset'))
    await expect(waits).rejects.toThrow('The connection was closed before the body was read.')
  })

  test('what is in a stream already counts without a header too', async () => {
    const stream = new Readable({ read() {} })
    stream.push('{"reason":"a"}')
    stream.push(null)
    expect(await begin(message(stream, { headers: { 'content-type': 'application/json' } }))).toEqual({ reason: 'a' })
  })

  test('over HTTP/2 there is a body unless the stream ends with its headers', async () => {
    const type = { 'content-type': 'application/json' }
    const open = message(Readable.from([Buffer.from('{"reason":"a"}')]), { headers: type, stream: { endAfterHeaders: false } })
    expect(await begin(open)).toEqual({ reason: 'a' })
    const gone = Readable.from([Buffer.from('{"reason":"a"}')])
    await gone.toArray()
    await expect(begin(message(gone, { headers: type, stream: { endAfterHeaders: false } }))).rejects.toThrow(READ_BEFORE)
    expect(await begin(message(new Readable({ read() {} }), { headers: {}, stream: { endAfterHeaders: true } }))).toEqual({})
  })
})

/** A body whose fields are accessors of its class. */
class Hidden {
  readonly #body: { [name: string]: unknown }
  constructor(body: unknown) {
    this.#body = body as { [name: string]: unknown }
  }
  get retire(): unknown {
    return this.#body.retire
  }
  get emergency(): unknown {
    return this.#body.emergency
  }
  get reason(): unknown {
    return this.#body.reason
  }
}

function placeholder(value: unknown): RequestHandler {
  return (req, _res, next) => {
    req.body = value
    next()
  }
}

function remade(make: (body: unknown) => unknown): RequestHandler {
  return (req, _res, next) => {
    if (req.method !== 'GET') req.body = make(req.body)
    next()
  }
}

/** Reads all, for a log perhaps, and tells nobody. */
function consuming(then: (req: IncomingMessage) => void = () => {}): RequestHandler {
  return (req, _res, next) => {
    req.resume().on('end', () => {
      then(req)
      setImmediate(next)
    })
  }
}

function deleting(): RequestHandler {
  return (req, _res, next) => {
    for (const name of ['content-length', 'content-encoding', 'transfer-encoding']) delete req.headers[name]
    next()
  }
}

function zeroing(): RequestHandler {
  return (req, _res, next) => {
    req.headers['content-length'] = '0'
    next()
  }
}

/** Touches the request when the router has begun to read. */
function afterwards(touch: (req: Request) => unknown): RequestHandler {
  return (req, _res, next) => {
    next()
    if (req.method !== 'GET') touch(req)
  }
}

function adding(): RequestHandler {
  return (req, _res, next) => {
    req.body = ''
    req.on('data', (chunk) => {
      req.body += chunk
    })
    next()
  }
}

/** Hands on the bytes as they came. */
function handing(): RequestHandler {
  return (req, _res, next) => {
    req.toArray().then((chunks) => {
      req.body = Buffer.concat(chunks)
      next()
    }, next)
  }
}

function failing(parser: RequestHandler): RequestHandler[] {
  return [(req, res, next) => parser(req, res, () => next())]
}

function throwing(): never {
  throw new Error('not signed')
}

function stuck(): Writable {
  return new Writable({ highWaterMark: 1, write() {} })
}

async function iterate(stream: Readable): Promise<void> {
  for await (const chunk of stream) void chunk
}

function readAll(stream: Readable): void {
  while (stream.read() !== null);
}

/** Takes the first bytes only, and goes on. */
function sniffing(): RequestHandler {
  return (req, _res, next) => {
    req.once('readable', () => {
      req.read(5)
      next()
    })
  }
}

function circle(): object {
  const body: { retire?: unknown } = {}
  body.retire = body
  return body
}

interface How {
  readonly method?: string
  readonly type?: string
  readonly coding?: string
  readonly chunked?: boolean
}

function send(
  url: string,
  path: string,
  secret: string,
  body: string | Buffer,
  { method = 'POST', type = 'application/json', coding, chunked = false }: How = {},
): Promise<Answer> {
  const headers = [
    ...(type === '' ? [] : ['Content-Type', type]),
    ...(coding === undefined ? [] : ['Content-Encoding', coding]),
    ...(chunked ? ['Transfer-Encoding', 'chunked'] : ['Content-Length', String(Buffer.byteLength(body))]),
  ]
  return raw(url, secret, body, headers, method, path)
}

function raw(
  url: string,
  secret: string,
  body: string | Buffer | undefined,
  headers: readonly string[],
  method = 'POST',
  path = '/keys/self/rotate',
): Promise<Answer> {
  const own = ['Host', new URL(url).host, 'Connection', 'close', 'Authorization', `Bearer ${secret}`]
  return new Promise((resolve, reject) => {
    const sent = request(url + path, { method, headers: [...own, ...headers], agent: false }, (response) => {
      response
        .setEncoding('utf8')
        .toArray()
        .then((parts) => {
          const text = parts.join('')
          resolve({ status: response.statusCode ?? 0, body: text === '' ? undefined : JSON.parse(text) })
        })
        .catch(reject)
    })
    sent.on('error', reject)
    sent.end(body)
  })
}
