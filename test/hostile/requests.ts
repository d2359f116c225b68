import { brotliCompressSync, gzipSync } from 'node:zlib'
import type { Contract } from 'express-api-keys/contract'
import fc from 'fast-check'

/** A request as a stranger writes it. `{worker}` and its like stand for what only the run knows; characters are bytes. */
export interface Hostile {
  readonly method: string
  readonly path: string
  readonly headers: readonly (readonly [string, string])[]
  readonly body: Buffer
  readonly framing: 'length' | (typeof FRAMINGS)[number]
}

const FRAMINGS = ['chunks', 'none', 'too short', 'too long', 'both'] as const
const UNKNOWN_ID = '0198c3f2-5e7a-7abc-9def-0123456789ab'
const POLLUTION = '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}'

/** Requests that would be good but for one or two things: what is wrong in everything is refused at the first look. */
export function hostileRequests(contract: Contract | undefined): fc.Arbitrary<Hostile> {
  const base = contract === undefined ? '/data' : `/${contract.name}`
  const routes = contract?.routes ?? [{ method: 'get', path: '', action: undefined }]
  return fc
    .record({
      route: fc.constantFrom(...routes),
      method: mostly(fc.constant(undefined), anyOf('GET HEAD POST PUT PATCH DELETE OPTIONS TRACE PROPFIND', ' ')),
      id: mostly(anyOf('{workerId}  {adminId}'), IDS),
      bend: mostly(
        fc.constant((path: string) => path),
        fc.constantFrom(...BENT),
      ),
      query: mostly(anyOf('  limit=1  limit=100'), QUERIES),
      authorization: mostly(fc.constantFrom('Bearer {admin}', 'Bearer {worker}', 'bearer   {worker}', 'Bearer {operator}'), AUTHORIZATIONS),
      idempotencyKey: mostly(fc.uuid(), IDEMPOTENCY_KEYS),
      type: mostly(fc.constant('application/json'), CONTENT_TYPES),
      body: mostly(fc.constant(undefined), BODIES),
      encoding: mostly(fc.constant(undefined), anyOf('gzip  br  deflate  identity  gzip, gzip  x  __proto__  GZIP')),
      more: fc.array(
        fc.oneof(fc.constantFrom(...MORE_HEADERS), fc.tuple(anyOf('X-A  X-Forwarded-Host  Forwarded  Accept  Origin'), latin1)),
        {
          maxLength: 2,
        },
      ),
      framing: mostly(fc.constant('length' as const), fc.constantFrom(...FRAMINGS)),
    })
    .map(({ route, method, id, bend, query, authorization, idempotencyKey, type, encoding, more, framing, ...made }) => {
      const plain = made.body ?? Buffer.from(GOOD_BODIES[route.action ?? 'get'] ?? '')
      const body = encoding === 'gzip' ? gzipSync(plain) : encoding === 'br' ? brotliCompressSync(plain) : plain
      return {
        method: method ?? route.method.toUpperCase(),
        path: bend(base + route.path.replace(/:\w+/, id)) + (query === '' || route.method !== 'get' ? '' : `?${query}`),
        headers: [
          ...(authorization === undefined ? [] : [['Authorization', authorization] as const]),
          ...(idempotencyKey === undefined ? [] : [['Idempotency-Key', idempotencyKey] as const]),
          ...(body.length === 0 ? [] : [['Content-Type', type] as const]),
          ...(encoding === undefined ? [] : [['Content-Encoding', encoding] as const]),
          ...more,
        ],
        body,
        framing,
      }
    })
}

