import {
  type Create,
  check,
  count,
  duringFaults,
  type Final,
  LONGEST_LEASE_MS,
  type Op,
  type Read,
  type Rotate,
  type Rule,
  type Took,
} from './check.js'
import { clock, created, ending, final, healed, read, revoke, rotate } from './made-up.js'

const urgent = { retire: 'now', emergency: true } as const
/** The new secret is used for the first time in a rotation of its own. */
const used = rotate('k2', 's2', 30, 40, { made: 's3', generation: 3 })
const unanswered = rotate('k1', 's1', 10, 20, { retire: { afterMs: 985 }, status: 0 })
const spent = rotate('k2', 's2', 31, 32, { ...urgent, status: 409, code: 'idempotency_key_spent' })

test('passes a history in which every promise is kept', () => {
  expect(check(good())).toEqual([])
  expect(count(good())).toEqual({
    operations: { 'read fail': 2, 'read info': 1, 'read ok': 4, 'rotate info': 1, 'rotate ok': 3 },
    faults: { reset: 1 },
    rotations: 2,
    retirements: { now: 2 },
    replays: 1,
    outlasted: 0,
    early: 0,
  })
})

test('counts rotations that were answered after six answers were lost on end', () => {
  const lost = (losses: number, then: Partial<Rotate>[] = [{}]): Op[] => [
    ...Array.from({ length: losses }, (_, n) => rotate(`k${losses}`, 's3', 50 + n, 50.5 + n, { status: 0 })),
    ...then.map((more, n) => rotate(`k${losses}`, 's3', 70 + n, 70.5 + n, { made: 's4', generation: 4, ...more })),
  ]
  expect([lost(5), lost(6), lost(6, [{ status: 401 }]), lost(6, [{ status: 503 }, {}])].map((ops) => count(ops).outlasted)).toEqual([
    0, 1, 0, 1,
  ])
})

test('counts changes that were answered since all other instances knew of them', () => {
  const early = (recalled?: number): number =>
    count(timed({ ms: 30, storeMs: 18, leaseMs: 250, ...(recalled === undefined ? {} : { recalled }) })).early
  expect([early(), early(0), early(2)]).toEqual([0, 0, 1])
  expect(count([...revoked(), { ...revoke('r1', 25, 30), took: { ms: 20, storeMs: 10, leaseMs: 250, recalled: 1 } }]).early).toBe(1)
})

test('passes one in which another key does the rotating', () => {
  expect(check(good({}, 'admin'))).toEqual([])
})

test('passes histories with grace periods, first uses, emergencies and revocations', () => {
  expect(check(later())).toEqual([])
  expect(check(later(1_000, 480))).toEqual([])
  expect(check(onFirstUse())).toEqual([])
  expect(check(emergency())).toEqual([])
  expect(check(revoked())).toEqual([])
})

