import express5 from 'express'
import {
  type ApiKeyError,
  type ApiKeys,
  apiKeySignalOf,
  bearerAuth,
  createApiKeys,
  keyRouter,
  memoryStore,
  type Store,
} from 'express-api-keys'
import express4 from 'express4'
import { atEnd } from '../support/cleanup.js'
import { type Instance, serve } from '../support/instance.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'
import { stores } from '../support/stores.js'
import { type Answer, call } from '../support/traffic.js'

const application = { as: 'application', ownerId: 'acme', name: 'n' } as const
const codeOf = ({ body }: Answer): string | undefined => (body as { code?: string }).code

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
])('on %s', (_name, framework) => {
  let here: Instance
  let admin: string
  let own: { id: string; secret: string }

  beforeEach(async () => {
    here = await serve(memoryStore(), {}, framework)
    admin = (await here.keys.create({ ...application, scopes: ['api_keys:write', 'api_keys:read'] })).secret
    const { key, secret } = await here.keys.create(application)
    own = { id: key.id, secret }
  })

  const post = (path: string, options: Parameters<typeof call>[1] = {}): Promise<Answer> =>
    call(`${here.url}/keys/${path}`, { method: 'POST', secret: admin, ...options })
  const data = async (secret = own.secret): Promise<[number, string | undefined]> => {
    const answer = await call(`${here.url}/data`, { secret })
    return [answer.status, codeOf(answer)]
  }

  test('a disabled key is refused everywhere with 403, so that no client throws it away, until it is enabled', async () => {
    const disabled = await post(`${own.id}/disable`, { body: { reason: 'under suspicion' } })
    expect([disabled.status, disabled.body]).toEqual([200, { key: expect.objectContaining({ id: own.id, status: 'disabled' }) }])
    expect(await data()).toEqual([403, 'key_disabled'])
    expect(await here.keys.verify(own.secret)).toEqual({ ok: false, reason: 'disabled' })
    for (const [method, path] of [
      ['GET', 'self'],
      ['POST', 'self/rotate'],
      ['POST', 'self/revoke'],
      ['POST', `${own.id}/enable`],
    ]) {
      const answer = await post(path as string, { method: method as string, secret: own.secret })
      expect([path, answer.status, codeOf(answer)]).toEqual([path, 403, 'key_disabled'])
    }
    const enabled = await post(`${own.id}/enable`)
    expect([enabled.status, enabled.body]).toMatchObject([200, { key: { status: 'active', disabledAt: null } }])
    expect(await data()).toEqual([200, undefined])
    const { items = [] } = (await here.keys.events({ id: own.id })) ?? {}
    expect(items.map(({ type, details }) => [type, details])).toEqual([
      ['key.enabled', {}],
      ['key.disabled', { reason: 'under suspicion' }],
      ['key.created', {}],
    ])
  })

  test('a disabled key cannot be rotated by anybody, can be changed, and can be revoked for good', async () => {
    await post(`${own.id}/disable`)
    for (const rotate of [post(`${own.id}/rotate`), post(`${own.id}/rotate`, { body: { emergency: true } })]) {
      expect([(await rotate).status, codeOf(await rotate)]).toEqual([403, 'key_disabled'])
    }
    const changed = await call(`${here.url}/keys/${own.id}`, { method: 'PATCH', secret: admin, body: { name: 'renamed' } })
    expect([changed.status, await data()]).toEqual([200, [403, 'key_disabled']])
    expect((await post(`${own.id}/revoke`)).status).toBe(200)
    expect(await data()).toEqual([401, 'invalid_key'])
    for (const path of ['disable', 'enable']) expect(codeOf(await post(`${own.id}/${path}`))).toBe('key_revoked')
    expect((await here.keys.get(own.id))?.status).toBe('revoked')
  })

  test('it needs api_keys:write, and a test key disables no live one; enabling is bounded like a change', async () => {
    const reader = await here.keys.create({ ...application, scopes: ['api_keys:read'] })
    const tester = await here.keys.create({ ...application, environment: 'test', scopes: ['api_keys:write'] })
    const foreign = await here.keys.create({ ...application, ownerId: 'rival', scopes: ['api_keys:write'] })
    for (const [secret, code] of [
      [reader.secret, 'insufficient_scope'],
      [own.secret, 'insufficient_scope'],
      [tester.secret, 'insufficient_scope'],
      [foreign.secret, 'key_not_found'],
    ] as const) {
      for (const path of ['disable', 'enable']) expect(codeOf(await post(`${own.id}/${path}`, { secret }))).toBe(code)
    }
    const { key } = await here.keys.create({ ...application, scopes: ['reports:read'] })
    expect((await post(`${key.id}/disable`)).status).toBe(200)
    expect([codeOf(await post(`${key.id}/enable`)), (await here.keys.get(key.id))?.status]).toEqual(['insufficient_scope', 'disabled'])
  })

  test('a retry gets the same answer, and asking twice changes nothing', async () => {
    const first = await post(`${own.id}/disable`, { idempotencyKey: 'once' })
    await post(`${own.id}/enable`)
    const again = await post(`${own.id}/disable`, { idempotencyKey: 'once' })
    expect([again.status, again.headers.get('idempotent-replayed'), again.body]).toEqual([200, 'true', first.body])
    expect(await data()).toEqual([200, undefined])
    for (let n = 0; n < 2; n++) expect((await post(`${own.id}/disable`)).status).toBe(200)
    for (let n = 0; n < 2; n++) expect((await post(`${own.id}/enable`)).status).toBe(200)
    const { items = [] } = (await here.keys.events({ id: own.id })) ?? {}
    expect(items.filter(({ type }) => type === 'key.disabled' || type === 'key.enabled')).toHaveLength(4)
    expect((await post(`${own.id}/disable`, { body: { nonsense: 1 } })).status).toBe(400)
  })

  test('P2: the lost answer of a rotation can be fetched once the key is enabled again, and not before', async () => {
    const rotate = (): Promise<Answer> => post('self/rotate', { secret: own.secret, idempotencyKey: 'lost' })
    const { secret } = (await rotate()).body as { secret: string }
    await post(`${own.id}/disable`)
    const refused = await rotate()
    expect([refused.status, codeOf(refused), await data(secret)]).toEqual([403, 'key_disabled', [403, 'key_disabled']])
    await post(`${own.id}/enable`)
    expect([(await rotate()).body, await data(secret)]).toMatchObject([{ secret }, [200, undefined]])
  })

  test('listeners hear of it, listings tell it, and streams end with it', async () => {
    const heard: string[] = []
    for (const name of ['disabled', 'enabled'] as const) here.keys.on(name, ({ event }) => heard.push(event.type))
    const app = framework()
    app.get('/', bearerAuth(here.keys), (req, res) => {
      const end = ({ code, status, reason }: ApiKeyError): unknown => res.end(`${status} ${code} ${reason}`)
      apiKeySignalOf(req).addEventListener('abort', ({ target }) => end((target as AbortSignal).reason))
      res.write('hello ')
    })
    const response = await fetch(await listen(app), { headers: { authorization: `Bearer ${own.secret}` } })
    await post(`${own.id}/disable`)
    expect(await response.text()).toBe('hello 403 key_disabled disabled')
    expect((await here.keys.list({ status: 'disabled' })).items.map(({ id }) => id)).toEqual([own.id])
    await post(`${own.id}/enable`)
    expect([heard, (await here.keys.list({ status: 'disabled' })).items]).toEqual([['key.disabled', 'key.enabled'], []])
  })
})

