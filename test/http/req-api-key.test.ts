import express from 'express'
import { apiKeyOf, bearerAuth, createApiKeys, keyRouter, memoryStore } from 'express-api-keys'
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
