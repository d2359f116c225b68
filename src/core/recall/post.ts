import type { Channel } from '../../channel.js'
import { type Message, type MessageCodec, messageCodec } from './messages.js'

interface Listening {
  readonly storeId: string
  /** Stops it, once that is known. */
  end?: (() => void) | undefined
}

export interface PostParts {
  /** The ways to reach other instances, the one that this one listens on first. */
  readonly channels: readonly Channel[]
  readonly serverSecrets: readonly Uint8Array[]
  /** Where answers come to this instance. */
  readonly inbox: string
  readonly heard: (channel: Channel, message: Message) => void
  readonly report: (error: unknown) => void
}

/** Carries messages between instances. Nothing here throws or rejects, not even where a channel of the application's own does. */
export class Post {
  readonly channels: readonly Channel[]
  readonly #parts: PostParts
  readonly #codec: MessageCodec
  readonly #listening = new Map<Channel, Listening>()
  #closed = false

  constructor(parts: PostParts) {
    this.#parts = parts
    this.#codec = messageCodec(parts.serverSecrets)
    this.channels = parts.channels.map((channel) => guardedChannel(channel, parts.report))
  }

  /** Listens for what is said about some data, and for answers. A database that was put in the place of another has other addresses. */
  listenOn(channel: Channel, storeId: string): void {
    const known = this.#listening.get(channel)
    if (known?.storeId === storeId || this.#closed) return
    known?.end?.()
    const listening: Listening = { storeId }
    this.#listening.set(channel, listening)
    const hear = (text: string): void => {
      const message = this.#closed ? undefined : this.#codec.read(text)
      if (message !== undefined) this.#parts.heard(channel, message)
    }
    void channel.listen([...this.#codec.addresses(storeId), this.#parts.inbox], hear).then((end) => {
      listening.end = end
      if (this.#closed || this.#listening.get(channel) !== listening) end?.()
    })
  }

  /** Sends a message to all instances over some data. Begins to do so before it returns. */
  tellAll(channel: Channel, message: Message): void {
    const [address = ''] = this.#codec.addresses(message.storeId)
    this.tell(channel, address, message)
  }

  /** Sends a message to one inbox. Begins to do so before it returns. */
  tell(channel: Channel, inbox: string, message: Message): void {
    void channel.send(inbox, this.#codec.write(message))
  }

  close(): void {
    this.#closed = true
    for (const { end } of this.#listening.values()) end?.()
    this.#listening.clear()
  }
}

/** The same channel, where trouble is reported and reads as "does not arrive". */
function guardedChannel(channel: Channel, report: (error: unknown) => void): Channel {
  return {
    name: channel.name,
    async listen(addresses, listener) {
      try {
        const end = await channel.listen(addresses, listener)
        return typeof end === 'function' ? () => attempt(end, report) : undefined
      } catch (error) {
        report(error)
        return undefined
      }
    },
    async send(address, message) {
      try {
        await channel.send(address, message)
      } catch (error) {
        report(error)
      }
    },
    isOpen: () => attempt(() => channel.isOpen(), report) === true,
    close: () => channel.close(),
  }
}

function attempt<T>(work: () => T, report: (error: unknown) => void): T | undefined {
  try {
    return work()
  } catch (error) {
    report(error)
    return undefined
  }
}
