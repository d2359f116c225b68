import { once } from 'node:events'
import { request } from 'node:http'
import { Writable } from 'node:stream'
import { gzipSync } from 'node:zlib'
import codegenie from '@codegenie/serverless-express'
import vendia from '@vendia/serverless-express'
import bodyParser1 from 'body-parser1'
import bodyParser2 from 'body-parser2'
import coBody from 'co-body'
import express5, { type RequestHandler } from 'express'
import { type ApiKeys, bearerAuth, createApiKeys, keyRouter, memoryStore } from 'express-api-keys'
import fileUpload from 'express-fileupload'
import express4 from 'express4'
import morgan from 'morgan'
import multer from 'multer'
import mocks from 'node-mocks-http'
import serverlessHttp from 'serverless-http'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

interface Sent {
  readonly method: string
  readonly path: string
  readonly headers: { readonly [name: string]: string }
  readonly body?: string | Buffer
}

interface Answer {
  readonly status: number
  readonly text: string
}

type Send = (sent: Sent) => Promise<Answer>
type Framework = typeof express5

/** A way in which requests reach the router; `kept` says whether a JSON body does. */
interface Way {
  readonly name: string
  readonly kept: boolean
  start(keys: ApiKeys): Promise<Send>
}

function application(keys: ApiKeys, framework: Framework, before: readonly RequestHandler[] = []): express5.Express {
  const app = framework()
  for (const each of before) app.use(each)
  app.use('/keys', keyRouter(keys))
  app.get('/data', bearerAuth(keys), (req, res) => void res.json(req.apiKey?.id))
  return app
}

const frameworks: [string, Framework][] = [
  ['Express 5', express5],
  ['Express 4', express4 as Framework],
]

/** Over real HTTP, behind a middleware. */
function behind(name: string, kept: boolean, make: () => RequestHandler[]): Way[] {
  return frameworks.flatMap(([title, framework]) =>
    [false, true].map((chunked) => ({
      name: `${name}, on ${title}${chunked ? ', in chunks' : ''}`,
      kept,
      start: async (keys) => overHttp(await listen(application(keys, framework, make())), chunked),
    })),
  )
}

function overHttp(url: string, chunked: boolean): Send {
  return ({ method, path, headers, body }) =>
    new Promise((resolve, reject) => {
      const framing = body === undefined ? {} : chunked ? { 'Transfer-Encoding': 'chunked' } : { 'Content-Length': Buffer.byteLength(body) }
      const sent = request(url + path, { method, headers: { ...headers, ...framing }, agent: false }, (response) => {
        response
          .setEncoding('utf8')
          .toArray()
          .then((parts) => resolve({ status: response.statusCode ?? 0, text: parts.join('') }), reject)
      })
      sent.on('error', reject)
      sent.end(body)
    })
}

const context = { awsRequestId: 'r', callbackWaitsForEmptyEventLoop: true }
// biome-ignore lint/suspicious/noExplicitAny: an event is what a cloud makes it
type Event = any
const EVENTS: [string, (sent: Sent) => Event][] = [
  ['API Gateway, format 1', gatewayV1],
  ['API Gateway, format 2', gatewayV2],
  ['a load balancer', loadBalancer],
]

/** A load balancer and an HTTP API hand on the length; a REST API does not. */
function lengthOf({ body }: Sent): { [name: string]: string } {
  return body === undefined ? {} : { 'content-length': String(Buffer.byteLength(body)) }
}

function carried({ body }: Sent): { body: string | null; isBase64Encoded: boolean } {
  if (body === undefined) return { body: null, isBase64Encoded: false }
  return { body: body.toString(Buffer.isBuffer(body) ? 'base64' : 'utf8'), isBase64Encoded: Buffer.isBuffer(body) }
}

function lists(values: { readonly [name: string]: string }): { [name: string]: string[] } {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, [value]]))
}

