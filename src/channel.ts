/**
 * A way to send short messages to other instances at once, such as Redis pub/sub or PostgreSQL's NOTIFY. Nothing rests on it but speed: messages are authenticated by the
 * core, and may be lost, late, doubled, in any order or of a stranger. Nothing here ever rejects or throws.
 */
export interface Channel {
  /** What members call it: `redis`, `postgres`. */
  readonly name: string

  /**
   * Listens under some addresses; connects at the first call. `listener` hears each message with the address it was sent to. Resolves, once messages are known to arrive (as
   * one that was sent to itself does), with how to stop; with undefined where they do not arrive in time. The connection then goes on trying by itself, and `listener`
   * may hear messages later.
   */
  listen(addresses: readonly string[], listener: (message: string, address: string) => void): Promise<(() => void) | undefined>

  /** Sends a message of up to 7,000 ASCII characters to whoever listens under an address of up to 60 letters, digits, `_`, `:` and `-`. */
  send(address: string, message: string): Promise<void>

  /** Whether messages are known to arrive, as far as can be told without asking. */
  isOpen(): boolean

  /** Ends the connections that were opened here. */
  close(): Promise<void>
}

export function isAddress(address: unknown): address is string {
  return typeof address === 'string' && /^[\w:-]{1,60}$/.test(address)
}

export function isMessage(message: unknown): message is string {
  return typeof message === 'string' && message.length <= MAX_MESSAGE_LENGTH && /^\p{ASCII}+$/u.test(message)
}

/** PostgreSQL sends at most 7,999 bytes. */
export const MAX_MESSAGE_LENGTH = 7_000
