import { type Epoch, epochs } from './epochs.js'
import { groups } from './groups.js'

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
  /** Only where an answer came. */
  readonly took?: Took
}

/** What a server says of the time from a request to its answer. */
export interface Took {
  readonly ms: number
  /** For how much of it the server waited for its store, or stood still. */
  readonly storeMs: number
  /** The longest lease that it had to wait for, as the store said meanwhile. */
  readonly leaseMs: number
  /** How many other instances said in time that they know, where that was all of them; 0 where the lease was waited for. */
  readonly recalled?: number
}

/** A request that a live secret may make and a dead one may not. */
export interface Read extends Request {
  readonly f: 'read'
  /** A protected route, or, with a secret that is dead by then, a rotation of its own. */
  readonly route: 'whoami' | 'rotate'
  /** Who the route said that it was: the key's id and generation. */
  readonly seen?: { readonly key: string; readonly generation: number }
}

/** When the old secret is to stop being accepted. */
export type Retire = 'now' | 'on-first-use' | { readonly afterMs: number }

/** A request to rotate a key, by itself or by one that may. */
export interface Rotate extends Request {
  readonly f: 'rotate'
  readonly idempotencyKey: string
  readonly retire: Retire
  /** Whether a grace period is to end as well, and the answer is never to be repeated. */
  readonly emergency: boolean
  /** Digest of the secret that is to die of it; that of the one presented, where a key rotates itself. */
  readonly retires: string
  /** Digest of the secret in the answer, and its generation. */
  readonly made?: string
  readonly generation?: number
  readonly replayed?: boolean
  /** When the old secret stops being accepted, as the answer said: when the clock of the store shows what that of the history does then. Only with a grace period. */
  readonly graceEndsAt?: number
}

/** A request to end a key for good, by itself or by one that may. */
export interface Revoke extends Request {
  readonly f: 'revoke'
  readonly idempotencyKey: string
}

/** A request to make a key. */
export interface Create extends Span {
  readonly f: 'create'
  readonly type: Ending
  readonly status: number
  readonly code?: string
  /** Only where it was asked for over HTTP. */
  readonly idempotencyKey?: string
  readonly server?: number
  /** What was made, and the digest of its secret: only where there was a 201. */
  readonly key?: string
  readonly digest?: string
}

/** A key at its birth: one 201. */
type Created = Create & { readonly key: string; readonly digest: string }

/** Something that was done to the system. */
export interface Fault extends Span {
  readonly f: 'fault'
  readonly kind: string
  readonly target: string
}

/** The clock of the store is set: by some instant of this span it shows so much more than that of the history. */
export interface ClockSet extends Span {
  readonly f: 'clock'
  readonly byMs: number
}

/** The data are again what they were at an earlier instant: a backup was restored, or a standby took over that lacked commits. */
export interface Restore extends Span {
  readonly f: 'restore'
  /** What was answered before its start is kept, and what was asked for after its end is lost. */
  readonly snapshot: Span
}

/** Somebody takes instances from the list of those that changes wait for; they are on it again when they have read that. */
export interface Unlisting extends Span {
  readonly f: 'unlisting'
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
  readonly revoked: boolean
}

export type Op = Read | Rotate | Revoke | Create | Fault | ClockSet | Restore | Unlisting | Final

/** The rules, in the order of the promises that they hold. */
export const rules = {
  'one-secret': 'P1, P2: every 200 for one key and Idempotency-Key carries one secret, and one generation.',
  generations: 'P1: a key has one generation more than Idempotency-Keys that were answered 200, and one request makes one key.',
  'locked-out': 'P2: a client that goes on asking ends up with the one active secret, and is never refused on the way.',
  'dead-accepted':
    'P3: after a rotation or revocation was answered 200, and its grace period is over on the clock of the store, no request that starts later is accepted with the old secret.',
  'live-refused': 'P5: a secret is not refused while it is live, whatever is down.',
  'wrong-answer': 'P5: a request is let in as the key it is of, a grace period is the one that was asked for, and trouble is 503.',
  late: 'P6: a rotation or revocation is answered within a lease, a margin, and what the store itself took.',
  'not-healed': 'P5: after the last fault, every server ends up letting in the secret that is held and answering 401 to the one before.',
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
  /** The same by when the old secret was to die. */
  readonly retirements: Readonly<Record<string, number>>
  /** Of the 200s, those that repeated an earlier one. */
  readonly replays: number
  /** Rotations whose client lost six answers or more on end, and was answered then. */
  readonly outlasted: number
  /** Rotations and revocations that were answered before the lease was over, since all other instances had said that they know. */
  readonly early: number
}

