import type { Channel } from '../../../src/channel.js'
import { guardedChannel } from '../../../src/core/guarded-channel.js'
import { messageCodec, type Recall } from '../../../src/core/recall/messages.js'
import { ApiKeyError } from '../../../src/errors.js'
import type { Store } from '../../../src/store/store.js'
import { DIGEST, FULL, Hub, type Instance, type InstanceOptions, SECRET, type Settling, turns, World } from './world.js'

let world: World

beforeEach(() => {
  world = new World()
})

afterEach(() => world.close())

test('a change is answered without any time passing once every other instance has said that it knows', async () => {
  const { rotator, others } = await cluster(3)
  const settling = rotator.retire()
  await turns()
  expect(settling.done).toBe(true)
  for (const one of [rotator, ...others]) expect(one.accepts()).toBe(false)
  expect(rotator.told).toEqual([{ position: 1, members: 3, answered: 3, silent: [], waitedMs: 0, early: true }])
})

test('P3: a change is not answered while one instance has not said that it knows, until the lease and its margin are over', async () => {
  const { rotator } = await cluster(2)
  world.data.ghost('dead')
  const settling = rotator.retire()
  await world.pass(FULL - 10)
  expect(settling.done).toBe(false)
  await world.pass(10)
  expect(settling.done).toBe(true)
  expect(rotator.told).toEqual([{ position: 1, members: 3, answered: 2, silent: ['dead'], waitedMs: FULL, early: false }])
})

test('P3: members are read after COMMIT, so that who joined before it is waited for', async () => {
  const { rotator } = await cluster(1)
  world.data.ghost('joined before it')
  const settling = rotator.retire()
  await world.pass(FULL - 10)
  expect(settling.done).toBe(false)
})

test('who joins after COMMIT is not waited for', async () => {
  const { rotator } = await cluster(1)
  const settling = rotator.retire()
  // The read that was sent after COMMIT is answered.
  await Promise.resolve()
  world.data.ghost('joined after it')
  await turns()
  expect(settling.done).toBe(true)
})

