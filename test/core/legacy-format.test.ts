import { createHash, createHmac } from 'node:crypto'
import { createApiKeys, type LegacyFormatOptions, legacyFormat, memoryStore } from 'express-api-keys'
import fc from 'fast-check'
import { knownFormats } from '../../src/core/known-formats.js'
import { type Recogniser, recogniserOf } from '../../src/core/legacy-format.js'
import { digestOf, secretFormat } from '../../src/core/secret.js'
import { SERVER_SECRET } from '../support/process.js'

const OLD = 'old_0123456789abcdef0123456789abcdef'
const PEPPER = 'a-pepper-of-more-than-32-bytes-0123456789'
const own = secretFormat('sk', true)

function known(options: LegacyFormatOptions): Recogniser {
  const found = recogniserOf(legacyFormat(options))
  if (found === undefined) throw new Error('no format')
  return found
}

test('a SHA-256 is taken in hex, base64 and base64url, and as bytes', () => {
  const { digestOf: kept, digestOfHash } = known({ match: /old_.+/ })
  const hash = createHash('sha256').update(OLD).digest()
  for (const given of [hash, new Uint8Array(hash), ...(['hex', 'base64', 'base64url'] as const).map((encoding) => hash.toString(encoding))])
    expect(digestOfHash(given)).toBe(kept(OLD))
  expect(digestOfHash(hash.toString('hex').toUpperCase())).toBe(kept(OLD))
  expect(kept(OLD)).toBe(digestOf(OLD))
})

test('every hash of 16 to 64 bytes reads the same in each encoding', () => {
  const { digestOfHash } = known({ match: /x/, digest: () => '' })
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 16, maxLength: 64 }), (bytes) => {
      const buffer = Buffer.from(bytes)
      const kept = digestOfHash(bytes)
      expect([buffer.toString('base64'), buffer.toString('base64url')].map(digestOfHash)).toEqual([kept, kept])
      if ([16, 20, 28, 32, 48, 64].includes(buffer.length)) expect(digestOfHash(buffer.toString('hex'))).toBe(kept)
    }),
  )
})

test.each([undefined, null, 5, '', 'zz', 'a'.repeat(15), new Uint8Array(15), new Uint8Array(65), `${'a'.repeat(43)}!`, [], {}])(
  'what is no hash is refused: %j',
  (given) => {
    for (const digest of [undefined, () => new Uint8Array(32)])
      expect(() => known({ match: /x/, digest }).digestOfHash(given)).toThrow('hash must be a hash of 16 to 64 bytes')
  },
)

test('a hash of another length than SHA-256 has needs digest, which makes it', () => {
  const sha512 = createHash('sha512').update(OLD).digest('hex')
  expect(() => known({ match: /x/ }).digestOfHash(sha512)).toThrow('A SHA-256 has 32 bytes.')
  const { digestOf: kept, digestOfHash } = known({ match: /x/, digest: (secret) => createHash('sha512').update(secret).digest() })
  expect(digestOfHash(sha512)).toBe(kept(OLD))
  expect(kept(OLD)).toMatch(/^[A-Za-z0-9_-]{43}$/)
})

test('an HMAC of the old system can be looked up, and with a pepper what is kept cannot be computed without it', () => {
  const digest = (secret: string): string => createHmac('sha256', 'the old pepper').update(secret).digest('base64')
  const [plain, peppered, other] = [{}, { pepper: PEPPER }, { pepper: `${PEPPER}!` }].map((more) => known({ match: /x/, digest, ...more }))
  const all = [plain, peppered, other].map((format) => format?.digestOf(OLD))
  expect(new Set(all).size).toBe(3)
  for (const format of [plain, peppered, other]) expect(format?.digestOfHash(digest(OLD))).toBe(format?.digestOf(OLD))
  const short = known({ match: /x/, pepper: Buffer.from(PEPPER) })
  expect(short.digestOf('1234')).not.toBe(digestOf('1234'))
  expect(short.digestOfHash(createHash('sha256').update('1234').digest())).toBe(short.digestOf('1234'))
})

