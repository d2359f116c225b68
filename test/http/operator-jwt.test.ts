import { createHmac, generateKeyPairSync } from 'node:crypto'
import { type OperatorJwtOptions, operatorJwt } from 'express-api-keys/jwt'
import jwt from 'jsonwebtoken'

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const other = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const pem = ec.publicKey.export({ type: 'spki', format: 'pem' }) as string
const SHARED = 'a-shared-secret-of-at-least-32-bytes'

const OPTIONS: OperatorJwtOptions = { issuer: 'https://id.example', audience: 'keys', algorithms: ['ES256'], keys: { a: pem } }
const CLAIMS = { iss: 'https://id.example', aud: 'keys', sub: 'ada', scope: 'api_keys:read', owners: ['acme'] }
const now = (): number => Math.floor(Date.now() / 1_000)

function sign(claims: object, options: jwt.SignOptions = {}, key: jwt.Secret = ec.privateKey): string {
  const given = Object.entries({ exp: now() + 300, ...CLAIMS, ...claims }).filter(([, value]) => value !== undefined)
  return jwt.sign(Object.fromEntries(given), key, { algorithm: 'ES256', keyid: 'a', ...options })
}

/** A token put together by hand: header, claims, signature. */
function raw(header: object, claims: object, signature = ''): string {
  const part = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url')
  return `${part(header)}.${part(claims)}.${signature}`
}

test('reads the subject, the scopes and the owners of a good token', () => {
  const operators = operatorJwt(OPTIONS)
  expect(operators.authenticate(sign({}))).toEqual({
    issuer: 'https://id.example',
    subject: 'ada',
    scopes: ['api_keys:read'],
    owners: ['acme'],
  })
  expect(operators.authenticate(sign({ scope: undefined }))).toMatchObject({ scopes: [] })
  expect(operators.authenticate(sign({ owners: ['*'] }))).toMatchObject({ owners: 'all' })
  expect(operators.authenticate(sign({ owners: ['*', 'acme'] }))).toMatchObject({ owners: ['*', 'acme'] })
  expect(operators.authenticate(sign({ aud: ['more', 'keys'] }))).toMatchObject({ subject: 'ada' })
  expect(
    operatorJwt({ ...OPTIONS, ownersClaim: 'https://example/tenants' }).authenticate(sign({ 'https://example/tenants': ['t'] })),
  ).toMatchObject({
    owners: ['t'],
  })
})

const good = (): string => sign({})
const mac = (key: string, header: object): string => {
  const unsigned = raw(header, { ...CLAIMS, exp: now() + 300 }).slice(0, -1)
  return `${unsigned}.${createHmac('sha256', key).update(unsigned).digest('base64url')}`
}

test.each<[string, () => string]>([
  ['without a signature (alg none)', () => raw({ alg: 'none', kid: 'a' }, { ...CLAIMS, exp: now() + 300 })],
  ['with alg None, in another spelling', () => raw({ alg: 'nOnE', kid: 'a' }, { ...CLAIMS, exp: now() + 300 })],
  ['signed with the public key as a shared secret', () => mac(pem, { alg: 'HS256', kid: 'a' })],
  ['signed with an empty shared secret', () => mac('', { alg: 'HS256', kid: 'a' })],
  ['whose header says another algorithm', () => good().replace(/^[^.]+/, Buffer.from('{"alg":"ES384","kid":"a"}').toString('base64url'))],
  ['signed with RSA', () => sign({}, { algorithm: 'RS256' }, rsa.privateKey)],
  ['signed by somebody else', () => sign({}, {}, other.privateKey)],
  ['without a kid', () => jwt.sign({ ...CLAIMS, exp: now() + 300 }, ec.privateKey, { algorithm: 'ES256' })],
  ['with an unknown kid', () => sign({}, { keyid: 'b' })],
  ['with a kid that is a path', () => sign({}, { keyid: '../../dev/null' })],
  ['with a kid that every object has', () => sign({}, { keyid: '__proto__' })],
  ['with a kid that names a method', () => sign({}, { keyid: 'constructor' })],
  ['with a kid that is no string', () => sign({}, { header: { alg: 'ES256', kid: ['a'] as unknown as string } })],
  [
    'that brings its own key',
    () => sign({}, { keyid: 'b', header: { alg: 'ES256', jwk: other.publicKey.export({ format: 'jwk' }) } as unknown as jwt.JwtHeader }),
  ],
  [
    'with an extension that must be understood',
    () => sign({}, { header: { alg: 'ES256', kid: 'a', crit: ['b64'], b64: false } as unknown as jwt.JwtHeader }),
  ],
  ['without exp', () => sign({ exp: undefined })],
  ['whose exp is a text', () => raw({ alg: 'ES256', kid: 'a' }, { ...CLAIMS, exp: '9999999999' }, good().split('.')[2])],
  ['that has expired', () => sign({ exp: now() - 60 })],
  ['that expires in a hundred years', () => sign({ exp: now() + 3_000_000_000 })],
  ['that is not good yet', () => sign({ nbf: now() + 600 })],
  ['that was issued in the future', () => sign({ iat: now() + 600 })],
  ['without iss', () => sign({ iss: undefined })],
  ['of another issuer', () => sign({ iss: 'https://id.example.evil' })],
  ['without aud', () => sign({ aud: undefined })],
  ['for another audience', () => sign({ aud: 'keys2' })],
  ['without sub', () => sign({ sub: undefined })],
  ['with an empty sub', () => sign({ sub: '' })],
  ['with a sub that is too long', () => sign({ sub: 'x'.repeat(256) })],
  ['without owners', () => sign({ owners: undefined })],
  ['whose owners are a text', () => sign({ owners: '*' })],
  ['whose owners hold something else', () => sign({ owners: [1] })],
  ['whose scope is a list', () => sign({ scope: ['api_keys:write'] })],
  ['whose signature was changed', () => `${good().slice(0, -4)}AAAA`],
  ['whose claims were changed', () => raw({ alg: 'ES256', kid: 'a' }, { ...CLAIMS, sub: 'eve', exp: now() + 300 }, good().split('.')[2])],
  ['that is garbage', () => 'a.b.c'],
])('refuses a token %s, and says nothing of what it holds', (_what, make) => {
  const token = make()
  let error: unknown
  try {
    operatorJwt(OPTIONS).authenticate(token)
  } catch (thrown) {
    error = thrown
  }
  expect(error).toMatchObject({ name: 'ApiKeyError', code: 'invalid_key' })
  expect((error as Error).cause).toBeUndefined()
})