describe('messages', () => {
  test.each([
    [1, 50],
    [2, 200],
  ])('where the first %i are lost, the recall that is sent after %i ms is answered', async (lost, afterMs) => {
    const { rotator } = await cluster(1)
    let sendings = 0
    world.hub.fault = (message, address) => (address.startsWith('recall:') && ++sendings <= lost ? [] : [message])
    const settling = rotator.retire()
    await world.pass(afterMs - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, rotator.told[0]?.waitedMs]).toEqual([true, afterMs])
  })

  test('an answer that was lost is given again', async () => {
    const { rotator } = await cluster(1)
    let answers = 0
    world.hub.fault = (message, address) => (!address.startsWith('recall:') && ++answers === 1 ? [] : [message])
    const settling = rotator.retire()
    await world.pass(50)
    expect(settling.done).toBe(true)
  })

  test('P3: where all are lost, a change waits in full', async () => {
    const { rotator } = await cluster(2)
    world.hub.fault = () => []
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, rotator.told[0]?.silent.length]).toEqual([true, 2])
  })

  test('that come twice, late and in another order count as they would have', async () => {
    const { rotator, others } = await cluster(3)
    const kept: { address: string; message: string }[] = []
    world.hub.fault = (message, address) => {
      kept.push({ address, message }, { address, message })
      return []
    }
    const settling = rotator.retire()
    await world.pass(20)
    for (let rounds = 0; rounds < 3; rounds++) {
      for (const { address, message } of kept.splice(0).reverse()) world.hub.deliver(address, message)
      await turns()
    }
    expect(settling.done).toBe(true)
    expect(others.map((one) => one.accepts())).toEqual([false, false, false])
    // What is left comes after it is over.
    for (const { address, message } of kept.splice(0)) world.hub.deliver(address, message)
    expect(rotator.told).toHaveLength(1)
  })

  const OTHER = Buffer.alloc(32, 9)
  type Forgery = (honest: { nonce: string; storeId: string; sessions: string[]; type: string }) => string
  test.each<[string, Forgery]>([
    ['that a stranger has written', (honest) => messageCodec([OTHER]).write(honest as never)],
    ['with a bit flipped', (honest) => flipped(messageCodec([SECRET]).write(honest as never))],
    ['of another recall', (honest) => messageCodec([SECRET]).write({ ...honest, nonce: 'another' } as never)],
    ['of another database', (honest) => messageCodec([SECRET]).write({ ...honest, storeId: 'other data' } as never)],
    ['of other sessions', (honest) => messageCodec([SECRET]).write({ ...honest, sessions: ['another'] } as never)],
    ['of no session', (honest) => messageCodec([SECRET]).write({ ...honest, sessions: [] } as never)],
    ['of another type', (honest) => messageCodec([SECRET]).write({ ...honest, type: 'farewell' } as never)],
    ['that is a recall', (honest) => messageCodec([SECRET]).write({ ...honest, ...RECALL_FIELDS, type: 'recall' } as never)],
    ['without sessions', (honest) => messageCodec([SECRET]).write({ ...honest, sessions: undefined } as never)],
  ])('P3: an answer %s counts for nothing', async (_what, forge) => {
    const { rotator } = await cluster(1)
    const codec = messageCodec([SECRET])
    world.hub.fault = (message, address) => {
      const read = codec.read(message)
      return [read?.type === 'acknowledgement' ? forge({ ...read, sessions: [...read.sessions] }) : message, address].slice(0, 1)
    }
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, rotator.reported]).toEqual([true, []])
  })

  test('P3: the answers to a recall count for no later one', async () => {
    const { rotator } = await cluster(1)
    await rotator.retire(['another digest']).ended
    const earlier = world.hub.sent.filter(({ address }) => !address.startsWith('recall:'))
    expect(earlier).toHaveLength(1)
    world.hub.fault = () => []
    const settling = rotator.retire()
    await turns()
    for (const { address, message } of earlier) world.hub.deliver(address, message)
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
  })

  test('an answer goes out in the turn in which the recall came, after the drop', async () => {
    const { rotator, others } = await cluster(1)
    const { nonce } = await lastRecall(rotator)
    rotator.recalls.close()
    const before = world.hub.sent.length
    const accepted: boolean[] = []
    world.hub.fault = () => {
      accepted.push(others[0]?.accepts() as boolean)
      return []
    }
    expect(others[0]?.accepts()).toBe(true)
    const [address = ''] = messageCodec([SECRET]).addresses('the data')
    const again = { ...RECALL_FIELDS, type: 'recall', storeId: 'the data', nonce, inbox: 'inbox', digests: [DIGEST] } as const
    world.hub.deliver(address, messageCodec([SECRET]).write(again))
    expect(world.hub.sent.slice(before).map((one) => one.address)).toEqual(['inbox'])
    expect(accepted).toEqual([false])
  })

  test('of an authentic, unknown shape do nothing, and report nothing', async () => {
    const { others } = await cluster(1)
    const codec = messageCodec([SECRET])
    const before = world.hub.sent.length
    for (const strange of [{ type: 'recall' }, { type: 'recall', storeId: 'the data', nonce: 'n', inbox: 'i', digests: [DIGEST] }, null, 1])
      world.hub.deliver(codec.addresses('the data')[0] ?? '', codec.write(strange as never))
    expect([others[0]?.accepts(), others[0]?.reported, world.hub.sent.length]).toEqual([true, [], before])
  })

  test('reach instances that list the two server secrets the other way round', async () => {
    const rotator = await world.member({ secrets: [Buffer.alloc(32, 8), SECRET] })
    const other = await world.member({ secrets: [SECRET, Buffer.alloc(32, 8)] })
    await world.trusted()
    const settling = rotator.retire()
    await turns()
    expect([settling.done, other.accepts()]).toEqual([true, false])
  })

  test('name the digests of a change of up to 80; of more, and where they are not known, everything up to the position is asked for', async () => {
    const { rotator, others } = await cluster(1)
    for (const count of [80, 81]) {
      const settling = rotator.retire([DIGEST, ...Array.from({ length: count - 1 }, (_, n) => `${count}-${n}`.padStart(43, 'x'))])
      await turns(10)
      expect(settling.done).toBe(true)
    }
    const replay = rotator.settle(undefined)
    await turns(10)
    expect(replay.done).toBe(true)
    expect(recalls().map(({ digests }) => digests?.length ?? null)).toEqual([80, null, null])
    expect(others[0]?.accepts()).toBe(false)
  })

  test('name what a change ended and what it altered', async () => {
    const { rotator } = await cluster(1)
    await rotator.settle({ retired: { digests: ['ended'], reason: 'revoked' }, changed: ['altered'] }).ended
    expect(recalls()[0]?.digests).toEqual(['ended', 'altered'])
  })

  test('P3: who is asked for everything answers only once it has read the feed up to the position, and so does the one who asks', async () => {
    const { rotator, others } = await cluster(1)
    world.data.retire([DIGEST])
    const release = world.data.hold()
    const settling = rotator.settle(undefined)
    await world.pass(300)
    expect([settling.done, recalls().length]).toEqual([false, 3])
    release()
    await turns(10)
    expect([settling.done, rotator.accepts(), others[0]?.accepts()]).toEqual([true, false, false])
  })
})