test('P4: what a digest of the application makes is never a digest of ours, whatever it lets a client choose', () => {
  const { digest } = own.mint('sk_live_')
  // A digest that hands out its input: a reader of the database could present what is kept of another key.
  const { digestOf: kept } = known({ match: /.+/, digest: (secret) => secret })
  expect(kept(digest)).not.toBe(digest)
  expect(kept(digest)).not.toContain(digest)
})

test('match means the whole secret, remembers nothing, and is not asked about what no header can hold', () => {
  for (const flags of ['', 'g', 'y', 'gy', 'm']) {
    const { matches } = known({ match: new RegExp('old_[0-9a-f]{32}|older', flags) })
    for (let n = 0; n < 3; n++) {
      expect([OLD, 'older', `${OLD}0`, ` ${OLD}`, `${OLD}\n`, `x\n${OLD}`].map(matches)).toEqual([true, true, false, false, false, false])
    }
  }
  const asked: string[] = []
  const { matches } = known({ match: (candidate) => asked.push(candidate) > 0 })
  expect([matches('a'.repeat(1_024)), matches('a'.repeat(1_025)), asked.length]).toEqual([true, false, 1])
})

test('secrets of this package come first, then the formats in their order', () => {
  const [first, second] = [known({ match: /a.*/ }), known({ match: /.*/ })]
  const formats = knownFormats(own, [first as Recogniser, second as Recogniser])
  const { secret, digest } = own.mint('sk_live_')
  expect([formats.digestIn(secret), formats.legacyOf(secret)]).toEqual([digest, undefined])
  expect([formats.legacyOf('ab'), formats.legacyOf('b')]).toEqual([first, second])
  expect([formats.digestIn(undefined), formats.digestIn(5)]).toEqual([undefined, undefined])
})

test.each<[string, LegacyFormatOptions, string]>([
  ['no match', {} as LegacyFormatOptions, 'match of legacyFormat must be a regular expression'],
  ['a text for match', { match: 'old_' as never }, 'match of legacyFormat must be a regular expression'],
  ['a name that is wrong', { match: /x/, peper: PEPPER } as LegacyFormatOptions, 'Write "pepper" instead.'],
  ['a short pepper', { match: /x/, pepper: 'short' }, 'pepper must be at least 32 bytes'],
  ['few random bits', { match: /x/, randomBits: 64 }, 'Give a pepper of 32 bytes'],
  ['find without a pepper', { match: /x/, find: () => undefined }, 'Give a pepper of 32 bytes'],
  ['a digest that is none', { match: /x/, digest: 'sha256' as never }, 'digest of legacyFormat must be a function.'],
  ['a find that is none', { match: /x/, find: {} as never }, 'find of legacyFormat must be a function.'],
])('%s is refused at the start, and says what to write', (_case, options, said) => {
  expect(() => legacyFormat(options)).toThrow(said)
})

test('createApiKeys takes what legacyFormat made, and nothing else', () => {
  const make = (legacyFormats: unknown) => () =>
    createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, legacyFormats: legacyFormats as never })
  expect(make([legacyFormat({ match: /x/ })])).not.toThrow()
  expect(make({})).toThrow('legacyFormats must be a list')
  for (const wrong of [[{ match: /x/ }], [undefined], [null]]) expect(make(wrong)).toThrow('legacyFormats takes what legacyFormat returned')
})

test.each<[string, LegacyFormatOptions['digest'], string]>([
  [
    'throws',
    () => {
      throw new TypeError(`no ${OLD}`)
    },
    'digest() of a legacy format has failed (TypeError).',
  ],
  ['is asynchronous', (async () => 'x') as never, 'must not be asynchronous'],
  ['makes no hash', () => 'short', 'must return a hash of 16 to 64 bytes'],
])('a digest that %s fails loudly, and never with the secret', async (_case, digest, said) => {
  const keys = createApiKeys({
    store: memoryStore(),
    serverSecret: SERVER_SECRET,
    legacyFormats: [legacyFormat({ match: /old_.*/, digest })],
  })
  const failed = await keys.verify(OLD).catch((error: unknown) => error)
  expect(failed).toMatchObject({ code: 'internal_error', message: expect.stringContaining(said) })
  expect(String((failed as Error).stack) + String((failed as Error).cause)).not.toContain(OLD)
  await keys.close()
})