/** Always tried: one that is good, and some that a random choice may miss. */
export function examples(contract: Contract | undefined): Hostile[] {
  const route = contract?.routes.find(({ action }) => action === 'rotate')
  const usual: Hostile = {
    method: route === undefined ? 'GET' : 'POST',
    path: route === undefined ? '/data' : `/${contract?.name}${route.path.replace(/:\w+/, '{workerId}')}`,
    headers: [
      ['Authorization', contract?.name === 'redditFind' ? 'Bearer {admin}' : 'Bearer {worker}'],
      ['Content-Type', 'application/json'],
      ['Idempotency-Key', 'usual'],
    ],
    body: Buffer.from((contract?.name === 'agents' && GOOD_BODIES.rotate) || '{}'),
    framing: 'length',
  }
  const echoed = ['{worker}', 'a.{worker}'].map((id) => ({ ...usual, headers: [...usual.headers, ['X-Request-Id', id] as const] }))
  const bodies = [`{"{worker}":1}`, POLLUTION, '[]'].map((body) => ({ ...usual, body: Buffer.from(body) }))
  return [usual, ...bodies, ...echoed, { ...usual, path: `${usual.path}%zz` }]
}

const GOOD_BODIES: { readonly [action: string]: string } = {
  create: '{"name":"n","scopes":["a"],"metadata":{"b":[1]}}',
  rotate: '{"rotationSecret":"{rotation}"}',
  revoke: '{"reason":"r"}',
  update: '{"name":"m"}',
}

/** The items of a text, which stand two spaces or a line apart. */
function anyOf(text: string, between: string | RegExp = / {2,}|\n\s*/): fc.Arbitrary<string> {
  return fc.constantFrom(...text.split(between))
}

function mostly<A, B>(good: fc.Arbitrary<A>, bad: fc.Arbitrary<B>): fc.Arbitrary<A | B> {
  return fc.oneof({ weight: 8, arbitrary: good }, { weight: 2, arbitrary: bad })
}

const latin1 = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes).toString('latin1'))

const IDS = fc.oneof(
  fc.constantFrom(UNKNOWN_ID, 'x'.repeat(6_000)),
  anyOf(`{foreignId}  {worker}  self  .  ..  *  :id  NaN  -1  undefined  null  __proto__  constructor  toString  %00  %zz  %  ..%2f..  %c0%ae
    ';drop%20table%20express_api_keys;--  {workerId}'%20or%20'1'='1  {workerId}%00  {workerId}%0a  {workerId};a=b  {workerId}.  %7B{workerId}%7D
    {workerId},{foreignId}  {workerId}%2f{foreignId}  {workerId}%20  %F0%9F%92%A9  %ED%A0%80  \xff\xfe  {workerId}?id={foreignId}  {"$ne":null}`),
  latin1.map((text) => encodeURIComponent(text)),
)

const BENT: readonly ((path: string) => string)[] = [
  (path) => `${path}/`,
  (path) => `/${path}`,
  (path) => `/.${path}`,
  (path) => `/x/..${path}`,
  (path) => path.toUpperCase(),
  (path) => path.replaceAll('/', '%2f'),
  (path) => path.replaceAll('/', '\\'),
  (path) => `http://another${path}`,
  (path) => `${path}#{worker}`,
  (path) => `${path}\xff`,
  (path) => `${path}/openapi.json`,
  (path) => `/${path.split('/')[1]}/openapi.json`,
  () => '*',
  () => `/${'a/'.repeat(3_000)}`,
]

const QUERIES = fc.oneof(
  fc.constantFrom(
    'a=1&'.repeat(1_500),
    `cursor=${'A'.repeat(4_000)}`,
    `limit=${'9'.repeat(400)}`,
    ...[`9e9.${'f'.repeat(36)}`, `0.${'-'.repeat(36)}`].map(cursor),
  ),
  fc.constantFrom(cursor(`999999999999999.${'f'.repeat(36)}`), cursor(`1.' or 1=1 --`), cursor('{"at":1,"id":{"$gt":""}}'), cursor('\0')),
  anyOf(`limit=0  limit=1e2  limit=%00  limit[]=1  limit=1&limit=2  limit[a]=1  limit=-1  limit=1;drop  cursor=  cursor=x  cursor[$gt]=  cursor=null
    __proto__[polluted]=1  constructor[prototype][polluted]=1  __proto__=1  hasOwnProperty=1  toString=1  a[b][c][d][e][f][g]=1  ownerId=rival  ownerId=*
    ownerId[]=rival  ownerId=%ff  ownerId=%00  ownerId=acme&ownerId=rival  %  %zz=%zz  ?  &&&  access_token={admin}  {worker}={worker}  cursor={admin}
    ownerId={worker}  ownerId=acme  \xe9=\xe9`),
  fc
    .dictionary(anyOf('limit  cursor  ownerId  x'), fc.string({ maxLength: 30 }))
    .map((query) => new URLSearchParams(Object.entries(query)).toString()),
)

