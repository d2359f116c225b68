import fc from 'fast-check'
import { canonicalNetwork, coversNetworks, networkMatcher } from '../../src/core/ip-address.js'

test.each([
  ['192.0.2.1', '192.0.2.1'],
  ['192.0.2.1/32', '192.0.2.1'],
  ['192.0.2.0/24', '192.0.2.0/24'],
  ['0.0.0.0/0', '0.0.0.0/0'],
  ['2001:DB8:0:0:0:0:0:1', '2001:db8::1'],
  ['2001:db8::1/128', '2001:db8::1'],
  ['2001:0db8::/32', '2001:db8::/32'],
  ['::/0', '::/0'],
  ['::ffff:192.0.2.1', '192.0.2.1'],
  ['::ffff:192.0.2.0/120', '192.0.2.0/24'],
  ['::ffff:c000:200/120', '192.0.2.0/24'],
  ['::ffff:0:0/96', '0.0.0.0/0'],
])('%s is kept as %s', (given, network) => {
  expect(canonicalNetwork(given)).toEqual({ network })
})

test.each([
  ['192.0.2.1/24', '192.0.2.0/24'],
  ['10.1.2.3/8', '10.0.0.0/8'],
  ['192.0.2.129/25', '192.0.2.128/25'],
  ['2001:db8::1/32', '2001:db8::/32'],
  ['2001:db8:1:2:3::/40', '2001:db8::/40'],
  ['::ffff:192.0.2.1/120', '192.0.2.0/24'],
])('%s has bits set beyond its prefix, and the refusal says what to write', (given, write) => {
  expect(canonicalNetwork(given)).toEqual({ wrong: `has bits set beyond its prefix; write ${write}` })
})

test.each([
  ...[
    '',
    ' ',
    'localhost',
    '*',
    '192.0.2',
    '192.0.2.256',
    '192.0.2.01',
    '010.0.0.1',
    '0x7f.0.0.1',
    '2130706433',
    '192.0.2.1 ',
    ' 192.0.2.1',
  ],
  ...[
    '192.0.2.0/33',
    '192.0.2.0/-1',
    '192.0.2.0/',
    '192.0.2.0/024',
    '192.0.2.0/2 4',
    '192.0.2.0/24/1',
    '192.0.2.0/255.255.255.0',
    '192.0.2.0-9',
  ],
  ...[
    'fe80::1%eth0',
    'fe80::1%eth0/64',
    '::1%',
    '[::1]',
    '::1:',
    ':::',
    '2001:db8::/129',
    '::ffff:192.0.2.0/95',
    '::g',
    '1::2::3',
    '192.0.2.1:80',
  ],
])('%p is no network', (given) => {
  expect(canonicalNetwork(given)).toEqual({ wrong: 'is no IPv4 or IPv6 address, and no network such as 192.0.2.0/24' })
})

test.each([
  ['192.0.2.0/24', ['192.0.2.0', '192.0.2.255', '::ffff:192.0.2.7', '::ffff:c000:207', '192.0.2.7:443', '"192.0.2.7"', ' 192.0.2.7 ']],
  ['2001:db8::/32', ['2001:db8::', '2001:DB8:ffff:ffff:ffff:ffff:ffff:ffff', '[2001:db8::1]', '[2001:db8::1]:443', '2001:db8::1%eth0']],
  ['0.0.0.0/0', ['0.0.0.0', '255.255.255.255', '::ffff:1.2.3.4']],
  ['::/0', ['::', '2001:db8::1']],
  ['192.0.2.1', ['192.0.2.1']],
])('%s holds its addresses, however they are written', (network, addresses) => {
  const matches = networkMatcher([network])
  for (const address of addresses) expect([address, matches(address)]).toEqual([address, true])
})

test.each<[string, readonly unknown[]]>([
  ['192.0.2.0/24', ['192.0.1.255', '192.0.3.0', '2001:db8::1', '::c000:207', '64:ff9b::192.0.2.7']],
  ['2001:db8::/32', ['2001:db7:ffff:ffff:ffff:ffff:ffff:ffff', '2001:db9::', '192.0.2.1']],
  ['0.0.0.0/0', ['::', '2001:db8::1', '::1']],
  ['::/0', ['192.0.2.1', '::ffff:192.0.2.1']],
  ['::/64', ['192.0.2.1', '::ffff:192.0.2.1', '1::']],
  ['192.0.2.1', [undefined, null, '', 'unknown', '192.0.2.1, 192.0.2.2', '192.0.2.10', 5, {}, ['192.0.2.1']]],
])('%s holds no other, and nothing that is no address', (network, addresses) => {
  const matches = networkMatcher([network]) as (address: unknown) => boolean
  for (const address of addresses) expect([address, matches(address)]).toEqual([address, false])
})

