import { check, type Op, type Rule } from './check.js'
import { clock, created, final, healed, read, revoke, rotate } from './made-up.js'

/** A lease of the longest kind and its margin after the end of the loss, at 110. */
const SETTLED = 1_160

/** Generation 2 from 20 on, which the snapshot at 30 has. Generation 3 from 45 on, which is lost from 100 to 110; and another one from 1,320 on. */
function restored(k2 = { asked: 40, answered: 45 }): Op[] {
  return [
    created('a', 's1'),
    rotate('k1', 's1', 10, 20, { made: 's2', generation: 2 }),
    loss,
    rotate('k2', 's2', k2.asked, k2.answered, { made: 's3', generation: 3 }),
    read('s2', k2.answered + 5, k2.answered + 6, { status: 401 }),
    read('s3', k2.answered + 5, k2.answered + 6),
    read('s2', 99, 105),
    read('s3', 111, 112),
    read('s2', 111, 112, { status: 401 }),
    read('s3', SETTLED + 10, SETTLED + 11, { status: 401 }),
    read('s2', SETTLED + 10, SETTLED + 11),
    ...goesOn,
  ]
}

const loss: Op = { f: 'restore', snapshot: { start: 30, end: 31 }, start: 100, end: 110 }
const goesOn: Op[] = [
  rotate('k3', 's2', 1_300, 1_320, { made: 's03', generation: 3 }),
  read('s2', 1_321, 1_322, { status: 401 }),
  read('s03', 1_321, 1_322),
  ...healed('s03', 's2'),
  final({ held: 's03', generations: 3, active: ['s03'] }),
]
/** The other end of what is in doubt: the third generation was kept. */
const goesOnWithIt: Op[] = [
  rotate('k3', 's3', 1_300, 1_320, { made: 's4', generation: 4 }),
  read('s3', 1_321, 1_322, { status: 401 }),
  ...healed('s4', 's3'),
  final({ held: 's4', generations: 4, active: ['s4'] }),
]
/** Another key, that nothing was done to. */
const other: Op[] = [
  { ...created('b', 't1') },
  { ...read('t1', 1_900, 1_901), key: 'b', seen: { key: 'b', generation: 1 } },
  { ...final({ held: 't1', active: ['t1'] }), key: 'b' },
]
const inDoubt = { asked: 29, answered: 45 }
const kept = (history: Op[]): Op[] => [...history.filter(({ start }) => start < 1_000), ...goesOnWithIt]

describe('after data were lost, gives the benefit of the doubt', () => {
  test.each<[string, Op[]]>([
    ['to whoever relies for one lease on what was before', restored()],
    ['to a change that was under way when the snapshot was taken, and is lost', restored(inDoubt)],
    ['to a change that was under way when the snapshot was taken, and is kept', kept(restored(inDoubt))],
    ['to a change that was under way when data were lost, and is lost', restored({ asked: 98, answered: 102 })],
    ['to a change that was under way when data were lost, and is made', kept(restored({ asked: 98, answered: 113 }))],
    [
      'to a change that a server has carried out after its client had given it up',
      kept(restored().map((op) => (op.f === 'rotate' && op.idempotencyKey === 'k2' ? { ...op, type: 'info', status: 0 } : op))),
    ],
    [
      'to a request that is made again, and has another answer',
      restored().map((op) => (op.f === 'rotate' && op.idempotencyKey === 'k3' ? { ...op, idempotencyKey: 'k2' } : op)),
    ],
    ['to a client that has lost its place', [...restored(), rotate('k4', 's3', 1_200, 1_210, { status: 401 })]],
    ['to a key whose creation is lost', [...restored(), asked('c1', 40), { ...read('u1', 1_200, 1_201, { status: 401 }), key: 'c' }]],
    ['to a key whose creation was answered while data were lost', [...restored(), asked('c1', 101)]],
    ['to a key whose creation may be kept', [...restored(), asked('c1', 29), { ...final({ held: '' }), key: 'c', active: ['u1'] }]],
    ['to a key whose revocation is lost', [created('a', 's1'), loss, revoke('r1', 40, 45), final({ held: '', active: ['s1'] })]],
    [
      'to a secret that is alive again, as the first use of the next one is lost',
      firstUse([read('s2', 40, 45), read('s1', 111, 112, { status: 401 }), read('s1', SETTLED + 10, SETTLED + 11)]),
    ],
    [
      'to a first use that a server does not tell of, as it relies for one lease on what was before',
      firstUse([read('s2', 40, 45), read('s2', 111, 112), read('s1', 200, 201)]),
    ],
    [
      'to a secret while a first use of the next one is under way as data are lost',
      firstUse([read('s2', 90, 105, { status: 503 }), read('s1', 95, 96, { status: 401 })]),
    ],
    [
      'to a secret after a first use of one that may be lost',
      firstUse([read('s2', 111, 112), read('s1', 113, 114, { status: 401 }), read('s1', SETTLED + 10, SETTLED + 11, { status: 401 })]).map(
        (op) => (op.f === 'rotate' ? { ...op, end: 35 } : op),
      ),
    ],
    [
      'to a secret that was retired for a lost one',
      [
        ...restored({ asked: 40, answered: 45 }).filter((op) => !goesOn.includes(op)),
        rotate('k3', 's3', 105, 120, { digest: 'administrator', made: 's03', generation: 3 }),
        read('s2', SETTLED + 20, SETTLED + 21, { status: 401 }),
        ...healed('s03', 's2'),
        final({ held: 's03', generations: 3, active: ['s03'] }),
      ],
    ],
    [
      'to a secret that is in a grace period for a lost one',
      [
        ...restored().filter((op) => !goesOn.includes(op)),
        rotate('k3', 's3', 105, 120, {
          digest: 'administrator',
          retire: 'on-first-use',
          graceEndsAt: 600_000_000,
          made: 's03',
          generation: 3,
        }),
        read('s2', SETTLED + 20, SETTLED + 21, { seen: { key: 'a', generation: 3 } }),
        ...healed('s03', 's2'),
        final({ held: 's03', generations: 3, active: ['s03'] }),
      ],
    ],
    ['to what goes on beside another loss', [...restored(), { ...loss, snapshot: { start: 1_400, end: 1_401 }, start: 1_500, end: 1_510 }]],
  ])('%s', (_what, history) => {
    expect(check([...history, ...other])).toEqual([])
  })
})

