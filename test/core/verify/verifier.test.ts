import type { Cache } from '../../../src/cache/cache.js'
import { guardedStore } from '../../../src/core/failures.js'
import { type Contradiction, Verifier } from '../../../src/core/verify/verifier.js'
import { ApiKeyError } from '../../../src/errors.js'
import { memoryStore } from '../../../src/store/memory.js'
import type { AuthorityAnswer, FeedChange, FeedReader, GenerationRow, KeyRow, LeaseChange, Store } from '../../../src/store/store.js'
import { TestClock } from '../../support/clock.js'

jest.mock('../../../src/real-time.js', () => require('../../support/global-time.js'))

const LEASE = 1_000
const SECRET = Buffer.alloc(32, 7)
const DIGEST = 'd'.repeat(43)

afterEach(() => jest.restoreAllMocks())

test('accepts on the word of the authority, and asks it once for as long as the lease runs', async () => {
  const { authority, table, clock } = await world()
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true, key: { id: authority.key.id } })
  clock.advance(500)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  expect(authority.reads).toBe(1)
})

test('a lease counts from before the authority was asked, not from its answer', async () => {
  const { authority, table, clock } = await world()
  authority.beforeAnswer = () => clock.advance(400)
  const result = await table.verify(DIGEST)
  clock.advance(599)
  expect(result.ok && result.live()).toBe(true)
  clock.advance(1)
  expect(result.ok && result.live()).toBe(false)
  expect(table.peek(DIGEST)).toBeUndefined()
})

test('P3: a verdict that comes back after its lease has run out is asked for once more, then refused as unavailable', async () => {
  const { authority, table, clock } = await world()
  authority.beforeAnswer = () => clock.advance(LEASE)
  await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable', message: expect.stringContaining('too late') })
  expect(authority.reads).toBe(2)
})

test('P3: a machine that was suspended does not wake up with a live lease', async () => {
  const { table, clock } = await world()
  const result = await table.verify(DIGEST)
  clock.suspend(LEASE)
  expect(table.peek(DIGEST)).toBeUndefined()
  expect(result.ok && result.live()).toBe(false)
})

test('P3: a wall clock that is set back does not make a lease longer', async () => {
  const { table, clock } = await world()
  const result = await table.verify(DIGEST)
  clock.setWall(-3_600_000)
  clock.advance(LEASE)
  expect(table.peek(DIGEST)).toBeUndefined()
  expect(result.ok && result.live()).toBe(false)
})

test('P3: a wall clock that is set back while the authority answers does not make its answer any younger', async () => {
  const { authority, table, clock } = await world()
  authority.beforeAnswer = () => {
    clock.setWall(-3_600_000)
    clock.advance(LEASE)
  }
  await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable', message: expect.stringContaining('too late') })
})

test('P3: an instance that is closed follows nothing, whatever it was granted', async () => {
  const { table, clock } = await world()
  expect(table.follower.isFollowed(clock.monotonicMs(), clock.wallMs())).toBe(true)
  table.follower.close()
  expect(table.follower.isFollowed(clock.monotonicMs(), clock.wallMs())).toBe(false)
})

test('P5: while the authority is away nobody is told that a secret is unknown', async () => {
  const { authority, table } = await world()
  authority.down = true
  await expect(table.verify('a'.repeat(43))).rejects.toThrow('the authority is away')
})

test('a hundred requests for one cold secret make one read', async () => {
  const { authority, table } = await world()
  const results = await Promise.all(Array.from({ length: 100 }, () => table.verify(DIGEST)))
  expect(results.every(({ ok }) => ok)).toBe(true)
  expect(authority.reads).toBe(1)
  expect(authority.largestBatch).toBe(1)
})

test('many cold secrets share reads of at most a hundred', async () => {
  const { authority, table } = await world()
  const digests = Array.from({ length: 1_000 }, (_, n) => `${n}`.padStart(43, 'x'))
  const results = await Promise.all(digests.map((digest) => table.verify(digest)))
  expect(results.every((result) => !result.ok && result.reason === 'unknown')).toBe(true)
  expect(authority.reads).toBeLessThanOrEqual(12)
  expect([authority.largestBatch, authority.mostAtOnce]).toEqual([100, 2])
})

test('each digest of a shared read gets its own answer', async () => {
  const { authority, table } = await world()
  const [known, unknown] = await Promise.all([table.verify(DIGEST), table.verify('somebody else')])
  expect([known.ok, unknown, authority.reads]).toEqual([true, { ok: false, reason: 'unknown' }, 1])
})

test('more than twenty thousand in wait are told so at once, and the others get their answers', async () => {
  const { authority, table } = await world()
  const release = authority.hold()
  const ask = (count: number): Promise<unknown>[] => Array.from({ length: count }, (_, n) => table.verify(`${n} of ${count}`))
  // Two reads of a hundred under way, and as many in wait as there may be.
  const asked = ask(200)
  await new Promise(setImmediate)
  asked.push(...ask(20_000))
  const refusal = { code: 'store_unavailable', message: expect.stringContaining('waiting') }
  await expect(table.verify('one more')).rejects.toMatchObject(refusal)
  release()
  expect(new Set(await Promise.all(asked))).toEqual(new Set([{ ok: false, reason: 'unknown' }]))
  expect(await table.verify('one more')).toEqual({ ok: false, reason: 'unknown' })
})

test.each([
  ['no lease', { leaseMs: 0 }],
  ['a lease below zero', { leaseMs: -1 }],
  ['a lease that is longer than any', { leaseMs: 60_001 }],
  ['a lease that is no number', { leaseMs: Number.NaN }],
  ['no time', { offset: Number.NaN }],
  ['a time beyond all', { offset: Number.POSITIVE_INFINITY }],
])('P3: an authority that grants %s is not believed', async (_what, nonsense) => {
  const { authority, table } = await world()
  Object.assign(authority, nonsense)
  await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable', message: expect.stringContaining('no sense') })
  expect(table.peek(DIGEST)).toBeUndefined()
})

test('a fact is relied on for thirty seconds, however long the lease is', async () => {
  const { authority, table, clock } = await world()
  authority.leaseMs = 60_000
  await table.verify(DIGEST)
  clock.advance(29_999)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  clock.advance(1)
  expect(table.peek(DIGEST)).toBeUndefined()
})

test('a client goes with the next read, however many strangers are waiting, also where no more of them are taken', async () => {
  const { table, clock } = await world()
  await table.verify(DIGEST)
  clock.advance(LEASE)
  const strangers = Array.from({ length: 25_000 }, (_, n) => `${n}`.padStart(43, 'x'))
  let answered = 0
  let refused = 0
  const flood = strangers.map((digest) =>
    table.verify(digest).then(
      () => answered++,
      ({ code }) => {
        expect(code).toBe('store_unavailable')
        refused++
      },
    ),
  )
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  // Two reads were under way already, and those that came with the client's.
  expect(answered).toBeLessThan(500)
  await Promise.all(flood)
  expect([answered + refused, refused > 1_000]).toEqual([25_000, true])
})

