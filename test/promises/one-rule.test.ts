import type { Server } from 'node:http'
import express from 'express'
import {
  ApiKeyError,
  type ApiKeys,
  type ApiKeysOptions,
  bearerAuth,
  contracts,
  createApiKeys,
  type IssuedKey,
  memoryStore,
  type Store,
} from 'express-api-keys'
import { atEnd } from '../support/cleanup.js'
import { TestClock } from '../support/clock.js'
import { exchange } from '../support/contract.js'
import { serveLosing } from '../support/losing.js'
import { SERVER_SECRET } from '../support/process.js'
import { stores } from '../support/stores.js'

const make = (keys: ApiKeys, more: object = {}): Promise<IssuedKey> =>
  keys.create({ as: 'application', ownerId: 'acme', name: 'n', ...more })

describe.each(stores)('what a key looks like does not depend on who looks, on %s', (_name, makeStore) => {
  const start = async (...all: Partial<ApiKeysOptions>[]): Promise<ApiKeys[]> => {
    const { store } = await makeStore()
    const instances = all.map((options) =>
      createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 250, onError: () => {}, ...options }),
    )
    await instances[0]?.migrate()
    return instances
  }

  test('a rotation keeps the prefix and the form, whichever instance carries it out', async () => {
    const [plain, suwappu] = (await start({}, { prefix: 'suwappu_sk', environmentInSecret: false })) as [ApiKeys, ApiKeys]
    const made = await make(suwappu, { rotationSecret: true })
    expect([made.secret, made.rotationSecret]).toEqual([
      expect.stringMatching(/^suwappu_sk_\w{49}$/),
      expect.stringMatching(/^rot_\w{49}$/),
    ])
    const rotated = await plain.rotate({ as: 'application', id: made.key.id })
    expect([rotated.secret, rotated.key.secretStart]).toEqual([expect.stringMatching(/^suwappu_sk_[^_]{49}$/), 'suwappu_sk_'])
    expect(rotated.rotationSecret).toMatch(/^rot_[^_]{49}$/)
    expect([await suwappu.verify(made.secret), await suwappu.verify(rotated.secret)]).toMatchObject([{ ok: false }, { ok: true }])
    const again = await suwappu.rotate({ as: { secret: rotated.secret }, rotationSecret: rotated.rotationSecret ?? '' })
    const succeeded = await plain.rotate({ as: 'application', id: again.key.id, identity: 'successor' })
    expect(succeeded.secret).toMatch(/^suwappu_sk_[^_]{49}$/)
    expect(await suwappu.verify(succeeded.secret)).toMatchObject({ ok: true })
    const other = await plain.rotate({ as: 'application', id: (await make(plain, { environment: 'test' })).key.id })
    expect(other.secret).toMatch(/^sk_test_/)
  })

  test('a prefix that has changed goes on being accepted where it is listed, in either form', async () => {
    const [before, bare, after, forgetful] = (await start(
      { prefix: 'old' },
      { prefix: 'old', environmentInSecret: false },
      { prefix: 'new', acceptedPrefixes: ['old'] },
      { prefix: 'new' },
    )) as [ApiKeys, ApiKeys, ApiKeys, ApiKeys]
    for (const maker of [before, bare]) {
      const { key, secret } = await make(maker)
      expect([await after.verify(secret), await forgetful.verify(secret)]).toMatchObject([{ ok: true }, { ok: false, reason: 'malformed' }])
      const rotated = await after.rotate({ as: { secret } })
      expect([rotated.key.id, rotated.secret.startsWith('old_')]).toEqual([key.id, true])
      expect(await after.verify(rotated.secret)).toMatchObject({ ok: true })
    }
    expect((await make(after)).secret).toMatch(/^new_live_/)
  })

  test('a secret on its way out is good for use, and for no change of anything, not even with the help of another key', async () => {
    const { store } = await makeStore()
    const here = await serveLosing(contracts.standard, store)
    const { key, secret } = await make(here.keys, { scopes: ['api_keys:write', 'api_keys:read'] })
    const other = await make(here.keys)
    const rotation = { path: '/self/rotate', secret, body: { retire: { afterMs: 60_000 } }, idempotencyKey: 'turn' }
    const rotated = await here.send(rotation)
    for (const sent of [
      { path: '/', body: { name: 'helper', scopes: ['api_keys:write'] } },
      { path: '/self/rotate', body: { emergency: true } },
      { path: `/${key.id}/rotate` },
      { path: `/${key.id}/revoke` },
      { path: `/${other.key.id}/rotate`, body: { emergency: true } },
      { path: `/${other.key.id}/revoke` },
      { path: `/${other.key.id}`, method: 'PATCH', body: { name: 'm' } },
      { path: `/${key.id}`, method: 'PATCH', body: { scopes: [] } },
    ]) {
      for (const idempotencyKey of [undefined, 'tried']) {
        const answer = await here.send({ ...sent, secret, ...(idempotencyKey === undefined ? {} : { idempotencyKey }) })
        expect([sent.path, answer?.status, answer?.body.code]).toEqual([sent.path, 409, 'secret_in_grace'])
      }
    }
    expect((await here.send({ method: 'GET', path: `/${other.key.id}`, secret }))?.body.key).toMatchObject({
      status: 'active',
      generation: 1,
    })
    expect((await here.keys.list({ ownerId: 'acme' })).items).toHaveLength(2)
    // It can be used, and the answer of its own rotation can be asked for again.
    expect([await here.accepted(secret), await here.accepted(rotated?.body.secret)]).toEqual([200, 200])
    expect((await here.send(rotation))?.body).toEqual(rotated?.body)
  })

  test('a key that expires before it is made is refused, and one that expires a moment later is not', async () => {
    const { store } = await makeStore()
    const here = await serveLosing(contracts.standard, store)
    const { secret } = await make(here.keys, { scopes: ['api_keys:write'] })
    const create = async (expiresAt: string): Promise<number | undefined> =>
      (await here.send({ path: '/', secret, body: { name: 'n', expiresAt } }))?.status
    expect(await create('2020-01-01T00:00:00Z')).toBe(400)
    expect(await create(new Date(Date.now() - 1).toISOString())).toBe(400)
    expect(await create(new Date(Date.now() + 60_000).toISOString())).toBe(201)
    await expect(make(here.keys, { expiresAt: new Date(0) })).rejects.toMatchObject({ code: 'invalid_request' })
    expect((await here.keys.list({ ownerId: 'acme' })).items).toHaveLength(2)
  })
})