describe('gives the benefit of the doubt', () => {
  test.each<[string, Op[]]>([
    ['to the old secret until its rotation has answered', [...good(), read('s1', 19, 21)]],
    ['to the old secret from the moment a rotation was asked for', [...good(), read('s1', 11, 13, { status: 401 })]],
    ['to a secret that its client may not have yet', [...good(), read('s2', 19, 21, { status: 401 })]],
    ['to a server that says that it cannot tell', [...good(), read('s2', 25, 26, { status: 503 })]],
    ['to a request that is overtaken by the next rotation', [...good(), rotate('k2', 's2', 30, 45, { status: 409 })]],
    ['to an answer that was already given and is asked for again', [...good(), rotate('k1', 's1', 24, 25, { status: 401 })]],
    [
      'to a secret that may be on either side of the end of its grace period',
      [...later(), read('s1', 995, 1_001), graced('s1', 1_008, 1_011)],
    ],
    [
      'to a secret while the clock of the store may show the end of its grace period',
      [clock(300, 304, 700), ...later(), read('s1', 303, 305, { status: 401 })],
    ],
    [
      'to a lease of before the clock of the store was set forward',
      [clock(300, 304, 1_000), ...later(2_000), graced('s1', 304 + LONGEST_LEASE_MS - 10, 1_400)],
    ],
    [
      'to a secret whose grace period begins again as the clock of the store is set back',
      [...later(), clock(1_030, 1_040, -200), graced('s1', 1_100, 1_101)],
    ],
    [
      'to a rotation that a grace period stands in the way of, as the clock of the store was set back',
      [...later(), clock(1_030, 1_040, -200), inGrace(1_100)],
    ],
    [
      'to a grace period that is the right one on either side of a step of the clock',
      [clock(12, 14, -300), ...later(700, 985).map((op) => (op.start === 720 ? { ...op, start: 1_020, end: 1_021 } : op))],
    ],
    ['to a request that was sent before a grace period ended', [...later(), graced('s1', 999, 1_200)]],
    [
      'to an old secret while its successor is used for the first time',
      [...onFirstUse(), read('s1', 31, 35, { status: 401 }), read('s1', 31, 38)],
    ],
    ['to a first use of which no answer came', [...onFirstUse([read('s2', 30, 36, { status: 0 })]), read('s1', 40, 41)]],
    [
      'to an emergency whose answer was lost',
      [...emergency(), rotate('k2', 's2', 29, 60, { ...urgent, status: 409, code: 'idempotency_key_spent' })],
    ],
    ['to a server that says once more what is so when it was in trouble', [...good(), read('s3', 1_890, 1_895, { status: 503 })]],
    ['to a server that is in trouble until the last fault ends', [...good(), fault(50, 1_880), read('s3', 100, 1_870, { status: 0 })]],
    [
      'to a server that refuses a secret just before it has to',
      [...later(1_890).filter((op) => op.f !== 'read' || op.digest !== 's1'), read('s1', 1_895, 1_896, { status: 401 })],
    ],
    [
      'to a secret whose grace period outlasts the run',
      later(3_000).filter((op) => op.f !== 'read' || op.digest !== 's1' || op.status !== 401),
    ],
    ['to a key that was revoked while somebody holds it', revoked().map((op) => (op.f === 'final' ? { ...op, held: 's1' } : op))],
    ['to a request for a key that is answered at last', [...good(), asked('c1', 503), asked('c1', 0), asked('c1', 201)]],
    ['to an answer with a key that was already given and is asked for again', [...good(), asked('c1', 201), asked('c1', 409, 60)]],
    ['to a rotation that took a lease and as long as its store', timed({ ms: 1_500, storeMs: 1_150, leaseMs: 250 })],
    ['to a rotation that its machine let wait', timed({ ms: 540, storeMs: 0, leaseMs: 250 })],
    [
      'to a rotation that had to end two grace periods',
      onFirstUse([used]).map((op) => (op === used ? { ...used, took: { ms: 700, storeMs: 10, leaseMs: 250 } } : op)),
    ],
    ['to a secret whose revocation was asked for', [...revoked(), read('s1', 12, 13, { status: 401 })]],
  ])('%s', (_what, history) => {
    expect(check(history)).toEqual([])
  })
})

