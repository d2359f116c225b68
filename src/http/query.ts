import type { Request } from 'express'
import { pageLimitInvalid } from '../core/input.js'
import type { KeyQuery } from '../core/key.js'
import { ApiKeyError } from '../errors.js'

/** What a listing may be asked for, as it was written. */
interface PageQuery {
  readonly limit?: number
  readonly cursor?: string
  readonly ownerId?: string
}

/** Filters of a listing of keys, as they were written; the core checks them. */
const FILTERS = ['status', 'environment', 'expiresBefore', 'lastUsedBefore', 'name', 'last4'] as const

/** The URL as the client sent it. */
export function urlOf(req: Request): { readonly path: string; readonly query?: string } {
  const at = req.originalUrl.indexOf('?')
  return at < 0 ? { path: req.originalUrl } : { path: req.originalUrl.slice(0, at), query: req.originalUrl.slice(at + 1) }
}

/** From the URL itself: `req.query` depends on the application's query parser, which may leave everything out. Throws `invalid_request`. */
export function pageOf(req: Request): Omit<PageQuery, 'ownerId'> {
  return queryOf(req, ['limit', 'cursor'])
}

/** The same for a listing of keys, with its filters. */
export function listingOf(req: Request, takesOwner: boolean): KeyQuery {
  return queryOf(req, ['limit', 'cursor', ...FILTERS, ...(takesOwner ? ['ownerId'] : [])])
}

function queryOf(req: Request, known: readonly string[]): PageQuery {
  const page: { limit?: string; cursor?: string; ownerId?: string } = {}
  for (const [name, value] of new URLSearchParams(urlOf(req).query)) {
    if (!known.includes(name) || Object.hasOwn(page, name)) {
      throw new ApiKeyError('invalid_request', `The query may hold ${known.join(' and ')}, each once.`)
    }
    page[name as keyof typeof page] = value
  }
  const { limit, ...rest } = page
  if (limit !== undefined && !/^\d{1,3}$/.test(limit)) throw pageLimitInvalid()
  return { ...(limit === undefined ? {} : { limit: Number(limit) }), ...rest }
}