function gatewayV1(sent: Sent): Event {
  const [path = '', query = ''] = sent.path.split('?')
  const parameters = Object.fromEntries(new URLSearchParams(query))
  const identity = { sourceIp: '203.0.113.9', userAgent: 'test' }
  return {
    resource: '/{proxy+}',
    path,
    httpMethod: sent.method,
    headers: sent.headers,
    multiValueHeaders: lists(sent.headers),
    queryStringParameters: query === '' ? null : parameters,
    multiValueQueryStringParameters: query === '' ? null : lists(parameters),
    pathParameters: { proxy: path.slice(1) },
    stageVariables: null,
    requestContext: {
      resourcePath: '/{proxy+}',
      httpMethod: sent.method,
      path,
      protocol: 'HTTP/1.1',
      stage: 'prod',
      requestId: 'r',
      identity,
    },
    ...carried(sent),
  }
}

function gatewayV2(sent: Sent): Event {
  const [path = '', query = ''] = sent.path.split('?')
  const http = { method: sent.method, path, protocol: 'HTTP/1.1', sourceIp: '203.0.113.9', userAgent: 'test' }
  return {
    version: '2.0',
    routeKey: '$default',
    rawPath: path,
    rawQueryString: query,
    headers: { ...sent.headers, ...lengthOf(sent) },
    requestContext: {
      accountId: '1',
      apiId: 'a',
      domainName: 'x',
      http,
      requestId: 'r',
      routeKey: '$default',
      stage: '$default',
      timeEpoch: 1,
    },
    ...carried(sent),
    ...(sent.body === undefined ? { body: undefined } : {}),
  }
}

function loadBalancer(sent: Sent): Event {
  const [path = '', query = ''] = sent.path.split('?')
  return {
    requestContext: { elb: { targetGroupArn: 'arn:aws:elasticloadbalancing:eu-central-1:1:targetgroup/t/1' } },
    httpMethod: sent.method,
    path,
    queryStringParameters: Object.fromEntries(new URLSearchParams(query)),
    headers: { ...sent.headers, ...lengthOf(sent), 'x-forwarded-for': '203.0.113.9' },
    ...carried(sent),
    ...(sent.body === undefined ? { body: '' } : {}),
  }
}

function adapted(name: string, adapt: (app: express5.Express) => (event: Event) => Promise<Event>, kinds = EVENTS): Way[] {
  const parsers: [string, (framework: Framework) => RequestHandler[]][] = [
    ['alone', () => []],
    ['with express.json()', (framework) => [framework.json()]],
    ['with a log that reads the stream', () => [reading()]],
  ]
  return frameworks.flatMap(([title, framework]) =>
    kinds.flatMap(([kind, make]) =>
      parsers.map(([how, before]) => ({
        name: `${name} behind ${kind}, ${how}, on ${title}`,
        kept: true,
        async start(keys) {
          const handle = adapt(application(keys, framework, before(framework)))
          return async (sent) => {
            const { statusCode, body, isBase64Encoded } = await handle(make(sent))
            return { status: statusCode, text: isBase64Encoded ? Buffer.from(body, 'base64').toString() : body }
          }
        },
      })),
    ),
  )
}

/** By calling the router, or the application, with a request that was never sent. */
function mocked(name: string, headersOf: (sent: Sent) => object, whole: boolean): Way[] {
  return frameworks.map(([title, framework]) => ({
    name: `node-mocks-http ${name}, on ${title}`,
    kept: true,
    async start(keys) {
      const app = application(keys, framework)
      return async (sent) => {
        const body = sent.body === undefined ? {} : { body: JSON.parse(sent.body.toString()) }
        const req = mocks.createRequest({ method: sent.method, url: sent.path, headers: { ...sent.headers, ...headersOf(sent) }, ...body })
        const res = mocks.createResponse({ req, eventEmitter: (await import('node:events')).EventEmitter })
        const ended = once(res, 'end')
        if (whole) app(req, res)
        else (sent.path === '/data' ? bearerAuth(keys) : framework.Router().use('/keys', keyRouter(keys)))(req, res, () => res.end())
        await ended
        return { status: res.statusCode, text: res._getData() }
      }
    },
  }))
}