describe('catches', () => {
  test.each<[Rule, string, Op[]]>([
    ['dead-accepted', 'an old secret that is let in after its rotation has answered', [...good(), read('s1', 22.1, 23)]],
    ['dead-accepted', 'an old secret that rotates again', [...good(), read('s1', 23, 24, { route: 'rotate' })]],
    ['dead-accepted', 'one secret that was good for two rotations', [...good(), rotate('k9', 's1', 23, 24, { made: 's3', generation: 3 })]],
    ['dead-accepted', 'an old secret that is let in after another key has rotated it', [...good({}, 'admin'), read('s1', 22.1, 23)]],
    ['dead-accepted', 'an old secret that is let in after its grace period', [...later(), graced('s1', 1_011, 1_012)]],
    [
      'dead-accepted',
      'an old secret that is let in when its grace period is over by the clock of the store and every lease of before too',
      [clock(300, 304, 1_000), ...later(2_000), graced('s1', 304 + LONGEST_LEASE_MS + 10, 1_400)],
    ],
    [
      'dead-accepted',
      'an old secret whose grace period, over when its key was rotated again, begins again as the clock of the store is set back',
      [...later(), ...next(), clock(1_130, 1_140, -500), graced('s1', 1_200, 1_201)],
    ],
    ['dead-accepted', 'an old secret that is let in after a grace period that was told of late', tardy(1_301)],
    ['dead-accepted', 'an old secret that is let in after the first use of the new one', [...onFirstUse(), read('s1', 41, 42)]],
    ['dead-accepted', 'an old secret that is let in after the new one has rotated', [...onFirstUse([used]), read('s1', 41, 42)]],
    ['dead-accepted', 'an old secret that outlives an emergency in its grace period', [...emergency(), graced('s1', 61, 62)]],
    ['dead-accepted', 'a secret that is let in after its revocation', [...revoked(), read('s1', 21, 22)]],
    ['dead-accepted', 'an earlier secret that is let in after a revocation', [...revoked(true), graced('s1', 21, 22)]],
    ['one-secret', 'two 200s for one request with two secrets', [...good(), rotate('k1', 's1', 24, 25, { made: 's9', generation: 2 })]],
    ['one-secret', 'two 200s for one request with two generations', [...good(), rotate('k1', 's1', 24, 25, { made: 's2', generation: 3 })]],
    ['one-secret', 'a 200 without a secret', [...good(), rotate('k9', 's3', 41, 42)]],
    [
      'one-secret',
      'an emergency that is answered twice',
      [...emergency(), rotate('k3', 's2', 45, 55, { ...urgent, made: 's4', generation: 4 })],
    ],
    ['one-secret', 'one request that made two keys', [created('a', 's1', 'c1'), created('b', 't1', 'c1')]],
    ['one-secret', 'a 201 without a key', [...good(), asked('c1', 201, 50, {})]],
    ['generations', 'one request that rotated twice', good({ generations: 4 })],
    ['generations', 'a rotation that was answered and then lost', good({ generations: 2 })],
    [
      'generations',
      'two requests that share a generation',
      [...good({ generations: 4 }), rotate('k9', 's3', 41, 42, { made: 's3', generation: 3 })],
    ],
    ['generations', 'a key that nobody was told of', [final({ key: 'b', held: '', generations: 1, active: ['t1'] })]],
    ['locked-out', 'a retry that is refused', [...good(), rotate('k1', 's1', 16, 17, { status: 401 })]],
    ['locked-out', 'a rotation that is refused at once', [...good(), rotate('k2', 's2', 29, 30, { status: 401 })]],
    ['locked-out', 'a client that never got its answer', [...good(), rotate('k9', 's3', 41, 42, { status: 503 })]],
    ['locked-out', 'a client that holds a dead secret', good({ held: 's2' })],
    ['locked-out', 'a key with two active secrets', good({ active: ['s3', 's2'] })],
    ['locked-out', 'a client that holds what was last answered, when another is active', good({ active: ['s9'] })],
    ['locked-out', 'a key with no active secret', good({ active: [] })],
    ['locked-out', 'a key with another active secret than was last answered', good({ held: 's9', active: ['s9'] })],
    ['locked-out', 'a key that was revoked by nobody', good({ revoked: true })],
    [
      'locked-out',
      'an emergency that is refused before it was asked for twice',
      [...emergency().filter((op) => op.f !== 'rotate' || op.idempotencyKey !== 'k2'), spent],
    ],
    ['locked-out', 'a rotation that no grace period stands in the way of', [...later(), inGrace(1_100)]],
    ['locked-out', 'a revocation that is refused', [...revoked(), revoke('r1', 17, 18, 401)]],
    [
      'locked-out',
      'a revocation that is never answered',
      [created('a', 's1'), revoke('r1', 10, 15, 503), final({ held: 's1', active: ['s1'], generations: 1 })],
    ],
    ['locked-out', 'a key that is there after its revocation', revoked().map((op) => (op.f === 'final' ? { ...op, revoked: false } : op))],
    ['locked-out', 'a request for a key that is refused', [...good(), asked('c1', 401), asked('c1', 201, 60)]],
    ['locked-out', 'a request for a key that is never answered', [...good(), asked('c1', 503), asked('c1', 0)]],
    ['live-refused', 'a 401 to a new secret', [...good(), read('s2', 23, 24, { status: 401 })]],
    ['live-refused', 'a 429 to a new secret', [...good(), read('s2', 23, 24, { status: 429 })]],
    ['live-refused', 'a 401 to a secret that was never rotated', [...good(), read('s3', 41, 42, { status: 401 })]],
    ['live-refused', 'a 401 in a grace period', [...later(), read('s1', 980, 985, { status: 401 })]],
    [
      'live-refused',
      'a 401 in a grace period whose rotation was not answered yet',
      [...later().filter((op) => op.f !== 'rotate'), unanswered, read('s1', 100, 500, { status: 401 })],
    ],
    [
      'live-refused',
      'a 401 in a grace period, whatever the clock of the store was set to before',
      [clock(1, 2, -60_000), clock(3, 4, 0), ...later(), read('s1', 980, 985, { status: 401 })],
    ],
    [
      'live-refused',
      'a 401 in a grace period, when the clock of the store was set forward by less than is left of it',
      [clock(300, 304, 100), ...later(), read('s1', 305, 885, { status: 401 })],
    ],
    ['live-refused', 'a 401 to an old secret before the new one is used', [...onFirstUse(), read('s1', 25, 29, { status: 401 })]],
    ['live-refused', 'a 401 to a secret that an emergency has made', [...emergency(), read('s4', 61, 62, { status: 401 })]],
    ['live-refused', 'a 401 before a revocation', [...revoked(), read('s1', 5, 9, { status: 401 })]],
    ['wrong-answer', 'a 500', [...good(), read('s3', 41, 42, { status: 500 })]],
    ['wrong-answer', 'a 500 to a request for a key', [...good(), asked('c1', 500), asked('c1', 201, 60)]],
    ['wrong-answer', 'a 500 to a revocation', [...revoked(), revoke('r1', 11, 12, 500)]],
    [
      'wrong-answer',
      'a rotation that forgot the grace period that was asked for',
      later(1_000).map((op) => (op.f === 'rotate' ? ungraced(op) : op)),
    ],
    ['wrong-answer', 'a grace period that is shorter than was asked for', later(1_000, 1_001)],
    ['wrong-answer', 'a grace period that is longer than was asked for', later(1_000, 469)],
    ['wrong-answer', 'a secret that is taken for the one before', [...good(), read('s2', 23, 24, { seen: { key: 'a', generation: 1 } })]],
    ['wrong-answer', 'a secret that is taken for the one after', [...good(), read('s2', 23, 24, { seen: { key: 'a', generation: 3 } })]],
    ['wrong-answer', 'a secret that is taken for another key’s', [...good(), read('s2', 23, 24, { seen: { key: 'b', generation: 2 } })]],
    ['wrong-answer', 'a dead secret that is handed out', [...good(), rotate('k1', 's1', 42, 43, { made: 's2', generation: 2 })]],
    ['late', 'a rotation that took longer than a lease and its store', timed({ ms: 1_500, storeMs: 900, leaseMs: 250 })],
    ['late', 'a rotation that took two leases', timed({ ms: 2_050, storeMs: 0, leaseMs: 1_000 })],
    ['late', 'a rotation that took long where there was no lease to wait for', timed({ ms: 2_050, storeMs: 0, leaseMs: 0 })],
    [
      'late',
      'a revocation that took longer than a lease',
      [...revoked(), { ...revoke('r1', 25, 30), took: { ms: 900, storeMs: 10, leaseMs: 250 } }],
    ],
    ['not-healed', 'a system that answers nothing', silent()],
    ['not-healed', 'a server that stays at 503 after a fault', [...good(), ...stuck({ status: 503 })]],
    ['not-healed', 'a server that does not answer any more', [...good(), ...stuck({ status: 0 })]],
    ['not-healed', 'a server that refuses the secret that is held', [...good(), ...stuck({ status: 401 })]],
    ['not-healed', 'a server that nobody asks after the last fault', [...good(), fault(1_950, 1_960)]],
    ['not-healed', 'a server that nobody asks about the secret that is held', good().filter((op) => op.f !== 'read' || op.digest !== 's3')],
    ['not-healed', 'a 503 to the secret before', [...good(), read('s2', 1_950, 1_951, { status: 503 })]],
    ['not-healed', 'a 429 to the secret before', [...good(), read('s2', 1_950, 1_951, { status: 429 })]],
    ['not-healed', 'a 503 to the secret before an emergency', [...emergency(), read('s2', 1_950, 1_951, { status: 503 })]],
  ])('%s: %s', (rule, _what, history) => {
    const violations = check(history)
    expect(violations.map((violation) => violation.rule)).toContain(rule)
    for (const { what, ops } of violations) {
      expect(what).toMatch(/\.$/)
      expect(ops.length).toBeGreaterThan(0)
    }
  })
})