test('one secret that is looked up over and over takes one place in a read, and more of it than can be answered is refused', async () => {
  const { authority, table } = await world()
  await table.verify(DIGEST)
  const release = authority.hold()
  const ask = (): Promise<string> =>
    table.look(DIGEST).then(
      ({ found }) => found?.key.id ?? 'nothing',
      ({ code }) => code,
    )
  // Two reads under way, and then those that wait.
  const asked = [ask()]
  await new Promise(setImmediate)
  asked.push(ask())
  await new Promise(setImmediate)
  const reads = authority.reads
  asked.push(...Array.from({ length: 20_500 }, ask))
  release()
  const answers = await Promise.all(asked)
  expect(answers.filter((one) => one === 'store_unavailable')).toHaveLength(500)
  expect(answers.filter((one) => one === authority.key.id)).toHaveLength(20_002)
  expect(authority.reads).toBeLessThanOrEqual(reads + 1)
})

test('the answers of one read go out in parts, between which the event loop turns', async () => {
  const { table } = await world()
  let answered = 0
  let most = 0
  const flood = Promise.all(Array.from({ length: 400 }, (_, n) => table.verify(`${n}`.padStart(43, 'x')).then(() => answered++)))
  for (let before = 0; answered < 400; before = answered) {
    await new Promise(setImmediate)
    most = Math.max(most, answered - before)
  }
  await flood
  // Two reads at once hand out ten each.
  expect(most).toBeLessThanOrEqual(40)
})

test('P5: while the authority is away a lease in hand lasts to its deadline, and not a millisecond longer', async () => {
  const { authority, table, clock } = await world()
  await table.verify(DIGEST)
  authority.down = true
  clock.advance(LEASE - 1)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  await table.idle()
  clock.advance(1)
  expect(table.peek(DIGEST)).toBeUndefined()
  await expect(table.verify(DIGEST)).rejects.toThrow('the authority is away')
})

test.each([
  ['rotated', { retiredAt: 5, retiredReason: 'rotated' }],
  ['revoked', { retiredAt: 5, retiredReason: 'revoked' }],
] as const)('a %s secret is refused for long without asking again, wherever the feed is followed', async (reason, change) => {
  const { authority, table, clock } = await world()
  authority.generation = { ...authority.generation, ...change }
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason })
  clock.advance(500_000)
  // What was retired is live again in a backup that was restored meanwhile.
  expect(table.peek(DIGEST)).toBeUndefined()
  await table.verify('somebody else')
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason })
  expect(authority.digests.filter((digest) => digest === DIGEST)).toHaveLength(1)
})

test('an unknown secret is believed unknown for seconds only', async () => {
  const { authority, table, clock } = await world()
  const known = authority.generation
  authority.generation = { ...known, digest: 'somebody else' }
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'unknown' })
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason: 'unknown' })
  authority.generation = known
  clock.advance(3_000)
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
})

test('a lease never outlives its key', async () => {
  const { authority, table, clock } = await world()
  authority.key = { ...authority.key, expiresAt: clock.wallMs() + 300 }
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  clock.advance(300)
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'expired' })
})

test('P3: a fact outlives its key no more where the clock of the store is set back meanwhile', async () => {
  const { authority, table, clock } = await world()
  authority.key = { ...authority.key, expiresAt: clock.wallMs() + 300 }
  const result = await table.verify(DIGEST)
  authority.offset = -3_600_000
  await table.follower.poll()
  clock.advance(299)
  expect([result.ok && result.live(), table.peek(DIGEST)?.ok]).toEqual([true, true])
  clock.advance(1)
  expect([result.ok && result.live(), table.peek(DIGEST)]).toEqual([false, undefined])
})

test('a key whose expiry is moved is not refused any longer than one lease', async () => {
  const { authority, table, clock } = await world()
  authority.key = { ...authority.key, expiresAt: clock.wallMs() }
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'expired' })
  authority.key = { ...authority.key, expiresAt: null }
  clock.advance(LEASE - 1)
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason: 'expired' })
  clock.advance(1)
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
})

test('a refusal for an expiry counts from before the authority was asked, and is an answer however late it comes', async () => {
  for (const [took, left] of [
    [400, 600],
    [LEASE, 0],
  ] as const) {
    const { authority, table, clock } = await world()
    authority.key = { ...authority.key, expiresAt: clock.wallMs() }
    authority.beforeAnswer = () => clock.advance(took)
    expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'expired' })
    expect(authority.reads).toBe(1)
    if (left > 0) clock.advance(left - 1)
    expect(table.peek(DIGEST)).toEqual(left > 0 ? { ok: false, reason: 'expired' } : undefined)
    clock.advance(1)
    expect(table.peek(DIGEST)).toBeUndefined()
  }
})

test('a key that is revoked is refused, whatever its secret says', async () => {
  const { authority, table, clock } = await world()
  authority.key = { ...authority.key, revokedAt: clock.wallMs() }
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'revoked' })
})

test('a verdict on a secret without a grace period names none', async () => {
  const { authority, table, clock } = await world()
  authority.generation = { ...authority.generation, graceEndsAt: clock.wallMs() + 300 }
  expect(await table.verify(DIGEST)).not.toHaveProperty('grace')
})

test('P3: an answer that was on its way when its secret was retired is not believed', async () => {
  const { authority, table } = await world()
  const release = authority.hold()
  const verdict = table.verify(DIGEST)
  await authority.asked()
  authority.retire()
  await contradict(table, authority, { retired: { digests: [DIGEST], reason: 'rotated' } })
  release()
  expect(await verdict).toEqual({ ok: false, reason: 'rotated' })
  expect(authority.reads).toBe(2)
})

test('what is known of a secret is forgotten when its key has changed, also what is on its way to being known', async () => {
  const { authority, table } = await world()
  await table.verify(DIGEST)
  await contradict(table, authority, { changed: [DIGEST] })
  expect(table.peek(DIGEST)).toBeUndefined()
  const release = authority.hold()
  const verdict = table.verify(DIGEST)
  await authority.asked()
  authority.key = { ...authority.key, name: 'changed' }
  await contradict(table, authority, { changed: [DIGEST] })
  release()
  expect(await verdict).toMatchObject({ ok: true, key: { name: 'changed' } })
  await contradict(table, authority, { retired: { digests: [DIGEST], reason: 'revoked' } })
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason: 'revoked' })
  await contradict(table, authority, { changed: [DIGEST] })
  expect(table.peek(DIGEST)).toBeUndefined()
})

test('whose secret it is is remembered of those that somebody has, however it was met, and of the latest only', async () => {
  const { authority, table } = await world({ maxKnownSecrets: 100 })
  await table.verify('nobody')
  expect(table.familiar('nobody')).toBeUndefined()
  await table.look(DIGEST)
  expect(table.familiar(DIGEST)).toBe(authority.key.id)
  table.introduce('a', 'of a')
  for (let n = 0; n < 98; n++) table.introduce(`${n}`, 'of n')
  expect([table.familiar(DIGEST), table.familiar('a')]).toEqual([authority.key.id, 'of a'])
  // Met again, so no longer the oldest.
  table.introduce(DIGEST, authority.key.id)
  table.introduce('one more', 'of it')
  expect([table.familiar(DIGEST), table.familiar('a'), table.familiar('0')]).toEqual([authority.key.id, undefined, 'of n'])
})

