import { type Channel, isMessage } from '../channel.js'
import { reportingAttempt } from './reporting-attempt.js'

/** A channel that takes this much longer than its cache or store does not open. Listening takes longer than a command: it connects first. */
const LISTEN_MS = 3_000

interface GuardedParts {
  /** Whose channel it is. */
  readonly of: 'cache' | 'store'
  readonly make: () => Channel
  /** How long its owner itself takes at most. */
  readonly timeoutMs?: number
  readonly report: (error: unknown) => void
}

/** A channel of the cache or the store, where trouble reads as one that is not open: one of the application's own may throw, hang or hand on nonsense. */
export function guardedChannel({ of, make, timeoutMs = 0, report }: GuardedParts): Channel {
  const attempt = reportingAttempt(`channel of the ${of}`, LISTEN_MS + timeoutMs, report)
  const harmless = (method: string, work: () => unknown): Promise<void> =>
    attempt(method, work).then(
      () => {},
      () => {},
    )
  const channel = made(of, make, report)
  if (channel === undefined) return NONE

  return {
    name: channel.name,
    async listen(addresses, listener) {
      const hear = (message: unknown, address: unknown): void => {
        if (isMessage(message) && addresses.some((each) => each === address)) listener(message, address as string)
      }
      const listening = attempt(
        'listen',
        () => channel.listen(addresses, hear),
        (stop) => stop === undefined || typeof stop === 'function',
      )
      const stop = await listening.catch(() => undefined)
      return stop && (() => void harmless('stop', stop))
    },
    send: (address, message) => harmless('send', () => channel.send(address, message)),
    isOpen() {
      // Asked often, so only trouble is looked at further.
      try {
        const answer: unknown = channel.isOpen()
        if (typeof answer === 'boolean') return answer
        void harmless('isOpen', () => answer)
      } catch (error) {
        void harmless('isOpen', () => Promise.reject(error))
      }
      return false
    },
    close: () => harmless('close', () => channel.close()),
  }
}

/** Stands for one that cannot be made: nobody is reached by it. */
const NONE: Channel = { name: 'none', listen: async () => undefined, send: async () => {}, isOpen: () => false, close: async () => {} }

function made(of: GuardedParts['of'], make: () => Channel, report: (error: unknown) => void): Channel | undefined {
  try {
    const channel = make()
    const { name }: { name: unknown } = channel
    // It goes into the store, in a list. Other members that are missing show where they are called.
    if (typeof name === 'string' && /^[a-z][a-z0-9-]{0,30}$/.test(name)) return channel
    throw new Error(`The ${of} gave a channel without a name such as "redis".`)
  } catch (error) {
    report(error)
    return undefined
  }
}