const ways: Way[] = [
  ...behind('body-parser 1', true, () => [bodyParser1.json()]),
  ...behind('body-parser 1 that only takes forms', true, () => [bodyParser1.urlencoded({ extended: true })]),
  ...behind('body-parser 1 as raw bytes', true, () => [bodyParser1.raw({ type: '*/*' })]),
  ...behind('body-parser 1 as text', true, () => [bodyParser1.text({ type: '*/*' })]),
  ...behind('body-parser 2', true, () => [bodyParser2.json()]),
  ...behind('body-parser 2 as raw bytes', true, () => [bodyParser2.raw({ type: () => true })]),
  ...behind('body-parser 2 as text', true, () => [bodyParser2.text({ type: () => true })]),
  ...behind('body-parser 1 and 2, with a verify', true, () => [
    bodyParser1.urlencoded({ extended: false }),
    bodyParser2.json({ verify() {} }),
  ]),
  ...behind('co-body as JSON', true, () => [parsing((req) => coBody.json(req))]),
  ...behind('co-body as text', true, () => [parsing((req) => coBody.text(req))]),
  ...behind('co-body by type, with what it read', false, () => [parsing((req) => coBody(req, { returnRawBody: true }))]),
  ...behind('morgan', true, () => [morgan('combined', { stream: new Writable({ write: (_chunk, _encoding, done) => done() }) })]),
  ...behind('multer, which passes over JSON', true, () => [multer().none()]),
  ...behind('express-fileupload, which passes over JSON', true, () => [fileUpload()]),
  ...behind('a log that reads the stream', false, () => [reading()]),
  ...behind('a log that reads the stream, and body-parser 1', false, () => [reading(), passingOver(bodyParser1.json())]),
  ...behind('a log that reads the stream after body-parser 1 has left its empty object', false, () => [
    bodyParser1.urlencoded({ extended: true }),
    reading(),
  ]),
  ...behind('body-parser 1 that fails and is passed over', false, () => [passingOver(bodyParser1.json({ limit: 5 }))]),
  ...behind('body-parser 2 that fails and is passed over', false, () => [passingOver(bodyParser2.json({ limit: 5 }))]),
  ...adapted('serverless-http', (app) => {
    const handle = serverlessHttp(app)
    return (event) => handle(event, context)
  }),
  ...adapted('@vendia/serverless-express', (app) => {
    const handle = vendia({ app })
    return (event) => handle(event, context)
  }),
  ...adapted('@codegenie/serverless-express', (app) => {
    const handle = codegenie({ app })
    return (event) => handle(event, context)
  }),
  ...mocked('with its own headers', () => ({}), true),
  ...mocked('with a length', (sent) => lengthOf(sent), true),
  ...mocked('in front of the router alone', () => ({}), false),
  ...mocked('in front of the router alone, with a length', (sent) => lengthOf(sent), false),
]

let keys: ApiKeys
beforeAll(() => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, leaseMs: 5_000, waitForLease: false, onError: () => {} })
})
afterAll(() => keys.close())

async function issue(): Promise<{ id: string; secret: string }> {
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'a', scopes: ['api_keys:read', 'api_keys:write'] })
  return { id: key.id, secret }
}

function post(path: string, secret: string, body?: string | Buffer, more: { [name: string]: string } = {}): Sent {
  const headers = {
    host: 'x',
    authorization: `Bearer ${secret}`,
    ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    ...more,
  }
  return { method: 'POST', path, headers, ...(body === undefined ? {} : { body }) }
}

describe.each(ways.map((way) => [way.name, way] as const))('behind %s', (_name, { kept, start }) => {
  let send: Send
  beforeAll(async () => {
    send = await start(keys)
  })

  async function accepted(secret: string): Promise<number> {
    return (await send({ method: 'GET', path: '/data', headers: { host: 'x', authorization: `Bearer ${secret}` } })).status
  }

  test('a retirement and an emergency are honored, or nothing changes', async () => {
    const [{ id, secret }, admin] = [await issue(), await issue()]
    const grace = await send(post('/keys/self/rotate', secret, '{"retire":{"afterMs":3600000}}'))
    expect([grace.status, (await keys.get(id))?.generation, await accepted(secret)]).toEqual(kept ? [200, 2, 200] : [400, 1, 200])
    const emergency = await send(post(`/keys/${id}/rotate`, admin.secret, '{"emergency":true}'))
    expect([emergency.status, (await keys.get(id))?.generation, await accepted(secret)]).toEqual(kept ? [200, 3, 401] : [400, 1, 200])
    if (!kept) expect(JSON.parse(grace.text)).toMatchObject({ code: 'invalid_request' })
  })

  test('the reason of a revocation is kept, or nothing changes', async () => {
    const { id, secret } = await issue()
    const { status } = await send(post('/keys/self/revoke'.replace('self', id), secret, '{"reason":"leaked"}'))
    const [event] = (await keys.events({ id }))?.items ?? []
    expect([status, event?.type, event?.details.reason]).toEqual(kept ? [200, 'key.revoked', 'leaked'] : [400, 'key.created', undefined])
  })

  test('a rotation without a body needs none, and an Idempotency-Key and a query get through', async () => {
    const { id, secret } = await issue()
    const first = await send(post('/keys/self/rotate', secret, undefined, { 'idempotency-key': '"k";v=1' }))
    const again = await send(post('/keys/self/rotate', secret, undefined, { 'idempotency-key': 'k' }))
    expect([first.status, again.status, again.text, (await keys.get(id))?.generation]).toEqual([200, 200, first.text, 2])
    const fresh = JSON.parse(first.text).secret as string
    const listed = await send({ method: 'GET', path: '/keys?limit=1', headers: { host: 'x', authorization: `Bearer ${fresh}` } })
    expect([listed.status, JSON.parse(listed.text).keys.length]).toEqual([200, 1])
  })
})

