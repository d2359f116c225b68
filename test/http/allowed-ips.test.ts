import express5 from 'express'
import {
  type ApiKeyError,
  type ApiKeys,
  basic,
  bearer,
  bearerAuth,
  createApiKeys,
  header,
  keyRouter,
  memoryStore,
  type Store,
} from 'express-api-keys'
import express4 from 'express4'
import { postgresStore } from '../../src/store/sql/postgres.js'
import { atEnd } from '../support/cleanup.js'
import { listen } from '../support/listen.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'
import { type Answer, call } from '../support/traffic.js'

const HOME = '198.51.100.7'
const AWAY = '203.0.113.9'
const application = { as: 'application', ownerId: 'acme', name: 'n' } as const

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
])('on %s', (_name, framework) => {
  let keys: ApiKeys
  let url: string

  beforeEach(async () => {
    keys = instance(memoryStore())
    url = await served(keys, framework)
  })

  const from = (ip: string, path: string, secret: string, options: Parameters<typeof call>[1] = {}): Promise<Answer> =>
    call(`${url}${path}`, { secret, from: ip, ...options })

  test('a key passes from an address that it names, however that is written, and from no other', async () => {
    const { secret } = await keys.create({ ...application, allowedIps: ['198.51.100.0/24', '2001:db8::/32'] })
    for (const ip of [HOME, `::ffff:${HOME}`, '2001:DB8::5', `${HOME}:4711`])
      expect([ip, (await from(ip, '/data', secret)).status]).toEqual([ip, 200])
    for (const ip of [AWAY, '2001:db9::5', 'unknown', '198.51.101.7', '::1']) {
      const { status, body, headers } = await from(ip, '/data', secret)
      expect([ip, status, (body as { code: string }).code, headers.get('www-authenticate')]).toEqual([...[ip, 403, 'ip_not_allowed', null]])
      // Neither where it may be used from, nor what was seen of the client.
      expect(JSON.stringify(body)).not.toMatch(/198\.51|2001|203\.0|db9/)
    }
  })

  test('a key without a list passes from anywhere, and a dead one is told no more than that it is not valid', async () => {
    const { secret } = await keys.create(application)
    for (const ip of [HOME, 'unknown']) expect((await from(ip, '/data', secret)).status).toBe(200)
    const dead = await keys.create({ ...application, allowedIps: [HOME] })
    await keys.revoke({ as: 'application', id: dead.key.id })
    for (const ip of [HOME, AWAY]) expect((await from(ip, '/data', dead.secret)).status).toBe(401)
  })

  test('the list holds for each source, and for each route of the router', async () => {
    const { key, secret } = await keys.create({ ...application, allowedIps: [HOME], scopes: ['api_keys:write', 'api_keys:read'] })
    const encoded = { authorization: `Basic ${Buffer.from(`${secret}:`).toString('base64')}` }
    for (const headers of [{ 'x-api-key': secret }, encoded]) {
      const ask = (ip: string) => fetch(`${url}/data`, { headers: { ...headers, 'x-forwarded-for': ip } as Record<string, string> })
      expect([(await ask(HOME)).status, (await ask(AWAY)).status]).toEqual([200, 403])
    }
    const routes: readonly [string, string, object?][] = [
      ['GET', '/keys'],
      ['GET', '/keys/self'],
      ['GET', `/keys/${key.id}`],
      ['GET', `/keys/${key.id}/events`],
      ['POST', '/keys', { name: 'made', allowedIps: [HOME] }],
      ['PATCH', `/keys/${key.id}`, { name: 'renamed' }],
      ['POST', '/keys/self/rotate'],
      ['POST', `/keys/${key.id}/rotate`],
      ['POST', '/keys/self/revoke'],
      ['POST', `/keys/${key.id}/revoke`],
    ]
    for (const [method, path, body] of routes) {
      const answer = await from(AWAY, path, secret, { method, ...(body && { body }) })
      expect([method, path, answer.status, (answer.body as { code: string }).code]).toEqual([method, path, 403, 'ip_not_allowed'])
    }
    expect(await keys.get(key.id)).toMatchObject({ generation: 1, status: 'active', name: 'n' })
    expect((await from(HOME, '/keys/self/rotate', secret, { method: 'POST' })).status).toBe(200)
  })

  test('P2: the retry of a rotation is answered from an address of the list, and from no other', async () => {
    const { secret } = await keys.create({ ...application, allowedIps: [HOME] })
    const rotate = (ip: string): Promise<Answer> =>
      from(ip, '/keys/self/rotate', secret, { method: 'POST', idempotencyKey: 'the-same-each-time' })
    const first = await rotate(HOME)
    const stranger = await rotate(AWAY)
    const again = await rotate(HOME)
    expect([first.status, stranger.status, (stranger.body as { code: string }).code, again.status]).toEqual([
      200,
      403,
      'ip_not_allowed',
      200,
    ])
    expect((again.body as { secret: string }).secret).toBe((first.body as { secret: string }).secret)
    expect(JSON.stringify(stranger.body)).not.toContain((first.body as { secret: string }).secret)
    // Without its Idempotency-Key the dead secret is told what every dead secret is told.
    expect((await from(AWAY, '/keys/self/rotate', secret, { method: 'POST' })).status).toBe(401)
  })

  test('a key that is disabled is told so from anywhere, and never 401, on which clients delete their key', async () => {
    const { key, secret } = await keys.create({ ...application, allowedIps: [HOME], scopes: ['api_keys:write'] })
    await keys.disable({ as: 'application', id: key.id })
    const routes = ['GET /data', 'GET /keys/self', 'POST /keys/self/rotate', 'POST /keys/self/revoke', `PATCH /keys/${key.id}`] as const
    for (const ip of [HOME, AWAY]) {
      for (const [method = '', path = ''] of routes.map((route) => route.split(' '))) {
        const { status, body } = await from(ip, path, secret, { method, ...(method === 'PATCH' && { body: { name: 'renamed' } }) })
        expect([ip, method, path, status, (body as { code: string }).code]).toEqual([ip, method, path, 403, 'key_disabled'])
      }
    }
  })

  test('a key with a list makes no key that may be used from elsewhere, and widens none', async () => {
    const maker = await keys.create({ ...application, allowedIps: ['198.51.100.0/24'], scopes: ['api_keys:write'] })
    const make = (allowedIps: unknown): Promise<Answer> =>
      from(HOME, '/keys', maker.secret, { method: 'POST', body: { name: 'made', allowedIps } })
    for (const wide of [null, ['0.0.0.0/0'], [AWAY], [HOME, AWAY], ['::/0']]) {
      expect([wide, (await make(wide)).status]).toEqual([wide, 403])
    }
    expect((await make(undefined)).status).toBe(403)
    const { status, body } = await make(['198.51.100.128/25', HOME])
    const { key } = body as { key: { id: string; allowedIps: string[] } }
    expect([status, key.allowedIps]).toEqual([201, ['198.51.100.128/25', HOME]])
    for (const id of [key.id, maker.key.id]) {
      expect((await from(HOME, `/keys/${id}`, maker.secret, { method: 'PATCH', body: { allowedIps: null } })).status).toBe(403)
    }
    expect((await from(HOME, `/keys/${key.id}`, maker.secret, { method: 'PATCH', body: { allowedIps: [HOME] } })).status).toBe(200)
  })

  test.each<[unknown, string]>([
    ['198.51.100.7', 'allowedIps must be a list of at most 100 addresses and networks, such as ["192.0.2.0/24"], or null.'],
    [[], 'allowedIps is an empty list. Write null for a key that may be used from any address.'],
    [['198.51.100.7/24'], 'allowedIps[0] has bits set beyond its prefix; write 198.51.100.0/24.'],
    [[HOME, 'fe80::1%eth0'], 'allowedIps[1] is no IPv4 or IPv6 address, and no network such as 192.0.2.0/24.'],
    [[5], 'allowedIps[0] must be a string such as "192.0.2.0/24".'],
    [
      Array.from({ length: 101 }, (_, n) => `10.0.0.${n}`),
      'allowedIps must be a list of at most 100 addresses and networks, such as ["192.0.2.0/24"], or null.',
    ],
  ])('a list that makes no sense is refused, and nothing is made: %j', async (allowedIps, said) => {
    const { secret } = await keys.create({ ...application, scopes: ['api_keys:write'] })
    const { status, body } = await from(HOME, '/keys', secret, { method: 'POST', body: { name: 'made', allowedIps } })
    expect([status, (body as { detail: string }).detail]).toEqual([400, said])
    expect((await keys.list({ ownerId: 'acme' })).items).toHaveLength(1)
  })

  test('in code a key with a list needs an address, to be verified and to change anything', async () => {
    const { secret } = await keys.create({ ...application, allowedIps: [HOME] })
    expect(await keys.verify(secret, { ip: HOME })).toMatchObject({ ok: true })
    expect(keys.peek(secret, { ip: `::ffff:${HOME}` })).toMatchObject({ ok: true })
    for (const ip of [undefined, AWAY, '', 'nonsense', 5 as never]) {
      expect(await keys.verify(secret, { ip })).toEqual({ ok: false, reason: 'ip_not_allowed' })
      expect(keys.peek(secret, { ip })).toEqual({ ok: false, reason: 'ip_not_allowed' })
      await expect(keys.rotate({ as: { secret }, ...(ip === undefined ? {} : { origin: { ip } }) })).rejects.toMatchObject({
        code: ip === (5 as never) ? 'invalid_request' : 'ip_not_allowed',
      })
    }
    expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'ip_not_allowed' })
    expect((await keys.rotate({ as: { secret }, origin: { ip: HOME } })).key.generation).toBe(2)
  })
})

