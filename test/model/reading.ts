import {
  ACTIVE,
  ANSWERED,
  BROKE_CALM,
  BROKE_P3,
  emptyFlight,
  type Flight,
  GONE,
  HOLDS,
  has,
  IN,
  JOINING,
  LEAVING,
  LONGER,
  longestLive,
  type Model,
  NONE,
  NOT_SENT,
  OUT,
  type Place,
  REVOKED,
  rowOf,
  SENT,
  type State,
  seqOf,
  slotsOf,
  type Verifier,
} from './state.ts'

/** The session of a read that names none. */
const NOBODY = 15

/** Offers a step: what it is called, and what it does to a copy of the state. */
export type Step = (label: () => string | undefined, change: (next: State) => void) => void

/** R2, R4 to R12, R19, R20, R22: what an instance that verifies does. */
export function verifierSteps(model: Model, here: State, step: Step): void {
  for (const index of here.verifiers.keys()) {
    const verifier = here.verifiers[index] as Verifier
    membershipSteps(model, here, index, step)
    if (verifier.phase === IN) sendSteps(model, here, index, step)
    for (const at of verifier.flights.keys()) flightSteps(model, here, index, at, step)
    if (verifier.phase === IN) hearingSteps(model, here, index, step)
    requestSteps(model, here, index, step)
  }
}

function of(state: State, index: number): Verifier {
  return state.verifiers[index] as Verifier
}

/** R2, R22: joins, and leaves for good. */
function membershipSteps({ design, world }: Model, here: State, index: number, step: Step): void {
  const name = `V${index + 1}`
  const { phase, session } = of(here, index)
  const row = rowOf(world, index, session)
  if (phase === OUT && session < world.sessions && here.away === 0) {
    if (design.joiningGrants) {
      step(
        () => `${name} begins to join: its statement sees change ${numbered(here, here.store.tip)}`,
        (next) => Object.assign(of(next, index), { phase: JOINING, joinedAt: here.store.tip, joinLease: longestLive(world) }),
      )
    } else {
      step(
        () => `${name} joins as session ${session + 1}`,
        (next) => {
          of(next, index).phase = IN
          next.store.rows[row] = ACTIVE
        },
      )
    }
  }
  if (phase === JOINING && here.away === 0) {
    step(
      () => `${name} has joined, and takes the reply for a lease`,
      (next) => {
        const { joinedAt, joinLease } = of(here, index)
        const facts = of(here, index).facts.map(() => joinedAt)
        Object.assign(of(next, index), {
          phase: IN,
          position: joinedAt,
          floor: seqOf(here, joinedAt),
          facts,
          lease: joinLease,
          joinedAt: 0,
          joinLease: 0,
        })
        next.store.rows[row] = ACTIVE
      },
    )
  }
  if (!world.closing) return
  const stopped = { phase: GONE, position: 0, floor: 0, lease: 0, heldSlot: 0, heldAt: 0, acking: 0 }
  const stop = (next: State, phase: number): void => {
    Object.assign(of(next, index), stopped, { phase })
    of(next, index).known.fill(0)
    of(next, index).facts.fill(0)
    of(next, index).flights = of(here, index).flights.map(emptyFlight)
  }
  if (design.closing === 'stops, then leaves') {
    if (phase === IN)
      step(
        () => `${name} stops`,
        (next) => stop(next, LEAVING),
      )
    if (phase === LEAVING && here.away === 0)
      step(
        () => `${name} deletes its row`,
        (next) => void Object.assign(of(next, index), { phase: GONE }, clear(next, row)),
      )
  } else {
    if (phase === IN && here.away === 0)
      step(
        () => `${name} deletes its row`,
        (next) => void Object.assign(of(next, index), { phase: LEAVING }, clear(next, row)),
      )
    if (phase === LEAVING)
      step(
        () => `${name} stops`,
        (next) => stop(next, GONE),
      )
  }
}

