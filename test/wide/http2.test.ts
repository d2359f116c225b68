import { once } from 'node:events'
import { connect, createServer } from 'node:http2'
import type { AddressInfo } from 'node:net'
import express, { type RequestHandler, type Response } from 'express'
import { type ApiKeys, bearerAuth, createApiKeys, keyRouter, memoryStore } from 'express-api-keys'
import express4 from 'express4'
import bridge from 'http2-express-bridge'
import { atEnd } from '../support/cleanup.js'
import { SERVER_SECRET } from '../support/process.js'

type Ask = (path: string, secret: string, body?: string, more?: { [name: string]: string }) => Promise<{ status: number; text: string }>

async function serve(keys: ApiKeys, ...before: RequestHandler[]): Promise<Ask> {
  const app = bridge(express4)
  for (const each of before) app.use(each)
  app.use('/keys', keyRouter(keys))
  app.get('/data', bearerAuth(keys), (_req: unknown, res: Response) => void res.end())
  const server = createServer(app)
  // The bridge looks here for what a TLS connection says of itself.
  server.on('connection', (socket) => Object.assign(socket, { alpnProtocol: 'h2c' }))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const session = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  atEnd(async () => {
    session.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
  return async (path, secret, body, more = {}) => {
    const head = { ':method': path === '/data' ? 'GET' : 'POST', ':path': path, authorization: `Bearer ${secret}`, ...more }
    const stream = session.request(head, { endStream: path === '/data' || body === undefined })
    if (body !== undefined) stream.end(body)
    const [{ ':status': status }] = await once(stream, 'response')
    const parts = await stream.setEncoding('utf8').toArray()
    return { status, text: parts.join('') }
  }
}

let keys: ApiKeys
beforeAll(() => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, leaseMs: 5_000, waitForLease: false, onError: () => {} })
})
afterAll(() => keys.close())

const json = { 'content-type': 'application/json' }

test.each<[string, boolean, RequestHandler[]]>([
  ['alone', true, []],
  ['with express.json()', true, [express4.json()]],
  ['with express.json() of Express 5', true, [express.json()]],
  ['with a log that reads along', true, [(req, _res, next) => next(void req.on('data', () => {}))]],
  ['with a log that reads first', false, [(req, _res, next) => void req.resume().on('end', () => setImmediate(next))]],
])('over HTTP/2 %s, a body that no header announces counts, or nothing changes', async (_what, kept, before) => {
  const ask = await serve(keys, ...before)
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'a', scopes: ['api_keys:write'] })
  const { status } = await ask('/keys/self/rotate', secret, '{"retire":{"afterMs":3600000}}', json)
  expect([status, (await keys.get(key.id))?.generation, (await ask('/data', secret)).status]).toEqual([
    ...(kept ? [200, 2] : [400, 1]),
    200,
  ])
})

test('over HTTP/2 a request without a body needs none, nor one whose stream is ended later', async () => {
  const ask = await serve(keys)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'a', scopes: [] })
  const first = await ask('/keys/self/rotate', secret)
  expect(first.status).toBe(200)
  expect((await ask('/keys/self/rotate', JSON.parse(first.text).secret, '')).status).toBe(200)
})

test('over HTTP/2 a body that is too large, of another type or without one is refused', async () => {
  const ask = await serve(keys)
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'a', scopes: [] })
  const statuses = [
    await ask('/keys/self/rotate', secret, `{"retire":"now"}${' '.repeat(20_000)}`, json),
    await ask('/keys/self/rotate', secret, '{"retire":"now"}', { 'content-type': 'text/plain' }),
    await ask('/keys/self/rotate', secret, '{"retire":"now"}'),
  ].map(({ status }) => status)
  expect([...statuses, (await keys.get(key.id))?.generation]).toEqual([413, 415, 415, 1])
})
