import { generateKeyPairSync } from 'node:crypto'
import { type ApiKeys, contracts, type KeyHappening, memoryStore, type Operators } from 'express-api-keys'
import { operatorJwt } from 'express-api-keys/jwt'
import jwt from 'jsonwebtoken'
import { type Checked, everyStore, playContract, type Serving, serveContract } from '../../support/contract.js'

const contract = contracts.standard

playContract({
  contract,
  async prepare(keys) {
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'worker' })
    return { request: { path: '/self/rotate', secret }, secret, retires: secret, id: key.id }
  },
  async prepareGuarded(keys) {
    const caller = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const { key, rotationSecret = '' } = await keys.create({ as: 'application', ownerId: 'acme', name: 'guarded', rotationSecret: true })
    return { request: { path: `/${key.id}/rotate`, secret: caller.secret }, rotationSecret }
  },
  secretOf: ({ body }) => body.secret,
  rotationSecretOf: ({ body }) => body.rotationSecret,
})

const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const [operatorsHere, operatorsElsewhere] = ['https://id.example', 'https://id.elsewhere.example'].map((issuer) =>
  operatorJwt({ issuer, audience: 'keys', algorithms: ['ES256'], key: publicKey.export({ type: 'spki', format: 'pem' }) as string }),
) as [Operators, Operators]
/** Two issuers, as an application may join them. */
const operators: Operators = {
  authenticate: (text) =>
    ((jwt.decode(text) as { iss?: string }).iss?.includes('elsewhere') ? operatorsElsewhere : operatorsHere).authenticate(text),
}

function token(claims: object = {}): string {
  const usual = { iss: 'https://id.example', aud: 'keys', sub: 'ada', scope: 'api_keys:read api_keys:write', owners: ['acme', 'globex'] }
  return jwt.sign({ ...usual, ...claims }, privateKey, { algorithm: 'ES256', expiresIn: '5m' })
}