/**
 * Judges a history: whether what the clients saw can have come from a system that keeps its promises. It knows nothing but the history.
 * Where an operation overlaps with another that could explain it either way, it is given the benefit of the doubt.
 */
export function check(history: readonly Op[]): readonly Violation[] {
  return epochs(history, LONGEST_LEASE_MS + marginMs(LONGEST_LEASE_MS)).flatMap((epoch) =>
    checkEpoch(epoch, history).filter(({ ops }) => ops.some(({ end }) => end > epoch.begins)),
  )
}

function checkEpoch(epoch: Epoch, history: readonly Op[]): Violation[] {
  const { ops } = epoch
  const keys = groups(ops.filter(isOfOneKey), ({ key }) => key)
  const creates = groups(
    ops.filter((op) => op.f === 'create').filter(({ idempotencyKey }) => idempotencyKey !== undefined),
    ({ idempotencyKey }) => idempotencyKey,
  )
  const system: System = {
    servers: [...new Set(history.flatMap((op) => (isRequest(op) && op.server !== undefined ? [op.server] : [])))].toSorted(),
    healedAt: Math.max(0, ...history.flatMap((op) => (op.f === 'fault' ? [op.end] : []))),
    clock: storeClock(history.filter((op) => op.f === 'clock')),
    unlistings: history.filter((op) => op.f === 'unlisting'),
    epoch,
  }
  return [
    ...[...creates.values()].flatMap((attempts) => creation(attempts, epoch)),
    ...[...keys.values()].flatMap((its) => checkKey(its, system)),
  ]
}

/** Who could be asked, and from when on nothing was done to them any more. */
interface System {
  readonly servers: readonly number[]
  readonly healedAt: number
  readonly clock: StoreClock
  readonly unlistings: readonly Unlisting[]
  readonly epoch: Epoch
}

/** What the clock of the store may have shown, as far as the history tells. Grace periods go by it. */
interface StoreClock {
  /** By how much it may have differed from that of the history within a span, at least and at most. */
  within(start: number, end: number): { readonly least: number; readonly most: number }
  /** The first instant, from one on, at which it may have shown this or more. */
  mayShow(time: number, from: number): number
  /** From when on it has surely shown this or more, and no lease is left from before it was set forward. */
  surelyShows(time: number): number
}

/** The longest lease that a run grants: as long may an answer be relied on that was given right before the clock was set forward. */
export const LONGEST_LEASE_MS = 1_000

function storeClock(sets: readonly ClockSet[]): StoreClock {
  const sorted = sets.toSorted((a, b) => a.start - b.start)
  const ends = [...sorted.map(({ end }) => end), Number.POSITIVE_INFINITY]
  const stretches = [{ start: Number.NEGATIVE_INFINITY, byMs: 0 }, ...sorted].map(({ start, byMs }, index) => ({
    ...{ start, byMs },
    end: ends[index] ?? Number.POSITIVE_INFINITY,
  }))
  return {
    within(start, end) {
      const offsets = stretches.filter((stretch) => stretch.start <= end && stretch.end >= start).map(({ byMs }) => byMs)
      return { least: Math.min(...offsets), most: Math.max(...offsets) }
    },
    mayShow: (time, from) =>
      earliest(
        stretches.flatMap(({ start, end, byMs }) => {
          const first = Math.max(start, from, time - byMs)
          return first <= end ? [first] : []
        }),
      ),
    surelyShows: (time) =>
      Math.max(
        ...stretches.flatMap(({ start, end, byMs }) => (time - byMs > start ? [Math.min(time - byMs, end + LONGEST_LEASE_MS)] : [])),
        Number.NEGATIVE_INFINITY,
      ),
  }
}

/** What is about one key. */
type OfKey = Read | Rotate | Revoke | Final | Created

function isOfOneKey(op: Op): op is OfKey {
  return op.f === 'create' ? op.key !== undefined && op.digest !== undefined : 'key' in op
}

const MANY_LOSSES = 6

