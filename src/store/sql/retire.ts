import type { Kysely } from 'kysely'
import type { StoreTransaction } from '../store.js'
import type { Dialect } from './dialect.js'
import type { GenerationTable, Tables } from './rows.js'

/** Retires the generations of some keys, as `retireGenerations` says. */
export async function retire(
  on: Kysely<Tables>,
  dialect: Dialect,
  keyIds: readonly string[],
  { at, by, reason, graceEndsAt }: Parameters<StoreTransaction['retireGenerations']>[1],
): Promise<readonly string[]> {
  // Locked before they are changed, since not every database says which rows an update has changed.
  const query = on
    .selectFrom('express_api_key_generations')
    .select(['digest', 'retired_at', 'grace_ends_at'])
    .where('key_id', 'in', keyIds)
    .where((is) => is.or([is('retired_at', 'is', null), is('grace_ends_at', 'is not', null)]))
    .orderBy('key_id')
    .orderBy('generation')
  const locked = await dialect.forUpdate(query).execute()
  const isOver = ({ grace_ends_at: end }: { grace_ends_at: number | null }): boolean => end !== null && Number(end) <= at
  const over = locked.filter(isOver).map(({ digest }) => digest)
  const accepted = locked.filter((row) => row.retired_at === null || !isOver(row)).map(({ digest }) => digest)
  const update = (digests: readonly string[], change: Partial<GenerationTable>): Promise<unknown> =>
    on.updateTable('express_api_key_generations').set(change).where('digest', 'in', digests).execute()
  // What is over stays over: a clock that is set back would have it begin again.
  if (over.length > 0) await update(over, { grace_ends_at: null })
  if (accepted.length > 0)
    await update(accepted, { retired_at: at, retired_by: by, retired_reason: reason, grace_ends_at: graceEndsAt ?? null })
  return locked.map(({ digest }) => digest)
}