test('the authority can be looked at past every lease', async () => {
  const { authority, table, clock } = await world()
  await table.verify(DIGEST)
  expect(await table.look(DIGEST)).toEqual({ at: clock.wallMs(), found: { key: authority.key, generation: authority.generation } })
  expect(await table.look('nobody')).toMatchObject({ at: clock.wallMs() })
  expect(authority.reads).toBe(3)
})

test('a stranger can make it remember ten thousand refusals, and no more', async () => {
  const { authority, table } = await world()
  const digests = Array.from({ length: 10_000 }, (_, n) => `${n}`)
  await contradict(table, authority, { retired: { digests, reason: 'rotated' } })
  expect(table.peek('0')).toBeDefined()
  // Refused again, so no longer the oldest.
  await contradict(table, authority, { retired: { digests: ['0', 'one more'], reason: 'rotated' } })
  expect([table.peek('0'), table.peek('1'), table.peek('2')]).toEqual([
    { ok: false, reason: 'rotated' },
    undefined,
    { ok: false, reason: 'rotated' },
  ])
})

test('a lease that was granted anew is no longer the oldest', async () => {
  const { authority, table, clock } = await world({ maxKnownSecrets: 100 })
  authority.answerAll = true
  for (let n = 0; n < 100; n++) await table.verify(`${n}`)
  clock.advance(LEASE)
  authority.commit('0')
  await table.verify('0')
  await table.verify('one more')
  await table.idle()
  expect([table.peek('0')?.ok, table.peek('1')]).toEqual([true, undefined])
})

test('keeps no more leases than it may, and forgets the oldest first', async () => {
  const { authority, table } = await world({ maxKnownSecrets: 100 })
  authority.answerAll = true
  const digests = Array.from({ length: 150 }, (_, n) => `${n}`.padStart(43, 'x'))
  for (const digest of digests) await table.verify(digest)
  expect(digests.filter((digest) => table.peek(digest) !== undefined)).toEqual(digests.slice(50))
})

test('the first use of a secret is told to the store, once', async () => {
  const { authority, table } = await world()
  await table.verify(DIGEST)
  await table.idle()
  expect(authority.firstUses).toEqual([DIGEST])
  expect(authority.generation.firstUsedAt).not.toBeNull()
})

test('the first use of a secret is not told to a store that knows of it, nor twice at a time', async () => {
  const { authority, table, clock } = await world()
  authority.generation = { ...authority.generation, firstUsedAt: clock.wallMs() }
  await table.verify(DIGEST)
  await table.idle()
  expect(authority.firstUses).toEqual([])
  table.noteFirstUse('a')
  table.noteFirstUse('a')
  await table.idle()
  table.noteFirstUse('a')
  await table.idle()
  expect(authority.firstUses).toEqual(['a'])
  // A store that was restored may have lost it.
  authority.restore()
  await table.look('b')
  table.noteFirstUse('a')
  await table.idle()
  expect(authority.firstUses).toEqual(['a', 'a'])
})

test('what a first use retires is refused here from then on', async () => {
  const { authority, table } = await world({ alone: true })
  authority.generation = { ...authority.generation, retiresEarlier: true }
  table.noteFirstUse(DIGEST)
  await table.idle()
  expect(table.peek('the digest before')).toEqual({ ok: false, reason: 'rotated' })
})

test('an instance started with another lease says so to the store once, and again a second later only if that failed', async () => {
  const { authority, table, clock } = await world({ leaseMs: 250, joins: false })
  authority.deaf = true
  await table.look(DIGEST)
  await table.idle()
  expect([authority.leaseMs, authority.declared]).toEqual([LEASE, 1])
  authority.deaf = false
  for (let n = 0; n < 3; n++) {
    await table.look(DIGEST)
    await table.idle()
    expect(authority.declared).toBe(n === 0 ? 1 : 2)
    authority.leaseMs = LEASE
    clock.advance(1_001)
  }
})

describe('P3: a lease that was lowered', () => {
  test('is settled once the longer one is over by this clock, counted from when the lowering was visible, whatever its commit took', async () => {
    const { authority, table, clock } = await world({ leaseMs: 50, joins: false })
    authority.leaseMs = 3_000
    authority.beforeCommit = () => clock.advance(20_000)
    await table.declareLease()
    for (const [passed, settled] of [
      [0, []],
      [3_049, []],
      [1, [1]],
    ] as const) {
      clock.advance(passed)
      await table.look(DIGEST)
      await table.idle()
      expect(authority.settledLeases).toEqual(settled)
    }
    clock.advance(10_000)
    await table.look(DIGEST)
    await table.idle()
    expect(authority.settledLeases).toEqual([1])
  })

  test('is settled no earlier because a clock was set or the clock of the store has stepped', async () => {
    const { authority, table, clock } = await world({ leaseMs: 50, joins: false })
    authority.leaseMs = 3_000
    await table.declareLease()
    clock.setWall(3_600_000)
    authority.offset = 7_200_000
    clock.advance(3_049)
    await table.look(DIGEST)
    await table.idle()
    expect(authority.settledLeases).toEqual([])
  })

  test('is settled by the next instance where the one that lowered it has ended', async () => {
    const first = await world({ leaseMs: 50, joins: false })
    first.authority.leaseMs = 3_000
    await first.table.declareLease()
    first.table.close()
    const { authority, table, clock } = await world({ authority: first.authority, clock: first.clock, leaseMs: 50, joins: false })
    await table.look(DIGEST)
    await table.idle()
    clock.advance(3_050)
    await table.look(DIGEST)
    await table.idle()
    expect(authority.settledLeases).toEqual([1])
  })

  test('is settled again where the store did not listen', async () => {
    const { authority, table, clock } = await world({ leaseMs: 50, joins: false })
    authority.leaseMs = 3_000
    await table.declareLease()
    clock.advance(3_050)
    authority.deaf = true
    await table.look(DIGEST)
    await table.idle()
    expect(authority.settledLeases).toEqual([])
    authority.deaf = false
    await table.look(DIGEST)
    await table.idle()
    expect(authority.settledLeases).toEqual([1])
  })
})

test('a failure of the store is told apart from a mistake in a program, and keeps its cause', async () => {
  const thrown = async (cause: unknown): Promise<unknown> => {
    const store = guardedStore({ ...memoryStore(), read: () => Promise.reject(cause) })
    return store.read([]).catch((error: unknown) => error)
  }
  const known = new ApiKeyError('outcome_unknown', 'x')
  expect(await thrown(known)).toBe(known)
  for (const cause of [new TypeError(), new RangeError(), new ReferenceError()]) {
    expect(await thrown(cause)).toMatchObject({ code: 'internal_error', message: 'Something unforeseen went wrong.', cause })
  }
  const cause = new Error('down')
  expect(await thrown(cause)).toMatchObject({ code: 'store_unavailable', message: 'The store could not be asked.', cause })
})

