import { type CompiledQuery, type Kysely, type RawBuilder, sql } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { integerOption, refuseUnknown } from '../../options.js'
import { clearTimeout, monotonicMs, setTimeout, wallMs } from '../../real-time.js'
import type { EventRow, GenerationRow, JsonObject, KeyRow, KeyUse, ReplayRow, Store, StoreTransaction } from '../store.js'
import { answered, driverCode, isBusy, storeError } from './driver-errors.js'
import { faults } from './late-failures.js'
import { isMigrated, type MigrationTarget, migrate } from './migrations.js'
import { hides, mayHide, refuseHidden, refuseHiding } from './row-security.js'
import { placesOf, placing, quoted } from './table-names.js'

export type SqlDialect = 'postgres' | 'sqlite'

export interface SqlStoreOptions {
  /** Which SQL to speak. Default: what the Kysely instance speaks. */
  dialect?: SqlDialect
  /** How long one read may take, in milliseconds: 10 to 600,000. Default 2,000. */
  readTimeoutMs?: number
  /** How long one transaction may take from asking for a connection to the answer of COMMIT, in milliseconds: 10 to 600,000. Default 5,000. */
  transactionTimeoutMs?: number
}

interface KeyTable {
  id: string
  owner_id: string
  name: string
  environment: string
  scopes: string
  metadata: string
  generation: number
  created_at: number
  updated_at: number
  expires_at: number | null
  revoked_at: number | null
  revoked_reason: string | null
  rotated_to: string | null
  secret_start: string
  secret_last4: string
  secret_created_at: number
  last_used_at: number | null
  last_used_ip: string | null
  last_used_user_agent: string | null
}
interface GenerationTable {
  digest: string
  key_id: string
  generation: number
  created_at: number
  retired_at: number | null
  retired_by: string | null
  retired_reason: string | null
  first_used_at: number | null
  secret_start: string
  secret_last4: string
  grace_ends_at: number | null
  retires_earlier: number
  rotation_secret_hash: string | null
}
interface ReplayTable {
  id: string
  caller_id: string
  key_id: string
  generation: number | null
  fingerprint: string
  sealed: string | null
  created_at: number
  window_ms: number
  grace_ms: number
  expires_at: number
  settled_at: number | null
}
interface EventTable {
  id: string
  key_id: string
  owner_id: string
  type: string
  at: number
  actor: string
  ip: string | null
  user_agent: string | null
  details: string
}
interface Tables {
  express_api_keys: KeyTable
  express_api_key_generations: GenerationTable
  express_api_key_replays: ReplayTable
  express_api_key_events: EventTable
  express_api_key_settings: { id: number; lease_ms: number; earlier_lease_ms: number; lease_version: number; store_id: string }
}

/** How long one statement may run, and wait for a row that somebody else holds, inside a transaction on PostgreSQL. */
const STATEMENT_TIMEOUT_MS = 3_000
const LOCK_TIMEOUT_MS = 2_000
/** What an attempt at a transaction says when another process holds the write lock. */
const BUSY: unique symbol = Symbol('busy')

/**
 * Keeps keys in the PostgreSQL or SQLite database of a Kysely instance that the application already has. Of its plugins, only where they
 * move tables counts: a schema (`db.withSchema('auth')`) or a prefix is kept to by every statement.
 *
 * @throws ApiKeyError `invalid_option` for anything but a Kysely instance, for a transaction, for options out of range, when the dialect
 * is neither or cannot be told, and when a plugin makes something else of the tables.
 */
// biome-ignore lint/suspicious/noExplicitAny: the application's own tables are none of our business
export function sqlStore(database: Kysely<any>, options: SqlStoreOptions = {}): Store {
  refuseOtherThanKysely(database)
  const { readTimeoutMs, transactionTimeoutMs } = timeouts(options, ['dialect'])
  return storeOver(database, { dialect: dialectFor(database, options.dialect), readTimeoutMs, transactionTimeoutMs })
}

/** How a store asks its database. */
export interface Asking {
  readonly dialect: SqlDialect
  readonly readTimeoutMs: number
  readonly transactionTimeoutMs: number
  /** Whether the driver takes several statements at once, as `pg` does where they have no parameters. */
  readonly together?: boolean
}

/** The limits of time that every store over SQL takes; refuses other options than these and `more`. */
export function timeouts(options: SqlStoreOptions, more: readonly string[] = []): Pick<Asking, 'readTimeoutMs' | 'transactionTimeoutMs'> {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new ApiKeyError('invalid_option', 'The options of a store are an object, such as { readTimeoutMs: 2000 }.')
  }
  refuseUnknown(options, [...more, 'readTimeoutMs', 'transactionTimeoutMs'], 'The store')
  return {
    readTimeoutMs: integerOption('readTimeoutMs', options.readTimeoutMs, 2_000, 10, 600_000),
    transactionTimeoutMs: integerOption('transactionTimeoutMs', options.transactionTimeoutMs, 5_000, 10, 600_000),
  }
}

