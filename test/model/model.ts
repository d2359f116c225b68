/**
 * Every interleaving of one key, two verifiers, one rotator and a cache, breadth first, so that what breaks a promise comes out as
 * its shortest story. It says whether the *design* of leases holds; whether the code is this design is for the other tests.
 *
 * What is modelled
 * - Time is whole ticks, and goes on whatever a process does. Who makes no move is paused, or its message is late, for any time.
 * - A verifier looks the old secret up in flights, one at a time, and keeps the latest deadline it ever got. Asking, answering and
 *   taking the answer are steps of their own. A flight may begin at any time, for a request or to renew a lease.
 * - The store answers with the state of one instant, and tells that instant by its own clock.
 * - The cache is the set of what was ever sent to it. Evicted, flushed, failed over to an earlier state, restarted from a
 *   snapshot, filled late, filled twice: each only changes what the next read finds. So a read finds any one thing ever sent whose
 *   end TIME has not reached, or nothing, or it has no answer; and TIME is right or late, anew at each read.
 * - A request that starts before the 200 matters by the lease it leaves behind, and by being paused right before it goes through.
 *
 * Neither time nor the number of reads has a bound, and still the search ends. States are compared by what is left of each
 * deadline, and one that is over is as good as one that is long over. The verifiers are alike, so swapped states are the same
 * state. What could only help to keep the promises is left out: an entry that another one outlasts in every respect, a verifier
 * that forgets a lease or remembers a refusal.
 *
 * The bounds are the lengths. A lease of three ticks can be begun, relayed in mid-life with a rest longer than the margin, and
 * over. One tick of margin, of drift and of a late clock is the least that differs from none.
 *
 * Not modelled: replays (they wait from a later instant than the rotation they repeat), revocation (it waits like a rotation),
 * expiry and update, a change of the lease in force, forged entries (the MAC sees to them), a store whose clock is set back, and
 * how a verifier comes to know the store's clock: what it takes that clock to show is exact here, and never less in the code.
 */

/** The design, each field a decision. The defaults are the design as built; another value is a planted fault. */
export interface Design {
  /** Ticks that a verifier's lease lasts. */
  readonly lease: number
  /** Ticks that the rotator takes a lease to last. */
  readonly rotatorLease: number
  /** Ticks that the rotator waits on top, for clocks that run at different speeds. */
  readonly margin: number
  /** What the wait of the rotator counts from. The tombstone is written before COMMIT where it counts, else after. */
  readonly waitFrom: 'commit' | 'tombstone'
  /** What a lease counts from: the instant before the store was asked, or the one when its answer came in. */
  readonly leaseFrom: 'asked' | 'answered'
  /** Whether a fill carries the instant at which it ends, or a time to live that begins when it lands. */
  readonly fill: 'absolute' | 'relative'
  /** Whether a relayed lease is bounded by the cache's TIME. */
  readonly boundByRedisTime: boolean
  /** Whether a relayed lease is bounded by the store's clock. */
  readonly boundByStoreClock: boolean
  /** Whether a verdict is held against its deadline at the moment a request goes through. */
  readonly recheck: boolean
}

const asBuilt: Design = {
  lease: 3,
  rotatorLease: 3,
  margin: 1,
  waitFrom: 'commit',
  leaseFrom: 'asked',
  fill: 'absolute',
  boundByRedisTime: true,
  boundByStoreClock: true,
  recheck: true,
}

/** What the clocks do to the design. */
export interface World {
  /** By how many ticks a verifier's clock falls short of what has passed since its lease began. */
  readonly drift: number
  /** By how many ticks the clock of a machine that the cache may fail over to is late. */
  readonly redisLate: number
}

export const harsh: World = { drift: 1, redisLate: 1 }
export const perfectClocks: World = { drift: 0, redisLate: 0 }

/**
 * - `P3`: a request that started after the 200 is accepted with the old secret.
 * - `P3 to the instant`: a request goes through after the 200, whenever it started. More than P3 asks for, and what docs/design.md says.
 * - `live`: a request is told that the secret is dead before the rotation is committed.
 */
export type Promised = 'P3' | 'P3 to the instant' | 'live'

export interface Verdict {
  /** How many states were looked at: all there are, unless a promise is broken. */
  readonly states: number
  readonly broken: { readonly promise: Promised; readonly trace: readonly string[] } | undefined
}

interface State {
  readonly now: number
  readonly rotation: { readonly phase: 'none' | 'buried' | 'committed' | 'answered'; readonly waitFrom: number }
  readonly sent: readonly Entry[]
  readonly verifiers: readonly Verifier[]
}