describe('a secret whose first use ends the grace period of the one before it', () => {
  const BEFORE = 'the digest before'
  const graced = async (options: Parameters<typeof world>[0] = {}): Promise<World> => {
    const made = await world(options)
    made.authority.generation = { ...made.authority.generation, generation: 2, retiresEarlier: true }
    return made
  }
  const turns = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
  }

  test('P3: is accepted when every lease on that one is over and the store knows so, and not before', async () => {
    const { authority, table, clock } = await graced()
    const verdict = waited(table.verify(DIGEST))
    await clock.asleep(1)
    // Here it is dead at once.
    expect(table.peek(BEFORE)).toEqual({ ok: false, reason: 'rotated' })
    expect(authority.firstUses).toEqual([DIGEST])
    clock.advance(LEASE + 49)
    await turns()
    expect([verdict.done, authority.generation.retiresEarlier]).toEqual([false, true])
    clock.advance(1)
    expect(await verdict.result).toMatchObject({ ok: true })
    expect(authority.generation.retiresEarlier).toBe(false)
    // The lease is of after the wait.
    clock.advance(LEASE - 1)
    expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  })

  test('P3: a process that meets it while another one waits, or has died waiting, waits in full by its own clock', async () => {
    const { authority, table, clock } = await graced()
    const first = waited(table.verify(DIGEST))
    await clock.asleep(1)
    clock.advance(600)
    const other = await world({ authority, clock })
    const second = waited(other.table.verify(DIGEST))
    await clock.asleep(2)
    // The first never gets to say that it is over.
    authority.settleFirstUse = () => new Promise(() => {})
    clock.advance(450)
    await turns()
    expect([first.done, second.done]).toEqual([false, false])
    authority.settleFirstUse = FakeAuthority.prototype.settleFirstUse
    clock.advance(599)
    await turns()
    expect(second.done).toBe(false)
    clock.advance(1)
    expect(await second.result).toMatchObject({ ok: true })
    expect(other.table.peek(BEFORE)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('a hundred requests with it wait together', async () => {
    const { authority, table, clock } = await graced()
    const verdicts = Array.from({ length: 100 }, () => table.verify(DIGEST))
    await clock.asleep(1)
    clock.advance(LEASE + 50)
    expect((await Promise.all(verdicts)).every(({ ok }) => ok)).toBe(true)
    expect(authority.firstUses).toEqual([DIGEST])
  })

  test('waits for nobody where nobody else holds leases', async () => {
    const { authority, table } = await graced({ alone: true })
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(table.peek(BEFORE)).toEqual({ ok: false, reason: 'rotated' })
    expect(authority.generation.retiresEarlier).toBe(false)
  })

  test.each(['markFirstUse', 'settleFirstUse'] as const)('P5: is not accepted while the store cannot be told (%s)', async (step) => {
    const { authority, table } = await graced({ alone: true })
    Object.assign(authority, { [step]: () => Promise.reject(new ApiKeyError('store_unavailable', 'The store is down.')) })
    await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable' })
    expect(table.peek(DIGEST)).toBeUndefined()
    delete (authority as Partial<FakeAuthority>)[step]
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  })

  test('P3: buries that one in the cache too, where no lease that another process relays comes back from', async () => {
    const { table, clock, cache } = await graced({ cached: true })
    const verdict = table.verify(DIGEST)
    await clock.asleep(1)
    expect(cache?.entries.get(BEFORE)?.value).toMatch(/^r/)
    clock.advance(LEASE + 50)
    expect(await verdict).toMatchObject({ ok: true })
  })
})

test('P3: a lease never outlives the grace period of its secret, and says when that ends', async () => {
  const { authority, table, clock, cache } = await world({ cached: true })
  const [replacedAt, graceEndsAt] = [clock.wallMs() - 500, clock.wallMs() + 300]
  authority.generation = { ...authority.generation, retiredAt: replacedAt, retiredReason: 'rotated', graceEndsAt }
  const other = await world({ authority, clock, cache })
  await other.table.verify('somebody else'.padEnd(43))
  const grace = { replacedAt: new Date(replacedAt).toISOString(), expiresAt: new Date(graceEndsAt).toISOString() }
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true, grace })
  await table.idle()
  const reads = authority.reads
  // Also where it is relayed.
  expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true, grace })
  expect(authority.reads).toBe(reads)
  clock.advance(299)
  for (const each of [table, other.table]) expect(each.peek(DIGEST)).toMatchObject({ ok: true })
  clock.advance(1)
  for (const each of [table, other.table]) expect(each.peek(DIGEST)).toBeUndefined()
  for (const each of [table, other.table]) expect(await each.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
})

