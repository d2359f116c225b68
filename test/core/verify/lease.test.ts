import type { Cache } from '../../../src/cache/cache.js'
import { guardedStore } from '../../../src/core/failures.js'
import { type Leases, leases } from '../../../src/core/verify/lease.js'
import { ApiKeyError } from '../../../src/errors.js'
import { memoryStore } from '../../../src/store/memory.js'
import type { AuthorityAnswer, GenerationRow, KeyRow, LeaseChange, Store } from '../../../src/store/store.js'
import { TestClock } from '../../support/clock.js'

jest.mock('../../../src/real-time.js', () => require('../../support/global-time.js'))

const LEASE = 1_000
const SECRET = Buffer.alloc(32, 7)
const DIGEST = 'd'.repeat(43)

afterEach(() => jest.restoreAllMocks())

test('accepts on the word of the authority, and asks it once for as long as the lease runs', async () => {
  const { authority, table, clock } = world()
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true, key: { id: authority.key.id } })
  clock.advance(500)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  expect(authority.reads).toBe(1)
})

test('a lease counts from before the authority was asked, not from its answer', async () => {
  const { authority, table, clock } = world()
  authority.beforeAnswer = () => clock.advance(400)
  const result = await table.verify(DIGEST)
  clock.advance(599)
  expect(result.ok && result.live()).toBe(true)
  clock.advance(1)
  expect(result.ok && result.live()).toBe(false)
  expect(table.peek(DIGEST)).toBeUndefined()
})

test('P3: a verdict that comes back after its lease has run out is asked for once more, then refused as unavailable', async () => {
  const { authority, table, clock } = world()
  authority.beforeAnswer = () => clock.advance(LEASE)
  await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable', message: expect.stringContaining('too late') })
  expect(authority.reads).toBe(2)
})

test('P3: a machine that was suspended does not wake up with a live lease', async () => {
  const { table, clock } = world()
  const result = await table.verify(DIGEST)
  clock.suspend(LEASE)
  expect(table.peek(DIGEST)).toBeUndefined()
  expect(result.ok && result.live()).toBe(false)
})

test('P3: a wall clock that is set back does not make a lease longer', async () => {
  const { table, clock } = world()
  const result = await table.verify(DIGEST)
  clock.setWall(-3_600_000)
  clock.advance(LEASE)
  expect(table.peek(DIGEST)).toBeUndefined()
  expect(result.ok && result.live()).toBe(false)
})

test('a hundred requests for one cold secret make one read', async () => {
  const { authority, table } = world()
  const results = await Promise.all(Array.from({ length: 100 }, () => table.verify(DIGEST)))
  expect(results.every(({ ok }) => ok)).toBe(true)
  expect(authority.reads).toBe(1)
  expect(authority.largestBatch).toBe(1)
})

test('many cold secrets share reads of at most a hundred', async () => {
  const { authority, table } = world()
  const digests = Array.from({ length: 1_000 }, (_, n) => `${n}`.padStart(43, 'x'))
  const results = await Promise.all(digests.map((digest) => table.verify(digest)))
  expect(results.every((result) => !result.ok && result.reason === 'unknown')).toBe(true)
  expect(authority.reads).toBeLessThanOrEqual(12)
  expect([authority.largestBatch, authority.mostAtOnce]).toEqual([100, 2])
})

test('each digest of a shared read gets its own answer', async () => {
  const { authority, table } = world()
  const [known, unknown] = await Promise.all([table.verify(DIGEST), table.verify('somebody else')])
  expect([known.ok, unknown, authority.reads]).toEqual([true, { ok: false, reason: 'unknown' }, 1])
})

test('more than twenty thousand in wait are told so at once, and the others get their answers', async () => {
  const { authority, table } = world()
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
  const { authority, table } = world()
  Object.assign(authority, nonsense)
  await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable', message: expect.stringContaining('no sense') })
  expect(table.peek(DIGEST)).toBeUndefined()
})

test('the longest lease is a minute', async () => {
  const { authority, table, clock } = world()
  authority.leaseMs = 60_000
  await table.verify(DIGEST)
  clock.advance(59_999)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
})

test('a renewal is due after six tenths of a lease, and jitter makes that up to a tenth of it earlier', async () => {
  for (const [random, due] of [
    [0, 600],
    [1, 540],
  ] as const) {
    const chance = jest.spyOn(Math, 'random').mockReturnValue(random)
    const { authority, table, clock } = world()
    await table.verify(DIGEST)
    clock.advance(due - 1)
    table.peek(DIGEST)
    await table.idle()
    expect(authority.reads).toBe(1)
    clock.advance(1)
    table.peek(DIGEST)
    await table.idle()
    expect(authority.reads).toBe(2)
    chance.mockRestore()
  }
})

