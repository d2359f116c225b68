import { randomBytes } from 'node:crypto'
import { inTime } from '../../in-time.js'
import { clearTimeout, nextTurn, setTimeout } from '../../real-time.js'
import type { Client, Ear, EarListeners } from './clients.js'
import type { Connection } from './connection.js'

/** What came of looking whether messages arrive. `unsent`: nobody can tell, as none could be sent. */
type Finding = 'heard' | 'deaf' | 'unsent' | 'refused' | 'lost'

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

interface HearingParts {
  readonly client: Client
  readonly connection: Connection
  readonly timeoutMs: number
  readonly prefix: string
  /** The addresses that somebody listens under. */
  readonly wanted: () => readonly string[]
  readonly heard: (address: string, message: string) => void
}

/** Keeps one connection open for as long as anything is wanted, and looks now and then whether messages arrive. */
export class Hearing {
  readonly #parts: HearingParts
  #ear: OpenEar | undefined
  #isOpen = false
  #failures = 0
  #looking = false
  #lookAgain = false
  #timer: NodeJS.Timeout | undefined
  readonly #waiting = new Set<(isOpen: boolean) => void>()

  constructor(parts: HearingParts) {
    this.#parts = parts
  }

  get isOpen(): boolean {
    return this.#isOpen
  }

  /** Whether what is wanted now is known to be heard, after as long as a connection may take. */
  opens(): Promise<boolean> {
    return new Promise((resolve) => {
      const settle = (isOpen: boolean): void => {
        clearTimeout(late)
        this.#waiting.delete(settle)
        resolve(isOpen)
      }
      const late = setTimeout(() => settle(false), CONNECT_MS + this.#parts.timeoutMs)
      late.unref()
      this.#waiting.add(settle)
      this.#look()
    })
  }

  /** Less is wanted now. */
  narrow(): void {
    if (this.#parts.wanted().length === 0) this.#end()
    else this.#ear?.narrow()
  }

  /** Nothing is wanted any more. */
  close(): void {
    this.#end()
    for (const settle of this.#waiting) settle(false)
  }

  /** One look at a time: one that is asked for meanwhile comes right after. */
  #look(): void {
    clearTimeout(this.#timer)
    this.#lookAgain = this.#looking
    if (this.#looking) return
    this.#looking = true
    const asking = [...this.#waiting]
    void this.#find().then((finding) => {
      this.#looking = false
      if (this.#parts.wanted().length === 0) return this.#end()
      this.#isOpen = finding === 'heard'
      this.#failures = this.#isOpen ? 0 : this.#failures + 1
      if (this.#isOpen) for (const settle of asking) settle(true)
      if (this.#isOpen && this.#lookAgain) this.#look()
      else this.#lookIn(this.#isOpen ? BEAT_MS : retryDelayMs(this.#failures, finding))
    })
  }

  #lookIn(ms: number): void {
    this.#timer = setTimeout(() => this.#look(), ms)
    this.#timer.unref()
  }

  async #find(): Promise<Finding> {
    this.#ear ??= openEar(this.#parts, (which) => this.#lost(which))
    const ear = this.#ear
    const finding = await ear?.test()
    if (finding === undefined || ear !== this.#ear) return 'lost'
    // What cannot be sent says nothing about the connection for listening.
    if (finding !== 'heard' && finding !== 'unsent') this.#drop(ear)
    return finding
  }

  #lost(which: OpenEar): void {
    if (which !== this.#ear) return
    this.#drop(which)
    // A look that is under way finds it out by itself.
    if (!this.#looking) this.#lookIn(retryDelayMs(0, 'lost'))
  }

  #drop(which: OpenEar | undefined): void {
    if (which === undefined || which !== this.#ear) return
    this.#ear = undefined
    this.#isOpen = false
    clearTimeout(this.#timer)
    which.close()
  }

  #end(): void {
    this.#drop(this.#ear)
    clearTimeout(this.#timer)
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
function openEar(parts: HearingParts, lost: (which: OpenEar) => void): OpenEar | undefined {
  const { client, connection, timeoutMs, prefix, wanted, heard } = parts
  const own = `${prefix}self:${randomBytes(12).toString('base64url')}`
  const subscribed = new Set<string>()
  let expected: { readonly word: string; readonly arrive: () => void } | undefined
  const ear = tryOpening(connection, {
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
        return client.isRefusal(cause) ? 'refused' : 'lost'
      }
      const word = randomBytes(12).toString('base64url')
      let isThere = false
      const arrival = new Promise<void>((arrive) => {
        expected = { word, arrive }
      }).then(() => {
        isThere = true
      })
      const sent = await publish(parts, own, word)
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

function tryOpening(connection: Connection, listeners: EarListeners): Ear | undefined {
  try {
    return connection.openEar(listeners)
  } catch {
    // The application's client cannot be duplicated just now.
    return undefined
  }
}

/** A refusal is an answer: it must not count against a Redis that does all else. */
export async function publish(
  { client, connection }: Pick<HearingParts, 'client' | 'connection'>,
  address: string,
  message: string,
): Promise<'sent' | 'refused' | 'unsent'> {
  const refusedOr = (reply: Promise<unknown>): Promise<unknown> =>
    reply.catch((cause) => (client.isRefusal(cause) ? 'refused' : Promise.reject(cause)))
  const answer = await connection.run(
    (link) => refusedOr(link.publish(address, message)),
    (reply) => (reply === 'refused' ? 'refused' : /^\d{1,16}$/.test(String(reply)) ? 'sent' : undefined),
  )
  return answer ?? 'unsent'
}