describe('with a cache between two processes', () => {
  test('P3: an entry of another store is passed over, also under the same server secret', async () => {
    const { table, clock, cache } = await world({ cached: true })
    // As after a database was copied: both know the secret, and one of them has retired it.
    const copy = await world({ clock, cache })
    copy.authority.storeId = 'another store'
    copy.authority.retire()
    await copy.table.look('somebody else')
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
    await table.idle()
    expect(cache?.entries.get(DIGEST)?.value).toMatch(/^a/)
    expect(await copy.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P5: a tombstone of another store is passed over, also under the same server secret', async () => {
    const { table, clock, cache } = await world({ cached: true })
    await table.look('somebody else')
    const copy = await world({ clock, cache, joins: false })
    copy.authority.storeId = 'another store'
    await copy.table.look('somebody else')
    await contradict(copy.table, copy.authority, { retired: { digests: [DIGEST], reason: 'revoked' } })
    expect(cache?.entries.get(DIGEST)?.value).toMatch(/^r/)
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  })

  test('an entry from before the first use, relayed again and again, is no reason to tell the store again', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    const other = await world({ authority, clock, cache, maxKnownSecrets: 1 })
    authority.answerAll = true
    const another = 'a'.repeat(43)
    await table.verify(DIGEST)
    await table.verify(another)
    await table.idle()
    await other.table.verify('somebody else'.padEnd(43))
    const reads = authority.reads
    for (let turn = 0; turn < 5; turn++) {
      await other.table.verify(DIGEST)
      await other.table.verify(another)
      await other.table.idle()
    }
    expect(authority.reads).toBe(reads)
    expect(authority.firstUses.filter((digest) => digest === DIGEST)).toHaveLength(2)
  })

  test.each([
    ['restored from an old snapshot by a server that has lost the time', -3_600_000],
    ['promoted on a machine whose clock is late by half a lease', -LEASE / 2],
    ['lying about its clock', Number.NEGATIVE_INFINITY],
  ])('P3: an old entry is refused when its server was %s', async (_how, offset) => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const snapshot = new Map(cache?.entries)
    authority.retire()
    clock.advance(LEASE + 10)
    const other = await world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    if (cache !== undefined) {
      cache.entries = snapshot
      cache.offset = offset
    }
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P5: a cache that does not answer is passed over, and not filled', async () => {
    const { authority, table, cache } = await world({ cached: true })
    if (cache !== undefined) cache.silent = true
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(await table.verify('nobody')).toEqual({ ok: false, reason: 'unknown' })
    await table.idle()
    expect([authority.reads, cache?.entries.size]).toEqual([2, 0])
  })

  test('P5: a cache that answers when the lease in its answer is over is passed over', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    clock.advance(300)
    const other = await world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    if (cache !== undefined) cache.beforeAnswer = () => clock.advance(700)
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
  })

  test('P3: what the cache said before the secret was retired is not believed after it', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = await world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    const retired: Promise<void>[] = []
    if (cache !== undefined)
      cache.beforeAnswer = () => {
        cache.beforeAnswer = () => {}
        authority.retire()
        retired.push(contradict(other.table, authority, { retired: { digests: [DIGEST], reason: 'rotated' } }))
      }
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
    await Promise.all(retired)
  })

  test('an entry of before the server secret was changed is relied on', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = await world({ authority, clock, cache, serverSecrets: [Buffer.alloc(32, 8), SECRET] })
    await other.table.verify('somebody else'.padEnd(43))
    const before = authority.reads
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(authority.reads).toBe(before)
  })

  test('a relayed lease carries the grace period, and whether the secret was used', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    const now = clock.wallMs()
    authority.generation = { ...authority.generation, retiredAt: now - 10, graceEndsAt: now + 300 }
    const granted = await table.verify(DIGEST)
    await table.idle()
    const other = await world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    const relayed = await other.table.verify(DIGEST)
    await other.table.idle()
    expect(relayed.ok && relayed.grace).toEqual(granted.ok && granted.grace)
    // The entry is from before the store knew of the use.
    expect(authority.firstUses).toEqual([DIGEST, DIGEST])
    clock.advance(300)
    expect(relayed.ok && relayed.live()).toBe(false)
  })

  test('a relayed lease on a secret that was used before writes nothing', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    authority.generation = { ...authority.generation, firstUsedAt: clock.wallMs() }
    const granted = await table.verify(DIGEST)
    await table.idle()
    const other = await world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    const relayed = await other.table.verify(DIGEST)
    await other.table.idle()
    expect([relayed.ok && relayed.grace, granted.ok && granted.grace, authority.firstUses]).toEqual([undefined, undefined, []])
  })

  test('whoever finds a secret retired tells the others', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    authority.retire()
    expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
    await table.idle()
    const other = await world({ authority, clock, cache })
    await other.table.look('another digest')
    const before = authority.reads
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
    expect(authority.reads).toBe(before)
  })

  test('what is forgotten here is forgotten there, and retiring needs no cache and no word from the store', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    await contradict(table, authority, { changed: [DIGEST] })
    expect(cache?.entries.size).toBe(0)
    await contradict((await world({ authority, clock, cache, joins: false })).table, authority, {
      retired: { digests: [DIGEST], reason: 'rotated' },
    })
    expect(cache?.entries.size).toBe(0)
    await contradict((await world({ authority, clock, joins: false })).table, authority, {
      retired: { digests: [DIGEST], reason: 'rotated' },
    })
    const known = await world({ authority, clock })
    await known.table.look(DIGEST)
    await contradict(known.table, authority, { retired: { digests: [DIGEST], reason: 'rotated' } })
    expect(known.table.peek(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P3: a fill that lands late is born dead', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    let land = (): void => {}
    if (cache !== undefined) cache.holdFills = (go) => (land = go)
    await table.verify(DIGEST)
    authority.retire()
    clock.advance(30_000)
    land()
    expect(cache?.entries.size).toBe(0)
  })

  test.each([
    ['forged without the server secret', (value: string) => value.replace(/\.[^.]+\./, `.${'A'.repeat(43)}.`)],
    ['cut short', (value: string) => value.slice(0, -8)],
    ['changed by one character', (value: string) => `${value.slice(0, -1)}${value.endsWith('A') ? 'B' : 'A'}`],
    ['made into a tombstone', (value: string) => `r${value.slice(1)}`],
    ['longer by a part', (value: string) => `${value}.more`],
    ['signed by too little', (value: string) => value.replace(/\.[^.]+\./, '.AAAA.')],
    ['empty', () => ''],
    ['a kind and nothing more', () => 'a'],
    ['without content', () => 'a.b'],
    ['garbage', () => 'a.b.c.d'],
  ])('P5: an entry that is %s is passed over', async (_how, spoil) => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = await world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    cache?.spoil(spoil)
    const reads = authority.reads
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(authority.reads).toBe(reads + 1)
  })

  test('P3: an entry moved to another digest is passed over', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = await world({ authority, clock, cache })
    const dead = 'e'.repeat(43)
    await other.table.verify('somebody else'.padEnd(43))
    const entry = cache?.entries.get(DIGEST)
    if (entry !== undefined) cache?.entries.set(dead, entry)
    expect(await other.table.verify(dead)).toEqual({ ok: false, reason: 'unknown' })
  })

  test('a tombstone is not believed where the feed is not followed: a restore may have undone it', async () => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.verify(DIGEST)
    await contradict(table, authority, { retired: { digests: [DIGEST], reason: 'rotated' } })
    await table.idle()
    const other = await world({ authority, clock, cache })
    await other.table.look('another digest')
    clock.advance(LEASE)
    const { reads } = authority
    await other.table.verify(DIGEST)
    expect(authority.reads).toBeGreaterThan(reads)
    expect(authority.digests).toContain(DIGEST)
  })

  test.each(['rotated', 'revoked'] as const)('a tombstone is believed without asking the authority: %s', async (reason) => {
    const { authority, table, clock, cache } = await world({ cached: true })
    await table.look('another digest')
    await contradict(table, authority, { retired: { digests: [DIGEST], reason } })
    const other = await world({ authority, clock, cache })
    await other.table.look('another digest')
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason })
    expect(authority.digests).not.toContain(DIGEST)
  })
})