/** An active verdict as the cache has it. */
interface Entry {
  readonly grantedAt: number
  /** When the cache drops it, by the cache's clock. Undefined while a fill with a relative time to live is on its way. */
  readonly redisEnd: number | undefined
  /** Its end by the store's clock; never, where the design does not look at that. */
  readonly storeEnd: number
}

interface Verifier {
  /** The latest deadline it ever got. */
  readonly until: number | undefined
  readonly flight: Flight | undefined
  /** Whether a request that started after the 200 waits for the flight. */
  readonly joined: boolean
}

type Flight =
  | { readonly at: 'cache asked'; readonly since: number }
  | { readonly at: 'cache answered'; readonly answer: 'dead' | { readonly until: number | undefined; readonly cacheTime: number } }
  | { readonly at: 'store asked'; readonly askedAt: number; readonly cacheTime: number | undefined }
  | { readonly at: 'store answered'; readonly askedAt: number; readonly cacheTime: number | undefined; readonly grantedAt: number | 'dead' }

interface Move {
  /** Undefined for the passing of a tick. */
  readonly label: string | undefined
  readonly next: State
  readonly breaks?: Promised
}

const MAX_STATES = 3_000_000

/** Looks at every state that the design can get into, nearest first, until one of `promises` is broken. */
export function check(
  faults: Partial<Design> = {},
  world: World = harsh,
  promises: readonly Promised[] = ['P3', 'P3 to the instant', 'live'],
): Verdict {
  const { moves, keyOf } = model({ ...asBuilt, ...faults }, world)
  const idle: Verifier = { until: undefined, flight: undefined, joined: false }
  const initial: State = { now: 0, rotation: { phase: 'none', waitFrom: 0 }, sent: [], verifiers: [idle, idle] }
  const seen = new Set([keyOf(initial)])
  const found: { state: State; from: number; label: string | undefined }[] = [{ state: initial, from: -1, label: undefined }]

  for (let index = 0; index < found.length; index++) {
    const { state } = found[index] as (typeof found)[number]
    for (const { label, next, breaks } of moves(state)) {
      if (breaks !== undefined && promises.includes(breaks)) {
        return { states: found.length, broken: { promise: breaks, trace: [...story(index), line(state, label)] } }
      }
      const key = keyOf(next)
      if (seen.has(key)) continue
      seen.add(key)
      found.push({ state: next, from: index, label })
    }
    if (found.length > MAX_STATES) throw new Error(`More than ${MAX_STATES} states: the model has no end.`)
  }
  return { states: found.length, broken: undefined }

  function story(last: number): string[] {
    const lines: string[] = []
    for (let step = found[last]; step !== undefined; step = found[step.from]) {
      if (step.label !== undefined) lines.unshift(line(step.state, step.label))
    }
    return lines
  }
}

function line(state: State, label: string | undefined): string {
  return `${state.now}  ${label}`
}

