/**
 * How an operation ended: it was carried out (a 200), it was refused and has changed nothing (a 4xx), or nobody can say
 * (no answer, or a 5xx).
 */
export type Ending = 'ok' | 'fail' | 'info'

interface Span {
  /** Milliseconds on the one monotonic clock of the run: right before the request was sent. */
  readonly start: number
  /** Right after its answer was read, or given up. */
  readonly end: number
}

interface Request extends Span {
  readonly key: string
  /** Digest of the secret that was presented. A history never holds a secret. */
  readonly digest: string
  readonly server: number
  readonly type: Ending
  /** 0 where no answer came. */
  readonly status: number
  readonly code?: string
}

/** A request that a live secret may make and a dead one may not. */
export interface Read extends Request {
  readonly f: 'read'
  /** A protected route, or, with a secret that is dead by then, a rotation of its own. */
  readonly route: 'whoami' | 'rotate'
  /** Who the route said that it was: the key's id and generation. */
  readonly seen?: { readonly key: string; readonly generation: number }
}

/** A request to rotate a key, by itself or by one that may. */
export interface Rotate extends Request {
  readonly f: 'rotate'
  readonly idempotencyKey: string
  /** Digest of the secret that is to die of it; that of the one presented, where a key rotates itself. */
  readonly retires: string
  /** Digest of the secret in the answer, and its generation. */
  readonly made?: string
  readonly generation?: number
  readonly replayed?: boolean
}

/** A key at its birth. */
export interface Created extends Span {
  readonly f: 'create'
  readonly key: string
  readonly digest: string
}

/** Something that was done to the system. */
export interface Fault extends Span {
  readonly f: 'fault'
  readonly kind: string
  readonly target: string
}

/** What the client of a key holds when all is over and healed, and what the database holds. */
export interface Final extends Span {
  readonly f: 'final'
  readonly key: string
  readonly held: string
  /** How many generations there are. */
  readonly generations: number
  /** Digests of those that are not retired. */
  readonly active: readonly string[]
}

export type Op = Read | Rotate | Created | Fault | Final

/** The rules, in the order of the promises that they hold. */
export const rules = {
  'one-secret': 'P1, P2: every 200 for one key and Idempotency-Key carries one secret, and one generation.',
  generations: 'P1: a key has one generation more than Idempotency-Keys that were answered 200.',
  'locked-out': 'P2: a client that goes on asking ends up with the one active secret, and is never refused on the way.',
  'dead-accepted': 'P3: after a rotation was answered 200, no request that starts later is accepted with the old secret.',
  'live-refused': 'P5: a secret is not refused while it is live, whatever is down.',
  'wrong-answer': 'P5: a request is let in as the key it is of, and trouble is 503.',
} as const

export type Rule = keyof typeof rules

export interface Violation {
  readonly rule: Rule
  readonly what: string
  /** The operations that together break the rule. */
  readonly ops: readonly Op[]
}

export interface Counts {
  /** By operation and ending, such as `read ok`. */
  readonly operations: Readonly<Record<string, number>>
  /** By kind. */
  readonly faults: Readonly<Record<string, number>>
  /** Idempotency-Keys that were answered 200. */
  readonly rotations: number
  /** Of the 200s, those that repeated an earlier one. */
  readonly replays: number
}

/**
 * Judges a history: whether what the clients saw can have come from a system that keeps its promises. It knows nothing but the history.
 * Where an operation overlaps with another that could explain it either way, it is given the benefit of the doubt.
 */
export function check(history: readonly Op[]): readonly Violation[] {
  const keys = groups(
    history.filter((op) => op.f !== 'fault'),
    ({ key }) => key,
  )
  return [...keys.values()].flatMap((ops) => checkKey(ops))
}

export function count(history: readonly Op[]): Counts {
  const rotated = history.filter((op) => op.f === 'rotate' && op.type === 'ok') as Rotate[]
  return {
    operations: tally(history.flatMap((op) => (op.f === 'read' || op.f === 'rotate' ? [`${op.f} ${op.type}`] : []))),
    faults: tally(history.flatMap((op) => (op.f === 'fault' ? [op.kind] : []))),
    rotations: new Set(rotated.map(({ key, idempotencyKey }) => `${key} ${idempotencyKey}`)).size,
    replays: rotated.filter(({ replayed }) => replayed === true).length,
  }
}

