import type { Channel } from '../../channel.js'
import { type Message, type MessageCodec, messageCodec } from './messages.js'

interface Listening {
  readonly storeId: string
  /** Stops it, once that is known. */
  end?: (() => void) | undefined
}

export interface PostParts {
  /** The ways to reach other instances, the one that this one listens on first. Guarded: none throws, rejects or hangs. */
  readonly channels: readonly Channel[]
  readonly serverSecrets: readonly Uint8Array[]
  /** Where answers come to this instance. */
  readonly inbox: string
  readonly heard: (channel: Channel, message: Message) => void
}

/** Carries messages between instances. */
export class Post {
  readonly channels: readonly Channel[]
  readonly #parts: PostParts
  readonly #codec: MessageCodec
  readonly #listening = new Map<Channel, Listening>()
  #closed = false

  constructor(parts: PostParts) {
    this.#parts = parts
    this.#codec = messageCodec(parts.serverSecrets)
    this.channels = parts.channels
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
