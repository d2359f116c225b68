import { randomBytes } from 'node:crypto'
import { type Cache, type Channel, createApiKeys, memoryStore, type Store } from 'express-api-keys'
import { guardedCache } from '../../src/core/guarded-cache.js'
import { channelContract } from '../support/channel-contract.js'
import { MessageServer, memoryChannel } from '../support/memory-channel.js'

channelContract('a sound channel of a cache of the application', async () => {
  const server = new MessageServer()
  const guarded = (): Channel => channelOf(() => memoryChannel(server)).channel
  return { channel: guarded(), sibling: guarded(), fail: server.fail, close: async () => {} }
})

test('a cache without a channel has none', () => {
  expect(guardedCache({} as Cache, () => {}).channel).toBeUndefined()
})

test.each<[string, () => unknown]>([
  ['throws', throwing],
  ['is none', () => undefined],
  ['is a promise', async () => memoryChannel(new MessageServer())],
  ['has no name', () => ({ ...memoryChannel(new MessageServer()), name: '' })],
  ['has a name that is a list', () => ({ ...memoryChannel(new MessageServer()), name: 'redis,postgres' })],
])('a channel that %s reads as one that does not open, and is reported', async (_fault, make) => {
  const { channel, reported } = channelOf(make as () => Channel)
  expect([channel.isOpen(), await channel.listen(['here'], () => {}), channel.name]).toEqual([false, undefined, 'none'])
  await channel.send('here', 'text')
  await channel.close()
  expect(reported).toHaveLength(1)
})

const rejecting = (): Promise<never> => Promise.reject(new Error('broken'))

test.each<[string, Partial<Channel> | Record<string, unknown>]>([
  ['throws', { listen: throwing, send: throwing, isOpen: throwing, close: throwing }],
  ['rejects', { listen: rejecting, send: rejecting, isOpen: rejecting, close: rejecting }],
  ['has no methods', { listen: undefined, send: undefined, isOpen: undefined, close: undefined }],
])('a channel that %s does no harm, and each method is reported once', async (_fault, broken) => {
  const { channel, reported } = channelOf(() => ({ ...memoryChannel(new MessageServer()), ...broken }) as Channel)
  for (let n = 0; n < 3; n++) {
    expect(await channel.listen(['here'], () => {})).toBeUndefined()
    await channel.send('here', 'text')
    expect(channel.isOpen()).toBe(false)
    await channel.close()
  }
  await new Promise(setImmediate)
  expect(reported).toHaveLength(4)
})

test('a channel that answers nonsense, and a way to stop that throws, are no trouble', async () => {
  const nonsense = { listen: async () => 'stop', isOpen: () => 'yes', send: () => 7, close: () => null }
  const { channel } = channelOf(() => ({ ...memoryChannel(new MessageServer()), ...nonsense }) as unknown as Channel)
  expect([await channel.listen(['here'], () => {}), channel.isOpen()]).toEqual([undefined, false])
  const broken = channelOf(() => ({ ...memoryChannel(new MessageServer()), listen: async () => throwing }))
  const stop = await broken.channel.listen(['here'], () => {})
  stop?.()
  await new Promise(setImmediate)
  expect(broken.reported).toHaveLength(1)
})

test('only messages under addresses that were asked for are handed on', async () => {
  let hear: (...all: unknown[]) => void = () => {}
  const { channel } = channelOf(() => ({
    ...memoryChannel(new MessageServer()),
    async listen(_addresses, listener) {
      hear = listener as typeof hear
      return () => {}
    },
  }))
  const heard: unknown[] = []
  await channel.listen(['here', 'there'], (...all) => heard.push(all))
  for (const nonsense of [undefined, null, 7, {}, '', 'é', 'x'.repeat(7_001), ['text'], Buffer.from('text')]) hear(nonsense, 'here')
  for (const nowhere of [undefined, null, '', 'elsewhere', ['here']]) hear('text', nowhere)
  hear('text', 'there')
  expect(heard).toEqual([['text', 'there']])
})

function throwing(): never {
  throw new Error('broken')
}

function channelOf(make: () => Channel): { channel: Channel; reported: unknown[] } {
  const reported: unknown[] = []
  const cache = guardedCache({ channel: make } as unknown as Cache, (error) => reported.push(error)) as Required<Cache>
  return { channel: cache.channel(), reported }
}

test("the channel of a store of the application's own is guarded as well", async () => {
  const reported: unknown[] = []
  const report = (error: unknown): void => void reported.push(error)
  const store = { ...memoryStore(), channel: throwing } as Store
  const apiKeys = createApiKeys({ store, serverSecret: randomBytes(32), onError: report })
  await apiKeys.migrate()
  const { secret } = await apiKeys.create({ ownerId: 'someone', name: 'a key', as: 'application' })
  expect(await apiKeys.verify(secret)).toMatchObject({ ok: true })
  await apiKeys.close()
  expect(reported).toEqual([expect.objectContaining({ code: 'internal_error', cause: new Error('broken') })])
})
