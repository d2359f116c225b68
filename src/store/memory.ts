import { randomUUID } from 'node:crypto'
import { ApiKeyError } from '../errors.js'
import { wallMs } from '../real-time.js'
import { digestsOf } from './feed.js'
import { type MemoryFeed, memoryFeed } from './memory-feed.js'
import { eraseSealsOf, housekeeping, housekeepingSteps, retire, type Tables } from './memory-housekeeping.js'
import type { GenerationRow, KeyFilters, KeyRow, Position, Store, StoreTransaction } from './store.js'

export interface MemoryStoreOptions {
  /** The store's clock, in milliseconds since the epoch; for tests. Default `Date.now`. */
  now?: (() => number) | undefined
}

/** Names the data behind a store object: instances over the same data are counted. */
const DATA = Symbol.for('express-api-keys.data')

/** There is no other server that could take this one's place. */
const SERVER = 'memory'

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
  const data: Data = {
    storeId: randomUUID(),
    now,
    tables: { keys: new Map(), generations: new Map(), replays: new Map(), events: [] },
    leaseMs: 50,
    earlier: { leaseMs: 0, version: 0 },
    feed: memoryFeed(now),
    turn: Promise.resolve(),
  }
  return {
    // An object that spreads or wraps this store has the same data.
    ...{ [DATA]: data },
    shared: false,
    async migrate() {},
    ...reads(data),
    ...writes(data),
    ...data.feed.store,
    ...housekeeping(data, (work) => inTurn(data, work)),

    // One at a time, on a copy that takes the place of the original at the end: a throw leaves nothing behind.
    transaction: (work) =>
      inTurn(data, async () => {
        const copy: Tables = {
          keys: new Map(data.tables.keys),
          generations: new Map(data.tables.generations),
          replays: new Map(data.tables.replays),
          events: [...data.tables.events],
        }
        const changed = new Set<string>()
        const result = await work(steps(data, copy, changed))
        // With no turn between the two, so that nobody sees one without the other.
        data.feed.append(changed)
        data.tables = copy
        return result
      }),

    async close() {},
  }
}

interface Data {
  readonly storeId: string
  readonly now: () => number
  tables: Tables
  leaseMs: number
  /** The longest lease from before a lowering that may still be held. */
  earlier: { readonly leaseMs: number; readonly version: number }
  readonly feed: MemoryFeed
  /** Settles when everything that was begun is done. */
  turn: Promise<unknown>
}

function reads(data: Data): Pick<Store, 'read' | 'members' | 'replays' | 'key' | 'keys' | 'events'> {
  return {
    async read(digests, reader = {}) {
      const { tables, storeId, leaseMs } = data
      const at = data.now()
      const found = digests.flatMap((digest) => {
        const generation = tables.generations.get(digest)
        const key = generation && tables.keys.get(generation.keyId)
        return generation && key ? [{ key: jsonCopy(key), generation: { ...generation } }] : []
      })
      return { at, storeId, server: SERVER, leaseMs, ...data.feed.answer(reader), found }
    },

    async members(after) {
      const { storeId, leaseMs, earlier } = data
      const lowered = earlier.leaseMs > leaseMs
      return { at: data.now(), storeId, server: SERVER, waitMs: longestLease(data), lowered, ...data.feed.membership(after) }
    },

    async replays(ids) {
      const { tables } = data
      const found = ids.flatMap((id) => {
        const record = tables.replays.get(id)
        if (record === undefined) return []
        const made = record.generation === null ? undefined : copyOf(generationOf(tables, record.keyId, record.generation))
        return [{ record: { ...record }, made }]
      })
      return { at: data.now(), waitMs: longestLease(data), found }
    },

    async key(id) {
      const key = data.tables.keys.get(id)
      const generation = key && generationOf(data.tables, id, key.generation)
      return key && generation ? { key: jsonCopy(key), generation: { ...generation } } : undefined
    },

    async keys({ after, limit, ...filters }) {
      const at = data.now()
      const rows = [...data.tables.keys.values()].filter((row) => passes(row, filters, at))
      return newestFirst(rows, ({ createdAt }) => createdAt, after, limit)
    },

    async events({ keyId, after, limit }) {
      const rows = data.tables.events.filter((row) => row.keyId === keyId)
      return newestFirst(rows, ({ at }) => at, after, limit)
    },
  }
}

function passes(row: KeyRow, filters: KeyFilters, at: number): boolean {
  const { ownerId, status, environment, expiresBefore, lastUsedBefore, name, last4 } = filters
  return (
    (ownerId === undefined || row.ownerId === ownerId) &&
    (status === undefined || statusOf(row, at) === status) &&
    (environment === undefined || row.environment === environment) &&
    (expiresBefore === undefined || (row.expiresAt !== null && row.expiresAt < expiresBefore)) &&
    (lastUsedBefore === undefined || (row.lastUsedAt ?? row.createdAt) < lastUsedBefore) &&
    (name === undefined || lowered(row.name).includes(lowered(name))) &&
    (last4 === undefined || row.secretLast4 === last4)
  )
}

function statusOf({ revokedAt, disabledAt, expiresAt }: KeyRow, at: number): NonNullable<KeyFilters['status']> {
  if (revokedAt !== null) return 'revoked'
  if (disabledAt !== null) return 'disabled'
  return expiresAt !== null && expiresAt <= at ? 'expired' : 'active'
}

/** A to Z only, as every database can do it alike. */
function lowered(text: string): string {
  return text.replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase())
}