test('a renewal that fails is tried again a tenth of a lease later', async () => {
  const chance = jest.spyOn(Math, 'random').mockReturnValue(0)
  const { authority, table, clock } = world()
  await table.verify(DIGEST)
  authority.down = true
  const readsAt: number[] = []
  for (let ms = 10; ms <= 800; ms += 10) {
    clock.advance(10)
    const { reads } = authority
    table.peek(DIGEST)
    await table.idle()
    if (authority.reads > reads) readsAt.push(ms)
    if (ms === 790) authority.down = false
  }
  expect(readsAt).toEqual([600, 700, 800])
  clock.advance(900)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  chance.mockRestore()
})

test('a renewal that finds the secret retired ends the lease in hand at once', async () => {
  const { authority, table, clock } = world()
  await table.verify(DIGEST)
  authority.retire()
  clock.advance(700)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  await table.idle()
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
})

test('a client goes with the next read, however many strangers are waiting, also where no more of them are taken', async () => {
  const { table, clock } = world()
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
  const { authority, table } = world()
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
  const { table } = world()
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

test('a hot lease is renewed ahead of its end, and no request waits for it', async () => {
  const { authority, table, clock } = world()
  await table.verify(DIGEST)
  for (let ms = 0; ms < 10 * LEASE; ms += 50) {
    clock.advance(50)
    expect(table.peek(DIGEST)).toMatchObject({ ok: true })
    await table.idle()
  }
  expect(authority.reads).toBeGreaterThanOrEqual(10)
  expect(authority.reads).toBeLessThanOrEqual(21)
})

test('renewals that fall due together are one question, and none is asked twice', async () => {
  const { authority, table, clock } = world()
  const digests = [DIGEST, ...Array.from({ length: 30 }, (_, n) => `${n}`.padStart(43, 'x'))]
  authority.answerAll = true
  await Promise.all(digests.map((digest) => table.verify(digest)))
  expect(authority.reads).toBe(1)
  clock.advance(0.6 * LEASE)
  for (const digest of [...digests, ...digests]) {
    expect(table.peek(digest)).toMatchObject({ ok: true })
    await Promise.resolve()
  }
  await table.idle()
  expect([authority.reads, authority.largestBatch]).toEqual([2, 31])
  clock.advance(0.5 * LEASE)
  for (const digest of digests) expect(table.peek(digest)).toMatchObject({ ok: true })
})

test.each(['retire', 'forget'] as const)(
  'P3: where no change waits for leases, none of before it comes back from a cache that does not %s',
  async (what) => {
    const leaseMs = 60_000
    const { authority, cache, table, clock } = world({ cached: true, alone: true, leaseMs })
    authority.leaseMs = leaseMs
    const before = world({ clock, authority, cache, alone: true, leaseMs })
    for (const who of [table, before.table]) {
      await who.verify(DIGEST)
      await who.idle()
    }
    const entries = new Map(cache?.entries)
    expect(entries.size).toBe(1)
    if (what === 'retire') authority.retire()
    else authority.key = { ...authority.key, scopes: [] }
    await (what === 'retire' ? table.retire([DIGEST], 'rotated') : table.forget(DIGEST))
    for (const [digest, entry] of entries) cache?.entries.set(digest, entry)
    // What was remembered of it has been pushed out by others meanwhile.
    if (what === 'retire') for (let n = 0; n < 10_001; n++) await table.verify(`${n}`.padStart(43, 'x'))
    clock.advance(20_000)
    expect(await table.verify(DIGEST)).toMatchObject(
      what === 'retire' ? { ok: false, reason: 'rotated' } : { ok: true, key: { scopes: [] } },
    )
  },
)

test('P3: a renewal that was due when the key was rotated does not bring back what is dead', async () => {
  const { authority, cache, table, clock } = world({ cached: true })
  for (let again = 0; again < 2; again++) {
    await table.verify(DIGEST)
    await table.idle()
    clock.advance(again === 0 ? LEASE : 0.55 * LEASE)
  }
  // Another one has renewed it meanwhile, so there is an entry that is worth taking.
  const other = world({ clock, authority, cache })
  await other.table.verify(DIGEST)
  await other.table.idle()
  clock.advance(0.05 * LEASE)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  const entries = new Map(cache?.entries)
  await table.retire([DIGEST], 'rotated')
  // The tombstone is lost.
  for (const [digest, entry] of entries) cache?.entries.set(digest, entry)
  await table.idle()
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
})

test('whoever waits for the background work to end does not wait for a timer', async () => {
  const { authority, table, clock } = world()
  await table.verify(DIGEST)
  clock.advance(0.6 * LEASE)
  const timer = jest.spyOn(globalThis, 'setTimeout').mockReturnValue({ unref: () => undefined } as never)
  table.peek(DIGEST)
  expect(timer).toHaveBeenCalledTimes(1)
  timer.mockRestore()
  await table.idle()
  expect(authority.reads).toBe(2)
})

test('a renewal does not take the entry of the lease in hand for news, and takes that of a later lease', async () => {
  jest.spyOn(Math, 'random').mockReturnValue(1)
  const { authority, cache, table, clock } = world({ cached: true })
  const other = world({ clock, authority, cache })
  const renew = async (part: number, who = table): Promise<void> => {
    clock.advance(part * LEASE)
    expect(who.peek(DIGEST)).toMatchObject({ ok: true })
    await who.idle()
  }
  for (const again of [false, true]) {
    // The second time the other one knows the store, and takes the word of the cache.
    if (again) clock.advance(2 * LEASE)
    for (const who of [table, other.table]) {
      await who.verify(DIGEST)
      await who.idle()
    }
  }
  const reads = authority.reads
  expect(reads).toBe(3)
  // As early as may be: more than the part is left that would do for a renewal, had somebody else been granted it.
  await renew(0.55)
  expect(authority.reads).toBe(reads + 1)
  // The other one's lease is of the first entry, and there is a second by now.
  await renew(0.08, other.table)
  expect(authority.reads).toBe(reads + 1)
  await renew(0.55, other.table)
  expect(authority.reads).toBe(reads + 2)
  await renew(0.01)
  expect(authority.reads).toBe(reads + 2)
})

test.each([1_000, 250])('five processes that use one key read it no oftener than one does, at a lease of %d ms', async (leaseMs) => {
  let seed = 1
  jest.spyOn(Math, 'random').mockImplementation(() => {
    seed = (seed * 48_271) % 2_147_483_647
    return seed / 2_147_483_647
  })
  const first = world({ cached: true, leaseMs })
  const { authority, cache, clock } = first
  authority.leaseMs = leaseMs
  const tables = [first.table, ...Array.from({ length: 4 }, () => world({ clock, authority, cache, leaseMs }).table)]
  const use = async (leases: number): Promise<number> => {
    const { reads } = authority
    for (let step = 0; step < leases * 100; step++) {
      clock.advance(leaseMs / 100)
      // At once: whoever is due has not seen what another one is being granted.
      for (const table of tables) expect(table.peek(DIGEST)).toMatchObject({ ok: true })
      await Promise.all(tables.map((table) => table.idle()))
    }
    return authority.reads - reads
  }
  for (const table of tables) await table.verify(DIGEST)
  await use(5)
  // A lease lasts for 54 to 60 steps, and its renewal is noticed at the next one.
  const reads = await use(20)
  expect(reads).toBeGreaterThanOrEqual(33)
  expect(reads).toBeLessThanOrEqual(38)
})

test('P5: while the authority is away a lease in hand lasts to its deadline, and not a millisecond longer', async () => {
  const { authority, table, clock } = world()
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
] as const)('a %s secret is refused for long without asking again', async (reason, change) => {
  const { authority, table, clock } = world()
  authority.generation = { ...authority.generation, ...change }
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason })
  clock.advance(500_000)
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason })
  expect(authority.reads).toBe(1)
})

