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
  /**
   * Where all instances over the same data listen: one address for each server secret, the one to send to first. While a secret is being replaced, what some send under
   * the new one others hear under the second. It tells a reader of the channel nothing.
   */
  addresses(storeId: string): readonly string[]
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
      if (typeof text !== 'string') return undefined
      const [mac, body, ...more] = text.split('.')
      if (mac === undefined || body === undefined || more.length > 0) return undefined
      if (!keys.some((key) => equal(mac, hmac(key, [body])))) return undefined
      return messageIn(Buffer.from(body, 'base64url').toString())
    },

    addresses: (storeId) => keys.map((key) => `recall:${hmac(key, ['address', storeId]).slice(0, 22)}`),
  }
}

/** A message of the shape that is known here; another version of this package, under the same server secret, may write others. */
function messageIn(json: string): Message | undefined {
  const message = parsed(json) as (Message & { readonly position?: Partial<FeedPosition> }) | null | undefined
  if (typeof message?.storeId !== 'string' || typeof message.nonce !== 'string') return undefined
  if (message.type === 'acknowledgement') return isTexts(message.sessions) ? message : undefined
  if (message.type !== 'recall' || typeof message.inbox !== 'string') return undefined
  if (!Number.isSafeInteger(message.position?.seq) || typeof message.position?.tag !== 'string') return undefined
  return message.digests === null || isTexts(message.digests) ? message : undefined
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json)
  } catch {
    return undefined
  }
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((one) => typeof one === 'string')
}

function equal(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)]
  return left.length === right.length && timingSafeEqual(left, right)
}