describe('the store', () => {
  test('is looked at for members that say there that they know, on no channel of this instance', async () => {
    const { rotator, others } = await cluster(2, { channels: [] })
    const settling = rotator.retire()
    for (const one of others) await one.verifier.follower.poll()
    await world.pass(90)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, rotator.told[0]?.answered]).toEqual([true, 2])
  })

  test('is where a member says that it knows of a change whose recall was lost, also where a recall of a later one came', async () => {
    const { rotator, others } = await cluster(2)
    world.hub.fault = () => []
    const lost = rotator.retire(['a'])
    await world.pass(210)
    world.hub.fault = (message) => [message]
    const [busy] = others
    await busy?.retire(['b']).ended
    // The two of them read the feed in the course of their work.
    for (const one of others) await one.verifier.follower.poll()
    await Promise.all(others.map((one) => one.verifier.idle()))
    await world.pass(100)
    expect([lost.done, rotator.told[0]?.answered]).toEqual([true, 2])
  })

  test('is not written to where recalls arrive', async () => {
    const acknowledge = jest.fn()
    const rotator = await world.member()
    const other = await world.member({ store: { acknowledge } })
    await world.trusted()
    await rotator.retire().ended
    await other.verifier.follower.poll()
    await other.verifier.idle()
    expect([acknowledge.mock.calls, other.verifier.follower.hasSeen(world.data.position)]).toEqual([[], true])
  })

  test.each([
    ['where a recall came after the change was read', 0, [DIGEST]],
    ['where one recall came and another was lost', 1, ['another digest']],
  ])('is written to by need alone: %s, %i times', async (_what, writings, heard) => {
    const acknowledge = jest.fn()
    const { rotator } = await cluster(0)
    const other = await world.member({ store: { acknowledge } })
    world.data.retire([DIGEST])
    world.data.retire(heard)
    await other.verifier.follower.poll()
    rotator.settle({ changed: heard })
    await turns()
    await other.verifier.idle()
    expect(acknowledge.mock.calls).toEqual(Array(writings).fill([other.sessions[0], world.data.position]))
  })

  test('P3: what a member has said there about earlier changes counts for nothing', async () => {
    const { rotator } = await cluster(0)
    world.data.ghost('behind', { acked: 0 })
    rotator.retire(['another digest'])
    world.data.alter('behind', { acked: 1 })
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    world.data.alter('behind', { acked: 2 })
  })

  test('shows who has left in the middle, and nobody waits for that one', async () => {
    const { rotator } = await cluster(1)
    world.data.ghost('leaving')
    const settling = rotator.retire()
    await world.pass(50)
    world.data.members.delete('leaving')
    await world.pass(50)
    expect(settling.done).toBe(true)
  })

  test.each([
    ['has lost the rows of members', () => world.data.members.clear()],
    ['counts changes otherwise', () => world.data.alter('silent', { acked: 1_000 })],
  ])('P3: another server that %s in the middle of a recall ends no wait', async (_what, happen) => {
    const { rotator } = await cluster(0)
    world.data.ghost('silent')
    const settling = rotator.retire()
    await world.pass(20)
    world.data.server = 'server two'
    happen()
    await world.pass(FULL - 30)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect(settling.done).toBe(true)
  })

  test('P3: a fail-over in the middle of a recall has everybody waited for in full, even if all have answered', async () => {
    const { rotator } = await cluster(1)
    world.hub.fault = () => []
    const settling = rotator.retire()
    await world.pass(20)
    world.data.server = 'server two'
    await rotator.verifier.follower.poll()
    world.hub.fault = (message) => [message]
    await world.pass(FULL - 30)
    expect([settling.done, recalls().length > 1]).toEqual([false, true])
    await world.pass(10)
    expect([settling.done, rotator.told[0]?.early]).toEqual([true, false])
  })

  test('P3: that was restored, by the server that it was on, has everybody waited for in full', async () => {
    const { rotator } = await cluster(1)
    await rotator.retire(['a']).ended
    await world.trusted()
    // Who joined after what the database was restored from, and holds a lease, is not in it.
    world.data.members.clear()
    world.data.forkFrom(0)
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, rotator.told.map(({ early }) => early)]).toEqual([true, [true, false]])
  })

  test('P3: that shows another history to a read has everybody waited for in full for as long as a lease may be held', async () => {
    const { rotator } = await cluster(1)
    await rotator.retire(['a']).ended
    await world.trusted()
    world.data.members.clear()
    world.data.forkFrom(0)
    await rotator.verifier.follower.poll()
    await world.pass(500)
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
  })

  test('P3: whose identity could not be read for a while is known anew from then on', async () => {
    const { rotator } = await cluster(1)
    world.data.server = undefined
    await rotator.verifier.follower.poll()
    world.data.server = 'server one'
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
  })

  test('P3: an early answer needs a server that is known for two leases and their margins', async () => {
    const rotator = await world.member()
    await world.member()
    await world.trusted(FULL + 500)
    const settling = rotator.retire()
    await world.pass(FULL - 500 - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect(settling.done).toBe(true)
    expect(rotator.told).toMatchObject([{ answered: 1, waitedMs: FULL - 500, early: true }])
    expect(world.data.revocations).toEqual([])
  })

  test('may be met ahead of the first change, which then waits for others only', async () => {
    const rotator = world.instance()
    await rotator.recalls.meet()
    await world.trusted()
    const settling = rotator.retire()
    await turns()
    expect(settling.done).toBe(true)
    expect(rotator.reported).toEqual([])
  })

  test('that cannot be met is told of, and hinders nothing', async () => {
    const members = async () => Promise.reject(new Error('no connection'))
    const rotator = world.instance({ store: { members } })
    await rotator.recalls.meet()
    expect(rotator.reported).toMatchObject([{ message: 'no connection' }])
  })

  test.each([
    ['its identity cannot be read', () => Object.assign(world.data, { server: undefined })],
    ['it was started anew just now', () => Object.assign(world.data, { server: 'server two' })],
    ['a longer lease of before may still be held', () => Object.assign(world.data, { lowered: true })],
  ])('P3: no change is answered early where %s; nobody is revoked for that', async (_what, happen) => {
    const { rotator, others } = await cluster(2)
    happen()
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect(settling.done).toBe(true)
    expect(rotator.told).toMatchObject([{ members: 2, answered: 2, silent: [], waitedMs: FULL, early: false }])
    expect([world.data.revocations, others.map((one) => one.accepts())]).toEqual([[], [false, false]])
  })

  test('P3: the longest lease that the store or the change names is waited for', async () => {
    const { rotator } = await cluster(0)
    world.data.ghost('reads', { mode: 'feed' })
    world.data.retire([DIGEST])
    const longer = rotator.settle({ retired: { digests: [DIGEST], reason: 'rotated' } }, 2_000)
    await world.pass(2_040)
    expect(longer.done).toBe(false)
    await world.pass(10)
    expect(longer.done).toBe(true)
  })

  test('P3: that cannot be asked for members has a change wait in full, and rejects nothing', async () => {
    const away = async (): Promise<never> => {
      throw new ApiKeyError('store_unavailable', 'The store could not be asked.')
    }
    const rotator = world.instance({ store: { members: away } })
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, rotator.reported.length]).toEqual([true, 1])
    await settling.ended
  })

  test('that fails or hangs in the middle is looked at once at a time, and ends no wait', async () => {
    let looks = 0
    const members: Store['members'] = async (after) => (++looks === 1 ? world.data.membership(after) : new Promise<never>(() => {}))
    const rotator = world.instance({ store: { members } })
    world.data.ghost('silent')
    const settling = rotator.retire()
    await world.pass(FULL)
    expect([settling.done, looks]).toEqual([true, 2])
  })

  test('that can be looked into at once has a change answered at its COMMIT, whatever else it does not tell', async () => {
    const rotator = world.instance({ store: { currentPosition: () => world.data.position } })
    Object.assign(world.data, { server: undefined, lowered: true })
    for (const change of [{ retired: { digests: [DIGEST], reason: 'rotated' as const } }, undefined]) {
      const settling = rotator.settle(change)
      await turns()
      expect(settling.done).toBe(true)
    }
    expect([world.data.members.size, rotator.told.map(({ early }) => early)]).toEqual([0, [true, true]])
  })

  test('P3: that can be looked into at once by this process has a member that cannot waited for', async () => {
    const rotator = world.instance({ store: { currentPosition: () => world.data.position } })
    world.data.ghost('without such a look')
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
  })
})

