import { check, type Design, harsh, type Promised, perfectClocks, type World } from './model.ts'

/** A fifth of the states, and enough to tell which part of the design carries what. */
const shortLease = { lease: 2, rotatorLease: 2 }

describe('the design as built', () => {
  test('P3: keeps every promise in every interleaving, with drifting clocks and a cache that fails over to a late one', () => {
    const { states, broken } = check()
    expect(broken).toBeUndefined()
    // All there are. Another number means that the model has changed, and a small one that it no longer sees much.
    expect(states).toBe(383_819)
  })

  test.each<[title: string, design: Partial<Design>, world: World]>([
    ['by the clock of the store alone, whatever TIME says', { boundByRedisTime: false }, { drift: 0, redisLate: 2 }],
    ['by the clock of the store, though fills have a relative time to live', { fill: 'relative' }, harsh],
    ['by TIME alone, as long as the clock of Redis is right', { boundByStoreClock: false }, { drift: 1, redisLate: 0 }],
    ['without a margin, as long as no clock drifts', { margin: 0 }, { drift: 0, redisLate: 1 }],
  ])('P3: holds %s', (_title, design, world) => {
    expect(check({ ...shortLease, ...design }, world).broken).toBeUndefined()
  })
})

interface Fault {
  readonly title: string
  readonly promise: Promised
  readonly design: Partial<Design>
  readonly world?: World
  /** The shortest way to break the promise, each line with its tick. */
  readonly story: string
}

const faults: readonly Fault[] = [
  {
    title: 'a wait counted from the tombstone, which Redis has before COMMIT',
    promise: 'P3',
    design: { waitFrom: 'tombstone' },
    story: `
      0  the rotator has the tombstone in Redis
      0  V1 asks Redis
      2  V1 asks the store
      2  the store answers V1: active
      2  the rotator commits
      2  V1 takes the lease from the store, asked at 2, until 5
      4  the rotator answers 200, having waited since 0
      4  a request starts at V1 and is accepted, by the lease until 5`,
  },
  {
    title: 'a tombstone before COMMIT, for a rotation that may yet be rolled back',
    promise: 'live',
    design: { waitFrom: 'tombstone' },
    story: `
      0  the rotator has the tombstone in Redis
      0  V1 asks Redis
      0  Redis answers V1: a tombstone
      0  V1 refuses, by the word of Redis`,
  },
  {
    title: 'a lease counted from the read of Redis',
    promise: 'P3',
    design: { boundByRedisTime: false, boundByStoreClock: false },
    story: `
      0  V1 asks Redis
      0  Redis answers V1: nothing, TIME 0
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      0  V1 takes the lease from the store, asked at 0, until 3
      2  V1 asks Redis
      2  Redis answers V1: the lease of 0, TIME 2
      2  V1 takes the lease from Redis, until 5
      4  the rotator answers 200, having waited since 0
      4  a request starts at V1 and is accepted, by the lease until 5`,
  },
  {
    title: 'a fill with a relative time to live, which begins when it lands',
    promise: 'P3',
    design: { fill: 'relative', boundByStoreClock: false },
    story: `
      0  V1 asks Redis
      0  Redis answers V1: nothing, TIME 0
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      0  V1 takes the lease from the store, asked at 0, until 3
      2  the fill with the lease of 0 lands in Redis, to live until 5
      4  the rotator answers 200, having waited since 0
      4  a request starts at V1, which asks Redis
      4  Redis answers V1: the lease of 0, TIME 4
      4  V1 takes the lease from Redis, until 5, and accepts the request that waits`,
  },
  {
    title: 'a deadline that is not checked again, when a request joins a flight that was paused',
    promise: 'P3',
    design: { recheck: false },
    story: `
      0  V1 asks Redis
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      4  the rotator answers 200, having waited since 0
      4  a request starts at V1 and waits for the flight under way
      4  V1 takes the lease from the store, asked at 0, until 3 (over), and accepts the request that waits`,
  },
  {
    title: 'a deadline that is not checked again, when a process is paused between the verdict and next()',
    promise: 'P3 to the instant',
    design: { recheck: false },
    story: `
      0  V1 asks Redis
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      0  V1 takes the lease from the store, asked at 0, until 3
      4  the rotator answers 200, having waited since 0
      4  a request paused at V1 goes through, by the lease until 3 (over)`,
  },
  {
    title: 'a lease longer than the one that the rotator waits for',
    promise: 'P3',
    design: { lease: 5 },
    story: `
      0  V1 asks Redis
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      0  V1 takes the lease from the store, asked at 0, until 5
      4  the rotator answers 200, having waited since 0
      4  a request starts at V1 and is accepted, by the lease until 5`,
  },
  {
    title: 'a relayed lease bounded by TIME alone, when Redis fails over to a machine with a late clock',
    promise: 'P3',
    design: { boundByStoreClock: false },
    world: { drift: 0, redisLate: 2 },
    story: `
      0  V1 asks Redis
      0  Redis answers V1: nothing, TIME 0
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      0  V1 takes the lease from the store, asked at 0, until 3
      4  the rotator answers 200, having waited since 0
      4  a request starts at V1, which asks Redis
      4  Redis, failed over to a late clock, answers V1: the lease of 0, TIME 2
      4  V1 takes the lease from Redis, until 5, and accepts the request that waits`,
  },
  {
    title: 'a lease counted from when the answer of the store came in',
    promise: 'P3',
    design: { leaseFrom: 'answered' },
    story: `
      0  V1 asks Redis
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      2  V1 takes the lease from the store, asked at 0, until 5
      4  the rotator answers 200, having waited since 0
      4  a request starts at V1 and is accepted, by the lease until 5`,
  },
  {
    title: 'a wait without a margin, when a clock drifts',
    promise: 'P3',
    design: { margin: 0 },
    world: { drift: 1, redisLate: 0 },
    story: `
      0  V1 asks Redis
      0  V1 asks the store
      0  the store answers V1: active
      0  the rotator commits
      0  V1 takes the lease from the store, asked at 0, until 3
      3  the rotator answers 200, having waited since 0
      3  a request starts at V1 and is accepted, by the lease until 3 (not over by its slow clock)`,
  },
]

describe('a planted fault', () => {
  test.each(faults)('breaks $promise: $title', ({ promise, design, world = perfectClocks, story }) => {
    const { broken } = check(design, world, [promise])
    expect(broken).toEqual({ promise, trace: story.trim().split(/\n\s*/) })
  })
})
