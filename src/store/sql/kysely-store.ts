import type { Kysely } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import type { Store } from '../store.js'
import { type DatabaseFacts, STORE_TOOLS, type StoreTools } from '../tools.js'
import type { Database } from './database.js'
import type { MakeDialect } from './dialect.js'
import { storeError } from './driver-errors.js'
import { housekeeping } from './housekeeping.js'
import { faults } from './late-failures.js'
import { members } from './members.js'
import { isMigrated, migrate, migrationScript, versions } from './migrations.js'
import { bounded, reads } from './reads.js'
import type { Tables } from './rows.js'
import { transactions } from './steps.js'
import { placesOf, placing } from './table-names.js'
import type { Timeouts } from './timeouts.js'
import { inOwnTransaction } from './transaction.js'
import { writes } from './writes.js'

/** A store, and what whoever runs its database may ask. */
export type SqlStore = Store & { readonly [STORE_TOOLS]: StoreTools }

/** The store that every entry for an SQL database is. */
// biome-ignore lint/suspicious/noExplicitAny: the application's own tables are none of our business
export function kyselyStore(kysely: Kysely<any>, makeDialect: MakeDialect, timeouts: Timeouts): SqlStore {
  const places = placesOf(kysely)
  const placed = placing(places)
  const plain = kysely.withoutPlugins() as Kysely<Tables>
  const dialect = makeDialect(places, timeouts)
  const lateFailures = faults()
  const database: Database = {
    db: placed === undefined ? plain : plain.withPlugin(placed),
    places,
    dialect,
    timeouts,
    missed(error) {
      if (error instanceof ApiKeyError || dialect.errors.isBusy(error)) return
      lateFailures.tell(storeError(error, dialect.errors))
    },
  }

  return {
    shared: true,

    [STORE_TOOLS]: {
      database: dialect.database,
      versions: () => bounded(database, () => versions(database)),
      migrationScript: (from) => migrationScript(database, from),
      inspect: () => bounded(database, () => inspect(database), timeouts.transactionTimeoutMs),
    },

    async migrate() {
      if (await bounded(database, () => isMigrated(database), timeouts.transactionTimeoutMs)) return
      await inOwnTransaction(database, (on) => migrate(on, database))
    },

    ...reads(database),
    ...writes(database),
    ...members(database),
    ...housekeeping(database),
    transaction: transactions(database),
    onFault: lateFailures.on,

    async close() {},
  }
}

async function inspect({ db, dialect }: Database): Promise<DatabaseFacts> {
  const facts = await db.connection().execute((on) => dialect.inspect(on))
  return { ...facts, poolSize: undefined }
}
