import type { Design, World } from './design.ts'

export interface Model {
  readonly design: Design
  readonly world: World
}

/**
 * A place in the feed: 0 is none, 1 the row of the migration, each change the next one. A place stands for a number and its tag: the same number in
 * another history is another place. `State.before` says which place a change was made on, so a place stands for a whole history too.
 */
export type Place = number

/** What the store holds, and what a standby or a dump holds of it. */
export interface Tables {
  tip: Place
  /** The lowest number that the feed still has. */
  oldest: number
  lease: Setting
  /** One for each session of each verifier. */
  rows: Row[]
  acked: number[]
}

type Setting = number
export const LONGER = 0
export const LOWERED = 1
export const SETTLED = 2

/** Revoked from `REVOKED` on: the value is the mark of that revocation. */
type Row = number
export const NONE = 0
export const ACTIVE = 1
export const REVOKED = 2
export const MARKS = 2

export interface Rotator {
  phase: number
  change: Place
  /** Ticks to wait. */
  wait: number
  /** Which rows are waited for, a bit each. */
  listed: number
  /** The tip when the members were read; 0 before. */
  read: Place
  readServer: number
  knownServer: number
  /** Ticks since that server was first seen. */
  knownFor: number
  /** One more than the ticks since a row was known as revoked; 0 where it is not known. */
  revokedFor: number[]
  revokedMark: number[]
}
export const IDLE = 0
export const BEGUN = 1
export const COMMITTING = 2
export const WAITING = 3

export interface Verifier {
  phase: number
  session: number
  position: Place
  floor: number
  /** The highest number of a change that is known, for each slot: a digest in the table of one of those who share the member. */
  known: number[]
  /** The place of the answer that a fact is from; 0 where there is no fact. */
  facts: Place[]
  /** Ticks that the lease on the feed is live yet, by a slow clock. */
  lease: number
  /** The slot, and the place of the fact, of a verdict that a request holds over a pause. */
  heldSlot: number
  heldAt: Place
  /** A number on its way to the member's row. */
  acking: number
  /** What the statement that registers saw, and the lease from before it. */
  joinedAt: Place
  joinLease: number
  flights: Flight[]
}
export const OUT = 0
export const JOINING = 1
export const IN = 2
export const LEAVING = 3
export const GONE = 4

export interface Flight {
  phase: number
  /** One more than the slot that is asked for; 0 is a poll. */
  asked: number
  sentAt: Place
  session: number
  /** What the lease would have left, by a slow clock, if this read granted one. */
  lease: number
  /** The answer. */
  tip: Place
  row: Row
  /** The lowest number that the feed had. */
  oldest: number
  /** What had been answered when the request that waits for this read, and has no lease, began: a bit for each change, and the lowest for the request. */
  waiting: number
}
export const NOT_SENT = 0
export const SENT = 1
export const ANSWERED = 2

export interface State {
  /** How many places there are. */
  places: number
  before: Place[]
  digest: number[]
  store: Tables
  /** The standby, or the dump. */
  copy: Tables
  server: number
  setbacks: number
  /** Ticks for which the store is away yet. */
  away: number
  /** Ticks until the lowering of the lease is settled. */
  lowering: number
  marks: number
  /** For each change, the tip that its recall was sent with; 0 where none was. What was sent can arrive at any time, any number of times, or never. */
  recalled: Place[]
  /** For each change, who has acked its recall: a bit for each row. */
  acks: number[]
  answered: number
  broken: number
  rotators: Rotator[]
  verifiers: Verifier[]
}

export const HOLDS = 0
export const BROKE_P3 = 1
export const BROKE_CALM = 2

export function slotsOf(world: World): number {
  return world.tables * world.digests
}

export function rowsOf(world: World): number {
  return world.verifiers * world.sessions
}

export function rowOf(world: World, verifier: number, session: number): number {
  return verifier * world.sessions + session
}

/** Ticks that the longest lease can be live, by a slow clock. */
export function longestLive(world: World): number {
  return Math.max(world.lease, world.longerLease) + world.drift
}

