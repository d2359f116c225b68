import { type RawBuilder, sql } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { inTime } from '../../in-time.js'
import { wallMs } from '../../real-time.js'
import { dense } from '../feed.js'
import type { AuthorityAnswer, FeedAnswer, FeedReader, KeyFilters, ReplayAnswer, Store } from '../store.js'
import type { Database } from './database.js'
import { insideTransaction, standbyAnswered, storeError } from './driver-errors.js'
import { changesIn, refuseOtherProtocol } from './feed.js'
import { type Answered, generationOf, keyOf, type ReadQuery, type ReadRow, readQuery, replayOf, replaysQuery } from './read-query.js'
import { refuseHiding } from './row-security.js'
import { eventRow, generationRow, keyRow, madeAt } from './rows.js'
import { moment, tooLate } from './timeouts.js'

type Reads = Pick<Store, 'read' | 'replays' | 'key' | 'keys' | 'events'>

/** What a store does outside of transactions. */
export function reads(database: Database): Reads {
  const read = reading(database)
  const replays = readingReplays(database)
  return {
    read: (digests, reader = {}) => bounded(database, () => read(digests, reader)),
    replays: (ids) => bounded(database, () => replays(ids)),
    key: (id) => bounded(database, () => key(database, id)),
    keys: (query) => bounded(database, () => keys(database, query)),
    events: (query) => bounded(database, () => events(database, query)),
  }
}

/** Rejects what is not done in time. A read that meets a lock, such as that of SQLite's switch to WAL, waits for it. */
export function bounded<T>(database: Database, work: () => Promise<T>, ms: number = database.timeouts.readTimeoutMs): Promise<T> {
  const { errors } = database.dialect
  let over = false
  const asked = async (): Promise<T> => {
    for (;;) {
      try {
        return await work()
      } catch (error) {
        if (!errors.isBusy(error) || over) throw error
        await moment()
      }
    }
  }
  const late = (): ApiKeyError => {
    over = true
    return tooLate()
  }
  return inTime(ms, asked(), late, database.missed).catch((error) => Promise.reject(storeError(error, errors)))
}

function reading(database: Database): (digests: readonly string[], reader: FeedReader) => Promise<AuthorityAnswer> {
  const { rowSecurity } = database.dialect
  const rowsOf = namingServer(database, (server) => {
    const query = readQuery(database, rowSecurity.mayHide(['express_api_key_generations', 'express_api_keys']), server)
    const careful = readQuery(database, rowSecurity.hides, server)
    return (digests: readonly string[], reader: FeedReader) =>
      complete(
        database,
        { query: (ids) => query(ids, reader), careful: (ids) => careful(ids, reader) },
        digests,
        (row) => row.k_id !== null,
      )
  })
  return async (digests, reader) => {
    const before = wallMs()
    const rows = await rowsOf(digests, reader)
    const first = answeredByPrimary(rows[0])
    const found = rows.flatMap((row) => {
      const [key, generation] = [keyOf(row), generationOf(row)]
      return key === undefined || generation === undefined ? [] : [{ key, generation }]
    })
    return {
      at: instantOf(first, before),
      storeId: first.store_id,
      server: first.server ?? undefined,
      leaseMs: Number(first.lease_ms),
      feed: await feedOf(database, first, reader),
      member: first.member_revoked === null ? 'none' : Number(first.member_revoked) === 0 ? 'active' : 'revoked',
      found,
    }
  }
}

async function feedOf(database: Database, row: ReadRow, { after }: FeedReader): Promise<FeedAnswer> {
  const [seq, prunedTo] = [Number(row.seq), Number(row.pruned_to)]
  try {
    const changes = dense(changesIn(row.changes), { seq, prunedTo, after })
    return { seq, tag: row.tag, prunedTo, tagAfter: row.tag_after ?? undefined, changes }
  } catch (error) {
    await refuseMissing(database)
    throw error
  }
}

/** Asks for the name of the server in every statement, until the database refuses to tell it: to this role, or to anybody. */
export function namingServer<Asked extends readonly unknown[], Answer>(
  { dialect }: Database,
  make: (server: RawBuilder<string | null>) => (...asked: Asked) => Promise<Answer>,
): (...asked: Asked) => Promise<Answer> {
  const [named, nameless] = [make(dialect.server), make(sql`null`)]
  let isRefused = false
  return async (...asked) => {
    if (isRefused) return nameless(...asked)
    try {
      return await named(...asked)
    } catch (error) {
      if (error instanceof ApiKeyError || dialect.errors.isBusy(error) || !dialect.errors.answered(error)) throw error
      const answer = await nameless(...asked)
      isRefused = storeError(error, dialect.errors).code === 'store_misconfigured'
      return answer
    }
  }
}

function readingReplays(database: Database): Reads['replays'] {
  const { rowSecurity } = database.dialect
  const query = replaysQuery(database, rowSecurity.mayHide(['express_api_key_replays', 'express_api_key_generations']))
  const careful = replaysQuery(database, rowSecurity.hides)
  return async (ids): Promise<ReplayAnswer> => {
    const before = wallMs()
    const isWhole = (row: { r_id: unknown; r_generation: unknown; g_digest: unknown }): boolean =>
      row.r_id !== null && (row.r_generation === null || row.g_digest !== null)
    const rows = await complete(database, { query, careful }, ids, isWhole)
    const first = answeredByPrimary(rows[0])
    const found = rows.flatMap((row) => {
      const record = replayOf(row)
      return record === undefined ? [] : [{ record, made: generationOf(row) }]
    })
    return { at: instantOf(first, before), waitMs: Math.max(Number(first.lease_ms), Number(first.earlier_lease_ms)), found }
  }
}

