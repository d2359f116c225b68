import { type CompiledQuery, type RawBuilder, sql } from 'kysely'
import type { FeedReader, GenerationRow, KeyRow, ReplayRow } from '../store.js'
import type { Database } from './database.js'
import { changesAfter, NOWHERE } from './feed.js'
import { type GenerationTable, generationRow, type KeyTable, keyRow, type ReplayTable, replayRow } from './rows.js'

/** Finds what has one of these digests or ids, together with the settings: the answer has a row even where nothing is found. */
export type ReadQuery<Row> = (ids: readonly string[], reader?: FeedReader) => Promise<readonly Row[]>

/** What every row of a read has. */
export interface Answered {
  readonly lease_ms: number
  readonly at: number | null
  readonly standby: number
  readonly outdated: number
  readonly protocol: number
  /** What was asked of row-level security. */
  readonly hidden: string
}
export type ReadRow = Answered & FeedColumns & Joined<'k', KeyTable> & Joined<'g', GenerationTable>
export type ReplaysRow = Answered & { readonly earlier_lease_ms: number } & Joined<'r', ReplayTable> & Joined<'g', GenerationTable>

/** What a read says of the feed and of its reader. */
interface FeedColumns {
  readonly store_id: string
  readonly server: string | null
  readonly seq: number
  readonly tag: string
  readonly pruned_to: number
  /** See `changesIn`; in the first row only. */
  readonly changes: string | null
  readonly tag_after: string | null
  /** Null where the reader is no member. */
  readonly member_revoked: number | null
}

/** The columns of a table under an alias; all null where it has no such row. */
type Joined<Alias extends string, Table> = { readonly [column in keyof Table & string as `${Alias}_${column}`]: Table[column] | null }

/**
 * Makes the read behind every lease. It is compiled once for 1, 2, 4, … digests, with the first one repeated up to there: compiling it each time
 * would cost the process more than the answer does. The digests and the reader are its only parameters; what else it compares is written out.
 */
export function readQuery(database: Database, hidden: RawBuilder<string>, server: RawBuilder<string | null>): ReadQuery<ReadRow> {
  const compiled = new Map<number, CompiledQuery<ReadRow>>()

  return async (given, { session = '', after = NOWHERE } = {}) => {
    const digests = [...given]
    const size = digests.length === 0 ? 0 : 2 ** Math.ceil(Math.log2(digests.length))
    while (digests.length < size) digests.push(digests[0] as string)
    const query = compiled.get(size) ?? compile(digests)
    compiled.set(size, query)
    // In the order in which the statement names them.
    const parameters = [after, session, after, ...digests]
    return (await database.db.executeQuery<ReadRow>({ ...query, parameters })).rows
  }

  function compile(digests: readonly string[]): CompiledQuery<ReadRow> {
    const feed = feedQuery(database, server)
    // Most reads ask for changes alone, and the database plans each anew: what they do not need would cost it more than what they do.
    const query = digests.length === 0 ? feed.select(sql`''`.as('hidden')) : withKeys(feed, digests).select(hidden.as('hidden'))
    return query.$castTo<ReadRow>().compile()
  }
}

function feedQuery(database: Database, server: RawBuilder<string | null>) {
  const { db, dialect } = database
  // All of them in each row would be the product of two long lists.
  const changes = sql<string | null>`case when row_number() over () = 1 then ${changesAfter(database, NOWHERE)} end`
  return db
    .selectFrom('express_api_key_settings as s')
    .innerJoin('express_api_key_feed as f', 'f.id', 's.id')
    .leftJoin('express_api_key_instances as m', (join) => join.on('m.session', '=', ''))
    .leftJoin('express_api_key_changes as a', (join) => join.on('a.seq', '=', NOWHERE))
    .where('s.id', '=', sql.lit(1))
    .select([changes.as('changes'), 'f.seq', 'f.tag', 'f.pruned_to', 'a.tag as tag_after', 'm.revoked as member_revoked'])
    .select(['s.lease_ms', 's.store_id', 's.protocol', server.as('server')])
    .select([dialect.readClock.as('at'), dialect.standby.as('standby'), dialect.outdated.as('outdated')])
}