describe('the feed', () => {
  test('P3: a change that another instance has made ends what is known of its digests, and nothing else', async () => {
    const { authority, table } = await world()
    authority.answerAll = true
    for (const digest of ['a', 'b']) await table.verify(digest)
    authority.commit('a')
    await table.follower.poll()
    expect([table.peek('a'), table.peek('b')?.ok]).toEqual([undefined, true])
  })

  test('where only the lease is over, one read does for all that is known', async () => {
    const { authority, table, clock } = await world()
    authority.answerAll = true
    for (const digest of ['a', 'b', 'c']) await table.verify(digest)
    await table.idle()
    clock.advance(LEASE)
    const before = [...authority.digests]
    expect(await Promise.all(['a', 'b', 'c'].map((digest) => table.verify(digest)))).toMatchObject([
      { ok: true },
      { ok: true },
      { ok: true },
    ])
    expect(authority.digests).toEqual(before)
  })

  test('P3: what was known before the lease ran out is not taken up again where it has changed meanwhile', async () => {
    const { authority, table, clock } = await world()
    await table.verify(DIGEST)
    clock.advance(LEASE)
    authority.retire()
    expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('is read at six tenths of a lease while there is traffic, up to a tenth of that earlier, and never without', async () => {
    for (const [random, due] of [
      [0, 600],
      [1, 540],
    ] as const) {
      const chance = jest.spyOn(Math, 'random').mockReturnValue(random)
      const { authority, table, clock } = await world()
      await table.verify(DIGEST)
      await table.idle()
      const { reads } = authority
      clock.advance(due - 1)
      table.peek(DIGEST)
      await table.idle()
      expect(authority.reads).toBe(reads)
      clock.advance(1)
      await table.idle()
      expect(authority.reads).toBe(reads)
      table.peek(DIGEST)
      await table.idle()
      expect(authority.reads).toBe(reads + 1)
      chance.mockRestore()
    }
  })

  test('what is known is read again in time also where reads of other secrets keep putting off the polls, and costs no more reads', async () => {
    const { authority, table, clock } = await world()
    await table.verify(DIGEST)
    await table.idle()
    const { reads } = authority
    for (let tenth = 0; tenth < 1_000; tenth++) {
      clock.advance(100)
      expect(table.peek(DIGEST)).toMatchObject({ ok: true })
      await table.verify(`somebody new ${tenth}`)
      await table.idle()
    }
    // A hundred seconds: those of the others, and one each 17 seconds.
    expect(authority.reads - reads).toBeLessThanOrEqual(1_000 + 6)
  })

  test('P3: an answer that holds only a part of the changes grants nothing; the rest is read at once', async () => {
    const { authority, table, clock } = await world()
    authority.answerAll = true
    await table.verify('a')
    await table.idle()
    clock.advance(LEASE)
    authority.most = 2
    for (let n = 0; n < 5; n++) authority.commit(n === 4 ? 'a' : 'x')
    const release = authority.hold()
    const polled = table.follower.poll()
    await authority.asked()
    const { reads } = authority
    release()
    await polled
    expect([authority.reads - reads, table.peek('a')]).toEqual([2, undefined])
    authority.commit('a', 'b', 'c')
    authority.most = 0
    const read = await table.follower.read([])
    expect([read.continuous, table.follower.isFollowed(clock.monotonicMs(), clock.wallMs())]).toEqual([true, true])
    clock.advance(LEASE)
    await table.follower.read([])
    expect(table.follower.isFollowed(clock.monotonicMs(), clock.wallMs())).toBe(false)
  })

  test('P3: reads that overlap are compared with where they were sent from, and the older one undoes nothing', async () => {
    const { authority, table } = await world()
    authority.answerAll = true
    const release = authority.hold()
    const older = table.verify('a')
    await authority.asked()
    authority.commit('a')
    release()
    const newer = table.follower.poll()
    await Promise.all([older, newer])
    expect(table.peek('a')?.ok ?? (await table.verify('a')).ok).toBe(true)
    expect(authority.joins).toBe(1)
  })

  test.each<[string, (authority: FakeAuthority) => void]>([
    ['went back', (authority) => authority.restore(1)],
    ['is as long, and has other tags', (authority) => authority.restore(3)],
    ['is longer, and has other tags', (authority) => authority.restore(9)],
    [
      'was pruned past where the instance is',
      (authority) => Object.assign(authority, { changes: [{ seq: 7, tag: 'tag 7', digests: [] }] }),
    ],
    ['is of another database', (authority) => Object.assign(authority, { storeId: 'another store' })],
  ])('P3: an instance whose feed %s forgets everything and joins anew', async (_what, happens) => {
    const { authority, table } = await world()
    for (let n = 0; n < 3; n++) authority.commit('x')
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
    await table.idle()
    happens(authority)
    authority.generation = { ...authority.generation, retiredAt: 1, retiredReason: 'rotated' }
    const { reads } = authority
    await table.follower.poll()
    // At the first answer, and not for want of a way on.
    expect(authority.reads - reads).toBe(1)
    expect(table.peek(DIGEST)).toBeUndefined()
    expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
    await table.idle()
    expect([authority.joins, table.follower.sessions.length]).toEqual([2, 2])
  })

  test('P3: an answer that was asked for before a start over is kept by nobody', async () => {
    const { authority, table } = await world()
    authority.commit('x')
    await table.follower.poll()
    const release = authority.hold()
    const older = table.verify(DIGEST)
    await authority.asked()
    authority.restore(0)
    const polled = table.follower.poll()
    release()
    await Promise.all([older, polled])
    const answer = await older
    expect(answer).toMatchObject({ ok: true })
    expect(authority.digests.filter((digest) => digest === DIGEST).length).toBeGreaterThan(1)
  })

  test('P3: changes of an answer that was asked for before a start over are no part of the feed that is followed now', async () => {
    const { authority, table } = await world()
    authority.commit('x')
    await table.follower.poll()
    authority.commit('x')
    const release = authority.hold()
    const older = table.follower.read([])
    await authority.asked()
    Object.assign(authority, { storeId: 'the restored store' })
    authority.restore(0)
    await authority.unheld(() => table.follower.poll().then(() => table.follower.poll()))
    expect(table.follower.hasSeen({ seq: 0, tag: 'other 0' })).toBe(true)
    release()
    expect((await older).continuous).toBe(false)
    expect([table.follower.hasSeen({ seq: 0, tag: 'other 0' }), table.follower.hasSeen({ seq: 2, tag: 'tag 2' })]).toEqual([true, false])
  })
})

describe('an instance that holds no lease', () => {
  const stranger = async (): Promise<World> => {
    const made = await world({ joins: false })
    // It cannot join.
    Object.assign(made.authority, { join: () => Promise.reject(new Error('no')) })
    return made
  }

  test('P3: serves each request by a read that was sent after it came in, once, and keeps nothing of it', async () => {
    const { authority, table } = await stranger()
    const result = await table.verify(DIGEST)
    expect([result.ok && result.live(), result.ok && result.live(), table.peek(DIGEST)]).toEqual([true, false, undefined])
    await table.verify(DIGEST)
    expect(authority.digests.filter((digest) => digest === DIGEST)).toHaveLength(2)
  })

  test('P3: has who comes while a read is on its way read again', async () => {
    const { authority, table } = await stranger()
    const release = authority.hold()
    const first = table.verify(DIGEST)
    await authority.asked()
    const second = table.verify(DIGEST)
    authority.retire()
    release()
    expect([(await first).ok, await second]).toEqual([true, { ok: false, reason: 'rotated' }])
  })

  test('P3: is granted none by the answer to its registration, nor under a session that is not its own', async () => {
    const { authority, table, clock } = await world({ joins: false })
    let join = (): void => {}
    Object.assign(authority, {
      join: ({ session }: { session: string }) => {
        authority.members.set(session, 'active')
        return new Promise<void>((done) => {
          join = done
        })
      },
    })
    await table.verify(DIGEST)
    await table.verify(DIGEST)
    expect(table.follower.isFollowed(clock.monotonicMs(), clock.wallMs())).toBe(false)
    join()
    await table.idle()
    expect(table.follower.isFollowed(clock.monotonicMs(), clock.wallMs())).toBe(true)
  })
})

describe('a member', () => {
  test('that is revoked is granted nothing more, joins again, and keeps what it knows', async () => {
    const { authority, table, clock } = await world()
    await table.verify(DIGEST)
    await table.idle()
    for (const session of authority.members.keys()) authority.members.set(session, 'revoked')
    let answer = (): void => {}
    const join = authority.join.bind(authority)
    Object.assign(authority, {
      join: async (member: { session: string }) => {
        await new Promise<void>((done) => {
          answer = done
        })
        await join(member)
      },
    })
    clock.advance(600)
    await table.follower.poll()
    expect(table.peek(DIGEST)?.ok).toBe(true)
    clock.advance(400)
    expect(table.peek(DIGEST)).toBeUndefined()
    answer()
    await table.idle()
    expect([
      table.peek(DIGEST)?.ok,
      table.follower.sessions.length,
      authority.digests.filter((digest) => digest === DIGEST).length,
    ]).toEqual([true, 2, 1])
  })

  test('P3: whose row is gone forgets everything and joins anew', async () => {
    const { authority, table } = await world()
    await table.verify(DIGEST)
    await table.idle()
    authority.members.clear()
    await table.follower.poll()
    expect(table.peek(DIGEST)).toBeUndefined()
    await table.verify(DIGEST)
    await table.idle()
    expect([table.peek(DIGEST)?.ok, authority.joins]).toEqual([true, 2])
  })

  test('P3: a result that was kept is live no more once its secret has changed, however much of the lease is left', async () => {
    const { authority, table } = await world()
    const kept = await table.verify(DIGEST)
    expect(kept.ok && kept.live()).toBe(true)
    authority.commit(DIGEST)
    await table.follower.poll()
    expect(kept.ok && kept.live()).toBe(false)
  })

  test('P3: a secret whose expiry or grace period the clock of the store has passed by a step is accepted no more', async () => {
    const { authority, table, clock } = await world()
    authority.key = { ...authority.key, expiresAt: clock.wallMs() + 20_000 }
    await table.verify(DIGEST)
    await table.idle()
    authority.offset = 25_000
    await table.follower.poll()
    expect(table.peek(DIGEST)).toBeUndefined()
    expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'expired' })
  })
})