describe('members', () => {
  test('that can be reached and are silent for 100 ms are revoked; the others only once they were waited for in vain', async () => {
    const { rotator } = await cluster(1)
    world.data.ghost('can be reached')
    world.data.ghost('listens elsewhere', { channels: ['another'] })
    world.data.ghost('listens nowhere', { channels: [] })
    const settling = rotator.retire()
    await world.pass(90)
    expect(world.data.revocations).toEqual([])
    await world.pass(10)
    expect(world.data.revocations).toEqual([['can be reached']])
    await world.pass(FULL - 110)
    expect(world.data.revocations).toHaveLength(1)
    await world.pass(10)
    expect([settling.done, rotator.told[0]?.answered]).toEqual([true, 1])
    expect(world.data.revocations.at(-1)).toEqual(expect.arrayContaining(['listens elsewhere', 'listens nowhere']))
    expect(revoked()).toEqual(['can be reached', 'listens elsewhere', 'listens nowhere'])
  })

  test.each([
    ['before it suspects anybody', 300],
    ['until the lease was over', FULL],
  ])('are not suspected for an answer that came while this process was busy, %s', async (_what, busyMs) => {
    const { rotator } = await cluster(1)
    const kept: { address: string; message: string }[] = []
    world.hub.fault = (message, address) => {
      kept.push({ address, message })
      return []
    }
    const settling = rotator.retire()
    await turns()
    world.hub.fault = (message) => [message]
    // The answer is there, and is heard in the turn after the one in which the time is up.
    for (const { address, message } of kept) world.hub.deliver(address, message)
    world.clock.advance(busyMs)
    await turns()
    expect([settling.done, world.data.revocations]).toEqual([true, []])
  })

  test('are not suspected sooner than after 100 ms, however short the lease is', async () => {
    world.data.leaseMs = 200
    const { rotator } = await cluster(0)
    world.data.ghost('silent')
    world.data.retire([DIGEST])
    // Open in time for what is sent after 50 ms.
    world.hub.isOpen = false
    rotator.settle({ changed: [DIGEST] }, 200)
    await world.pass(20)
    world.hub.isOpen = true
    await world.pass(170)
    expect(world.data.revocations).toEqual([])
    await world.pass(10)
    expect(world.data.revocations).toEqual([['silent']])
  })

  test('are given a tenth of a longer lease before they are suspected', async () => {
    world.data.leaseMs = 4_000
    const { rotator } = await cluster(0)
    world.data.ghost('silent')
    world.data.retire([DIGEST])
    rotator.settle({ changed: [DIGEST] }, 4_000)
    await world.pass(390)
    expect(world.data.revocations).toEqual([])
    await world.pass(10)
    expect(world.data.revocations).toEqual([['silent']])
  })

  test('are not suspected before a recall was sent to which an answer could be heard', async () => {
    const { rotator } = await cluster(0)
    world.data.ghost('silent')
    world.hub.isOpen = false
    rotator.retire()
    await world.pass(60)
    world.hub.isOpen = true
    await world.pass(230)
    expect(world.data.revocations).toEqual([])
    await world.pass(10)
    expect(world.data.revocations).toEqual([['silent']])
  })

  test.each([0, 60])('are not suspected where the channel is down %i ms after the commit', async (afterMs) => {
    const { rotator } = await cluster(0)
    world.data.ghost('silent')
    world.hub.isOpen = afterMs > 0
    rotator.retire()
    await world.pass(afterMs)
    world.hub.isOpen = false
    await world.pass(FULL - 10 - afterMs)
    expect(world.data.revocations).toEqual([])
  })

  test('that are gone slow down one change: once known as revoked for a lease and a margin they are waited for no more, and removed', async () => {
    const { rotator } = await cluster(1)
    world.data.ghost('gone')
    const first = rotator.retire(['a'])
    await world.pass(FULL)
    expect([first.done, revoked()]).toEqual([true, ['gone']])
    // Known as revoked since 100 ms after the commit.
    await world.pass(90)
    expect(world.data.removed).toEqual([])
    await world.pass(10)
    const second = rotator.retire(['b'])
    await turns()
    expect([second.done, world.data.removed]).toEqual([true, ['gone']])
    expect(rotator.told[1]).toMatchObject({ members: 1, answered: 1, silent: [], early: true })
  })

  test('that are gone are removed without another change', async () => {
    world.data.leaseMs = 100
    const { rotator } = await cluster(0)
    world.data.ghost('gone')
    world.data.retire([DIGEST])
    const settling = rotator.settle({ changed: [DIGEST] }, 100)
    await world.pass(150)
    expect([settling.done, revoked(), world.data.removed]).toEqual([true, ['gone'], []])
    world.clock.advance(150)
    for (let tries = 0; world.data.removed.length === 0 && tries < 5_000; tries++) await new Promise((resolve) => setTimeout(resolve, 1))
    expect(world.data.removed).toEqual(['gone'])
  })

  test('P3: that are revoked are waited for until this process has known that for a lease and a margin', async () => {
    const { rotator } = await cluster(0)
    world.data.ghost('revoked', { revoked: true })
    const first = rotator.retire(['a'])
    await world.pass(FULL - 10)
    expect([first.done, world.data.removed]).toEqual([false, []])
  })

  test('that are known as revoked for long enough in the middle of a recall are waited for no more', async () => {
    const { rotator } = await cluster(0)
    world.data.ghost('gone')
    await finish(rotator.retire(['a']))
    const second = rotator.retire(['b'])
    await world.pass(90)
    expect(second.done).toBe(false)
    await world.pass(10)
    expect([second.done, rotator.told[1]]).toMatchObject([true, { members: 1, answered: 1, silent: [] }])
  })

  test.each([
    ['a fail-over', () => Object.assign(world.data, { server: 'server two' })],
    ['a restore', () => world.data.forkFrom(0)],
  ])('P3: whose revocation was lost in %s are waited for anew', async (_what, happen) => {
    const { rotator } = await cluster(0)
    world.data.ghost('back', { revoked: true })
    await finish(rotator.retire(['a']))
    await world.pass(FULL)
    // Not revoked any more, it is granted a lease; then somebody revokes it again.
    happen()
    const settling = rotator.retire(['b'])
    await world.pass(FULL - 10)
    expect([settling.done, world.data.removed]).toEqual([false, []])
  })

  test('that only read are waited for in full, and revoked neither for that nor is anybody else', async () => {
    const { rotator } = await cluster(1)
    const reader = await world.member({ recall: false })
    expect(world.data.members.get(reader.sessions[0] ?? '')).toMatchObject({ mode: 'feed', channels: [] })
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect(settling.done).toBe(true)
    expect([rotator.told[0]?.silent, world.data.revocations]).toEqual([reader.sessions, []])
  })

  test('that are gone are found out beside one that only reads', async () => {
    const { rotator } = await cluster(1)
    world.data.ghost('reads', { mode: 'feed', channels: [] })
    world.data.ghost('gone')
    await finish(rotator.retire())
    expect(revoked()).toEqual(['gone'])
  })

  test('that only read are asked to join again after an hour', async () => {
    const { rotator } = await cluster(0)
    world.data.ghost('reads', { mode: 'feed', channels: [] })
    await world.pass(3_600_000, 600_000)
    rotator.retire()
    await turns()
    expect(revoked()).toEqual([])
    await world.pass(FULL)
    rotator.retire()
    await turns()
    expect(revoked()).toEqual(['reads'])
  })

  test('answer for the sessions that they had before, too', async () => {
    const { rotator, others } = await cluster(1)
    const [other] = others
    const [old = ''] = other?.sessions ?? []
    world.data.alter(old, { revoked: true })
    await other?.follow()
    await turns()
    expect(other?.sessions).toHaveLength(2)
    const settling = rotator.retire()
    await turns()
    expect([settling.done, rotator.told[0]?.members]).toEqual([true, 2])
  })

  test('that join again in the middle of a recall answer for the session that is waited for', async () => {
    const { rotator, others } = await cluster(1)
    const [other] = others
    world.hub.fault = () => []
    const settling = rotator.retire()
    await turns()
    world.data.alter(other?.sessions[0] ?? '', { revoked: true })
    await other?.follow()
    world.hub.fault = (message) => [message]
    await world.pass(50)
    expect([settling.done, other?.sessions.length]).toEqual([true, 2])
  })

  test('that are closing answer at once, even where everything is asked for: they accept nothing any more', async () => {
    const { rotator, others } = await cluster(1)
    others[0]?.verifier.close()
    world.data.retire([DIGEST])
    const settling = rotator.settle(undefined)
    await turns(10)
    expect([settling.done, others[0]?.accepts()]).toEqual([true, false])
  })

  test('that have started over and do not know their data yet answer, since they know nothing', async () => {
    const { rotator, others } = await cluster(1)
    const [other] = others
    world.data.members.delete(other?.sessions[0] ?? '')
    await other?.verifier.follower.poll()
    expect(other?.verifier.follower.storeId).toBeUndefined()
    world.data.ghost(other?.sessions[0] ?? '')
    const settling = rotator.retire()
    await turns()
    expect([settling.done, other?.accepts()]).toEqual([true, false])
  })

  test('that start over between the recall and their answer answer once they have read what follows', async () => {
    const { rotator, others } = await cluster(1)
    const [other] = others
    world.data.retire([DIGEST])
    const [old = ''] = other?.sessions ?? []
    const row = world.data.members.get(old)
    const settling = rotator.settle(undefined)
    // Its own row is gone when it reads, so it starts over; the rotator has it in its list.
    await Promise.resolve()
    world.data.members.delete(old)
    await turns(20)
    expect(row).toBeDefined()
    expect([settling.done, other?.accepts()]).toEqual([true, false])
  })

  test('P3: a read that was under way when a recall was answered is not taken', async () => {
    const { rotator, others } = await cluster(1)
    const [other] = others
    const release = world.data.hold()
    const late = other?.verifier.verify('another digest')
    await turns()
    const settling = rotator.retire(['another digest'])
    await turns()
    expect(settling.done).toBe(true)
    release()
    await late
    expect(other?.accepts('another digest')).toBe(false)
  })

  test('that hear of a database that was put in the place of theirs listen there from then on', async () => {
    const { rotator, others } = await cluster(1)
    const before = world.hub.listeners
    world.data.storeId = 'restored data'
    world.data.members.clear()
    for (const one of [rotator, ...others]) {
      await one.verifier.follower.poll()
      await one.follow()
    }
    await world.trusted()
    const settling = rotator.retire()
    await turns()
    expect([settling.done, world.hub.listeners]).toEqual([true, before])
  })
})