function withKeys(query: ReturnType<typeof feedQuery>, digests: readonly string[]) {
  return query
    .leftJoin('express_api_key_generations as g', (join) => join.on('g.digest', 'in', digests))
    .leftJoin('express_api_keys as k', 'k.id', 'g.key_id')
    .select(GENERATION.map((column) => `g.${column} as g_${column}` as const))
    .select(KEY.map((column) => `k.${column} as k_${column}` as const))
}

/** Makes the read of replay records, each with the generation that its change made. */
export function replaysQuery({ db, dialect }: Database, hidden: RawBuilder<string>): ReadQuery<ReplaysRow> {
  return (ids) =>
    db
      .selectFrom('express_api_key_settings as s')
      .leftJoin('express_api_key_replays as r', (join) => join.on('r.id', 'in', ids.length > 0 ? [...ids] : ['']))
      .leftJoin('express_api_key_generations as g', (join) =>
        join.onRef('g.key_id', '=', 'r.key_id').onRef('g.generation', '=', 'r.generation'),
      )
      .where('s.id', '=', 1)
      .select(['s.lease_ms', 's.earlier_lease_ms', 's.protocol'])
      .select([dialect.readClock.as('at'), dialect.standby.as('standby'), dialect.outdated.as('outdated'), hidden.as('hidden')])
      .select(REPLAY.map((column) => `r.${column} as r_${column}` as const))
      .select(GENERATION.map((column) => `g.${column} as g_${column}` as const))
      .$castTo<ReplaysRow>()
      .execute()
}

export function keyOf(row: ReadRow): KeyRow | undefined {
  // Undefined where none was asked for.
  if ((row.k_id ?? null) === null) return undefined
  // The secret that was presented may be an earlier one.
  const madeAt = row.g_generation === row.k_generation ? row.g_created_at : null
  return keyRow(part<KeyTable, ReadRow>(row, KEY_PART), madeAt)
}

export function generationOf(row: ReadRow | ReplaysRow): GenerationRow | undefined {
  return (row.g_digest ?? null) === null ? undefined : generationRow(part<GenerationTable, ReadRow | ReplaysRow>(row, GENERATION_PART))
}

export function replayOf(row: ReplaysRow): ReplayRow | undefined {
  return row.r_id === null ? undefined : replayRow(part<ReplayTable, ReplaysRow>(row, REPLAY_PART))
}

const KEY = [
  'id',
  'owner_id',
  'name',
  'environment',
  'scopes',
  'metadata',
  'allowed_ips',
  'generation',
  'created_at',
  'updated_at',
  'expires_at',
  'disabled_at',
  'revoked_at',
  'revoked_reason',
  'rotated_to',
  'secret_start',
  'secret_last4',
  'secret_created_at',
  'last_used_at',
  'last_used_ip',
  'last_used_user_agent',
] as const satisfies readonly (keyof KeyTable)[]

const GENERATION = [
  'digest',
  'key_id',
  'generation',
  'created_at',
  'retired_at',
  'retired_by',
  'retired_reason',
  'first_used_at',
  'secret_start',
  'secret_last4',
  'grace_ends_at',
  'retires_earlier',
  'rotation_secret_hash',
] as const satisfies readonly (keyof GenerationTable)[]

const REPLAY = [
  'id',
  'caller_id',
  'key_id',
  'generation',
  'fingerprint',
  'sealed',
  'created_at',
  'window_ms',
  'grace_ms',
  'expires_at',
  'settled_at',
] as const satisfies readonly (keyof ReplayTable)[]

/** The columns of one table in the answer of a read, by what they are called there. */
const KEY_PART = KEY.map((column) => [column, `k_${column}`] as const)
const GENERATION_PART = GENERATION.map((column) => [column, `g_${column}`] as const)
const REPLAY_PART = REPLAY.map((column) => [column, `r_${column}`] as const)

function part<Table, Row>(row: Row, columns: readonly (readonly [keyof Table, keyof Row])[]): Table {
  const own: Partial<Record<keyof Table, unknown>> = {}
  for (const [column, alias] of columns) own[column] = row[alias]
  return own as Table
}