describe.each(everyStore)('on %s', (_name, makeStore) => {
  let here: Serving
  let admin: string
  beforeAll(async () => {
    here = await serveContract(contract, await makeStore(), { operators, limits: false })
    admin = (await here.keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write', 'api_keys:read'] }))
      .secret
  })
  const worker = async (fields: object = {}): Promise<{ id: string; secret: string; rotationSecret: string }> => {
    const { key, secret, rotationSecret = '' } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'worker', ...fields })
    return { id: key.id, secret, rotationSecret }
  }

  describe('a rotation secret', () => {
    test('is issued on request, shown once, and asked for whenever the key rotates itself', async () => {
      const made = await here.send({ path: '/', secret: admin, body: { name: 'n', rotationSecret: true } })
      expect([made.status, made.body.rotationSecret]).toEqual([201, expect.stringMatching(/^rot_live_/)])
      const { key, secret, rotationSecret } = made.body
      for (const path of ['/self/rotate', `/${key.id}/rotate`]) {
        const without = await here.send({ path, secret })
        expect([without.status, without.body.code]).toEqual([403, 'rotation_secret_required'])
        const wrong = await here.send({ path, secret, body: { rotationSecret: (await worker({ rotationSecret: true })).rotationSecret } })
        expect([wrong.status, wrong.body.code]).toEqual([401, 'invalid_key'])
      }
      const first = await here.send({ path: `/${key.id}/rotate`, secret, body: { rotationSecret } })
      const second = await here.send({
        path: '/self/rotate',
        secret: first.body.secret,
        body: { rotationSecret: first.body.rotationSecret },
      })
      expect([first.status, second.status]).toEqual([200, 200])
      const shown = await here.send({ method: 'GET', path: `/${key.id}`, secret: admin })
      expect(JSON.stringify(shown.body)).not.toMatch(/rot_live_|\$2b\$/)
    })

    test('is not asked of whoever may rotate it from outside, and is new after that too', async () => {
      const { id, secret, rotationSecret } = await worker({ rotationSecret: true })
      const { status, body } = await here.send({ path: `/${id}/rotate`, secret: admin })
      expect([status, body.rotationSecret]).toEqual([200, expect.stringMatching(/^rot_live_/)])
      expect(body.rotationSecret).not.toBe(rotationSecret)
      expect((await here.send({ path: '/self/rotate', secret: body.secret, body: { rotationSecret } })).status).toBe(401)
      expect(await here.accepted(secret)).toBe(401)
    })

    test('is not taken as a bearer, nor a key as a rotation secret', async () => {
      const { secret, rotationSecret } = await worker({ rotationSecret: true })
      expect(await here.accepted(rotationSecret)).toBe(401)
      expect((await here.send({ path: '/self/rotate', secret, body: { rotationSecret: secret } })).status).toBe(401)
    })
  })

  test("a secret's age begins with its key and again with each rotation, and with nothing else", async () => {
    const { key, secret } = (await here.send({ path: '/', secret: admin, body: { name: 'n' } })).body
    expect(key.secretCreatedAt).toBe(key.createdAt)
    const renamed = await here.send({ method: 'PATCH', path: `/${key.id}`, secret: admin, body: { name: 'm' } })
    expect(renamed.body.key.secretCreatedAt).toBe(key.createdAt)
    // Clocks are read in whole milliseconds.
    while (Date.now() <= Date.parse(key.createdAt)) await new Promise(setImmediate)
    const { body: rotated } = await here.send({ path: '/self/rotate', secret })
    const { secretCreatedAt } = rotated.key
    expect(Date.parse(secretCreatedAt)).toBeGreaterThan(Date.parse(key.createdAt))
    expect(rotated.key.createdAt).toBe(key.createdAt)
    const shown = await here.send({ method: 'GET', path: `/${key.id}`, secret: admin })
    const listed = await here.send({ method: 'GET', path: '/', secret: admin })
    const own = listed.body.keys.find(({ id }: { id: string }) => id === key.id)
    const verified = await here.keys.verify(rotated.secret)
    const ages = [shown.body.key, own, verified.ok && verified.key].map((each) => each.secretCreatedAt)
    expect(ages).toEqual([secretCreatedAt, secretCreatedAt, secretCreatedAt])
    const { key: successor } = await here.keys.rotate({ as: 'application', id: key.id, identity: 'successor' })
    expect(successor.secretCreatedAt).toBe(successor.createdAt)
    const ended = await here.keys.get(key.id)
    expect([ended?.rotatedTo, ended?.secretCreatedAt]).toEqual([successor.id, secretCreatedAt])
  })

  describe('a grace period', () => {
    test('lets the old secret go on until its end, and says so on every request that comes with it', async () => {
      const { id, secret } = await worker()
      const before = Date.now()
      const { status, body } = await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 60_000 } } })
      expect(status).toBe(200)
      expect(Math.abs(Date.parse(body.acceptedUntil) - before - 60_000)).toBeLessThan(5_000)
      const answer = await fetch(`${here.url}/data`, { headers: { authorization: `Bearer ${secret}` } })
      expect([answer.status, answer.headers.get('api-key-expires-at')]).toEqual([200, body.acceptedUntil])
      // Seconds of when it was replaced, and an HTTP-date.
      expect(answer.headers.get('deprecation')).toBe(`@${Math.floor(Date.parse(body.key.updatedAt) / 1_000)}`)
      expect(answer.headers.get('sunset')).toBe(new Date(body.acceptedUntil).toUTCString())
      expect(answer.headers.get('sunset')).toMatch(/^[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT$/)
      const fresh = await fetch(`${here.url}/data`, { headers: { authorization: `Bearer ${body.secret}` } })
      expect(['api-key-expires-at', 'deprecation', 'sunset'].map((name) => fresh.headers.get(name))).toEqual([null, null, null])
      expect(fresh.status).toBe(200)
      await here.keys.revoke({ as: 'application', id })
      expect([await here.accepted(secret), await here.accepted(body.secret)]).toEqual([401, 401])
    })

    test('is told by the router too, on what its secret reads', async () => {
      const { id, secret } = await worker({ scopes: ['api_keys:read'] })
      const { body } = await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 60_000 } } })
      for (const path of ['/', `/${id}`, `/${id}/events`]) {
        const old = await here.send({ method: 'GET', path, secret })
        expect([path, old.status, old.headers['api-key-expires-at']]).toEqual([path, 200, body.acceptedUntil])
        const fresh = await here.send({ method: 'GET', path, secret: body.secret })
        expect([path, fresh.status, fresh.headers['api-key-expires-at']]).toEqual([path, 200, undefined])
      }
    })

    test('ends at the instant that the rotation named', async () => {
      const { secret } = await worker()
      const { body } = await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 400 } } })
      const end = Date.parse(body.acceptedUntil)
      let accepted = 0
      for (;;) {
        const started = Date.now()
        const status = await here.accepted(secret)
        if (status === 200) accepted++
        // One millisecond, since clocks are read in whole ones.
        if (started > end + 1) {
          expect(status).toBe(401)
          break
        }
      }
      expect(accepted).toBeGreaterThan(0)
      expect(await here.accepted(body.secret)).toBe(200)
    })

    test('never outlasts the key, and a second rotation in it is refused until an emergency ends it', async () => {
      const expiresAt = new Date(Date.now() + 30_000).toISOString()
      const { id, secret } = await worker({ expiresAt })
      const first = await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 604_800_000 } }, idempotencyKey: 'grace' })
      expect(first.body.acceptedUntil).toBe(expiresAt)
      for (const body of [{}, { retire: 'now' }, { retire: 'on-first-use' }, { retire: { afterMs: 1 } }]) {
        const second = await here.send({ path: `/${id}/rotate`, secret: admin, body })
        expect([second.status, second.body.code]).toEqual([409, 'rotation_in_grace'])
      }
      // Nor may the secret on its way out take the key back, by calling that an emergency.
      const coup = await here.send({ path: '/self/rotate', secret, body: { emergency: true } })
      expect([coup.status, coup.body.code]).toEqual([409, 'secret_in_grace'])
      // Its own answer can still be asked for, with the secret that lives on.
      expect(
        (await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 604_800_000 } }, idempotencyKey: 'grace' })).body,
      ).toEqual(first.body)
      const ended = await here.send({ path: `/${id}/rotate`, secret: admin, body: { emergency: true } })
      expect(ended.status).toBe(200)
      expect([await here.accepted(secret), await here.accepted(first.body.secret), await here.accepted(ended.body.secret)]).toEqual([
        401, 401, 200,
      ])
    })

    test.each([
      ['the key itself', []],
      ['a key that may rotate others', ['api_keys:write']],
    ])('gives the secret on its way out no way to take the key back: not as %s', async (_who, scopes) => {
      const { id, secret } = await worker({ scopes })
      const first = await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 60_000 } } })
      for (const [n, path] of ['/self/rotate', `/${id}/rotate`].entries()) {
        for (const idempotencyKey of [undefined, `take-back-${n}`]) {
          const seized = await here.send({ path, secret, body: { emergency: true }, idempotencyKey })
          expect([seized.status, seized.body.code]).toEqual([409, 'secret_in_grace'])
        }
      }
      expect([await here.accepted(secret), await here.accepted(first.body.secret)]).toEqual([200, 200])
      expect((await here.keys.get(id))?.generation).toBe(2)
    })

    test.each([
      ['the active secret', ({ active }: Record<'active' | 'writer' | 'operator', string>) => active],
      ['a key that may rotate others', ({ writer }: Record<'active' | 'writer' | 'operator', string>) => writer],
      ['an operator', ({ operator }: Record<'active' | 'writer' | 'operator', string>) => operator],
    ])('is ended by an emergency of %s', async (_who, pick) => {
      const { id, secret } = await worker()
      const first = await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 60_000 } } })
      const caller = pick({ active: first.body.secret, writer: admin, operator: token() })
      const ended = await here.send({ path: `/${id}/rotate`, secret: caller, body: { emergency: true } })
      expect(ended.status).toBe(200)
      expect([await here.accepted(secret), await here.accepted(first.body.secret), await here.accepted(ended.body.secret)]).toEqual([
        401, 401, 200,
      ])
    })

    test('is refused where it is not one', async () => {
      const { id, secret } = await worker()
      const bad = [{ retire: 'later' }, { retire: { afterMs: 0 } }, { retire: { afterMs: -1 } }, { retire: { afterMs: 1.5 } }]
      const worse = [
        { retire: { afterMs: '9' } },
        { retire: {} },
        { retire: null },
        { retire: { afterMs: 5, more: 1 } },
        { retire: [] },
        { emergency: 1 },
      ]
      for (const body of [...bad, ...worse, { emergency: true, retire: { afterMs: 5 } }]) {
        const answer = await here.send({ path: '/self/rotate', secret, body })
        expect([answer.status, answer.body.code]).toEqual([400, 'invalid_request'])
      }
      expect((await here.keys.get(id))?.generation).toBe(1)
    })

    test('that lasts until the first use ends with it: before that use is answered', async () => {
      const { secret } = await worker()
      const { body } = await here.send({ path: '/self/rotate', secret, body: { retire: 'on-first-use' } })
      expect(Date.parse(body.acceptedUntil) - Date.now()).toBeGreaterThan(6 * 86_400_000)
      for (let i = 0; i < 3; i++) expect(await here.accepted(secret)).toBe(200)
      const statuses = await Promise.all(Array.from({ length: 5 }, () => here.accepted(body.secret)))
      expect(statuses).toEqual([200, 200, 200, 200, 200])
      expect(await here.accepted(secret)).toBe(401)
      // And the key can be rotated again.
      expect((await here.send({ path: '/self/rotate', secret: body.secret })).status).toBe(200)
    })

    test('the first use may also be that of the router', async () => {
      const { secret } = await worker({ scopes: ['api_keys:write', 'api_keys:read'] })
      const { body } = await here.send({ path: '/self/rotate', secret, body: { retire: 'on-first-use' } })
      expect((await here.send({ path: '/', secret: body.secret, body: { name: 'made by the new one' } })).status).toBe(201)
      expect(await here.accepted(secret)).toBe(401)
    })
  })

  describe('an emergency', () => {
    test('is never replayed, and burns what could have been', async () => {
      const { id, secret } = await worker({ rotationSecret: true })
      const first = await here.send({ path: `/${id}/rotate`, secret: admin, idempotencyKey: 'before' })
      const sent = { path: `/${id}/rotate`, secret: token(), body: { emergency: true }, idempotencyKey: 'emergency-0000000000000000000000' }
      const ended = await here.send(sent)
      expect(ended.status).toBe(200)
      expect([await here.accepted(secret), await here.accepted(first.body.secret), await here.accepted(ended.body.secret)]).toEqual([
        401, 401, 200,
      ])
      const again = await here.send(sent)
      expect([again.status, again.body.code]).toEqual([409, 'idempotency_key_spent'])
      const burnt = await here.send({ path: `/${id}/rotate`, secret: admin, idempotencyKey: 'before' })
      expect([burnt.status, burnt.body.code]).toEqual([409, 'rotation_superseded'])
      expect((await here.keys.get(id))?.generation).toBe(3)
    })
  })

  describe('an operator', () => {
    test('may do everything for the owners that its token names', async () => {
      const made = await here.send({
        path: '/',
        secret: token(),
        body: { ownerId: 'globex', name: 'n', scopes: ['a'] },
        idempotencyKey: 'make-0000000000000000000000',
      })
      expect([made.status, made.body.key.ownerId]).toEqual([201, 'globex'])
      const again = await here.send({
        path: '/',
        secret: token({ jti: 'another' }),
        body: { ownerId: 'globex', name: 'n', scopes: ['a'] },
        idempotencyKey: 'make-0000000000000000000000',
      })
      expect(again.body).toEqual(made.body)
      const { id } = made.body.key
      const calls: Parameters<Serving['send']>[0][] = [
        { method: 'GET', path: `/${id}` },
        { method: 'GET', path: '/?ownerId=globex&limit=1' },
        { method: 'GET', path: `/${id}/events` },
        { method: 'PATCH', path: `/${id}`, body: { name: 'other' } },
        { path: `/${id}/rotate`, idempotencyKey: 'turn-0000000000000000000000' },
        { path: `/${id}/revoke`, body: { reason: 'left' } },
      ]
      for (const sent of calls) expect([sent.path, (await here.send({ ...sent, secret: token() })).status]).toEqual([sent.path, 200])
      const actors = (await here.keys.events({ id }))?.items.map(({ actor }) => actor)
      expect(new Set(actors)).toEqual(new Set(['operator:ada@https://id.example']))
    })

    test('fifty creations with one Idempotency-Key make one key', async () => {
      const ownerId = 'globex'
      const count = async (): Promise<number> => (await here.keys.list({ ownerId, limit: 100 })).items.length
      const before = await count()
      const sent = { path: '/', secret: token(), body: { ownerId, name: 'raced' }, idempotencyKey: 'raced-0000000000000000000000' }
      const answers = await Promise.all(Array.from({ length: 50 }, () => here.send(sent)))
      const secrets = new Set(answers.filter(({ status }) => status === 201).map(({ body }) => body.secret))
      expect([secrets.size, (await count()) - before]).toEqual([1, 1])
      for (const { status } of answers) expect([201, 409]).toContain(status)
    })

    test('sees nothing of other owners, and does nothing without the scope', async () => {
      const { key } = await here.keys.create({ as: 'application', ownerId: 'initech', name: 'foreign' })
      const foreign: [string, string, number][] = [
        ['GET', `/${key.id}`, 404],
        ['GET', `/${key.id}/events`, 404],
        ['GET', '/?ownerId=initech', 403],
        ['GET', '/', 400],
        ['PATCH', `/${key.id}`, 404],
        ['POST', `/${key.id}/rotate`, 404],
        ['POST', `/${key.id}/revoke`, 404],
        ['POST', '/self/rotate', 400],
        ['POST', '/', 403],
      ]
      const body = (method: string, path: string): object =>
        path === '/' ? { name: 'n', ownerId: 'initech' } : method === 'PATCH' ? { name: 'n' } : {}
      const send = (method: string, path: string, secret: string): Promise<Checked> =>
        here.send({ method, path, secret, ...(method === 'GET' ? {} : { body: body(method, path) }) })
      for (const [method, path, status] of foreign)
        expect([method, path, (await send(method, path, token())).status]).toEqual([method, path, status])
      for (const [method, path] of foreign) {
        if (path === '/self/rotate' || path === '/') continue
        expect((await send(method, path, token({ scope: '', owners: ['initech'] }))).status).toBe(403)
      }
      expect((await send('GET', `/${key.id}`, token({ owners: ['*'] }))).status).toBe(200)
      expect((await send('GET', '/?ownerId=acme', token({ owners: ['*', 'acme'] }))).status).toBe(200)
      expect((await send('GET', `/${key.id}`, token({ owners: ['*', 'acme'] }))).status).toBe(404)
      expect((await here.keys.get(key.id))?.generation).toBe(1)
    })

    test('gets its replay with another token, and nobody else gets it', async () => {
      const { id } = await worker()
      const sent = { path: `/${id}/rotate`, idempotencyKey: 'of-ada-0000000000000000000000' }
      const first = await here.send({ ...sent, secret: token() })
      const again = await here.send({ ...sent, secret: token({ jti: 'new' }) })
      expect([again.status, again.body]).toEqual([200, first.body])
      // Somebody else's is another request, and rotates.
      const eve = await here.send({ ...sent, secret: token({ sub: 'eve' }) })
      expect([eve.status, eve.body.key.generation]).toEqual([200, 3])
      // Whoever lost the right to it does not get it any more.
      expect((await here.send({ ...sent, secret: token({ owners: ['globex'] }) })).status).toBe(404)
      expect((await here.send({ ...sent, secret: token({ scope: 'api_keys:read' }) })).status).toBe(403)
      // A key's own id is no operator.
      expect((await here.send({ ...sent, secret: token({ sub: id }) })).body.key.generation).toBe(4)
    })

    test('of the same name at another issuer is somebody else', async () => {
      const { id } = await worker()
      const sent = { path: `/${id}/rotate`, idempotencyKey: 'one-name-0000000000000000000000' }
      const first = await here.send({ ...sent, secret: token() })
      const other = await here.send({ ...sent, secret: token({ iss: 'https://id.elsewhere.example' }) })
      expect([other.status, other.headers['idempotent-replayed'], other.body.key.generation]).toEqual([200, undefined, 3])
      expect(other.body.secret).not.toBe(first.body.secret)
      const create = { path: '/', idempotencyKey: 'one-name-creates-0000000000000000000000', body: { name: 'n', ownerId: 'acme' } }
      const made = [await here.send({ ...create, secret: token() })]
      made.push(await here.send({ ...create, secret: token({ iss: 'https://id.elsewhere.example' }) }))
      expect(made.map(({ status, headers }) => [status, headers['idempotent-replayed']])).toEqual([
        [201, undefined],
        [201, undefined],
      ])
      expect(made[1]?.body.key.id).not.toBe(made[0]?.body.key.id)
    })

    test('whose token has come to name another owner makes another request, also where the body says none', async () => {
      const sent = { path: '/', body: { name: 'n' }, idempotencyKey: 'whose-0000000000000000000000' }
      const first = await here.send({ ...sent, secret: token({ owners: ['acme'] }) })
      expect([first.status, first.body.key.ownerId]).toEqual([201, 'acme'])
      const moved = await here.send({ ...sent, secret: token({ owners: ['globex'] }) })
      expect([moved.status, moved.body.code]).toEqual([422, 'idempotency_key_mismatch'])
      const spelled = await here.send({ ...sent, body: { name: 'n', ownerId: 'acme' }, secret: token() })
      expect([spelled.status, spelled.body]).toEqual([201, first.body])
    })

    test('a key says no ownerId', async () => {
      const answer = await here.send({ path: '/', secret: admin, body: { name: 'n', ownerId: 'globex' } })
      expect([answer.status, answer.body.code]).toEqual([400, 'invalid_request'])
    })
  })

  describe('the life of a key', () => {
    test('a rotation neither renews nor moves its expiry', async () => {
      const expiresAt = new Date(Date.now() + 86_400_000).toISOString()
      const { secret } = await worker({ expiresAt })
      expect((await here.send({ path: '/self/rotate', secret })).body.key.expiresAt).toBe(expiresAt)
    })

    test('its trail tells who did what from where, also of a dead secret that was refused', async () => {
      const { id, secret } = await worker()
      const headers = ['User-Agent', 'tester/1']
      const rotated = await here.send({ path: '/self/rotate', secret, idempotencyKey: 'told', headers })
      await here.send({ path: '/self/rotate', secret, idempotencyKey: 'told', headers })
      await fetch(`${here.url}/data`, { headers: { authorization: `Bearer ${secret}`, 'user-agent': 'thief/1' } })
      await here.send({ method: 'PATCH', path: `/${id}`, secret: admin, body: { name: 'x' }, headers })
      await here.send({ path: `/${id}/revoke`, secret: rotated.body.secret, body: { reason: 'done' }, headers })
      const trail = async (): Promise<unknown[]> =>
        (await here.send({ method: 'GET', path: `/${id}/events?limit=100`, secret: admin })).body.events
      while ((await trail()).length < 6) await new Promise(setImmediate)
      const lines = ((await trail()) as { type: string; actor: string; ip: string; userAgent: string }[]).map(
        ({ type, actor, ip, userAgent }) => `${type} ${actor.replace(id, 'self').replace(/key:[0-9a-f-]{36}/, 'admin')} ${ip} ${userAgent}`,
      )
      expect(lines.sort()).toEqual([
        'key.created system null null',
        'key.replayed key:self 127.0.0.1 tester/1',
        'key.retired_secret_refused key:self 127.0.0.1 thief/1',
        'key.revoked key:self 127.0.0.1 tester/1',
        'key.rotated key:self 127.0.0.1 tester/1',
        'key.updated admin 127.0.0.1 tester/1',
      ])
    })

    test('its last use is written behind, at most once a minute, and when the keys are closed', async () => {
      const store = await makeStore()
      const one = await serveContract(contract, store)
      const { key, secret } = await one.keys.create({ as: 'application', ownerId: 'acme', name: 'used' })
      for (const agent of ['first/1', 'second/1']) {
        await fetch(`${one.url}/data`, { headers: { authorization: `Bearer ${secret}`, 'user-agent': agent } })
      }
      expect((await one.keys.get(key.id))?.lastUsedAt).toBeNull()
      const writes = jest.spyOn(store, 'recordUses')
      await one.keys.close()
      const row = await store.key(key.id)
      expect(row?.key).toMatchObject({ lastUsedIp: '127.0.0.1', lastUsedUserAgent: 'first/1' })
      expect(Math.abs(Date.now() - (row?.key.lastUsedAt ?? 0))).toBeLessThan(30_000)
      expect(writes.mock.calls.map(([uses]) => uses.length)).toEqual([1])
    })
  })
})