type Writes = Pick<Store, 'markFirstUse' | 'settleFirstUse' | 'recordUses' | 'settle' | 'eraseSeals' | 'setLease' | 'settleLease'>

function writes(data: Data): Writes {
  const { now } = data
  return {
    markFirstUse: (digest) =>
      inTurn(data, async () => {
        const { generations } = data.tables
        const row = generations.get(digest)
        if (row === undefined || row.keyId === digest) return { retired: [], waitMs: 0 }
        if (row.firstUsedAt === null) generations.set(digest, { ...row, firstUsedAt: now() })
        if (!row.retiresEarlier) return { retired: [], waitMs: 0 }
        const before = generationOf(data.tables, row.keyId, row.generation - 1)
        if (before === undefined) return { retired: [], waitMs: 0 }
        if (before.graceEndsAt !== null) data.feed.append([before.digest])
        generations.set(before.digest, { ...before, graceEndsAt: null })
        return { retired: [before.digest], waitMs: longestLease(data) }
      }),

    settleFirstUse: (digest) =>
      inTurn(data, async () => {
        const row = data.tables.generations.get(digest)
        const before = row && generationOf(data.tables, row.keyId, row.generation - 1)
        if (row === undefined || (before !== undefined && before.graceEndsAt !== null)) return
        data.tables.generations.set(digest, { ...row, retiresEarlier: false })
      }),

    recordUses: (uses) =>
      inTurn(data, async () => {
        for (const { keyId, agoMs, ip, userAgent } of uses) {
          const row = data.tables.keys.get(keyId)
          const at = Math.floor(now() - agoMs)
          if (row === undefined || (row.lastUsedAt !== null && row.lastUsedAt >= at)) continue
          data.tables.keys.set(keyId, { ...row, lastUsedAt: at, lastUsedIp: ip, lastUsedUserAgent: userAgent })
        }
      }),

    settle: (replayId, agoMs) =>
      inTurn(data, async () => {
        const row = data.tables.replays.get(replayId)
        if (row === undefined || row.settledAt !== null) return
        const expiresAt = Math.min(row.expiresAt, Math.floor(now() - agoMs) + row.windowMs)
        data.tables.replays.set(replayId, { ...row, settledAt: now(), expiresAt })
      }),

    eraseSeals: () =>
      inTurn(data, async () => {
        for (const row of data.tables.replays.values()) {
          if (row.sealed === null) continue
          const usedAt = row.generation === null ? null : (generationOf(data.tables, row.keyId, row.generation)?.firstUsedAt ?? null)
          if (row.expiresAt > now() && !(usedAt !== null && usedAt + row.graceMs <= now())) continue
          data.tables.replays.set(row.id, { ...row, sealed: null })
        }
      }),

    setLease: (ms) =>
      inTurn(data, async () => {
        if (ms < data.leaseMs) data.earlier = { leaseMs: longestLease(data), version: data.earlier.version + 1 }
        data.leaseMs = ms
        return { waitMs: data.earlier.leaseMs, version: data.earlier.version }
      }),

    settleLease: (version) =>
      inTurn(data, async () => {
        if (version === data.earlier.version) data.earlier = { leaseMs: 0, version }
      }),
  }
}

function steps(data: Data, tables: Tables, changed: Set<string>): StoreTransaction {
  const { keys, generations, replays, events } = tables
  return {
    now: async () => data.now(),
    waitMs: async () => longestLease(data),
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
    async insertKeys(rows) {
      for (const { key, generation } of rows) {
        if (keys.has(key.id)) throw taken('key id')
        if (generations.has(generation.digest)) throw taken('generation')
        keys.set(key.id, jsonCopy(key))
        generations.set(generation.digest, { ...generation })
      }
    },
    knownDigests: async (digests) => digests.filter((digest) => generations.has(digest)),
    async updateKey(row) {
      const { id, ownerId, environment, createdAt, lastUsedAt, lastUsedIp, lastUsedUserAgent } = keys.get(row.id) ?? row
      keys.set(row.id, { ...jsonCopy(row), id, ownerId, environment, createdAt, lastUsedAt, lastUsedIp, lastUsedUserAgent })
    },
    async insertGeneration(row) {
      if (generations.has(row.digest) || generationOf(tables, row.keyId, row.generation) !== undefined) throw taken('generation')
      generations.set(row.digest, { ...row })
    },
    retireGenerations: async (keyId, change) => retire(generations, new Set([keyId]), change),
    async lowerGrace(keyId, generation, { from, to }) {
      const row = generationOf(tables, keyId, generation)
      if (row?.graceEndsAt === from && from > to) generations.set(row.digest, { ...row, graceEndsAt: to })
    },
    generationOf: async (keyId, generation) => copyOf(generationOf(tables, keyId, generation)),
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
    eraseReplays: async (keyId, exceptId) => eraseSealsOf(replays, new Set([keyId]), exceptId),
    async appendEvent(row) {
      events.push(jsonCopy(row))
    },
    ...housekeepingSteps(tables),
    async appendChange(digests) {
      for (const digest of digestsOf(digests)) changed.add(digest)
    },
  }
}

function inTurn<T>(data: Data, work: () => Promise<T>): Promise<T> {
  const result = data.turn.then(work)
  data.turn = result.catch(() => {})
  return result
}

function generationOf({ generations }: Tables, keyId: string, generation: number): GenerationRow | undefined {
  return [...generations.values()].find((row) => row.keyId === keyId && row.generation === generation)
}

function longestLease({ leaseMs, earlier }: Data): number {
  return Math.max(leaseMs, earlier.leaseMs)
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