function model(design: Design, world: World): { moves: (state: State) => Iterable<Move>; keyOf: (state: State) => string } {
  const { lease } = design
  return { moves, keyOf }

  function* moves(state: State): Generator<Move> {
    yield* rotatorMoves(state)
    if (design.fill === 'relative') yield* landings(state)
    for (const index of state.verifiers.keys()) yield* verifierMoves(state, index)
    yield { label: undefined, next: { ...state, now: state.now + 1, sent: worthKeeping(state.sent, state.now + 1) } }
  }

  function* rotatorMoves(state: State): Generator<Move> {
    const { now, rotation } = state
    const turn = (label: string, phase: State['rotation']['phase'], waitFrom: number): Move => {
      return { label: `the rotator ${label}`, next: { ...state, rotation: { phase, waitFrom } } }
    }
    if (rotation.phase === 'none' && design.waitFrom === 'tombstone') yield turn('has the tombstone in Redis', 'buried', now)
    if (rotation.phase === 'none' && design.waitFrom === 'commit') yield turn('commits', 'committed', now)
    if (rotation.phase === 'buried') yield turn('commits', 'committed', rotation.waitFrom)
    const waited = now - rotation.waitFrom >= design.rotatorLease + design.margin
    if (rotation.phase === 'committed' && waited) yield turn(`answers 200, having waited since ${rotation.waitFrom}`, 'answered', 0)
  }

  function* landings(state: State): Generator<Move> {
    for (const entry of state.sent) {
      if (entry.redisEnd !== undefined) continue
      const landed = { ...entry, redisEnd: state.now + lease }
      const label = `the fill with the lease of ${entry.grantedAt} lands in Redis, to live until ${landed.redisEnd}`
      yield { label, next: { ...state, sent: worthKeeping([...state.sent, landed], state.now) } }
    }
  }

  function* verifierMoves(state: State, index: number): Generator<Move> {
    const { now, rotation } = state
    const verifier = state.verifiers[index] as Verifier
    const { until, flight } = verifier
    const name = `V${index + 1}`
    const answered = rotation.phase === 'answered'
    const become = (change: Partial<Verifier>, sent = state.sent): State => {
      return { ...state, sent, verifiers: state.verifiers.with(index, { ...verifier, ...change }) }
    }

    if (answered && until !== undefined) {
      const lease = `by the lease until ${until}${standing(until, now)}`
      if (live(until, now)) yield { label: `a request starts at ${name} and is accepted, ${lease}`, next: state, breaks: 'P3' }
      if (live(until, now) || !design.recheck) {
        yield { label: `a request paused at ${name} goes through, ${lease}`, next: state, breaks: 'P3 to the instant' }
      }
    }
    if (flight === undefined) {
      const label = `${answered ? `a request starts at ${name}, which` : name} asks Redis`
      yield { label, next: become({ flight: { at: 'cache asked', since: now }, joined: answered }) }
      return
    }
    if (answered && !verifier.joined)
      yield { label: `a request starts at ${name} and waits for the flight under way`, next: become({ joined: true }) }

    const askStore = (cacheTime: number | undefined): Move => {
      return { label: `${name} asks the store`, next: become({ flight: { at: 'store asked', askedAt: now, cacheTime } }) }
    }
    const refused = (by: string): Move => {
      const told: Move = { label: `${name} refuses, by the word of ${by}`, next: become({ flight: undefined, joined: false }) }
      return rotation.phase === 'none' || rotation.phase === 'buried' ? { ...told, breaks: 'live' } : told
    }
    const granted = (deadline: number, sent: readonly Entry[], by: string): Move => {
      const accepted = verifier.joined && (live(deadline, now) || !design.recheck)
      const lease = `takes the lease from ${by}, until ${deadline}${standing(deadline, now)}`
      const label = `${name} ${lease}${accepted ? ', and accepts the request that waits' : ''}`
      const next = become({ until: Math.max(until ?? deadline, deadline), flight: undefined, joined: false }, sent)
      return accepted ? { label, next, breaks: 'P3' } : { label, next }
    }

    switch (flight.at) {
      case 'cache asked':
        yield askStore(undefined)
        yield* cacheAnswers(state, flight.since, name, (answer) => become({ flight: { at: 'cache answered', answer } }))
        return
      case 'cache answered':
        if (flight.answer === 'dead') yield refused('Redis')
        else if (flight.answer.until === undefined || !live(flight.answer.until, now)) yield askStore(flight.answer.cacheTime)
        else yield granted(flight.answer.until, state.sent, 'Redis')
        return
      case 'store asked': {
        const dead = rotation.phase === 'committed' || answered
        const next = become({ flight: { ...flight, at: 'store answered', grantedAt: dead ? 'dead' : now } })
        yield { label: `the store answers ${name}: ${dead ? 'dead' : 'active'}`, next }
        return
      }
      case 'store answered': {
        const { askedAt, cacheTime, grantedAt } = flight
        if (grantedAt === 'dead') yield refused('the store')
        else {
          const sent = cacheTime === undefined ? state.sent : worthKeeping([...state.sent, fill(grantedAt, cacheTime)], now)
          yield granted((design.leaseFrom === 'asked' ? askedAt : now) + lease, sent, `the store, asked at ${askedAt}`)
        }
      }
    }
  }

  /** What a read of the cache can find: anything that was ever sent, or nothing, with a clock that is right or late. */
  function* cacheAnswers(
    { now, rotation, sent }: State,
    since: number,
    name: string,
    next: (answer: Extract<Flight, { at: 'cache answered' }>['answer']) => State,
  ): Generator<Move> {
    if (rotation.phase !== 'none') yield { label: `Redis answers ${name}: a tombstone`, next: next('dead') }
    for (const late of world.redisLate === 0 ? [0] : [0, world.redisLate]) {
      const cacheTime = now - late
      const redis = late === 0 ? 'Redis' : 'Redis, failed over to a late clock,'
      yield { label: `${redis} answers ${name}: nothing, TIME ${cacheTime}`, next: next({ until: undefined, cacheTime }) }
      for (const { grantedAt, redisEnd, storeEnd } of sent) {
        if (redisEnd === undefined || redisEnd <= cacheTime) continue
        // The three bounds. The store's clock is known to the verifier as well as its own.
        const until = since + Math.min(lease, design.boundByRedisTime ? redisEnd - cacheTime : lease, storeEnd - since)
        const label = `${redis} answers ${name}: the lease of ${grantedAt}, TIME ${cacheTime}`
        if (live(until, now)) yield { label, next: next({ until, cacheTime }) }
      }
    }
  }

  function fill(grantedAt: number, cacheTime: number): Entry {
    const redisEnd = design.fill === 'relative' ? undefined : cacheTime + lease
    return { grantedAt, redisEnd, storeEnd: design.boundByStoreClock ? grantedAt + lease : Number.POSITIVE_INFINITY }
  }

  function live(until: number, now: number): boolean {
    return now - world.drift < until
  }

  function standing(until: number, now: number): string {
    return now < until ? '' : live(until, now) ? ' (not over by its slow clock)' : ' (over)'
  }

  /** Whether some read of this entry, now or later, can still give a live lease. */
  function useful({ redisEnd, storeEnd }: Entry, now: number): boolean {
    return (redisEnd === undefined || redisEnd > now - world.redisLate) && live(storeEnd, now)
  }

  /** Without those that are over and those that another one outlasts: whatever they can do, that one can. */
  function worthKeeping(entries: readonly Entry[], now: number): readonly Entry[] {
    const kept: Entry[] = []
    for (const entry of entries) {
      if (!useful(entry, now) || kept.some((other) => outlasts(other, entry))) continue
      kept.splice(0, kept.length, ...kept.filter((other) => !outlasts(entry, other)), entry)
    }
    return kept
  }

  function outlasts(a: Entry, b: Entry): boolean {
    if (a.redisEnd === undefined || b.redisEnd === undefined) return a.redisEnd === b.redisEnd && a.storeEnd >= b.storeEnd
    return a.redisEnd >= b.redisEnd && a.storeEnd >= b.storeEnd
  }

  /** The same for states with the same future: times relative to now, those that are over alike, the verifiers in any order. */
  function keyOf({ now, rotation, sent, verifiers }: State): string {
    const { phase, waitFrom } = rotation
    const waited = phase === 'buried' || phase === 'committed' ? Math.min(now - waitFrom, design.rotatorLease + design.margin) : ''
    const entries = sent.map(({ redisEnd, storeEnd }) => `${redisEnd === undefined ? '' : redisEnd - now},${storeEnd - now}`).sort()
    const both = verifiers.map((verifier) => verifierKey(verifier, now)).sort()
    return `${phase}${waited}|${entries.join(' ')}|${both.join('|')}`
  }

  function verifierKey({ until, flight, joined }: Verifier, now: number): string {
    const paused = until !== undefined && !design.recheck
    return `${paused ? 'p' : ''}${deadlineKey(until, now)}${joined ? 'j' : ''}${flight === undefined ? '' : flightKey(flight, now)}`
  }

  function flightKey(flight: Flight, now: number): string {
    switch (flight.at) {
      case 'cache asked':
        return `a${deadlineKey(flight.since + lease, now)}`
      case 'cache answered':
        if (flight.answer === 'dead') return 'd'
        return `b${deadlineKey(flight.answer.until, now)},${fillKey(flight.answer.cacheTime, now, now)}`
      case 'store asked':
        return `c${deadlineKey(flight.askedAt + lease, now)},${fillKey(flight.cacheTime, now, now)}`
      case 'store answered':
        if (flight.grantedAt === 'dead') return 'd'
        return `e${deadlineKey(flight.askedAt + lease, now)},${fillKey(flight.cacheTime, flight.grantedAt, now)}`
    }
  }

  function deadlineKey(until: number | undefined, now: number): string {
    return until === undefined || !live(until, now) ? '-' : String(until - now)
  }

  /** What the fill will be good for that this read may end in. */
  function fillKey(cacheTime: number | undefined, grantedAt: number, now: number): string {
    if (cacheTime === undefined) return '-'
    const entry = fill(grantedAt, cacheTime)
    return useful(entry, now) ? `${entry.redisEnd === undefined ? '' : entry.redisEnd - now}/${entry.storeEnd - now}` : '-'
  }
}
