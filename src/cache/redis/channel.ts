import { randomBytes } from 'node:crypto'
import { type Channel, isAddress, isMessage } from '../../channel.js'
import { inTime } from '../../in-time.js'
import { clearTimeout, nextTurn, setTimeout } from '../../real-time.js'
import type { Connection } from './connection.js'

type Listener = Parameters<Channel['listen']>[1]

/** What came of looking whether messages arrive. `unsent`: nobody can tell, as none could be sent. */
type Finding = 'heard' | 'deaf' | 'unsent' | 'refused' | 'lost'

const PREFIX = 'express-api-keys:'
/** A connection that went silent is noticed about this soon, by a message to itself: TCP alone may take a quarter of an hour. */
const BEAT_MS = 5_000
/** Until the connection is there: a TLS handshake after a Sentinel was asked takes a few round trips more than a command. */
const CONNECT_MS = 1_000
/** The first try after a loss comes at once, for all that is said meanwhile is missed; then twice as late each time. */
const FIRST_RETRY_MS = 20
/** A Redis that comes back is listened to again about this soon. */
const LONGEST_RETRY_MS = 1_000
/** One that answers, but lets no message through, will go on doing so. */
const LONGEST_DEAF_RETRY_MS = 10_000

/** Messages over pub/sub: what is sent goes over the cache's connection, and one of its own is opened for listening. */
export function redisChannel(connection: Connection, timeoutMs: number): Channel {
  const listeners = new Map<string, Set<Listener>>()
  const hearing = createHearing({ connection, timeoutMs, wanted: () => [...listeners.keys()], heard })
  let closed = false

  return {
    name: 'redis',
    async listen(addresses, listener) {
      if (closed || !addresses.every(isAddress)) return undefined
      // Wrapped, so that the same function given twice is two listeners.
      const own: Listener = (message, address) => listener(message, address)
      for (const address of addresses) listeners.set(PREFIX + address, (listeners.get(PREFIX + address) ?? new Set()).add(own))
      const isOpen = await hearing.opens(CONNECT_MS + timeoutMs)
      return isOpen && !closed ? () => stop(addresses, own) : undefined
    },
    async send(address, message) {
      if (!closed && isAddress(address) && isMessage(message)) await publish(connection, PREFIX + address, message)
    },
    isOpen: hearing.isOpen,
    async close() {
      closed = true
      listeners.clear()
      hearing.close()
      await nextTurn()
    },
  }

  /** A Redis may say anything. Only what could have been sent, and where somebody listens, goes on. */
  function heard(address: string, message: string): void {
    if (!isMessage(message)) return
    for (const listener of [...(listeners.get(address) ?? [])]) {
      try {
        listener(message, address.slice(PREFIX.length))
      } catch {
        // A broken listener keeps nothing from the others, and does not end the process by way of the client.
      }
    }
  }

  function stop(addresses: readonly string[], own: Listener): void {
    for (const address of addresses) {
      const there = listeners.get(PREFIX + address)
      if (there?.delete(own) && there.size === 0) listeners.delete(PREFIX + address)
    }
    hearing.narrow()
  }
}

interface HearingParts {
  readonly connection: Connection
  readonly timeoutMs: number
  /** The addresses that somebody listens under, with the prefix. */
  readonly wanted: () => readonly string[]
  readonly heard: (address: string, message: string) => void
}

interface Hearing {
  isOpen(): boolean
  /** Whether what is wanted now is known to be heard within so long. */
  opens(withinMs: number): Promise<boolean>
  /** Less is wanted now. */
  narrow(): void
  close(): void
}

