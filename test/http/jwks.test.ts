import { generateKeyPairSync, type KeyObject } from 'node:crypto'
import type { RequestListener } from 'node:http'
import express from 'express'
import { type ApiKeyError, createApiKeys, keyRouter, memoryStore, type Operator } from 'express-api-keys'
import { type OperatorJwtOptions, operatorJwt } from 'express-api-keys/jwt'
import { type JWTPayload, SignJWT } from 'jose'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'
import { call } from '../support/traffic.js'

const rsa = generateKeyPairSync('rsa', { modulusLength: 2_048 })
const nextRsa = generateKeyPairSync('rsa', { modulusLength: 2_048 })
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const ed = generateKeyPairSync('ed25519')
const stranger = generateKeyPairSync('rsa', { modulusLength: 2_048 })

/** The claims of an access token as Auth0 makes them for an API with permissions, and an action that adds the organization. */
const AUTH0: JWTPayload = {
  ...{ iss: 'https://acme.eu.auth0.com/', sub: 'auth0|65f0c1', aud: ['https://api.acme.example', 'https://acme.eu.auth0.com/userinfo'] },
  ...{ scope: 'openid profile', azp: 'kR3yv', permissions: ['api_keys:read', 'api_keys:write'], 'https://acme.example/org': 'acme' },
}
const AUTH0_OPTIONS = {
  ...{ issuer: 'https://acme.eu.auth0.com/', audience: 'https://api.acme.example', algorithms: ['RS256'] as const },
  ...{ scopeClaim: 'permissions', ownersClaim: 'https://acme.example/org' },
} as const
/** As Keycloak makes them, with a mapper for the groups of the user. */
const KEYCLOAK: JWTPayload = {
  ...{ iss: 'https://id.acme.example/realms/acme', sub: 'f:9c1d', aud: 'account', typ: 'Bearer', azp: 'console', session_state: '7f' },
  ...{ scope: 'profile email', realm_access: { roles: ['offline_access'] }, resource_access: { keys: { roles: ['api_keys:read'] } } },
  groups: ['acme', 'acme-staging'],
}
const KEYCLOAK_OPTIONS = {
  ...{ issuer: 'https://id.acme.example/realms/acme', audience: ['account', 'keys'], algorithms: ['RS256', 'ES256'] as const },
  ...{ scopeClaim: ['resource_access', 'keys', 'roles'], ownersClaim: 'groups' },
} as const

function jwk(kid: string, key: KeyObject, rest: object = {}): object {
  return { kid, use: 'sig', ...key.export({ format: 'jwk' }), ...rest }
}

function sign(claims: JWTPayload, alg: string, kid: string | undefined, key: KeyObject): Promise<string> {
  return new SignJWT(claims)
    .setProtectedHeader({ alg, ...(kid === undefined ? {} : { kid }) })
    .setIssuedAt()
    .setExpirationTime('5m')
    .sign(key)
}

/** An issuer that publishes what a test says, and counts how often it is asked. */
async function issuer(keys: object[]): Promise<{ url: string; asked: number; keys: object[]; answer?: RequestListener | undefined }> {
  const made: Awaited<ReturnType<typeof issuer>> = { url: '', asked: 0, keys }
  const url = await listen((req, res) => {
    made.asked++
    if (made.answer !== undefined) made.answer(req, res)
    else res.setHeader('content-type', 'application/json').end(JSON.stringify({ keys: made.keys }))
  })
  made.url = `${url}/.well-known/jwks.json`
  return made
}

async function authenticate(options: OperatorJwtOptions, token: string): Promise<Operator> {
  return operatorJwt(options).authenticate(token)
}

afterEach(() => jest.restoreAllMocks())

test('reads an access token of Auth0 by its published keys', async () => {
  const { url } = await issuer([jwk('a', rsa.publicKey, { alg: 'RS256', x5c: ['MIIC'], x5t: 'Zm9v' })])
  expect(await authenticate({ ...AUTH0_OPTIONS, jwksUrl: url }, await sign(AUTH0, 'RS256', 'a', rsa.privateKey))).toMatchObject({
    ...{ issuer: 'https://acme.eu.auth0.com/', subject: 'auth0|65f0c1', scopes: ['api_keys:read', 'api_keys:write'], owners: ['acme'] },
  })
})

