import { refuseUnknown } from '../options.js'
import type { KeyRow, Store } from '../store/store.js'
import type { ApiKeys } from './api-keys.js'
import type { Clock } from './clock.js'
import { cursorOf, keyFilters, keyId, ownerText, pageLimit, positionOf } from './input.js'
import { apiKey, keyEvent, type Page } from './key.js'

/** Reads keys and their audit trails. Nothing here goes by a lease. */
export function keyQueries(store: Store, clock: Pick<Clock, 'wallMs'>): Pick<ApiKeys, 'get' | 'list' | 'events'> {
  return {
    async get(id, scope = {}) {
      refuseUnknown(scope, ['ownerId'], 'get', 'invalid_request')
      return (await keyOf(id, scope))?.key
    },

    async list(query) {
      const filters = keyFilters(query)
      const { cursor, limit } = query
      const size = pageLimit(limit)
      const chosen = { ...ownerPart(query), ...filters }
      const rows = await store.keys({ ...chosen, after: positionOf(cursor), limit: size + 1 })
      return page(rows, size, shown, ({ createdAt, id }) => ({ at: createdAt, id }))
    },

    async events(query) {
      refuseUnknown(query, ['id', 'ownerId', 'cursor', 'limit'], 'events', 'invalid_request')
      const size = pageLimit(query.limit)
      const after = positionOf(query.cursor)
      const found = await keyOf(query.id, query)
      if (found === undefined) return undefined
      const rows = await store.events({ keyId: found.row.id, after, limit: size + 1 })
      return page(rows, size, keyEvent, ({ at, id }) => ({ at, id }))
    },
  }

  function shown(row: KeyRow): ReturnType<typeof apiKey> {
    return apiKey(row, clock.wallMs())
  }

  /** The key, where it is one of the owner that the query names. */
  async function keyOf(
    id: string,
    scope: { readonly ownerId?: string },
  ): Promise<{ readonly row: KeyRow; readonly key: ReturnType<typeof apiKey> } | undefined> {
    const ownerId = ownerFilter(scope)
    const row = (await store.key(keyId(id)))?.key
    if (row === undefined || (ownerId !== undefined && row.ownerId !== ownerId)) return undefined
    return { row, key: shown(row) }
  }
}

/** An `ownerId` that is present and undefined is refused: the boundary between owners must not depend on a value that was lost. */
function ownerFilter(scope: { readonly ownerId?: string }): string | undefined {
  return 'ownerId' in scope ? ownerText(scope.ownerId) : undefined
}

function ownerPart(query: { readonly ownerId?: string }): { readonly ownerId?: string } {
  const ownerId = ownerFilter(query)
  return ownerId === undefined ? {} : { ownerId }
}

function page<Row, Item>(
  rows: readonly Row[],
  size: number,
  item: (row: Row) => Item,
  position: (row: Row) => { at: number; id: string },
): Page<Item> {
  const shown = rows.slice(0, size)
  const last = shown.at(-1)
  return { items: shown.map(item), nextCursor: rows.length > size && last !== undefined ? cursorOf(position(last)) : null }
}
