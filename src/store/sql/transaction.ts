import type { Kysely } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import type { Database } from './database.js'
import { storeError } from './driver-errors.js'
import type { Tables } from './rows.js'
import { moment, tooLate, within } from './timeouts.js'

/**
 * BEGIN, work, COMMIT on one connection. Written out, because the difference between "nothing happened" and "nobody knows" is
 * whether COMMIT had been sent. What `work` throws passes as it is.
 */
export function inTransaction<T>(database: Database, work: (on: Kysely<Tables>) => Promise<T>): Promise<T> {
  const { db, dialect, timeouts, missed } = database
  const progress: Progress = { stage: 'waiting' }
  // Whoever waits for a write lock gives the connection back meanwhile, so that readers are not in the queue.
  const running = (async () => {
    for (;;) {
      const result = await db.connection().execute((on) => attempt(database, on, progress, work))
      if (result !== BUSY) return result
      await moment()
    }
  })()
  const late = (): ApiKeyError => {
    if (progress.stage === 'committing') return outcomeUnknown(undefined)
    // From here on no step of it goes through, and COMMIT is never sent.
    progress.stage = 'abandoned'
    return tooLate()
  }
  return within(timeouts.transactionTimeoutMs, running, late, missed).catch((error) => {
    throw progress.stage === 'waiting' ? storeError(error, dialect.errors) : error
  })
}

/** A transaction whose every failure is the database's. */
export function inOwnTransaction<T>(database: Database, work: (on: Kysely<Tables>) => Promise<T>): Promise<T> {
  return inTransaction(database, work).catch((error) => Promise.reject(storeError(error, database.dialect.errors)))
}

interface Progress {
  stage: 'waiting' | 'open' | 'committing' | 'abandoned'
}

/** What an attempt at a transaction says when somebody else holds the write lock. */
const BUSY: unique symbol = Symbol('busy')

async function attempt<T>(
  { dialect }: Database,
  on: Kysely<Tables>,
  progress: Progress,
  work: (on: Kysely<Tables>) => Promise<T>,
): Promise<T | typeof BUSY> {
  const { begin, commit, rollback, errors } = dialect
  refuseAbandoned(progress)
  let result: T
  try {
    try {
      await begin(on)
    } catch (error) {
      if (errors.isBusy(error)) return BUSY
      throw storeError(error, errors)
    }
    progress.stage = 'open'
    result = await work(guarded(on, progress))
    refuseAbandoned(progress)
  } catch (error) {
    await rollback(on)
    throw error
  }
  progress.stage = 'committing'
  try {
    await commit(on)
  } catch (error) {
    if (!errors.refused(error)) throw outcomeUnknown(error)
    await rollback(on)
    throw storeError(error, errors)
  }
  return result
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