/** The number of a place. */
export function seqOf(state: State, place: Place): number {
  let seq = 0
  for (let at = place; at > 1; at = state.before[at] as Place) seq++
  return seq
}

/** Whether a history that ends at `place` has `other` in it. */
export function has(state: State, place: Place, other: Place): boolean {
  let at = place
  while (at > other) at = state.before[at] as Place
  return at === other && other !== 0
}

export function initialState({ design, world }: Model): State {
  const zeros = (count: number): number[] => new Array<number>(count).fill(0)
  const tables = (): Tables => ({
    tip: 1,
    oldest: 0,
    lease: world.longerLease > world.lease ? LONGER : SETTLED,
    rows: Array.from({ length: rowsOf(world) }, (_, row) => (world.joined && row % world.sessions === 0 ? ACTIVE : NONE)),
    acked: zeros(rowsOf(world)),
  })
  const stranger = (index: number): boolean => design.strangers === 'served' && index === world.verifiers - 1
  return {
    places: 1,
    before: zeros(world.changes + 2),
    digest: zeros(world.changes + 2),
    store: tables(),
    copy: tables(),
    server: 0,
    setbacks: 0,
    away: 0,
    lowering: 0,
    marks: 0,
    recalled: zeros(world.changes + 2),
    acks: zeros(world.changes + 2),
    answered: 0,
    broken: HOLDS,
    rotators: Array.from({ length: world.rotators }, () => ({
      phase: IDLE,
      change: 0,
      wait: 0,
      listed: 0,
      read: 0,
      readServer: 0,
      knownServer: 0,
      knownFor: 2 * longestWait({ design, world }),
      revokedFor: zeros(rowsOf(world)),
      revokedMark: zeros(rowsOf(world)),
    })),
    verifiers: Array.from({ length: world.verifiers }, (_, index) => ({
      phase: stranger(index) || world.joined ? IN : OUT,
      session: 0,
      position: world.joined ? 1 : 0,
      floor: 0,
      known: zeros(slotsOf(world)),
      facts: zeros(slotsOf(world)),
      lease: 0,
      heldSlot: 0,
      heldAt: 0,
      acking: 0,
      joinedAt: 0,
      joinLease: 0,
      flights: Array.from({ length: world.flights }, emptyFlight),
    })),
  }
}

export function marginIn({ design, world }: Model): number {
  return design.margin === 'none' ? 0 : world.drift
}

/** Ticks that a change waits while the longer lease is in force. */
export function longestWait({ design, world }: Model): number {
  return Math.max(world.lease, world.longerLease) + marginIn({ design, world })
}

export function emptyFlight(): Flight {
  return { phase: NOT_SENT, asked: 0, sentAt: 0, session: 0, lease: 0, tip: 0, row: NONE, oldest: 0, waiting: 0 }
}

/** A row of bytes that numbers are written to or read from, one after the other. */
export class Bytes {
  data: Uint8Array
  at = 0
  reading = false

  constructor(data: Uint8Array) {
    this.data = data
  }

  /** Writes the number, or gives the one that is there. */
  int(value: number): number {
    if (this.reading) return this.data[this.at++] as number
    this.data[this.at++] = value
    return value
  }

  ints(values: number[]): void {
    for (let index = 0; index < values.length; index++) values[index] = this.int(values[index] as number)
  }
}

/** Carries a state into bytes, or out of them: one list of the fields for both ways. What a world has no use for is left out. */
export function carry(bytes: Bytes, state: State, world: World): void {
  state.places = bytes.int(state.places)
  bytes.ints(state.before)
  if (world.digests > 1) bytes.ints(state.digest)
  carryTables(bytes, state.store, world)
  if (world.setback !== 'none') {
    carryTables(bytes, state.copy, world)
    state.server = bytes.int(state.server)
    state.setbacks = bytes.int(state.setbacks)
    state.away = bytes.int(state.away)
  }
  if (world.longerLease > world.lease) state.lowering = bytes.int(state.lowering)
  if (world.suspicion) state.marks = bytes.int(state.marks)
  bytes.ints(state.recalled)
  bytes.ints(state.acks)
  state.answered = bytes.int(state.answered)
  state.broken = bytes.int(state.broken)
  for (const rotator of state.rotators) carryRotator(bytes, rotator, world)
  for (const verifier of state.verifiers) carryVerifier(bytes, verifier, world)
}

