import { type ApiKeys, contracts, memoryStore } from 'express-api-keys'
import { everyStore, playContract, type Serving, serveContract } from '../../support/contract.js'

const contract = contracts.redditFind

playContract({
  contract,
  async prepare(keys) {
    const caller = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const target = await keys.create({ as: 'application', ownerId: 'acme', name: 'worker' })
    const request = { path: `/${target.key.id}/rotate`, secret: caller.secret }
    return { request, secret: caller.secret, retires: target.secret, id: target.key.id }
  },
  async prepareGuarded(keys) {
    const caller = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const { key, rotationSecret = '' } = await keys.create({ as: 'application', ownerId: 'acme', name: 'guarded', rotationSecret: true })
    return { request: { path: `/${key.id}/rotate`, secret: caller.secret }, rotationSecret }
  },
  secretOf: ({ body }) => body.token,
  published: { error: { code: 'UNAUTHORIZED', message: expect.any(String) } },
})

describe.each(everyStore)('on %s', (_name, makeStore) => {
  let here: Serving
  beforeAll(async () => {
    here = await serveContract(contract, await makeStore())
  })

  test('answers as published: the same key, its times, its last use and the new token', async () => {
    const scopes = ['api_keys:write']
    const { secret: admin } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'admin', environment: 'test', scopes })
    const { key, secret } = await here.keys.create({
      as: 'application',
      ownerId: 'acme',
      name: 'worker',
      environment: 'test',
      scopes: ['a', 'b'],
    })
    await here.accepted(secret)
    await written(here.keys, key.id)
    const used = await here.keys.get(key.id)
    const { status, body } = await here.send({ path: `/${key.id}/rotate`, secret: admin })
    expect([status, body]).toEqual([
      200,
      {
        object: 'open_api.key.rotate',
        key: {
          id: key.id,
          name: 'worker',
          environment: 'test',
          scopes: ['a', 'b'],
          status: 'active',
          tokenPrefix: 'sk_test_',
          tokenLast4: body.token.slice(-4),
          maskedToken: `sk_test_...${body.token.slice(-4)}`,
          createdAt: key.createdAt,
          updatedAt: expect.any(String),
          lastUsedAt: used?.lastUsedAt,
          lastUsedIp: '127.0.0.1',
          lastUsedUserAgent: null,
          revokedAt: null,
        },
        token: expect.stringMatching(/^sk_test_[0-9A-Za-z]{49}$/),
      },
    ])
    expect(Date.parse(body.key.updatedAt)).toBeGreaterThan(Date.parse(key.updatedAt))
    expect(used?.lastUsedAt).not.toBeNull()
  })

  test('says UNAUTHORIZED, FORBIDDEN, NOT_FOUND and KEY_REVOKED', async () => {
    const admin = await adminOf(here.keys)
    const worker = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'worker' })
    const foreign = await here.keys.create({ as: 'application', ownerId: 'other', name: 'foreign' })
    const said = async (id: string, secret?: string): Promise<unknown> => {
      const { status, body } = await here.send({ path: `/${id}/rotate`, secret })
      return [status, body.error.code]
    }
    expect(await said(worker.key.id)).toEqual([401, 'UNAUTHORIZED'])
    expect(await said(worker.key.id, 'sk_live_nothing')).toEqual([401, 'UNAUTHORIZED'])
    // Not even for itself: this page wants the scope.
    expect(await said(worker.key.id, worker.secret)).toEqual([403, 'FORBIDDEN'])
    expect(await said(foreign.key.id, admin)).toEqual([404, 'NOT_FOUND'])
    expect(await said('0198c3f2-5e7a-7abc-9def-0123456789ab', admin)).toEqual([404, 'NOT_FOUND'])
    expect(await said('no-id-at-all', admin)).toEqual([404, 'NOT_FOUND'])
    await here.keys.revoke({ as: 'application', id: worker.key.id })
    expect(await said(worker.key.id, admin)).toEqual([409, 'KEY_REVOKED'])
    expect((await here.keys.get(foreign.key.id))?.generation).toBe(1)
  })
})

test('says RATE_LIMITED by token, not by address, and answers replays beyond the limit', async () => {
  const here = await serveContract(contract, memoryStore())
  const [busy, calm] = [await adminOf(here.keys), await adminOf(here.keys)]
  const { key } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'worker' })
  const send = (secret: string, idempotencyKey?: string): ReturnType<Serving['send']> =>
    here.send({ path: `/${key.id}/rotate`, secret, idempotencyKey })
  const first = await send(busy, 'first')
  for (let i = 0; i < 59; i++) await here.send({ path: '/0198c3f2-5e7a-7abc-9def-0123456789ab/rotate', secret: busy })
  const over = await send(busy)
  expect([over.status, over.body.error.code]).toEqual([429, 'RATE_LIMITED'])
  expect(Number(over.headers['retry-after'])).toBeGreaterThan(30)
  expect(Number(over.headers['retry-after'])).toBeLessThanOrEqual(60)
  expect((await send(busy, 'second')).status).toBe(429)
  expect(await send(busy, 'first')).toMatchObject({ status: 200, body: first.body })
  expect((await send(calm)).status).toBe(200)
})

async function adminOf(keys: ApiKeys): Promise<string> {
  return (await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })).secret
}

/** Waits until the last use of a key has been written behind. */
async function written(keys: ApiKeys, id: string): Promise<void> {
  while ((await keys.get(id))?.lastUsedAt === null) await new Promise((resolve) => setTimeout(resolve, 20))
}