export function count(history: readonly Op[]): Counts {
  const rotated = history.filter((op) => op.f === 'rotate' && op.type === 'ok') as Rotate[]
  const answered = new Map(rotated.map((op) => [`${op.key} ${op.idempotencyKey}`, op]))
  const retirement = ({ emergency, retire }: Rotate): string => (emergency ? 'emergency' : typeof retire === 'string' ? retire : 'later')
  return {
    operations: tally(history.flatMap((op) => (isRequest(op) ? [`${op.f} ${op.type}`] : []))),
    faults: tally(history.flatMap((op) => (op.f === 'fault' ? [op.kind] : []))),
    rotations: answered.size,
    retirements: tally([...answered.values()].map(retirement)),
    replays: rotated.filter(({ replayed }) => replayed === true).length,
    outlasted: [...groups(history.filter(isRotate), ({ key, idempotencyKey }) => `${key} ${idempotencyKey}`).values()].filter(wasOutlasted)
      .length,
    early: history
      .filter((op) => op.f === 'rotate' || op.f === 'revoke')
      .filter(({ type, took }) => type === 'ok' && (took?.recalled ?? 0) > 0).length,
  }
}

function isRotate(op: Op): op is Rotate {
  return op.f === 'rotate'
}

function wasOutlasted(attempts: readonly Rotate[]): boolean {
  const answered = earliest(attempts.flatMap(({ status, end }) => (status === 0 ? [] : [end])))
  return attempts.some(({ type }) => type === 'ok') && attempts.filter(({ end }) => end < answered).length >= MANY_LOSSES
}

export interface FaultCounts {
  readonly times: number
  /** Requests that were under way while it lasted. */
  readonly operations: number
  /** Violations with an operation that was. */
  readonly violations: number
}

/** What went on during the faults of each kind. */
export function duringFaults(history: readonly Op[], violations: readonly Violation[]): Map<string, FaultCounts> {
  const during = (fault: Fault) => (op: Op) => op.start <= fault.end && op.end >= fault.start
  const requests = history.filter(isRequest)
  const kinds = groups(
    history.filter((op) => op.f === 'fault'),
    ({ kind }) => kind,
  )
  return new Map(
    [...kinds].map(([kind, faults]) => {
      const hit = (op: Op): boolean => faults.some((fault) => during(fault)(op))
      const operations = requests.filter(hit).length
      return [kind, { times: faults.length, operations, violations: violations.filter(({ ops }) => ops.some(hit)).length }]
    }),
  )
}

function isRequest(op: Op): op is Read | Rotate | Revoke | Create {
  return op.f === 'read' || op.f === 'rotate' || op.f === 'revoke' || (op.f === 'create' && op.idempotencyKey !== undefined)
}

function checkKey(ops: readonly OfKey[], system: System): Violation[] {
  const created = ops.filter((op) => op.f === 'create')
  const finals = system.epoch.isLast ? ops.filter((op) => op.f === 'final') : []
  const reads = ops.filter((op) => op.f === 'read')
  const rotates = ops.filter((op) => op.f === 'rotate')
  const revokes = ops.filter((op) => op.f === 'revoke')
  const byRequest = [...groups(rotates, ({ idempotencyKey }) => idempotencyKey).values()].map(requestOf)
  const lives = livesOf({ created, reads, rotates, revokes }, byRequest, system)
  return [
    ...byRequest.flatMap(oneSecret),
    ...generations(finals, byRequest, created, system.epoch),
    ...byRequest.flatMap((request) => lockedOut(request, byRequest, lives, system)),
    ...revocations(revokes, created, system.epoch),
    ...finals.flatMap((final) => holdsTheActive(final, byRequest, created, revokes, system.epoch)),
    ...deadAccepted(lives, reads, byRequest),
    ...lostAccepted(reads, system.epoch),
    ...liveRefused(lives, reads, system.epoch),
    ...wrongAnswers(lives, reads, rotates, revokes, system.epoch),
    ...byRequest.flatMap((request) => wrongGrace(request, system)),
    ...late([...rotates, ...revokes], byRequest),
    ...finals.flatMap((final) => notHealed(final, lives, reads, system)),
  ]
}

/** All attempts at one rotation: those with one Idempotency-Key. */
interface RotationRequest {
  readonly idempotencyKey: string
  readonly retire: Retire
  readonly emergency: boolean
  /** Digest of the secret that it is to retire. */
  readonly retires: string
  readonly attempts: readonly Rotate[]
  readonly oks: readonly Rotate[]
  /** When the first attempt was sent. */
  readonly asked: number
  /** When the first 200 was in. */
  readonly answered: number
}