async function key(database: Database, id: string): ReturnType<Reads['key']> {
  const row = await database.db.selectFrom('express_api_keys').selectAll().where('id', '=', id).executeTakeFirst()
  const generation =
    row &&
    (await database.db
      .selectFrom('express_api_key_generations')
      .selectAll()
      .where('key_id', '=', id)
      .orderBy('generation', 'desc')
      .limit(1)
      .executeTakeFirst())
  if (row && generation) return { key: keyRow(row, generation.created_at), generation: generationRow(generation) }
  await refuseMissing(database)
  return undefined
}

async function keys(database: Database, { after, limit, ...filters }: Parameters<Reads['keys']>[0]): ReturnType<Reads['keys']> {
  const rows = await database.db
    .selectFrom('express_api_keys')
    .selectAll()
    .select(madeAt)
    .where(sql.join([sql<boolean>`1 = 1`, ...conditions(database, filters)], sql` and `) as RawBuilder<boolean>)
    .$if(after !== undefined, (query) => query.where(sql<boolean>`(created_at, id) < (${after?.at}, ${after?.id})`))
    .orderBy('created_at', 'desc')
    .orderBy('id', 'desc')
    .limit(limit)
    .execute()
  if (rows.length < limit) await refuseMissing(database)
  return rows.map((row) => keyRow(row, row.made_at))
}

function conditions({ dialect }: Database, filters: KeyFilters): readonly RawBuilder<unknown>[] {
  const { ownerId, status, environment, expiresBefore, lastUsedBefore, name, last4 } = filters
  const now = dialect.clock()
  return [
    ...(ownerId === undefined ? [] : [sql`owner_id = ${ownerId}`]),
    ...(status === 'revoked' ? [sql`revoked_at is not null`] : []),
    ...(status === 'disabled' ? [sql`revoked_at is null and disabled_at is not null`] : []),
    ...(status === 'expired' ? [sql`revoked_at is null and disabled_at is null and expires_at <= ${now}`] : []),
    ...(status === 'active' ? [sql`revoked_at is null and disabled_at is null and (expires_at is null or expires_at > ${now})`] : []),
    ...(environment === undefined ? [] : [sql`environment = ${environment}`]),
    ...(expiresBefore === undefined ? [] : [sql`expires_at < ${expiresBefore}`]),
    ...(lastUsedBefore === undefined ? [] : [sql`coalesce(last_used_at, created_at) < ${lastUsedBefore}`]),
    ...(name === undefined ? [] : [sql`${dialect.loweredName} like ${patternOf(name)} escape '!'`]),
    ...(last4 === undefined ? [] : [sql`secret_last4 = ${last4}`]),
  ]
}

/** Finds a text anywhere, with nothing in it that is a wildcard. */
function patternOf(text: string): string {
  const lowered = text.replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase())
  return `%${lowered.replaceAll(/[!%_]/g, '!$&')}%`
}

async function events(database: Database, { keyId, after, limit }: Parameters<Reads['events']>[0]): ReturnType<Reads['events']> {
  const rows = await database.db
    .selectFrom('express_api_key_events')
    .selectAll()
    .where('key_id', '=', keyId)
    .$if(after !== undefined, (query) => query.where(sql<boolean>`(at, id) < (${after?.at}, ${after?.id})`))
    .orderBy('at', 'desc')
    .orderBy('id', 'desc')
    .limit(limit)
    .execute()
  if (rows.length < limit) await refuseMissing(database)
  return rows.map(eventRow)
}

/**
 * The rows of a read. Where some are missing and row-level security may hide them, one statement reads them again together with what is hidden:
 * between two statements somebody could let the role see them, and a live key would pass for one that never was.
 */
async function complete<Row extends Answered>(
  database: Database,
  { query, careful }: { readonly query: ReadQuery<Row>; readonly careful: ReadQuery<Row> },
  ids: readonly string[],
  isWhole: (row: Row) => boolean,
): Promise<readonly Row[]> {
  const rows = await query(ids)
  const [first] = rows
  if (first === undefined) await refuseMissing(database)
  if (first === undefined || first.hidden === '' || rows.filter(isWhole).length >= ids.length) return rows
  const again = await careful(ids)
  refuseHiding(again[0]?.hidden)
  return again
}

/** What is not found may only be hidden. */
export function refuseMissing({ db, dialect }: Database): Promise<void> {
  return dialect.rowSecurity.refuseHidden(db)
}

/** The first row of a read, which has the settings in it. */
export function answeredByPrimary<Row extends Pick<Answered, 'standby' | 'outdated' | 'protocol'>>(first: Row | undefined): Row {
  if (first === undefined)
    throw new ApiKeyError('store_misconfigured', 'The row of settings or of the feed is missing; call keys.migrate() first.')
  if (Number(first.standby) !== 0) throw standbyAnswered()
  if (Number(first.outdated) !== 0) throw insideTransaction()
  refuseOtherProtocol(first.protocol)
  return first
}

/** Whatever a read does not show is committed later than this: see `Dialect.readClock`. */
export function instantOf({ at }: Pick<Answered, 'at'>, before: number): number {
  return at === null ? before : Number(at)
}