test('an unknown secret is believed unknown for seconds only', async () => {
  const { authority, table, clock } = world()
  const known = authority.generation
  authority.generation = { ...known, digest: 'somebody else' }
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'unknown' })
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason: 'unknown' })
  authority.generation = known
  clock.advance(3_000)
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
})

test('a lease never outlives its key', async () => {
  const { authority, table, clock } = world()
  authority.key = { ...authority.key, expiresAt: clock.wallMs() + 300 }
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  clock.advance(300)
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'expired' })
})

test('a key whose expiry is moved is not refused any longer than one lease', async () => {
  const { authority, table, clock } = world()
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
    const { authority, table, clock } = world()
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
  const { authority, table, clock } = world()
  authority.key = { ...authority.key, revokedAt: clock.wallMs() }
  expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'revoked' })
})

test('a verdict on a secret without a grace period names none', async () => {
  const { authority, table, clock } = world()
  authority.generation = { ...authority.generation, graceEndsAt: clock.wallMs() + 300 }
  expect(await table.verify(DIGEST)).not.toHaveProperty('grace')
})

test('P3: an answer that was on its way when its secret was retired is not believed', async () => {
  const { authority, table } = world()
  const release = authority.hold()
  const verdict = table.verify(DIGEST)
  await authority.asked()
  authority.retire()
  await table.retire([DIGEST], 'rotated')
  release()
  expect(await verdict).toEqual({ ok: false, reason: 'rotated' })
  expect(authority.reads).toBe(2)
})

