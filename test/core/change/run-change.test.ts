import { type ApiKeys, createApiKeys, type IssuedKey, memoryStore, type Store } from 'express-api-keys'
import type { Cache } from '../../../src/cache/cache.js'
import { replaySeals } from '../../../src/core/change/replay-seal.js'
import { TestClock } from '../../support/clock.js'

const SECRET = 'the-server-secret-0123456789-0123456789'
/** An instance that only reads, and so never says that it knows of a change. */
const SILENT = { session: 'silent', mode: 'feed', channels: [] } as const

test('P2: an answer can be asked for again until the replay window ends, and not a millisecond longer', async () => {
  const clock = new TestClock()
  const keys = createApiKeys({ store: memoryStore({ now: () => clock.wallMs() }), serverSecret: SECRET, clock, replayWindowMs: 60_000 })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const rotate = (): ReturnType<typeof keys.rotate> => keys.rotate({ as: { secret }, idempotencyKey: 'k' })
  const first = await rotate()
  clock.advance(59_999)
  expect((await rotate()).secret).toBe(first.secret)
  clock.advance(1)
  await expect(rotate()).rejects.toMatchObject({ code: 'invalid_key' })
})

test('P1: of two with one Idempotency-Key that both found no record the later one finds it under the lock', async () => {
  const store = memoryStore()
  const gate = new Gate()
  const { replays } = store
  store.replays = async (ids) => gate.pass(await replays(ids))
  const keys = createApiKeys({ store, serverSecret: SECRET })
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  gate.close()
  const both = [1, 2].map(() => keys.rotate({ as: { secret }, idempotencyKey: 'k' }))
  await gate.waiting(1)
  gate.release()
  const [first, second] = await Promise.all(both)
  expect([first?.secret, first?.replayed, second?.replayed]).toEqual([second?.secret, false, true])
  expect((await keys.get(key.id))?.generation).toBe(2)
})

test('P3: an answer waits for the lease in force and a margin, counted from after COMMIT', async () => {
  const clock = new TestClock()
  const { keys, rotate, commits } = await sharedStore(clock)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  commits.take = () => clock.advance(700)
  const answered = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(1)
  clock.advance(1_049)
  expect(await answered.settled()).toBe(false)
  clock.advance(1)
  expect((await answered.done).replayed).toBe(false)
})

test('P3: a replay of an answer that is not settled yet waits from its own first sight; a settled one does not wait', async () => {
  const clock = new TestClock()
  const { keys, rotate } = await sharedStore(clock)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const first = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(1)
  clock.advance(500)
  const second = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(2)
  clock.advance(550)
  expect((await first.done).replayed).toBe(false)
  // The first has settled the record, but the second had seen it unsettled.
  expect(await second.settled()).toBe(false)
  clock.advance(500)
  expect((await second.done).secret).toBe((await first.done).secret)
  const third = rotate({ secret, idempotencyKey: 'k' })
  expect((await third.done).secret).toBe((await first.done).secret)
})

test('P6: a repetition that comes while the first answer is being settled waits for that, and not for the leases once more', async () => {
  const clock = new TestClock()
  const { keys, rotate, settles } = await sharedStore(clock)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  let written = (): void => {}
  settles.before = new Promise((resolve) => {
    written = resolve
  })
  const first = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(1)
  clock.advance(1_050)
  const { secret: made } = await first.done
  const second = rotate({ secret, idempotencyKey: 'k' })
  expect(await second.settled()).toBe(false)
  written()
  expect((await second.done).secret).toBe(made)
})

test('P3: a rotation ends a grace period for good that only a step of the clock had ended, wherever it is remembered', async () => {
  const [clock, storeClock] = [new TestClock(), new TestClock()]
  const store = memoryStore({ now: () => storeClock.wallMs() })
  const [here, there] = [1, 2].map(() => createApiKeys({ store, serverSecret: SECRET, clock })) as [ApiKeys, ApiKeys]
  const { secret } = await here.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const next = await here.rotate({ as: { secret }, retire: { afterMs: 60_000 } })
  expect((await there.verify(secret)).ok).toBe(true)
  storeClock.setWall(120_000)
  await here.rotate({ as: { secret: next.secret } })
  storeClock.setWall(-120_000)
  for (const keys of [here, there]) expect((await keys.verify(secret)).ok).toBe(false)
})