test('changes its keys by kid', () => {
  const next = other.publicKey.export({ type: 'spki', format: 'pem' }) as string
  const both = operatorJwt({ ...OPTIONS, keys: { a: pem, b: next } })
  expect(both.authenticate(sign({}))).toMatchObject({ subject: 'ada' })
  expect(both.authenticate(sign({}, { keyid: 'b' }, other.privateKey))).toMatchObject({ subject: 'ada' })
  expect(() => both.authenticate(sign({}, { keyid: 'a' }, other.privateKey))).toThrow('not valid')
  expect(() => operatorJwt({ ...OPTIONS, keys: { b: next } }).authenticate(sign({}))).toThrow('no key that is known')
})

test('takes one key without a kid, RSA keys, shared secrets, and private keys for their public half', () => {
  const { keys: _, ...rest } = OPTIONS
  const one = (key: OperatorJwtOptions['key'], algorithms: OperatorJwtOptions['algorithms']): ReturnType<typeof operatorJwt> =>
    operatorJwt({ ...rest, algorithms, key: key as string })
  expect(one(ec.publicKey, ['ES256']).authenticate(good())).toMatchObject({ subject: 'ada' })
  expect(one(ec.privateKey, ['ES256']).authenticate(good())).toMatchObject({ subject: 'ada' })
  expect(one(rsa.publicKey, ['RS256', 'PS256']).authenticate(sign({}, { algorithm: 'PS256' }, rsa.privateKey))).toMatchObject({
    subject: 'ada',
  })
  expect(one(SHARED, ['HS256']).authenticate(sign({}, { algorithm: 'HS256' }, SHARED))).toMatchObject({ subject: 'ada' })
})

test.each<[object, string]>([
  [{ issuer: undefined }, 'issuer must be'],
  [{ audience: '' }, 'audience must be'],
  [{ algorithms: undefined }, 'algorithms must be'],
  [{ algorithms: [] }, 'algorithms must be'],
  [{ algorithms: ['none'] }, 'algorithms must be'],
  [{ algorithms: ['ES256', 'none'] }, 'algorithms must be'],
  [{ algorithms: ['ES256', 'HS256'] }, 'algorithms must be'],
  [{ algorithms: ['HS256'] }, 'not a shared secret'],
  [{ algorithms: ['RS256'] }, 'need a key of the type "rsa"'],
  [{ keys: undefined }, 'Give either key'],
  [{ keys: {} }, 'at least one key'],
  [{ key: pem }, 'Give either key'],
  [{ keys: undefined, key: SHARED }, 'must be a public key in PEM'],
  [{ keys: undefined, key: 'short', algorithms: ['HS256'] }, 'at least 32 bytes'],
  [{ keys: undefined, key: rsa.publicKey, algorithms: ['HS256'] }, 'need a key of the type "secret"'],
  [{ maxLifetimeMs: 0 }, 'maxLifetimeMs must be'],
  [{ isuer: 'x' }, 'Write "issuer" instead'],
])('refuses the options %j while the application boots', (change, message) => {
  const options = Object.fromEntries(
    Object.entries({ ...OPTIONS, ...change }).filter(([name, value]) => value !== undefined || name !== 'keys'),
  )
  expect(() => operatorJwt(options as unknown as OperatorJwtOptions)).toThrow(message)
})
