import express from 'express'
import { apiKeyOf, bearerAuth, createApiKeys, keyRouter, memoryStore, requireScope, scheme } from 'express-api-keys'
import { listen } from '../support/listen.js'

const SECRET = 'the-server-secret-0123456789-0123456789'

test('apiKeyOf gives the key behind bearerAuth, and throws where no bearerAuth stands before the handler', async () => {
  const keys = createApiKeys<{ plan: string }>({ store: memoryStore(), serverSecret: SECRET })
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci', metadata: { plan: 'paid' } })
  const app = express()
  app.get('/guarded', bearerAuth(keys), (req, res) => res.json([apiKeyOf(req).id, apiKeyOf<{ plan: string }>(req).metadata.plan]))
  app.get('/open', (req, res) => res.json(apiKeyOf(req)))
  app.use(((error, _req, res, _next) => res.status(error.status).json({ code: error.code })) as express.ErrorRequestHandler)
  const url = await listen(app)
  const headers = { Authorization: `Bearer ${secret}` }
  expect(await (await fetch(`${url}/guarded`, { headers })).json()).toEqual([key.id, 'paid'])
  const answer = await fetch(`${url}/open`, { headers })
  expect([answer.status, await answer.json()]).toEqual([500, { code: 'internal_error' }])
})

test('what the HTTP layer needs of keys is no part of what applications see, and goes along with a wrapper around them', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SECRET })
  expect(Object.keys(keys).sort()).toEqual(
    [
      'close',
      'create',
      'disable',
      'enable',
      'events',
      'get',
      'import',
      'list',
      'migrate',
      'on',
      'erase',
      'peek',
      'prune',
      'revokeAll',
      'ready',
      'revoke',
      'rotate',
      'update',
      'verify',
      'wellFormed',
    ].sort(),
  )
  for (const wrapped of [{ ...keys }, Object.create(keys), new Proxy(keys, {})]) {
    expect(() => [bearerAuth(wrapped), keyRouter(wrapped)]).not.toThrow()
  }
  for (const other of [undefined, null, {}, { verify: keys.verify, peek: keys.peek, rotate: keys.rotate }, 'keys']) {
    expect(() => bearerAuth(other as never)).toThrow('bearerAuth takes what createApiKeys returned')
    expect(() => keyRouter(other as never)).toThrow('keyRouter takes what createApiKeys returned')
  }
})

test('what would be passed over in silence is refused, and said', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: 'a-server-secret-for-tests-0123456789' })
  const { secret } = await keys.create({ as: 'application', ownerId: 'a', name: 'n' })
  expect(() => requireScope('a:read', ...(['b:write'] as never[]))).toThrow('For several scopes write a list')
  expect(() => requireScope(keys as never, ...(['a'] as never[]))).toThrow('no keys')
  for (const from of [{ scope: 'x' }, '1.2.3.4', { Ip: '1.2.3.4' }]) {
    await expect(keys.verify(secret, from as never)).rejects.toMatchObject({ code: 'invalid_request' })
    expect(() => keys.peek(secret, from as never)).toThrow(expect.objectContaining({ code: 'invalid_request' }))
  }
  expect(() => scheme('basic')).toThrow('there is basic()')
  for (const cache of [{ get() {} }, { get() {}, set() {}, quit() {} }, () => {}])
    expect(() =>
      createApiKeys({ store: memoryStore(), serverSecret: 'a-server-secret-for-tests-0123456789', cache: cache as never }),
    ).toThrow('such as redisCache(client)')
})

test('apiKeyOf behind a bearerAuth that let a request without a key pass asks for one', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: 'a-server-secret-for-tests-0123456789' })
  const app = express()
  app.get('/optional', bearerAuth(keys, { optional: true }), (req, res) => res.json(apiKeyOf(req)))
  const answer = await fetch(`${await listen(app)}/optional`)
  expect(answer.status).toBe(401)
})
