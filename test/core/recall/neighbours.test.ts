import { concerns, type Neighbour, neighbours } from '../../../src/core/recall/neighbours.js'
import { DIGEST, FULL, turns, World } from './world.js'

let world: World

beforeEach(() => {
  neighbours.clear()
  world = new World()
  world.oneProcess = true
})

afterEach(() => world.close())

test('instances of one process know of a change without a message', async () => {
  const [rotator, ...others] = [await world.member(), await world.member(), await world.member()]
  await world.trusted()
  const settling = rotator.retire()
  await turns()
  expect([settling.done, others.map((one) => one.accepts()), world.hub.sent]).toEqual([true, [false, false], []])
  expect(rotator.told).toMatchObject([{ members: 2, answered: 2, silent: [], early: true }])
})

test('instances of one process that only read, or use no recall, need not be waited for either', async () => {
  const [rotator, other] = [await world.member({ recall: false }), await world.member({ recall: false })]
  await world.trusted()
  const settling = rotator.retire()
  await turns()
  expect([settling.done, other.accepts(), world.hub.sent]).toEqual([true, false, []])
})

test('where the digests are not known, instances of one process read the feed first', async () => {
  const [rotator, other] = [await world.member({ recall: false }), await world.member({ recall: false })]
  await world.trusted()
  world.data.retire([DIGEST])
  const release = world.data.hold()
  const settling = rotator.settle(undefined)
  await world.pass(300)
  expect(settling.done).toBe(false)
  release()
  await turns(10)
  expect([settling.done, rotator.accepts(), other.accepts()]).toEqual([true, false, false])
})

test('an instance over other data in the same process is not disturbed', async () => {
  const rotator = await world.member()
  const elsewhere = new World()
  const stranger = await elsewhere.member()
  elsewhere.data.storeId = 'other data'
  await stranger.follow()
  await turns()
  await stranger.follow()
  await world.trusted()
  const before = stranger.accepts()
  rotator.retire()
  await turns()
  expect([before, stranger.verifier.follower.storeId, stranger.accepts()]).toEqual([true, 'other data', true])
  await elsewhere.close()
})

test.each<[string, Partial<Neighbour>]>([
  ['throws', { hear: throwing }],
  ['rejects', { hear: async () => throwing() }],
  ['cannot say so', { hear: () => false }],
  ['cannot say so in the end', { hear: async () => false }],
  ['cannot tell its data', { storeId: throwing }],
  ['cannot tell its sessions', { sessions: throwing }],
  ['answers nonsense', { hear: () => 'yes' as never }],
  ['never answers', { hear: () => new Promise<boolean>(() => {}) }],
])('P3: a neighbour of another copy of the package that %s is waited for in full, and no longer', async (_what, strange) => {
  const rotator = await world.member()
  await world.trusted()
  world.data.ghost('strange')
  neighbours.add({ storeId: () => 'the data', sessions: () => ['strange'], hear: () => true, ...strange })
  const settling = rotator.retire()
  await world.pass(FULL - 10)
  expect(settling.done).toBe(false)
  await world.pass(10)
  expect(settling.done).toBe(true)
  await rotator.verifier.idle()
})

test('a neighbour of another copy of the package that drops at once is waited for no longer than that', async () => {
  const rotator = await world.member()
  await world.trusted()
  world.data.ghost('strange')
  const heard: unknown[] = []
  neighbours.add({ storeId: () => 'the data', sessions: () => ['strange'], hear: (...asked) => heard.push(asked) > 0 })
  const settling = rotator.retire()
  await turns()
  expect([settling.done, heard]).toEqual([true, [[[DIGEST], 1]]])
})

test('an instance that never joined, or was closed, is held by nobody', async () => {
  const one = world.instance()
  expect(neighbours.size).toBe(0)
  await one.follow()
  expect(neighbours.size).toBe(1)
  one.recalls.close()
  expect(neighbours.size).toBe(0)
  one.recalls.listen()
  expect(neighbours.size).toBe(0)
})

test('all copies of the package in one process use one table', () => {
  const again = jest.requireActual<typeof import('../../../src/core/recall/neighbours.js')>('../../../src/core/recall/neighbours.js')
  let other: typeof again | undefined
  jest.isolateModules(() => {
    other = require('../../../src/core/recall/neighbours.js')
  })
  expect(other).not.toBe(again)
  expect(other?.neighbours).toBe(neighbours)
})

test.each([
  ['of the same data', 'the data', ['one'], true],
  ['of other data', 'other data', ['one'], false],
  ['that does not know its data, but may be waited for', undefined, ['one'], true],
  ['that nobody waits for', 'the data', [], false],
  ['that has not begun', undefined, [], false],
])('whether a change concerns an instance %s', (_what, storeId, sessions, is) => {
  expect(concerns({ storeId: () => storeId, sessions: () => sessions, hear: () => true }, 'the data')).toBe(is)
})

function throwing(): never {
  throw new Error('a neighbour of another version')
}
