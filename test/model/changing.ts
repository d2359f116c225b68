import { numbered, type Step } from './reading.ts'
import {
  ACTIVE,
  BEGUN,
  COMMITTING,
  has,
  IDLE,
  initialState,
  LONGER,
  LOWERED,
  longestWait,
  MARKS,
  type Model,
  marginIn,
  NONE,
  REVOKED,
  type Rotator,
  rowsOf,
  SETTLED,
  type State,
  seqOf,
  type Tables,
  WAITING,
} from './state.ts'

/** R13 to R17: what an instance does that changes something. */
export function rotatorSteps(model: Model, here: State, step: Step): void {
  for (const index of here.rotators.keys()) {
    const { phase } = of(here, index)
    if (phase === IDLE) startSteps(model, here, index, step)
    if (phase === BEGUN) commitSteps(model, here, index, step)
    if (phase === COMMITTING) {
      step(
        () => `${nameOf(model, index)} has the answer to COMMIT`,
        (next) => committed(model, next, index),
      )
    }
    if (phase === WAITING) waitingSteps(model, here, index, step)
    watchSteps(model, here, index, step)
    reapSteps(model, here, index, step)
  }
}

function of(state: State, index: number): Rotator {
  return state.rotators[index] as Rotator
}

function nameOf({ world }: Model, index: number): string {
  return world.rotators === 1 ? 'the rotator' : `rotator ${index + 1}`
}

/** How long something must have been known for, so that no lease from before it is live. */
function knownLongIn(model: Model, tables: Tables): number {
  const { design, world } = model
  return tables.lease === LOWERED && !design.longerWatched ? world.lease + marginIn(model) : waitIn(model, tables)
}

/** How long a change waits, by the lease that the store says may be held. */
function waitIn(model: Model, { lease }: Tables): number {
  return (lease === SETTLED ? model.world.lease : model.world.longerLease) + marginIn(model)
}

function startSteps(model: Model, here: State, index: number, step: Step): void {
  const { design, world } = model
  if (here.away > 0) return
  const name = nameOf(model, index)
  const begin = (next: State): void => {
    Object.assign(of(next, index), { phase: BEGUN, wait: design.waitFrom === 'begun' ? waitIn(model, here.store) : 0 })
  }
  if (here.places <= world.changes) {
    if (design.membersRead === 'before commit') {
      step(
        () => `${name} reads the members${listed(model, here)}`,
        (next) => {
          begin(next)
          readMembers(model, next, index)
        },
      )
    } else if (design.waitFrom === 'begun') step(() => `${name} begins`, begin)
    else commitSteps(model, here, index, step)
  }
  if (!world.replays) return
  for (let change = 2; change <= here.places; change++) {
    if ((here.answered & (1 << change)) !== 0 || !has(here, here.store.tip, change)) continue
    step(
      () => `${name} is asked for change ${numbered(here, change)} again, and finds it committed and not settled`,
      (next) => {
        Object.assign(of(next, index), { phase: WAITING, change, wait: waitIn(model, here.store) })
        if (!design.replaysWait) answer(next, index)
      },
    )
  }
}

/** R1, R13: the change becomes visible. The lock sees to it that it is the next one, and the only one of its number. */
function commitSteps(model: Model, here: State, index: number, step: Step): void {
  const { world } = model
  if (here.away > 0 || here.places > world.changes) return
  const place = here.places + 1
  for (let digest = 0; digest < world.digests; digest++) {
    step(
      () =>
        `${nameOf(model, index)} commits change ${seqOf(here, here.store.tip) + 1}${world.digests === 1 ? '' : ` of digest ${'abc'[digest]}`}`,
      (next) => {
        next.places = place
        next.before[place] = here.store.tip
        next.digest[place] = digest
        next.store.tip = place
        Object.assign(of(next, index), { phase: COMMITTING, change: place })
        if (!world.slowCommit) committed(model, next, index)
      },
    )
  }
}

function committed(model: Model, next: State, index: number): void {
  const rotator = of(next, index)
  rotator.phase = WAITING
  // What the transaction read of the lease is what holds: the lock on it lasts to the end.
  if (model.design.waitFrom === 'commit answered') rotator.wait = waitIn(model, next.store)
  if (model.design.membersRead === 'before commit') rotator.read = rotator.change
}

/** R14: one read of all members and of the server; and the recall. */
function readMembers(model: Model, next: State, index: number): void {
  const { design, world } = model
  const rotator = of(next, index)
  rotator.read = next.store.tip
  rotator.readServer = next.server
  watch(next, index)
  for (let row = 0; row < rowsOf(world); row++) {
    const value = next.store.rows[row] as number
    if (value >= REVOKED) knowRevoked(model, rotator, row, value)
    const isOver = value >= REVOKED && ((rotator.revokedFor[row] as number) > knownLongIn(model, next.store) || !design.revokedWaitedFor)
    const onlyReads = Math.floor(row / world.sessions) >= world.verifiers - world.feedMembers
    if (value !== NONE && !isOver && !(onlyReads && !design.feedMembersWaitedFor)) rotator.listed |= 1 << row
  }
}

