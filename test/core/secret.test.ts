import { crc32 } from 'node:zlib'
import fc from 'fast-check'
import { digestOf, secretFormat } from '../../src/core/secret.js'

const format = secretFormat('sk', true)

test('a secret is its prefix, its environment, 43 random characters and a checksum of six', () => {
  for (const environment of ['live', 'test'] as const) {
    const { secret, digest, start, last4 } = format.mint(format.startFor(environment))
    expect(secret).toMatch(new RegExp(`^sk_${environment}_[0-9A-Za-z]{49}$`))
    expect([start, last4, digest]).toEqual([`sk_${environment}_`, secret.slice(-4), digestOf(secret)])
    expect(format.wellFormed(secret)).toBe(true)
  }
})

test('the environment can be left out, and prefixes do not take each other for their own', () => {
  const bare = secretFormat('suwappu_sk', false)
  const { secret } = bare.mint(bare.startFor('live'))
  expect(secret).toMatch(/^suwappu_sk_[0-9A-Za-z]{49}$/)
  expect([bare.wellFormed(secret), format.wellFormed(secret)]).toEqual([true, false])
  expect(bare.wellFormed(format.mint(format.startFor('live')).secret)).toBe(false)
})

test('ten thousand secrets are all different, and use the whole alphabet in every place but the first', () => {
  const secrets = Array.from({ length: 10_000 }, () => format.mint(format.startFor('live')).secret)
  expect(secrets.filter((secret) => !/^sk_live_[0-9A-Za-z]{49}$/.test(secret))).toEqual([])
  const bodies = secrets.map((secret) => secret.slice(8, 51))
  expect(new Set(bodies).size).toBe(10_000)
  for (let place = 1; place < 43; place++) expect(new Set(bodies.map((body) => body[place])).size).toBe(62)
})

test('no change of one character, and no other text, passes for a secret', () => {
  const { secret } = format.mint(format.startFor('live'))
  fc.assert(
    fc.property(fc.nat(secret.length - 1), fc.string({ unit: 'binary-ascii', minLength: 1, maxLength: 1 }), (place, character) => {
      const changed = secret.slice(0, place) + character + secret.slice(place + 1)
      expect(format.wellFormed(changed)).toBe(changed === secret)
    }),
    { numRuns: 2_000 },
  )
  fc.assert(fc.property(fc.string({ unit: 'binary', maxLength: 100 }), (text) => !format.wellFormed(text)))
  for (const text of ['', secret.slice(1), `${secret} `, ` ${secret}`, secret.toUpperCase(), secret.repeat(2)])
    expect(format.wellFormed(text)).toBe(false)
})

test('a good checksum alone makes no secret: prefix, length and alphabet have to be right too', () => {
  const zeros = '0'.repeat(42)
  expect(format.wellFormed(signed(`sk_live_${zeros}0`))).toBe(true)
  for (const body of [
    `rk_live_${zeros}0`,
    `sk_line_${zeros}0`,
    `sk_live_x${zeros}0`,
    `sk_live_${zeros}`,
    `sk_live_-${zeros}`,
    `sk_live_${zeros}~`,
  ]) {
    expect([body, format.wellFormed(signed(body))]).toEqual([body, false])
  }
  // In the sum, ":" would count like "A": a number must have one spelling only.
  const numbered = Array.from({ length: 1_000 }, (_, n) => signed(`sk_live_${String(n).padStart(43, '0')}`))
  const secret = numbered.find((each) => each.slice(51).includes('A')) ?? ''
  expect(format.wellFormed(secret)).toBe(true)
  expect(format.wellFormed(secret.slice(0, 51) + secret.slice(51).replace('A', ':'))).toBe(false)
})

test('the digest of a secret is its SHA-256 in base64url, by which stores know it', () => {
  expect(digestOf(`sk_live_${'0'.repeat(43)}1Vxh1Z`)).toBe('TGHY5C6UOUWdoycHBRgotUgSmhudIxNfoXHHPU24skc')
})

test('a rotation secret is never a secret, though its checksum is right', () => {
  for (const [prefix, environmentInSecret] of [
    ['rot', true],
    ['rot', false],
    ['rot_sk', true],
  ] as const) {
    const rotation = secretFormat(prefix, environmentInSecret)
    const { secret } = rotation.mint(rotation.startFor('live'))
    expect([rotation.wellFormed(secret), format.wellFormed(secret)]).toEqual([true, false])
    expect(secretFormat('sk', false).wellFormed(secret)).toBe(false)
  }
})

test('the checksum is CRC-32 of all that precedes it, in base 62', () => {
  // Worked out apart from the code: crc32("sk_live_" + 43 zeros) in base 62.
  expect(format.wellFormed(`sk_live_${'0'.repeat(43)}1Vxh1Z`)).toBe(true)
  expect(format.wellFormed(`rot_live_${'0'.repeat(43)}1Vxh1Z`)).toBe(false)
})

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'

/** A body with the checksum that belongs to it. */
function signed(body: string): string {
  let [rest, text] = [crc32(body), '']
  for (let digit = 0; digit < 6; digit++) {
    text = ALPHABET[rest % 62] + text
    rest = Math.floor(rest / 62)
  }
  return body + text
}