describe.each(stores)('on %s', (_name, makeStore) => {
  test('P3: no instance accepts a key once it is disabled, its secret in a grace period neither; and every one does once it is enabled', async () => {
    const { store } = await makeStore()
    const [here, there] = [instance(store), instance(store)]
    await here.migrate()
    const { key, secret: old } = await here.create(application)
    const { secret } = await here.rotate({ as: 'application', id: key.id, retire: { afterMs: 600_000 } })
    const seen = async (): Promise<unknown[]> => {
      const all = []
      for (const one of [here, there]) for (const each of [old, secret]) all.push((await one.verify(each)).ok)
      return all
    }
    expect(await seen()).toEqual([true, true, true, true])
    for (let n = 0; n < 3; n++) {
      await (n % 2 === 0 ? here : there).disable({ as: 'application', id: key.id })
      expect(await seen()).toEqual([false, false, false, false])
      await (n % 2 === 0 ? there : here).enable({ as: 'application', id: key.id })
      expect(await seen()).toEqual([true, true, true, true])
    }
  })
})

test('a key that is disabled is not let in by a router either', async () => {
  const keys = instance(memoryStore())
  const app = express5().use('/keys', keyRouter(keys))
  const { key, secret } = await keys.create({ ...application, scopes: ['api_keys:read'] })
  await keys.disable({ as: 'application', id: key.id })
  const answer = await call(`${await listen(app)}/keys`, { secret })
  expect([answer.status, codeOf(answer)]).toEqual([403, 'key_disabled'])
})

function instance(store: Store): ApiKeys {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 250, onError: () => {} })
  atEnd(() => keys.close())
  return keys
}