function requestOf(attempts: readonly Rotate[]): RotationRequest {
  const [first] = attempts
  const oks = attempts.filter(({ type }) => type === 'ok')
  const { idempotencyKey = '', retire = 'now', emergency = false, retires = '' } = first ?? {}
  const asked = earliest(attempts.map(({ start }) => start))
  return { idempotencyKey, retire, emergency, retires, attempts, oks, asked, answered: earliest(oks.map(({ end }) => end)) }
}

/** When a secret was surely live: from when its client had it until something could end it. From when it was surely dead. */
interface Life {
  readonly generation: number
  readonly bornAt: number
  readonly threatenedAt: number
  readonly deadAt: number
  readonly killer: Op | undefined
  /** Whether it could go on for a while after its successor was made. */
  readonly graced: boolean
}

/** What is left to the rounding of an instant that an answer states. */
export const ROUNDING_MS = 10

/** For so long after its client has given it up a server may still carry out a request. */
const STRAGGLING_MS = 10_000

function livesOf(
  {
    created,
    reads,
    rotates,
    revokes,
  }: { created: readonly Created[]; reads: readonly Read[]; rotates: readonly Rotate[]; revokes: readonly Revoke[] },
  requests: readonly RotationRequest[],
  { clock, unlistings, epoch }: System,
): Map<string, Life> {
  const born = new Map<string, { generation: number; bornAt: number }>()
  for (const { digest, end } of created)
    born.set(digest, { generation: 1, bornAt: Math.min(end, born.get(digest)?.bornAt ?? Number.POSITIVE_INFINITY) })
  for (const { type, made, generation = 0, end } of rotates) {
    if (type !== 'ok' || made === undefined) continue
    const known = born.get(made)
    if (known === undefined || end < known.bornAt) born.set(made, { generation, bornAt: end })
  }
  const uses = groups([...reads, ...rotates, ...revokes], ({ digest }) => digest)
  const retirements = groups(requests, ({ retires }) => retires)
  // An administrator who takes a lost secret for the active one has another one retired.
  const mistaken = epoch.begins > 0 ? requests.filter(({ retires, attempts }) => !born.has(retires) && attempts[0]?.digest !== retires) : []
  // A revocation, and a rotation in an emergency, end whatever the key has had until then.
  const endings = [
    ...revokes.map((op) => ({ op, before: Number.POSITIVE_INFINITY })),
    ...requests.flatMap(({ emergency, attempts, oks }) =>
      emergency ? attempts.map((op) => ({ op, before: oks[0]?.generation ?? Number.POSITIVE_INFINITY })) : [],
    ),
  ]

  // While a server relies on what it has read before a loss, it does not tell the store of a first use again.
  const isNoted = ({ type, start, end }: Request): boolean => type === 'ok' && (end <= epoch.begins || start >= epoch.settledAt)

  return new Map(
    [...born].map(([digest, birth]) => {
      const meant = mistaken.filter(({ attempts }) => birth.bornAt <= lastOf(attempts) + STRAGGLING_MS)
      const threats = meant.map(({ asked }) => asked)
      const deaths: { at: number; by: Op }[] = []
      const retiring = retirements.get(digest) ?? []
      for (const request of retiring) {
        const [ok] = request.oks
        if (request.retire === 'now') {
          threats.push(request.asked)
          deaths.push(...request.oks.map((by) => ({ at: by.end, by })))
        } else if (request.retire === 'on-first-use') {
          // Who never had an answer cannot use what was in it.
          const firstUses = request.attempts.flatMap(({ made }) => (made === undefined ? [] : (uses.get(made) ?? [])))
          threats.push(...firstUses.map(({ start }) => start))
          deaths.push(...firstUses.filter(isNoted).map((by) => ({ at: by.end, by })))
        } else {
          const until = ok?.graceEndsAt === undefined ? earliestEnd(request, clock) : ok.graceEndsAt - ROUNDING_MS
          threats.push(clock.mayShow(until, request.asked))
          // A period that ends before its rotation is even committed ends with the answer: until then nobody was told of it.
          if (ok?.graceEndsAt !== undefined) {
            deaths.push({ at: Math.max(clock.surelyShows(ok.graceEndsAt + ROUNDING_MS), request.answered), by: ok })
          }
        }
      }
      for (const { op, before } of endings) {
        if (birth.generation >= before || op.end < birth.bornAt) continue
        threats.push(op.start)
        if (op.type === 'ok') deaths.push({ at: op.end, by: op })
      }
      // A rotation is carried out when every grace period of its key is over, and then they are over for good.
      for (const { oks, answered } of requests) {
        const [by] = oks
        if (by?.generation !== undefined && by.generation > birth.generation + 1) deaths.push({ at: answered, by })
      }
      const at = earliest(deaths.map((death) => death.at))
      const killer = deaths.find((death) => death.at === at)?.by
      const deadAt = whenListed(at, unlistings)
      const graced = [...retiring, ...meant].some(({ retire }) => retire !== 'now')
      return [digest, { ...birth, threatenedAt: earliest(threats), deadAt, killer, graced }]
    }),
  )
}

