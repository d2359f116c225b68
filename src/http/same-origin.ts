import type { Request } from 'express'
import { ApiKeyError } from '../errors.js'
import { invalidOption } from '../options.js'
import { headerValues } from './source.js'

/** The option `trustedOrigins`, checked. */
export function originsOption(origins: readonly string[] | undefined): ReadonlySet<string> {
  if (origins === undefined) return new Set()
  if (!Array.isArray(origins)) throw invalidOption('trustedOrigins must be a list of origins, such as ["https://app.example.com"].')
  for (const one of origins as readonly unknown[]) {
    const origin = typeof one === 'string' ? originIn(one) : undefined
    if (origin === undefined) {
      throw invalidOption(
        'trustedOrigins must list origins as browsers send them, such as "https://app.example.com"; no "*" and no "null".',
      )
    }
    if (origin !== one) throw invalidOption(`trustedOrigins must list origins as browsers send them: write "${origin}".`)
  }
  return new Set(origins)
}

/**
 * Refuses a request that a page of another origin may have had a browser send, with the cookies of whoever sits there. Browsers set these headers, and pages
 * cannot: what `Sec-Fetch-Site` says counts, and `Origin` where it is missing, as browsers send none over plain HTTP. Without both only a request without
 * cookies passes, which no browser signs in.
 *
 * @throws ApiKeyError `cross_origin`.
 * @see https://www.w3.org/TR/fetch-metadata/
 */
export function refuseCrossOrigin(req: Request, trusted: ReadonlySet<string>): void {
  const [sites, origins] = [headerValues(req, 'sec-fetch-site'), headerValues(req, 'origin')]
  if (sites.length > 1 || origins.length > 1) throw crossOrigin()
  const [[site], [origin]] = [sites, origins]
  if (site === 'same-origin' || (origin !== undefined && trusted.has(origin))) return
  // A sub-domain (`same-site`) may belong to somebody else. `none` is for what a user opens, and nobody opens a change.
  if (site !== undefined) throw crossOrigin()
  if (origin === undefined) {
    if (headerValues(req, 'cookie').length > 0) throw crossOrigin()
    return
  }
  // `null`, which is what sandboxed frames send, is the origin of nobody.
  const own = ownOrigin(req)
  if (own === undefined || originIn(origin) !== origin || origin !== own) throw crossOrigin()
}

/** The origin that this request was sent to, by what Express says of its proxies. */
function ownOrigin(req: Request): string | undefined {
  try {
    return originIn(`${req.protocol}://${hostOf(req)}`)
  } catch {
    // The application's `trust proxy` function may throw at what a client wrote.
    return undefined
  }
}

/** As `req.host` of Express 5. That of Express 4 has no port. */
function hostOf(req: Request): string {
  const { headers, socket } = req
  const forwarded: unknown = headers['x-forwarded-host']
  const trusts = req.app.get('trust proxy fn') as (address: string | undefined, hop: number) => boolean
  if (typeof forwarded === 'string' && forwarded !== '' && trusts(socket.remoteAddress, 0)) return (forwarded.split(',')[0] ?? '').trim()
  // HTTP/2 may have no Host.
  return String(headers.host ?? headers[':authority'] ?? '')
}

/** The origin of an address over HTTP, in its one form: in lower case, without the usual port. */
function originIn(text: string): string | undefined {
  if (!/^https?:\/\//i.test(text) || !URL.canParse(text)) return undefined
  return new URL(text).origin
}

function crossOrigin(): ApiKeyError {
  return new ApiKeyError('cross_origin', 'Without an API key, a change must come from a page of this origin.')
}