describe('the rule of positions, for what the cache relays', () => {
  /** Two instances over one store and one cache; the first has left an entry. */
  const two = async (): Promise<World & { readonly other: Verifier }> => {
    const made = await world({ cached: true })
    made.authority.answerAll = true
    for (let n = 0; n < 3; n++) made.authority.commit('x')
    const { authority, clock, cache } = made
    const { table: other } = await world({ authority, clock, cache })
    return { ...made, other }
  }

  test('P3: an entry from ahead of where an instance is, is passed over', async () => {
    const { authority, table, other } = await two()
    authority.commit('x')
    await table.follower.poll()
    await table.verify(DIGEST)
    await table.idle()
    await other.verify(DIGEST)
    expect(authority.digests.filter((digest) => digest === DIGEST)).toHaveLength(2)
  })

  test('an entry from before where an instance is, is taken if nothing has changed since', async () => {
    const { authority, table, other } = await two()
    await table.follower.poll()
    await table.verify(DIGEST)
    await table.idle()
    authority.commit('x')
    await other.follower.poll()
    expect(await other.verify(DIGEST)).toMatchObject({ ok: true })
    expect(authority.digests.filter((digest) => digest === DIGEST)).toHaveLength(1)
  })

  test('P3: an entry that a change has contradicted since, is passed over, whichever way the change became known', async () => {
    const { authority, table, other } = await two()
    await table.follower.poll()
    await table.verify(DIGEST)
    await table.idle()
    authority.retire()
    other.follower.hear([DIGEST], authority.position.seq)
    expect(await other.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P3: who has joined since takes no entry of before', async () => {
    const { authority, table, clock, cache } = await two()
    await table.verify(DIGEST)
    await table.idle()
    authority.commit('x')
    authority.generation = { ...authority.generation, retiredAt: 1, retiredReason: 'rotated' }
    const late = await world({ authority, clock, cache })
    expect(await late.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P3: an entry or a tombstone of a history that a restore has undone is passed over', async () => {
    const { authority, table, other } = await two()
    await table.follower.poll()
    await table.verify(DIGEST)
    await contradict(table, authority, { retired: { digests: ['dead'], reason: 'revoked' } })
    await table.idle()
    authority.restore()
    for (let n = 0; n < 3; n++) {
      await other.follower.poll()
      await other.idle()
    }
    authority.digests.length = 0
    expect([(await other.verify(DIGEST)).ok, (await other.verify('dead')).ok, authority.digests]).toEqual([true, true, [DIGEST, 'dead']])
  })
})

/** A verdict, and whether it has been given by now. */
function waited(result: ReturnType<Verifier['verify']>): { readonly result: typeof result; readonly done: boolean } {
  let done = false
  result
    .catch(() => {})
    .finally(() => {
      done = true
    })
  return {
    result,
    get done() {
      return done
    },
  }
}

interface World {
  readonly clock: TestClock
  readonly authority: FakeAuthority
  readonly cache: FakeCache | undefined
  readonly table: Verifier
}

async function world(
  options: {
    clock?: TestClock
    authority?: FakeAuthority
    cache?: FakeCache | undefined
    cached?: boolean
    leaseMs?: number
    maxKnownSecrets?: number
    serverSecrets?: Uint8Array[]
    alone?: boolean
    /** Whether it has joined, and holds a lease, before anything else happens. Default true. */
    joins?: boolean
  } = {},
): Promise<World> {
  const clock = options.clock ?? new TestClock()
  const authority = options.authority ?? new FakeAuthority(clock)
  const cache = options.cache ?? (options.cached === true ? new FakeCache(clock) : undefined)
  const table = new Verifier({
    store: authority as unknown as Store,
    cache,
    clock,
    serverSecrets: options.serverSecrets ?? [SECRET],
    leaseMs: options.leaseMs ?? LEASE,
    maxKnownSecrets: options.maxKnownSecrets ?? 1_000,
    mode: 'recall',
    channels: [],
    hearsRecalls: () => false,
    answeredBy: () => {},
    listen: () => {},
    settled: async (change, waitMs) => {
      await table.contradict(change, authority.position)
      if (options.alone !== true) await clock.sleep(waitMs + 50)
    },
    report: () => {},
  })
  if (options.joins !== false) await joined(table, authority)
  return { clock, authority, cache, table }
}

/** Has an instance join, and counts from there. */
async function joined(table: Verifier, authority: FakeAuthority): Promise<void> {
  await table.verify('a stranger')
  await table.idle()
  Object.assign(authority, { reads: 0, largestBatch: 0, mostAtOnce: 0 })
}

/** What a change through this very instance does once it is committed. */
function contradict(table: Verifier, authority: FakeAuthority, change: Contradiction): Promise<void> {
  authority.commit(...(change.retired?.digests ?? []), ...(change.changed ?? []))
  return table.contradict(change, authority.position)
}

type Part = 'read' | 'markFirstUse' | 'settleFirstUse' | 'setLease' | 'settleLease' | 'join' | 'leave' | 'acknowledge'

/** The part of a store that verifying needs, with switches for trouble. */
class FakeAuthority implements Pick<Store, Part> {
  readonly members = new Map<string, 'active' | 'revoked'>()
  changes: FeedChange[] = [{ seq: 0, tag: 'tag 0', digests: [] }]
  /** The changes that one answer holds. */
  most = 1_000
  joins = 0
  /** Every digest that was asked for. */
  readonly digests: string[] = []
  readonly acknowledged: number[] = []
  key: KeyRow
  generation: GenerationRow
  leaseMs = LEASE
  storeId = 'the store'
  offset = 0
  down = false
  /** Whether a change of the lease fails. */
  deaf = false
  answerAll = false
  reads = 0
  largestBatch = 0
  mostAtOnce = 0
  declared = 0
  lowered: LeaseChange = { waitMs: 0, version: 0 }
  beforeCommit = (): void => {}
  readonly settledLeases: number[] = []
  firstUses: string[] = []
  beforeAnswer = (): void => {}
  readonly #clock: TestClock
  #atOnce = 0
  #held: Promise<void> | undefined

  constructor(clock: TestClock) {
    this.#clock = clock
    const at = clock.wallMs() - 1_000
    this.key = {
      id: '00000000-0000-7000-8000-000000000001',
      ownerId: 'acme',
      name: 'reports',
      environment: 'live',
      scopes: ['reports:read'],
      metadata: { team: 'growth' },
      disabledAt: null,
      allowedIps: null,
      generation: 1,
      createdAt: at,
      updatedAt: at,
      expiresAt: null,
      revokedAt: null,
      revokedReason: null,
      rotatedTo: null,
      secretStart: 'sk_live_',
      secretLast4: '1234',
      secretCreatedAt: at,
      lastUsedAt: null,
      lastUsedIp: null,
      lastUsedUserAgent: null,
    }
    this.generation = {
      digest: DIGEST,
      keyId: this.key.id,
      generation: 1,
      createdAt: at,
      retiredAt: null,
      graceEndsAt: null,
      retiresEarlier: false,
      rotationSecretHash: null,
      retiredBy: null,
      retiredReason: null,
      firstUsedAt: null,
      secretStart: 'sk_live_',
      secretLast4: '1234',
    }
  }

  /** Retires the secret, as a rotation does. */
  retire(): void {
    this.commit(this.generation.digest)
    this.generation = { ...this.generation, retiredAt: this.#clock.wallMs(), retiredReason: 'rotated' }
  }

  /** Keeps the answers of reads back, as they are at the time of asking, until told to let go. */
  hold(): () => void {
    let release = (): void => {}
    this.#held = new Promise((resolve) => {
      release = resolve
    })
    return () => {
      this.#held = undefined
      release()
    }
  }

  /** Does something whose reads are answered at once, while those from before are still kept back. */
  async unheld(doing: () => Promise<void>): Promise<void> {
    const held = this.#held
    this.#held = undefined
    await doing()
    this.#held = held
  }

  /** Resolves when a read is under way. */
  async asked(): Promise<void> {
    for (let turn = 0; this.#atOnce === 0; turn++) {
      if (turn > 1_000) throw new Error('Nobody asks the authority.')
      await new Promise(setImmediate)
    }
  }

  get position(): FeedChange {
    return this.changes.at(-1) as FeedChange
  }

  /** Adds a change of these digests to the feed. */
  commit(...digests: string[]): void {
    const seq = this.position.seq + 1
    this.changes.push({ seq, tag: `tag ${seq}`, digests })
  }

  /** Puts another history in the place of this one, as a restored database has it: as long, or as long as is asked for. */
  restore(seq: number = this.position.seq): void {
    this.changes = Array.from({ length: seq + 1 }, (_, n) => ({ seq: n, tag: `other ${n}`, digests: [] }))
  }

  async join({ session }: { session: string }): Promise<void> {
    this.joins++
    this.members.set(session, 'active')
  }

  async leave(session: string): Promise<void> {
    this.members.delete(session)
  }

  async acknowledge(_session: string, { seq }: { seq: number }): Promise<void> {
    this.acknowledged.push(seq)
  }

  async read(digests: readonly string[], reader: FeedReader = {}): Promise<AuthorityAnswer> {
    this.reads++
    this.digests.push(...digests)
    this.#atOnce++
    this.largestBatch = Math.max(this.largestBatch, digests.length)
    this.mostAtOnce = Math.max(this.mostAtOnce, this.#atOnce)
    try {
      return await this.#answer(digests, reader)
    } finally {
      this.#atOnce--
    }
  }

  async #answer(digests: readonly string[], { session = '', after }: FeedReader): Promise<AuthorityAnswer> {
    const { key, generation, leaseMs, storeId } = this
    const at = this.#clock.wallMs() + this.offset
    const { seq, tag } = this.position
    const first = this.changes[0]?.seq ?? 0
    const there = this.changes.find((change) => change.seq === after)
    const changes = after === undefined ? [] : this.changes.filter((change) => change.seq > after).slice(0, this.most)
    const member = this.members.get(session) ?? 'none'
    this.beforeAnswer()
    await this.#held
    if (this.down) throw new Error('the authority is away')
    const found = digests.filter((digest) => this.answerAll || digest === generation.digest)
    return {
      ...{ at, storeId, server: 'one', leaseMs, member },
      feed: { seq, tag, prunedTo: first, tagAfter: there?.tag, changes },
      found: found.map((digest) => ({ key, generation: { ...generation, digest } })),
    }
  }

  async markFirstUse(digest: string): Promise<{ retired: string[]; waitMs: number }> {
    this.firstUses.push(digest)
    this.generation = { ...this.generation, firstUsedAt: this.#clock.wallMs() }
    return this.generation.retiresEarlier ? { retired: ['the digest before'], waitMs: this.leaseMs } : { retired: [], waitMs: 0 }
  }

  async settleFirstUse(): Promise<void> {
    this.generation = { ...this.generation, retiresEarlier: false }
  }

  async setLease(leaseMs: number): Promise<LeaseChange> {
    this.declared++
    if (this.deaf) throw new Error('the authority does not listen')
    this.beforeCommit()
    if (leaseMs < this.leaseMs) this.lowered = { waitMs: this.leaseMs, version: this.declared }
    this.leaseMs = leaseMs
    const change = this.lowered
    return change
  }

  async settleLease(version: number): Promise<void> {
    if (this.deaf) throw new Error('the authority does not listen')
    this.settledLeases.push(version)
    this.lowered = { waitMs: 0, version }
  }
}

/** A cache whose server has a clock of its own and can be made to lie. */
class FakeCache implements Cache {
  entries = new Map<string, { value: string; expiresAt: number }>()
  /** How far the server's clock is off; -Infinity reads as the year 1970. */
  offset = 0
  silent = false
  beforeAnswer = (): void => {}
  holdFills: ((land: () => void) => void) | undefined
  readonly #clock: TestClock

  constructor(clock: TestClock) {
    this.#clock = clock
  }

  spoil(how: (value: string) => string): void {
    for (const [digest, entry] of this.entries) this.entries.set(digest, { ...entry, value: how(entry.value) })
  }

  async get(digest: string): Promise<{ value: string | null; timeMs: number } | undefined> {
    if (this.silent) return undefined
    const timeMs = this.#now()
    const entry = this.entries.get(digest)
    await null
    this.beforeAnswer()
    return { value: entry !== undefined && entry.expiresAt > timeMs ? entry.value : null, timeMs }
  }

  async fill(digest: string, value: string, expiresAtMs: number): Promise<void> {
    const land = (): void => {
      const there = this.entries.get(digest)
      if (there?.value.startsWith('r') || expiresAtMs <= this.#now()) return
      this.entries.set(digest, { value, expiresAt: expiresAtMs })
    }
    if (this.holdFills === undefined) land()
    else this.holdFills(land)
  }

  async bury(digest: string, value: string, ttlMs: number): Promise<boolean> {
    this.entries.set(digest, { value, expiresAt: this.#now() + ttlMs })
    return true
  }

  async forget(digest: string): Promise<void> {
    if (!this.entries.get(digest)?.value.startsWith('r')) this.entries.delete(digest)
  }

  async close(): Promise<void> {}

  #now(): number {
    return Math.max(0, this.#clock.wallMs() + this.offset)
  }
}