function cursor(text: string): string {
  return `cursor=${Buffer.from(text).toString('base64url')}`
}

const AUTHORIZATIONS = fc.oneof(
  fc.constantFrom(
    undefined,
    '',
    ' ',
    `Bearer ${'a'.repeat(900)}`,
    `Bearer ${'a'.repeat(9_000)}`,
    'Bearer {worker}\r\n {admin}',
    'Bearer  {worker}  ',
  ),
  anyOf(`Bearer {unknown}  Bearer {rotation}  {worker}  {operator}  Basic {worker}  Bearer  Bearer {worker}, Bearer {admin}  Bearer "{worker}"
    Bearer\t{worker}  Bearer {worker}\x00  Bearer {worker}=  Bearer {worker}{worker}  Bearer {worker}\x0b  BEARER {worker} x  {admin}=  Bearer \xe9
    Bearer {operator}.x  Bearer a.b.c  Bearer e30.e30.  Bearer eyJhbGciOiJub25lIn0.e30.  Digest username="{worker}"  Bearer {workerId}  Token {worker}
    Bearer: {worker}  null  Bearer undefined  Bearer {foreignId}  Bearer %00  Bearer ../../{worker}`),
  latin1,
)

const IDEMPOTENCY_KEYS = fc.oneof(
  fc.constantFrom(undefined, '', ' ', 'x'.repeat(255), 'x'.repeat(256), 'a\tb', 'a\r\n b'),
  anyOf(`k  "k"  "k  k"  a, b  ""  "\\""  "\\x"  \xe9  {worker}  "{admin}"  __proto__  k;a=1  \x00  'or 1=1--  "a","b"  ?1  :YQ==:`),
  latin1,
)

const CONTENT_TYPES = fc.oneof(
  fc.constantFrom('', '/', 'a'.repeat(2_000)),
  anyOf(`application/json; charset=utf-8  application/json; charset=utf-16  application/json; charset=utf-7  application/json; charset=latin1
    application/json; charset="  application/json; charset=  application/json;charset=utf-8;charset=x  application/json; charset=__proto__
    application/problem+json  application/vnd.a+json  text/json  text/plain  application/x-www-form-urlencoded  multipart/form-data; boundary=x
    a  */*  application/json, text/plain  application/json\x00  APPLICATION/JSON  application/json;  \xff/\xff  application/{worker}  +json  json`),
)

const FIELDS = `name  environment  scopes  metadata  expiresAt  ownerId  rotationSecret  retire  emergency  reason  secret  id  __proto__  constructor
  prototype  toJSON  then  length  idempotencyKey  operator  replayOnly  identity  request  ip  scopeRequired  keepRotationSecret  {worker}  `
const VALUES = fc.oneof(
  fc.jsonValue({ maxDepth: 3 }),
  fc.constantFrom<unknown>(
    true,
    false,
    null,
    [],
    {},
    1e308,
    -0,
    2 ** 53,
    { afterMs: 1 },
    { afterMs: 1e300 },
    { afterMs: -1 },
    { length: 1e9 },
  ),
  fc.constantFrom<unknown>('\u0000', '\ud800', '', 'x'.repeat(300), ['api_keys:write'], ['*'], ['a', ['b']], { $ne: null }, { toJSON: 1 }),
  anyOf(`{rotation}  {foreignId}  n  now  on-first-use  *  rival  test  2030-01-31T12:00:00Z  '; drop table express_api_keys; --`),
)
/** Text, since an object literal has no `__proto__` of its own and no name twice. */
const OBJECTS = fc
  .array(fc.tuple(anyOf(FIELDS), VALUES), { maxLength: 4 })
  .map((members) => `{${members.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join(',')}}`)