test('waitForLease: false answers at once and says until when the old secret may still be accepted', async () => {
  const clock = new TestClock()
  const { keys } = await sharedStore(clock, { waitForLease: false })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const { acceptedUntil } = await keys.rotate({ as: { secret }, idempotencyKey: 'k' })
  expect(acceptedUntil).toBe(new Date(clock.wallMs() + 1_050).toISOString())
})

test('acceptedUntil is on the clock of the store, whatever the machine thinks that the time is', async () => {
  const clock = new TestClock()
  const storeClock = new TestClock()
  const { keys } = await sharedStore(clock, { waitForLease: false }, storeClock)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  clock.setWall(-3_600_000)
  const { acceptedUntil } = await keys.rotate({ as: { secret }, idempotencyKey: 'k' })
  expect(acceptedUntil).toBe(new Date(storeClock.wallMs() + 1_050).toISOString())
})

test('P3: acceptedUntil counts from after COMMIT, however long that took', async () => {
  const clock = new TestClock()
  const { keys, commits } = await sharedStore(clock, { waitForLease: false })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const asked = clock.wallMs()
  commits.take = () => clock.advance(700)
  const { acceptedUntil } = await keys.rotate({ as: { secret }, idempotencyKey: 'k' })
  expect(acceptedUntil).toBe(new Date(asked + 700 + 1_050).toISOString())
})

test('P3: whether leases may outlast a grace period is decided after COMMIT, however long that took', async () => {
  const clock = new TestClock()
  const { keys, commits } = await sharedStore(clock, { leaseMs: 60_000 })
  const rotated = async (afterMs: number, commitMs: number): Promise<Pending<IssuedKey>> => {
    const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    commits.take = () => clock.advance(commitMs)
    const answered = pending(keys.rotate({ as: 'application', id: key.id, retire: { afterMs } }))
    await answered.settled()
    commits.take = () => {}
    return answered
  }
  const late = await rotated(3_600_000, 20_000)
  expect(await late.settled()).toBe(true)
  // Leases of 60 s and their margin, from a COMMIT of 3,550 s on, end after it.
  const outlasted = await rotated(3_600_000, 3_550_000)
  await clock.asleep(1)
  expect(await outlasted.settled()).toBe(false)
  clock.advance(59_999)
  expect(await outlasted.settled()).toBe(false)
  clock.advance(3_001)
  expect((await outlasted.done).key.generation).toBe(2)
})