/** When an instance that nobody waits for has noticed that, and relies on nothing from before a change any more. */
function whenListed(at: number, unlistings: readonly Unlisting[]): number {
  const longest = LONGEST_LEASE_MS + marginMs(LONGEST_LEASE_MS)
  return unlistings.reduce((latest, { start, end }) => (at >= start && at <= end + longest ? Math.max(latest, end + longest) : latest), at)
}

/** What the clock of the store shows at the end of a grace period that began no earlier than it was asked for. */
function earliestEnd({ asked, retire }: RotationRequest, clock: StoreClock): number {
  const afterMs = typeof retire === 'object' ? retire.afterMs : 0
  return asked + clock.within(asked, Number.POSITIVE_INFINITY).least + afterMs
}

/** A server counts from before it asked for the clock of the store, so an end may be later by as long as a message is under way: half a second where lines delay it. */
const ON_ITS_WAY_MS = 500

/** Whoever asks for a grace period gets it, and is told when it ends. */
function wrongGrace({ retire, asked, oks }: RotationRequest, { clock, epoch }: System): Violation[] {
  // A server whose counting from the commit was lost does not know that, and settles the record as it is.
  if (typeof retire !== 'object' || asked < epoch.settledAt) return []
  return oks.flatMap((op): Violation[] => {
    const { least, most } = clock.within(asked, op.end)
    const [first, last] = [asked + least + retire.afterMs - ROUNDING_MS, op.end + most + retire.afterMs + ON_ITS_WAY_MS + ROUNDING_MS]
    const { graceEndsAt = Number.NaN } = op
    if (graceEndsAt >= first && graceEndsAt <= last) return []
    const how = op.graceEndsAt === undefined ? 'none' : `one that ends ${(op.graceEndsAt - op.end).toFixed(1)} ms after the answer`
    return [{ rule: 'wrong-answer', what: `Who asked for a grace period of ${retire.afterMs} ms got ${how}.`, ops: [op] }]
  })
}

function oneSecret({ idempotencyKey, emergency, oks }: RotationRequest): Violation[] {
  const [first, second] = oks
  const other = oks.find(({ made, generation }) => made !== first?.made || generation !== first?.generation)
  if (first === undefined) return []
  if (first.made === undefined) return [{ rule: 'one-secret', what: `A 200 for ${idempotencyKey} carries no secret.`, ops: [first] }]
  if (other !== undefined)
    return [{ rule: 'one-secret', what: `Two 200s for ${idempotencyKey} carry different secrets.`, ops: [first, other] }]
  if (!emergency || second === undefined) return []
  return [{ rule: 'one-secret', what: `The answer of the emergency ${idempotencyKey} was given twice.`, ops: [first, second] }]
}

/** One request to make a key makes one, whatever is retried, and its client is told so. */
function creation(attempts: readonly Create[], epoch: Epoch): Violation[] {
  const name = attempts[0]?.idempotencyKey
  const oks = attempts.filter(({ type }) => type === 'ok')
  const [first] = oks
  const answered = earliest(oks.map(({ end }) => end))
  const violations: Violation[] = attempts
    .filter(({ status }) => isUnforeseen(status))
    .map((op) => ({ rule: 'wrong-answer', what: `Server ${op.server} answered ${op.status}.`, ops: [op] }))
  const bare = oks.find((op) => !isOfOneKey(op))
  if (bare !== undefined) violations.push({ rule: 'one-secret', what: `A 201 for ${name} carries no key.`, ops: [bare] })
  const other = oks.find(({ key, digest }) => key !== first?.key || digest !== first?.digest)
  if (first !== undefined && other !== undefined)
    violations.push({ rule: 'one-secret', what: `Two 201s for ${name} carry different keys.`, ops: [first, other] })
  const refused = attempts.find(({ type, end }) => type === 'fail' && end < answered)
  if (refused !== undefined) {
    const what = `Who asked for a key with ${name} was answered ${refused.status} ${refused.code ?? ''} before any 201.`
    violations.push({ rule: 'locked-out', what, ops: attempts })
  } else if (first === undefined && epoch.isLast && attempts.every(({ start }) => start > epoch.goesOnAt)) {
    violations.push({ rule: 'locked-out', what: `Who asked for a key with ${name} never got a 201.`, ops: attempts })
  }
  return violations
}

