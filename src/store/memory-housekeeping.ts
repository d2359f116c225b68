import type { EventChoice, EventRow, GenerationRow, KeyChoice, KeyRow, ReplayRow, Store, StoreTransaction } from './store.js'
import { tombstoneOf } from './tombstone.js'

/** All that a store in memory keeps of keys. */
export interface Tables {
  readonly keys: Map<string, KeyRow>
  readonly generations: Map<string, GenerationRow>
  readonly replays: Map<string, ReplayRow>
  readonly events: EventRow[]
}

type Housekeeping = Pick<Store, 'keyIds' | 'trail' | 'pruneEvents' | 'pruneReplays'>

/** What a store in memory does for housekeeping outside of transactions. */
export function housekeeping(data: { tables: Tables }, inTurn: <T>(work: () => Promise<T>) => Promise<T>): Housekeeping {
  return {
    async keyIds(choice, limit) {
      const chosen = [...data.tables.keys.values()].filter((row) => isChosen(row, choice))
      return chosen.slice(0, limit).map(({ id }) => id)
    },

    async trail({ after, limit, ...choice }) {
      const later = (row: EventRow): boolean => after === undefined || row.at > after.at || (row.at === after.at && row.id > after.id)
      const found = data.tables.events.filter((row) => isIn(row, choice) && later(row)).sort(oldestFirst)
      return found.slice(0, limit).map((row) => ({ ...row }))
    },

    pruneEvents: (choice, limit) =>
      inTurn(async () => {
        const { events, replays } = data.tables
        const gone = new Set(
          events
            .filter((row) => isIn(row, choice))
            .sort(oldestFirst)
            .slice(0, limit),
        )
        const keyIds = new Set('ownerId' in choice ? [...gone].map(({ keyId }) => keyId) : [])
        const records = [...replays.values()].filter(({ keyId }) => keyIds.has(keyId))
        for (const { id } of records) replays.delete(id)
        const kept = events.filter((row) => !gone.has(row))
        events.length = 0
        // One by one: a call has no room for as many arguments as there may be events.
        for (const row of kept) events.push(row)
        return { events: gone.size, replays: records.length }
      }),

    pruneReplays: (before, limit) =>
      inTurn(async () => {
        const { replays } = data.tables
        const gone = [...replays.values()].filter(({ createdAt, expiresAt }) => createdAt < before && expiresAt < before).slice(0, limit)
        for (const { id } of gone) replays.delete(id)
        return gone.length
      }),
  }
}

/** And inside of them. */
export function housekeepingSteps(tables: Tables): Pick<StoreTransaction, 'appendEvents' | 'endKeys' | 'removeKeys'> {
  const { keys, generations, replays, events } = tables
  return {
    async appendEvents(rows) {
      for (const row of rows) events.push(JSON.parse(JSON.stringify(row)) as EventRow)
    },

    async endKeys(ids, { at, reason }) {
      const ending = ids.flatMap((id) => keys.get(id) ?? []).filter(({ revokedAt }) => revokedAt === null)
      const endingIds = new Set(ending.map(({ id }) => id))
      for (const row of ending)
        keys.set(row.id, { ...row, revokedAt: at, revokedReason: reason, updatedAt: Math.max(at, row.updatedAt + 1) })
      eraseSealsOf(replays, endingIds, null)
      return retire(generations, endingIds, { at, by: null, reason: 'revoked' })
    },

    async removeKeys(ids, what) {
      const going = new Set(ids.filter((id) => keys.delete(id)))
      const rows = [...generations.values()].filter(({ keyId }) => going.has(keyId))
      for (const { digest } of rows) generations.set(digest, tombstoneOf(digest))
      const records = [...replays.values()].filter(({ keyId }) => going.has(keyId))
      eraseSealsOf(replays, going, null)
      for (const row of records) {
        if (what === 'removed') replays.delete(row.id)
        else replays.set(row.id, { ...row, sealed: null, callerId: '' })
      }
      return {
        keys: going.size,
        replays: what === 'removed' ? records.length : 0,
        tombstones: rows.length,
        digests: rows.filter(({ retiredAt, graceEndsAt }) => retiredAt === null || graceEndsAt !== null).map(({ digest }) => digest),
      }
    },
  }
}

/** Retires the generations of some keys, as `retireGenerations` says. */
export function retire(
  generations: Tables['generations'],
  keyIds: ReadonlySet<string>,
  { at, by, reason, graceEndsAt }: Parameters<StoreTransaction['retireGenerations']>[1],
): readonly string[] {
  const ending = [...generations.values()].filter((row) => keyIds.has(row.keyId) && (row.retiredAt === null || row.graceEndsAt !== null))
  const retired = { retiredAt: at, retiredBy: by, retiredReason: reason, graceEndsAt: graceEndsAt ?? null }
  for (const row of ending) {
    const isOver = row.graceEndsAt !== null && row.graceEndsAt <= at
    generations.set(row.digest, { ...row, ...(isOver ? { graceEndsAt: null } : retired) })
  }
  return ending.map(({ digest }) => digest)
}

/** Erases the seal of every record about these keys, and of every answer that they were given, but for the record named. */
export function eraseSealsOf(replays: Tables['replays'], keyIds: ReadonlySet<string>, exceptId: string | null): void {
  for (const row of replays.values())
    if ((keyIds.has(row.keyId) || keyIds.has(row.callerId)) && row.id !== exceptId) replays.set(row.id, { ...row, sealed: null })
}

function isChosen({ ownerId, revokedAt, expiresAt }: KeyRow, choice: KeyChoice): boolean {
  const { unrevoked, revokedBefore, expiredBefore } = choice
  return (
    (choice.ownerId === undefined || ownerId === choice.ownerId) &&
    (unrevoked === undefined || revokedAt === null) &&
    (revokedBefore === undefined || (revokedAt !== null && revokedAt < revokedBefore)) &&
    (expiredBefore === undefined || (expiresAt !== null && expiresAt < expiredBefore))
  )
}

function isIn({ ownerId, at }: EventRow, { ownerId: owner, since, before }: EventChoice): boolean {
  return (owner === undefined || ownerId === owner) && (since === undefined || at >= since) && (before === undefined || at < before)
}

function oldestFirst(a: EventRow, b: EventRow): number {
  return a.at - b.at || (a.id < b.id ? -1 : 1)
}
