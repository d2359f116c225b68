import { inTime } from '../../in-time.js'
import { nextTurn } from '../../real-time.js'
import { type Breaker, createBreaker } from './breaker.js'
import type { Client, Ear, EarListeners, Link } from './clients.js'

export type StateListener = (state: 'up' | 'down', cause?: unknown) => unknown

/** The way to a Redis that may be in trouble: every command raced against a timer, and a pause after repeated failures. */
export interface Connection {
  /**
   * What `read` makes of the reply, or undefined when there is none in time or one that makes no sense. Never rejects. A reply that comes
   * later is lost; its command may still be carried out, so each command is one that may come late. `asking` wait for the reply.
   */
  run<T>(command: (link: Link) => Promise<unknown>, read: (reply: unknown) => T | undefined, asking?: number): Promise<T | undefined>
  /** Whether Redis is left alone but for one command now and then. */
  isLeftAlone(): boolean
  /** Opens a connection for listening; undefined, or a throw, where that cannot be now. */
  openEar(listeners: EarListeners): Ear | undefined
  close(): Promise<void>
}

/** Connects at the first command; until then there is no answer. */
export function createConnection(client: Client, timeoutMs: number, onStateChange: StateListener = logState): Connection {
  const breaker = createBreaker()
  const silence = (): NoAnswer => new NoAnswer(`Redis gave no answer within ${timeoutMs} ms.`)
  let link: Link | undefined
  let closed = false
  const announce = announcer(onStateChange)

  return {
    isLeftAlone: breaker.isOpen,
    openEar: (listeners) => theLink()?.openEar(listeners),
    async run(command, read, asking = 1) {
      const connected = readyLink()
      if (connected === undefined) return undefined
      const pass = breaker.enter()
      if (pass === undefined) return undefined
      try {
        // Our own timer: a client can leave a promise pending for ever.
        const answer = read(await inTime(timeoutMs, command(connected), silence))
        if (answer === undefined) throw new Error('Redis gave a reply that makes no sense.')
        breaker.succeeded()
        tell('up')
        return answer
      } catch (cause) {
        // A refusal is an answer too, if a bad one: nobody has waited in vain.
        if (!breaker.failed(pass, client.isRefusal(cause) ? 1 : asking)) return undefined
        tell('down', cause)
        // A connection that went silent may stay so for a quarter of an hour, until TCP gives up: a new one knows better.
        if (cause instanceof NoAnswer && !closed) {
          breaker.droppedConnection()
          connected.reconnect()
        }
        return undefined
      }
    },
    async close() {
      closed = true
      if (link === undefined) return
      link.close()
      link = undefined
      await nextTurn()
    },
  }

  /** The connection, if it can be written to now. One that cannot costs nothing: the client goes on trying to connect by itself. */
  function readyLink(): Link | undefined {
    const opened = theLink()
    if (opened?.hasEnded() && breaker.mayRevive()) opened.connect()
    return opened?.isReady() ? opened : undefined
  }

  function theLink(): Link | undefined {
    if (closed) return undefined
    try {
      link ??= openLink(client, timeoutMs, breaker, tell)
    } catch (cause) {
      tell('down', cause)
    }
    return link
  }

  function tell(now: 'up' | 'down', cause?: unknown): void {
    if (!closed) announce(now, cause)
  }
}

function openLink(client: Client, timeoutMs: number, breaker: Breaker, tell: (now: 'down', cause?: unknown) => void): Link {
  let lastError: unknown
  return client.open(timeoutMs, {
    error(error) {
      lastError = error
      // A wrong password is refused on a connection that stays open: no close says so.
      if (client.isRefusal(error)) tell('down', error)
    },
    close() {
      if (!breaker.closedConnection()) tell('down', lastError)
    },
    ready() {
      lastError = undefined
      breaker.readyConnection()
    },
  })
}

/** Tells the listener of changes alone. A listener's own trouble must not become an answer, nor end the process; it may be an async function. */
function announcer(onStateChange: StateListener): (now: 'up' | 'down', cause?: unknown) => void {
  let state: 'up' | 'down' = 'up'
  return (now, cause) => {
    if (now === state) return
    state = now
    try {
      Promise.resolve(onStateChange(now, cause)).catch(complain)
    } catch (failure) {
      complain(failure)
    }
  }
}

class NoAnswer extends Error {}

function complain(failure: unknown): void {
  console.error(`express-api-keys: onStateChange has failed: ${oneLine(failure)}`)
}

function logState(state: 'up' | 'down', cause?: unknown): void {
  const why = cause === undefined ? '' : ` (${oneLine(cause)})`
  const change = state === 'up' ? 'answers again.' : `has stopped answering${why}; requests go on without it.`
  console.error(`express-api-keys: Redis ${change}`)
}

/** The name and the message alone: an error of a client carries the command with its arguments, and a message may name a URL with a password. */
function oneLine(error: unknown): string {
  const { name, message } = error instanceof Error ? error : { name: typeof error, message: '' }
  return `${name} ${message}`
    .replaceAll(/\s+/g, ' ')
    .replaceAll(/\/\/[^/@\s]*@/g, '//')
    .slice(0, 300)
    .trim()
}