/** R17: what is known of a revocation is known of that one, not of a later one of the same member. */
function knowRevoked({ design }: Model, rotator: Rotator, row: number, mark: number): void {
  const isKnown = rotator.revokedFor[row] !== 0 && (design.revocationKnownBy === 'session' || rotator.revokedMark[row] === mark)
  if (!isKnown) rotator.revokedFor[row] = 1
  rotator.revokedMark[row] = design.revocationKnownBy === 'mark' ? mark : 0
}

function listed({ world }: Model, { store }: State): string {
  const rows = store.rows.flatMap((value, row) => {
    const name = `V${Math.floor(row / world.sessions) + 1}${world.sessions === 1 ? '' : ` session ${(row % world.sessions) + 1}`}`
    return value === NONE ? [] : [value === ACTIVE ? name : `${name}, revoked`]
  })
  return `: ${rows.length === 0 ? 'none' : rows.join(', ')}`
}

/** R14, R16: reads the members, recalls, and answers as soon as it may. */
function waitingSteps(model: Model, here: State, index: number, step: Step): void {
  const { world } = model
  const { read, change, wait } = of(here, index)
  const name = nameOf(model, index)
  if (read === 0 && wait > 0 && here.away === 0) {
    step(
      () => `${name} reads the members${listed(model, here)}`,
      (next) => {
        readMembers(model, next, index)
        if (world.recalls) next.recalled[change] = next.store.tip
      },
    )
  }
  if (read !== 0 && world.recalls && here.recalled[change] === 0) {
    step(
      () => `${name} recalls`,
      (next) => {
        next.recalled[change] = change
      },
    )
  }
  if (wait === 0)
    step(
      () => `${name} answers, having waited`,
      (next) => answer(next, index),
    )
  else if (mayAnswerEarly(model, here, index))
    step(
      () => `${name} answers early`,
      (next) => answer(next, index),
    )
  if (read !== 0 && world.suspicion && here.away === 0) suspectSteps(model, here, index, step)
}

function answer(next: State, index: number): void {
  const rotator = of(next, index)
  next.answered |= 1 << rotator.change
  Object.assign(rotator, { phase: IDLE, change: 0, wait: 0, listed: 0, read: 0, readServer: 0 })
}

/** R15, R16. */
function mayAnswerEarly(model: Model, here: State, index: number): boolean {
  const { design, world } = model
  const { read, listed, readServer, knownServer, knownFor } = of(here, index)
  if (read === 0) return false
  if (here.store.lease === LOWERED && design.longerWatched) return false
  const isServerKnown = readServer === knownServer && knownFor >= design.serverKnownFor * knownLongIn(model, here.store)
  if (design.serverKnownFor > 0 && !isServerKnown) return false
  for (let row = 0; row < rowsOf(world); row++) {
    if ((listed & (1 << row)) !== 0 && !hasAcked(model, here, index, row)) return false
  }
  return true
}

/** R16, R18: by a message that fits this recall, or by what the row says. */
function hasAcked({ design, world }: Model, here: State, index: number, row: number): boolean {
  const { change, read } = of(here, index)
  if (Math.floor(row / world.sessions) >= world.verifiers - world.feedMembers) return false
  const acks = here.acks[change] as number
  if ((acks & (1 << row)) !== 0) return true
  if (design.acksBy === 'host and recall' && acks !== 0) return true
  if (design.acksBy === 'session only' && here.acks.some((other) => (other & (1 << row)) !== 0)) return true
  return world.rowAcks && here.store.rows[row] !== NONE && (here.store.acked[row] as number) >= seqOf(here, read)
}

/** R17: who has not answered is marked as revoked. Where reaping has one step, it is deleted after the wait. */
function suspectSteps(model: Model, here: State, index: number, step: Step): void {
  const { design, world } = model
  const name = nameOf(model, index)
  for (let row = 0; row < rowsOf(world); row++) {
    const isWaitedFor = (of(here, index).listed & (1 << row)) !== 0 && !hasAcked(model, here, index, row)
    if (!isWaitedFor || here.store.rows[row] !== ACTIVE) continue
    const session = `V${Math.floor(row / world.sessions) + 1}`
    if (design.reaping === 'one step') {
      if (of(here, index).wait > 0) continue
      step(
        () => `${name} deletes ${session}, having waited for it in vain`,
        (next) => remove(next, row),
      )
    } else if (here.marks < MARKS) {
      step(
        () => `${name} marks ${session} as revoked`,
        (next) => {
          const mark = REVOKED + next.marks++
          next.store.rows[row] = mark
          knowRevoked(model, of(next, index), row, mark)
        },
      )
    }
  }
}

