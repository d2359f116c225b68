import { createHash, randomBytes } from 'node:crypto'
import type { Channel } from '../../channel.js'
import { channelOver, type EarParts, type Finding, type OpenEar } from '../../channel-over.js'
import { inTime } from '../../in-time.js'
import { nextTurn } from '../../real-time.js'
import { postgresErrors } from './dialects/postgres.js'
import { connected, isThenable, type PgClient, type PgPool } from './postgres-pool.js'
import type { Timeouts } from './timeouts.js'

/** Until the pool has a connection for listening. */
const CONNECT_MS = 1_000
/** Within what a message to itself must be there. Through a pooler in transaction mode LISTEN succeeds, and hears nothing. */
const ARRIVAL_MS = 1_000
/** One connection is kept for listening, and a transaction must never have to wait for another that sends. */
const SMALLEST_POOL = 3

/**
 * Messages over LISTEN and NOTIFY. Listening takes one connection of the pool for good; what is sent takes one for a moment, in autocommit: inside of a longer transaction
 * NOTIFY would have all others wait for its COMMIT.
 */
export function postgresChannel(pool: PgPool, { readTimeoutMs }: Timeouts): Channel {
  const send = sending(pool, readTimeoutMs)
  return channelOver({
    name: 'postgres',
    patienceMs: CONNECT_MS + ARRIVAL_MS,
    openEar: (parts) => (isSmall(pool) ? undefined : openEar({ pool, timeoutMs: readTimeoutMs, send }, parts)),
    send,
  })
}

type Send = (address: string, message: string) => Promise<'sent' | 'refused' | 'unsent'>

interface Waiting {
  readonly address: string
  readonly message: string
  resolve(outcome: Awaited<ReturnType<Send>>): void
}

/** How many messages wait for a connection at most, and how many one statement sends. */
const MOST_WAITING = 10_000
const MOST_TOGETHER = 100

/** Sends what has gathered while the statement before ran, so that many messages never take more than one connection. */
function sending(pool: PgPool, timeoutMs: number): Send {
  const waiting: Waiting[] = []
  let isSending = false

  async function sendAll(): Promise<void> {
    isSending = true
    while (waiting.length > 0) {
      const together = waiting.splice(0, MOST_TOGETHER)
      const outcome = await notify(pool, timeoutMs, together)
      for (const { resolve } of together) resolve(outcome)
    }
    isSending = false
  }

  return (address, message) =>
    new Promise((resolve) => {
      // A text of PostgreSQL cannot hold U+0000.
      if (waiting.length >= MOST_WAITING || message.includes('\0')) return resolve('unsent')
      waiting.push({ address, message, resolve })
      if (!isSending) void sendAll()
    })
}

async function notify(pool: PgPool, timeoutMs: number, messages: readonly Waiting[]): Promise<Awaited<ReturnType<Send>>> {
  let isLate = false
  const taken = connected(pool, timeoutMs).then((client) => {
    if (isLate) client.release()
    return client
  })
  try {
    const client = await inTime(timeoutMs, taken, () => {
      isLate = true
      return new Error('The pool gave no connection in time.')
    })
    try {
      await client.query('select pg_notify(name, message) from unnest($1::text[], $2::text[]) as given (name, message)', [
        messages.map(({ address }) => nameOf(address)),
        messages.map(({ message }) => message),
      ])
      return 'sent'
    } finally {
      client.release()
    }
  } catch (error) {
    return postgresErrors.answered(error) ? 'refused' : 'unsent'
  }
}

interface Way {
  readonly pool: PgPool
  readonly timeoutMs: number
  readonly send: Send
}

/** What PostgreSQL tells a session that listens. */
interface Notification {
  readonly channel?: unknown
  readonly payload?: unknown
}