test('listeners hear of what was committed, each by its name, and cannot do harm', async () => {
  const reported: unknown[] = []
  const here = await serveContract(contract, memoryStore(), { limits: false, onError: (error) => reported.push(error) })
  const heard: string[] = []
  const note = ({ event, key }: KeyHappening): void => {
    heard.push(`${event.type} ${key.generation}`)
    expect(JSON.stringify([event, key])).not.toMatch(/(sk|rot)_live_\w/)
  }
  for (const name of ['created', 'updated', 'rotated', 'replayed', 'revoked', 'refused'] as const) here.keys.on(name, note)
  here.keys.on('rotated', () => {
    throw new Error('a listener that throws')
  })
  here.keys.on('rotated', async () => {
    throw new Error('a listener that rejects')
  })
  const off = here.keys.on('rotated', () => heard.push('never'))
  off()
  const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n', rotationSecret: true })
  const other = await createOther(here.keys)
  await here.send({ path: '/self/rotate', secret, body: { rotationSecret: other } })
  await here.keys.update({ as: 'application', id: key.id, changes: { name: 'm' } })
  await here.keys.rotate({ as: 'application', id: key.id })
  await here.keys.revoke({ as: 'application', id: key.id })
  await here.keys.rotate({ as: 'application', id: key.id }).catch(() => {})
  while (heard.length < 6 || reported.length < 2) await new Promise(setImmediate)
  expect(heard.sort()).toEqual([
    'key.created 1',
    'key.created 1',
    'key.revoked 2',
    'key.rotated 2',
    'key.rotation_secret_refused 1',
    'key.updated 1',
  ])
  expect(reported).toHaveLength(2)
  expect(() => here.keys.on('rotate' as 'rotated', note)).toThrow('There is nothing called "rotate" to listen for')
})

async function createOther(keys: ApiKeys): Promise<string> {
  return (await keys.create({ as: 'application', ownerId: 'acme', name: 'other', rotationSecret: true })).rotationSecret ?? ''
}
