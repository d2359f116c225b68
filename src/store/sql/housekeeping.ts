import { type Kysely, type SqlBool, sql } from 'kysely'
import type { EventChoice, KeyChoice, Store, StoreTransaction } from '../store.js'
import { tombstoneOf } from '../tombstone.js'
import type { Database } from './database.js'
import type { Dialect } from './dialect.js'
import { bounded, refuseMissing } from './reads.js'
import { retire } from './retire.js'
import { eventColumns, eventRow, generationColumns, type Tables } from './rows.js'
import { inOwnTransaction } from './transaction.js'

type Housekeeping = Pick<Store, 'keyIds' | 'trail' | 'pruneEvents' | 'pruneReplays' | 'scrub'>

/** What a store does for housekeeping outside of the core's transactions. Each removal is one short transaction. */
export function housekeeping(database: Database): Housekeeping {
  const { dialect } = database
  return {
    keyIds: (choice, limit) => bounded(database, () => keyIds(database, choice, limit)),
    trail: (query) => bounded(database, () => trail(database, query)),
    pruneEvents: (choice, limit) => inOwnTransaction(database, (on) => pruneEvents(on, choice, limit)),
    pruneReplays: (before, limit) => inOwnTransaction(database, (on) => pruneReplays(on, before, limit)),
    ...(dialect.scrub === undefined ? {} : { scrub: () => bounded(database, () => scrub(database), SCRUB_MS) }),
  }
}

/** A large file takes long to be written anew. */
const SCRUB_MS = 600_000

async function scrub({ db, dialect }: Database): Promise<void> {
  await db.connection().execute(async (on) => dialect.scrub?.(on))
}

async function keyIds(database: Database, choice: KeyChoice, limit: number): Promise<readonly string[]> {
  const { ownerId, unrevoked, revokedBefore, expiredBefore } = choice
  let query = database.db.selectFrom('express_api_keys').select('id').limit(limit)
  if (ownerId !== undefined) query = query.where('owner_id', '=', ownerId)
  if (unrevoked !== undefined) query = query.where('revoked_at', 'is', null)
  if (revokedBefore !== undefined) query = query.where('revoked_at', '<', revokedBefore)
  if (expiredBefore !== undefined) query = query.where('expires_at', '<', expiredBefore)
  const rows = await query.execute()
  if (rows.length < limit) await refuseMissing(database)
  return rows.map(({ id }) => id)
}

async function trail(database: Database, { after, limit, ...choice }: Parameters<Store['trail']>[0]): ReturnType<Store['trail']> {
  const rows = await eventsIn(database.db, choice)
    .selectAll()
    .$if(after !== undefined, (query) => query.where(sql<SqlBool>`(at, id) > (${after?.at}, ${after?.id})`))
    .orderBy('at')
    .orderBy('id')
    .limit(limit)
    .execute()
  if (rows.length < limit) await refuseMissing(database)
  return rows.map(eventRow)
}

function eventsIn(on: Kysely<Tables>, { ownerId, since, before }: EventChoice) {
  return on
    .selectFrom('express_api_key_events')
    .$if(ownerId !== undefined, (query) => query.where('owner_id', '=', ownerId ?? ''))
    .$if(since !== undefined, (query) => query.where('at', '>=', since ?? 0))
    .$if(before !== undefined, (query) => query.where('at', '<', before ?? 0))
}

/** The ids first, then what they name: not every database deletes with a limit. */
async function pruneEvents(
  on: Kysely<Tables>,
  choice: Parameters<Store['pruneEvents']>[0],
  limit: number,
): ReturnType<Store['pruneEvents']> {
  const found = await eventsIn(on, choice).select(['id', 'key_id']).orderBy('at').orderBy('id').limit(limit).execute()
  const keyIds = [...new Set('ownerId' in choice ? found.map((row) => row.key_id) : [])]
  const replays = keyIds.length === 0 ? 0 : await deleteReplaysOf(on, keyIds)
  const ids = found.map(({ id }) => id)
  if (ids.length > 0) await on.deleteFrom('express_api_key_events').where('id', 'in', ids).execute()
  return { events: ids.length, replays }
}