function checkKey(ops: readonly Exclude<Op, Fault>[]): Violation[] {
  const created = ops.filter((op) => op.f === 'create')
  const finals = ops.filter((op) => op.f === 'final')
  const reads = ops.filter((op) => op.f === 'read')
  const rotates = ops.filter((op) => op.f === 'rotate')
  const byRequest = [...groups(rotates, ({ idempotencyKey }) => idempotencyKey).values()].map(requestOf)
  const lives = livesOf(created, rotates)
  return [
    ...byRequest.flatMap(oneSecret),
    ...generations(finals, byRequest),
    ...byRequest.flatMap(lockedOut),
    ...finals.flatMap((final) => holdsTheActive(final, byRequest, created)),
    ...deadAccepted(lives, reads, byRequest),
    ...liveRefused(lives, reads),
    ...wrongAnswers(lives, reads, rotates),
  ]
}

/** All attempts at one rotation: those with one Idempotency-Key. */
interface RotationRequest {
  readonly idempotencyKey: string
  readonly attempts: readonly Rotate[]
  readonly oks: readonly Rotate[]
  /** When the first 200 was in. */
  readonly answered: number
}

function requestOf(attempts: readonly Rotate[]): RotationRequest {
  const oks = attempts.filter(({ type }) => type === 'ok')
  return { idempotencyKey: attempts[0]?.idempotencyKey ?? '', attempts, oks, answered: earliest(oks.map(({ end }) => end)) }
}

/** When a secret was surely live: from when its client had it until somebody asked to rotate it. From when it was surely dead. */
interface Life {
  readonly generation: number
  readonly bornAt: number
  readonly threatenedAt: number
  readonly deadAt: number
  readonly killer: Rotate | undefined
}

function livesOf(created: readonly Created[], rotates: readonly Rotate[]): Map<string, Life> {
  const born = new Map<string, { generation: number; bornAt: number }>()
  for (const { digest, end } of created) born.set(digest, { generation: 1, bornAt: end })
  for (const { type, made, generation = 0, end } of rotates) {
    if (type !== 'ok' || made === undefined) continue
    const known = born.get(made)
    if (known === undefined || end < known.bornAt) born.set(made, { generation, bornAt: end })
  }
  const threats = groups(rotates, ({ retires }) => retires)
  return new Map(
    [...born].map(([digest, birth]) => {
      const attempts = threats.get(digest) ?? []
      const oks = attempts.filter(({ type }) => type === 'ok')
      const deadAt = earliest(oks.map(({ end }) => end))
      const killer = oks.find(({ end }) => end === deadAt)
      return [digest, { ...birth, threatenedAt: earliest(attempts.map(({ start }) => start)), deadAt, killer }]
    }),
  )
}

function oneSecret({ idempotencyKey, oks }: RotationRequest): Violation[] {
  const [first] = oks
  const other = oks.find(({ made, generation }) => made !== first?.made || generation !== first?.generation)
  if (first === undefined) return []
  if (first.made === undefined) return [{ rule: 'one-secret', what: `A 200 for ${idempotencyKey} carries no secret.`, ops: [first] }]
  if (other === undefined) return []
  return [{ rule: 'one-secret', what: `Two 200s for ${idempotencyKey} carry different secrets.`, ops: [first, other] }]
}

function generations(finals: readonly Final[], requests: readonly RotationRequest[]): Violation[] {
  const answered = requests.filter(({ oks }) => oks.length > 0)
  const unanswered = requests.length - answered.length
  const violations: Violation[] = []
  const makers = groups(answered, ({ oks }) => oks[0]?.generation)
  for (const [generation, [one, other]] of makers) {
    if (one === undefined || other === undefined) continue
    const what = `${one.idempotencyKey} and ${other.idempotencyKey} both made generation ${generation}.`
    violations.push({ rule: 'generations', what, ops: [...one.oks.slice(0, 1), ...other.oks.slice(0, 1)] })
  }
  for (const final of finals) {
    const least = answered.length + 1
    if (final.generations >= least && final.generations <= least + unanswered) continue
    const what = `There are ${final.generations} generations after ${answered.length} rotations that were answered 200.`
    violations.push({ rule: 'generations', what, ops: [final] })
  }
  return violations
}