// biome-ignore lint/suspicious/noExplicitAny: see sqlStore
export function storeOver(database: Kysely<any>, { dialect, readTimeoutMs, transactionTimeoutMs, together = false }: Asking): Store {
  const postgres = dialect === 'postgres'
  const places = placesOf(database)
  const placed = placing(places)
  const plain = database.withoutPlugins() as Kysely<Tables>
  const db = placed === undefined ? plain : plain.withPlugin(placed)
  const settings = quoted(places.express_api_key_settings)
  const lateFailures = faults()
  const clock = sql<number>`floor(extract(epoch from clock_timestamp()) * 1000)::bigint`
  const nowIn = async (on: Kysely<Tables>): Promise<number> => {
    if (!postgres) return wallMs()
    const { rows } = await sql<{ at: number }>`select ${clock} as at`.execute(on)
    return Number(rows[0]?.at)
  }
  const target: MigrationTarget = { postgres, places, now: (on) => nowIn(on as unknown as Kysely<Tables>) }
  const readClock = postgres ? sql<number | null>`floor(extract(epoch from now()) * 1000)::bigint` : sql<number | null>`null`
  // As a number, since an application can have its driver hand out a boolean as text, which is always true.
  const inRecovery = postgres ? sql<number>`case when pg_is_in_recovery() then 1 else 0 end` : sql<number>`0`
  const hiding = (looking: string): RawBuilder<string> => sql.raw(postgres ? looking : "''")
  const hidden = hiding(hides(places))
  const readQuery = readQueries(db, readClock, inRecovery, hiding(mayHide(places, ['express_api_key_generations', 'express_api_keys'])))
  const carefulReadQuery = readQueries(db, readClock, inRecovery, hidden)
  const replaysMayBeHidden = hiding(mayHide(places, ['express_api_key_replays', 'express_api_key_generations']))

  return {
    shared: true,

    async migrate() {
      if (await bounded(() => isMigrated(db as unknown as Kysely<never>, target), transactionTimeoutMs)) return
      await own((on) => migrate(on as unknown as Kysely<never>, target))
    },

    // In autocommit, now() is when the statement's transaction began, which is before its snapshot: whatever it does not
    // show is committed later than `at`. clock_timestamp() would be read after the snapshot, and could be too late.
    read: (digests) =>
      bounded(async () => {
        const before = wallMs()
        const rows = await complete(
          async (careful) => (await db.executeQuery((careful ? carefulReadQuery : readQuery)(digests))).rows,
          (answer) => answer.filter((row) => row.k_id !== null).length < digests.length,
        )
        const first = answeredByPrimary(rows[0])
        const found = rows.flatMap((row) =>
          row.g_digest === null || row.k_id === null
            ? []
            : [
                {
                  key: keyRow(part<KeyTable, ReadRow>(row, KEY_PART)),
                  generation: generationRow(part<GenerationTable, ReadRow>(row, GENERATION_PART)),
                },
              ],
        )
        return { at: postgres ? Number(first.at) : before, storeId: first.store_id, leaseMs: Number(first.lease_ms), found }
      }),

    replays: (ids) =>
      bounded(async () => {
        const before = wallMs()
        const rows = await complete(
          (careful) =>
            db
              .selectFrom('express_api_key_settings as s')
              .leftJoin('express_api_key_replays as r', (join) => join.on('r.id', 'in', ids.length > 0 ? [...ids] : ['']))
              .leftJoin('express_api_key_generations as g', (join) =>
                join.onRef('g.key_id', '=', 'r.key_id').onRef('g.generation', '=', 'r.generation'),
              )
              .where('s.id', '=', 1)
              .select(['s.lease_ms', 's.earlier_lease_ms', readClock.as('at'), inRecovery.as('standby')])
              .select((careful ? hidden : replaysMayBeHidden).as('hidden'))
              .select(REPLAY.map((column) => `r.${column} as r_${column}` as const))
              .select(GENERATION.map((column) => `g.${column} as g_${column}` as const))
              .execute(),
          (answer) => answer.filter((row) => row.r_id !== null && (row.r_generation === null || row.g_digest !== null)).length < ids.length,
        )
        const first = answeredByPrimary(rows[0])
        return {
          at: postgres ? Number(first.at) : before,
          waitMs: Math.max(Number(first.lease_ms), Number(first.earlier_lease_ms)),
          found: rows.flatMap((row) =>
            row.r_id === null
              ? []
              : [
                  {
                    record: replayRow(part<ReplayTable, typeof row>(row, REPLAY_PART)),
                    made: row.g_digest === null ? undefined : generationRow(part<GenerationTable, typeof row>(row, GENERATION_PART)),
                  },
                ],
          ),
        }
      }),

    transaction: (work) =>
      transaction(async (on) => {
        let failed: ApiKeyError | undefined
        const note = (error: ApiKeyError): void => {
          failed ??= error
        }
        const result = await work(translated(steps(on), note))
        // PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and says no more about it.
        if (failed !== undefined) throw failed
        return result
      }),

    key: (id) =>
      bounded(async () => {
        const key = await db.selectFrom('express_api_keys').selectAll().where('id', '=', id).executeTakeFirst()
        const generation =
          key &&
          (await db
            .selectFrom('express_api_key_generations')
            .selectAll()
            .where('key_id', '=', id)
            .orderBy('generation', 'desc')
            .limit(1)
            .executeTakeFirst())
        if (key && generation) return { key: keyRow(key), generation: generationRow(generation) }
        await refuseMissing()
        return undefined
      }),

    keys: ({ ownerId, after, limit }) =>
      bounded(async () => {
        const rows = await db
          .selectFrom('express_api_keys')
          .selectAll()
          .where('owner_id', '=', ownerId)
          .$if(after !== undefined, (query) => query.where(sql<boolean>`(created_at, id) < (${after?.at}, ${after?.id})`))
          .orderBy('created_at', 'desc')
          .orderBy('id', 'desc')
          .limit(limit)
          .execute()
        if (rows.length < limit) await refuseMissing()
        return rows.map(keyRow)
      }),

    events: ({ keyId, after, limit }) =>
      bounded(async () => {
        const rows = await db
          .selectFrom('express_api_key_events')
          .selectAll()
          .where('key_id', '=', keyId)
          .$if(after !== undefined, (query) => query.where(sql<boolean>`(at, id) < (${after?.at}, ${after?.id})`))
          .orderBy('at', 'desc')
          .orderBy('id', 'desc')
          .limit(limit)
          .execute()
        if (rows.length < limit) await refuseMissing()
        return rows.map(eventRow)
      }),

    markFirstUse: (digest) =>
      own(async (on) => {
        const tx = steps(on)
        const found = await tx.generation(digest)
        if (found === undefined) return { retired: [], waitMs: 0 }
        // The key's row first, as every mutation does: otherwise this and a rotation could wait for each other.
        if (found.retiresEarlier) await tx.lockKeys([found.keyId])
        const now = await nowIn(on)
        const generations = on.updateTable('express_api_key_generations')
        await generations.set({ first_used_at: now }).where('digest', '=', digest).where('first_used_at', 'is', null).execute()
        if (!found.retiresEarlier) return { retired: [], waitMs: 0 }
        const earlier = generations.where('key_id', '=', found.keyId).where('generation', '<', found.generation)
        await earlier.set({ grace_ends_at: null }).where('grace_ends_at', 'is not', null).execute()
        const retired = await on
          .selectFrom('express_api_key_generations')
          .select('digest')
          .where('key_id', '=', found.keyId)
          .where('generation', '=', found.generation - 1)
          .execute()
        return { retired: retired.map((row) => row.digest), waitMs: await tx.waitMs() }
      }),

    settleFirstUse: (digest) =>
      write(async (on) => {
        await on.updateTable('express_api_key_generations').set({ retires_earlier: 0 }).where('digest', '=', digest).execute()
      }),

    async recordUses(uses) {
      if (uses.length === 0) return
      const latest = await own(async (on) => {
        const now = await nowIn(on)
        const found = new Map(
          [...uses].sort((a, b) => b.agoMs - a.agoMs).map((use) => [use.keyId, { ...use, at: Math.floor(now - use.agoMs) }]),
        )
        if (postgres) for (const id of await recordTogether(on, [...found.values()])) found.delete(id)
        else for (const use of found.values()) await recordUse(on, use)
        return postgres ? [...found.values()] : []
      })
      // One transaction each: these wait for a key that somebody is changing, and hold no other meanwhile.
      for (const use of latest) await own((on) => recordUse(on, use))
    },

    settle: (replayId, agoMs) =>
      write(async (on) => {
        const now = await nowIn(on)
        const committedAt = Math.floor(now - agoMs)
        const ends = sql<number>`case when expires_at < ${committedAt} + window_ms then expires_at else ${committedAt} + window_ms end`
        await on
          .updateTable('express_api_key_replays')
          .set({ settled_at: now, expires_at: ends })
          .where('id', '=', replayId)
          .where('settled_at', 'is', null)
          .execute()
      }),

    eraseSeals: () =>
      write(async (on) => {
        const now = await nowIn(on)
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
      }),

    setLease: (leaseMs) =>
      own(async (on) => {
        const query = on.selectFrom('express_api_key_settings').selectAll().where('id', '=', 1)
        const row = await (postgres ? query.forUpdate() : query).executeTakeFirstOrThrow()
        const [old, earlier, version] = [Number(row.lease_ms), Number(row.earlier_lease_ms), Number(row.lease_version)]
        if (old === leaseMs) return { waitMs: earlier, version }
        const change = leaseMs > old ? { waitMs: earlier, version } : { waitMs: Math.max(old, earlier), version: version + 1 }
        await on
          .updateTable('express_api_key_settings')
          .set({ lease_ms: leaseMs, earlier_lease_ms: change.waitMs, lease_version: change.version })
          .where('id', '=', 1)
          .execute()
        return change
      }),

    settleLease: (version) =>
      write(async (on) => {
        await on
          .updateTable('express_api_key_settings')
          .set({ earlier_lease_ms: 0 })
          .where('id', '=', 1)
          .where('lease_version', '=', version)
          .execute()
      }),

    onFault: lateFailures.on,

    async close() {},
  }

  /**
   * The rows of a read. Where some are missing and row-level security may be what hides them, it is asked again with what is hidden in the
   * same statement: between two, somebody could let the role see them, and a live key would pass for one that never was.
   */
  async function complete<Row extends { hidden: string }>(
    ask: (careful: boolean) => Promise<readonly Row[]>,
    lacks: (rows: readonly Row[]) => boolean,
  ): Promise<readonly Row[]> {
    const rows = await ask(false)
    const [first] = rows
    if (first === undefined) await refuseMissing()
    if (first === undefined || first.hidden === '' || !lacks(rows)) return rows
    const again = await ask(true)
    refuseHiding(again[0]?.hidden)
    return again
  }

  /** What is not there may only be hidden. */
  async function refuseMissing(): Promise<void> {
    if (postgres) await refuseHidden(db, places)
  }

  /** One read, which on SQLite waits for who keeps even readers out, as the switch to WAL does. */
  function bounded<T>(work: () => Promise<T>, ms = readTimeoutMs): Promise<T> {
    let over = false
    const asked = async (): Promise<T> => {
      for (;;) {
        try {
          return await work()
        } catch (error) {
          if (!isBusy(error) || over) throw error
          await moment()
        }
      }
    }
    const late = (): ApiKeyError => {
      over = true
      return tooLate()
    }
    return within(ms, asked(), late, missed).catch((error) => Promise.reject(storeError(error)))
  }

  /** What a call would have been told, had it not given up waiting. */
  function missed(error: unknown): void {
    if (error instanceof ApiKeyError || isBusy(error)) return
    lateFailures.tell(storeError(error))
  }

  /**
   * BEGIN, work, COMMIT on one connection. Written out, because the difference between "nothing happened" and "nobody knows" is
   * whether COMMIT had been sent.
   */
  function transaction<T>(work: (on: Kysely<Tables>) => Promise<T>): Promise<T> {
    let stage = 'waiting' as 'waiting' | 'open' | 'committing' | 'abandoned'
    const isAbandoned = (): boolean => stage === 'abandoned'
    const once = async (on: Kysely<Tables>): Promise<T | typeof BUSY> => {
      if (isAbandoned()) throw tooLate()
      let result: T
      try {
        try {
          await begin(on)
        } catch (error) {
          if (isBusy(error)) return BUSY
          // What a standby says to READ WRITE.
          throw driverCode(error) === '0A000' ? standby(error) : storeError(error)
        }
        stage = 'open'
        result = await work(guarded(on))
        if (isAbandoned()) throw tooLate()
      } catch (error) {
        await rollback(on)
        throw error
      }
      stage = 'committing'
      try {
        await sql`commit`.execute(on)
      } catch (error) {
        if (!answered(error)) throw outcomeUnknown(error)
        await rollback(on)
        throw storeError(error)
      }
      return result
    }
    // SQLite has one write lock. Whoever waits for it gives the connection back meanwhile, so that readers are not in the queue.
    const running = (async () => {
      for (;;) {
        const result = await db.connection().execute(once)
        if (result !== BUSY) return result
        await moment()
      }
    })()
    const late = (): ApiKeyError => {
      if (stage === 'committing') return outcomeUnknown(undefined)
      // From here on no step of it goes through, and COMMIT is never sent.
      stage = 'abandoned'
      return tooLate()
    }
    return within(transactionTimeoutMs, running, late, missed).catch((error) => {
      throw stage === 'waiting' ? storeError(error) : error
    })

    function guarded(on: Kysely<Tables>): Kysely<Tables> {
      return new Proxy(on, {
        get(target, name) {
          if (isAbandoned()) throw tooLate()
          const value: unknown = Reflect.get(target, name, target)
          return typeof value === 'function' ? value.bind(target) : value
        },
      })
    }
  }

  /** A transaction whose every failure is the database's. */
  function own<T>(work: (on: Kysely<Tables>) => Promise<T>): Promise<T> {
    return transaction(work).catch((error) => Promise.reject(storeError(error)))
  }

  /**
   * Single statements that write open a transaction like all others, whatever the defaults of the role or the database. On SQLite they
   * too take the write lock first: a statement that meets it half-way fails.
   */
  function write(work: (on: Kysely<Tables>) => Promise<void>): Promise<void> {
    return own(work)
  }

  async function begin(on: Kysely<Tables>): Promise<void> {
    if (!postgres) {
      await sql`begin immediate`.execute(on)
      return
    }
    const opening = 'begin isolation level read committed read write'
    // All limits of time that a role may have are replaced by our own. The last one exists from PostgreSQL 17 on.
    const limits = `select set_config('statement_timeout', '${STATEMENT_TIMEOUT_MS}', true),
      set_config('lock_timeout', '${LOCK_TIMEOUT_MS}', true),
      set_config('idle_in_transaction_session_timeout', '${transactionTimeoutMs}', true),
      set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end, true),
      case when current_setting('transaction_timeout', true) is not null then set_config('transaction_timeout', '0', true) end,
      ${mayHide(places)} as hidden`
    // At once where that can be, so that there is no time between them for a session to be ended in.
    if (!together) await sql.raw(opening).execute(on)
    const { rows } = await sql.raw<{ hidden: string }>(together ? `${opening}; ${limits}` : limits).execute(on)
    // An update of rows that are hidden changes nothing, and says nothing of it.
    if (rows[0]?.hidden !== '') await refuseHidden(on, places)
  }

  /**
   * Ends a transaction that failed. Where `pg` has given up waiting for an answer (`query_timeout`), it takes ROLLBACK back too, and nobody
   * else may get a connection with this transaction still open on it.
   */
  async function rollback(on: Kysely<Tables>): Promise<void> {
    const end = monotonicMs() + transactionTimeoutMs
    for (;;) {
      try {
        await sql`rollback`.execute(on)
        return
      } catch (error) {
        if ((error as Error).message !== 'Query read timeout' || monotonicMs() > end) return
        await moment()
      }
    }
  }

  function steps(on: Kysely<Tables>): StoreTransaction {
    return {
      now: () => nowIn(on),

      async waitMs() {
        const query = on.selectFrom('express_api_key_settings').selectAll().where('id', '=', 1)
        const row = await (postgres ? query.forShare() : query).executeTakeFirstOrThrow()
        return Math.max(Number(row.lease_ms), Number(row.earlier_lease_ms))
      },

      async lockName(name) {
        // SQLite has one write lock, which BEGIN IMMEDIATE took already. Names are apart for each set of tables in a database.
        if (postgres) await sql`select pg_advisory_xact_lock(hashtextextended(${name}, ${settings}::regclass::oid::bigint))`.execute(on)
      },

      async generation(digest) {
        const row = await on.selectFrom('express_api_key_generations').selectAll().where('digest', '=', digest).executeTakeFirst()
        return row && generationRow(row)
      },

      async lockKeys(ids) {
        if (ids.length === 0) return []
        const query = on
          .selectFrom('express_api_keys')
          .selectAll()
          .where('id', 'in', [...ids])
          .orderBy('id')
        return (await (postgres ? query.forUpdate() : query).execute()).map(keyRow)
      },

      async insertKey(row) {
        await on.insertInto('express_api_keys').values(keyColumns(row)).execute()
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

      async insertGeneration(row) {
        await on
          .insertInto('express_api_key_generations')
          .values({
            digest: row.digest,
            key_id: row.keyId,
            generation: row.generation,
            created_at: row.createdAt,
            retired_at: row.retiredAt,
            retired_by: row.retiredBy,
            retired_reason: row.retiredReason,
            first_used_at: row.firstUsedAt,
            secret_start: row.secretStart,
            secret_last4: row.secretLast4,
            grace_ends_at: row.graceEndsAt,
            retires_earlier: row.retiresEarlier ? 1 : 0,
            rotation_secret_hash: row.rotationSecretHash,
          })
          .execute()
      },

      async retireGenerations(keyId, { at, by, reason, graceEndsAt = null }) {
        // What is over stays over: a clock that is set back would have it begin again.
        await on
          .updateTable('express_api_key_generations')
          .set({ grace_ends_at: null })
          .where('key_id', '=', keyId)
          .where('grace_ends_at', '<=', at)
          .execute()
        const rows = await on
          .updateTable('express_api_key_generations')
          .set({ retired_at: at, retired_by: by, retired_reason: reason, grace_ends_at: graceEndsAt })
          .where('key_id', '=', keyId)
          .where((is) => is.or([is('retired_at', 'is', null), is('grace_ends_at', '>', at)]))
          .returning('digest')
          .execute()
        return rows.map(({ digest }) => digest)
      },

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

      async generationOf(keyId, generation) {
        const row = await on
          .selectFrom('express_api_key_generations')
          .selectAll()
          .where('key_id', '=', keyId)
          .where('generation', '=', generation)
          .executeTakeFirst()
        return row && generationRow(row)
      },

      async replay(ids) {
        const row = await on
          .selectFrom('express_api_key_replays')
          .selectAll()
          .where('id', 'in', [...ids])
          .executeTakeFirst()
        return row && replayRow(row)
      },

      async insertReplay(row) {
        await on
          .insertInto('express_api_key_replays')
          .values({
            id: row.id,
            caller_id: row.callerId,
            key_id: row.keyId,
            generation: row.generation,
            fingerprint: row.fingerprint,
            sealed: row.sealed,
            created_at: row.createdAt,
            window_ms: row.windowMs,
            grace_ms: row.graceMs,
            expires_at: row.expiresAt,
            settled_at: row.settledAt,
          })
          .execute()
      },

      async reseal(replayId, { from, to }) {
        const rows = await on
          .updateTable('express_api_key_replays')
          .set({ sealed: to })
          .where('id', '=', replayId)
          .where('sealed', '=', from)
          .returning('id')
          .execute()
        return rows.length > 0
      },

      async eraseReplays(keyId, exceptId) {
        await on
          .updateTable('express_api_key_replays')
          .set({ sealed: null })
          .where((is) => is.or([is('key_id', '=', keyId), is('caller_id', '=', keyId)]))
          .where('sealed', 'is not', null)
          .$if(exceptId !== null, (query) => query.where('id', '!=', exceptId ?? ''))
          .execute()
      },

      async appendEvent(row) {
        await on
          .insertInto('express_api_key_events')
          .values({
            id: row.id,
            key_id: row.keyId,
            owner_id: row.ownerId,
            type: row.type,
            at: row.at,
            actor: row.actor,
            ip: row.ip,
            user_agent: row.userAgent,
            details: JSON.stringify(row.details),
          })
          .execute()
      },
    }
  }
}

/**
 * Makes the query that verifying reads with. Compiled once for 1, 2, 4, … digests, with the first one repeated up to there: compiling it each time
 * would cost the process more than the answer does. The digests are its only parameters; what else it compares is written out.
 */
function readQueries(
  db: Kysely<Tables>,
  at: RawBuilder<number | null>,
  standby: RawBuilder<number>,
  hidden: RawBuilder<string>,
): (digests: readonly string[]) => CompiledQuery<ReadRow> {
  const compiled = new Map<number, CompiledQuery<ReadRow>>()

  return (digests) => {
    const parameters = digests.length > 0 ? [...digests] : ['']
    const size = 2 ** Math.ceil(Math.log2(parameters.length))
    while (parameters.length < size) parameters.push(parameters[0] as string)
    const query = compiled.get(size) ?? compile(parameters)
    compiled.set(size, query)
    return { ...query, parameters }
  }

  function compile(parameters: readonly string[]): CompiledQuery<ReadRow> {
    return db
      .selectFrom('express_api_key_settings as s')
      .leftJoin('express_api_key_generations as g', (join) => join.on('g.digest', 'in', parameters))
      .leftJoin('express_api_keys as k', 'k.id', 'g.key_id')
      .where('s.id', '=', sql.lit(1))
      .select(['s.lease_ms', 's.store_id', at.as('at'), standby.as('standby'), hidden.as('hidden')])
      .select(GENERATION.map((column) => `g.${column} as g_${column}` as const))
      .select(KEY.map((column) => `k.${column} as k_${column}` as const))
      .compile()
  }
}

/** A row of that query: the settings, and a key with one of its generations if there is one. */
type ReadRow = { lease_ms: number; store_id: string; at: number | null; standby: number; hidden: string } & {
  [column in keyof GenerationTable as `g_${column}`]: GenerationTable[column] | null
} & { [column in keyof KeyTable as `k_${column}`]: KeyTable[column] | null }

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

/** The first row of a read, which has the settings in it. */
function answeredByPrimary<Row extends { standby: number }>(first: Row | undefined): Row {
  if (first === undefined) throw new ApiKeyError('store_misconfigured', 'The settings row is missing; call keys.migrate() first.')
  if (Number(first.standby) !== 0) throw standby()
  return first
}

function part<Table, Row>(row: Row, columns: readonly (readonly [keyof Table, keyof Row])[]): Table {
  const own: Partial<Record<keyof Table, unknown>> = {}
  for (const [column, there] of columns) own[column] = row[there]
  return own as Table
}

async function recordUse(on: Kysely<Tables>, { keyId, at, ip, userAgent }: KeyUse & { readonly at: number }): Promise<void> {
  await on
    .updateTable('express_api_keys')
    .set({ last_used_at: at, last_used_ip: ip, last_used_user_agent: userAgent })
    .where('id', '=', keyId)
    .where((is) => is.or([is('last_used_at', 'is', null), is('last_used_at', '<', at)]))
    .execute()
}

/**
 * Writes last uses, of as many different keys, with one statement for PostgreSQL; resolves with the ids of those that need no more. It waits for no key
 * that somebody has locked: while it did, it would keep others waiting for all those that it has locked itself.
 */
async function recordTogether(on: Kysely<Tables>, uses: readonly (KeyUse & { readonly at: number })[]): Promise<readonly string[]> {
  // As text first, since some drivers make JSON of what they are told is JSON.
  const given = JSON.stringify(uses.map(({ keyId, at, ip, userAgent }) => ({ id: keyId, at, ip, user_agent: userAgent })))
  const settled = await on
    .with(
      'used',
      () =>
        sql<{ id: string; at: number; ip: string | null; user_agent: string | null }>`(select *
        from json_to_recordset(${given}::text::json) as given (id text, at bigint, ip text, user_agent text))`,
    )
    .with('free', (keys) =>
      keys
        .selectFrom('express_api_keys')
        .select('id')
        .where('id', 'in', (ids) => ids.selectFrom('used').select('used.id'))
        .forNoKeyUpdate()
        .skipLocked(),
    )
    .with('written', (keys) =>
      keys
        .updateTable('express_api_keys as key')
        .from(['used', 'free'])
        .set(({ ref }) => ({ last_used_at: ref('used.at'), last_used_ip: ref('used.ip'), last_used_user_agent: ref('used.user_agent') }))
        .whereRef('key.id', '=', 'used.id')
        .whereRef('key.id', '=', 'free.id')
        .where((is) => is.or([is('key.last_used_at', 'is', null), is('key.last_used_at', '<', is.ref('used.at'))])),
    )
    .selectFrom('free')
    .select('id')
    .execute()
  return settled.map(({ id }) => id)
}

// PostgreSQL drivers hand out int8 as strings, hence the conversions.
function keyRow(row: KeyTable): KeyRow {
  return {
    id: row.id,
    ownerId: row.owner_id,
    name: row.name,
    environment: row.environment === 'test' ? 'test' : 'live',
    scopes: JSON.parse(row.scopes) as string[],
    metadata: JSON.parse(row.metadata) as JsonObject,
    generation: Number(row.generation),
    createdAt: Number(row.created_at),
    updatedAt: Number(row.updated_at),
    expiresAt: numberOrNull(row.expires_at),
    revokedAt: numberOrNull(row.revoked_at),
    revokedReason: row.revoked_reason,
    rotatedTo: row.rotated_to,
    secretStart: row.secret_start,
    secretLast4: row.secret_last4,
    secretCreatedAt: Number(row.secret_created_at),
    lastUsedAt: numberOrNull(row.last_used_at),
    lastUsedIp: row.last_used_ip,
    lastUsedUserAgent: row.last_used_user_agent,
  }
}

function keyColumns(row: KeyRow): KeyTable {
  return {
    id: row.id,
    owner_id: row.ownerId,
    name: row.name,
    environment: row.environment,
    scopes: JSON.stringify(row.scopes),
    metadata: JSON.stringify(row.metadata),
    generation: row.generation,
    created_at: row.createdAt,
    updated_at: row.updatedAt,
    expires_at: row.expiresAt,
    revoked_at: row.revokedAt,
    revoked_reason: row.revokedReason,
    rotated_to: row.rotatedTo,
    secret_start: row.secretStart,
    secret_last4: row.secretLast4,
    secret_created_at: row.secretCreatedAt,
    last_used_at: row.lastUsedAt,
    last_used_ip: row.lastUsedIp,
    last_used_user_agent: row.lastUsedUserAgent,
  }
}

function generationRow(row: GenerationTable): GenerationRow {
  return {
    digest: row.digest,
    keyId: row.key_id,
    generation: Number(row.generation),
    createdAt: Number(row.created_at),
    retiredAt: numberOrNull(row.retired_at),
    retiredBy: row.retired_by,
    retiredReason: row.retired_reason as GenerationRow['retiredReason'],
    firstUsedAt: numberOrNull(row.first_used_at),
    secretStart: row.secret_start,
    secretLast4: row.secret_last4,
    graceEndsAt: numberOrNull(row.grace_ends_at),
    retiresEarlier: Number(row.retires_earlier) === 1,
    rotationSecretHash: row.rotation_secret_hash,
  }
}

function replayRow(row: ReplayTable): ReplayRow {
  return {
    id: row.id,
    callerId: row.caller_id,
    keyId: row.key_id,
    generation: numberOrNull(row.generation),
    fingerprint: row.fingerprint,
    sealed: row.sealed,
    createdAt: Number(row.created_at),
    windowMs: Number(row.window_ms),
    graceMs: Number(row.grace_ms),
    expiresAt: Number(row.expires_at),
    settledAt: numberOrNull(row.settled_at),
  }
}

function eventRow(row: EventTable): EventRow {
  return {
    id: row.id,
    keyId: row.key_id,
    ownerId: row.owner_id,
    type: row.type as EventRow['type'],
    at: Number(row.at),
    actor: row.actor,
    ip: row.ip,
    userAgent: row.user_agent,
    details: JSON.parse(row.details) as JsonObject,
  }
}

function numberOrNull(value: number | null): number | null {
  return value === null ? null : Number(value)
}

/** What the driver throws becomes an error of ours at each step, so that what `work` throws itself can pass as it is. */
function translated(steps: StoreTransaction, failed: (error: ApiKeyError) => void): StoreTransaction {
  const entries = Object.entries(steps).map(([name, step]: [string, (...args: never[]) => Promise<unknown>]) => [
    name,
    (...args: never[]) =>
      step(...args).catch((error: unknown) => {
        const known = storeError(error)
        failed(known)
        throw known
      }),
  ])
  return Object.fromEntries(entries) as StoreTransaction
}

function refuseOtherThanKysely(database: unknown): void {
  const { getExecutor, isTransaction, connect, prepare } = (database ?? {}) as { [name: string]: unknown }
  if (typeof getExecutor !== 'function') {
    const instead =
      typeof connect === 'function'
        ? ' A pg Pool goes to postgresStore(pool).'
        : typeof prepare === 'function'
          ? ' An SQLite handle goes to sqliteStore(database).'
          : ''
    throw new ApiKeyError('invalid_option', `sqlStore takes a Kysely instance: sqlStore(new Kysely({ dialect })).${instead}`)
  }
  if (isTransaction === true) {
    throw new ApiKeyError(
      'invalid_option',
      'sqlStore takes the Kysely instance itself and no transaction of it: the store outlives a transaction, and opens its own.',
    )
  }
}

function dialectFor(database: Pick<Kysely<Tables>, 'getExecutor'>, asked: SqlDialect | undefined): SqlDialect {
  if (asked !== undefined && asked !== 'postgres' && asked !== 'sqlite') {
    throw new ApiKeyError('invalid_option', `dialect must be "postgres" or "sqlite", not ${String(asked)}.`)
  }
  const spoken = dialectOf(database)
  if (asked !== undefined && spoken !== undefined && asked !== spoken) {
    throw new ApiKeyError('invalid_option', `dialect is "${asked}", but this Kysely instance speaks "${spoken}"; leave the option out.`)
  }
  const dialect = asked ?? spoken
  if (dialect !== undefined) return dialect
  throw new ApiKeyError(
    'invalid_option',
    `sqlStore cannot tell the dialect of this Kysely instance; write sqlStore(db, { dialect: 'postgres' }) or 'sqlite'.`,
  )
}

/** By the adapter's class name: `instanceof` fails across two copies of Kysely. */
function dialectOf(database: Pick<Kysely<Tables>, 'getExecutor'>): SqlDialect | undefined {
  const name = database.getExecutor().adapter.constructor.name.toLowerCase()
  if (name.includes('postgres')) return 'postgres'
  return name.includes('sqlite') ? 'sqlite' : undefined
}

/** Rejects after `ms` with what `late` says. The work itself goes on, and if it fails later, `missed` hears of it. */
function within<T>(ms: number, work: Promise<T>, late: () => ApiKeyError, missed: (error: unknown) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    let over = false
    const timer = setTimeout(() => {
      over = true
      reject(late())
    }, ms)
    timer.unref()
    const failed = (error: unknown): void => {
      if (over) missed(error)
      reject(error)
    }
    work.then(resolve, failed).finally(() => clearTimeout(timer))
  })
}

/** Between two tries to get a lock of SQLite's; at random, so that those who wait do not all come back at once. */
export function moment(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 2 + Math.random() * 8))
}

function tooLate(): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'The store did not answer in time.')
}

function standby(cause?: unknown): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'A standby answered instead of the primary; it cannot grant a lease.', { cause })
}

function outcomeUnknown(cause: unknown): ApiKeyError {
  return new ApiKeyError('outcome_unknown', 'The connection to the store was lost at the moment of commit.', { cause })
}
