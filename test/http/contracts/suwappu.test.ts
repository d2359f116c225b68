import { contracts, memoryStore } from 'express-api-keys'
import { everyStore, exchange, playContract, type Serving, serveContract } from '../../support/contract.js'

const contract = contracts.suwappu
const options = { prefix: 'suwappu_sk', environmentInSecret: false }

playContract({
  contract,
  options,
  async prepare(keys) {
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'agent' })
    return { request: { path: '/keys/rotate', secret }, secret, retires: secret, id: key.id }
  },
  secretOf: ({ body }) => body.api_key,
  published: { success: false, error: 'Unauthorized' },
})

describe.each(everyStore)('on %s', (_name, makeStore) => {
  let here: Serving
  beforeAll(async () => {
    here = await serveContract(contract, await makeStore(), options)
  })

  test('answers as published, to no body and to an empty one', async () => {
    for (const headers of [[], ['Content-Type', 'text/plain']]) {
      const { secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'agent' })
      const { status, body } = await here.send({ path: '/keys/rotate', secret, headers })
      expect([status, body]).toEqual([
        200,
        {
          success: true,
          api_key: expect.stringMatching(/^suwappu_sk_[0-9A-Za-z]{49}$/),
          message: 'API key rotated. Old key is now invalid.',
        },
      ])
    }
  })

  test('takes an empty body of unknown length without a type, and no other', async () => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'agent' })
    const sent = { path: '/keys/rotate', secret, chunked: true }
    for (const body of ['x', '[]', '{"a":1}']) expect((await here.send({ ...sent, body })).status).toBe(400)
    expect((await here.keys.get(key.id))?.generation).toBe(1)
    const answer = await here.send(sent)
    expect([answer.status, answer.body.success]).toEqual([200, true])
  })

  test('says Unauthorized, and that alone', async () => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'agent' })
    const unauthorized = [401, { success: false, error: 'Unauthorized' }]
    for (const given of [undefined, 'nonsense', 'sk_live_0000', '', 'a b', `${secret} ${secret}`, `"${secret}"`, 'x'.repeat(2_000)]) {
      const { status, body } = await here.send({ path: '/keys/rotate', secret: given })
      expect([status, body]).toEqual(unauthorized)
    }
    await here.keys.revoke({ as: 'application', id: key.id })
    const { status, body } = await here.send({ path: '/keys/rotate', secret })
    expect([status, body]).toEqual(unauthorized)
  })

  test('has the same shape for 400, 403 and 409', async () => {
    const { secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'agent' })
    const guarded = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'agent', rotationSecret: true })
    const bad = await here.send({ path: '/keys/rotate', secret, body: { any: 1 } })
    expect([bad.status, bad.body.success]).toEqual([400, false])
    const factor = await here.send({ path: '/keys/rotate', secret: guarded.secret })
    expect([factor.status, factor.body.success]).toEqual([403, false])
    const grace = await here.keys.rotate({ as: { secret }, retire: { afterMs: 60_000 } })
    for (const each of [secret, grace.secret]) {
      const answer = await here.send({ path: '/keys/rotate', secret: each })
      expect([answer.status, answer.body.success]).toEqual([409, false])
    }
  })
})

test('a 500 says that the rotation failed, and nothing has changed', async () => {
  const store = memoryStore()
  const here = await serveContract(contract, store, options)
  const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'agent' })
  const { transaction } = store
  Object.assign(store, {
    transaction: (work: Parameters<typeof transaction>[0]) =>
      transaction(async (tx) => {
        await work(tx)
        throw new TypeError('a fault in the last step')
      }),
  })
  const { status, body } = await here.send({ path: '/keys/rotate', secret })
  expect([status, body]).toEqual([500, { success: false, error: 'Key rotation failed' }])
  Object.assign(store, { transaction })
  expect([(await here.keys.get(key.id))?.generation, await here.accepted(secret)]).toEqual([1, 200])
})

test('a fault after the change is no 500: the answer can be asked for again', async () => {
  const store = memoryStore()
  const here = await serveContract(contract, store, options)
  const { secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'agent' })
  const [route] = contract.routes
  const success = ({ secret: made }: { secret: string }): object => {
    // Not so early that the document could not be made.
    if (!made.includes('0'.repeat(40))) throw new TypeError('a fault in a contract')
    return {}
  }
  const broken = { ...contract, routes: [{ ...route, success }] } as typeof contract
  const other = await serveContract(broken, store, options)
  const lost = await exchange(other.url + contract.path, { path: '/keys/rotate', secret, idempotencyKey: 'one' })
  expect([lost.status, lost.body.success]).toEqual([503, false])
  const found = await here.send({ path: '/keys/rotate', secret, idempotencyKey: 'one' })
  expect([found.status, await here.accepted(found.body.api_key)]).toEqual([200, 200])
})
