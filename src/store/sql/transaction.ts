import type { Kysely, RawBuilder } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { inTime } from '../../in-time.js'
import type { Database } from './database.js'
import { type DriverErrors, storeError } from './driver-errors.js'
import { appendStatements } from './feed.js'
import type { Tables } from './rows.js'
import { moment, tooLate } from './timeouts.js'

/**
 * BEGIN, work, COMMIT on one connection. Written out, because the difference between "nothing happened" and "nobody knows" is
 * whether COMMIT had been sent. What `work` throws passes as it is.
 */
export function inTransaction<T>(database: Database, work: Work<T>): Promise<T> {
  const { db, dialect, timeouts, missed } = database
  const progress: Progress = { stage: 'waiting' }
  // A transaction that waits for the write lock returns its connection meanwhile, so that readers do not queue behind it.
  const running = (async () => {
    for (;;) {
      const result = await db.connection().execute((on) => attempt(database, on, progress, work))
      if (result !== BUSY) return result
      await moment()
    }
  })()
  const late = (): ApiKeyError => {
    if (progress.stage === 'committing') return outcomeUnknown(undefined)
    // From here on each of its steps fails, and COMMIT is never sent.
    progress.stage = 'abandoned'
    return tooLate()
  }
  return inTime(timeouts.transactionTimeoutMs, running, late, missed).catch((error) => {
    throw progress.stage === 'waiting' ? storeError(error, dialect.errors) : error
  })
}

/** A transaction of the store's own: every failure in it is the database's. */
export function inOwnTransaction<T>(database: Database, work: Work<T>): Promise<T> {
  return inTransaction(database, work).catch((error) => Promise.reject(storeError(error, database.dialect.errors)))
}

/** What a transaction does. The digests that it adds to `changed` become one change in the feed, as the last thing before COMMIT. */
type Work<T> = (on: Kysely<Tables>, changed: Set<string>) => Promise<T>

interface Progress {
  stage: 'waiting' | 'open' | 'committing' | 'abandoned'
}

/** The result of an attempt that met the write lock of another connection. */
const BUSY: unique symbol = Symbol('busy')

async function attempt<T>(database: Database, on: Kysely<Tables>, progress: Progress, work: Work<T>): Promise<T | typeof BUSY> {
  const { begin, commit, rollback, errors, together } = database.dialect
  refuseAbandoned(progress)
  let result: T
  let last: readonly RawBuilder<unknown>[]
  try {
    try {
      await begin(on)
    } catch (error) {
      if (errors.isBusy(error)) return BUSY
      throw storeError(error, errors)
    }
    progress.stage = 'open'
    const changed = new Set<string>()
    const guardedOn = guarded(on, progress)
    result = await work(guardedOn, changed)
    last = changed.size > 0 ? appendStatements(database, changed) : []
    // The lock of the feed is held from here on, so nothing may come between this and COMMIT.
    if (!together) for (const statement of last) await appended(statement.execute(guardedOn), errors)
    refuseAbandoned(progress)
  } catch (error) {
    await rollback(on)
    throw error
  }
  progress.stage = 'committing'
  try {
    await commit(on, together ? last : [])
  } catch (error) {
    if (!errors.answered(error)) throw outcomeUnknown(error)
    await rollback(on)
    throw storeError(error, errors)
  }
  return result
}

async function appended(executed: Promise<unknown>, errors: DriverErrors): Promise<void> {
  try {
    await executed
  } catch (error) {
    throw storeError(error, errors)
  }
}

/** The connection, until the transaction is given up. */
function guarded(on: Kysely<Tables>, progress: Progress): Kysely<Tables> {
  return new Proxy(on, {
    get(target, name) {
      refuseAbandoned(progress)
      const value: unknown = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

function refuseAbandoned({ stage }: Progress): void {
  if (stage === 'abandoned') throw tooLate()
}

function outcomeUnknown(cause: unknown): ApiKeyError {
  return new ApiKeyError('outcome_unknown', 'The connection to the store was lost at the moment of commit.', { cause })
}