describe('the one who asks', () => {
  test('drops first what it knows itself', async () => {
    const { rotator, others } = await cluster(1)
    const seen: boolean[] = []
    world.hub.fault = (message) => {
      seen.push(rotator.accepts(), others[0]?.accepts() as boolean)
      return [message]
    }
    rotator.retire()
    await turns()
    expect(seen.slice(0, 2)).toEqual([false, true])
  })

  test('does not wait for itself', async () => {
    const { rotator } = await cluster(0)
    const settling = rotator.retire()
    await turns()
    expect([settling.done, rotator.told[0]?.members, world.hub.sent]).toEqual([true, 0, []])
  })

  test('need be no member, and then hears answers all the same', async () => {
    const { others } = await cluster(2)
    const script = world.instance()
    script.recalls.answeredBy('server one', world.data.position)
    await world.trusted()
    const settling = script.retire()
    await turns()
    expect([settling.done, script.sessions, others.map((one) => one.accepts())]).toEqual([true, [], [false, false]])
  })

  test('P3: that cannot read how far the feed goes waits in full where the digests are not known, and suspects nobody', async () => {
    let away = false
    const read = world.data.store().read as Store['read']
    const rotator = await world.member({
      store: { read: async (...args) => (away ? Promise.reject(new ApiKeyError('store_unavailable', 'away')) : read(...args)) },
    })
    await world.member()
    await world.trusted()
    away = true
    world.data.retire([DIGEST])
    const settling = rotator.settle(undefined)
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, world.data.revocations]).toEqual([true, []])
  })

  test('P3: that is closed in the middle waits in full, and suspects nobody', async () => {
    const { rotator } = await cluster(1)
    world.hub.fault = () => []
    const settling = rotator.retire()
    await world.pass(20)
    rotator.recalls.close()
    await world.pass(FULL - 30)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, world.data.revocations]).toEqual([true, []])
  })

  test('without recall asks nobody, waits in full, and suspects nobody', async () => {
    await world.member()
    const rotator = world.instance({ recall: false })
    rotator.recalls.answeredBy('server one', world.data.position)
    await world.trusted()
    const settling = rotator.retire()
    await world.pass(FULL - 10)
    expect(settling.done).toBe(false)
    await world.pass(10)
    expect([settling.done, world.hub.sent, world.data.revocations]).toEqual([true, [], []])
    expect(rotator.told).toMatchObject([{ members: 1, answered: 0, waitedMs: FULL, early: false }])
  })

  test('leaves no long sleep behind that would keep the process alive', async () => {
    const { rotator } = await cluster(1)
    const sleep = jest.spyOn(world.clock, 'sleep')
    await rotator.retire().ended
    await rotator.settle(undefined).ended
    for (const [ms] of sleep.mock.calls) expect(ms).toBeLessThanOrEqual(100)
  })

  test('is told of an answer as early only where it came before the lease was over', async () => {
    const { others } = await cluster(1)
    let wait: Promise<void> | undefined
    const members: Store['members'] = async (after) => {
      await wait
      return world.data.membership(after)
    }
    const rotator = await world.member({ store: { members } })
    await world.trusted()
    wait = world.clock.sleep(FULL + 100)
    const settling = rotator.retire()
    await world.pass(FULL + 100)
    await turns()
    expect([settling.done, others.length]).toEqual([true, 1])
    expect(rotator.told[0]).toMatchObject({ waitedMs: FULL + 100, early: false })
  })
})