/** Keeps one connection open for as long as anything is wanted, and looks now and then whether messages arrive. */
function createHearing(parts: HearingParts): Hearing {
  const { wanted } = parts
  let ear: OpenEar | undefined
  let open = false
  let failures = 0
  let looking = false
  let lookAgain = false
  let timer: NodeJS.Timeout | undefined
  const waiting = new Set<(isOpen: boolean) => void>()

  return {
    isOpen: () => open,
    opens: (withinMs) =>
      new Promise((resolve) => {
        const late = setTimeout(() => settle(false), withinMs)
        late.unref()
        const settle = (isOpen: boolean): void => {
          clearTimeout(late)
          waiting.delete(settle)
          resolve(isOpen)
        }
        waiting.add(settle)
        look()
      }),
    narrow() {
      if (wanted().length === 0) end()
      else ear?.narrow()
    },
    close() {
      end()
      for (const settle of waiting) settle(false)
    },
  }

  /** One look at a time: one that is asked for meanwhile comes right after. */
  function look(): void {
    clearTimeout(timer)
    lookAgain = looking
    if (looking) return
    looking = true
    const asking = [...waiting]
    void find().then((finding) => {
      looking = false
      if (wanted().length === 0) return end()
      open = finding === 'heard'
      failures = open ? 0 : failures + 1
      if (open) for (const settle of asking) settle(true)
      if (lookAgain && open) return look()
      timer = setTimeout(look, open ? BEAT_MS : retryDelayMs(failures, finding))
      timer.unref()
    })
  }

  async function find(): Promise<Finding> {
    ear ??= openEar(parts, lost)
    const current = ear
    const finding = current === undefined ? 'lost' : await current.test()
    // What cannot be sent says nothing about the connection for listening.
    if (current !== undefined && finding !== 'heard' && finding !== 'unsent') drop(current)
    return current === ear ? finding : 'lost'
  }

  function lost(which: OpenEar): void {
    if (which !== ear) return
    drop(which)
    // A look that is under way finds it out by itself.
    if (!looking && wanted().length > 0) {
      timer = setTimeout(look, retryDelayMs(0, 'lost'))
      timer.unref()
    }
  }

  function drop(which: OpenEar): void {
    clearTimeout(timer)
    open = false
    if (ear === which) ear = undefined
    which.close()
  }

  function end(): void {
    clearTimeout(timer)
    open = false
    if (ear !== undefined) drop(ear)
  }
}

/** A refusal is answered by a connection that is well, so there is no haste. */
function retryDelayMs(failures: number, finding: Finding): number {
  const longestMs = finding === 'deaf' || finding === 'refused' ? LONGEST_DEAF_RETRY_MS : LONGEST_RETRY_MS
  return Math.min(FIRST_RETRY_MS * 2 ** Math.min(failures, 10), longestMs) * (0.5 + Math.random() / 2)
}

interface OpenEar {
  /** Listens under every wanted address, then sends itself a message and sees whether it comes. Never rejects. */
  test(): Promise<Finding>
  /** Listens no more under addresses that are not wanted. */
  narrow(): void
  close(): void
}

/** One connection, from its opening to its loss; undefined where none can be opened now. */
function openEar({ connection, timeoutMs, wanted, heard }: HearingParts, lost: (which: OpenEar) => void): OpenEar | undefined {
  const own = `${PREFIX}self:${randomBytes(12).toString('base64url')}`
  const subscribed = new Set<string>()
  let expected: { readonly word: string; readonly arrive: () => void } | undefined
  const ear = connection.openEar({
    heard(address, message) {
      if (address !== own) heard(address, message)
      else if (message === expected?.word) expected.arrive()
    },
    close: () => lost(opened),
  })
  if (ear === undefined) return undefined
  const late = (): Error => new Error('Redis gave no answer in time.')
  const opened: OpenEar = {
    async test() {
      try {
        await inTime(CONNECT_MS, ear.ready, late)
        const missing = [own, ...wanted()].filter((address) => !subscribed.has(address))
        for (const address of missing) subscribed.add(address)
        if (missing.length > 0) await inTime(timeoutMs, ear.subscribe(missing), late)
      } catch (cause) {
        return connection.isRefusal(cause) ? 'refused' : 'lost'
      }
      const word = randomBytes(12).toString('base64url')
      let isThere = false
      const arrival = new Promise<void>((arrive) => {
        expected = { word, arrive }
      }).then(() => {
        isThere = true
      })
      const sent = await publish(connection, own, word)
      if (sent !== 'sent') return sent
      // A process that was held up reads what has come, before it says that nothing has.
      await inTime(timeoutMs, arrival, late).catch(nextTurn)
      return isThere ? 'heard' : 'deaf'
    },
    narrow() {
      const kept = new Set([own, ...wanted()])
      const left = [...subscribed].filter((address) => !kept.has(address))
      if (left.length === 0) return
      for (const address of left) subscribed.delete(address)
      ear.unsubscribe(left).catch(() => {})
    },
    close: ear.close,
  }
  return opened
}

/** A refusal is an answer: it must not count against a Redis that does all else. */
async function publish(connection: Connection, address: string, message: string): Promise<'sent' | 'refused' | 'unsent'> {
  const refusedOr = (reply: Promise<unknown>): Promise<unknown> =>
    reply.catch((cause) => (connection.isRefusal(cause) ? 'refused' : Promise.reject(cause)))
  const answer = await connection.run(
    (link) => refusedOr(link.publish(address, message)),
    (reply) => (reply === 'refused' ? 'refused' : /^\d{1,16}$/.test(String(reply)) ? 'sent' : undefined),
  )
  return answer ?? 'unsent'
}
