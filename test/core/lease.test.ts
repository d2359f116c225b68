import type { Cache } from '../../src/cache/cache.js'
import { type Leases, leases } from '../../src/core/lease.js'
import { ApiKeyError } from '../../src/errors.js'
import type { AuthorityAnswer, GenerationRow, KeyRow, Store } from '../../src/store/store.js'
import { TestClock } from '../support/clock.js'

const LEASE = 1_000
const SECRET = Buffer.alloc(32, 7)
const DIGEST = 'd'.repeat(43)

test('accepts on the word of the authority, and asks it once for as long as the lease runs', async () => {
  const { authority, table, clock } = world()
  expect(await table.verify(DIGEST)).toMatchObject({ ok: true, key: { id: authority.key.id } })
  clock.advance(500)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
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
  await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable' })
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
  await table.verify(DIGEST)
  clock.setWall(-3_600_000)
  clock.advance(LEASE)
  expect(table.peek(DIGEST)).toBeUndefined()
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
  expect(authority.largestBatch).toBe(100)
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

test('P5: while the authority is away a lease in hand lasts to its deadline, and not a millisecond longer', async () => {
  const { authority, table, clock } = world()
  await table.verify(DIGEST)
  authority.down = true
  clock.advance(LEASE - 1)
  expect(table.peek(DIGEST)).toMatchObject({ ok: true })
  await table.idle()
  clock.advance(1)
  expect(table.peek(DIGEST)).toBeUndefined()
  await expect(table.verify(DIGEST)).rejects.toMatchObject({ code: 'store_unavailable' })
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

test('an instance started with another lease says so to the store once', async () => {
  const { authority, table } = world({ leaseMs: 250 })
  await table.verify(DIGEST)
  await table.idle()
  expect(authority.leaseMs).toBe(250)
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
    ['empty', () => ''],
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

  test('a tombstone is believed without asking the authority', async () => {
    const { authority, table, clock, cache } = world({ cached: true })
    await table.look('another digest')
    await table.retire([DIGEST], 'rotated')
    const other = world({ authority, clock, cache })
    await other.table.look('another digest')
    expect(await other.table.verify(DIGEST)).toEqual({ ok: false, reason: 'rotated' })
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
    serverSecrets: [SECRET],
    leaseMs: options.leaseMs ?? LEASE,
    maxLeases: options.maxLeases ?? 1_000,
    othersHoldLeases: () => options.alone !== true,
    report: () => {},
  })
  return { clock, authority, cache, table }
}

/** The part of a store that verifying needs, with switches for trouble. */
class FakeAuthority implements Pick<Store, 'read' | 'markFirstUse' | 'settleFirstUse' | 'setLease'> {
  key: KeyRow
  generation: GenerationRow
  leaseMs = LEASE
  storeId = 'the store'
  offset = 0
  down = false
  answerAll = false
  reads = 0
  largestBatch = 0
  firstUses: string[] = []
  beforeAnswer = (): void => {}
  readonly #clock: TestClock

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

  async read(digests: readonly string[]): Promise<AuthorityAnswer> {
    this.reads++
    this.largestBatch = Math.max(this.largestBatch, digests.length)
    const { key, generation, leaseMs } = this
    const at = this.#clock.wallMs() + this.offset
    this.beforeAnswer()
    if (this.down) throw new Error('the authority is away')
    const found = digests.filter((digest) => this.answerAll || digest === generation.digest)
    return { at, storeId: this.storeId, leaseMs, found: found.map((digest) => ({ key, generation: { ...generation, digest } })) }
  }

  async markFirstUse(digest: string): Promise<{ retired: string[]; waitMs: number }> {
    this.firstUses.push(digest)
    this.generation = { ...this.generation, firstUsedAt: this.#clock.wallMs() }
    return this.generation.retiresEarlier ? { retired: ['the digest before'], waitMs: this.leaseMs } : { retired: [], waitMs: 0 }
  }

  async settleFirstUse(): Promise<void> {
    this.generation = { ...this.generation, retiresEarlier: false }
  }

  async setLease(leaseMs: number): Promise<void> {
    this.leaseMs = leaseMs
  }
}

/** A cache whose server has a clock of its own and can be made to lie. */
class FakeCache implements Cache {
  entries = new Map<string, { value: string; expiresAt: number }>()
  /** How far the server's clock is off; -Infinity reads as the year 1970. */
  offset = 0
  holdFills: ((land: () => void) => void) | undefined
  readonly #clock: TestClock

  constructor(clock: TestClock) {
    this.#clock = clock
  }

  spoil(how: (value: string) => string): void {
    for (const [digest, entry] of this.entries) this.entries.set(digest, { ...entry, value: how(entry.value) })
  }

  async get(digest: string): Promise<{ value: string | null; timeMs: number }> {
    const timeMs = this.#now()
    const entry = this.entries.get(digest)
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