const TEXTS = fc.oneof(
  OBJECTS,
  fc.constantFrom(
    '',
    ' ',
    '\n\n',
    ' '.repeat(16_385),
    `{"name":"${'x'.repeat(16_400)}"}`,
    `{"a":${'9'.repeat(400)}}`,
    '\ufeff{"name":"n"}',
    '--x\r\n\r\n--x--',
  ),
  fc.constantFrom(
    `${'['.repeat(8_000)}${']'.repeat(8_000)}`,
    `{"metadata":${'{"a":'.repeat(2_500)}1${'}'.repeat(2_500)}}`,
    '{"name":"\u202e"}',
  ),
  fc.constantFrom(
    POLLUTION,
    `{"name":"n","metadata":${POLLUTION}}`,
    `[${POLLUTION}]`,
    `{"retire":${POLLUTION}}`,
    `{"scopes":${POLLUTION}}`,
  ),
  anyOf(`null  []  0  "{worker}"  {  {"a":1}}  {"a":1e999}  {"a":-0}  {'a':1}  {"a":NaN}  //  {"name":"a","name":"b"}  <a/>  {"toJSON":1}  undefined
    {"rotationSecret":1,"rotationSecret":"{rotation}"}  {"name":"\\ud800"}  {"\\ud800":1}  {"name":"\\u0000"}  {"name":"n","metadata":{"a":"\\u0000"}}
    {"name":"{worker}","x":1}  {"{worker}":1}  {"a{admin}":1}  name=n&rotationSecret={rotation}  {"name":"n","ownerId":"rival"}  {"reason":{"a":1}}`),
  fc.string({ unit: 'binary', maxLength: 200 }),
)
const BODIES = fc.oneof(
  { weight: 12, arbitrary: TEXTS.map((text) => Buffer.from(text)) },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)) },
  {
    weight: 1,
    arbitrary: fc.constantFrom(Buffer.from('{"name":"n"}', 'utf16le'), gzipSync(Buffer.alloc(2_000_000, 32)), Buffer.alloc(200_000, 97)),
  },
)

const MORE_HEADERS: readonly [string, string][] = [
  ['X-Request-Id', 'abc-123'],
  ['X-Request-Id', '{worker}'],
  ['X-Request-Id', 'a.{admin}'],
  ['X-Request-Id', '\xff\x00'],
  ['X-Forwarded-For', '203.0.113.7, 10.0.0.1'],
  ['X-Forwarded-For', "'; drop table express_api_keys; --"],
  ['X-Forwarded-For', ',,, {worker}'],
  ['X-Forwarded-For', '::ffff:1.2.3.4%eth0'],
  ['X-Forwarded-For', 'x'.repeat(5_000)],
  ['X-HTTP-Method-Override', 'DELETE'],
  ['Expect', '100-continue'],
  ['Expect', 'x'],
  ['Upgrade', 'h2c'],
  ['User-Agent', '\x7f\xff'],
  ['User-Agent', 'x'.repeat(3_000)],
  ['Host', 'another'],
  ['Authorization', 'Bearer {admin}'],
  ['Idempotency-Key', 'second'],
  ['Content-Type', 'text/plain'],
  ['Content-Encoding', 'gzip'],
  ['Content-Length', '5'],
  ['Transfer-Encoding', 'gzip'],
  ['Trailer', 'Authorization'],
  ['If-None-Match', '*'],
  ['Range', 'bytes=0-1'],
  ['Cookie', '__proto__={worker}'],
  ['__proto__', 'x'],
]
