import { BlockList, isIP } from 'node:net'

/** An address as proxies write it (RFC 7239 §6): with or without brackets, with or without a port, which may be hidden as `_name`. */
const BRACKETED = /^\[([^\]]*)\](?::(?:\d{1,5}|_[\w.-]+))?$/
const WITH_PORT = /^([\d.]+):(?:\d{1,5}|_[\w.-]+)$/
/** The last two groups of an IPv4 address in IPv6. @see RFC 4291 §2.5.5.2 */
const MAPPED = /^::ffff:([\da-f]{1,4}):([\da-f]{1,4})$/
const MAPPED_BITS = 96
const BITS = { 4: 32, 6: 128 } as const
const TYPES = { 4: 'ipv4', 6: 'ipv6' } as const

/**
 * A client's address in one form only: without port, brackets, quotes and zone; IPv4 in dots, even if it came as IPv6; IPv6 as RFC 5952 §4 has it.
 * Undefined for anything else.
 */
export function canonicalAddress(given: string): string | undefined {
  if (isIP(given) === 4) return given
  const bare = given
    .trim()
    .replace(/^"(.*)"$/, '$1')
    .trim()
  const text = (BRACKETED.exec(bare) ?? WITH_PORT.exec(bare))?.[1] ?? bare
  // A zone means something on its own host only.
  return canonicalIp(text.replace(/%.*$/, ''))
}

/** An address in one form only, where it is nothing but an address. */
function canonicalIp(text: string): string | undefined {
  const family = isIP(text)
  if (family !== 6) return family === 4 ? text : undefined
  if (text.includes('%')) return undefined
  // A URL writes IPv6 as RFC 5952 asks.
  const canonical = new URL(`http://[${text}]`).hostname.slice(1, -1)
  const [, high, low] = MAPPED.exec(canonical) ?? []
  return high === undefined || low === undefined ? canonical : dotted(Number.parseInt(high, 16), Number.parseInt(low, 16))
}

function dotted(high: number, low: number): string {
  return [high >> 8, high & 0xff, low >> 8, low & 0xff].join('.')
}

interface Network {
  readonly family: 4 | 6
  readonly address: string
  readonly prefix: number
  /** All bits of the address as a number. */
  readonly bits: bigint
}

/**
 * An address or a network in CIDR notation (RFC 4632 §3.1, RFC 4291 §2.3) in one form only, as `allowedIps` keeps it: `192.0.2.0/24`, `2001:db8::/32`, and a single
 * address without a prefix. Otherwise what is wrong with it, as the end of a sentence.
 */
export function canonicalNetwork(text: string): { readonly network: string } | { readonly wrong: string } {
  const network = networkIn(text)
  if (network === undefined) return { wrong: 'is no IPv4 or IPv6 address, and no network such as 192.0.2.0/24' }
  const { family, address, prefix, bits } = network
  const below = (1n << BigInt(BITS[family] - prefix)) - 1n
  if ((bits & below) !== 0n) return { wrong: `has bits set beyond its prefix; write ${textOf(family, bits & ~below)}/${prefix}` }
  return { network: prefix === BITS[family] ? address : `${address}/${prefix}` }
}

function networkIn(text: string): Network | undefined {
  const [address = '', prefix, ...more] = text.split('/')
  const canonical = canonicalIp(address)
  const written = isIP(address)
  if (canonical === undefined || more.length > 0 || (prefix !== undefined && !/^(?:0|[1-9]\d{0,2})$/.test(prefix))) return undefined
  const family = isIP(canonical) === 4 ? 4 : 6
  // A network of IPv4 addresses that is written as one of IPv6.
  const given = prefix === undefined ? BITS[family] : Number(prefix) - (written === 6 && family === 4 ? MAPPED_BITS : 0)
  return given < 0 || given > BITS[family] ? undefined : { family, address: canonical, prefix: given, bits: bitsOf(family, canonical) }
}

function bitsOf(family: 4 | 6, address: string): bigint {
  if (family === 4) return address.split('.').reduce((bits, part) => (bits << 8n) | BigInt(part), 0n)
  const [before = '', after] = address.split('::')
  const groups = (part: string): string[] => (part === '' ? [] : part.split(':'))
  const [left, right] = [groups(before), groups(after ?? '')]
  const zeros = after === undefined ? [] : Array.from({ length: 8 - left.length - right.length }, () => '0')
  return [...left, ...zeros, ...right].reduce((bits, group) => (bits << 16n) | BigInt(`0x${group}`), 0n)
}

function textOf(family: 4 | 6, bits: bigint): string {
  if (family === 4) return [24n, 16n, 8n, 0n].map((shift) => (bits >> shift) & 0xffn).join('.')
  const groups = Array.from({ length: 8 }, (_, index) => ((bits >> BigInt(16 * (7 - index))) & 0xffffn).toString(16))
  return canonicalIp(groups.join(':')) ?? groups.join(':')
}

/** Whether every address of the networks of `inner` is one of those of `outer`; null stands for all addresses. Both are canonical. */
export function coversNetworks(outer: readonly string[] | null, inner: readonly string[] | null): boolean {
  if (outer === null) return true
  if (inner === null) return false
  const wide = outer.map(networkIn)
  return inner.map(networkIn).every((narrow) => wide.some((one) => holds(one, narrow)))
}

function holds(outer: Network | undefined, inner: Network | undefined): boolean {
  if (outer === undefined || inner === undefined || outer.family !== inner.family || outer.prefix > inner.prefix) return false
  const shift = BigInt(BITS[outer.family] - outer.prefix)
  return outer.bits >> shift === inner.bits >> shift
}

/** Says of an address, in any form, whether it is in one of the networks. An address that is none is in no network. */
export function networkMatcher(networks: readonly string[]): (address: string | undefined) => boolean {
  // Apart: in one list, a network of IPv6 such as ::/64 would hold every IPv4 address, which it holds in the mapped form.
  const lists = { 4: new BlockList(), 6: new BlockList() }
  for (const { family, address, prefix } of networks.map(networkIn).filter((network) => network !== undefined)) {
    lists[family].addSubnet(address, prefix, TYPES[family])
  }
  return (given) => {
    const address = typeof given === 'string' ? canonicalAddress(given) : undefined
    if (address === undefined) return false
    const family = isIP(address) === 4 ? 4 : 6
    return lists[family].check(address, TYPES[family])
  }
}