function carryTables(bytes: Bytes, tables: Tables, world: World): void {
  tables.tip = bytes.int(tables.tip)
  if (world.pruning) tables.oldest = bytes.int(tables.oldest)
  if (world.longerLease > world.lease) tables.lease = bytes.int(tables.lease)
  bytes.ints(tables.rows)
  if (world.rowAcks) bytes.ints(tables.acked)
}

function carryRotator(bytes: Bytes, rotator: Rotator, world: World): void {
  rotator.phase = bytes.int(rotator.phase)
  rotator.change = bytes.int(rotator.change)
  rotator.wait = bytes.int(rotator.wait)
  rotator.listed = bytes.int(rotator.listed)
  rotator.read = bytes.int(rotator.read)
  if (world.setback !== 'none') {
    rotator.readServer = bytes.int(rotator.readServer)
    rotator.knownServer = bytes.int(rotator.knownServer)
    rotator.knownFor = bytes.int(rotator.knownFor)
  }
  if (world.suspicion) {
    bytes.ints(rotator.revokedFor)
    bytes.ints(rotator.revokedMark)
  }
}

function carryVerifier(bytes: Bytes, verifier: Verifier, world: World): void {
  verifier.phase = bytes.int(verifier.phase)
  verifier.session = bytes.int(verifier.session)
  verifier.position = bytes.int(verifier.position)
  verifier.floor = bytes.int(verifier.floor)
  bytes.ints(verifier.known)
  bytes.ints(verifier.facts)
  verifier.lease = bytes.int(verifier.lease)
  if (world.held) {
    verifier.heldSlot = bytes.int(verifier.heldSlot)
    verifier.heldAt = bytes.int(verifier.heldAt)
  }
  if (world.rowAcks) verifier.acking = bytes.int(verifier.acking)
  verifier.joinedAt = bytes.int(verifier.joinedAt)
  verifier.joinLease = bytes.int(verifier.joinLease)
  for (const flight of verifier.flights) {
    flight.phase = bytes.int(flight.phase)
    flight.asked = bytes.int(flight.asked)
    flight.sentAt = bytes.int(flight.sentAt)
    flight.session = bytes.int(flight.session)
    flight.lease = bytes.int(flight.lease)
    flight.tip = bytes.int(flight.tip)
    flight.row = bytes.int(flight.row)
    if (world.pruning) flight.oldest = bytes.int(flight.oldest)
    if (world.fallback) flight.waiting = bytes.int(flight.waiting)
  }
}

/** Puts what is alike into one order, so that states which differ by names alone are one: reads in flight, and rotators. */
export function inOrder(state: State): void {
  for (const { flights } of state.verifiers) {
    if (flights.length === 2 && weigh(flights[0] as Flight) > weigh(flights[1] as Flight)) flights.reverse()
  }
  const [first, second] = state.rotators
  if (second !== undefined && first !== undefined && weighRotator(first) > weighRotator(second)) state.rotators.reverse()
}

function weigh(flight: Flight): number {
  const { phase, asked, sentAt, session, lease, tip, row, oldest, waiting } = flight
  return phase + 3 * (asked + 5 * (sentAt + 8 * (session + 4 * (lease + 8 * (tip + 8 * (row + 8 * (oldest + 4 * waiting)))))))
}

function weighRotator({ phase, change, wait, listed, read, readServer, knownServer, knownFor, revokedFor, revokedMark }: Rotator): number {
  let sum = phase + 4 * (change + 8 * (wait + 8 * (listed + 64 * (read + 8 * (readServer + 2 * (knownServer + 2 * knownFor))))))
  for (let row = 0; row < revokedFor.length; row++) sum = sum * 32 + (revokedFor[row] as number) * 4 + (revokedMark[row] as number)
  return sum
}
