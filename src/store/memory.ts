import { randomUUID } from 'node:crypto'
import { ApiKeyError } from '../errors.js'
import { wallMs } from '../real-time.js'
import type { EventRow, GenerationRow, KeyRow, Position, ReplayRow, Store, StoreTransaction } from './store.js'

export interface MemoryStoreOptions {
  /** The store's clock, in milliseconds since the epoch; for tests. Default `Date.now`. */
  now?: () => number
}

/** Names the data behind a store object, for those who count who uses it. */
const DATA = Symbol.for('express-api-keys.data')

interface Tables {
  keys: Map<string, KeyRow>
  generations: Map<string, GenerationRow>
  replays: Map<string, ReplayRow>
  events: EventRow[]
}

/**
 * Keeps keys in this process: for tests, and for a single process whose keys may end with it. Rotations need no wait here, since
 * nobody else can hold a lease.
 */
export function memoryStore(options: MemoryStoreOptions = {}): Store {
  for (const name of Object.keys(options)) {
    if (name !== 'now') throw new ApiKeyError('invalid_option', `memoryStore has no option "${name}". It takes now.`)
  }
  const clock = options.now ?? wallMs
  const now = (): number => Math.floor(clock())
  let tables: Tables = { keys: new Map(), generations: new Map(), replays: new Map(), events: [] }
  const storeId = randomUUID()
  let leaseMs = 50
  let earlier = { leaseMs: 0, version: 0 }
  let turn: Promise<unknown> = Promise.resolve()

  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const result = turn.then(work)
    turn = result.catch(() => {})
    return result
  }
  const generationOf = (keyId: string, generation: number): GenerationRow | undefined =>
    [...tables.generations.values()].find((row) => row.keyId === keyId && row.generation === generation)
  const longestLease = (): number => Math.max(leaseMs, earlier.leaseMs)

  return {
    // Whoever spreads or wraps this store has the same data under another object.
    ...{ [DATA]: tables },
    shared: false,
    async migrate() {},

    async read(digests) {
      const at = now()
      const found = digests.flatMap((digest) => {
        const generation = tables.generations.get(digest)
        const key = generation && tables.keys.get(generation.keyId)
        return generation && key ? [{ key: jsonCopy(key), generation: { ...generation } }] : []
      })
      return { at, storeId, leaseMs, found }
    },

    async replays(ids) {
      const found = ids.flatMap((id) => {
        const record = tables.replays.get(id)
        if (record === undefined) return []
        return [
          { record: { ...record }, made: record.generation === null ? undefined : copyOf(generationOf(record.keyId, record.generation)) },
        ]
      })
      return { at: now(), waitMs: longestLease(), found }
    },

    // One at a time, on a copy that takes the place of the original at the end: a throw leaves nothing behind.
    transaction: (work) =>
      inTurn(async () => {
        const copy: Tables = {
          keys: new Map(tables.keys),
          generations: new Map(tables.generations),
          replays: new Map(tables.replays),
          events: [...tables.events],
        }
        const result = await work(steps(copy))
        tables = copy
        return result
      }),

    async key(id) {
      const key = tables.keys.get(id)
      const generation = key && generationOf(id, key.generation)
      return key && generation ? { key: jsonCopy(key), generation: { ...generation } } : undefined
    },

    async keys({ ownerId, after, limit }) {
      const rows = [...tables.keys.values()].filter((row) => row.ownerId === ownerId)
      return newestFirst(rows, ({ createdAt }) => createdAt, after, limit)
    },

    async events({ keyId, after, limit }) {
      const rows = tables.events.filter((row) => row.keyId === keyId)
      return newestFirst(rows, ({ at }) => at, after, limit)
    },

    markFirstUse: (digest) =>
      inTurn(async () => {
        const row = tables.generations.get(digest)
        if (row === undefined) return { retired: [], waitMs: 0 }
        if (row.firstUsedAt === null) tables.generations.set(digest, { ...row, firstUsedAt: now() })
        if (!row.retiresEarlier) return { retired: [], waitMs: 0 }
        const before = generationOf(row.keyId, row.generation - 1)
        if (before === undefined) return { retired: [], waitMs: 0 }
        tables.generations.set(before.digest, { ...before, graceEndsAt: null })
        return { retired: [before.digest], waitMs: longestLease() }
      }),

    settleFirstUse: (digest) =>
      inTurn(async () => {
        const row = tables.generations.get(digest)
        if (row !== undefined) tables.generations.set(digest, { ...row, retiresEarlier: false })
      }),

    recordUses: (uses) =>
      inTurn(async () => {
        for (const { keyId, agoMs, ip, userAgent } of uses) {
          const row = tables.keys.get(keyId)
          const at = Math.floor(now() - agoMs)
          if (row === undefined || (row.lastUsedAt !== null && row.lastUsedAt >= at)) continue
          tables.keys.set(keyId, { ...row, lastUsedAt: at, lastUsedIp: ip, lastUsedUserAgent: userAgent })
        }
      }),

    settle: (replayId, agoMs) =>
      inTurn(async () => {
        const row = tables.replays.get(replayId)
        if (row === undefined || row.settledAt !== null) return
        const expiresAt = Math.min(row.expiresAt, Math.floor(now() - agoMs) + row.windowMs)
        tables.replays.set(replayId, { ...row, settledAt: now(), expiresAt })
      }),

    eraseSeals: () =>
      inTurn(async () => {
        for (const row of tables.replays.values()) {
          if (row.sealed === null) continue
          const usedAt = row.generation === null ? null : (generationOf(row.keyId, row.generation)?.firstUsedAt ?? null)
          if (row.expiresAt > now() && !(usedAt !== null && usedAt + row.graceMs <= now())) continue
          tables.replays.set(row.id, { ...row, sealed: null })
        }
      }),

    setLease: (ms) =>
      inTurn(async () => {
        if (ms < leaseMs) earlier = { leaseMs: longestLease(), version: earlier.version + 1 }
        leaseMs = ms
        return { waitMs: earlier.leaseMs, version: earlier.version }
      }),

    settleLease: (version) =>
      inTurn(async () => {
        if (version === earlier.version) earlier = { leaseMs: 0, version }
      }),

    async close() {},
  }

  function steps({ keys, generations, replays, events }: Tables): StoreTransaction {
    return {
      now: async () => now(),
      waitMs: async () => longestLease(),
      // One transaction at a time holds every name.
      lockName: async () => {},
      generation: async (digest) => copyOf(generations.get(digest)),
      lockKeys: async (ids) =>
        [...new Set(ids)].sort().flatMap((id) => {
          const row = keys.get(id)
          return row === undefined ? [] : [jsonCopy(row)]
        }),
      async insertKey(row) {
        if (keys.has(row.id)) throw taken('key id')
        keys.set(row.id, jsonCopy(row))
      },
      async updateKey(row) {
        const { id, ownerId, environment, createdAt, lastUsedAt, lastUsedIp, lastUsedUserAgent } = keys.get(row.id) ?? row
        keys.set(row.id, { ...jsonCopy(row), id, ownerId, environment, createdAt, lastUsedAt, lastUsedIp, lastUsedUserAgent })
      },
      async insertGeneration(row) {
        const twin = [...generations.values()].some(({ keyId, generation }) => keyId === row.keyId && generation === row.generation)
        if (generations.has(row.digest) || twin) throw taken('generation')
        generations.set(row.digest, { ...row })
      },
      async retireGenerations(keyId, { at, by, reason, graceEndsAt = null }) {
        for (const row of generations.values()) {
          const isOver = row.keyId === keyId && row.graceEndsAt !== null && row.graceEndsAt <= at
          if (isOver) generations.set(row.digest, { ...row, graceEndsAt: null })
        }
        const accepted = (row: GenerationRow): boolean => row.retiredAt === null || (row.graceEndsAt !== null && row.graceEndsAt > at)
        const active = [...generations.values()].filter((row) => row.keyId === keyId && accepted(row))
        for (const row of active) generations.set(row.digest, { ...row, retiredAt: at, retiredBy: by, retiredReason: reason, graceEndsAt })
        return active.map(({ digest }) => digest)
      },
      async lowerGrace(keyId, generation, { from, to }) {
        const row = [...generations.values()].find((one) => one.keyId === keyId && one.generation === generation)
        if (row?.graceEndsAt === from && from > to) generations.set(row.digest, { ...row, graceEndsAt: to })
      },
      generationOf: async (keyId, generation) =>
        copyOf([...generations.values()].find((row) => row.keyId === keyId && row.generation === generation)),
      replay: async (ids) => copyOf(ids.map((id) => replays.get(id)).find((row) => row !== undefined)),
      async insertReplay(row) {
        if (replays.has(row.id)) throw taken('replay record')
        replays.set(row.id, { ...row })
      },
      async reseal(replayId, { from, to }) {
        const row = replays.get(replayId)
        if (row?.sealed !== from) return false
        replays.set(replayId, { ...row, sealed: to })
        return true
      },
      async eraseReplays(keyId, exceptId) {
        for (const row of replays.values())
          if ((row.keyId === keyId || row.callerId === keyId) && row.id !== exceptId) replays.set(row.id, { ...row, sealed: null })
      },
      async appendEvent(row) {
        events.push(jsonCopy(row))
      },
    }
  }
}

function newestFirst<Row extends { id: string }>(
  rows: readonly Row[],
  at: (row: Row) => number,
  after: Position | undefined,
  limit: number,
): Row[] {
  const older = (row: Row): boolean => after === undefined || at(row) < after.at || (at(row) === after.at && row.id < after.id)
  return rows
    .filter(older)
    .sort((a, b) => at(b) - at(a) || (a.id < b.id ? 1 : -1))
    .slice(0, limit)
    .map((row) => jsonCopy(row))
}

function copyOf<Row extends object>(row: Row | undefined): Row | undefined {
  return row === undefined ? undefined : { ...row }
}

function taken(what: string): ApiKeyError {
  return new ApiKeyError('store_unavailable', `This ${what} exists already.`)
}

/** A deep copy. (structuredClone makes objects of another realm inside test runners, which strict comparisons tell apart.) */
function jsonCopy<Row>(row: Row): Row {
  return JSON.parse(JSON.stringify(row)) as Row
}
