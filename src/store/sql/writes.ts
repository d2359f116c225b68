import { randomInt } from 'node:crypto'
import { type Kysely, sql } from 'kysely'
import type { KeyUse, LeaseChange, Store, StoreTransaction } from '../store.js'
import type { Database } from './database.js'
import { refuseOtherProtocol } from './feed.js'
import { type LastUse, recordUse } from './last-use.js'
import type { Tables } from './rows.js'
import { steps } from './steps.js'
import { inOwnTransaction } from './transaction.js'

type Writes = Pick<Store, 'markFirstUse' | 'settleFirstUse' | 'recordUses' | 'settle' | 'eraseSeals' | 'setLease' | 'settleLease'>

/**
 * What a store writes by itself. Single statements open a transaction like all others, whatever the defaults of the role or the database. On SQLite
 * they too take the write lock first: a statement that meets it halfway fails.
 */
export function writes(database: Database): Writes {
  const own = <T>(work: (on: Kysely<Tables>, changed: Set<string>) => Promise<T>): Promise<T> => inOwnTransaction(database, work)
  return {
    markFirstUse: (digest) => own((on, changed) => markFirstUse(steps(on, database.dialect, changed), on, digest)),

    settleFirstUse: (digest) => own((on, changed) => settleFirstUse(steps(on, database.dialect, changed), on, digest)),

    recordUses: (uses) => recordUses(database, uses),
    settle: (replayId, agoMs) => own((on) => settle(database, on, replayId, agoMs)),
    eraseSeals: () => own((on) => eraseSeals(database, on)),
    setLease: (leaseMs) => own((on) => setLease(database, on, leaseMs)),

    settleLease: (version) =>
      own(async (on) => {
        await on
          .updateTable('express_api_key_settings')
          .set({ earlier_lease_ms: 0 })
          .where('id', '=', 1)
          .where('lease_version', '=', version)
          .execute()
      }),
  }
}

async function markFirstUse(tx: StoreTransaction, on: Kysely<Tables>, digest: string): ReturnType<Writes['markFirstUse']> {
  const found = await tx.generation(digest)
  if (found === undefined) return { retired: [], waitMs: 0 }
  // The key's row first, as every change does: otherwise this and a rotation could wait for each other.
  if (found.retiresEarlier) await tx.lockKeys([found.keyId])
  const now = await tx.now()
  const generations = on.updateTable('express_api_key_generations')
  // A tombstone stays as bare as it is.
  const unused = generations.set({ first_used_at: now }).where('digest', '=', digest).where('first_used_at', 'is', null)
  await unused.where('generation', '>', 0).execute()
  if (!found.retiresEarlier) return { retired: [], waitMs: 0 }
  const earlier = await on
    .selectFrom('express_api_key_generations')
    .select(['digest', 'generation', 'grace_ends_at'])
    .where('key_id', '=', found.keyId)
    .where('generation', '<', found.generation)
    .where((is) => is.or([is('grace_ends_at', 'is not', null), is('generation', '=', found.generation - 1)]))
    .execute()
  const ended = earlier.filter((row) => row.grace_ends_at !== null).map((row) => row.digest)
  if (ended.length > 0) await generations.set({ grace_ends_at: null }).where('digest', 'in', ended).execute()
  await tx.appendChange(ended)
  const retired = earlier.filter((row) => Number(row.generation) === found.generation - 1).map((row) => row.digest)
  return { retired, waitMs: await tx.waitMs() }
}

/** What ended the grace period may have been lost since, with the server that it was committed on. */
async function settleFirstUse(tx: StoreTransaction, on: Kysely<Tables>, digest: string): Promise<void> {
  const found = await tx.generation(digest)
  if (found === undefined) return
  await tx.lockKeys([found.keyId])
  const generations = on.selectFrom('express_api_key_generations').select('digest').where('key_id', '=', found.keyId)
  const graced = generations.where('generation', '<', found.generation).where('grace_ends_at', 'is not', null)
  if ((await graced.executeTakeFirst()) !== undefined) return
  await on.updateTable('express_api_key_generations').set({ retires_earlier: 0 }).where('digest', '=', digest).execute()
}

async function recordUses(database: Database, uses: readonly KeyUse[]): Promise<void> {
  if (uses.length === 0) return
  const { dialect } = database
  const left = await inOwnTransaction(database, async (on) => {
    const now = await dialect.now(on)
    const latest = new Map<string, LastUse>(
      [...uses].sort((a, b) => b.agoMs - a.agoMs).map((use) => [use.keyId, { ...use, at: Math.floor(now - use.agoMs) }]),
    )
    return dialect.recordUses(on, [...latest.values()])
  })
  // One transaction each: it waits for a key that somebody is changing, and holds no other meanwhile.
  for (const use of left) await inOwnTransaction(database, (on) => recordUse(on, use))
}

async function settle({ dialect }: Database, on: Kysely<Tables>, replayId: string, agoMs: number): Promise<void> {
  const now = await dialect.now(on)
  const committedAt = Math.floor(now - agoMs)
  const ends = sql<number>`case when expires_at < ${committedAt} + window_ms then expires_at else ${committedAt} + window_ms end`
  await on
    .updateTable('express_api_key_replays')
    .set({ settled_at: now, expires_at: ends })
    .where('id', '=', replayId)
    .where('settled_at', 'is', null)
    .execute()
}

async function eraseSeals({ dialect }: Database, on: Kysely<Tables>): Promise<void> {
  const now = await dialect.now(on)
  await on
    .updateTable('express_api_key_replays as r')
    .set({ sealed: null })
    .where('r.sealed', 'is not', null)
    .where((is) =>
      is.or([
        is('r.expires_at', '<=', now),
        is.exists(
          is
            .selectFrom('express_api_key_generations as g')
            .select('g.digest')
            .whereRef('g.key_id', '=', 'r.key_id')
            .whereRef('g.generation', '=', 'r.generation')
            .where(sql<boolean>`g.first_used_at + r.grace_ms <= ${now}`),
        ),
      ]),
    )
    .execute()
}

/** At random, so that whoever ends an earlier lowering, which a fail-over has lost, does not end this one. */
const MOST_VERSION = 2 ** 31 - 1

async function setLease({ dialect }: Database, on: Kysely<Tables>, leaseMs: number): Promise<LeaseChange> {
  const query = on.selectFrom('express_api_key_settings').selectAll().where('id', '=', 1)
  const row = await dialect.forUpdate(query).executeTakeFirstOrThrow()
  refuseOtherProtocol(row.protocol)
  const [old, earlier, version] = [Number(row.lease_ms), Number(row.earlier_lease_ms), Number(row.lease_version)]
  if (old === leaseMs) return { waitMs: earlier, version }
  const change = leaseMs > old ? { waitMs: earlier, version } : { waitMs: Math.max(old, earlier), version: randomInt(1, MOST_VERSION) }
  await on
    .updateTable('express_api_key_settings')
    .set({ lease_ms: leaseMs, earlier_lease_ms: change.waitMs, lease_version: change.version })
    .where('id', '=', 1)
    .execute()
  return change
}