test('what is known of a secret is forgotten when its key has changed, also what is on its way to being known', async () => {
  const { authority, table } = world()
  await table.verify(DIGEST)
  await table.forget(DIGEST)
  expect(table.peek(DIGEST)).toBeUndefined()
  const release = authority.hold()
  const verdict = table.verify(DIGEST)
  await authority.asked()
  authority.key = { ...authority.key, name: 'changed' }
  await table.forget(DIGEST)
  release()
  expect(await verdict).toMatchObject({ ok: true, key: { name: 'changed' } })
  await table.retire([DIGEST], 'revoked')
  expect(table.peek(DIGEST)).toEqual({ ok: false, reason: 'revoked' })
  await table.forget(DIGEST)
  expect(table.peek(DIGEST)).toBeUndefined()
})

test('whose secret it is is remembered of those that somebody has, however it was met, and of the latest only', async () => {
  const { authority, table } = world({ maxLeases: 100 })
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
  const { authority, table, clock } = world()
  await table.verify(DIGEST)
  expect(await table.look(DIGEST)).toEqual({ at: clock.wallMs(), found: { key: authority.key, generation: authority.generation } })
  expect(await table.look('nobody')).toMatchObject({ at: clock.wallMs() })
  expect(authority.reads).toBe(3)
})

test('a stranger can make it remember ten thousand refusals, and no more', async () => {
  const { table } = world()
  const digests = Array.from({ length: 10_000 }, (_, n) => `${n}`)
  await table.retire(digests, 'rotated')
  expect(table.peek('0')).toBeDefined()
  // Refused again, so no longer the oldest.
  await table.retire(['0', 'one more'], 'rotated')
  expect([table.peek('0'), table.peek('1'), table.peek('2')]).toEqual([
    { ok: false, reason: 'rotated' },
    undefined,
    { ok: false, reason: 'rotated' },
  ])
})

test('a lease that was granted anew is no longer the oldest', async () => {
  const { authority, table, clock } = world({ maxLeases: 100 })
  authority.answerAll = true
  for (let n = 0; n < 100; n++) await table.verify(`${n}`)
  clock.advance(LEASE)
  await table.verify('0')
  await table.verify('one more')
  expect(table.peek('0')).toMatchObject({ ok: true })
})

test('keeps no more leases than it may, and forgets the oldest first', async () => {
  const { authority, table } = world({ maxLeases: 100 })
  authority.answerAll = true
  const digests = Array.from({ length: 150 }, (_, n) => `${n}`.padStart(43, 'x'))
  for (const digest of digests) await table.verify(digest)
  expect(digests.filter((digest) => table.peek(digest) !== undefined)).toEqual(digests.slice(50))
})

test('the first use of a secret is told to the store, once', async () => {
  const { authority, table } = world()
  await table.verify(DIGEST)
  await table.idle()
  expect(authority.firstUses).toEqual([DIGEST])
  expect(authority.generation.firstUsedAt).not.toBeNull()
})

test('the first use of a secret is not told to a store that knows of it, nor twice at a time', async () => {
  const { authority, table, clock } = world()
  authority.generation = { ...authority.generation, firstUsedAt: clock.wallMs() }
  await table.verify(DIGEST)
  await table.idle()
  expect(authority.firstUses).toEqual([])
  table.noteFirstUse('a')
  table.noteFirstUse('a')
  await table.idle()
  table.noteFirstUse('a')
  await table.idle()
  expect(authority.firstUses).toEqual(['a', 'a'])
})

test('what a first use retires is refused here from then on', async () => {
  const { authority, table } = world()
  authority.generation = { ...authority.generation, retiresEarlier: true }
  table.noteFirstUse(DIGEST)
  await table.idle()
  expect(table.peek('the digest before')).toEqual({ ok: false, reason: 'rotated' })
})