test('an empty list, and one of entries that somebody wrote by hand, holds no address', () => {
  for (const list of [[], ['nonsense'], ['10.0.0.0/99']]) expect(networkMatcher(list)('10.0.0.1')).toBe(false)
})

interface Network {
  readonly four: boolean
  /** Of its first address. */
  readonly bits: bigint
  readonly prefix: number
}

const sizeOf = ({ four }: Pick<Network, 'four'>): bigint => (four ? 32n : 128n)

/** What is left of the bits of an address by a prefix. */
function network(four: boolean, bits: bigint, prefix: number): Network {
  const below = sizeOf({ four }) - BigInt(prefix)
  return { four, bits: (bits >> below) << below, prefix }
}

function textOf({ four, bits }: Network): string {
  const width = four ? 8n : 16n
  const parts = Array.from(
    { length: four ? 4 : 8 },
    (_, index) => (bits >> (sizeOf({ four }) - width * BigInt(index + 1))) & ((1n << width) - 1n),
  )
  return parts.map((part) => part.toString(four ? 10 : 16)).join(four ? '.' : ':')
}

const written = (one: Network): string => `${textOf(one)}/${one.prefix}`

function kept(one: Network): string {
  const found = canonicalNetwork(written(one))
  if ('wrong' in found) throw new Error(`${written(one)} ${found.wrong}`)
  return found.network
}

const someNetwork = fc
  .tuple(fc.boolean(), fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }), fc.nat(128))
  .map(([four, random, at]) => (four ? network(true, random >> 96n, at % 33) : network(false, random, at)))

test('every network that is well formed is kept, in a form that is kept as it is', () => {
  fc.assert(fc.property(someNetwork, (one) => expect(canonicalNetwork(kept(one))).toEqual({ network: kept(one) })))
})

test('a network covers another where it holds the first and the last address of it', () => {
  const ends = (one: Network): bigint[] => [one.bits, one.bits | ((1n << (sizeOf(one) - BigInt(one.prefix))) - 1n)]
  // The mapped form of an IPv4 address is that address, and in no network of IPv6.
  const isMapped = ({ four }: Network, bits: bigint): boolean => !four && bits >> 32n === 0xffffn
  const someOther = fc.tuple(someNetwork, someNetwork, fc.boolean(), fc.nat(8))
  let covered = 0
  fc.assert(
    fc.property(someOther, ([inner, other, near, less]) => {
      const outer = near ? network(inner.four, inner.bits, Math.max(0, inner.prefix - less)) : other
      const matches = networkMatcher([kept(outer)])
      fc.pre(!ends(inner).some((bits) => isMapped(inner, bits)))
      const holdsEnds = ends(inner).every((bits) => matches(textOf({ ...inner, bits })))
      expect([written(outer), written(inner), coversNetworks([kept(outer)], [kept(inner)])]).toEqual([
        written(outer),
        written(inner),
        holdsEnds,
      ])
      if (holdsEnds) covered++
    }),
    { numRuns: 1_000 },
  )
  expect(covered).toBeGreaterThan(100)
})

test('null covers everything and is covered by nothing else, and each network of a list needs one that covers it', () => {
  expect([coversNetworks(null, null), coversNetworks(null, ['10.0.0.1']), coversNetworks(['0.0.0.0/0', '::/0'], null)]).toEqual([
    true,
    true,
    false,
  ])
  expect(coversNetworks(['10.0.0.0/8', '2001:db8::/32'], ['10.1.0.0/16', '2001:db8::1', '10.2.3.4'])).toBe(true)
  expect(coversNetworks(['10.0.0.0/8'], ['10.1.0.0/16', '11.0.0.0/16'])).toBe(false)
  // Two halves cover the whole, but no single one does: such a list is refused, and never taken for less than it is.
  expect(coversNetworks(['10.0.0.0/9', '10.128.0.0/9'], ['10.0.0.0/8'])).toBe(false)
})