test('reads an access token of Keycloak, which publishes keys of several kinds', async () => {
  const encryption = jwk('enc', rsa.publicKey, { use: 'enc', alg: 'RSA-OAEP' })
  const { url } = await issuer([encryption, jwk('r', rsa.publicKey, { alg: 'RS256' }), jwk('e', ec.publicKey, { alg: 'ES256' })])
  for (const [alg, kid, key] of [
    ['RS256', 'r', rsa.privateKey],
    ['ES256', 'e', ec.privateKey],
  ] as const) {
    expect(await authenticate({ ...KEYCLOAK_OPTIONS, jwksUrl: url }, await sign(KEYCLOAK, alg, kid, key))).toMatchObject({
      ...{ scopes: ['api_keys:read'], owners: ['acme', 'acme-staging'] },
    })
  }
})

test('reads Ed25519, by a key at hand and by a published one', async () => {
  const pem = ed.publicKey.export({ type: 'spki', format: 'pem' }) as string
  const { url } = await issuer([jwk('d', ed.publicKey)])
  const token = await sign(KEYCLOAK, 'EdDSA', 'd', ed.privateKey)
  for (const by of [{ key: pem }, { keys: { d: pem } }, { jwksUrl: url }]) {
    expect(await authenticate({ ...KEYCLOAK_OPTIONS, algorithms: ['EdDSA'], ...by }, token)).toMatchObject({ subject: 'f:9c1d' })
  }
  const other = await sign(KEYCLOAK, 'EdDSA', 'd', generateKeyPairSync('ed25519').privateKey)
  for (const by of [{ key: pem }, { keys: { d: pem } }, { keys: { other: pem } }, { jwksUrl: url }]) {
    await expect(authenticate({ ...KEYCLOAK_OPTIONS, algorithms: ['EdDSA'], ...by }, other)).rejects.toMatchObject({ code: 'invalid_key' })
  }
})

test('keys are kept, and read again for one that was published since, at most once in 30 seconds', async () => {
  const published = await issuer([jwk('a', rsa.publicKey)])
  const operators = operatorJwt({ ...AUTH0_OPTIONS, jwksUrl: published.url })
  const [old, fresh] = [await sign(AUTH0, 'RS256', 'a', rsa.privateKey), await sign(AUTH0, 'RS256', 'b', nextRsa.privateKey)]
  for (let i = 0; i < 3; i++) await operators.authenticate(old)
  expect(published.asked).toBe(1)
  published.keys = [jwk('a', rsa.publicKey), jwk('b', nextRsa.publicKey)]
  // Anyone can send a token that names a key which is not there.
  for (let i = 0; i < 3; i++) await expect(operators.authenticate(fresh)).rejects.toMatchObject({ code: 'invalid_key' })
  expect(published.asked).toBe(1)
  const now = Date.now()
  jest.spyOn(Date, 'now').mockImplementation(() => now + 31_000)
  expect(await operators.authenticate(fresh)).toMatchObject({ owners: ['acme'] })
  expect(published.asked).toBe(2)
})

test('a key that the issuer has withdrawn is good for ten minutes at most', async () => {
  const published = await issuer([jwk('a', rsa.publicKey)])
  const operators = operatorJwt({ ...AUTH0_OPTIONS, jwksUrl: published.url, maxLifetimeMs: 3_600_000 })
  const token = await sign(AUTH0, 'RS256', 'a', rsa.privateKey)
  await operators.authenticate(token)
  published.keys = [jwk('b', nextRsa.publicKey)]
  const now = Date.now()
  jest.spyOn(Date, 'now').mockImplementation(() => now + 600_001)
  await expect(operators.authenticate(token)).rejects.toMatchObject({ code: 'invalid_key' })
})

