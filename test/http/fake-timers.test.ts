import { once } from 'node:events'
import { request } from 'node:http'
import express from 'express'
import { createApiKeys, keyRouter, memoryStore } from 'express-api-keys'
import { listen } from '../support/listen.js'

afterEach(() => {
  jest.useRealTimers()
})

test.each([
  ['listens for readable', 'readable'],
  ['pauses it', 'pause'],
])('a body is read under the fake timers of a test, also where something in front %s', async (_how, what) => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: 'the-server-secret-of-these-tests-0123456789' })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const app = express()
  app.use((req, _res, next) => {
    if (what === 'readable') req.on('readable', () => {})
    else req.once('data', () => req.pause())
    next()
  })
  app.use(keyRouter(keys))
  const url = await listen(app)

  jest.useFakeTimers()
  const headers = { authorization: `Bearer ${secret}`, 'content-type': 'application/json' }
  const sent = request(`${url}/self/rotate`, { method: 'POST', headers, agent: false })
  sent.end('{"retire":{"afterMs":3600000}}')
  const [answer] = await once(sent, 'response')
  jest.useRealTimers()
  expect(answer.statusCode).toBe(200)
  expect(await keys.verify(secret)).toMatchObject({ ok: true, grace: expect.anything() })
})
