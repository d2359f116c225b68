import { generateKeyPairSync } from 'node:crypto'
import { contracts } from 'express-api-keys'
import { operatorJwt } from 'express-api-keys/jwt'
import jwt from 'jsonwebtoken'
import { type Checked, type Sent, type Serving, serveContract } from '../support/contract.js'
import { stores, type TestStore } from '../support/stores.js'

const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const operators = operatorJwt({ issuer: 'https://id.example', audience: 'keys', algorithms: ['ES256'], key: publicKey })

/** Text that some database, shell, template or parser may take for its own. */
const TEXTS = [
  `'; drop table express_api_keys; --`,
  `' or '1'='1`,
  `" or ""="`,
  `\\'; select pg_sleep(10); --`,
  `acme' union select * from express_api_key_generations --`,
  '$1',
  '?',
  ':id',
  '%',
  '_cme',
  '{"$ne":null}',
  '$' + '{7*7}',
  '{{7*7}}',
  '<script>alert(1)</script>',
  '../../etc/passwd',
  'acme/../rival',
  '=cmd|calc',
  '\u202eemca',
  'ac\u0301me',
  'a\u200bcme',
  '__proto__',
  'constructor',
  '*1',
]
const TABLES = ['', '_generations', '_replays', '_events', '_settings'].map((name) => `express_api_key${name === '' ? 's' : name}`)