test.each<[string, (keys: object) => Promise<string>]>([
  ['signed by a stranger', () => sign(AUTH0, 'RS256', 'a', stranger.privateKey)],
  ['of another issuer', () => sign({ ...AUTH0, iss: 'https://evil.example/' }, 'RS256', 'a', rsa.privateKey)],
  ['for another audience', () => sign({ ...AUTH0, aud: 'https://other.example' }, 'RS256', 'a', rsa.privateKey)],
  ['by an algorithm that was not asked for', () => sign(AUTH0, 'RS512', 'a', rsa.privateKey)],
  ['that names a key which is not there', () => sign(AUTH0, 'RS256', 'z', rsa.privateKey)],
  ['that names none, where there are several', () => sign(AUTH0, 'RS256', undefined, rsa.privateKey)],
  ['without an owner', () => sign({ ...AUTH0, 'https://acme.example/org': undefined }, 'RS256', 'a', rsa.privateKey)],
  ['for all owners by a text', () => sign({ ...AUTH0, 'https://acme.example/org': '*' }, 'RS256', 'a', rsa.privateKey)],
  ['whose permissions hold something else', () => sign({ ...AUTH0, permissions: ['a', 1] }, 'RS256', 'a', rsa.privateKey)],
  [
    'that has expired',
    () => new SignJWT(AUTH0).setProtectedHeader({ alg: 'RS256', kid: 'a' }).setExpirationTime('-1m').sign(rsa.privateKey),
  ],
  ['that never expires', () => new SignJWT(AUTH0).setProtectedHeader({ alg: 'RS256', kid: 'a' }).sign(rsa.privateKey)],
  [
    'with an extension that must be understood',
    () =>
      new SignJWT(AUTH0)
        .setProtectedHeader({ alg: 'RS256', kid: 'a', crit: ['exp'], exp: 1 })
        .setExpirationTime('5m')
        .sign(rsa.privateKey, { crit: { exp: true } }),
  ],
  [
    'whose MAC is made with the public key',
    () => {
      const pem = rsa.publicKey.export({ type: 'spki', format: 'pem' })
      return new SignJWT(AUTH0).setProtectedHeader({ alg: 'HS256', kid: 'a' }).setExpirationTime('5m').sign(Buffer.from(pem))
    },
  ],
])('a token %s is refused, and nothing is said of why', async (_what, make) => {
  const { url } = await issuer([jwk('a', rsa.publicKey), jwk('b', nextRsa.publicKey)])
  const token = await make({})
  const error: ApiKeyError = await authenticate({ ...AUTH0_OPTIONS, jwksUrl: url }, token).then(
    () => Promise.reject(new Error('accepted')),
    (refusal) => refusal,
  )
  expect([error.code, error.cause]).toEqual(['invalid_key', undefined])
  for (const part of token.split('.')) expect(JSON.stringify(error) + error.stack).not.toContain(part)
})

test.each<[string, RequestListener]>([
  ['is broken', (_req, res) => void res.writeHead(500).end()],
  ['sends somewhere else', (_req, res) => void res.writeHead(302, { location: 'http://127.0.0.1:1/' }).end()],
  ['answers with a page', (_req, res) => void res.setHeader('content-type', 'text/html').end('<html>')],
  ['answers with no keys', (_req, res) => void res.end('{"keys":"none"}')],
  ['hangs up', (req) => void req.socket.destroy()],
])('while the issuer %s, operators get 503, keys go on, and onError hears of it without the token', async (_what, answer) => {
  const published = await issuer([jwk('a', rsa.publicKey)])
  published.answer = answer
  const errors: ApiKeyError[] = []
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: (error) => errors.push(error) })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['api_keys:read'] })
  const app = express().use('/keys', keyRouter(keys, { operators: operatorJwt({ ...AUTH0_OPTIONS, jwksUrl: published.url }) }))
  const url = await listen(app)
  const token = await sign(AUTH0, 'RS256', 'a', rsa.privateKey)
  const refused = await call(`${url}/keys?ownerId=acme`, { secret: token })
  expect([refused.status, refused.body, refused.headers.get('retry-after')]).toMatchObject([
    503,
    { code: 'operators_unavailable' },
    expect.any(String),
  ])
  expect((await call(`${url}/keys`, { secret })).status).toBe(200)
  expect(errors.map(({ code }) => code)).toEqual(['operators_unavailable'])
  expect(String(errors[0]?.cause) + errors[0]?.stack).not.toContain(token)
  published.answer = undefined
  const now = jest.spyOn(Date, 'now').mockReturnValue(Date.now() + 5_000)
  expect((await call(`${url}/keys?ownerId=acme`, { secret: token })).status).toBe(200)
  now.mockRestore()
})

