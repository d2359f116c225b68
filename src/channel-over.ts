import { type Channel, isAddress, isMessage } from './channel.js'
import { clearTimeout, nextTurn, setTimeout } from './real-time.js'

type Listener = Parameters<Channel['listen']>[1]

/** What came of looking whether messages arrive. `unsent`: nobody can tell, as none could be sent. */
export type Finding = 'heard' | 'deaf' | 'unsent' | 'refused' | 'lost'

/** A connection that went silent is noticed about this soon, by a message to itself: TCP alone may take a quarter of an hour. */
const BEAT_MS = 5_000
/** The first try after a loss comes at once, for all that is said meanwhile is missed; then twice as late each time. */
const FIRST_RETRY_MS = 20
/** What comes back is listened to again about this soon. */
const LONGEST_RETRY_MS = 1_000
/** What answers, but lets no message through, will go on doing so. */
const LONGEST_DEAF_RETRY_MS = 10_000

/** One connection for listening, from its opening to its loss. */
export interface OpenEar {
  /** Listens under every wanted address, then sends itself a message and sees whether it comes. Never rejects. */
  test(): Promise<Finding>
  /** Listens no more under addresses that are not wanted. */
  narrow(): void
  close(): void
}

/** What an ear is told. */
export interface EarParts {
  /** The addresses that somebody listens under. */
  wanted(): readonly string[]
  heard(address: string, message: string): void
  /** The connection is lost. */
  lost(which: OpenEar): void
}

export interface Carrier {
  readonly name: string
  /** How long a listener waits until the connection is known to be there. */
  readonly patienceMs: number
  /** Undefined where none can be opened now. */
  openEar(parts: EarParts): OpenEar | undefined
  /** Never rejects. */
  send(address: string, message: string): Promise<unknown>
}

/** A channel over whatever carries messages, with one connection for listening that is kept open for as long as anybody does. */
export function channelOver({ name, patienceMs, openEar, send }: Carrier): Channel {
  const listeners = new Map<string, Set<Listener>>()
  const wanted = (): readonly string[] => [...listeners.keys()]
  const hearing = new Hearing({ patienceMs, wanted, openEar: (lost) => openEar({ wanted, heard, lost }) })
  let closed = false

  return {
    name,
    async listen(addresses, listener) {
      if (closed || !addresses.every(isAddress)) return undefined
      // Wrapped, so that the same function given twice is two listeners.
      const own: Listener = (message, address) => listener(message, address)
      for (const address of addresses) listeners.set(address, (listeners.get(address) ?? new Set()).add(own))
      const isOpen = await hearing.opens()
      return isOpen && !closed ? () => stop(addresses, own) : undefined
    },
    async send(address, message) {
      if (!closed && isAddress(address) && isMessage(message)) await send(address, message)
    },
    isOpen: () => hearing.isOpen,
    async close() {
      closed = true
      listeners.clear()
      hearing.close()
      await nextTurn()
    },
  }

  /** A server may say anything. Only what could have been sent, and where somebody listens, goes on. */
  function heard(address: string, message: string): void {
    if (!isMessage(message)) return
    for (const listener of [...(listeners.get(address) ?? [])]) {
      try {
        listener(message, address)
      } catch {
        // A broken listener keeps nothing from the others, and does not end the process by way of the client.
      }
    }
  }

  function stop(addresses: readonly string[], own: Listener): void {
    for (const address of addresses) {
      const there = listeners.get(address)
      if (there?.delete(own) && there.size === 0) listeners.delete(address)
    }
    hearing.narrow()
  }
}

interface HearingParts {
  readonly patienceMs: number
  readonly wanted: () => readonly string[]
  readonly openEar: (lost: (which: OpenEar) => void) => OpenEar | undefined
}

/** Keeps one connection open for as long as anything is wanted, and looks now and then whether messages arrive. */
class Hearing {
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
      const late = setTimeout(() => settle(false), this.#parts.patienceMs)
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
    this.#ear ??= this.#parts.openEar((which) => this.#lost(which))
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