function remove(next: State, row: number): void {
  next.store.rows[row] = NONE
  next.store.acked[row] = 0
}

/** R15: an instance reads the store all the time, and so learns of another server. */
function watchSteps(model: Model, here: State, index: number, step: Step): void {
  if (here.away > 0 || of(here, index).knownServer === here.server) return
  step(
    () => `${nameOf(model, index)} sees that the server is another`,
    (next) => watch(next, index),
  )
}

function watch(next: State, index: number): void {
  const rotator = of(next, index)
  if (rotator.knownServer === next.server) return
  rotator.knownServer = next.server
  rotator.knownFor = 0
}

/** R17: who is known as revoked for long enough is deleted. */
function reapSteps(model: Model, here: State, index: number, step: Step): void {
  const { design, world } = model
  if (!world.suspicion || here.away > 0) return
  for (let row = 0; row < rowsOf(world); row++) {
    const { revokedFor, revokedMark } = of(here, index)
    const value = here.store.rows[row] as number
    const isKnown = value >= REVOKED && (design.revocationKnownBy === 'session' || revokedMark[row] === value)
    if (!isKnown || (revokedFor[row] as number) <= knownLongIn(model, here.store)) continue
    step(
      () => `${nameOf(model, index)} deletes V${Math.floor(row / world.sessions) + 1}, long known as revoked`,
      (next) => {
        remove(next, row)
        of(next, index).revokedFor[row] = 0
        of(next, index).revokedMark[row] = 0
      },
    )
  }
}

/** R3, R7: what the store does, and what happens to it. */
export function storeSteps(model: Model, here: State, step: Step): void {
  const { world } = model
  if (here.away > 0) return
  if (world.pruning && here.store.oldest < seqOf(here, here.store.tip)) {
    step(
      () => `the feed is pruned up to ${here.store.oldest}`,
      (next) => {
        next.store.oldest++
      },
    )
  }
  if (here.store.lease === LONGER) {
    step(
      () => 'somebody lowers the lease',
      (next) => {
        next.store.lease = LOWERED
        next.lowering = longestWait(model)
      },
    )
  }
  if (here.store.lease === LOWERED && here.lowering === 0) {
    step(
      () => 'the lower lease is settled',
      (next) => {
        next.store.lease = SETTLED
      },
    )
  }
  if (world.setback !== 'none' && here.setbacks === 0) setbackSteps(model, here, step)
}

function setbackSteps(model: Model, here: State, step: Step): void {
  const { world } = model
  const isFailOver = world.setback === 'fail-over'
  if (!isSame(here.copy, here.store)) {
    step(
      () => (isFailOver ? 'the standby catches up' : 'somebody dumps the store'),
      (next) => {
        next.copy = copyOf(here.store)
      },
    )
  }
  step(
    () =>
      isFailOver
        ? `the store fails over to the standby, at ${numbered(here, here.copy.tip)}`
        : `the store is restored from the dump, at ${numbered(here, here.copy.tip)}`,
    (next) => {
      next.store = copyOf(here.copy)
      next.setbacks = 1
      // There is no second setback, so what the copy holds is of no more account.
      if (model.design.answeredBy === 'primary') next.copy = initialState(model).store
      if (isFailOver) next.server = 1
      else if (!world.quickRestore) next.away = 2 * longestWait(model)
    },
  )
}

function copyOf(tables: Tables): Tables {
  return { ...tables, rows: [...tables.rows], acked: [...tables.acked] }
}

function isSame(a: Tables, b: Tables): boolean {
  const isSameRow = (row: number, at: number): boolean => row === b.rows[at] && a.acked[at] === b.acked[at]
  return a.tip === b.tip && a.oldest === b.oldest && a.lease === b.lease && a.rows.every(isSameRow)
}

/** A tick: every clock goes on. */
export function tick(model: Model, next: State): void {
  const down = (ticks: number): number => Math.max(0, ticks - 1)
  next.away = down(next.away)
  next.lowering = down(next.lowering)
  for (const rotator of next.rotators) {
    rotator.wait = down(rotator.wait)
    rotator.knownFor = Math.min(2 * longestWait(model), rotator.knownFor + 1)
    for (const [row, ticks] of rotator.revokedFor.entries()) {
      if (ticks > 0) rotator.revokedFor[row] = Math.min(longestWait(model) + 1, ticks + 1)
    }
  }
  for (const verifier of next.verifiers) {
    verifier.lease = down(verifier.lease)
    verifier.joinLease = down(verifier.joinLease)
    for (const flight of verifier.flights) flight.lease = down(flight.lease)
  }
}
