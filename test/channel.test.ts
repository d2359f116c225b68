import type { Channel } from 'express-api-keys'
import { channelChecks } from '../src/testing/channel-checks.js'
import { channelContract } from './support/channel-contract.js'
import { EVERYWHERE, MessageServer, memoryChannel } from './support/memory-channel.js'

channelContract('a channel in memory', async () => {
  const server = new MessageServer()
  return { channel: memoryChannel(server), sibling: memoryChannel(server), fail: server.fail, close: async () => {} }
})

test.concurrent.each<[string, string, (sound: Channel) => Partial<Channel>]>([
  ['tells everybody everything', 'nobody else', ({ listen }) => ({ listen: (_there, hear) => listen([EVERYWHERE], hear) })],
  ['names another address', 'nobody else', ({ listen }) => ({ listen: (there, hear) => listen(there, (text) => hear(text, 'x')) })],
  ['cuts what is long', 'however long', ({ send }) => ({ send: (there, text) => send(there, text.slice(0, 6_999)) })],
  ['reads quotes', 'however long', ({ send }) => ({ send: (there, text) => send(there, text.replaceAll("'", "''")) })],
  [
    'sends anything',
    'not ASCII',
    ({ listen, send }) => ({
      listen: (there, hear) => listen(there, (text, from) => hear(decodeURIComponent(text), from)),
      send: (there, text) => send(there, encodeURIComponent(text.slice(0, 1)).slice(0, 7_000)),
    }),
  ],
  ['loses one in ten', 'hardly any is lost', ({ send }) => ({ send: losing(send, 10) })],
  ['never stops', 'one by one', ({ listen }) => ({ listen: (...all) => listen(...all).then((stop) => stop && (() => {})) })],
  ['hears one listener', 'one by one', ({ listen }) => ({ listen: replacing(listen) })],
  ['is always open', 'after its end', () => ({ isOpen: () => true })],
  ['has no good name', 'after its end', () => ({ name: 'a b' })],
  ['throws after its end', 'while it connects', () => ({ close: () => Promise.reject(new Error('closed')) })],
  [
    'says that it listens',
    'its server is gone',
    ({ listen }) => ({ listen: (...all) => listen(...all).then((stop) => stop ?? (() => {})) }),
  ],
  ['rejects without a server', 'its server is gone', () => ({ send: () => Promise.reject(new Error('gone')) })],
  ['listens under anything', 'is none', ({ listen }) => ({ listen: (_there, hear) => listen([EVERYWHERE], hear) })],
])('the contract notices a channel that %s', async (_fault, title, fault) => {
  const server = new MessageServer()
  const runs: (() => Promise<void>)[] = []
  const faulty = (): Channel => {
    const sound = memoryChannel(server)
    return { ...sound, ...fault(sound) }
  }
  channelChecks((name, run) => {
    if (name.includes(title)) runs.push(() => run(faulty(), faulty(), server.fail))
  })
  expect(runs).toHaveLength(1)
  await expect(runs[0]?.()).rejects.toThrow()
})

function losing(send: Channel['send'], each: number): Channel['send'] {
  let sent = 0
  return async (there, text) => (++sent % each === 0 ? undefined : send(there, text))
}

function replacing(listen: Channel['listen']): Channel['listen'] {
  const last = new Map<string, unknown>()
  return (there, hear) => {
    for (const each of there) last.set(each, hear)
    return listen(there, (text, from) => (last.get(from) === hear ? hear(text, from) : undefined))
  }
}