test('an instance started with another lease says so to the store once, and again a second later only if that failed', async () => {
  const { authority, table, clock } = world({ leaseMs: 250 })
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
    const { authority, table, clock } = world({ leaseMs: 50 })
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
    const { authority, table, clock } = world({ leaseMs: 50 })
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
    const first = world({ leaseMs: 50 })
    first.authority.leaseMs = 3_000
    await first.table.declareLease()
    first.table.close()
    const { authority, table, clock } = world({ authority: first.authority, clock: first.clock, leaseMs: 50 })
    await table.look(DIGEST)
    await table.idle()
    clock.advance(3_050)
    await table.look(DIGEST)
    await table.idle()
    expect(authority.settledLeases).toEqual([1])
  })

  test('is settled again where the store did not listen', async () => {
    const { authority, table, clock } = world({ leaseMs: 50 })
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
  const graced = (options: Parameters<typeof world>[0] = {}): World => {
    const made = world(options)
    made.authority.generation = { ...made.authority.generation, generation: 2, retiresEarlier: true }
    return made
  }
  const turns = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
  }

  test('P3: is accepted when every lease on that one is over and the store knows so, and not before', async () => {
    const { authority, table, clock } = graced()
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
    const { authority, table, clock } = graced()
    const first = waited(table.verify(DIGEST))
    await clock.asleep(1)
    clock.advance(600)
    const other = world({ authority, clock })
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
    const { authority, table, clock } = graced()
    const verdicts = Array.from({ length: 100 }, () => table.verify(DIGEST))
    await clock.asleep(1)
    clock.advance(LEASE + 50)
    expect((await Promise.all(verdicts)).every(({ ok }) => ok)).toBe(true)
    expect(authority.firstUses).toEqual([DIGEST])
  })

  test('waits for nobody where nobody else holds leases', async () => {
    const { authority, table } = graced({ alone: true })
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(table.peek(BEFORE)).toEqual({ ok: false, reason: 'rotated' })
    expect(authority.generation.retiresEarlier).toBe(false)
  })

  test.each(['markFirstUse', 'settleFirstUse'] as const)('P5: is not accepted while the store cannot be told (%s)', async (step) => {
    const { authority, table } = graced({ alone: true })
    Object.assign(authority, { [step]: () => Promise.reject(new ApiKeyError('store_unavailable', 'The store is down.')) })
    await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable' })
    expect(table.peek(DIGEST)).toBeUndefined()
    delete (authority as Partial<FakeAuthority>)[step]
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  })

  test('P3: buries that one in the cache too, where no lease that another process relays comes back from', async () => {
    const { table, clock, cache } = graced({ cached: true })
    const verdict = table.verify(DIGEST)
    await clock.asleep(1)
    expect(cache?.entries.get(BEFORE)?.value).toMatch(/^r/)
    clock.advance(LEASE + 50)
    expect(await verdict).toMatchObject({ ok: true })
  })
})

