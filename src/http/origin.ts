import type { Request } from 'express'
import type { Origin } from '../core/api-keys.js'
import { canonicalAddress } from '../core/ip-address.js'

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
    return typeof given === 'string' ? canonicalAddress(given) : undefined
  } catch {
    // The application's `trust proxy` function may throw at what a client wrote, and a destroyed request has no socket.
    return undefined
  }
}

/** Where a request came from, for a key that asks: most do not. */
export class ClientAddress {
  readonly #req: Request

  constructor(req: Request) {
    this.#req = req
  }

  get ip(): string | undefined {
    return clientAddress(this.#req)
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
