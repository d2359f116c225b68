import { contracts } from 'express-api-keys'
import { everyStore, playContract, type Serving, serveContract } from '../../support/contract.js'

const contract = contracts.blendFi
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

playContract({
  contract,
  async prepare(keys) {
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'worker' })
    return { request: { path: `/${key.id}/rotate`, secret }, secret, retires: secret, id: key.id }
  },
  async prepareGuarded(keys) {
    const caller = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const { key, rotationSecret = '' } = await keys.create({ as: 'application', ownerId: 'acme', name: 'guarded', rotationSecret: true })
    return { request: { path: `/${key.id}/rotate`, secret: caller.secret }, rotationSecret }
  },
  secretOf: ({ body }) => body.api_key,
  needsIdempotencyKey: true,
  published: { message: expect.any(String), request_id: expect.stringMatching(UUID), details: {} },
})

describe.each(everyStore)('on %s', (_name, makeStore) => {
  let here: Serving
  beforeAll(async () => {
    here = await serveContract(contract, await makeStore())
  })

  test('answers as published: a new key in the place of the old one, which stays with its end and its successor', async () => {
    const expiresAt = '2099-01-31T00:00:00.000Z'
    const fields = {
      ownerId: 'acme',
      name: 'worker',
      environment: 'test',
      scopes: ['trade', 'read'],
      metadata: { team: 1 },
      expiresAt,
    } as const
    const old = await here.keys.create({ as: 'application', ...fields })
    const { status, body } = await here.send({ path: `/${old.key.id}/rotate`, secret: old.secret, idempotencyKey: 'one' })
    expect([status, body]).toEqual([
      200,
      {
        id: expect.stringMatching(UUID),
        key_prefix: 'sk_test_',
        api_key: expect.stringMatching(/^sk_test_/),
        capabilities: ['trade', 'read'],
        name: 'worker',
        created_at: expect.any(String),
      },
    ])
    expect(body.id).not.toBe(old.key.id)
    expect(await here.keys.get(body.id)).toMatchObject({
      ...fields,
      generation: 1,
      status: 'active',
      createdAt: body.created_at,
      rotatedTo: null,
    })
    expect(await here.keys.get(old.key.id)).toMatchObject({ status: 'revoked', revokedAt: expect.any(String), rotatedTo: body.id })
    const events = async (id: string): Promise<unknown> =>
      (await here.keys.events({ id }))?.items.map(({ type, details }) => [type, details])
    expect(await events(body.id)).toEqual([['key.created', { rotatedFrom: old.key.id }]])
    expect(await events(old.key.id)).toEqual([
      ['key.rotated', { rotatedTo: body.id }],
      ['key.created', {}],
    ])
    const again = await here.send({ path: `/${body.id}/rotate`, secret: body.api_key, idempotencyKey: 'one' })
    expect([again.status, await here.accepted(body.api_key), await here.accepted(again.body.api_key)]).toEqual([200, 401, 200])
  })

  test('wants an Idempotency-Key, and a UUID', async () => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const missing = await here.send({ path: `/${key.id}/rotate`, secret })
    expect([missing.status, missing.body.code]).toEqual([400, 'idempotency_key_missing'])
    const id = await here.send({ path: '/not-a-uuid/rotate', secret, idempotencyKey: 'one' })
    expect([id.status, id.body.code]).toEqual([400, 'key_id_invalid'])
    expect(await here.accepted(secret)).toBe(200)
  })

  test('has one shape for every error', async () => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const [other, admin, foreign] = [
      await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' }),
      await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['api_keys:write'] }),
      await here.keys.create({ as: 'application', ownerId: 'other', name: 'n' }),
    ]
    await here.keys.revoke({ as: 'application', id: key.id })
    const large = JSON.stringify({ a: 'x'.repeat(20_000) })
    const errors: [number, string, Parameters<Serving['send']>[0]][] = [
      [401, 'invalid_key', { path: `/${key.id}/rotate`, secret }],
      [403, 'insufficient_scope', { path: `/${admin.key.id}/rotate`, secret: other.secret }],
      [404, 'key_not_found', { path: `/${foreign.key.id}/rotate`, secret: admin.secret }],
      [409, 'key_revoked', { path: `/${key.id}/rotate`, secret: admin.secret }],
      [400, 'body_too_large', { path: `/${other.key.id}/rotate`, secret: other.secret, body: large }],
      [400, 'unsupported_media_type', { path: `/${other.key.id}/rotate`, secret: other.secret, body: '{}', type: 'text/plain' }],
    ]
    for (const [status, code, sent] of errors) {
      const answer = await here.send({ idempotencyKey: code, ...sent })
      expect([answer.status, answer.body]).toEqual([
        status,
        { code, message: expect.any(String), request_id: answer.headers['x-request-id'], details: {} },
      ])
    }
  })

  test('takes over a request id that is sane, and makes one for any other', async () => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const send = (...headers: string[]): ReturnType<Serving['send']> => here.send({ path: `/${key.id}/rotate`, secret, headers })
    expect((await send('X-Request-Id', 'abc-123')).body.request_id).toBe('abc-123')
    for (const bad of [['X-Request-Id', 'a b'], ['X-Request-Id', 'x'.repeat(200)], ['X-Request-Id', 'a', 'X-Request-Id', 'b'], []]) {
      expect((await send(...bad)).body.request_id).toMatch(UUID)
    }
    expect((await send('X-Request-Id', 'ok', 'Idempotency-Key', 'k')).headers['x-request-id']).toBe('ok')
  })
})