describe('after data were lost, catches', () => {
  test.each<[Rule, string, Op[]]>([
    ['dead-accepted', 'what was wrong before', [...restored(), read('s2', 52, 53)]],
    ['dead-accepted', 'a secret whose end is kept', [...restored(), read('s1', 111, 112)]],
    ['dead-accepted', 'a secret that is lost, after a lease', [...restored(), read('s3', SETTLED + 5, SETTLED + 6)]],
    ['dead-accepted', 'a secret that a later change has ended', [...restored(), read('s2', 1_325, 1_326)]],
    [
      'dead-accepted',
      'a secret that a later change has ended, before the lease is over',
      [...restored(), rotate('k5', 's2', 115, 120, { made: 's03', generation: 3 }), read('s2', 121, 122)],
    ],
    ['dead-accepted', 'an old secret after the next one was used again', firstUse([read('s2', 1_200, 1_201), read('s1', 1_202, 1_203)])],
    ['live-refused', 'a secret that nothing was done to', [...restored(), { ...read('t1', 111, 112, { status: 401 }), key: 'b' }]],
    ['live-refused', 'a secret that is alive again, after a lease', [...restored(), read('s2', SETTLED + 5, SETTLED + 6, { status: 401 })]],
    ['live-refused', 'the secret that was made last', [...restored(), read('s03', 1_325, 1_326, { status: 401 })]],
    ['locked-out', 'a client that has found its place', [...restored(), rotate('k4', 's2', 1_200, 1_201, { status: 401 })]],
    [
      'locked-out',
      'a client that holds another secret',
      [...restored().slice(0, -1), final({ held: 's03', generations: 3, active: ['s3'] })],
    ],
    ['locked-out', 'a client that is refused after the last loss', [...restored(), rotate('k4', 's03', 1_330, 1_331, { status: 401 })]],
    ['one-secret', 'two answers', [...restored(), rotate('k3', 's2', 1_400, 1_401, { made: 's9', generation: 3 })]],
    ['generations', 'a rotation too many', [...restored().slice(0, -1), final({ held: 's03', generations: 4, active: ['s03'] })]],
    ['generations', 'a key that nobody was told of', [...restored(), { ...final({ held: '' }), key: 'c', active: ['u1'] }]],
    ['wrong-answer', 'a 500', [...restored(), read('s2', 111, 112, { status: 500 })]],
  ])('%s: %s', (rule, _what, history) => {
    expect(check([...history, ...other]).map((violation) => violation.rule)).toContain(rule)
  })
})

test('says once what is wrong before data were lost', () => {
  const history = [...restored(), ...other, read('s1', 21, 22), read('s2', 52, 53)]
  expect(check(history).map(({ rule, ops }) => [rule, ops.at(-1)?.start])).toEqual([
    ['dead-accepted', 21],
    ['dead-accepted', 52],
  ])
})

test('gives a lease to instances that somebody has taken from the list', () => {
  const history = (...more: Op[]): Op[] => [
    ...[created('a', 's1'), rotate('k1', 's1', 10, 20, { made: 's2', generation: 2 }), clock(1, 2, 0)],
    ...[...healed('s2', 's1'), final({ held: 's2', generations: 2, active: ['s2'] })],
    ...[{ f: 'unlisting', start: 12, end: 13 } as const, ...more],
  ]
  expect(check(history(read('s1', 21, 22), read('s1', 1_062, 1_063)))).toEqual([])
  expect(check(history(read('s1', 1_064, 1_065))).map(({ rule }) => rule)).toEqual(['dead-accepted'])
})

/** The end of generation 1 waits for the first use of generation 2; the snapshot is taken before that. */
function firstUse(uses: Op[]): Op[] {
  return [
    created('a', 's1'),
    rotate('k1', 's1', 10, 20, { retire: 'on-first-use', graceEndsAt: 600_000_000, made: 's2', generation: 2 }),
    loss,
    ...uses.map((op) => (op.f === 'read' && op.digest === 's1' && op.status === 200 ? { ...op, seen: { key: 'a', generation: 2 } } : op)),
    read('s2', 1_300, 1_310),
    ...healed('s2', 's1'),
    final({ held: 's2', generations: 2, active: ['s2'] }),
  ]
}

function asked(idempotencyKey: string, start: number): Op {
  return { ...created('c', 'u1', idempotencyKey), start, end: start + 5 }
}
