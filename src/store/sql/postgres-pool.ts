import { clearTimeout, setTimeout } from '../../real-time.js'
import { postgresErrors } from './dialects/postgres.js'

/** What the store needs of a `pg` Pool. */
export interface PgPool {
  /** Calls back. A pool that returns a promise instead works too, but see `connected`. */
  // biome-ignore lint/suspicious/noExplicitAny: a pool that calls back returns nothing, a wrapped one may return a promise
  connect(callback: (error: Error | undefined, client: PgClient | undefined) => void): any
  on?(event: 'error', listener: (error: Error) => void): unknown
}

export interface PgClient {
  // biome-ignore lint/suspicious/noExplicitAny: the driver's own signatures differ between versions
  query(...args: any[]): any
  release(error?: Error | boolean): void
  /** Whether it asks for results in binary; the store turns that off for as long as it has the connection. */
  binary?: boolean
  on?(event: 'error', listener: (error: Error) => void): unknown
  removeListener?(event: 'error', listener: (error: Error) => void): unknown
}

/**
 * Takes the connection in the pool's callback, not from its promise. The end of a session can arrive in the same packet as the end of its greeting,
 * before a promise settles, and an `error` event without a listener ends the process.
 */
export function connected(pool: PgPool, ms: number): Promise<PgClient> {
  return new Promise((resolve, reject) => {
    const take = (error: Error | null | undefined, client?: PgClient | null): void => {
      if (error || !client) reject(error ?? new Error('The pool gave no connection.'))
      else resolve(bounded(client, ms))
    }
    const promised: unknown = pool.connect(take)
    if (isThenable(promised)) promised.then((client) => take(undefined, client as PgClient | undefined), take)
  })
}

/**
 * Gives up a connection that does not answer, and has the pool destroy it: a black hole must not keep a place in the pool until the
 * operating system notices, and nobody may get a connection with a transaction still open on it.
 */
function bounded(client: PgClient, ms: number): PgClient {
  let broken: Error | undefined
  const note = (error: Error): void => {
    broken ??= error
  }
  client.on?.('error', note)
  const { binary } = client
  // `pg` reads binary numbers as if they were text, and so other numbers than were sent.
  if (binary === true) client.binary = false
  return {
    query(...args) {
      if (broken !== undefined) return Promise.reject(new Error('The connection is given up.', { cause: broken }))
      const answer: unknown = client.query(...args)
      if (!isThenable(answer)) return answer
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          note(Object.assign(new Error('The connection did not answer in time.'), { code: 'ETIMEDOUT' }))
          reject(broken)
        }, ms)
        timer.unref()
        const failed = (error: Error): void => {
          // Such as the pool's `query_timeout`: nobody knows what this connection is doing now.
          if (!postgresErrors.answered(error)) note(error)
          reject(error)
        }
        Promise.resolve(answer)
          // Several statements at once have several answers, and Kysely reads one.
          .then((result) => resolve(Array.isArray(result) ? result.at(-1) : result), failed)
          .finally(() => clearTimeout(timer))
      })
    },
    release() {
      if (binary === true) client.binary = true
      client.removeListener?.('error', note)
      client.release(broken)
    },
  }
}

/** A wrapped pool may answer with promises of a library or of another realm, which `instanceof Promise` does not know. */
export function isThenable(answer: unknown): answer is PromiseLike<unknown> {
  return typeof (answer as { then?: unknown } | null | undefined)?.then === 'function'
}
