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
  configuration('a longer lease, with drift, held in mid-life', 8_529, { lease: 2, changes: 1, rowAcks: true }),
  configuration('two reads in flight', 45_744, { flights: 2 }),
  configuration('two instances', 153_914, { verifiers: 2, ...exact }),
  configuration('an instance that only reads beside one that hears recalls', 93_983, { verifiers: 2, feedMembers: 1, ...exact }),
  configuration('two verifiers that share a member', 32_226, { tables: 2, changes: 2 }),
  configuration('relays, and memory that is dropped', 18_885, { changes: 2, relays: true, forgetting: true }),
  configuration('answers that hold a part of the changes', 68_284, { changes: 2, digests: 2, page: 1, ...exact }),
  configuration('a feed that is pruned', 78_040, { changes: 2, digests: 2, pruning: true, sessions: 2, ...silent, ...exact }),
  configuration('suspicion, and reaping', 87_282, { changes: 2, suspicion: true, sessions: 2, ...exact }),
  configuration('two rotators, and replays', 128_351, { changes: 2, rotators: 2, replays: true, slowCommit: true, ...exact }),
  configuration('a lease that is lowered', 144_276, { changes: 2, longerLease: 2, suspicion: true, ...silent }),
  configuration('a fail-over', 130_587, { changes: 2, sessions: 2, ...failOver, ...silent }),
  configuration('a restore, with relays of before', 18_291, { changes: 2, setback: 'restore', relays: true, ...silent, ...exact }),
  configuration('requests that pause, that have no lease, and instances that close', 4_971, { held: true, fallback: true, closing: true }),
]

/** Those for a run of its own: the same with more of everything, up to some ten million states. */
export const largeConfigurations: readonly Configuration[] = [
  configuration('three changes, acks by message and by row, a COMMIT that takes its time', 243_328, {
    changes: 3,
    slowCommit: true,
    rowAcks: true,
  }),
  configuration('two reads in flight, two changes, a lease of two ticks', 861_150, { flights: 2, changes: 2, lease: 2 }),
  configuration('two instances with drifting clocks', 615_421, { verifiers: 2, lease: 1 }),
  configuration('two verifiers that share a member, two reads in flight', 173_748, { tables: 2, flights: 2 }),
  configuration('relays and dropped memory, two changes, two reads in flight', 667_022, {
    relays: true,
    forgetting: true,
    changes: 2,
    flights: 2,
  }),
  configuration('answers that hold a part of the changes, three changes', 1_599_424, { changes: 3, digests: 2, page: 1 }),
  configuration('a feed that is pruned, with recalls and relays', 444_372, {
    changes: 2,
    digests: 2,
    pruning: true,
    relays: true,
    sessions: 2,
    ...exact,
  }),
  configuration('suspicion and reaping, with drifting clocks and three changes', 2_091_219, { changes: 3, suspicion: true, sessions: 2 }),
  configuration('two rotators and replays, with suspicion', 2_406_890, { changes: 2, rotators: 2, replays: true, suspicion: true }),
  configuration('a lease that is lowered, and a fail-over', 762_797, { longerLease: 2, ...failOver }),
  configuration('a fail-over with recalls, relays and two sessions', 688_679, { changes: 2, sessions: 2, relays: true, ...failOver }),
  configuration('a fail-over with two reads in flight', 2_845_552, { changes: 2, flights: 2, ...failOver, ...silent }),
  configuration('a fail-over that loses revocations', 1_934_789, { changes: 3, suspicion: true, ...failOver, ...silent }),
  configuration('a fail-over with a member to wait for by row', 1_189_398, { changes: 2, rowAcks: true, ...failOver }),
  configuration('a restore with relays, recalls and two sessions', 248_969, { changes: 2, setback: 'restore', relays: true, sessions: 2 }),
  configuration('a restore with suspicion', 2_509_595, { changes: 2, setback: 'restore', suspicion: true, sessions: 2, ...exact }),
]