function generations(
  finals: readonly Final[],
  requests: readonly RotationRequest[],
  created: readonly Created[],
  epoch: Epoch,
): Violation[] {
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
    if (created.length === 0 && epoch.strangers) continue
    if (created.length === 0) violations.push({ rule: 'generations', what: 'There is a key that nobody was told of.', ops: [final] })
    const least = answered.length + 1
    if (final.generations >= least && final.generations <= least + unanswered) continue
    const what = `There are ${final.generations} generations after ${answered.length} rotations that were answered 200.`
    violations.push({ rule: 'generations', what, ops: [final] })
  }
  return violations
}

/** Only what came in before the first 200 counts: who repeats a request after that may be told that its answer is no longer given. */
function lockedOut(
  request: RotationRequest,
  requests: readonly RotationRequest[],
  lives: Map<string, Life>,
  { clock, epoch }: System,
): Violation[] {
  const { idempotencyKey, emergency, attempts, answered } = request
  if (isAdrift(request, lives, epoch)) return []
  // The answer of an emergency is given once. Whoever asks again may have lost it, and then asks for another rotation.
  const spent = (op: Rotate): boolean => emergency && op.code === 'idempotency_key_spent' && attempts.some(({ start }) => start < op.start)
  // Where the clock of the store was set back, a grace period lasts longer than its client thinks, and no other rotation is carried out in it.
  const early = (op: Rotate): boolean => op.code === 'rotation_in_grace' && requests.some((other) => mayBeInGrace(other, op, clock))
  const refused = attempts.find((op) => op.type === 'fail' && op.end < answered && !spent(op) && !early(op))
  if (refused !== undefined) {
    const what = `The client of ${idempotencyKey} was answered ${refused.status} ${refused.code ?? ''} before any 200.`
    return [{ rule: 'locked-out', what, ops: attempts.filter(({ start }) => start <= refused.end) }]
  }
  if (!epoch.isLast || answered < Number.POSITIVE_INFINITY || attempts.some((op) => spent(op) || early(op))) return []
  return [{ rule: 'locked-out', what: `The client of ${idempotencyKey} never got a 200.`, ops: attempts }]
}

/** Whether a client may have lost its place together with the data, so that it has to look for it first. */
function isAdrift({ asked, retires }: RotationRequest, lives: Map<string, Life>, { begins, settledAt }: Epoch): boolean {
  if (begins < 0) return false
  const { bornAt = Number.POSITIVE_INFINITY, threatenedAt = 0 } = lives.get(retires) ?? {}
  return asked < settledAt || bornAt > asked || threatenedAt < asked
}

function mayBeInGrace({ retire, oks }: RotationRequest, op: Rotate, clock: StoreClock): boolean {
  const [{ graceEndsAt = Number.NEGATIVE_INFINITY, start = 0 } = {}] = oks
  return typeof retire === 'object' && start < op.end && graceEndsAt > op.start + clock.within(op.start, op.end).least
}

/** Whoever ends a key is told so, however often it has to ask. */
function revocations(revokes: readonly Revoke[], created: readonly Created[], epoch: Epoch): Violation[] {
  if (epoch.begins > 0 && (created.length === 0 || revokes.some(({ start }) => start < epoch.settledAt))) return []
  return [...groups(revokes, ({ idempotencyKey }) => idempotencyKey).values()].flatMap((attempts): Violation[] => {
    const refused = attempts.find(({ type }) => type === 'fail')
    if (refused === undefined && (!epoch.isLast || attempts.some(({ type }) => type === 'ok'))) return []
    const how = refused === undefined ? 'never answered 200' : `answered ${refused.status} ${refused.code ?? ''}`
    return [{ rule: 'locked-out', what: `The revocation ${attempts[0]?.idempotencyKey} was ${how}.`, ops: attempts }]
  })
}

