import { type ApiKeys, bearerAuth, createApiKeys, type IssuedKey, keyRouter, memoryStore, type Operator } from 'express-api-keys'
import { stores } from '../support/stores.js'

const SECRET = 'the-server-secret-0123456789-0123456789'
const KEY = 'a-key-made-at-random-0123456789'
const OPERATOR: Operator = { issuer: 'https://id.example', subject: 'ada', scopes: ['api_keys:write'], owners: ['acme'] }

const fresh = (): ApiKeys => createApiKeys({ store: memoryStore(), serverSecret: SECRET })
const make = (keys: ApiKeys, more: object = {}): Promise<IssuedKey> =>
  keys.create({ as: 'application', ownerId: 'acme', name: 'n', ...more })
const refusal = (work: Promise<unknown>): Promise<{ code?: string; message?: string }> =>
  work.then(
    () => ({}),
    ({ code, message }) => ({ code, message }),
  )

describe('who asks', () => {
  test('is never the application by omission, nor anybody by a value that was lost', async () => {
    const keys = fresh()
    const { key, secret } = await make(keys)
    const doubtful: unknown[] = [
      {},
      { as: undefined },
      { as: null },
      { as: '' },
      { as: 'Application' },
      { as: 'system' },
      { as: {} },
      { as: [] },
      { as: { secret: undefined } },
      { as: { secret: null } },
      { as: { secret: 5 } },
      { as: { operator: undefined } },
      { as: { operator: {} } },
      { as: { operator: { ...OPERATOR, subject: '' } } },
      { as: { operator: { ...OPERATOR, owners: 'acme' } } },
      { as: { operator: { ...OPERATOR, grants: { scopes: '*' } } } },
      { as: { secret, operator: OPERATOR } },
      { as: { secret, application: true } },
      { secret },
      { secret: undefined },
      { operator: OPERATOR },
      { as: { secret }, secret },
    ]
    for (const who of doubtful as { as: 'application' }[]) {
      for (const command of [
        keys.create({ ...who, ownerId: 'acme', name: 'n' }),
        keys.rotate({ ...who, id: key.id }),
        keys.revoke({ ...who, id: key.id }),
        keys.update({ ...who, id: key.id, changes: { name: 'm' } }),
      ]) {
        expect([who, (await refusal(command)).code]).toEqual([who, 'invalid_request'])
      }
    }
    expect((await keys.list({ ownerId: 'acme' })).items).toEqual([key])
  })

  test.each(['x', 5, null, undefined, [], () => {}])('and for what, is said by an object, and not by %p', async (value) => {
    const keys = fresh()
    for (const name of ['create', 'rotate', 'revoke', 'update', 'list', 'events'] as const) {
      const { code, message } = await refusal((keys[name] as (command: never) => Promise<unknown>)(value as never))
      expect([code, message]).toEqual(['invalid_request', expect.stringMatching(new RegExp(`^${name} takes an object with `))])
    }
    if (value === undefined) return
    for (const option of [
      () => bearerAuth(keys, value as never),
      () => keyRouter(keys, value as never),
      () => createApiKeys(value as never),
    ]) {
      expect(option).toThrow(/takes an object with /)
    }
  })

  test('names a key, or leaves it out: an id that is undefined is not the key itself', async () => {
    const keys = fresh()
    const { key, secret } = await make(keys, { scopes: ['api_keys:write'] })
    const lost = { as: { secret }, id: undefined as unknown as string }
    for (const command of [keys.rotate(lost), keys.revoke(lost), keys.update({ ...lost, changes: { name: 'm' } })]) {
      expect((await refusal(command)).code).toBe('invalid_request')
    }
    expect(await keys.get(key.id)).toEqual(key)
    expect((await keys.rotate({ as: { secret } })).key.generation).toBe(2)
  })

  test('a look that is narrowed to an owner is not widened by an owner that is undefined', async () => {
    const keys = fresh()
    const { key } = await make(keys)
    const ownerId = undefined as unknown as string
    for (const look of [keys.get(key.id, { ownerId }), keys.events({ id: key.id, ownerId }), keys.list({ ownerId })]) {
      expect((await refusal(look)).code).toBe('invalid_request')
    }
    expect([await keys.get(key.id, { ownerId: 'rival' }), await keys.get(key.id, { ownerId: 'acme' })]).toEqual([undefined, key])
  })

  test('a guard whose scope is undefined is refused while the application starts', () => {
    expect(() => bearerAuth(fresh(), { scope: undefined as unknown as string })).toThrow('scope is undefined')
  })
})

describe.each(stores)('the application, on %s', (_name, makeStore) => {
  test('P1: rotates once for one Idempotency-Key, with one answer, also after a restart and at the same time', async () => {
    const { store } = await makeStore()
    const start = (): ApiKeys => createApiKeys({ store, serverSecret: SECRET, leaseMs: 250, onError: () => {} })
    const [one, two] = [start(), start()]
    await one.migrate()
    const { key, secret } = await make(one)
    const rotate = (keys: ApiKeys): Promise<IssuedKey> => keys.rotate({ as: 'application', id: key.id, idempotencyKey: KEY })
    const raced = await Promise.all([one, two, one, two].map(rotate))
    await two.close()
    const again = await rotate(start())
    expect(new Set([...raced, again].map((issued) => issued.secret)).size).toBe(1)
    expect([again.replayed, again.key.generation, (await one.get(key.id))?.generation]).toEqual([true, 2, 2])
    expect([await one.verify(secret), await one.verify(again.secret)]).toMatchObject([{ ok: false }, { ok: true }])
    expect(await refusal(one.rotate({ as: 'application', id: key.id, idempotencyKey: KEY, retire: 'on-first-use' }))).toMatchObject({
      code: 'idempotency_key_mismatch',
    })
    const made = [await make(one, { idempotencyKey: `${KEY}-2` }), await make(one, { idempotencyKey: `${KEY}-2` })]
    expect([made[1]?.key.id, made[1]?.secret]).toEqual([made[0]?.key.id, made[0]?.secret])
  })

  test('P1: makes one key for one Idempotency-Key, also while the server secret is being changed', async () => {
    const { store } = await makeStore()
    const [old, next] = ['the-old-server-secret-0123456789-0123456', 'the-new-server-secret-0123456789-0123456']
    const [before, after] = [
      [old, next],
      [next, old],
    ].map((secret) => createApiKeys({ store, serverSecret: secret, leaseMs: 250, onError: () => {} })) as [ApiKeys, ApiKeys]
    await before.migrate()
    const made = await Promise.all([before, after, before, after].map((keys) => make(keys, { idempotencyKey: KEY })))
    expect(new Set(made.map((issued) => issued.secret)).size).toBe(1)
    expect((await before.list({ ownerId: 'acme' })).items).toHaveLength(1)
  })

  test('and an operator need an Idempotency-Key that is hard to guess; a key does not', async () => {
    const { store } = await makeStore()
    const keys = createApiKeys({ store, serverSecret: SECRET, leaseMs: 250, onError: () => {} })
    await keys.migrate()
    const { key, secret } = await make(keys)
    const short = 'x'.repeat(21)
    for (const as of ['application', { operator: OPERATOR }] as const) {
      expect((await refusal(keys.rotate({ as, id: key.id, idempotencyKey: short }))).code).toBe('idempotency_key_invalid')
    }
    expect((await keys.get(key.id))?.generation).toBe(1)
    expect((await keys.rotate({ as: { secret }, idempotencyKey: 'x' })).key.generation).toBe(2)
  })
})