async function pruneReplays(on: Kysely<Tables>, before: number, limit: number): Promise<number> {
  const found = await on
    .selectFrom('express_api_key_replays')
    .select('id')
    .where('created_at', '<', before)
    .where('expires_at', '<', before)
    .orderBy('created_at')
    .limit(limit)
    .execute()
  const ids = found.map(({ id }) => id)
  if (ids.length > 0) await on.deleteFrom('express_api_key_replays').where('id', 'in', ids).execute()
  return ids.length
}

async function deleteReplaysOf(on: Kysely<Tables>, keyIds: readonly string[]): Promise<number> {
  const found = await on.selectFrom('express_api_key_replays').select('id').where('key_id', 'in', keyIds).execute()
  // By key, as they were counted: there may be more of them than one statement has places for.
  if (found.length > 0) await on.deleteFrom('express_api_key_replays').where('key_id', 'in', keyIds).execute()
  return found.length
}

type Steps = Pick<StoreTransaction, 'appendEvents' | 'endKeys' | 'removeKeys'>

/** What a store does for housekeeping inside of the core's transactions, for many keys at once. */
export function housekeepingSteps(on: Kysely<Tables>, dialect: Dialect): Steps {
  return {
    async appendEvents(rows) {
      if (rows.length > 0) await on.insertInto('express_api_key_events').values(rows.map(eventColumns)).execute()
    },

    async endKeys(ids, { at, reason }) {
      const locked = await on.selectFrom('express_api_keys').select('id').where('id', 'in', ids).where('revoked_at', 'is', null).execute()
      const ending = locked.map(({ id }) => id)
      if (ending.length === 0) return []
      const digests = await retire(on, dialect, ending, { at, by: null, reason: 'revoked' })
      await on
        .updateTable('express_api_keys')
        .set({ revoked_at: at, revoked_reason: reason, updated_at: sql`case when updated_at < ${at} then ${at} else updated_at + 1 end` })
        .where('id', 'in', ending)
        .execute()
      await eraseSealsOf(on, ending)
      return digests
    },

    async removeKeys(ids, what) {
      if (ids.length === 0) return { keys: 0, replays: 0, tombstones: 0, digests: [] }
      const there = await on.selectFrom('express_api_keys').select('id').where('id', 'in', ids).execute()
      const generations = await on
        .selectFrom('express_api_key_generations')
        .select(['digest', 'retired_at', 'grace_ends_at'])
        .where('key_id', 'in', ids)
        .execute()
      await on
        .updateTable('express_api_key_generations')
        .set({ ...BLANK, key_id: sql.ref('digest') })
        .where('key_id', 'in', ids)
        .execute()
      await eraseSealsOf(on, ids)
      const replays = what === 'removed' ? await deleteReplaysOf(on, ids) : 0
      if (what === 'kept') await on.updateTable('express_api_key_replays').set({ caller_id: '' }).where('key_id', 'in', ids).execute()
      await on.deleteFrom('express_api_keys').where('id', 'in', ids).execute()
      const known = generations.filter((row) => row.retired_at === null || row.grace_ends_at !== null)
      return { keys: there.length, replays, tombstones: generations.length, digests: known.map(({ digest }) => digest) }
    },
  }
}

/** What a tombstone holds beside the digest. */
const { digest: _digest, key_id: _keyId, ...BLANK } = generationColumns(tombstoneOf(''))

/** Erases the seal of every record about these keys, and of every answer that they were given, but for the record named. */
export async function eraseSealsOf(on: Kysely<Tables>, keyIds: readonly string[], exceptId: string | null = null): Promise<void> {
  await on
    .updateTable('express_api_key_replays')
    .set({ sealed: null })
    .where((is) => is.or([is('key_id', 'in', keyIds), is('caller_id', 'in', keyIds)]))
    .where('sealed', 'is not', null)
    .$if(exceptId !== null, (query) => query.where('id', '!=', exceptId ?? ''))
    .execute()
}
