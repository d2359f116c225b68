import { timingSafeEqual } from 'node:crypto'
import type { FeedPosition } from '../../store/store.js'
import { hmac, subkey } from '../keyed-hash.js'

/** Asks every instance to say that it knows of a change. */
export interface Recall {
  readonly storeId: string
  /** At random, for each change: what answers it answers no other. */
  readonly nonce: string
  /** Where the answers are to go. */
  readonly inbox: string
  /** A position that shows the change. */
  readonly position: FeedPosition
  /** The digests that it is about; null for whatever has changed up to the position. */
  readonly digests: readonly string[] | null
}

/** Says: what I was told before now about these digests I shall not use for any request that I have not accepted yet. */
export interface Acknowledgement {
  readonly storeId: string
  /** Of the recall. */
  readonly nonce: string
  /** All under which the instance may be waited for. */
  readonly sessions: readonly string[]
}

export type Message = ({ readonly type: 'recall' } & Recall) | ({ readonly type: 'acknowledgement' } & Acknowledgement)

export interface MessageCodec {
  write(message: Message): string
  /** What was written under a server secret of this instance; undefined for anything else. Never throws. */
  read(text: string): Message | undefined
  /** Where all instances over the same data listen. It tells a reader of the channel nothing. */
  address(storeId: string): string
}

/** A recall of more digests than this names none, and asks for all up to its position. */
export const MOST_DIGESTS = 80

/** Names the shape of messages, as part of what their MAC depends on: a change of `Message` needs another name. */
const SHAPE = 'recall message 1'

/** Writes and reads what instances say to each other: the MAC and the content, both base64url. The MAC covers every field. */
export function messageCodec(serverSecrets: readonly Uint8Array[]): MessageCodec {
  const keys = serverSecrets.map((secret) => subkey(secret, SHAPE))
  const [current = new Uint8Array(0)] = keys

  return {
    write(message) {
      const body = Buffer.from(JSON.stringify(message)).toString('base64url')
      return `${hmac(current, [body])}.${body}`
    },

    read(text) {
      const [mac, body, ...more] = text.split('.')
      if (mac === undefined || body === undefined || more.length > 0) return undefined
      if (!keys.some((key) => equal(mac, hmac(key, [body])))) return undefined
      return JSON.parse(Buffer.from(body, 'base64url').toString()) as Message
    },

    address: (storeId) => `recall:${hmac(current, ['address', storeId]).slice(0, 22)}`,
  }
}

function equal(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)]
  return left.length === right.length && timingSafeEqual(left, right)
}