function holdsTheActive(
  final: Final,
  requests: readonly RotationRequest[],
  created: readonly Created[],
  revokes: readonly Revoke[],
  { touched, begins }: Epoch,
): Violation[] {
  const ended = revokes.find(({ type }) => type === 'ok')
  // Whoever ended such a key, or was told of it, may not know any more how it is.
  const forgotten = touched.has(final.key) && ended === undefined
  if (forgotten && final.held === '') return []
  if (ended !== undefined) {
    if (final.revoked && final.active.length === 0) return []
    return [{ rule: 'locked-out', what: 'In the end a key is there that was revoked.', ops: [ended, final] }]
  }
  const last = requests
    .flatMap(({ oks }) => oks)
    .toSorted((a, b) => (b.generation ?? 0) - (a.generation ?? 0))
    .at(0)
  const newest = forgotten && (last?.start ?? 0) < begins ? final.held : (last?.made ?? created[0]?.digest)
  if (!final.revoked && final.active.length === 1 && final.active[0] === final.held && final.held === newest) return []
  return [{ rule: 'locked-out', what: 'In the end the client does not hold the one active secret.', ops: [...(last ? [last] : []), final] }]
}

function deadAccepted(lives: Map<string, Life>, reads: readonly Read[], requests: readonly RotationRequest[]): Violation[] {
  const violations: Violation[] = []
  for (const read of reads) {
    const { deadAt = Number.POSITIVE_INFINITY, killer } = lives.get(read.digest) ?? {}
    if (read.type !== 'ok' || killer === undefined || read.start <= deadAt) continue
    const what = `Server ${read.server} accepted a secret in a request sent ${(read.start - deadAt).toFixed(1)} ms after it was surely dead.`
    violations.push({ rule: 'dead-accepted', what, ops: [killer, read] })
  }
  // A dead secret opens the answer of the one rotation that killed it, and nothing else.
  for (const [, [one, other]] of groups(
    requests.filter(({ oks }) => oks.length > 0),
    ({ retires }) => retires,
  )) {
    if (one === undefined || other === undefined) continue
    const what = `A secret that ${one.idempotencyKey} had retired was retired by ${other.idempotencyKey} too.`
    violations.push({ rule: 'dead-accepted', what, ops: [...one.oks.slice(0, 1), ...other.oks.slice(0, 1)] })
  }
  return violations
}

/** A secret that was made by a change that was lost is nobody's, as soon as no server can be without that news. */
function lostAccepted(reads: readonly Read[], { lost, settledAt }: Epoch): Violation[] {
  return reads.flatMap((op): Violation[] => {
    if (op.type !== 'ok' || !lost.has(op.digest) || op.start <= settledAt) return []
    const what = `Server ${op.server} accepted a secret ${(op.start - settledAt).toFixed(1)} ms after it must have known that it was lost.`
    return [{ rule: 'dead-accepted', what, ops: [op] }]
  })
}

/** A rotation that is refused is judged by whether its client was locked out. */
function liveRefused(lives: Map<string, Life>, reads: readonly Read[], { touched, settledAt }: Epoch): Violation[] {
  return reads.flatMap((op): Violation[] => {
    const life = lives.get(op.digest)
    // It may have been dead before that was lost.
    if (touched.has(op.key) && op.start < settledAt) return []
    if (life === undefined || op.type !== 'fail' || op.start < life.bornAt || op.end >= life.threatenedAt) return []
    const what = `Server ${op.server} answered ${op.status} ${op.code ?? ''} to a secret that was live all the while.`
    return [{ rule: 'live-refused', what, ops: [op] }]
  })
}

