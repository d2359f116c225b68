import { type CompiledQuery, type RawBuilder, sql } from 'kysely'
import type { GenerationRow, KeyRow, ReplayRow } from '../store.js'
import type { Database } from './database.js'
import { type GenerationTable, generationRow, type KeyTable, keyRow, type ReplayTable, replayRow } from './rows.js'

/** Finds what has one of these digests or ids, together with the settings: the answer has a row even where nothing is found. */
export type ReadQuery<Row> = (ids: readonly string[]) => Promise<readonly Row[]>

/** What every row of a read has. */
export interface Answered {
  readonly lease_ms: number
  readonly at: number | null
  readonly standby: number
  /** What was asked of row-level security. */
  readonly hidden: string
}
export type ReadRow = Answered & { readonly store_id: string } & Joined<'k', KeyTable> & Joined<'g', GenerationTable>
export type ReplaysRow = Answered & { readonly earlier_lease_ms: number } & Joined<'r', ReplayTable> & Joined<'g', GenerationTable>

/** The columns of a table under an alias; all null where it has no such row. */
type Joined<Alias extends string, Table> = { readonly [column in keyof Table & string as `${Alias}_${column}`]: Table[column] | null }

/**
 * Makes the read behind every lease. It is compiled once for 1, 2, 4, … digests, with the first one repeated up to there: compiling it each time
 * would cost the process more than the answer does. The digests are its only parameters; what else it compares is written out.
 */
export function readQuery({ db, dialect }: Database, hidden: RawBuilder<string>): ReadQuery<ReadRow> {
  const compiled = new Map<number, CompiledQuery<ReadRow>>()

  return async (digests) => {
    const parameters = digests.length > 0 ? [...digests] : ['']
    const size = 2 ** Math.ceil(Math.log2(parameters.length))
    while (parameters.length < size) parameters.push(parameters[0] as string)
    const query = compiled.get(size) ?? compile(parameters)
    compiled.set(size, query)
    return (await db.executeQuery<ReadRow>({ ...query, parameters })).rows
  }

  function compile(parameters: readonly string[]): CompiledQuery<ReadRow> {
    return db
      .selectFrom('express_api_key_settings as s')
      .leftJoin('express_api_key_generations as g', (join) => join.on('g.digest', 'in', parameters))
      .leftJoin('express_api_keys as k', 'k.id', 'g.key_id')
      .where('s.id', '=', sql.lit(1))
      .select(['s.lease_ms', 's.store_id', dialect.readClock.as('at'), dialect.standby.as('standby'), hidden.as('hidden')])
      .select(GENERATION.map((column) => `g.${column} as g_${column}` as const))
      .select(KEY.map((column) => `k.${column} as k_${column}` as const))
      .compile()
  }
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
      .select(['s.lease_ms', 's.earlier_lease_ms', dialect.readClock.as('at'), dialect.standby.as('standby'), hidden.as('hidden')])
      .select(REPLAY.map((column) => `r.${column} as r_${column}` as const))
      .select(GENERATION.map((column) => `g.${column} as g_${column}` as const))
      .$castTo<ReplaysRow>()
      .execute()
}

export function keyOf(row: ReadRow): KeyRow | undefined {
  if (row.k_id === null) return undefined
  // The secret that was presented may be an earlier one.
  const madeAt = row.g_generation === row.k_generation ? row.g_created_at : null
  return keyRow(part<KeyTable, ReadRow>(row, KEY_PART), madeAt)
}

export function generationOf(row: ReadRow | ReplaysRow): GenerationRow | undefined {
  return row.g_digest === null ? undefined : generationRow(part<GenerationTable, ReadRow | ReplaysRow>(row, GENERATION_PART))
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
  'generation',
  'created_at',
  'updated_at',
  'expires_at',
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
