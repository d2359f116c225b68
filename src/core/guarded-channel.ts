import { type Channel, isMessage } from '../channel.js'
import { reportingAttempt } from './reporting-attempt.js'

/** A channel that takes this much longer than its cache does not open. Listening takes longer than a command: it connects first. */
const LISTEN_MS = 3_000

/** The channel of a cache, where trouble reads as one that is not open: one of the application's own may throw, hang or hand on nonsense. */
export function guardedChannel(make: () => Channel, timeoutMs: number, report: (error: unknown) => void): Channel {
  const attempt = reportingAttempt('channel of the cache', LISTEN_MS + timeoutMs, report)
  const harmless = (method: string, work: () => unknown): Promise<void> =>
    attempt(method, work).then(
      () => {},
      () => {},
    )
  const channel = made(make, report)
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

function made(make: () => Channel, report: (error: unknown) => void): Channel | undefined {
  try {
    const channel = make()
    const { name }: { name: unknown } = channel
    // It goes into the store, in a list. Other members that are missing show where they are called.
    if (typeof name === 'string' && /^[a-z][a-z0-9-]{0,30}$/.test(name)) return channel
    throw new Error('The cache gave a channel without a name such as "redis".')
  } catch (error) {
    report(error)
    return undefined
  }
}