function wrongAnswers(
  lives: Map<string, Life>,
  reads: readonly Read[],
  rotates: readonly Rotate[],
  revokes: readonly Revoke[],
  { touched, settledAt }: Epoch,
): Violation[] {
  const unforeseen = [...reads, ...rotates, ...revokes].filter(({ status }) => isUnforeseen(status))
  const mistaken = reads.filter(({ route, type, digest, key, seen, start }) => {
    if (touched.has(key) && start < settledAt) return false
    const life = lives.get(digest)
    if (route !== 'whoami' || type !== 'ok' || life === undefined) return false
    // In its grace period a secret stands for the key as it is by then.
    const generation = seen?.generation ?? 0
    return seen?.key !== key || generation < life.generation || generation > life.generation + (life.graced ? 1 : 0)
  })
  const stillborn = rotates.filter(
    ({ type, made = '', start }) => type === 'ok' && start > (lives.get(made)?.deadAt ?? Number.POSITIVE_INFINITY),
  )
  return [
    ...stillborn.map((op) => ({ rule: 'wrong-answer', what: `Server ${op.server} handed out a dead secret.`, ops: [op] }) as const),
    ...unforeseen.map((op) => ({ rule: 'wrong-answer', what: `Server ${op.server} answered ${op.status}.`, ops: [op] }) as const),
    ...mistaken.map((op) => ({ rule: 'wrong-answer', what: `Server ${op.server} took a secret for another's.`, ops: [op] }) as const),
  ]
}

/** What is waited beyond a lease, for clocks that run at different speeds. */
export function marginMs(leaseMs: number): number {
  return Math.max(50, leaseMs / 100)
}

/** What a busy machine may take beside that. */
const BUSY_MS = 250

/** Whatever an instance does or does not say, a change waits for one lease and no longer. */
function late(changes: readonly (Rotate | Revoke)[], requests: readonly RotationRequest[]): Violation[] {
  // Whoever presents such a secret for the first time ends the one before it too, and waits for that first.
  const endsAnother = new Set(requests.filter(({ retire }) => retire === 'on-first-use').flatMap(({ oks }) => oks.map(({ made }) => made)))
  return changes.flatMap((op): Violation[] => {
    if (op.type !== 'ok' || op.took === undefined) return []
    const { ms, storeMs, leaseMs } = op.took
    const waits = endsAnother.has(op.digest) ? 2 : 1
    const over = ms - storeMs - waits * (leaseMs + marginMs(leaseMs))
    if (!(over > BUSY_MS)) return []
    const what = `Server ${op.server} took ${ms.toFixed()} ms, ${over.toFixed()} more than the lease of ${leaseMs} ms, its margin and the store account for.`
    return [{ rule: 'late', what, ops: [op] }]
  })
}

/** When all is whole again and who asks is patient, each server knows the secret that is held, and that the one before is dead. */
function notHealed(final: Final, lives: Map<string, Life>, reads: readonly Read[], { servers, healedAt, epoch }: System): Violation[] {
  const held = lives.get(final.held)
  if (final.revoked || held === undefined) return []
  const [before] = [...lives]
    .filter(([, { generation }]) => generation < held.generation && (generation === held.generation - 1 || !epoch.touched.has(final.key)))
    .toSorted(([, one], [, other]) => other.generation - one.generation)
  const asked: { digest: string; since: number; wanted: number; which: string }[] = [
    { digest: final.held, since: Math.max(healedAt, held.bornAt), wanted: 200, which: 'the secret that is held' },
  ]
  if (before !== undefined && before[1].deadAt < final.start)
    asked.push({ digest: before[0], since: healedAt, wanted: 401, which: 'the one before it' })
  return asked.flatMap(({ digest, since, wanted, which }) =>
    servers.flatMap((server): Violation[] => {
      const last = reads
        .filter((op) => op.route === 'whoami' && op.digest === digest && op.server === server && op.start >= since)
        .reduce<Read | undefined>((latest, op) => (latest === undefined || op.start > latest.start ? op : latest), undefined)
      if (last?.status === wanted) return []
      const how = last === undefined ? 'was not asked' : last.status === 0 ? 'at last said nothing' : `at last answered ${last.status}`
      const what = `After the last fault, server ${server} ${how} about ${which}: ${wanted} is right.`
      return [{ rule: 'not-healed', what, ops: [...(last === undefined ? [] : [last]), final] }]
    }),
  )
}

/** Trouble is 503, and nothing else. */
function isUnforeseen(status: number): boolean {
  return status >= 500 && status !== 503
}

function lastOf(spans: readonly Span[]): number {
  return spans.reduce((last, { end }) => Math.max(last, end), Number.NEGATIVE_INFINITY)
}

function earliest(times: readonly number[]): number {
  return times.reduce((least, time) => Math.min(least, time), Number.POSITIVE_INFINITY)
}

/** How often each name comes, by name. */
export function tally(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of names.toSorted()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}
