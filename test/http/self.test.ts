import express5 from 'express'
import { keyRouter, memoryStore } from 'express-api-keys'
import { operatorJwt } from 'express-api-keys/jwt'
import express4 from 'express4'
import jwt from 'jsonwebtoken'
import { type Instance, serve } from '../support/instance.js'
import { listen } from '../support/listen.js'
import { type Answer, call } from '../support/traffic.js'

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
])('on %s', (_name, framework) => {
  let here: Instance
  let own: { id: string; secret: string }

  beforeEach(async () => {
    here = await serve(memoryStore(), {}, framework)
    const { key, secret } = await here.keys.create({
      as: 'application',
      ownerId: 'acme',
      name: 'worker',
      expiresAt: '2090-01-01T00:00:00Z',
    })
    own = { id: key.id, secret }
  })

  const get = (secret = own.secret): Promise<Answer> => call(`${here.url}/keys/self`, { secret })
  const revoke = (options: Parameters<typeof call>[1] = {}): Promise<Answer> =>
    call(`${here.url}/keys/self/revoke`, { method: 'POST', secret: own.secret, ...options })

  test('GET /self tells a key without any scope what it is, until when, and how old its secret is', async () => {
    const answer = await get()
    expect([answer.status, answer.headers.get('cache-control')]).toEqual([200, 'no-store'])
    expect(answer.body).toEqual({ key: await here.keys.get(own.id) })
    expect(answer.body).toMatchObject({ key: { id: own.id, scopes: [], expiresAt: '2090-01-01T00:00:00.000Z' } })
    expect(JSON.stringify(answer.body)).not.toContain(own.secret)
  })

  test('POST /self/rotate brings the expiry forward where it is asked to, and never moves it back', async () => {
    const rotate = (expiresAt: unknown): Promise<Answer> =>
      call(`${here.url}/keys/self/rotate`, { method: 'POST', secret: own.secret, body: { expiresAt } })
    for (const [expiresAt, status, code] of [
      ['2091-01-01T00:00:00Z', 403, 'insufficient_scope'],
      [null, 403, 'insufficient_scope'],
      ['2001-01-01T00:00:00Z', 400, 'invalid_request'],
      [5, 400, 'invalid_request'],
    ] as const) {
      const answer = await rotate(expiresAt)
      expect([answer.status, (answer.body as { code: string }).code]).toEqual([status, code])
    }
    const { status, body } = await rotate('2080-01-01T00:00:00Z')
    expect([status, body]).toEqual([
      200,
      expect.objectContaining({ key: expect.objectContaining({ expiresAt: '2080-01-01T00:00:00.000Z' }) }),
    ])
  })

  test('GET /self says in a grace period when that ends, and refuses a secret that is dead, unknown or missing', async () => {
    const later = { retire: { afterMs: 60_000 } }
    const { body } = await call(`${here.url}/keys/self/rotate`, { method: 'POST', secret: own.secret, body: later })
    const { secret, acceptedUntil } = body as { secret: string; acceptedUntil: string }
    const inGrace = await get()
    expect([inGrace.status, inGrace.headers.get('api-key-expires-at')]).toEqual([200, acceptedUntil])
    expect((await get(secret)).headers.get('api-key-expires-at')).toBeNull()
    await here.keys.rotate({ as: { secret }, emergency: true })
    for (const dead of [own.secret, secret, 'sk_live_unknown']) expect((await get(dead)).status).toBe(401)
    expect((await call(`${here.url}/keys/self`)).status).toBe(401)
  })

  test('POST /self/revoke ends the key that asks, and gives a repetition the same answer', async () => {
    const first = await revoke({ idempotencyKey: 'once', body: { reason: 'found in a log' } })
    expect([first.status, first.body]).toMatchObject([200, { key: { id: own.id, status: 'revoked', revokedReason: 'found in a log' } }])
    expect((await get()).status).toBe(401)
    const again = await revoke({ idempotencyKey: 'once', body: { reason: 'found in a log' } })
    expect([again.status, again.headers.get('idempotent-replayed'), again.body]).toEqual([200, 'true', first.body])
    expect((await revoke({ idempotencyKey: 'another' })).status).toBe(401)
    const events = await here.keys.events({ id: own.id })
    expect(events?.items.filter(({ type }) => type === 'key.revoked')).toHaveLength(1)
  })

  test('a secret in its grace period cannot revoke the key', async () => {
    await call(`${here.url}/keys/self/rotate`, { method: 'POST', secret: own.secret, body: { retire: { afterMs: 60_000 } } })
    const answer = await revoke()
    expect([answer.status, answer.body]).toMatchObject([409, { code: 'secret_in_grace' }])
    expect((await here.keys.get(own.id))?.status).toBe('active')
  })

  test('an operator, who has no key, is told to name one', async () => {
    const [issuer, audience, key] = ['https://login.example', 'keys', 'k'.repeat(32)]
    const app = framework()
    app.use('/keys', keyRouter(here.keys, { operators: operatorJwt({ issuer, audience, algorithms: ['HS256'], key }) }))
    const url = await listen(app)
    const claims = { sub: 'support', scope: 'api_keys:read api_keys:write', owners: ['acme'] }
    const secret = jwt.sign(claims, key, { issuer, audience, expiresIn: 60 })
    for (const [method, path] of [
      ['GET', '/keys/self'],
      ['POST', '/keys/self/revoke'],
    ] as const) {
      const answer = await call(url + path, { method, secret })
      expect([answer.status, answer.body]).toMatchObject([400, { code: 'invalid_request' }])
    }
    expect((await here.keys.get(own.id))?.status).toBe('active')
  })
})