test('does not take one key’s history for another’s', () => {
  const other = good().map((op) =>
    op.f === 'fault' || op.f === 'clock' ? op : { ...op, key: 'b', ...(op.f === 'read' ? { seen: { ...op.seen, key: 'b' } } : {}) },
  )
  expect(check([...good(), ...(other as Op[])])).toEqual([])
})

test('says which server has not healed, and of which secret', () => {
  expect(check([...good(), ...stuck({ status: 503 })])).toMatchObject([
    { rule: 'not-healed', what: 'After the last fault, server 1 at last answered 503 about the secret that is held: 200 is right.' },
  ])
  expect(check([...good(), fault(1_950, 1_960)])).toMatchObject([
    { rule: 'not-healed', what: 'After the last fault, server 0 was not asked about the secret that is held: 200 is right.' },
    { rule: 'not-healed', what: 'After the last fault, server 0 was not asked about the one before it: 401 is right.' },
  ])
  expect(check(silent()).map(({ rule }) => rule)).toEqual(['not-healed', 'not-healed', 'not-healed'])
})

test('tells what went on during a fault', () => {
  const history = [...good(), read('s1', 11, 13), read('s1', 22.1, 23)]
  const [reset] = [...duringFaults(history, check(history))]
  // The two reads and the rotation that were under way from 4 to 12, and no violation: that came at 22.
  expect(reset).toEqual(['reset', { times: 1, operations: 2, violations: 0 }])
  const broken: Op[] = [...history, { f: 'fault', kind: 'delay', target: 'x', start: 22.5, end: 22.6 }]
  expect(duringFaults(broken, check(broken)).get('delay')?.violations).toBe(1)
})

