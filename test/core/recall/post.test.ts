import type { Channel } from '../../../src/channel.js'
import { type Message, messageCodec } from '../../../src/core/recall/messages.js'
import { Post } from '../../../src/core/recall/post.js'
import { SECRET, turns } from './world.js'

const OLD: Buffer = Buffer.alloc(32, 8)
const OURS = messageCodec([SECRET])
const acknowledgement: Message = { type: 'acknowledgement', storeId: 'the data', nonce: 'n', sessions: ['one'] }
const recall: Message = {
  ...{ type: 'recall', storeId: 'the data', nonce: 'n', inbox: 'an inbox' },
  ...{ position: { seq: 1, tag: 't' }, digests: null },
}

test('listens under the address of each server secret and under its inbox, and hands on what it can read', async () => {
  const { post, line, heard } = posted({ serverSecrets: [SECRET, OLD] })
  post.listenOn(line.channel, 'the data')
  await turns()
  expect(line.listens).toEqual([[...messageCodec([SECRET, OLD]).addresses('the data'), 'mine']])
  for (const text of ['hello', messageCodec([Buffer.alloc(32, 9)]).write(recall)]) line.hear(text)
  for (const secret of [SECRET, OLD]) line.hear(messageCodec([secret]).write(recall))
  expect(heard).toEqual([
    [line.channel, recall],
    [line.channel, recall],
  ])
})

test('listens once for the same data', () => {
  const { post, line } = posted()
  for (let n = 0; n < 3; n++) post.listenOn(line.channel, 'the data')
  expect(line.listens).toHaveLength(1)
})

test('a second channel is listened on beside the first', async () => {
  const { post, line } = posted()
  const second = lineOf()
  for (const { channel } of [line, second]) post.listenOn(channel, 'the data')
  await turns()
  expect([line.listens.length, second.listens.length, line.ended, second.ended]).toEqual([1, 1, 0, 0])
})

test('other data in the place of the first have other addresses, and the first are listened for no more', async () => {
  const { post, line } = posted()
  post.listenOn(line.channel, 'the data')
  await turns()
  post.listenOn(line.channel, 'other data')
  await turns()
  expect(line.listens[1]).toEqual([...OURS.addresses('other data'), 'mine'])
  expect([line.listens.length, line.ended]).toEqual([2, 1])
})

test('a listening that begins only when other data are listened for already is ended at once', async () => {
  const { post, line } = posted({ slow: true })
  post.listenOn(line.channel, 'the data')
  post.listenOn(line.channel, 'other data')
  line.begin()
  await turns()
  expect(line.ended).toBe(1)
  line.begin()
  await turns()
  expect(line.ended).toBe(1)
})

test('a listening that does not succeed has nothing to end, neither for other data nor at the end', async () => {
  const { post, line } = posted({ deaf: true })
  for (const data of ['the data', 'other data']) {
    post.listenOn(line.channel, data)
    await turns()
  }
  const slow = posted({ slow: true, deaf: true })
  slow.post.listenOn(slow.line.channel, 'the data')
  for (const one of [post, slow.post]) one.close()
  slow.line.begin()
  await turns()
  expect([line.listens.length, line.ended, slow.line.ended]).toEqual([2, 0, 0])
})

test('after the end nothing is listened for, nothing is handed on, and what was listened for is ended once', async () => {
  const { post, line, heard } = posted()
  post.listenOn(line.channel, 'the data')
  await turns()
  for (let n = 0; n < 2; n++) post.close()
  expect(line.ended).toBe(1)
  line.hear(OURS.write(recall))
  post.listenOn(line.channel, 'other data')
  expect([heard.length, line.listens.length]).toEqual([0, 1])
})

test('a listening that begins only after the end is ended at once', async () => {
  const { post, line } = posted({ slow: true })
  post.listenOn(line.channel, 'the data')
  post.close()
  line.begin()
  await turns()
  expect(line.ended).toBe(1)
})

test('what is for all goes to the address of the current server secret; what is for one goes to its inbox', () => {
  const { post, line } = posted({ serverSecrets: [SECRET, OLD] })
  post.tellAll(line.channel, recall)
  post.tell(line.channel, 'an inbox', acknowledgement)
  expect(line.sent.map(({ address }) => address)).toEqual([OURS.addresses('the data')[0], 'an inbox'])
  expect(line.sent.map(({ message }) => OURS.read(message))).toEqual([recall, acknowledgement])
})

interface Line {
  readonly channel: Channel
  readonly listens: (readonly string[])[]
  readonly sent: { readonly address: string; readonly message: string }[]
  readonly ended: number
  hear(text: string): void
  /** Lets the first listening that waits begin. */
  begin(): void
}

interface LineOptions {
  /** Begins to listen only when it is told to. */
  readonly slow?: boolean
  /** Nothing arrives: there is nothing to end. */
  readonly deaf?: boolean
}

function lineOf({ slow = false, deaf = false }: LineOptions = {}): Line {
  const listens: (readonly string[])[] = []
  const sent: { address: string; message: string }[] = []
  const waiting: (() => void)[] = []
  let ended = 0
  let hear = (_text: string, _address: string): void => {}
  const channel: Channel = {
    name: 'fake',
    async listen(addresses, listener) {
      listens.push(addresses)
      hear = listener
      if (slow) await new Promise<void>((resolve) => waiting.push(resolve))
      return deaf ? undefined : () => void ended++
    },
    send: async (address, message) => void sent.push({ address, message }),
    isOpen: () => true,
    close: async () => {},
  }
  return {
    ...{ channel, listens, sent },
    get ended() {
      return ended
    },
    hear: (text) => hear(text, 'mine'),
    begin: () => waiting.shift()?.(),
  }
}

function posted({ serverSecrets = [SECRET], ...options }: LineOptions & { serverSecrets?: readonly Buffer[] } = {}) {
  const line = lineOf(options)
  const heard: [Channel, Message][] = []
  const post = new Post({
    ...{ channels: [line.channel], serverSecrets, inbox: 'mine' },
    heard: (channel, message) => heard.push([channel, message]),
  })
  return { post, line, heard }
}