test('P3: a lease never outlives the grace period of its secret, and says when that ends', async () => {
  const { authority, table, clock, cache } = world({ cached: true })
  const [replacedAt, graceEndsAt] = [clock.wallMs() - 500, clock.wallMs() + 300]
  authority.generation = { ...authority.generation, retiredAt: replacedAt, retiredReason: 'rotated', graceEndsAt }
  const other = world({ authority, clock, cache })
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
    const { table, clock, cache } = world({ cached: true })
    // As after a database was copied: both know the secret, and one of them has retired it.
    const copy = world({ clock, cache })
    copy.authority.storeId = 'another store'
    copy.authority.retire()
    await copy.table.look('somebody else')
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
    await table.idle()
    expect(cache?.entries.get(DIGEST)?.value).toMatch(/^a/)
    expect(await copy.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P5: a tombstone of another store is passed over, also under the same server secret', async () => {
    const { table, clock, cache } = world({ cached: true })
    await table.look('somebody else')
    const copy = world({ clock, cache })
    copy.authority.storeId = 'another store'
    await copy.table.look('somebody else')
    await copy.table.retire([DIGEST], 'revoked')
    expect(cache?.entries.get(DIGEST)?.value).toMatch(/^r/)
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
  })

  test('one read of the authority serves both, and the lease ends for both at the same time', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    await table.verify(DIGEST)
    await table.idle()
    clock.advance(300)
    const reads = authority.reads
    const relayed = await other.table.verify(DIGEST)
    expect(relayed).toMatchObject({ ok: true })
    expect(authority.reads).toBe(reads)
    clock.advance(LEASE - 301)
    expect(relayed.ok && relayed.live()).toBe(true)
    clock.advance(1)
    expect(relayed.ok && relayed.live()).toBe(false)
  })

  test('an entry from before the first use, relayed again and again, is no reason to tell the store again', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    const other = world({ authority, clock, cache, maxLeases: 1 })
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

  test('P3: re-reading the cache never makes a lease longer', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    authority.retire()
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    let accepted = 0
    for (let ms = 0; ms < 2 * LEASE; ms += 20) {
      clock.advance(20)
      const result = await other.table.verify(DIGEST)
      if (result.ok) accepted = ms + 20
    }
    expect(accepted).toBeGreaterThan(0)
    expect(accepted).toBeLessThan(LEASE)
  })

  test.each([
    ['restored from an old snapshot by a server that has lost the time', -3_600_000],
    ['promoted on a machine whose clock is late by half a lease', -LEASE / 2],
    ['lying about its clock', Number.NEGATIVE_INFINITY],
  ])('P3: an old entry is refused when its server was %s', async (_how, offset) => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const snapshot = new Map(cache?.entries)
    authority.retire()
    clock.advance(LEASE + 10)
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    if (cache !== undefined) {
      cache.entries = snapshot
      cache.offset = offset
    }
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P3: when the clock of the authority is set back, relayed leases are refused until none from before can be left', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    await table.verify(DIGEST)
    await table.idle()
    authority.offset = -600_000
    await other.table.verify('a third'.padEnd(43))
    const reads = authority.reads
    await other.table.verify(DIGEST)
    expect(authority.reads).toBe(reads + 1)
  })

  test('P3: a process that started after the clock of the authority was set back goes by the clock of the cache', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const snapshot = new Map([...(cache?.entries ?? [])].map(([digest, entry]) => [digest, { ...entry, expiresAt: Number.MAX_VALUE }]))
    authority.retire()
    clock.advance(LEASE + 10)
    authority.offset = -600_000
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    if (cache !== undefined) cache.entries = snapshot
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('P3: a relayed lease is never longer than a whole one, whatever both clocks say', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    authority.offset = -600_000
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    if (cache !== undefined) cache.offset = -600_000
    const relayed = await other.table.verify(DIGEST)
    clock.advance(LEASE - 1)
    expect(relayed.ok && relayed.live()).toBe(true)
    clock.advance(1)
    expect(relayed.ok && relayed.live()).toBe(false)
  })

  test('P3: an old reading of the clock of the authority is not relied on', async () => {
    for (const [age, reads] of [
      [30_000, 0],
      [30_001, 1],
    ] as const) {
      const { authority, table, clock, cache } = world({ cached: true })
      const other = world({ authority, clock, cache })
      await other.table.verify('somebody else'.padEnd(43))
      clock.advance(age)
      await table.verify(DIGEST)
      await table.idle()
      const before = authority.reads
      expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
      expect(authority.reads - before).toBe(reads)
    }
  })

  test('P3: an older reading of the clock of the authority makes a relayed lease shorter by a thousandth of its age', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    clock.advance(10_000)
    await table.verify(DIGEST)
    await table.idle()
    clock.advance(500)
    const relayed = await other.table.verify(DIGEST)
    clock.advance(489)
    expect(relayed.ok && relayed.live()).toBe(true)
    clock.advance(1)
    expect(relayed.ok && relayed.live()).toBe(false)
  })

  test('P3: a machine that was suspended since its reading of the clock of the authority counts that too', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const snapshot = new Map(cache?.entries)
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    authority.retire()
    clock.suspend(LEASE + 10)
    if (cache !== undefined) {
      cache.entries = snapshot
      cache.offset = -LEASE - 10
    }
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test.each([
    ['a step of what two clocks may drift apart in ten seconds and 20 ms more is none', 10_000, -30, 0],
    ['a millisecond beyond that is one', 10_000, -31, 1],
    ['a step of 20 ms between two reads is none', 0, -20, 0],
    ['a step of 21 ms between two reads is one', 0, -21, 1],
    ['a step forward is none', 0, 5_000, 0],
  ])('when the clock of the authority is set: %s', async (_what, passed, step, reads) => {
    const { authority, table, clock, cache } = world({ cached: true })
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    clock.advance(passed)
    authority.offset = step
    await other.table.verify('a third'.padEnd(43))
    await table.verify(DIGEST)
    await table.idle()
    const before = authority.reads
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(authority.reads - before).toBe(reads)
  })

  test('a slow answer is not taken for a clock that was set back', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    const other = world({ authority, clock, cache })
    authority.beforeAnswer = () => clock.advance(400)
    await other.table.verify('somebody else'.padEnd(43))
    authority.beforeAnswer = () => {}
    await other.table.verify('a third'.padEnd(43))
    await table.verify(DIGEST)
    await table.idle()
    const before = authority.reads
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(authority.reads).toBe(before)
  })

  test('a minute after the clock of the authority was set back, relayed leases are relied on again', async () => {
    for (const [wait, reads] of [
      [59_999, 1],
      [60_000, 0],
    ] as const) {
      const { authority, table, clock, cache } = world({ cached: true })
      const other = world({ authority, clock, cache })
      await other.table.verify('somebody else'.padEnd(43))
      authority.offset = -600_000
      await other.table.verify('a third'.padEnd(43))
      clock.advance(wait)
      await other.table.verify('a fourth'.padEnd(43))
      await table.verify(DIGEST)
      await table.idle()
      const before = authority.reads
      expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
      expect(authority.reads - before).toBe(reads)
    }
  })

  test('P5: a cache that does not answer is passed over, and not filled', async () => {
    const { authority, table, cache } = world({ cached: true })
    if (cache !== undefined) cache.silent = true
    expect(await table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(await table.verify('nobody')).toEqual({ ok: false, reason: 'unknown' })
    await table.idle()
    expect([authority.reads, cache?.entries.size]).toEqual([2, 0])
  })

  test('P5: a cache that answers when the lease in its answer is over is passed over', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    clock.advance(300)
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    if (cache !== undefined) cache.beforeAnswer = () => clock.advance(700)
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
  })

  test('P3: what the cache said before the secret was retired is not believed after it', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    const retired: Promise<void>[] = []
    if (cache !== undefined)
      cache.beforeAnswer = () => {
        cache.beforeAnswer = () => {}
        authority.retire()
        retired.push(other.table.retire([DIGEST], 'rotated'))
      }
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
    await Promise.all(retired)
  })

  test('an entry of before the server secret was changed is relied on', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = world({ authority, clock, cache, serverSecrets: [Buffer.alloc(32, 8), SECRET] })
    await other.table.verify('somebody else'.padEnd(43))
    const before = authority.reads
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(authority.reads).toBe(before)
  })

  test('a relayed lease with little left is good enough for a request, though not for a renewal', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    clock.advance(700)
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    const before = authority.reads
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
    expect([authority.reads, other.table.familiar(DIGEST)]).toEqual([before, authority.key.id])
  })

  test('a relayed lease carries the grace period, and whether the secret was used', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    const now = clock.wallMs()
    authority.generation = { ...authority.generation, retiredAt: now - 10, graceEndsAt: now + 300 }
    const granted = await table.verify(DIGEST)
    await table.idle()
    const other = world({ authority, clock, cache })
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
    const { authority, table, clock, cache } = world({ cached: true })
    authority.generation = { ...authority.generation, firstUsedAt: clock.wallMs() }
    const granted = await table.verify(DIGEST)
    await table.idle()
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    const relayed = await other.table.verify(DIGEST)
    await other.table.idle()
    expect([relayed.ok && relayed.grace, granted.ok && granted.grace, authority.firstUses]).toEqual([undefined, undefined, []])
  })

  test('whoever finds a secret retired tells the others', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    authority.retire()
    expect(await table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
    await table.idle()
    const other = world({ authority, clock, cache })
    await other.table.look('another digest')
    const before = authority.reads
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
    expect(authority.reads).toBe(before)
  })

  test('what is forgotten here is forgotten there, and retiring needs no cache and no word from the store', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    await table.forget(DIGEST)
    expect(cache?.entries.size).toBe(0)
    await world({ authority, clock, cache }).table.retire([DIGEST], 'rotated')
    expect(cache?.entries.size).toBe(0)
    await world({ authority, clock }).table.retire([DIGEST], 'rotated')
    const known = world({ authority, clock })
    await known.table.look(DIGEST)
    await known.table.retire([DIGEST], 'rotated')
    expect(known.table.peek(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
  })

  test('a hot lease is renewed from the authority when the cache only has the one in hand', async () => {
    const { table, clock } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    for (let ms = 0; ms < 5 * LEASE; ms += 50) {
      clock.advance(50)
      expect(table.peek(DIGEST)).toMatchObject({ ok: true })
      await table.idle()
    }
  })

  test('a process that has not read the authority lately does not rely on a relayed lease', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = world({ authority, clock, cache })
    const reads = authority.reads
    await other.table.verify(DIGEST)
    expect(authority.reads).toBe(reads + 1)
  })

  test('P3: a fill that lands late is born dead', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    let land = (): void => {}
    if (cache !== undefined) cache.holdFills = (go) => (land = go)
    await table.verify(DIGEST)
    authority.retire()
    clock.advance(LEASE)
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
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = world({ authority, clock, cache })
    await other.table.verify('somebody else'.padEnd(43))
    cache?.spoil(spoil)
    const reads = authority.reads
    expect(await other.table.verify(DIGEST)).toMatchObject({ ok: true })
    expect(authority.reads).toBe(reads + 1)
  })

  test('P3: an entry moved to another digest is passed over', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.verify(DIGEST)
    await table.idle()
    const other = world({ authority, clock, cache })
    const dead = 'e'.repeat(43)
    await other.table.verify('somebody else'.padEnd(43))
    const entry = cache?.entries.get(DIGEST)
    if (entry !== undefined) cache?.entries.set(dead, entry)
    expect(await other.table.verify(dead)).toEqual({ ok: false, reason: 'unknown' })
  })

  test.each(['rotated', 'revoked'] as const)('a tombstone is believed without asking the authority: %s', async (reason) => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.look('another digest')
    await table.retire([DIGEST], reason)
    const other = world({ authority, clock, cache })
    await other.table.look('another digest')
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason })
    expect(authority.reads).toBe(2)
  })

  test('two processes together read the authority about once a lease', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    const other = world({ authority, clock, cache })
    for (let ms = 0; ms < 10 * LEASE; ms += 20) {
      clock.advance(20)
      for (const each of [table, other.table]) {
        if (each.peek(DIGEST) === undefined) await each.verify(DIGEST)
        await each.idle()
      }
    }
    expect(authority.reads).toBeLessThanOrEqual(24)
  })
})