/** Only what came in before the first 200 counts: who repeats a request after that may be told that its answer is no longer given. */
function lockedOut({ idempotencyKey, attempts, answered }: RotationRequest): Violation[] {
  const refused = attempts.find(({ type, end }) => type === 'fail' && end < answered)
  if (refused !== undefined) {
    const what = `The client of ${idempotencyKey} was answered ${refused.status} ${refused.code ?? ''} before any 200.`
    return [{ rule: 'locked-out', what, ops: attempts.filter(({ start }) => start <= refused.end) }]
  }
  if (answered < Infinity) return []
  return [{ rule: 'locked-out', what: `The client of ${idempotencyKey} never got a 200.`, ops: attempts }]
}

function holdsTheActive(final: Final, requests: readonly RotationRequest[], created: readonly Created[]): Violation[] {
  const last = requests
    .flatMap(({ oks }) => oks)
    .toSorted((a, b) => (b.generation ?? 0) - (a.generation ?? 0))
    .at(0)
  const newest = last?.made ?? created[0]?.digest
  if (final.active.length === 1 && final.active[0] === final.held && final.held === newest) return []
  return [{ rule: 'locked-out', what: 'In the end the client does not hold the one active secret.', ops: [...(last ? [last] : []), final] }]
}

function deadAccepted(lives: Map<string, Life>, reads: readonly Read[], requests: readonly RotationRequest[]): Violation[] {
  const violations: Violation[] = []
  for (const read of reads) {
    const { deadAt = Infinity, killer } = lives.get(read.digest) ?? {}
    if (read.type !== 'ok' || killer === undefined || read.start <= deadAt) continue
    const what = `Server ${read.server} accepted a secret in a request sent ${(read.start - deadAt).toFixed(1)} ms after its rotation was answered.`
    violations.push({ rule: 'dead-accepted', what, ops: [killer, read] })
  }
  // A dead secret opens the answer of the one rotation that killed it, and nothing else.
  for (const { idempotencyKey, oks } of requests) {
    for (const ok of oks) {
      const killer = lives.get(ok.retires)?.killer
      if (killer === undefined || killer.idempotencyKey === idempotencyKey) continue
      const what = `A secret that ${killer.idempotencyKey} had retired was retired by ${idempotencyKey} too.`
      violations.push({ rule: 'dead-accepted', what, ops: [killer, ok] })
    }
  }
  return violations
}

/** A rotation that is refused is judged by whether its client was locked out. */
function liveRefused(lives: Map<string, Life>, reads: readonly Read[]): Violation[] {
  return reads.flatMap((op): Violation[] => {
    const life = lives.get(op.digest)
    if (life === undefined || op.type !== 'fail' || op.start < life.bornAt || op.end >= life.threatenedAt) return []
    const what = `Server ${op.server} answered ${op.status} ${op.code ?? ''} to a secret that was live all the while.`
    return [{ rule: 'live-refused', what, ops: [op] }]
  })
}

function wrongAnswers(lives: Map<string, Life>, reads: readonly Read[], rotates: readonly Rotate[]): Violation[] {
  const unforeseen = [...reads, ...rotates].filter(({ status }) => status >= 500 && status !== 503)
  const mistaken = reads.filter(({ route, type, digest, key, seen }) => {
    const life = lives.get(digest)
    return route === 'whoami' && type === 'ok' && life !== undefined && (seen?.key !== key || seen.generation !== life.generation)
  })
  return [
    ...unforeseen.map((op) => ({ rule: 'wrong-answer', what: `Server ${op.server} answered ${op.status}.`, ops: [op] }) as const),
    ...mistaken.map((op) => ({ rule: 'wrong-answer', what: `Server ${op.server} took a secret for another's.`, ops: [op] }) as const),
  ]
}

function groups<Key, Item>(items: readonly Item[], keyOf: (item: Item) => Key): Map<Key, Item[]> {
  const found = new Map<Key, Item[]>()
  for (const item of items) {
    const key = keyOf(item)
    const group = found.get(key)
    if (group === undefined) found.set(key, [item])
    else group.push(item)
  }
  return found
}

function earliest(times: readonly number[]): number {
  return times.reduce((least, time) => Math.min(least, time), Infinity)
}

/** How often each name comes, by name. */
export function tally(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of names.toSorted()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}
