import express, { type Express } from 'express'
import { type ApiKeys, apiKeyOf, bearerAuth, keyRouter } from 'express-api-keys'
import { testApiKeys } from 'express-api-keys/testing'
import request from 'supertest'

function createApp(keys: ApiKeys): Express {
  const app = express()
  app.use('/v1/api-keys', keyRouter(keys))
  app.get('/v1/reports', bearerAuth(keys, { scope: 'reports:read' }), (req, res) => {
    res.json({ for: apiKeyOf(req).ownerId })
  })
  return app
}

test('reports need their scope, until the key expires', async () => {
  const { keys, clock, issue, close } = await testApiKeys()
  const app = createApp(keys)
  const reader = await issue({ ownerId: 'acme', scopes: ['reports:read'], expiresAt: new Date(clock.wallMs() + 60_000) })
  const stranger = await issue()

  await request(app).get('/v1/reports').expect(401)
  await request(app).get('/v1/reports').set(stranger.headers).expect(403)
  await request(app).get('/v1/reports').set(reader.headers).expect(200, { for: 'acme' })
  clock.advance(60_000)
  await request(app).get('/v1/reports').set(reader.headers).expect(401)
  await close()
})

test('a client that lost the response to its rotation gets it again', async () => {
  const { keys, issue, close } = await testApiKeys()
  const app = createApp(keys)
  const { headers } = await issue()

  const rotate = () => request(app).post('/v1/api-keys/self/rotate').set(headers).set('Idempotency-Key', 'the-first-rotation').expect(200)
  const [lost, repeated] = [await rotate(), await rotate()]
  expect(repeated.body).toEqual(lost.body)
  await close()
})
