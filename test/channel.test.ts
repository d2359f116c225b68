import type { Channel } from 'express-api-keys'
import { channelChecks } from '../src/testing/channel-checks.js'
import { channelContract } from './support/channel-contract.js'

channelContract('a channel in memory', async () => {
  const server = new Server()
  return { channel: memoryChannel(server), sibling: memoryChannel(server), fail: server.fail, close: async () => {} }
})

test.concurrent.each<[string, string, (sound: Channel) => Partial<Channel>]>([
  ['tells everybody everything', 'nobody else', ({ listen }) => ({ listen: (_there, hear) => listen(EVERYWHERE, hear) })],
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
  ['listens under anything', 'is none', ({ listen }) => ({ listen: (_there, hear) => listen(EVERYWHERE, hear) })],
])('the contract notices a channel that %s', async (_fault, title, fault) => {
  const server = new Server()
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

const EVERYWHERE = ['*']

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

type Listener = Parameters<Channel['listen']>[1]

class Server {
  readonly ears = new Set<(text: string, address: string) => void>()
  isUp = true
  fail = async (): Promise<void> => {
    this.isUp = false
  }
}

/** The least that is a channel: what the contract asks for, and nothing else. */
function memoryChannel(server: Server): Channel {
  const ears = new Set<(text: string, address: string) => void>()
  let closed = false
  const isAddress = (text: string): boolean => /^[\w:-]{1,60}$/.test(text)
  return {
    name: 'memory',
    async listen(addresses, listener: Listener) {
      if (closed || !server.isUp || !addresses.every((each) => isAddress(each) || addresses === EVERYWHERE)) return undefined
      const hear = (text: string, address: string): void => {
        if (!addresses.includes(address) && addresses !== EVERYWHERE) return
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
