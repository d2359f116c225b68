import type { Channel } from '../../src/channel.js'

/** What happens to messages. `forge`: each comes changed too. `replay`: each brings earlier ones along. */
export type MessageFate = 'drop' | 'double' | 'delay' | 'replay' | 'forge'

export interface Trouble {
  readonly side: 'send' | 'hear'
  readonly fate: MessageFate
  /** How many messages it meets, from 0 to 1. */
  readonly share: number
  /** How late messages are at most. */
  readonly ms: number
}

export interface Sent {
  readonly address: string
  readonly message: string
}

/** What goes wrong on the way of messages, which are never trusted. */
export interface Messages {
  set(trouble: Trouble | undefined): void
  met(): number
  /** What has passed by here, and what did elsewhere: for replays. */
  readonly library: Sent[]
  /** The same channel, with trouble. */
  through(channel: Channel): Channel
}

const REMEMBERED = 500
/** So many earlier messages come along with each. */
const REPLAYED = 3

export function messages(): Messages {
  let trouble: Trouble | undefined
  let met = 0
  const library: Sent[] = []

  return {
    library,
    set(next) {
      trouble = next
    },
    met: () => met,
    through: (channel) => ({
      name: channel.name,
      isOpen: () => channel.isOpen(),
      close: () => channel.close(),
      send: async (address, message) => {
        await Promise.all(meet('send', { address, message }).map(later((one) => channel.send(one.address, one.message))))
      },
      listen: (addresses, listener) =>
        channel.listen(addresses, (message, address) => {
          const deliver = later(async (one) => listener(one.message, one.address))
          for (const one of meet('hear', { address, message })) void deliver(one)
        }),
    }),
  }

  /** What becomes of one message. */
  function meet(side: Trouble['side'], sent: Sent): readonly Sent[] {
    library.push(sent)
    if (library.length > REMEMBERED) library.shift()
    if (trouble?.side !== side || Math.random() >= trouble.share) return [sent]
    met++
    const any = (): Sent => library[Math.floor(Math.random() * library.length)] ?? sent
    switch (trouble.fate) {
      case 'drop':
        return []
      case 'double':
        return [sent, sent]
      case 'delay':
        return [sent]
      case 'replay':
        // To their own address, and to where they never were.
        return [sent, ...Array.from({ length: REPLAYED }, any).flatMap((one) => [one, { ...one, address: sent.address }])]
      case 'forge':
        return [...forgeries(sent.message, any().message).map((message) => ({ ...sent, message })), sent]
    }
  }

  /** At once, but where messages are late. */
  function later(deliver: (sent: Sent) => Promise<void>): (sent: Sent) => Promise<void> {
    return (sent) => {
      if (trouble?.fate !== 'delay' && trouble?.fate !== 'double') return deliver(sent)
      const { ms } = trouble
      return new Promise((resolve) => setTimeout(() => resolve(deliver(sent)), Math.random() * ms))
    }
  }
}

/** What somebody who does not know the server secret can make of messages. */
function forgeries(message: string, other: string): readonly string[] {
  const [mac = '', body = ''] = message.split('.')
  const [otherMac = ''] = other.split('.')
  const text = Buffer.from(body, 'base64url').toString()
  const said = (changed: string): string => `${mac}.${Buffer.from(changed).toString('base64url')}`
  const at = Math.floor(Math.random() * message.length)
  return [
    `${message.slice(0, at)}${message[at] === 'A' ? 'B' : 'A'}${message.slice(at + 1)}`,
    `${otherMac}.${body}`,
    message.slice(0, at),
    `${message}.${body}`,
    said(text.replace('recall', 'acknowledgement').replace('"inbox"', '"sessions"')),
    said(text.replace(/"sessions":\[[^\]]*\]/, '"sessions":["all of them"]')),
    said(text.replace(/"seq":\d+/, '"seq":9007199254740991')),
    said('{"type":"acknowledgement"}'),
    '',
    'null',
    '\u{1f511}'.repeat(4_000),
  ]
}