/** The package once more, as a second installed copy of it would be: other modules, other classes. */
async function secondCopy(): Promise<typeof import('express-api-keys')> {
  let copy: typeof import('express-api-keys') | undefined
  await jest.isolateModulesAsync(async () => {
    copy = await import('express-api-keys')
  })
  return copy as typeof import('express-api-keys')
}

async function served(app: express.Express): Promise<string> {
  const server: Server = await new Promise((resolve) => {
    const listening = app.listen(0, '127.0.0.1', () => resolve(listening))
  })
  atEnd(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  })
  return `http://127.0.0.1:${(server.address() as { port: number }).port}`
}

describe('two installed copies of the package', () => {
  test('know the errors of each other: keys of one, router and guard of the other', async () => {
    const other = await secondCopy()
    expect(other.ApiKeyError).not.toBe(ApiKeyError)
    const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
    const app = express()
    app.use('/keys', other.keyRouter(keys))
    app.get('/data', other.bearerAuth(keys, { scope: 'a' }), bearerAuth(keys), (req, res) => {
      res.json({ id: req.apiKey?.id })
    })
    const url = await served(app)
    const [weak, good] = [await make(keys), await make(keys, { scopes: ['a'] })]
    const statuses = [
      await exchange(url, { path: '/keys/self/rotate' }),
      await exchange(url, {
        path: '/keys/self/rotate',
        secret: (await make(createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET }))).secret,
      }),
      await exchange(url, { path: `/keys/${good.key.id}/rotate`, secret: weak.secret }),
      await exchange(url, { method: 'GET', path: '/data', secret: weak.secret }),
      await exchange(url, { method: 'GET', path: '/data', secret: good.secret }),
    ]
    expect(statuses.map(({ status }) => status)).toEqual([401, 401, 403, 403, 200])
    expect(statuses[4]?.body).toEqual({ id: good.key.id })
    expect(new other.ApiKeyError('rate_limited', 'x')).toBeInstanceOf(ApiKeyError)
    class Own extends ApiKeyError {}
    expect([new Own('rate_limited', 'x') instanceof Own, new ApiKeyError('rate_limited', 'x') instanceof Own]).toEqual([true, false])
    for (const stranger of [new Error('x'), { code: 'invalid_key', name: 'ApiKeyError' }, null, 'x'])
      expect(stranger).not.toBeInstanceOf(ApiKeyError)
  })

  test('P3: over one store in memory go by the changes of each other', async () => {
    const other = await secondCopy()
    const clock = new TestClock()
    const store = memoryStore({ now: () => clock.wallMs() })
    const [one, two] = [
      createApiKeys({ store, serverSecret: SERVER_SECRET, clock }),
      other.createApiKeys({ store, serverSecret: SERVER_SECRET, clock }),
    ]
    for (const keys of [one, two]) await keys.migrate()
    const { secret } = await make(one)
    expect(await two.verify(secret)).toMatchObject({ ok: true })
    await one.rotate({ as: { secret } })
    expect(two.peek(secret)).toBeUndefined()
    expect(await two.verify(secret)).toMatchObject({ ok: false, reason: 'rotated' })
  })
})