test('an issuer that is away is asked once in five seconds, however many tokens come', async () => {
  const published = await issuer([jwk('a', rsa.publicKey)])
  published.answer = (_req, res) => void res.writeHead(503).end()
  const operators = operatorJwt({ ...AUTH0_OPTIONS, jwksUrl: published.url })
  const tokens = await Promise.all(Array.from({ length: 20 }, (_, n) => sign(AUTH0, 'RS256', `unknown-${n}`, stranger.privateKey)))
  const refusals = async (): Promise<(string | undefined)[]> =>
    Promise.all(
      tokens.map((token) =>
        Promise.resolve(operators.authenticate(token)).then(
          () => undefined,
          (error: ApiKeyError) => error.code,
        ),
      ),
    )
  const start = Date.now()
  const now = jest.spyOn(Date, 'now').mockReturnValue(start)
  for (const [at, asked] of [
    [0, 1],
    [4_999, 1],
    [5_000, 2],
    // Set back: that ends the pause, and makes it no longer.
    [-60_000, 3],
  ] as const) {
    now.mockReturnValue(start + at)
    for (let n = 0; n < 2; n++) expect(await refusals()).toEqual(tokens.map(() => 'operators_unavailable'))
    expect([at, published.asked]).toEqual([at, asked])
  }
  published.answer = undefined
  now.mockReturnValue(start)
  expect(await operators.authenticate(await sign(AUTH0, 'RS256', 'a', rsa.privateKey))).toMatchObject({ subject: 'auth0|65f0c1' })
  now.mockRestore()
})

test('an issuer that sends without end is left after a megabyte', async () => {
  const published = await issuer([])
  let sent = 0
  const gone = new Promise<void>((resolve) => {
    published.answer = (_req, res) => {
      res.on('close', resolve)
      const more = (): void => {
        for (;;) {
          sent += 65_536
          if (res.destroyed || !res.write(' '.repeat(65_536))) break
        }
      }
      res.on('drain', more)
      more()
    }
  })
  const token = await sign(AUTH0, 'RS256', 'a', rsa.privateKey)
  await expect(authenticate({ ...AUTH0_OPTIONS, jwksUrl: published.url }, token)).rejects.toMatchObject({ code: 'operators_unavailable' })
  await gone
  expect(sent).toBeLessThan(20_000_000)
})

test('a token that names no key is checked by the one published key that fits it, and refused where there are two', async () => {
  const published = await issuer([jwk('a', rsa.publicKey), jwk('e', ec.publicKey)])
  const token = await sign(AUTH0, 'RS256', undefined, rsa.privateKey)
  expect(await authenticate({ ...AUTH0_OPTIONS, jwksUrl: published.url }, token)).toMatchObject({ subject: 'auth0|65f0c1' })
  published.keys.push(jwk('b', nextRsa.publicKey))
  await expect(authenticate({ ...AUTH0_OPTIONS, jwksUrl: published.url }, token)).rejects.toMatchObject({ code: 'invalid_key' })
})

test.each([
  [{ jwksUrl: 'http://id.example/jwks.json' }, 'must be an https: address'],
  [{ jwksUrl: 'id.example' }, 'must be an address'],
  [{ jwksUrl: 'https://user:pass@id.example/' }, 'must be an address'],
  [{ jwksUrl: 7 }, 'must be an address'],
  [{ jwksUrl: 'https://id.example/', key: 'x' }, 'Give either'],
  [{ jwksUrl: 'https://id.example/', algorithms: ['HS256'] }, 'Nobody publishes a shared secret'],
  [{ jwksUrl: 'https://id.example/', algorithms: [] }, 'algorithms must be'],
  [{ jwksUrl: 'https://id.example/', algorithms: ['none'] }, 'algorithms must be'],
  [{ jwksUrl: 'https://id.example/', audience: [] }, 'audience must be'],
  [{ jwksUrl: 'https://id.example/', scopeClaim: [] }, 'scopeClaim must be'],
  [{ jwksUrl: 'https://id.example/', clockToleranceMs: -1 }, 'clockToleranceMs must be'],
])('%j is refused at start-up', (options, message) => {
  expect(() => operatorJwt({ ...AUTH0_OPTIONS, ...options } as OperatorJwtOptions)).toThrow(message)
})
