import type { Kysely } from 'kysely'
import type { ApiKeyError } from '../../errors.js'
import { digestsOf } from '../feed.js'
import type { Store, StoreTransaction } from '../store.js'
import type { Database } from './database.js'
import type { Dialect } from './dialect.js'
import { storeError } from './driver-errors.js'
import { refuseOtherProtocol } from './feed.js'
import { eraseSealsOf, housekeepingSteps } from './housekeeping.js'
import { retire } from './retire.js'
import {
  eventColumns,
  generationColumns,
  generationRow,
  keyColumns,
  keyRow,
  madeAt,
  replayColumns,
  replayRow,
  type Tables,
} from './rows.js'
import { inTransaction } from './transaction.js'

/** The transactions of the core. */
export function transactions(database: Database): Store['transaction'] {
  const { dialect } = database
  return (work) =>
    inTransaction(database, async (on, changed) => {
      let failed: ApiKeyError | undefined
      const note = (error: ApiKeyError): void => {
        failed ??= error
      }
      const result = await work(translated(steps(on, dialect, changed), dialect, note))
      // PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and says no more about it.
      if (failed !== undefined) throw failed
      return result
    })
}

/** What a transaction can do, over the connection that it has. */
export function steps(on: Kysely<Tables>, dialect: Dialect, changed: Set<string>): StoreTransaction {
  return {
    now: () => dialect.now(on),

    async waitMs() {
      const query = dialect.forShare(on.selectFrom('express_api_key_settings').selectAll().where('id', '=', 1))
      const row = await query.executeTakeFirstOrThrow()
      refuseOtherProtocol(row.protocol)
      return Math.max(Number(row.lease_ms), Number(row.earlier_lease_ms))
    },

    lockName: (name) => dialect.lockName(on, name),

    ...keySteps(on, dialect),
    ...generationSteps(on, dialect),
    ...replaySteps(on),
    ...housekeepingSteps(on, dialect),

    async appendEvent(row) {
      await on.insertInto('express_api_key_events').values(eventColumns(row)).execute()
    },

    async appendChange(digests) {
      for (const digest of digestsOf(digests)) changed.add(digest)
    },
  }
}

/** What the driver throws becomes an error of ours at each step, so that what `work` throws itself can pass as it is. */
function translated(steps: StoreTransaction, { errors }: Dialect, failed: (error: ApiKeyError) => void): StoreTransaction {
  const entries = Object.entries(steps).map(([name, step]: [string, (...args: never[]) => Promise<unknown>]) => [
    name,
    (...args: never[]) =>
      step(...args).catch((error: unknown) => {
        const known = storeError(error, errors)
        failed(known)
        throw known
      }),
  ])
  return Object.fromEntries(entries) as StoreTransaction
}

function keySteps(on: Kysely<Tables>, dialect: Dialect): Pick<StoreTransaction, 'lockKeys' | 'insertKey' | 'insertKeys' | 'updateKey'> {
  return {
    async lockKeys(ids) {
      if (ids.length === 0) return []
      const query = on
        .selectFrom('express_api_keys')
        .selectAll()
        .select(madeAt)
        .where('id', 'in', [...ids])
        .orderBy('id')
      return (await dialect.forUpdate(query).execute()).map((row) => keyRow(row, row.made_at))
    },

    async insertKey(row) {
      await on.insertInto('express_api_keys').values(keyColumns(row)).execute()
    },

    async insertKeys(rows) {
      if (rows.length === 0) return
      await on
        .insertInto('express_api_keys')
        .values(rows.map(({ key }) => keyColumns(key)))
        .execute()
      await on
        .insertInto('express_api_key_generations')
        .values(rows.map(({ generation }) => generationColumns(generation)))
        .execute()
    },

    async updateKey(row) {
      const {
        id,
        owner_id: _owner,
        environment: _environment,
        created_at: _created,
        last_used_at: _at,
        last_used_ip: _ip,
        last_used_user_agent: _agent,
        ...changes
      } = keyColumns(row)
      await on.updateTable('express_api_keys').set(changes).where('id', '=', id).execute()
    },
  }
}

function generationSteps(
  on: Kysely<Tables>,
  dialect: Dialect,
): Pick<StoreTransaction, 'generation' | 'knownDigests' | 'generationOf' | 'insertGeneration' | 'retireGenerations' | 'lowerGrace'> {
  return {
    async generation(digest) {
      const row = await on.selectFrom('express_api_key_generations').selectAll().where('digest', '=', digest).executeTakeFirst()
      return row && generationRow(row)
    },

    async knownDigests(digests) {
      if (digests.length === 0) return []
      const rows = await on
        .selectFrom('express_api_key_generations')
        .select('digest')
        .where('digest', 'in', [...digests])
        .execute()
      return rows.map(({ digest }) => digest)
    },

    async generationOf(keyId, generation) {
      const row = await on
        .selectFrom('express_api_key_generations')
        .selectAll()
        .where('key_id', '=', keyId)
        .where('generation', '=', generation)
        .executeTakeFirst()
      return row && generationRow(row)
    },

    async insertGeneration(row) {
      await on.insertInto('express_api_key_generations').values(generationColumns(row)).execute()
    },

    retireGenerations: (keyId, change) => retire(on, dialect, [keyId], change),

    async lowerGrace(keyId, generation, { from, to }) {
      await on
        .updateTable('express_api_key_generations')
        .set({ grace_ends_at: to })
        .where('key_id', '=', keyId)
        .where('generation', '=', generation)
        .where('grace_ends_at', '=', from)
        .where('grace_ends_at', '>', to)
        .execute()
    },
  }
}

function replaySteps(on: Kysely<Tables>): Pick<StoreTransaction, 'replay' | 'insertReplay' | 'reseal' | 'eraseReplays'> {
  return {
    async replay(ids) {
      const row = await on
        .selectFrom('express_api_key_replays')
        .selectAll()
        .where('id', 'in', [...ids])
        .executeTakeFirst()
      return row && replayRow(row)
    },

    async insertReplay(row) {
      await on.insertInto('express_api_key_replays').values(replayColumns(row)).execute()
    },

    async reseal(replayId, { from, to }) {
      // Looked at under the lock of the key, which every writer of a seal holds: not every driver says how many rows it has updated.
      const row = await on.selectFrom('express_api_key_replays').select('sealed').where('id', '=', replayId).executeTakeFirst()
      if (row?.sealed !== from) return false
      await on.updateTable('express_api_key_replays').set({ sealed: to }).where('id', '=', replayId).where('sealed', '=', from).execute()
      return true
    },

    eraseReplays: (keyId, exceptId) => eraseSealsOf(on, [keyId], exceptId),
  }
}
