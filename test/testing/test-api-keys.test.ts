import { inspect } from 'node:util'
import express from 'express'
import { type ApiKeys, bearerAuth, contracts, keyRouter } from 'express-api-keys'
import { type TestApiKeysOptions, testApiKeys } from 'express-api-keys/testing'
import request from 'supertest'
import { atEnd } from '../support/cleanup.js'

/** An application as a user of the package might have it. */
function createApp({ keys }: { keys: ApiKeys }): express.Express {
  const app = express()
  app.use('/v1/api-keys', keyRouter(keys))
  app.use('/agents', keyRouter(keys, { contract: contracts.agents }))
  app.get('/v1/reports', bearerAuth(keys, { scope: 'reports:read' }), (req, res) => {
    res.json({ owner: req.apiKey?.ownerId })
  })
  return app
}

test('reports need their scope, until the key expires', async () => {
  const { keys, clock, issue, close } = await testApiKeys()
  const app = createApp({ keys })
  const reader = await issue({ scopes: ['reports:read'], expiresAt: new Date(clock.wallMs() + 60_000) })
  const stranger = await issue()

  await request(app).get('/v1/reports').expect(401)
  await request(app).get('/v1/reports').set(stranger.headers).expect(403)
  await request(app).get('/v1/reports').set(reader.headers).expect(200, { owner: 'test-owner' })
  clock.advance(60_000)
  await request(app).get('/v1/reports').set(reader.headers).expect(401)
  await close()
})

test('a key rotates itself over HTTP, at once, and its retry gets the same secret', async () => {
  const { keys, issue, close } = await testApiKeys()
  atEnd(close)
  const app = createApp({ keys })
  const { headers } = await issue()
  const rotate = () => request(app).post('/v1/api-keys/self/rotate').set(headers).set('Idempotency-Key', 'k').expect(200)
  const [first, again] = [await rotate(), await rotate()]
  expect(again.body).toEqual(first.body)
})

test('the old secret works until its grace period is over', async () => {
  const { keys, clock, issue, close } = await testApiKeys()
  atEnd(close)
  const { key, secret } = await issue()
  await keys.rotate({ as: 'application', id: key.id, retire: { afterMs: 3_600_000 } })
  clock.advance(3_599_000)
  expect(await keys.verify(secret)).toMatchObject({ ok: true })
  clock.advance(1_000)
  expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
})

test('what is held back is held back in real time, where nobody turns the clock, and takes the clock along', async () => {
  const { keys, clock, issue, close } = await testApiKeys()
  atEnd(close)
  const app = createApp({ keys })
  const { headers } = await issue({ rotationSecret: true })
  const before = clock.monotonicMs()
  await request(app)
    .post('/v1/api-keys/self/rotate')
    .set(headers)
    .send({ rotationSecret: `rot_live_${'x'.repeat(49)}` })
    .expect(401)
  expect(clock.monotonicMs() - before).toBe(250)
  const asleep = clock.sleep(3_600_000)
  clock.advance(3_600_000)
  await asleep
})

test('options and input are those of createApiKeys and create, and what a test has already is refused', async () => {
  const { issue, close } = await testApiKeys<{ plan: string }>({ prefix: 'acme' })
  atEnd(close)
  const issued = await issue({ ownerId: 'someone', environment: 'test', metadata: { plan: 'free' } })
  expect(issued.secret).toMatch(/^acme_test_/)
  expect(issued.key).toMatchObject({ ownerId: 'someone', name: 'test key', metadata: { plan: 'free' } })
  for (const name of ['store', 'clock', 'serverSecret']) {
    await expect(testApiKeys({ [name]: undefined } as TestApiKeysOptions)).rejects.toThrow(`testApiKeys has a ${name} of its own`)
  }
  await expect(testApiKeys({ leaseMs: 1 })).rejects.toMatchObject({ code: 'invalid_option' })
})

test('an issued key with its headers shows no secret where it is inspected', async () => {
  const { issue, close } = await testApiKeys()
  atEnd(close)
  const issued = await issue()
  expect(inspect(issued)).not.toContain(issued.secret)
  expect(issued.headers).toEqual({ Authorization: `Bearer ${issued.secret}` })
})

test('each call has keys of its own, and gives them up where they are disposed of', async () => {
  const [one, other] = [await testApiKeys(), await testApiKeys()]
  atEnd(other.close)
  const { secret } = await one.issue()
  expect(await other.keys.verify(secret)).toEqual({ ok: false, reason: 'unknown' })
  await one[Symbol.asyncDispose]()
  await expect(one.keys.verify(secret)).rejects.toThrow('closed')
})