function clear(state: State, row: number): void {
  state.store.rows[row] = NONE
  state.store.acked[row] = 0
}

/** R4: a read of one digest, or a poll, goes out with the position of now. */
function sendSteps({ world }: Model, here: State, index: number, step: Step): void {
  const { flights, position, session } = of(here, index)
  const at = flights.findIndex(({ phase }) => phase === NOT_SENT)
  if (at === -1) return
  for (let asked = 0; asked <= slotsOf(world); asked++) {
    step(
      () =>
        `V${index + 1} ${asked === 0 ? 'polls' : `asks about ${slotName(world, asked - 1)}`} ` +
        (position === 0 ? 'without a position' : `after ${numbered(here, position)}`),
      (next) => {
        of(next, index).flights[at] = { ...emptyFlight(), phase: SENT, asked, sentAt: position, session, lease: longestLive(world) }
      },
    )
  }
}

/** R4, R12: the store answers as of one moment; the answer comes in whenever it does. */
function flightSteps(model: Model, here: State, index: number, at: number, step: Step): void {
  const { design, world } = model
  const flight = of(here, index).flights[at] as Flight
  const name = `V${index + 1}`
  if (flight.phase === SENT && here.away === 0) {
    answerStep(model, here, index, at, false, step)
    if (design.answeredBy === 'anyone') answerStep(model, here, index, at, true, step)
  }
  if (flight.phase === ANSWERED) {
    step(
      () =>
        `${name} takes the answer` +
        (slotsOf(world) === 1 && world.flights === 1 ? '' : ` to ${flight.asked === 0 ? 'its poll' : slotName(world, flight.asked - 1)}`),
      (next) => arrive(model, next, index, at),
    )
  }
  if (world.fallback && design.joinsFlight && flight.phase !== NOT_SENT && flight.asked !== 0) {
    step(
      () => `a request begins at ${name}, and waits for the read under way`,
      (next) => {
        ;(of(next, index).flights[at] as Flight).waiting = 1 | here.answered
      },
    )
  }
}

function answerStep({ world }: Model, here: State, index: number, at: number, standby: boolean, step: Step): void {
  const tables = standby ? here.copy : here.store
  const { session, lease } = of(here, index).flights[at] as Flight
  const row = Math.min(REVOKED, tables.rows[rowOf(world, index, session)] ?? NONE)
  const shown = row === ACTIVE ? '' : row === NONE ? ', and knows of no such member' : ', and says that the member is revoked'
  step(
    () => `the ${standby ? 'standby' : 'store'} answers V${index + 1} as of ${numbered(here, tables.tip)}${shown}`,
    (next) => {
      const flight = of(next, index).flights[at] as Flight
      flight.phase = ANSWERED
      flight.tip = tables.tip
      flight.row = row
      flight.oldest = tables.oldest
      if (tables.lease !== LONGER) flight.lease = Math.max(0, lease - (world.longerLease - world.lease))
    },
  )
}

/** What an instance does with an answer, in one turn. */
function arrive(model: Model, state: State, index: number, at: number): void {
  const { design, world } = model
  const verifier = of(state, index)
  const flight = verifier.flights[at] as Flight
  verifier.flights[at] = emptyFlight()
  const { sentAt, tip } = flight
  serveWaiting(state, flight, world.digests)
  if (verifier.phase !== IN && verifier.phase !== LEAVING) return
  // R7: a read from before starting over has nothing to say.
  if (flight.session !== verifier.session) return
  // R5: after its deadline an answer may be of a server that is no more, and of changes that it took along.
  if (flight.lease === 0 && design.outlivedAnswers === 'dropped') return
  const isUnknown = flight.row === NONE && !isStranger(model, index) && design.leaseFor !== 'anyone'
  if (isUnknown || isOfAnotherFeed(model, state, verifier, flight)) {
    startOver(model, state, verifier)
    return
  }
  // R6: what cannot be held against what was seen says nothing.
  if (verifier.position !== 0 && seqOf(state, tip) < verifier.floor) return
  if (verifier.position !== 0 && sentAt === 0 && !has(state, verifier.position, tip)) return
  // R17: a revoked member joins anew, and goes on from where it is.
  if (flight.row === REVOKED && design.leaseFor === 'active') {
    joinAnew(verifier)
    return
  }
  applyAnswer(model, state, verifier, flight)
}