describe('a short grace period', () => {
  const afterMs = 3_000
  type Turn = (tx: number) => void | Promise<void>

  /** Two instances over one store; `turn` runs between each COMMIT and its answer, and hears how many there were before. */
  async function twoInstances(clock: TestClock, { fails = () => false }: { fails?: (tx: number) => boolean } = {}) {
    const inner = memoryStore({ now: () => clock.wallMs() })
    const commits: { turn: Turn; count: number } = { turn: () => {}, count: 0 }
    const store: Store = {
      ...inner,
      async transaction(work) {
        const count = commits.count++
        if (fails(count)) throw new Error('away')
        const result = await inner.transaction(work)
        await commits.turn(count)
        return result
      },
    }
    const faults: unknown[] = []
    const make = (serverSecret: string | string[] = SECRET): ReturnType<typeof createApiKeys> =>
      createApiKeys({ store, serverSecret: serverSecret, clock, leaseMs: 1_000, onError: (error) => void faults.push(error) })
    const one = make()
    const other = make()
    for (const keys of [one, other]) await keys.migrate()
    const { key, secret } = await one.create({ as: 'application', ownerId: 'acme', name: 'n' })
    commits.count = 0
    const rotate = (keys = one) => keys.rotate({ as: { secret }, retire: { afterMs }, idempotencyKey: 'k' })
    return { one, other, key, secret, commits, rotate, faults, make, store }
  }

  test('counts from the COMMIT, however long that takes, and not a millisecond longer', async () => {
    const clock = new TestClock()
    const { one, other, key, secret, commits, rotate } = await twoInstances(clock)
    const asked = clock.wallMs()
    commits.turn = async (count) => {
      if (count > 0) return
      clock.advance(4_000)
      // Another instance meets the provisional end, and has a lease on its word.
      expect(await other.verify(secret)).toMatchObject({ ok: true })
    }
    const first = await rotate()
    const end = asked + 4_000 + afterMs
    expect(first.acceptedUntil).toBe(new Date(end).toISOString())
    for (const keys of [one, other]) {
      const again = await rotate(keys)
      expect([again.replayed, again.secret, again.acceptedUntil]).toEqual([true, first.secret, first.acceptedUntil])
    }
    clock.advance(end - 1 - clock.wallMs())
    expect([await one.verify(secret), await other.verify(secret)]).toMatchObject([{ ok: true }, { ok: true }])
    clock.advance(1)
    const over = { ok: false, reason: 'rotated' }
    expect([await one.verify(secret), await other.verify(secret)]).toEqual([over, over])
    const event = (await one.events({ id: key.id }))?.items.find(({ type }) => type === 'key.rotated')
    expect(event?.details).toEqual({ generation: 2, retire: { afterMs } })
  })

  test('P3: waits for the leases from before its end was known, where they may outlast it', async () => {
    const clock = new TestClock()
    const { other, secret, commits, rotate, store } = await twoInstances(clock)
    await store.join(SILENT)
    commits.turn = async (count) => {
      // The second COMMIT comes late, and right before it another instance has a lease on the provisional end.
      if (count === 0) await other.verify(secret)
      else if (count === 1) clock.advance(2_500)
    }
    const answered = pending(rotate())
    await clock.asleep(1)
    clock.advance(1_049)
    expect(await answered.settled()).toBe(false)
    clock.advance(1)
    const { acceptedUntil } = await answered.done
    expect(Date.parse(acceptedUntil ?? '')).toBeLessThan(clock.wallMs())
    expect(await other.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('is told of only once its end is final: where the second transaction fails, the repetition decides', async () => {
    const clock = new TestClock()
    const { other, secret, rotate, faults } = await twoInstances(clock, { fails: (count) => count === 1 })
    const asked = clock.wallMs()
    await expect(rotate()).rejects.toMatchObject({ code: 'outcome_unknown' })
    expect(faults[0]).toMatchObject({ cause: { message: 'away' } })
    const again = await rotate(other)
    expect([again.replayed, again.acceptedUntil]).toEqual([true, new Date(asked + 3_000).toISOString()])
    clock.advance(2_999)
    expect(await other.verify(secret)).toMatchObject({ ok: true })
    clock.advance(1)
    expect(await other.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('ends as the first to answer says, where a duplicate comes in between', async () => {
    const clock = new TestClock()
    const { other, commits, rotate } = await twoInstances(clock)
    const asked = clock.wallMs()
    let duplicate: ReturnType<typeof rotate> | undefined
    commits.turn = async (count) => {
      if (count > 0) return
      clock.advance(500)
      duplicate = rotate(other)
      duplicate = Promise.resolve(await duplicate)
    }
    const first = await rotate()
    const second = await duplicate
    expect([first.replayed, second?.replayed, second?.secret]).toEqual([false, true, first.secret])
    expect([first.acceptedUntil, second?.acceptedUntil]).toEqual(Array(2).fill(new Date(asked + 500 + afterMs).toISOString()))
  })

  test('is counted by the first retry where its process died, also under a new server secret', async () => {
    const clock = new TestClock()
    const { commits, rotate, make } = await twoInstances(clock)
    await new Promise<void>((committed) => {
      commits.turn = (count) => {
        if (count > 0) return
        committed()
        // Whose process died is never answered.
        return new Promise(() => {})
      }
      void rotate()
    })
    const after = make(['the-next-server-secret-0123456789-012345', SECRET])
    clock.advance(10_000)
    const { replayed, acceptedUntil } = await rotate(after)
    expect([replayed, acceptedUntil]).toEqual([true, new Date(clock.wallMs() + afterMs).toISOString()])
    expect((await rotate(after)).acceptedUntil).toBe(acceptedUntil)
  })

  test('never outlives the key, and is told as it is when the key ends first', async () => {
    const clock = new TestClock()
    const { one, commits } = await twoInstances(clock)
    const expiresAt = new Date(clock.wallMs() + 6_000).toISOString()
    const { secret } = await one.create({ as: 'application', ownerId: 'acme', name: 'n', expiresAt })
    commits.count = 0
    commits.turn = (count) => (count === 0 ? clock.advance(4_000) : undefined)
    const { acceptedUntil } = await one.rotate({ as: { secret }, retire: { afterMs } })
    expect(acceptedUntil).toBe(expiresAt)
  })
})

test('a store in memory that nobody shares needs no wait', async () => {
  const clock = new TestClock()
  const keys = createApiKeys({ store: memoryStore({ now: () => clock.wallMs() }), serverSecret: SECRET, clock })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  expect(await keys.verify(secret)).toMatchObject({ ok: true })
  await keys.rotate({ as: { secret } })
  expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
})

test('P2: a secret that is dead by the end of the wait is not handed out', async () => {
  const clock = new TestClock()
  const { keys, rotate } = await sharedStore(clock)
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const first = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(1)
  const second = keys.rotate({ as: 'application', id: key.id })
  await clock.asleep(2)
  clock.advance(1_050)
  await expect(first.done).rejects.toMatchObject({ code: 'rotation_superseded' })
  expect((await second).key.generation).toBe(3)
})

test('P4: an emergency leaves no answer behind, neither its own nor an earlier one', async () => {
  const store = memoryStore()
  const keys = createApiKeys({ store, serverSecret: SECRET })
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const first = await keys.rotate({ as: { secret }, idempotencyKey: 'before' })
  const sealed = async (idempotencyKey: string): Promise<unknown> => {
    const record = await store.transaction((tx) => tx.replay(replaySeals([Buffer.from(SECRET)]).ids(key.id, idempotencyKey)))
    return record?.sealed
  }
  expect(await sealed('before')).toEqual(expect.any(String))
  await keys.rotate({ as: { secret: first.secret }, emergency: true, idempotencyKey: 'emergency' })
  expect([await sealed('before'), await sealed('emergency')]).toEqual([null, null])
})

test('close waits for commands under way, and after it there are no answers', async () => {
  const clock = new TestClock()
  const { keys, rotate } = await sharedStore(clock)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const answered = rotate({ secret })
  await clock.asleep(1)
  let closed = false
  const closing = keys.close().then(() => {
    closed = true
  })
  expect(await answered.settled()).toBe(false)
  expect(closed).toBe(false)
  clock.advance(1_050)
  expect((await answered.done).key.generation).toBe(2)
  await closing
  await expect(keys.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
})

test('what an operator did for one owner is not replayed to it once it may act for another only', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SECRET })
  const operator = {
    issuer: 'https://id.example',
    subject: 'ada',
    scopes: ['api_keys:write'],
    grants: { scopes: [], environments: ['live'] },
  } as const
  const request = { method: 'POST', path: '/' }
  const create = (owners: readonly string[] | 'all', ownerId: string): ReturnType<typeof keys.create> =>
    keys.create({ as: { operator: { ...operator, owners } }, ownerId, name: 'n', idempotencyKey: 'k'.repeat(22), request })
  const first = await create(['acme'], 'acme')
  await expect(create(['globex'], 'globex')).rejects.toMatchObject({ code: 'key_not_found' })
  for (const owners of [['globex', 'acme'], 'all'] as const) {
    expect(await create(owners, 'acme')).toMatchObject({ replayed: true, secret: first.secret })
  }
  expect((await keys.list({ ownerId: 'globex' })).items).toEqual([])
})

describe('two of one process over one store in memory', () => {
  const both = async (clock: TestClock): Promise<ReturnType<typeof createApiKeys>[]> => {
    const store = memoryStore({ now: () => clock.wallMs() })
    const made = [1, 2].map(() => createApiKeys({ store, serverSecret: SECRET, clock, leaseMs: 1_000 }))
    for (const keys of made) await keys.migrate()
    return made
  }
  type Keys = ReturnType<typeof createApiKeys>

  test.each<[string, (keys: Keys, id: string) => Promise<unknown>]>([
    ['rotation', (keys, id) => keys.rotate({ as: 'application', id })],
    ['revocation', (keys, id) => keys.revoke({ as: 'application', id })],
  ])('P3: a %s by one is answered at once, and the other goes by it', async (_what, change) => {
    const clock = new TestClock()
    const [one, other] = (await both(clock)) as [Keys, Keys]
    const { key, secret } = await one.create({ as: 'application', ownerId: 'acme', name: 'n' })
    expect(await other.verify(secret)).toMatchObject({ ok: true })
    expect(other.peek(secret)).toMatchObject({ ok: true })
    await change(one, key.id)
    expect(other.peek(secret)).toBeUndefined()
    expect(await other.verify(secret)).toMatchObject({ ok: false })
  })

  test('one that is closed holds nobody up any more', async () => {
    const clock = new TestClock()
    const [one, other] = (await both(clock)) as [Keys, Keys]
    const { secret } = await one.create({ as: 'application', ownerId: 'acme', name: 'n' })
    await other.close()
    await one.rotate({ as: { secret } })
    expect(await one.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
  })
})

describe('P3: with a store of its own, a verdict that is on its way while the key is changed in the same process is dropped', () => {
  const cases = ['the store', 'the cache'].flatMap((from) => (['rotate', 'revoke', 'update'] as const).map((what) => [from, what] as const))
  test.each(cases)('from %s: %s', async (from, what) => {
    const store = memoryStore()
    const gate = new Gate()
    const entries = new Map<string, string>()
    const cache: Cache = {
      get: async (digest) => (from === 'the cache' ? gate : Gate.open).pass({ value: entries.get(digest) ?? null, timeMs: Date.now() }),
      async fill(digest, value) {
        entries.set(digest, value)
      },
      async bury() {
        return false
      },
      async forget() {},
      async close() {},
    }
    const secret = SECRET
    const read = store.read
    const keys = createApiKeys({ store, cache, serverSecret: secret, leaseMs: 60_000 })
    const issued = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['a'] })
    // Another process has left an entry in the cache, and this one has read its store before.
    const before = createApiKeys({ store, cache, serverSecret: secret, leaseMs: 60_000 })
    await before.migrate()
    if (from === 'the cache') expect(await before.verify(issued.secret)).toMatchObject({ ok: true })
    await before.close()
    expect(entries.size).toBe(from === 'the cache' ? 1 : 0)
    await keys.verify((await keys.create({ as: 'application', ownerId: 'acme', name: 'other' })).secret)
    if (from === 'the store') store.read = async (digests, reader) => gate.pass(await read(digests, reader))

    gate.close()
    const verdict = keys.verify(issued.secret)
    await gate.waiting(1)
    if (what === 'rotate') await keys.rotate({ as: 'application', id: issued.key.id })
    else if (what === 'revoke') await keys.revoke({ as: 'application', id: issued.key.id })
    else await keys.update({ as: 'application', id: issued.key.id, changes: { scopes: [] } })
    entries.clear()
    gate.release()
    const expected = {
      rotate: { ok: false, reason: 'rotated' },
      revoke: { ok: false, reason: 'revoked' },
      update: { ok: true, key: { scopes: [] } },
    }
    expect(await verdict).toMatchObject(expected[what])
    expect(await keys.verify(issued.secret)).toMatchObject(expected[what])
    await keys.close()
  })
})

/** Holds up what passes while it is closed. */
class Gate {
  static readonly open = new Gate()
  #closed = false
  #held: (() => void)[] = []

  async pass<T>(answer: T): Promise<T> {
    if (this.#closed) await new Promise<void>((resolve) => this.#held.push(resolve))
    return answer
  }

  close(): void {
    this.#closed = true
  }

  release(): void {
    this.#closed = false
    for (const go of this.#held.splice(0)) go()
  }

  async waiting(count: number): Promise<void> {
    while (this.#held.length < count) await new Promise(setImmediate)
  }
}

interface Pending<T> {
  readonly done: Promise<T>
  /** Whether it has been answered by now, when all that can go on without the clock has gone on. */
  settled(): Promise<boolean>
}

/** One instance, and one that never says that it knows of a change. */
async function sharedStore(
  clock: TestClock,
  options: { waitForLease?: boolean; leaseMs?: number } = {},
  storeClock: TestClock = clock,
): Promise<{
  keys: ReturnType<typeof createApiKeys>
  rotate(command: { secret: string; idempotencyKey?: string }): Pending<IssuedKey>
  /** What happens while the answer to a COMMIT is on its way. */
  commits: { take(): void }
  /** What a record that is settled waits for. */
  settles: { before: Promise<void> }
}> {
  const inner = memoryStore({ now: () => storeClock.wallMs() })
  const commits = { take: (): void => {} }
  const settles = { before: Promise.resolve() }
  const store: Store = {
    ...inner,
    shared: true,
    async transaction(work) {
      const result = await inner.transaction(work)
      commits.take()
      return result
    },
    async settle(...asked) {
      await settles.before
      return inner.settle(...asked)
    },
  }
  const keys = createApiKeys({ store, serverSecret: SECRET, clock, leaseMs: 1_000, ...options })
  await keys.migrate()
  await store.join(SILENT)
  return {
    keys,
    commits,
    settles,
    rotate({ secret, ...command }) {
      return pending(keys.rotate({ as: { secret }, ...command }))
    },
  }
}

function pending<T>(done: Promise<T>): Pending<T> {
  let answered = false
  done.then(
    () => {
      answered = true
    },
    () => {
      answered = true
    },
  )
  return {
    done,
    async settled() {
      // Everything here runs in memory: some turns of the event loop carry it as far as it can go.
      for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
      return answered
    },
  }
}