test('P3: once a list is narrowed, no instance lets the key in from an address that is not in it any more', async () => {
  const { pool } = await freshDatabase()
  const [here, there] = [instance(postgresStore(pool)), instance(postgresStore(pool))]
  await here.migrate()
  const { key, secret } = await here.create(application)
  expect(await there.verify(secret, { ip: AWAY })).toMatchObject({ ok: true })
  for (const [allowedIps, away] of [
    [[HOME], { ok: false, reason: 'ip_not_allowed' }],
    [[HOME, AWAY], { ok: true }],
    [['198.51.100.0/24'], { ok: false, reason: 'ip_not_allowed' }],
    [null, { ok: true }],
  ] as const) {
    await here.update({ as: 'application', id: key.id, changes: { allowedIps } })
    for (const one of [here, there]) {
      expect(await one.verify(secret, { ip: AWAY })).toMatchObject(away)
      expect(await one.verify(secret, { ip: HOME })).toMatchObject({ ok: true })
    }
  }
})

test.each([
  ['nobody told Express of the proxy', false, true],
  ['whatever a client writes is believed', true, true],
  ['a proxy more than there is, is trusted', 2, true],
  ['the proxies are known', 1, false],
])('the operator hears once that lists go by a doubtful address: %s', async (_case, trustProxy, isDoubtful) => {
  for (const allowedIps of [[HOME, '127.0.0.0/8', '::1'], ['192.0.2.1']]) {
    const errors: ApiKeyError[] = []
    const keys = instance(memoryStore(), (error) => errors.push(error))
    const app = express5()
    app.set('trust proxy', trustProxy)
    app.get('/data', bearerAuth(keys), (_req, res) => void res.json({ ok: true }))
    const url = await listen(app)
    // Only a list makes the address matter.
    const open = await keys.create(application)
    await call(`${url}/data`, { secret: open.secret, from: HOME })
    expect(errors).toEqual([])
    const limited = await keys.create({ ...application, allowedIps })
    for (let n = 0; n < 3; n++) await call(`${url}/data`, { secret: limited.secret, from: HOME })
    const told = expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining('"trust proxy"') })
    expect(errors).toEqual(isDoubtful ? [told] : [])
  }
})

function instance(store: Store, onError: (error: ApiKeyError) => void = () => {}): ApiKeys {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 250, onError })
  atEnd(() => keys.close())
  return keys
}

async function served(keys: ApiKeys, framework: typeof express5 | typeof express4): Promise<string> {
  const app = framework()
  app.set('trust proxy', 'loopback')
  app.use('/keys', keyRouter(keys, { limits: false }))
  app.get('/data', bearerAuth(keys, { from: [bearer(), header('X-API-Key'), basic()] }), (_req, res) => void res.json({ ok: true }))
  return listen(app)
}
