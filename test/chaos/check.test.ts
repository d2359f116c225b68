import { type Created, check, count, type Final, type Op, type Read, type Rotate, type Rule } from './check.js'

test('passes a history in which every promise is kept', () => {
  expect(check(good())).toEqual([])
  expect(count(good())).toEqual({
    operations: { 'read fail': 1, 'read info': 1, 'read ok': 3, 'rotate info': 1, 'rotate ok': 3 },
    faults: { reset: 1 },
    rotations: 2,
    replays: 1,
  })
})

test('passes one in which another key does the rotating', () => {
  expect(check(good({}, 'admin'))).toEqual([])
})

describe('gives the benefit of the doubt', () => {
  test.each<[string, Op[]]>([
    ['to the old secret until its rotation has answered', [read('s1', 19, 21)]],
    ['to the old secret from the moment a rotation was asked for', [read('s1', 11, 13, { status: 401 })]],
    ['to a secret that its client may not have yet', [read('s2', 19, 21, { status: 401 })]],
    ['to a server that says that it cannot tell', [read('s2', 25, 26, { status: 503 })]],
    ['to a request that is overtaken by the next rotation', [rotate('k2', 's2', 30, 45, { status: 409 })]],
    ['to an answer that was already given and is asked for again', [rotate('k1', 's1', 24, 25, { status: 401 })]],
  ])('%s', (_what, more) => {
    expect(check([...good(), ...more])).toEqual([])
  })
})

describe('catches', () => {
  test.each<[Rule, string, Op[]]>([
    ['dead-accepted', 'an old secret that is let in after its rotation has answered', [...good(), read('s1', 22.1, 23)]],
    ['dead-accepted', 'an old secret that rotates again', [...good(), read('s1', 23, 24, { route: 'rotate' })]],
    ['dead-accepted', 'one secret that was good for two rotations', [...good(), rotate('k9', 's1', 23, 24, { made: 's3', generation: 3 })]],
    ['dead-accepted', 'an old secret that is let in after another key has rotated it', [...good({}, 'admin'), read('s1', 22.1, 23)]],
    ['one-secret', 'two 200s for one request with two secrets', [...good(), rotate('k1', 's1', 24, 25, { made: 's9', generation: 2 })]],
    ['one-secret', 'a 200 without a secret', [...good(), rotate('k1', 's1', 24, 25)]],
    ['generations', 'one request that rotated twice', good({ generations: 4 })],
    ['generations', 'a rotation that was answered and then lost', good({ generations: 2 })],
    ['generations', 'two requests that share a generation', [...good(), rotate('k9', 's3', 41, 42, { made: 's3', generation: 3 })]],
    ['locked-out', 'a retry that is refused', [...good(), rotate('k1', 's1', 16, 17, { status: 401 })]],
    ['locked-out', 'a client that never got its answer', [...good(), rotate('k9', 's3', 41, 42, { status: 503 })]],
    ['locked-out', 'a client that holds a dead secret', good({ held: 's2' })],
    ['locked-out', 'a key with two active secrets', good({ active: ['s2', 's3'] })],
    ['locked-out', 'a key with another active secret than was last answered', good({ held: 's9', active: ['s9'] })],
    ['live-refused', 'a 401 to a new secret', [...good(), read('s2', 23, 24, { status: 401 })]],
    ['live-refused', 'a 401 to a secret that was never rotated', [...good(), read('s3', 41, 42, { status: 401 })]],
    ['locked-out', 'a rotation that is refused at once', [...good(), rotate('k2', 's2', 29, 30, { status: 401 })]],
    ['wrong-answer', 'a 500', [...good(), read('s3', 41, 42, { status: 500 })]],
    ['wrong-answer', 'a secret that is taken for the one before', [...good(), read('s2', 23, 24, { seen: { key: 'a', generation: 1 } })]],
    ['wrong-answer', 'a secret that is taken for another key’s', [...good(), read('s2', 23, 24, { seen: { key: 'b', generation: 2 } })]],
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
    op.f === 'fault' ? op : { ...op, key: 'b', ...(op.f === 'read' ? { seen: { ...op.seen, key: 'b' } } : {}) },
  )
  expect(check([...good(), ...(other as Op[])]).map(({ rule }) => rule)).toEqual([])
})

/** Generation 1 until 22, when the retry of `k1` is answered; generation 2 until 40, when `k2` is. */
function good(end: Partial<Final> = {}, caller?: string): Op[] {
  const by = caller === undefined ? {} : { digest: caller }
  const created: Created = { f: 'create', key: 'a', digest: 's1', start: 0, end: 1 }
  const final: Final = { f: 'final', key: 'a', held: 's3', generations: 3, active: ['s3'], revoked: false, start: 50, end: 51, ...end }
  return [
    created,
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
    final,
  ]
}

function read(digest: string, start: number, end: number, more: Partial<Read> = {}): Read {
  const status = more.status ?? 200
  const seen = { key: 'a', generation: Number(digest.slice(1)) }
  return { f: 'read', route: 'whoami', key: 'a', digest, server: 0, start, end, status, type: ending(status), seen, ...more }
}

function rotate(idempotencyKey: string, digest: string, start: number, end: number, more: Partial<Rotate> = {}): Rotate {
  const status = more.status ?? 200
  const how = { retire: 'now', emergency: false } as const
  return {
    f: 'rotate',
    key: 'a',
    idempotencyKey,
    digest,
    retires: digest,
    ...how,
    server: 0,
    start,
    end,
    status,
    type: ending(status),
    ...more,
  }
}

function ending(status: number): Read['type'] {
  if (status === 0 || status >= 500) return 'info'
  return status === 200 ? 'ok' : 'fail'
}