describe.each(stores)('on %s', (_name, make) => {
  let here: Serving
  let store: TestStore
  let admin: string
  let foreign: { id: string; secret: string }
  beforeAll(async () => {
    store = await make()
    here = await serveContract(contracts.standard, store.store, { operators, limits: false, waitForLease: false, leaseMs: 1_000 })
    admin = await adminOf('acme')
    const { key, secret } = await here.keys.create({
      as: 'application',
      ownerId: 'rival',
      name: 'foreign',
      scopes: ['api_keys:read', 'api_keys:write'],
    })
    foreign = { id: key.id, secret }
    await here.keys.update({ as: 'application', id: key.id, changes: { name: 'foreign' } })
  })
  const adminOf = async (ownerId: string): Promise<string> =>
    (await here.keys.create({ as: 'application', ownerId, name: 'admin', scopes: ['api_keys:read', 'api_keys:write'] })).secret
  const send = (method: string, path: string, body?: unknown, secret = admin): Promise<Checked> =>
    here.send({ method, path, secret, ...(body === undefined ? {} : { body }) } as Sent)

  afterEach(async () => {
    for (const table of TABLES) expect((await store.query(`select * from ${table} limit 1`)).length).toBeGreaterThanOrEqual(0)
    expect(await here.keys.get(foreign.id)).toMatchObject({ ownerId: 'rival', name: 'foreign', generation: 1, status: 'active' })
  })

  test.each(TEXTS)('keeps %j as the text that it is, in every field that takes text', async (text) => {
    const made = await send('POST', '/', { name: text, metadata: { [`m ${text}`]: text, list: [text] } })
    expect(made.status).toBe(201)
    const { id } = made.body.key
    expect((await send('PATCH', `/${id}`, { name: `${text} changed` })).status).toBe(200)
    expect((await send('POST', `/${id}/revoke`, { reason: text })).status).toBe(200)
    const shown = await send('GET', `/${id}`)
    expect(shown.body.key).toMatchObject({ name: `${text} changed`, metadata: { [`m ${text}`]: text, list: [text] }, revokedReason: text })
  })

  test('an owner is compared as it is written: not as a pattern, not in another case or normal form', async () => {
    const owners = [...TEXTS, 'ACME', 'acme ', 'acm\u00e9', 'acme\u0301', '\uff41cme', 'a%', '____']
    for (const ownerId of owners) {
      const secret = await adminOf(ownerId)
      const listed = await send('GET', '/?limit=100', undefined, secret)
      expect(listed.body.keys.map((key: { ownerId: string }) => key.ownerId)).toEqual([ownerId])
      expect((await send('GET', `/${foreign.id}`, undefined, secret)).status).toBe(404)
    }
  })

  test('an operator reaches no owner that its token does not name, however it is written', async () => {
    for (const owners of [['acme', '*'], ['*', '*'], ['riva%'], ['RIVAL'], ['rival '], ['\uff52ival'], ["x' or '1'='1"], []]) {
      const claims = { iss: 'https://id.example', aud: 'keys', sub: 'eve', scope: 'api_keys:read api_keys:write', owners }
      const token = jwt.sign(claims, privateKey, { algorithm: 'ES256', expiresIn: '5m' })
      for (const [method, path, body] of [
        ['GET', `/${foreign.id}`, undefined],
        ['GET', `/${foreign.id}/events`, undefined],
        ['PATCH', `/${foreign.id}`, { name: 'mine' }],
        ['POST', `/${foreign.id}/rotate`, { emergency: true }],
        ['POST', `/${foreign.id}/revoke`, {}],
      ] as const) {
        expect([path, (await send(method, path, body, token)).status]).toEqual([path, 404])
      }
      for (const ownerId of ['rival', '*']) {
        expect([400, 403]).toContain((await send('GET', `/?ownerId=${encodeURIComponent(ownerId)}`, undefined, token)).status)
        expect([400, 403]).toContain((await send('POST', '/', { name: 'n', ownerId }, token)).status)
      }
    }
  })

  test('a cursor is a position and nothing more: a foreign one shows nothing foreign, and a tampered one is refused', async () => {
    for (let n = 0; n < 3; n++) await send('POST', '/', { name: `paged ${n}` })
    await adminOf('rival')
    const page = await send('GET', '/?limit=1', undefined, foreign.secret)
    const foreignCursor = page.body.nextCursor as string
    expect(foreignCursor).toEqual(expect.any(String))
    const shown = await send('GET', `/?limit=100&cursor=${foreignCursor}`)
    expect(new Set(shown.body.keys.map((key: { ownerId: string }) => key.ownerId))).toEqual(new Set(['acme']))
    const events = await send('GET', `/${foreign.id}/events?cursor=${foreignCursor}`)
    expect(events.status).toBe(404)

    const { id } = (await send('GET', '/?limit=1')).body.keys[0]
    const forged = (text: string): string => Buffer.from(text).toString('base64url')
    for (const text of [
      ...TEXTS,
      `0.${id}' or '1'='1`,
      `1 or 1=1.${id}`,
      `-1.${id}`,
      `1e9.${id}`,
      `0x10.${id}`,
      `${'9'.repeat(16)}.${id}`,
      `1.${id}\n`,
      `1.${id.toUpperCase()}`,
      `{"at":1,"id":"${id}"}`,
      `[1,"${id}"]`,
      '.',
      `1.${'x'.repeat(36)}`,
      '',
    ]) {
      for (const path of ['/', `/${id}/events`]) {
        expect([text, (await send('GET', `${path}?cursor=${forged(text)}`)).status]).toEqual([text, 400])
      }
    }
    for (const text of [`999999999999999.${'f'.repeat(36)}`, `0.${'-'.repeat(36)}`]) {
      const { status, body } = await send('GET', `/?limit=100&cursor=${forged(text)}`)
      expect([status, body.keys.every((key: { ownerId: string }) => key.ownerId === 'acme')]).toEqual([200, true])
    }
  })

  test('an id, a query and an Idempotency-Key that are text for a database are refused, or only a name', async () => {
    for (const text of TEXTS) {
      const encoded = encodeURIComponent(text)
      const secret = await adminOf('acme')
      for (const [method, path] of [
        ['GET', `/${encoded}`],
        ['GET', `/${encoded}/events`],
        ['GET', `/?limit=${encoded}`],
        ['POST', `/${encoded}/rotate`],
      ] as const) {
        expect([text, path, (await send(method, path)).status]).toEqual([text, path, 400])
      }
      // A key acts for its own owner, and is told so rather than given something else than it asked for.
      expect([text, (await send('GET', `/?limit=100&ownerId=${encoded}`)).status]).toEqual([text, 400])
      if (!/^[\x21\x23-\x2b\x2d-\x7e]+$/.test(text)) continue
      const first = await here.send({ path: '/self/rotate', secret, idempotencyKey: text })
      const again = await here.send({ path: '/self/rotate', secret, idempotencyKey: text })
      expect([first.status, again.status, again.body.secret]).toEqual([200, 200, first.body.secret])
    }
  })

  test('what is no address is not kept as one, also where every proxy is trusted', async () => {
    const proxied = await serveContract(contracts.standard, store.store, {
      limits: false,
      trustProxy: true,
      waitForLease: false,
      leaseMs: 1_000,
    })
    for (const [forwarded, kept] of [
      [admin, null],
      ["'; --", null],
      ['unknown', null],
      ['_hidden', null],
      ['203.0.113.7:80:80', null],
      ['203.0.113.7:80', '203.0.113.7'],
      ['203.0.113.7', '203.0.113.7'],
      ['2001:db8::1', '2001:db8::1'],
    ] as const) {
      const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'proxied' })
      const headers = ['X-Forwarded-For', forwarded]
      expect((await proxied.send({ path: '/self/rotate', secret, headers })).status).toBe(200)
      expect((await here.keys.events({ id: key.id, limit: 1 }))?.items[0]).toMatchObject({ type: 'key.rotated', ip: kept })
    }
  })

  test('bodies that aim at prototypes are refused, and nobody gets a scope by them', async () => {
    const weak = (await here.keys.create({ as: 'application', ownerId: 'acme', name: 'weak' })).secret
    for (const body of [
      '{"__proto__":{"scopes":["api_keys:write"]}}',
      '{"name":"n","__proto__":{"ownerId":"rival"}}',
      '{"name":"n","constructor":{"prototype":{"ownerId":"rival"}}}',
      '{"name":"n","metadata":{"__proto__":{"polluted":1}}}',
      '{"name":"n","metadata":{"a":[{"constructor":{"prototype":{"polluted":1}}}]}}',
      '{"name":"n","scopes":{"__proto__":[],"length":1,"0":"api_keys:write"}}',
      '{"name":"n","toString":1}',
    ]) {
      expect([body, (await send('POST', '/', body)).status]).toEqual([body, 400])
      expect([body, (await send('PATCH', `/${foreign.id}`, body)).status >= 400]).toEqual([body, true])
    }
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined()
    expect((await send('POST', '/', { name: 'n' }, weak)).status).toBe(403)
  })
})
