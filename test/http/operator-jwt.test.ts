import { createHmac, generateKeyPairSync, sign as signBytes } from 'node:crypto'
import type { Operator } from 'express-api-keys'
import { type OperatorJwtOptions, operatorJwt as operatorsBy } from 'express-api-keys/jwt'
import jwt from 'jsonwebtoken'

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const other = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const pem = ec.publicKey.export({ type: 'spki', format: 'pem' }) as string
const SHARED = 'a-shared-secret-of-at-least-32-bytes'

const OPTIONS: OperatorJwtOptions = {
  issuer: 'https://id.example',
  audience: 'keys',
  algorithms: ['ES256'],
  keys: { a: pem },
}
const CLAIMS = { iss: 'https://id.example', aud: 'keys', sub: 'ada', scope: 'api_keys:read', owners: ['acme'] }
const now = (): number => Math.floor(Date.now() / 1_000)

function sign(claims: object, options: jwt.SignOptions = {}, key: jwt.Secret = ec.privateKey): string {
  const given = Object.entries({ exp: now() + 300, ...CLAIMS, ...claims }).filter(([, value]) => value !== undefined)
  return jwt.sign(Object.fromEntries(given), key, { algorithm: 'ES256', keyid: 'a', ...options })
}

/** Operators by keys that are at hand, which are authenticated at once. */
function operatorJwt(options: OperatorJwtOptions): { authenticate(token: string): Operator } {
  return operatorsBy(options) as { authenticate(token: string): Operator }
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
    grants: { scopes: ['*', 'api_keys:admin'], environments: ['live', 'test'] },
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

/** Another header over the same claims, signed anew with the key of `a`, so that nothing but the header is wrong. */
function withHeader(header: unknown): string {
  return signed(JSON.stringify(header), claimsText())
}
/** Claims as text, for what `JSON.stringify` would not write. */
function signText(claims: string, dsaEncoding: 'ieee-p1363' | 'der' = 'ieee-p1363'): string {
  return signed('{"alg":"ES256","kid":"a"}', claims, dsaEncoding)
}
function claimsText(): string {
  return JSON.stringify({ ...CLAIMS, exp: now() + 300 })
}
function signed(header: string, claims: string, dsaEncoding: 'ieee-p1363' | 'der' = 'ieee-p1363'): string {
  const unsigned = [header, claims].map((part) => Buffer.from(part).toString('base64url')).join('.')
  return `${unsigned}.${signBytes('sha256', Buffer.from(unsigned), { key: ec.privateKey, dsaEncoding }).toString('base64url')}`
}
function jsonForm(token: string): string {
  const [header, payload, signature] = token.split('.')
  return JSON.stringify({ payload, signatures: [{ protected: header, signature }] })
}

test('what the forgeries below are made with makes good tokens too', () => {
  const { authenticate } = operatorJwt(OPTIONS)
  expect(authenticate(signText(claimsText()))).toEqual(authenticate(good()))
  expect(authenticate(withHeader({ alg: 'ES256', kid: 'a', jku: 'https://evil.example', b64: true }))).toMatchObject({ subject: 'ada' })
})

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
  ['whose signature was changed', () => `${good().slice(0, -4)}AAAA`],
  ['whose claims were changed', () => raw({ alg: 'ES256', kid: 'a' }, { ...CLAIMS, sub: 'eve', exp: now() + 300 }, good().split('.')[2])],
  ['that is garbage', () => 'a.b.c'],
  ...['none', 'None', 'NONE', 'nOnE', '', ' none', 'none\0', 'ES256 ', 'es256', 'HS256', 'PS256', 'RS256', 'ES512', 'EdDSA'].map(
    (alg): [string, () => string] => [`whose alg is ${JSON.stringify(alg)} under a good signature`, () => withHeader({ alg, kid: 'a' })],
  ),
  ...[null, 1, {}, [], ['ES256'], ['none']].map((alg): [string, () => string] => [
    `whose alg is ${JSON.stringify(alg)}`,
    () => withHeader({ alg, kid: 'a' }),
  ]),
  ['whose header is null', () => withHeader(null)],
  ['whose header is a list', () => withHeader([{ alg: 'ES256', kid: 'a' }])],
  ...['../a', '/dev/null', 'a\0', 'a;id', '%61', 'toString', 'hasOwnProperty', '0', '\uff41', '\u0430', 'A', ' a', "a' or '1'='1"].map(
    (kid): [string, () => string] => [`with the kid ${JSON.stringify(kid)}`, () => sign({}, { keyid: kid })],
  ),
  ...[null, 0, true, {}, [], ['a'], { toString: 'a' }].map((kid): [string, () => string] => [
    `with the kid ${JSON.stringify(kid)}`,
    () => withHeader({ alg: 'ES256', kid }),
  ]),
  ...['jwk', 'jku', 'x5u', 'x5c', 'x5t', 'key', 'keys'].map((name): [string, () => string] => [
    `that brings a key of its own as ${name}`,
    () => {
      const key = {
        jwk: other.publicKey.export({ format: 'jwk' }),
        x5c: [other.publicKey.export({ type: 'spki', format: 'der' }).toString('base64')],
      }
      const brought = name in key ? key[name as keyof typeof key] : `https://evil.example/${name}.json`
      return sign({}, { header: { alg: 'ES256', kid: 'a', [name]: brought } as unknown as jwt.JwtHeader }, other.privateKey)
    },
  ]),
  ['with an empty list of extensions', () => sign({}, { header: { alg: 'ES256', kid: 'a', crit: [] } as unknown as jwt.JwtHeader })],
  [
    'with an extension that every object has',
    () => sign({}, { header: { alg: 'ES256', kid: 'a', crit: ['toString'] } as unknown as jwt.JwtHeader }),
  ],
  ...['null', '"9999999999"', '1e999', '-1e999', '-1', '0', 'true', '[9999999999]', '{}', '"Infinity"', '1e15'].map(
    (exp): [string, () => string] => [`whose exp is ${exp}`, () => signText(claimsText().replace(/"exp":\d+/, `"exp":${exp}`))],
  ),
  ...['"0"', '[]', 'null', 'true', '{}', '1e999'].map((iat): [string, () => string] => [
    `whose iat is ${iat}`,
    () => signText(claimsText().replace('{', `{"iat":${iat},`)),
  ]),
  ...['1e999', '"0"', 'true', '[]'].map((nbf): [string, () => string] => [
    `whose nbf is ${nbf}`,
    () => signText(claimsText().replace('{', `{"nbf":${nbf},`)),
  ]),
  ['whose aud is a list without ours', () => sign({ aud: ['a', 'keys ', 'KEYS', ['keys']] })],
  ['whose aud is an empty list', () => sign({ aud: [] })],
  ['whose aud is an object', () => sign({ aud: { keys: 'keys', 0: 'keys', length: 1 } })],
  ['whose iss is a list with ours', () => sign({ iss: ['https://id.example'] })],
  ['whose iss differs in case', () => sign({ iss: 'https://ID.example' })],
  ['whose iss only looks the same', () => sign({ iss: 'https://id.ехample' })],
  ['whose iss ends in a slash', () => sign({ iss: 'https://id.example/' })],
  ...[null, 1, true, {}, ['ada'], 'a\0b', 'a\nb', '\u0085'].map((sub): [string, () => string] => [
    `whose sub is ${JSON.stringify(sub)}`,
    () => signText(claimsText().replace('"sub":"ada"', `"sub":${JSON.stringify(sub)}`)),
  ]),
  ['whose sub is half a character', () => signText(claimsText().replace('"ada"', '"\\ud800"'))],
  ...[null, {}, '', '*', { 0: 'acme', length: 1 }, [null], [['acme']], ['acme', 1]].map((owners): [string, () => string] => [
    `whose owners are ${JSON.stringify(owners)}`,
    () => sign({ owners }),
  ]),
  ['whose owners are those of a prototype', () => signText(claimsText().replace(/"owners":\[.*?\]/, '"__proto__":{"owners":["*"]}'))],
  ...[null, 1, {}, ['api_keys:read', 1], [['api_keys:read']]].map((scope): [string, () => string] => [
    `whose scope is ${JSON.stringify(scope)}`,
    () => sign({ scope }),
  ]),
  ['whose claims are a text', () => signText('"ada"')],
  ['whose claims are null', () => signText('null')],
  ['whose claims are a list', () => signText('[]')],
  ['whose claims are no JSON', () => signText('{')],
  ['without its payload (detached)', () => good().replace(/\.[^.]+\./, '..')],
  ['with nothing for a signature', () => good().replace(/[^.]+$/, '')],
  ['with zeros for a signature', () => good().replace(/[^.]+$/, Buffer.alloc(64).toString('base64url'))],
  ['with a signature cut short', () => good().slice(0, -30)],
  ['with a signature in DER', () => signText(claimsText(), 'der')],
  ['with a fourth part', () => `${good()}.x`],
  ['with a dot behind it', () => `${good()}.`],
  ['with a line behind it', () => `${good()}\n`],
  ['with a space before it', () => ` ${good()}`],
  ['with a NUL behind it', () => `${good()}\0`],
  ['written as JSON', () => jsonForm(good())],
  ['of nothing', () => ''],
  ['of dots', () => '..'],
  ['of a megabyte', () => `${good()}${'A'.repeat(1_000_000)}`],
  ['of a million dots', () => '.'.repeat(1_000_000)],
  ['encrypted to us', () => `${Buffer.from('{"alg":"RSA-OAEP","enc":"A256GCM","kid":"a"}').toString('base64url')}.a.b.c.d`],
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

describe.each<[string, OperatorJwtOptions['algorithms'][number], OperatorJwtOptions['key']]>([
  ['RS256', 'RS256', rsa.publicKey],
  ['PS256', 'PS256', rsa.publicKey],
  ['ES256', 'ES256', ec.publicKey],
  ['HS256', 'HS256', SHARED],
])('where %s is what tokens are signed with', (_name, algorithm, key) => {
  const { keys: _, ...rest } = OPTIONS
  const operators = operatorJwt({ ...rest, algorithms: [algorithm], key: key as string })
  const publicTexts = [rsa.publicKey, ec.publicKey].flatMap((one) => [
    one.export({ type: 'spki', format: 'pem' }) as string,
    (one.export({ type: 'spki', format: 'pem' }) as string).trim(),
    (one.export({ type: 'spki', format: 'der' }) as Buffer).toString('latin1'),
    JSON.stringify(one.export({ format: 'jwk' })),
  ])
  const others: [jwt.Algorithm, jwt.Secret][] = [
    ['RS256', rsa.privateKey],
    ['RS384', rsa.privateKey],
    ['PS256', rsa.privateKey],
    ['PS512', rsa.privateKey],
    ['ES256', ec.privateKey],
    ['HS256', SHARED],
    ['HS512', SHARED],
    ['none', ''],
  ]

  test('a token that is signed in any other way is refused, whichever key it is signed with', () => {
    const right = others.filter(([name]) => name === algorithm)
    expect(right.map(([name, by]) => operators.authenticate(sign({}, { algorithm: name }, by)).subject)).toEqual(['ada'])
    for (const [name, by] of others.filter(([each]) => each !== algorithm)) {
      expect(() => operators.authenticate(sign({}, { algorithm: name }, by))).toThrow('not valid')
    }
  })

  test('no public key is taken for a shared secret', () => {
    for (const text of publicTexts) {
      for (const alg of ['HS256', 'HS384', algorithm])
        expect(() => operators.authenticate(mac(text, { alg, kid: 'a' }))).toThrow('not valid')
    }
  })
})

test('owners are compared as they are written', () => {
  const { authenticate } = operatorJwt(OPTIONS)
  for (const owners of [['*', '*'], ['**'], ['acme', '*'], ['\uff0a'], ['ACME'], ['\uff41cme'], ['acme\u0000'], []]) {
    expect(authenticate(sign({ owners })).owners).toEqual(owners)
  }
  expect(authenticate(sign({ scope: 'api_keys:read\tapi_keys:write' })).scopes).toEqual(['api_keys:read\tapi_keys:write'])
})

test('changes its keys by kid', () => {
  const next = other.publicKey.export({ type: 'spki', format: 'pem' }) as string
  const both = operatorJwt({ ...OPTIONS, keys: { a: pem, b: next } })
  expect(both.authenticate(sign({}))).toMatchObject({ subject: 'ada' })
  expect(both.authenticate(sign({}, { keyid: 'b' }, other.privateKey))).toMatchObject({ subject: 'ada' })
  expect(() => both.authenticate(sign({}, { keyid: 'a' }, other.privateKey))).toThrow('not valid')
  expect(() => operatorJwt({ ...OPTIONS, keys: { b: next } }).authenticate(sign({}))).toThrow('does not name a known key')
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

test('takes the algorithms that it was told, and not the rest of their family', () => {
  const { keys: _, ...rest } = OPTIONS
  const hmac = operatorJwt({ ...rest, algorithms: ['HS256'], key: SHARED })
  expect(() => hmac.authenticate(sign({}, { algorithm: 'HS512' }, SHARED))).toThrow('not valid')
  const signed = operatorJwt({ ...rest, algorithms: ['RS256'], key: rsa.publicKey })
  for (const algorithm of ['RS384', 'PS256'] as const)
    expect(() => signed.authenticate(sign({}, { algorithm }, rsa.privateKey))).toThrow('not valid')
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