describe('a channel', () => {
  const fails = async (): Promise<never> => {
    throw new Error('a channel of somebody else')
  }
  const throws = (): never => {
    throw new Error('a channel of somebody else')
  }
  test.each<[string, Partial<Channel>]>([
    ['rejects', { listen: fails, send: fails }],
    ['throws', { listen: throws, send: throws, isOpen: throws }],
    ['answers nonsense', { listen: async () => 'done' as never, send: async () => 7 as never, isOpen: () => 'maybe' as never }],
    ['throws at the end', { listen: async () => throws }],
    ['never answers', { listen: () => new Promise(() => {}), send: () => new Promise(() => {}) }],
  ])('that %s slows a change down, and does no other harm', async (_what, broken) => {
    const channel = guardedChannel({ of: 'store', make: () => ({ ...world.hub.channel(), ...broken }), report: () => {} })
    const rotator = await world.member({ channels: [channel] })
    await world.trusted()
    world.data.ghost('silent')
    const settling = rotator.retire()
    await world.pass(FULL)
    expect(settling.done).toBe(true)
    await rotator.verifier.idle()
    rotator.recalls.close()
  })

  test('is not needed: with none at all, members answer in the store', async () => {
    const rotator = await world.member({ channels: [] })
    const other = await world.member({ channels: [] })
    await world.trusted()
    const settling = rotator.retire()
    await other.verifier.follower.poll()
    await world.pass(100)
    expect(settling.done).toBe(true)
  })

  test('on which members listen is used, and no other', async () => {
    const second = new Hub('second')
    const rotator = await world.member({ channels: [world.hub.channel(), second.channel()] })
    await world.member({ channels: [second.channel()] })
    await world.trusted()
    const settling = rotator.retire()
    await turns()
    expect([settling.done, world.hub.sent.length, second.sent.length]).toEqual([true, 0, 2])
  })

  test('that begins to listen only after the end is told to stop', async () => {
    let begin = (_end: () => void): void => {}
    const listen: Channel['listen'] = () => new Promise((resolve) => (begin = resolve))
    const one = await world.member({ channels: [{ ...world.hub.channel(), listen }] })
    one.recalls.close()
    const end = jest.fn()
    begin(end)
    await turns()
    expect(end).toHaveBeenCalledTimes(1)
  })

  test('that cannot be told to stop is not answered on after the end', async () => {
    const { listen, ...channel } = world.hub.channel()
    const deaf: Channel['listen'] = async (addresses, listener) => void (await listen(addresses, listener))
    const other = await world.member({ channels: [{ ...channel, listen: deaf }] })
    const { rotator } = await cluster(0)
    await rotator.retire(['a']).ended
    other.recalls.close()
    rotator.retire(['b'])
    await turns()
    expect(world.hub.sent.filter(({ address }) => !address.startsWith('recall:'))).toHaveLength(1)
  })

  test('is listened on by nobody any more after the end', async () => {
    const { rotator, others } = await cluster(2)
    expect(world.hub.listeners).toBeGreaterThan(0)
    for (const one of [rotator, ...others]) one.recalls.close()
    await turns()
    expect(world.hub.listeners).toBe(0)
  })
})