describe('an instance that is closed', () => {
  test('P3: accepts nothing, not even what it has accepted before', async () => {
    const store = memoryStore()
    const [one, two] = [createApiKeys({ store, serverSecret: SERVER_SECRET }), createApiKeys({ store, serverSecret: SERVER_SECRET })]
    const { secret } = await make(one)
    const verified = await two.verify(secret)
    expect([verified.ok, two.peek(secret)?.ok]).toEqual([true, true])
    const app = express()
    app.get('/data', bearerAuth(two), (_req, res) => {
      res.json({})
    })
    const url = await served(app)
    expect((await exchange(url, { method: 'GET', path: '/data', secret })).status).toBe(200)
    const closing = two.close()
    expect([verified.ok && verified.live(), two.peek(secret)]).toEqual([false, undefined])
    await closing
    await one.rotate({ as: { secret } })
    expect((await exchange(url, { method: 'GET', path: '/data', secret })).status).toBe(503)
    await expect(two.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
  })

  test('has settled what it did not wait for, so that its pool can end right after it', async () => {
    const clock = new TestClock()
    const inner = memoryStore({ now: () => clock.wallMs() })
    const settled: string[] = []
    let ended = false
    const store: Store = {
      ...inner,
      shared: true,
      async settle(id, agoMs) {
        if (ended) throw new Error('the pool has ended')
        settled.push(id)
        await inner.settle(id, agoMs)
      },
    }
    const reported: unknown[] = []
    const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, clock, waitForLease: false, onError: (error) => reported.push(error) })
    const { secret } = await make(keys)
    await store.join({ session: 'silent', mode: 'feed', channels: [] })
    await keys.rotate({ as: { secret }, idempotencyKey: 'k' })
    const closing = keys.close().then(() => {
      ended = true
    })
    await clock.asleep(1)
    expect(ended).toBe(false)
    clock.advance(1_050)
    await closing
    expect([settled.length, reported]).toEqual([1, []])
  })
})