function applyAnswer(model: Model, state: State, verifier: Verifier, flight: Flight): void {
  const { design, world } = model
  const { asked, tip } = flight

  const reached = learn(model, state, verifier, flight)
  // R10: `floor` starts at the first answer.
  if (verifier.position === 0 && design.floorStarts === 'first answer') verifier.floor = Math.max(verifier.floor, seqOf(state, reached))
  if (seqOf(state, reached) > seqOf(state, verifier.position) || verifier.position === 0) verifier.position = reached
  // R5: the lease counts from before the read was sent, and is for who has all changes.
  const lease = design.leaseFrom === 'sent' ? flight.lease : longestLive(world)
  if (reached === tip || design.partGrants) verifier.lease = Math.max(verifier.lease, lease)
  if (asked !== 0) take(model, state, verifier, asked - 1, tip)
  if (world.rowAcks) verifier.acking = seqOf(state, verifier.position)
}

/** R6, R7: whether the answer shows that the feed is not the one that was followed so far, or has a hole. */
function isOfAnotherFeed({ design }: Model, state: State, { position }: Verifier, { sentAt, tip, oldest }: Flight): boolean {
  if (position === 0) return false
  const compared = design.comparedWith === 'sent' ? sentAt : position
  if (compared !== 0) {
    if (seqOf(state, compared) < oldest && design.pruningNoticed) return true
    if (seqOf(state, tip) < seqOf(state, compared)) return true
    if (design.ownTagCompared && !has(state, tip, compared)) return true
  }
  // Of two places in one history, one is in the history of the other.
  return design.contradictionNoticed && seqOf(state, tip) <= seqOf(state, position) && !has(state, position, tip)
    ? true
    : design.contradictionNoticed && sentAt !== 0 && seqOf(state, tip) > seqOf(state, position) && !has(state, tip, position)
}

/** R6, R9: handles the changes of an answer, and gives the place that they reach. */
function learn({ design, world }: Model, state: State, verifier: Verifier, { sentAt, tip, oldest }: Flight): Place {
  if (sentAt === 0) return tip
  const changes: Place[] = []
  const from = seqOf(state, sentAt)
  for (let at = tip; seqOf(state, at) > from; at = state.before[at] as Place) changes.unshift(at)
  // What was pruned is not in the answer; who does not notice takes it for whole.
  const there = design.pruningNoticed ? changes : changes.filter((change) => seqOf(state, change) >= oldest)
  const page = there.slice(0, world.page)
  for (const change of page) {
    for (let slot = state.digest[change] as number; slot < slotsOf(world); slot += world.digests) {
      drop(state, verifier, slot, seqOf(state, change))
    }
  }
  return page.length === there.length ? tip : (page.at(-1) as Place)
}

function drop(state: State, verifier: Verifier, slot: number, seq: number, remember = true): void {
  if (remember) verifier.known[slot] = Math.max(verifier.known[slot] as number, seq)
  if (seqOf(state, verifier.facts[slot] as Place) < seq) verifier.facts[slot] = 0
}

/** R10: the rule of positions, for an answer of the store. */
function take({ design }: Model, state: State, verifier: Verifier, slot: number, place: Place): void {
  const seq = seqOf(state, place)
  if (seq < verifier.floor || (verifier.known[slot] as number) > seq) return
  if (design.contradictionNoticed && !has(state, verifier.position, place)) return
  const fact = verifier.facts[slot] as Place
  if (fact === 0 || seqOf(state, fact) < seq) verifier.facts[slot] = place
}