const RECALL_FIELDS = { inbox: 'an inbox', position: { seq: 1, tag: 't' }, digests: null }

function flipped(text: string): string {
  const bytes = Buffer.from(text)
  bytes.writeUInt8(bytes.readUInt8(60) ^ 1, 60)
  return bytes.toString('latin1')
}

/** The recalls that were sent. */
function recalls(): readonly ({ readonly type: 'recall' } & Recall)[] {
  const codec = messageCodec([SECRET])
  return world.hub.sent.map(({ message }) => codec.read(message)).filter((message) => message?.type === 'recall')
}

/** The recall of a change of something else. */
async function lastRecall(rotator: Instance): Promise<Recall> {
  await rotator.retire(['another digest']).ended
  return recalls().at(-1) as Recall
}

function revoked(): readonly string[] {
  return [...world.data.members.values()].filter((row) => row.revoked).map(({ session }) => session)
}

async function finish(settling: Settling): Promise<void> {
  await world.pass(FULL)
  expect(settling.done).toBe(true)
}

/** A rotator and others that hold leases, on a server that is known for long enough. */
async function cluster(others: number, options: InstanceOptions = {}): Promise<{ rotator: Instance; others: Instance[] }> {
  const rotator = await world.member()
  const members: Instance[] = []
  for (let n = 0; n < others; n++) members.push(await world.member(options))
  await world.trusted()
  for (const one of [rotator, ...members]) expect(one.accepts()).toBe(true)
  return { rotator, others: members }
}
