import { small, type World } from './design.ts'

/** A configuration that the design has to hold in, with how many states there are. Another number means that the model has changed. */
export interface Configuration {
  readonly name: string
  readonly world: World
  readonly states: number
}

function configuration(name: string, states: number, world: Partial<World>): Configuration {
  return { name, states, world: { ...small, longerLease: world.lease ?? small.lease, ...world } }
}

/** No clock drifts: fewer ticks to tell apart. */
const exact: Partial<World> = { drift: 0 }
/** Changes answer early only where nobody is to be asked. */
const silent: Partial<World> = { recalls: false }
const failOver: Partial<World> = { setback: 'fail-over' }

/** Those that a run of all tests looks at, in seconds. */
export const smallConfigurations: readonly Configuration[] = [
  configuration('two changes, acks by message and by row, a COMMIT that takes its time', 18_143, {
    changes: 2,
    slowCommit: true,
    rowAcks: true,
    ...exact,
  }),
  configuration('a longer lease, with drift, held in mid-life', 8_409, { lease: 2, changes: 1, rowAcks: true }),
  configuration('two reads in flight', 42_692, { flights: 2 }),
  configuration('two instances', 135_954, { verifiers: 2, ...exact }),
  configuration('an instance that only reads beside one that hears recalls', 83_123, { verifiers: 2, feedMembers: 1, ...exact }),
  configuration('two verifiers that share a member', 31_533, { tables: 2, changes: 2 }),
  configuration('relays, and memory that is dropped', 18_485, { changes: 2, relays: true, forgetting: true }),
  configuration('answers that hold a part of the changes', 64_420, { changes: 2, digests: 2, page: 1, ...exact }),
  configuration('a feed that is pruned', 73_048, { changes: 2, digests: 2, pruning: true, sessions: 2, ...silent, ...exact }),
  configuration('suspicion, and reaping', 84_396, { changes: 2, suspicion: true, sessions: 2, ...exact }),
  configuration('two rotators, and replays', 127_601, { changes: 2, rotators: 2, replays: true, slowCommit: true, ...exact }),
  configuration('a lease that is lowered', 143_096, { changes: 2, longerLease: 2, suspicion: true, ...silent }),
  configuration('a fail-over', 170_393, { changes: 2, sessions: 2, ...failOver, ...silent }),
  configuration('a fail-over, with two reads in flight', 154_656, {
    joined: true,
    changes: 2,
    flights: 2,
    ...failOver,
    ...silent,
    ...exact,
  }),
  configuration('a restore, with relays of before', 19_674, { changes: 2, setback: 'restore', relays: true, ...silent, ...exact }),
  configuration('requests that pause, that have no lease, and instances that close', 4_809, { held: true, fallback: true, closing: true }),
]

/** Those for a run of its own: the same with more of everything, up to some ten million states. */
export const largeConfigurations: readonly Configuration[] = [
  configuration('three changes, acks by message and by row, a COMMIT that takes its time', 243_328, {
    changes: 3,
    slowCommit: true,
    rowAcks: true,
  }),
  configuration('two reads in flight, two changes, a lease of two ticks', 818_952, { flights: 2, changes: 2, lease: 2 }),
  configuration('two instances with drifting clocks', 586_101, { verifiers: 2, lease: 1 }),
  configuration('two verifiers that share a member, two reads in flight', 163_935, { tables: 2, flights: 2 }),
  configuration('relays and dropped memory, two changes, two reads in flight', 615_014, {
    relays: true,
    forgetting: true,
    changes: 2,
    flights: 2,
  }),
  configuration('answers that hold a part of the changes, three changes', 1_564_564, { changes: 3, digests: 2, page: 1 }),
  configuration('a feed that is pruned, with recalls and relays', 414_792, {
    changes: 2,
    digests: 2,
    pruning: true,
    relays: true,
    sessions: 2,
    ...exact,
  }),
  configuration('suspicion and reaping, with drifting clocks and three changes', 2_069_945, { changes: 3, suspicion: true, sessions: 2 }),
  configuration('two rotators and replays, with suspicion', 2_388_116, { changes: 2, rotators: 2, replays: true, suspicion: true }),
  configuration('a lease that is lowered, and a fail-over', 909_768, { longerLease: 2, ...failOver }),
  configuration('a fail-over with recalls, relays and two sessions', 978_971, { changes: 2, sessions: 2, relays: true, ...failOver }),
  configuration('a fail-over with two reads in flight and recalls', 3_492_545, { joined: true, changes: 2, flights: 2, ...failOver }),
  configuration('a fail-over with two instances', 5_981_081, { verifiers: 2, ...failOver, ...exact }),
  configuration('a fail-over with two sessions, two reads in flight, recalls and relays', 8_262_463, {
    changes: 2,
    sessions: 2,
    flights: 2,
    relays: true,
    ...failOver,
    ...exact,
  }),
  configuration('a fail-over that loses revocations', 2_565_539, { changes: 3, suspicion: true, ...failOver, ...silent }),
  configuration('a fail-over with a member to wait for by row', 1_506_696, { changes: 2, rowAcks: true, ...failOver }),
  configuration('a restore with relays, recalls and two sessions', 269_955, { changes: 2, setback: 'restore', relays: true, sessions: 2 }),
  configuration('a restore with two reads in flight', 1_208_071, { joined: true, changes: 2, flights: 2, setback: 'restore' }),
  configuration('a restore with suspicion', 2_731_386, { changes: 2, setback: 'restore', suspicion: true, sessions: 2, ...exact }),
]
