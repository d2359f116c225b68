import type { Channel } from 'express-api-keys'

/** An address under which everything is heard, for a channel that is at fault. */
export const EVERYWHERE: string = 'every where'

/** Where messages go. */
export class MessageServer {
  readonly ears: Set<(text: string, address: string) => void> = new Set()
  isUp: boolean = true
  readonly fail = async (): Promise<void> => {
    this.isUp = false
  }
}

/** The least that is a channel: what the contract asks for, and nothing else. */
export function memoryChannel(server: MessageServer): Channel {
  const ears = new Set<(text: string, address: string) => void>()
  let closed = false
  const isAddress = (text: string): boolean => /^[\w:-]{1,60}$/.test(text)
  return {
    name: 'memory',
    async listen(addresses, listener) {
      if (closed || !server.isUp || !addresses.every((each) => isAddress(each) || each === EVERYWHERE)) return undefined
      const hear = (text: string, address: string): void => {
        if (!addresses.includes(address) && !addresses.includes(EVERYWHERE)) return
        try {
          listener(text, address)
        } catch {}
      }
      ears.add(hear)
      server.ears.add(hear)
      return () => {
        ears.delete(hear)
        server.ears.delete(hear)
      }
    },
    async send(address, text) {
      if (closed || !server.isUp || !isAddress(address) || !/^\p{ASCII}{1,7000}$/u.test(text)) return
      for (const hear of server.ears) hear(text, address)
    },
    isOpen: () => server.isUp && ears.size > 0,
    async close() {
      closed = true
      for (const hear of ears) server.ears.delete(hear)
      ears.clear()
    },
  }
}