/** Generation 1 until 22, when the retry of `k1` is answered; generation 2 until 40, when `k2` is. */
function good(end: Partial<Final> = {}, caller?: string): Op[] {
  const by = caller === undefined ? {} : { digest: caller }
  return [
    created('a', 's1'),
    read('s1', 2, 3),
    { f: 'fault', kind: 'reset', target: 'server 1 to Postgres', start: 4, end: 12 },
    rotate('k1', 's1', 10, 15, { status: 503, ...by }),
    rotate('k1', 's1', 18, 22, { made: 's2', generation: 2, replayed: true, ...by }),
    read('s1', 22.5, 23, { status: 401 }),
    read('s2', 23, 24),
    rotate('k2', 's2', 30, 40, { made: 's3', generation: 3, ...by }),
    rotate('k2', 's2', 31, 41, { made: 's3', generation: 3, ...by }),
    read('s2', 32, 33),
    read('s3', 42, 43, { status: 0 }),
    ...healed('s3', 's2'),
    final({ held: 's3', generations: 3, active: ['s3'], ...end }),
  ]
}

/** The same, and how long the first rotation took its server. */
function timed(took: Took): Op[] {
  return good().map((op) => (op.f === 'rotate' && op.idempotencyKey === 'k1' && op.type === 'ok' ? { ...op, took } : op))
}

/** A rotation at 20 leaves generation 1 alive until 1,000. */
function later(graceEndsAt = 1_000, afterMs = graceEndsAt - 15): Op[] {
  return [
    created('a', 's1'),
    rotate('k1', 's1', 10, 20, { retire: { afterMs }, graceEndsAt, made: 's2', generation: 2 }),
    read('s1', 30, 31),
    graced('s1', 900, 910),
    read('s2', 950, 951),
    read('s1', graceEndsAt + 20, graceEndsAt + 21, { status: 401 }),
    ...healed('s2', 's1'),
    final({ held: 's2', generations: 2, active: ['s2'] }),
  ]
}

/** After that, a rotation that ends at once. */
function next(): Op[] {
  return [rotate('k2', 's2', 1_100, 1_120, { made: 's3', generation: 3 })]
}

/** The same, refused for the sake of a grace period. */
function inGrace(start: number): Rotate {
  return rotate('k2', 's2', start, start + 1, { status: 409, code: 'rotation_in_grace' })
}

function ungraced({ graceEndsAt: _, ...op }: Rotate): Rotate {
  return op
}