function openEar({ pool, timeoutMs, send }: Way, { wanted, heard, lost }: EarParts): OpenEar {
  const own = `self:${randomBytes(12).toString('base64url')}`
  const addresses = new Map<string, string>()
  let expected: { readonly word: string; readonly arrive: () => void } | undefined
  let wasHeard = false
  const session = takeSession(pool, {
    said({ channel, payload }) {
      const address = addresses.get(String(channel))
      if (address === undefined || typeof payload !== 'string') return
      if (address !== own) heard(address, payload)
      else if (payload === expected?.word) expected.arrive()
    },
    gone: () => lost(opened),
  })
  const late = (): Error => new Error('PostgreSQL gave no answer in time.')

  const opened: OpenEar = {
    async test(): Promise<Finding> {
      try {
        const client = await inTime(CONNECT_MS, session.taken, late)
        const missing = [own, ...wanted()].filter((address) => !addresses.has(nameOf(address)))
        for (const address of missing) addresses.set(nameOf(address), address)
        if (missing.length > 0)
          await inTime(timeoutMs, client.query(missing.map((address) => `listen ${nameOf(address)}`).join('; ')), late)
      } catch (error) {
        return postgresErrors.answered(error) ? 'refused' : 'lost'
      }
      const word = randomBytes(12).toString('base64url')
      let isThere = false
      const arrival = new Promise<void>((arrive) => {
        expected = { word, arrive }
      }).then(() => {
        isThere = true
      })
      const sent = await send(own, word)
      // A wrapped pool does not tell its size: this may be holding the only connection. And the end of a pool waits for every connection.
      if (sent === 'unsent' && (!wasHeard || isEnding(pool))) return 'deaf'
      if (sent !== 'sent') return sent
      // A process that was held up reads what has come, before it says that nothing has.
      await inTime(ARRIVAL_MS, arrival, late).catch(nextTurn)
      wasHeard ||= isThere
      return isThere ? 'heard' : 'deaf'
    },

    narrow() {
      const kept = new Set([own, ...wanted()])
      const left = [...addresses].filter(([, address]) => !kept.has(address)).map(([name]) => name)
      for (const name of left) addresses.delete(name)
      if (left.length > 0) session.taken.then((client) => client.query(left.map((name) => `unlisten ${name}`).join('; '))).catch(() => {})
    },

    close: session.close,
  }
  return opened
}

interface Session {
  readonly taken: Promise<PgClient>
  /** Has the pool end the connection: nobody else may get one that listens. */
  close(): void
}

type Emitter = { on?(event: string, listener: (told: Notification) => void): unknown }

/** In the pool's callback, for the reason that `connected` gives. */
function takeSession(pool: PgPool, { said, gone }: { said(told: Notification): void; gone(): void }): Session {
  let client: PgClient | undefined
  let isClosed = false
  const close = (): void => {
    isClosed = true
    const old = client
    client = undefined
    try {
      old?.release(true)
    } catch {
      // It was released before, or its pool has ended.
    }
  }
  const taken = new Promise<PgClient>((resolve, reject) => {
    const take = (error: Error | null | undefined, given?: PgClient | null): void => {
      if (error || !given) {
        reject(error ?? new Error('The pool gave no connection.'))
        return
      }
      if (isClosed) {
        given.release()
        reject(new Error('It is not wanted any more.'))
        return
      }
      client = given
      // To listen is no reason for a process to stay.
      ;(given as { unref?(): void }).unref?.()
      // They stay to the end of the connection: an `error` event without a listener ends the process.
      const { on } = given as Emitter
      on?.call(given, 'notification', (told) => {
        if (!isClosed) said(told)
      })
      for (const event of ['error', 'end']) on?.call(given, event, gone)
      resolve(given)
    }
    try {
      const promised: unknown = pool.connect(take)
      if (isThenable(promised)) promised.then((given) => take(undefined, given as PgClient | undefined), take)
    } catch (error) {
      reject(error)
    }
  })
  taken.catch(() => {})
  return { taken, close }
}

/** A name that needs no quotes, of any length of address. */
function nameOf(address: string): string {
  return `express_api_keys_${createHash('sha256').update(address).digest('hex').slice(0, 40)}`
}

function isEnding(pool: PgPool): boolean {
  return (pool as { ending?: unknown }).ending === true
}

function isSmall(pool: PgPool): boolean {
  const { options } = pool as { options?: { max?: unknown } }
  // A text where it comes from the environment; `pg` takes that as the number it is.
  return options?.max !== undefined && Number(options.max) < SMALLEST_POOL
}
