import { isIP } from 'node:net'
import type { Request } from 'express'
import type { Origin } from '../core/api-keys.js'

/** Where a request came from, for the audit trail and the last use. */
export function originOf(req: Request): Origin {
  const userAgent: unknown = req.headers?.['user-agent']
  return { ip: clientAddress(req), userAgent: typeof userAgent === 'string' ? userAgent : undefined }
}

/**
 * The client's address by `req.ip`, in one form only: without port, brackets, quotes and zone; IPv4 in dots, even if it came as IPv6; IPv6 as
 * RFC 5952 §4 has it. Undefined for anything else: where every proxy is trusted, `req.ip` is whatever a client wrote.
 */
export function clientAddress(req: Request): string | undefined {
  try {
    const given: unknown = req.ip
    return typeof given === 'string' ? addressIn(given) : undefined
  } catch {
    // The application's `trust proxy` function may throw at what a client wrote, and a destroyed request has no socket.
    return undefined
  }
}

/** What proxies write about the client behind them. */
const PROXY_HEADERS = [
  'x-forwarded-for',
  'forwarded',
  'via',
  'x-real-ip',
  'x-client-ip',
  'cf-connecting-ip',
  'true-client-ip',
  'fastly-client-ip',
]

/**
 * Whether `req.ip` may be a proxy's address, or one that the client wrote: the application trusts it to be a proxy, or the headers name more
 * proxies than the application knows. All clients then seem to share one address, or each can claim any address.
 */
export function addressIsDoubtful(req: Request): boolean {
  try {
    const known = req.ips.length
    const listed = String(req.headers['x-forwarded-for'] ?? '')
      .split(',')
      .filter((address) => address.trim() !== '').length
    if (listed !== known) return true
    if (known === 0 && PROXY_HEADERS.some((name) => req.headers[name] !== undefined)) return true
    const trusts = req.app.get('trust proxy fn') as (address: string | undefined, hop: number) => boolean
    return trusts(req.ip, known)
  } catch {
    return true
  }
}

/** An address as proxies write it (RFC 7239 §6): with or without brackets, with or without a port, which may be hidden as `_name`. */
const BRACKETED = /^\[([^\]]*)\](?::(?:\d{1,5}|_[\w.-]+))?$/
const WITH_PORT = /^([\d.]+):(?:\d{1,5}|_[\w.-]+)$/
/** The last two groups of an IPv4 address in IPv6. @see RFC 4291 §2.5.5.2 */
const MAPPED = /^::ffff:([\da-f]{1,4}):([\da-f]{1,4})$/

function addressIn(given: string): string | undefined {
  if (isIP(given) === 4) return given
  const bare = given
    .trim()
    .replace(/^"(.*)"$/, '$1')
    .trim()
  const text = (BRACKETED.exec(bare) ?? WITH_PORT.exec(bare))?.[1] ?? bare
  const family = isIP(text)
  if (family !== 6) return family === 4 ? text : undefined
  // A URL writes IPv6 as RFC 5952 asks. It takes no zone, which means something on its own host only.
  const canonical = new URL(`http://[${text.replace(/%.*$/, '')}]`).hostname.slice(1, -1)
  const [, high, low] = MAPPED.exec(canonical) ?? []
  return high === undefined || low === undefined ? canonical : dotted(Number.parseInt(high, 16), Number.parseInt(low, 16))
}

function dotted(high: number, low: number): string {
  return [high >> 8, high & 0xff, low >> 8, low & 0xff].join('.')
}