/** R7: forgets all, and joins anew. */
function startOver({ world }: Model, state: State, verifier: Verifier): void {
  const disturbed = world.setback !== 'none' || world.pruning || world.suspicion
  if (!disturbed) state.broken = BROKE_CALM
  verifier.position = 0
  verifier.floor = 0
  verifier.lease = 0
  verifier.known.fill(0)
  verifier.facts.fill(0)
  joinAnew(verifier)
}

function joinAnew(verifier: Verifier): void {
  verifier.phase = OUT
  verifier.session++
  verifier.acking = 0
}

/** R12: a request without a lease has the answer of its own read. What it must know is what had been answered when it began. */
function serveWaiting(state: State, { waiting, tip, asked }: Flight, digests: number): void {
  if (waiting === 0) return
  for (let change = 2; change <= state.places; change++) {
    const isOf = state.digest[change] === (asked - 1) % digests
    if ((waiting & (1 << change)) !== 0 && isOf && has(state, state.store.tip, change) && !has(state, tip, change)) state.broken = BROKE_P3
  }
}

/** R9, R10, R16, R19: what else comes to an instance: recalls, relayed entries; and what it does about its memory and its row. */
function hearingSteps(model: Model, here: State, index: number, step: Step): void {
  const { world } = model
  const verifier = of(here, index)
  const name = `V${index + 1}`
  const recallable = world.recalls && index < world.verifiers - world.feedMembers && !isStranger(model, index)
  for (let change = 2; recallable && change <= here.places; change++) {
    const tip = here.recalled[change] as Place
    if (tip === 0) continue
    step(
      () => `${name} hears the recall of ${numbered(here, change)}, and acks`,
      (next) => recall(model, next, index, change, tip),
    )
  }
  if (world.relays) relaySteps(model, here, index, step)
  if (world.forgetting && verifier.known.some((seq) => seq > 0)) {
    step(
      () => `${name} drops what it remembers of changes`,
      (next) => {
        if (model.design.floorRises) of(next, index).floor = Math.max(verifier.floor, ...verifier.known)
        of(next, index).known.fill(0)
      },
    )
  }
  const row = rowOf(world, index, verifier.session)
  if (verifier.acking > 0 && here.away === 0) {
    step(
      () => `the row of ${name} says that it knows ${verifier.acking}`,
      (next) => {
        of(next, index).acking = 0
        if (next.store.rows[row] !== NONE) next.store.acked[row] = Math.max(next.store.acked[row] as number, verifier.acking)
      },
    )
  }
}

/** R19: drops what the recall is about, remembers it, and then acks. */
function recall({ design, world }: Model, state: State, index: number, change: Place, tip: Place): void {
  const verifier = of(state, index)
  const reached = design.recallReaches === 'all' ? slotsOf(world) : world.digests
  for (let slot = state.digest[change] as number; slot < reached; slot += world.digests) {
    drop(state, verifier, slot, seqOf(state, tip), design.recallRemembered)
  }
  if (design.recallMovesPosition && verifier.position !== 0 && has(state, tip, verifier.position)) verifier.position = tip
  state.acks[change] = (state.acks[change] as number) | (1 << rowOf(world, index, verifier.session))
}

/** R10: a cache may hold any answer that the store ever gave to anybody, or none. So what a read of it finds is any of them. */
function relaySteps({ design, world }: Model, here: State, index: number, step: Step): void {
  const { position, floor, known, facts } = of(here, index)
  if (position === 0) return
  const own = seqOf(here, position)
  for (let place = 1; place <= here.places; place++) {
    const seq = seqOf(here, place)
    const isSeen =
      has(here, position, place) || (design.relayed === 'any tag' && seq <= own) || (design.relayed === 'ahead too' && seq > own)
    if (!isSeen || seq < floor) continue
    for (let slot = 0; slot < slotsOf(world); slot++) {
      const fact = facts[slot] as Place
      if (seq < (known[slot] as number) || (fact !== 0 && seqOf(here, fact) >= seq)) continue
      step(
        () => `V${index + 1} finds an entry about ${slotName(world, slot)} in the cache, of ${numbered(here, place)}`,
        (next) => {
          of(next, index).facts[slot] = place
        },
      )
    }
  }
}

