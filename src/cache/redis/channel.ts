import { type Channel, isAddress, isMessage } from '../../channel.js'
import { nextTurn } from '../../real-time.js'
import type { Client } from './clients.js'
import type { Connection } from './connection.js'
import { Hearing, publish } from './hearing.js'

type Listener = Parameters<Channel['listen']>[1]

const PREFIX = 'express-api-keys:'
/** Messages over pub/sub: what is sent goes over the cache's connection, and one of its own is opened for listening. */
export function redisChannel(client: Client, connection: Connection, timeoutMs: number): Channel {
  const listeners = new Map<string, Set<Listener>>()
  const hearing = new Hearing({ client, connection, timeoutMs, prefix: PREFIX, wanted: () => [...listeners.keys()], heard })
  let closed = false

  return {
    name: 'redis',
    async listen(addresses, listener) {
      if (closed || !addresses.every(isAddress)) return undefined
      // Wrapped, so that the same function given twice is two listeners.
      const own: Listener = (message, address) => listener(message, address)
      for (const address of addresses) listeners.set(PREFIX + address, (listeners.get(PREFIX + address) ?? new Set()).add(own))
      const isOpen = await hearing.opens()
      return isOpen && !closed ? () => stop(addresses, own) : undefined
    },
    async send(address, message) {
      if (!closed && isAddress(address) && isMessage(message)) await publish({ client, connection }, PREFIX + address, message)
    },
    isOpen: () => hearing.isOpen,
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