/** A rotation whose grace period ends at 1,000 and whose answer comes at 1,300; the old secret is used in between or after. */
function tardy(start: number): Op[] {
  return [
    created('a', 's1'),
    rotate('k1', 's1', 10, 1_300, { retire: { afterMs: 400 }, graceEndsAt: 1_000, made: 's2', generation: 2 }),
    read('s1', start, start + 10),
    ...healed('s2', 's1'),
    final({ held: 's2', generations: 2, active: ['s2'] }),
  ]
}

/** A rotation at 20 leaves generation 1 alive until generation 2 is used, from 30 to 40. */
function onFirstUse(uses: Op[] = [read('s2', 30, 40)]): Op[] {
  const next = uses.includes(used) ? { held: 's3', generations: 3, active: ['s3'] } : { held: 's2', generations: 2, active: ['s2'] }
  return [
    created('a', 's1'),
    rotate('k1', 's1', 10, 20, { retire: 'on-first-use', graceEndsAt: 600_000_000, made: 's2', generation: 2 }),
    read('s1', 21, 22),
    graced('s1', 25, 32),
    ...uses,
    ...(uses.includes(used) ? healed('s3', 's2') : healed('s2', 's1')),
    final(next),
  ]
}

/** In the grace period of generation 1, one emergency at 30 whose answer is lost, and another at 60 whose answer is not. */
function emergency(): Op[] {
  return [
    created('a', 's1'),
    rotate('k1', 's1', 10, 20, { retire: { afterMs: 985 }, graceEndsAt: 1_000, made: 's2', generation: 2 }),
    graced('s1', 21, 22),
    rotate('k2', 's2', 28, 30, { ...urgent, status: 0 }),
    rotate('k2', 's2', 31, 32, { ...urgent, status: 409, code: 'idempotency_key_spent' }),
    rotate('k3', 's2', 40, 60, { ...urgent, made: 's4', generation: 4 }),
    read('s1', 61, 62, { status: 401 }),
    read('s4', 61, 62),
    ...healed('s4', 's2'),
    final({ held: 's4', generations: 4, active: ['s4'] }),
  ]
}

/** A key that its client ends from 10 on, and is told so at 20; of the second generation, where there was a rotation with a grace period. */
function revoked(rotated = false): Op[] {
  const rotation = rotate('k1', 's1', 2, 3, { retire: { afterMs: 985 }, graceEndsAt: 990, made: 's2', generation: 2 })
  return [
    created('a', 's1'),
    ...(rotated ? [rotation] : []),
    read('s1', 4, 5),
    revoke('r1', 10, 15, 503),
    revoke('r1', 16, 20),
    read('s1', 21, 22, { status: 401 }),
    final({ held: '', active: [], revoked: true, generations: rotated ? 2 : 1 }),
  ]
}

/** A system of three servers that says nothing, after a key was made. */
function silent(): Op[] {
  const reads = Array.from({ length: 500 }, (_, n) => read('s1', n + 2, n + 3, { server: n % 3, status: n % 2 === 0 ? 503 : 0 }))
  return [created('a', 's1'), ...reads, final({})]
}

/** Another server, that does well until it does not; about the secret before it goes on saying what is so. */
function stuck(more: Partial<Read>): Op[] {
  return [
    read('s3', 44, 45, { server: 1 }),
    fault(50, 60),
    read('s3', 1_900, 1_901, { server: 1, ...more }),
    read('s2', 1_900, 1_901, { server: 1, status: 401 }),
  ]
}

/** What the server says when all is over: the one secret is good, and the other is not. */

function fault(start: number, end: number): Op {
  return { f: 'fault', kind: 'reset', target: 'server 1 to Postgres', start, end }
}

/** An attempt to have a key made, beside all others. */

function asked(idempotencyKey: string, status: number, start = 50, made: Partial<Create> = { key: 'c', digest: 't1' }): Create {
  const more = status === 201 ? made : {}
  return { f: 'create', idempotencyKey, server: 0, start, end: start + 1, status, type: ending(status), ...more }
}

/** A read by a server that knows already of the rotation. */

function graced(digest: string, start: number, end: number): Read {
  return read(digest, start, end, { seen: { key: 'a', generation: Number(digest.slice(1)) + 1 } })
}
