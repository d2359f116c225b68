import { isIP } from 'node:net'
import type { Request } from 'express'

/** An address as proxies write it (RFC 7239 §6): in brackets or not, with a port or not, which may be hidden as `_name`. */
const BRACKETED = /^\[([^\]]*)\](?::(?:\d{1,5}|_[\w.-]+))?$/
const WITH_PORT = /^([\d.]+):(?:\d{1,5}|_[\w.-]+)$/
/** The last two groups of an IPv4 address in IPv6. @see RFC 4291 §2.5.5.2 */
const MAPPED = /^::ffff:([\da-f]{1,4}):([\da-f]{1,4})$/

/**
 * The client's address by `req.ip`, in the one form that it has: without port, brackets, quotes and zone; IPv4 in dots, also where it came as
 * IPv6; IPv6 as RFC 5952 §4 has it. Undefined for what is no address: where every proxy is trusted, `req.ip` is whatever a client wrote.
 */
export function clientAddress(req: Request): string | undefined {
  try {
    const given: unknown = req.ip
    return typeof given === 'string' ? addressIn(given) : undefined
  } catch {
    // The application's `trust proxy` function may not like what a client wrote, and a request that somebody has destroyed has no socket to ask.
    return undefined
  }
}

function addressIn(given: string): string | undefined {
  if (isIP(given) === 4) return given
  const bare = given
    .trim()
    .replace(/^"(.*)"$/, '$1')
    .trim()
  const text = (BRACKETED.exec(bare) ?? WITH_PORT.exec(bare))?.[1] ?? bare
  const family = isIP(text)
  if (family !== 6) return family === 4 ? text : undefined
  // A URL writes IPv6 as RFC 5952 asks, and takes no zone, which only its own host understands.
  const canonical = new URL(`http://[${text.replace(/%.*$/, '')}]`).hostname.slice(1, -1)
  const [, high, low] = MAPPED.exec(canonical) ?? []
  return high === undefined || low === undefined ? canonical : dotted(Number.parseInt(high, 16), Number.parseInt(low, 16))
}

function dotted(high: number, low: number): string {
  return [high >> 8, high & 0xff, low >> 8, low & 0xff].join('.')
}