/** R11, R12: what requests do that a promise is about beyond being accepted by a fact of the table. */
function requestSteps({ world }: Model, here: State, index: number, step: Step): void {
  const { phase, lease, facts, heldAt, flights, position, session } = of(here, index)
  const name = `V${index + 1}`
  if (world.held) {
    for (const [slot, fact] of facts.entries()) {
      if (fact === 0 || lease === 0 || heldAt !== 0) continue
      step(
        () => `a request at ${name} is verified by ${slotName(world, slot)}, as of ${numbered(here, fact)}, and pauses`,
        (next) => void Object.assign(of(next, index), { heldSlot: slot, heldAt: fact }),
      )
    }
    if (heldAt !== 0)
      step(
        () => `the request at ${name} has gone`,
        (next) => void Object.assign(of(next, index), { heldSlot: 0, heldAt: 0 }),
      )
  }
  const at = flights.findIndex((flight) => flight.phase === NOT_SENT)
  if (!world.fallback || lease > 0 || at === -1 || phase === GONE || phase === LEAVING) return
  for (let slot = 0; slot < slotsOf(world); slot++) {
    step(
      () => `a request begins at ${name}, and asks about ${slotName(world, slot)} itself`,
      (next) => {
        of(next, index).flights[at] = {
          ...emptyFlight(),
          phase: SENT,
          asked: slot + 1,
          sentAt: position,
          // Nobody's, where it has not joined: the answer is for the request alone.
          session: phase === IN ? session : NOBODY,
          lease: longestLive(world),
          waiting: 1 | here.answered,
        }
      },
    )
  }
}

/** Whether an instance does not know the protocol, and yet serves. */
function isStranger({ design, world }: Model, index: number): boolean {
  return design.strangers === 'served' && index === world.verifiers - 1
}

/** R11: what is broken while this state lasts. */
export function brokenBy({ design, world }: Model, state: State): string | undefined {
  if (state.broken === BROKE_P3) return 'P3'
  if (state.broken === BROKE_CALM) return 'starts over only where it must'
  if (state.broken !== HOLDS) return 'unknown'
  for (const { phase, lease, facts, heldSlot, heldAt } of state.verifiers) {
    if (lease === 0 || phase === GONE) continue
    for (let slot = 0; slot < facts.length; slot++) {
      if (isOutdated(state, slot % world.digests, facts[slot] as Place)) return 'P3'
    }
    const isLive = heldAt !== 0 && (design.liveLooksAt === 'clocks' || facts[heldSlot] === heldAt)
    if (isLive && isOutdated(state, heldSlot % world.digests, heldAt)) return 'P3 to the instant'
  }
  return undefined
}

/** Whether a change of this digest has been answered that the answer at `place` did not see. A change that the store has lost counts no more. */
function isOutdated(state: State, digest: number, place: Place): boolean {
  if (place === 0) return false
  for (let change = 2; change <= state.places; change++) {
    if ((state.answered & (1 << change)) === 0 || state.digest[change] !== digest) continue
    if (has(state, state.store.tip, change) && !has(state, place, change)) return true
  }
  return false
}

const LETTERS = 'abcdefgh'

function slotName(world: Model['world'], slot: number): string {
  const digest = `digest ${LETTERS[slot % world.digests]}`
  return world.tables === 1 ? digest : `${digest} in table ${Math.floor(slot / world.digests) + 1}`
}

/** A place by its number, with a letter where it is not the first of that number: `2`, `2b`. */
export function numbered(state: State, place: Place): string {
  const seq = seqOf(state, place)
  let others = 0
  for (let other = 1; other < place; other++) if (seqOf(state, other) === seq) others++
  return `${seq}${others === 0 ? '' : LETTERS[others]}`
}