const adapters = ways.filter(({ name }) => name.includes('serverless') && name.includes('alone'))
test.each(adapters.map((way) => [way.name, way] as const))('a compressed body gets through %s', async (_name, { start }) => {
  const send = await start(keys)
  const { id, secret } = await issue()
  const { status } = await send(
    post('/keys/self/rotate', secret, gzipSync('{"retire":{"afterMs":3600000}}'), { 'content-encoding': 'gzip' }),
  )
  expect([status, (await keys.get(id))?.generation, (await keys.verify(secret)).ok]).toEqual([200, 2, true])
})

const FORMS: [string, RequestHandler[]][] = [
  ['body-parser 1', [bodyParser1.urlencoded({ extended: true })]],
  ['body-parser 2', [bodyParser2.urlencoded({ extended: true })]],
  ['co-body', [parsing((req) => coBody.form(req))]],
  ['multer', [multer().none()]],
  ['express-fileupload', [fileUpload()]],
]
test.each(FORMS)('a form that %s has read is refused by name', async (name, before) => {
  const files = name === 'multer' || name === 'express-fileupload'
  const type = files ? 'multipart/form-data; boundary=x' : 'application/x-www-form-urlencoded'
  const body = files ? '--x\r\nContent-Disposition: form-data; name="reason"\r\n\r\nleaked\r\n--x--\r\n' : 'reason=leaked'
  for (const [, framework] of frameworks) {
    for (const chunked of [false, true]) {
      const send = overHttp(await listen(application(keys, framework, before)), chunked)
      const { id, secret } = await issue()
      const { status, text } = await send(post(`/keys/${id}/revoke`, secret, body, { 'content-type': type }))
      expect([status, JSON.parse(text).detail]).toEqual([415, `Send the body as application/json, not as ${type.split(';')[0]}.`])
      expect((await keys.verify(secret)).ok).toBe(true)
    }
  }
})

test('a mock that announces a body and has none is refused', async () => {
  const { id, secret } = await issue()
  const headers = { authorization: `Bearer ${secret}`, 'content-type': 'application/json', 'content-length': '30' }
  for (const whole of [true, false]) {
    const req = mocks.createRequest({ method: 'POST', url: '/self/rotate', headers })
    const res = mocks.createResponse({ req, eventEmitter: (await import('node:events')).EventEmitter })
    const ended = once(res, 'end')
    if (whole) express5().use(keyRouter(keys))(req, res)
    else keyRouter(keys)(req, res, () => {})
    await ended
    expect([res.statusCode, (await keys.get(id))?.generation]).toEqual([400, 1])
  }
})

/** Reads all of a request for its log, and then lets others have their turn. */
function reading(): RequestHandler {
  return (req, _res, next) => {
    const log: unknown[] = []
    req.on('data', (chunk) => log.push(chunk))
    req.on('end', () => setImmediate(next))
  }
}

function parsing(parse: (req: express5.Request) => Promise<unknown>): RequestHandler {
  return (req, _res, next) => {
    if (req.headers['content-type'] === undefined) return next()
    parse(req).then((body) => {
      req.body = body
      next()
    }, next)
  }
}

function passingOver(parser: RequestHandler): RequestHandler {
  return (req, res, next) => parser(req, res, () => next())
}
