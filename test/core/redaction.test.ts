import { inspect } from 'node:util'
import express from 'express'
import { createApiKeys, memoryStore } from 'express-api-keys'
import request from 'supertest'

test('a result shows its secret to who reads the property, and to no printer', async () => {
  const server = 'the-server-secret-0123456789-0123456789'
  const keys = createApiKeys({ store: memoryStore(), serverSecret: server })
  const made = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const rotated = await keys.rotate({ as: { secret: made.secret }, idempotencyKey: 'i' })
  const verified = await keys.verify(rotated.secret)
  const refused = await keys.rotate({ as: { secret: made.secret } }).catch((error: unknown) => error)
  expect(made.secret).toMatch(/^sk_live_/)
  expect(Object.isFrozen(made.key.scopes) && Object.isFrozen(made.key.metadata)).toBe(true)
  for (const value of [made, rotated, verified, refused, keys, { made }, [rotated], { ...made }]) {
    for (const text of [
      inspect(value, { depth: null, showHidden: true, getters: false }),
      json(value),
      String(value),
      ...(value instanceof Error ? [value.stack ?? '', value.message] : []),
    ]) {
      for (const secret of [made.secret, rotated.secret, server]) expect(text).not.toContain(secret)
    }
  }
})

test('an issued key that is sent as it is, or as a copy, is an error that says what to send, and not a secret that is lost', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: 'the-server-secret-0123456789-0123456789' })
  const issued = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', rotationSecret: true })
  const { secret, ...rest } = issued
  expect(JSON.parse(JSON.stringify({ secret, id: issued.key.id }))).toEqual({ secret: issued.secret, id: issued.key.id })
  for (const value of [issued, { ...issued }, Object.assign({}, issued), rest, [issued], { made: issued }]) {
    expect(() => JSON.stringify(value)).toThrow('Pick what the client gets, such as { secret: issued.secret, id: issued.key.id }')
    expect(inspect(value, { depth: 5 })).toContain("secret: '[redacted]'")
  }
  const app = express()
  app.post('/', (_req, res) => {
    res.json(issued)
  })
  app.use(((error, _req, res, _next) => {
    res.status(500).json({ told: error.message })
  }) as express.ErrorRequestHandler)
  const answer = await request(app).post('/')
  expect([answer.status, answer.body.told]).toEqual([500, expect.stringContaining('Pick what the client gets')])
})

function json(value: unknown): string {
  try {
    return JSON.stringify(value) ?? ''
  } catch (error) {
    return String(error)
  }
}