/** A verdict, and whether it has been given by now. */
function waited(result: ReturnType<Leases['verify']>): { readonly result: typeof result; readonly done: boolean } {
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
  readonly table: Leases
}

function world(
  options: {
    clock?: TestClock
    authority?: FakeAuthority
    cache?: FakeCache | undefined
    cached?: boolean
    leaseMs?: number
    maxLeases?: number
    serverSecrets?: Uint8Array[]
    alone?: boolean
  } = {},
): World {
  const clock = options.clock ?? new TestClock()
  const authority = options.authority ?? new FakeAuthority(clock)
  const cache = options.cache ?? (options.cached === true ? new FakeCache(clock) : undefined)
  const table = leases({
    store: authority as unknown as Store,
    cache,
    clock,
    serverSecrets: options.serverSecrets ?? [SECRET],
    leaseMs: options.leaseMs ?? LEASE,
    maxLeases: options.maxLeases ?? 1_000,
    othersHoldLeases: () => options.alone !== true,
    report: () => {},
  })
  return { clock, authority, cache, table }
}

/** The part of a store that verifying needs, with switches for trouble. */
class FakeAuthority implements Pick<Store, 'read' | 'markFirstUse' | 'settleFirstUse' | 'setLease' | 'settleLease'> {
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

  retire(): void {
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

  /** Resolves when a read is under way. */
  async asked(): Promise<void> {
    for (let turn = 0; this.#atOnce === 0; turn++) {
      if (turn > 1_000) throw new Error('Nobody asks the authority.')
      await new Promise(setImmediate)
    }
  }

  async read(digests: readonly string[]): Promise<AuthorityAnswer> {
    this.reads++
    this.#atOnce++
    this.largestBatch = Math.max(this.largestBatch, digests.length)
    this.mostAtOnce = Math.max(this.mostAtOnce, this.#atOnce)
    try {
      return await this.#answer(digests)
    } finally {
      this.#atOnce--
    }
  }

  async #answer(digests: readonly string[]): Promise<AuthorityAnswer> {
    const { key, generation, leaseMs } = this
    const at = this.#clock.wallMs() + this.offset
    this.beforeAnswer()
    await this.#held
    if (this.down) throw new Error('the authority is away')
    const found = digests.filter((digest) => this.answerAll || digest === generation.digest)
    return {
      ...{ at, storeId: this.storeId, server: 'one', leaseMs, member: 'none' },
      feed: { seq: 0, tag: 'tag', prunedTo: 0, tagAfter: undefined, changes: [] },
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
