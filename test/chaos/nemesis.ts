import { setTimeout } from 'node:timers/promises'
import { COMMIT, type Direction, type Fate, type FaultProxy } from '../support/proxy.js'
import { type ClockSet, type Fault, LONGEST_LEASE_MS, type Restore, type Unlisting } from './check.js'
import { losses } from './losses.js'
import { messageFaults } from './message-faults.js'
import type { OwnDatabase } from './own-database.js'
import type { Random } from './random.js'
import type { RedisPair } from './redis-pair.js'
import type { Trap } from './traps.js'

/** A server process and its lines. */
export interface Victim {
  readonly postgres: FaultProxy
  readonly redis: FaultProxy
  /** What its clients come through. */
  readonly clients: FaultProxy
  signal(signal: NodeJS.Signals): void
  kill(): Promise<void>
  start(): Promise<void>
  isUp(): boolean
  /** Lets it end by itself until it is started again. */
  mayEnd(): void
  /** Tells it something about itself; undefined where it does not answer. */
  steer(what: 'wall-clock' | 'trap' | 'messages' | 'renew', how: object): Promise<unknown>
  /** The lease that it asks for from its next start on. */
  setLease(ms: number): void
  /** Whether it asks others from its next start on, and says when it is asked. */
  setRecall(on: boolean): void
}

export interface NemesisParts {
  readonly victims: readonly Victim[]
  readonly redis: RedisPair
  readonly database: Omit<OwnDatabase, 'pool' | 'close'>
  /** One for each lane, so that what one lane takes its time for does not change what another does. */
  readonly random: (lane: number) => Random
  readonly leaseMs: number
  /** For how long faults are going to come. */
  readonly lastsMs: number
  readonly now: () => number
  readonly record: (op: Fault | ClockSet | Restore | Unlisting) => void
  readonly log: (line: string) => void
}

interface Nemesis {
  /** Undoes what is being done, and resolves when all is whole again. */
  stop(): Promise<void>
}

/** A fault that has been made: what was hit, how long it should last, how it ends, and, where it lies in wait, what has walked into it. */
interface Made {
  readonly target: string
  readonly holdMs: number
  readonly undo: () => unknown
  readonly met?: () => number
}

/** Every kind of fault, and how it is made. */
export const kinds = {
  partition: 'a line between a server and PostgreSQL, Redis or the clients, or all of one sort, is cut and refuses connections',
  delay: 'bytes on a line come 10 to 500 ms late, in one direction',
  'black hole': 'bytes on a line vanish in one direction, while the connection stays up',
  reset: 'every connection of a line ends in a RST',
  truncate: 'a line lets 1 to 400 more bytes through in one direction, then ends',
  'commit: cut-answer': 'PostgreSQL gets COMMIT, and the connection ends before its answer',
  'commit: lose-answer': 'PostgreSQL gets COMMIT, and its answer vanishes while the connection stays up',
  'commit: cut-request': 'the connection ends before PostgreSQL gets COMMIT',
  'commit: waits':
    'every COMMIT waits for a standby that is away, for 2 to 20 s, and becomes visible then; the store gives it up after 2 s',
  'database restored':
    'our tables are copied, and the copy takes their place some leases later; Redis is left alone, emptied or restored too',
  'standby promoted': 'a standby is cut off, and takes over some leases later; once in a run',
  'instances unlisted': 'the rows of all instances, or of one, are deleted by hand',
  'store clock set': 'the clock of PostgreSQL goes 0.1 to 60 s forward or back while it serves',
  'sessions ended': 'pg_terminate_backend for every session of every server',
  'process stopped': 'SIGSTOP to a server for longer than a lease, then SIGCONT',
  'process killed': 'SIGKILL to a server, and a new one',
  'process killed at a step': 'SIGKILL to a server as it reaches a step of a change, or of being asked about one',
  'process stopped at a step': 'SIGSTOP to a server there, for longer than a lease, then SIGCONT',
  'process slow at a step': 'such a step takes up to four leases, while another server is killed and starts anew',
  'instances come and go': 'a server makes another instance every 50 to 250 ms, and closes the one before',
  'process restarted without recall': 'SIGKILL to a server, and a new one that only reads, for some leases',
  'process restarted with another lease': 'SIGKILL to a server, and a new one with 0.4, 1, 2 or 4 times the lease',
  'lease raised and lowered':
    'a server starts anew with four times the lease, and again with 0.4 times as soon as others have taken the longer one',
  'wall clock set': 'the wall clock of a server goes 0.1 to 5 s forward or back',
  'Redis flushed': 'FLUSHALL',
  'Redis restarted from an old snapshot': 'SAVE, then some leases later SIGKILL and a start from that RDB file',
  'lagging replica promoted': 'replication vanishes for some leases, then the replica is the primary and the primary is killed',
  'Redis out of memory': 'maxmemory 1 with noeviction: every write fails',
  'Redis goes back': 'all entries are written over with what they were, again and again',
  'messages lost': 'what instances say to each other does not arrive, half of it or all, sent or heard by one server or all',
  'messages doubled': 'it arrives twice, up to four leases late',
  'messages late': 'it arrives up to four leases late, in any order',
  'messages replayed': 'each message brings earlier ones along, of before a restart or a loss of data too, also to other addresses',
  'messages forged': 'each message comes changed too',
  'Redis stopped': 'SIGSTOP to Redis, then SIGCONT',
  'Redis clock set': 'TIME, as servers hear it, goes up to 5 s forward or back',
} as const

type KindName = keyof typeof kinds
export type Kind = readonly [name: KindName, make: (chance: Random) => Made | Promise<Made>]

/** For how long the same lanes break things, and how many there are. */
const TURN_MS = 4_000
const LANES = 7

/** Of a change, and of the instances that are asked whether they know of it. */
const STEPS = [
  ...['store.join', 'store.members', 'store.revokeMembers', 'store.removeMembers', 'store.acknowledge', 'store.leave'],
  ...['store.transaction', 'store.settle', 'store.read', 'store.markFirstUse', 'channel.send', 'channel.hear', 'cache.bury'],
].flatMap((call) => [`before ${call}`, `after ${call}`] as const)
type Step = (typeof STEPS)[number]

/**
 * Breaks things, one on each of seven lanes at a time: the lines, the processes, Redis, its clock, messages, COMMIT and the data, and the clock of PostgreSQL. Each lane is off half of the time, and goes through all its kinds in
 * an order of chance before it begins anew.
 */
export function startNemesis({ victims, redis, database, random, leaseMs, lastsMs, now, record, log }: NemesisParts): Nemesis {
  /** How far the clock of Redis is set at most, and until when. */
  const furthestMs = Math.min(5_000, lastsMs / 10)
  const redisClockUntil = 0.4 * lastsMs
  const began = now()
  const end = new AbortController()
  const { signal } = end
  // All lanes at once leave little of what they break: who cannot reach Redis is recalled by nobody. So each has its times.
  const times = random(7)
  const turns = Array.from({ length: Math.ceil(lastsMs / TURN_MS) }, () => Array.from({ length: LANES }, () => times.chance(0.5)))
  // Redis is left alone for longer: after trouble, servers do without it for seconds, and a Redis that nobody asks does no harm.
  const lanes = [
    goThrough(0, lines(), 2 * leaseMs),
    goThrough(1, processes(), 2 * leaseMs),
    goThrough(2, redisItself(), 6 * leaseMs),
    goThrough(3, redisClock(), 2 * leaseMs, { until: redisClockUntil }),
    // Between them there has to be time for rotations.
    goThrough(6, messageFaults({ victims, leaseMs }), 2 * leaseMs),
    goThrough(4, [...commits(), ...losses({ database, victims, redis, leaseMs, now, record })], Math.min(64 * leaseMs, lastsMs / 4)),
    // Late: once it was set back, servers take nothing from Redis for a minute, which would hide what Redis does to them. And when nothing is left of a
    // wrong clock of Redis: against both at once, a process that has just started cannot be safe (see SECURITY.md).
    goThrough(5, storeClock(), 8 * leaseMs, { from: redisClockUntil + furthestMs + LONGEST_LEASE_MS }),
  ]
  // A fault that cannot be made is told of at the end.
  for (const lane of lanes) lane.catch(() => {})

  return {
    async stop() {
      end.abort()
      await Promise.all(lanes)
    },
  }

  async function goThrough(
    lane: number,
    sorts: readonly Kind[],
    longestGapMs: number,
    { from = 0, until = Number.POSITIVE_INFINITY } = {},
  ): Promise<void> {
    const chance = random(lane)
    const left = (): number => until - (now() - began)
    const isOff = (): boolean => turns[Math.floor((now() - began) / TURN_MS)]?.[lane] === false
    await pause(from)
    for (;;) {
      for (const [kind, make] of chance.shuffled(sorts)) {
        await pause(chance.between(50, longestGapMs))
        while (isOff() && !signal.aborted) await pause(50)
        if (signal.aborted || left() <= 0) return
        const start = now()
        const { target, holdMs, undo, met } = await make(chance)
        await pause(Math.min(holdMs, left()))
        await undo()
        const span = `${Math.round(start)} to ${Math.round(now())} ms`
        // What nothing ran into is no fault.
        if (met?.() === 0) {
          log(`${span}: ${kind}, ${target}, met nothing`)
          continue
        }
        record({ f: 'fault', kind, target, start, end: now() })
        log(`${span}: ${kind}, ${target}`)
      }
    }
  }

  /** Shorter when it is time to stop. */
  async function pause(ms: number): Promise<void> {
    await setTimeout(ms, undefined, { signal }).catch(() => {})
  }

  function lines(): readonly Kind[] {
    /** One line, or all of one sort. */
    const some = (chance: Random, sorts: readonly ('postgres' | 'redis' | 'clients')[] = ['postgres', 'postgres', 'redis', 'clients']) => {
      const sort = chance.pick(sorts)
      const all = chance.chance(0.25)
      const one = Math.floor(chance.between(0, victims.length))
      const proxies = victims.filter((_, index) => all || index === one).map((victim) => victim[sort])
      return { proxies, target: `${all ? 'all servers' : `server ${one}`} and ${sort}` }
    }
    const on = (proxies: readonly FaultProxy[], target: string, holdMs: number, act: (proxy: FaultProxy) => void): Made => {
      const total = (): number => proxies.reduce((sum, proxy) => sum + proxy.met(), 0)
      const before = total()
      for (const proxy of proxies) act(proxy)
      return {
        target,
        holdMs,
        met: () => total() - before,
        undo() {
          for (const proxy of proxies) proxy.heal()
        },
      }
    }
    const directions: readonly Direction[] = ['up', 'down']
    const commits = ['cut-answer', 'lose-answer', 'cut-request'] as const satisfies readonly Fate[]
    return [
      [
        'partition',
        (chance) => {
          const { proxies, target } = some(chance)
          return on(proxies, target, chance.between(leaseMs, 6 * leaseMs), (proxy) => proxy.refuse())
        },
      ],
      [
        'delay',
        (chance) => {
          const { proxies, target } = some(chance)
          const direction = chance.pick(directions)
          const ms = chance.between(10, 2 * leaseMs)
          const holdMs = chance.between(leaseMs, 6 * leaseMs)
          return on(proxies, `${target}, ${direction}, ${Math.round(ms)} ms`, holdMs, (proxy) =>
            proxy.trouble(direction, { kind: 'delay', ms }),
          )
        },
      ],
      [
        'black hole',
        (chance) => {
          const { proxies, target } = some(chance)
          const direction = chance.pick(directions)
          const holdMs = chance.between(leaseMs, 6 * leaseMs)
          return on(proxies, `${target}, ${direction}`, holdMs, (proxy) => proxy.trouble(direction, { kind: 'black-hole' }))
        },
      ],
      [
        'reset',
        (chance) => {
          const { proxies, target } = some(chance)
          return on(proxies, target, 0, (proxy) => proxy.reset())
        },
      ],
      [
        'truncate',
        (chance) => {
          const { proxies, target } = some(chance)
          const direction = chance.pick(directions)
          const bytes = Math.floor(chance.between(1, 400))
          const holdMs = chance.between(100, 2 * leaseMs)
          const act = (proxy: FaultProxy): void => proxy.trouble(direction, { kind: 'truncate', bytes })
          return on(proxies, `${target}, ${direction}, after ${bytes} bytes`, holdMs, act)
        },
      ],
      ...commits.map(
        (fate): Kind => [
          `commit: ${fate}`,
          (chance) => {
            const { proxies, target } = some(chance, ['postgres'])
            return on(proxies, target, chance.between(leaseMs, 4 * leaseMs), (proxy) => proxy.strike({ at: COMMIT, fate }))
          },
        ],
      ),
    ]
  }

  function commits(): readonly Kind[] {
    return [
      [
        'commit: waits',
        async (chance) => {
          await database.awaitStandby(true)
          // Mostly short, for the sake of what else there is to see.
          const holdMs = 2_000 + Math.min(18_000, lastsMs / 4) * chance.between(0, 1) ** 4
          return { target: 'PostgreSQL', holdMs, undo: () => database.awaitStandby(false) }
        },
      ],
    ]
  }

  function storeClock(): readonly Kind[] {
    const set = async (byMs: number): Promise<void> => {
      const start = now()
      await database.setClock(byMs)
      record({ f: 'clock', byMs, start, end: now() })
    }
    return [
      [
        'store clock set',
        async (chance) => {
          // As often by less than two seconds as by more.
          const ms = Math.round(100 * 600 ** chance.between(0, 1)) * chance.pick([1, -1])
          await set(ms)
          return { target: `PostgreSQL, ${ms} ms`, holdMs: chance.between(leaseMs, 12 * leaseMs), undo: () => set(0) }
        },
      ],
    ]
  }

  function processes(): readonly Kind[] {
    const one = (chance: Random): { victim: Victim; target: string } => {
      const index = Math.floor(chance.between(0, victims.length))
      return { victim: victims[index] as Victim, target: `server ${index}` }
    }
    return [
      [
        'sessions ended',
        async () => {
          const sessions = await database.endSessions()
          return { target: 'PostgreSQL', holdMs: 0, undo: () => {}, met: () => sessions }
        },
      ],
      [
        'process stopped',
        (chance) => {
          const { victim, target } = one(chance)
          victim.signal('SIGSTOP')
          // Longer than the longest lease that a server is ever started with.
          return { target, holdMs: chance.between(1.1 * LONGEST_LEASE_MS, 2 * LONGEST_LEASE_MS), undo: () => victim.signal('SIGCONT') }
        },
      ],
      [
        'process killed',
        async (chance) => {
          const { victim, target } = one(chance)
          await victim.kill()
          return { target, holdMs: chance.between(0, 2 * leaseMs), undo: () => victim.start() }
        },
      ],
      [
        'process restarted with another lease',
        async (chance) => {
          const { victim, target } = one(chance)
          const ms = Math.round(leaseMs * chance.pick([0.4, 1, 2, LONGEST_LEASE_MS / leaseMs]))
          await victim.kill()
          victim.setLease(ms)
          return { target: `${target}, ${ms} ms`, holdMs: 0, undo: () => victim.start() }
        },
      ],
      [
        'lease raised and lowered',
        async (chance) => {
          const { victim, target } = one(chance)
          const restart = async (ms: number): Promise<void> => {
            await victim.kill()
            victim.setLease(ms)
            await victim.start()
          }
          await restart(LONGEST_LEASE_MS)
          const ms = Math.round(0.4 * leaseMs)
          return {
            target: `${target}, ${LONGEST_LEASE_MS} then ${ms} ms`,
            holdMs: chance.between(1, 3) * LONGEST_LEASE_MS,
            undo: () => restart(ms),
          }
        },
      ],
      [
        'wall clock set',
        async (chance) => {
          const { victim, target } = one(chance)
          const ms = Math.round(chance.between(100, 5_000)) * chance.pick([1, -1])
          await victim.steer('wall-clock', { ms })
          const undo = (): Promise<unknown> => victim.steer('wall-clock', { ms: 0 })
          return { target: `${target}, ${ms} ms`, holdMs: chance.between(leaseMs, 6 * leaseMs), undo }
        },
      ],
      [
        'process killed at a step',
        async (chance) => {
          const { victim, target } = one(chance)
          const step = chance.pick(STEPS)
          victim.mayEnd()
          await trap(victim, step, 'kill')
          let met = 0
          return {
            target: `${target}, ${step}`,
            holdMs: chance.between(4 * leaseMs, 12 * leaseMs),
            async undo() {
              met = victim.isUp() ? 0 : 1
              await victim.kill()
              await victim.start()
            },
            met: () => met,
          }
        },
      ],
      [
        'process stopped at a step',
        async (chance) => {
          const { victim, target } = one(chance)
          const step = chance.pick(STEPS)
          const before = await trap(victim, step, 'stop')
          let met = 0
          return {
            target: `${target}, ${step}`,
            holdMs: chance.between(2 * LONGEST_LEASE_MS, 4 * LONGEST_LEASE_MS),
            async undo() {
              victim.signal('SIGCONT')
              met = (await trap(victim)) - before
            },
            met: () => met,
          }
        },
      ],
      [
        'process slow at a step',
        async (chance) => {
          const { victim, target } = one(chance)
          const other = victims[(victims.indexOf(victim) + 1) % victims.length] as Victim
          const step = chance.pick(STEPS)
          const before = await trap(victim, step, 'wait', chance.between(leaseMs, 4 * leaseMs))
          await other.kill()
          await other.start()
          let met = 0
          return {
            target: `${target}, ${step}`,
            holdMs: chance.between(2 * leaseMs, 8 * leaseMs),
            async undo() {
              met = (await trap(victim)) - before
            },
            met: () => met,
          }
        },
      ],
      [
        'instances come and go',
        async (chance) => {
          const { victim, target } = one(chance)
          let ended = false
          const going = (async () => {
            while (!ended) {
              await victim.steer('renew', {})
              await setTimeout(chance.between(50, 250))
            }
          })()
          const undo = async (): Promise<void> => {
            ended = true
            await going
          }
          return { target, holdMs: chance.between(4 * leaseMs, 12 * leaseMs), undo }
        },
      ],
      [
        'process restarted without recall',
        async (chance) => {
          const { victim, target } = one(chance)
          const restart = async (recall: boolean): Promise<void> => {
            await victim.kill()
            if (recall) await database.unlistReaders()
            victim.setRecall(recall)
            await victim.start()
          }
          await restart(false)
          return { target, holdMs: chance.between(4 * leaseMs, 12 * leaseMs), undo: () => restart(true) }
        },
      ],
    ]
  }

  /** Has something happen when a server reaches a step, or nothing; resolves with how often something has so far. */
  async function trap(victim: Victim, step?: Step, what: Trap = 'wait', ms = 0): Promise<number> {
    return Number((await victim.steer('trap', step === undefined ? {} : { trap: { step, what, ms } })) ?? 0)
  }

  function redisItself(): readonly Kind[] {
    const point = (port: number): void => {
      for (const victim of victims) victim.redis.redirect(port)
    }
    return [
      [
        'Redis flushed',
        async () => {
          await redis.command('FLUSHALL')
          return { target: 'Redis', holdMs: 0, undo: () => {} }
        },
      ],
      [
        'Redis restarted from an old snapshot',
        async (chance) => {
          await redis.save()
          const downMs = chance.between(0, leaseMs)
          return { target: 'Redis', holdMs: chance.between(leaseMs / 2, 4 * leaseMs), undo: () => redis.restart(downMs) }
        },
      ],
      [
        'lagging replica promoted',
        (chance) => {
          redis.lag()
          return { target: 'Redis', holdMs: chance.between(leaseMs / 2, 4 * leaseMs), undo: async () => point(await redis.promote()) }
        },
      ],
      [
        'Redis goes back',
        async (chance) => {
          const back = await redis.remember()
          let ended = false
          const going = (async () => {
            for (; !ended; await setTimeout(chance.between(5, 50))) await back().catch(() => {})
          })()
          const undo = async (): Promise<void> => {
            ended = true
            await going
          }
          return { target: 'Redis', holdMs: chance.between(leaseMs, 8 * leaseMs), undo }
        },
      ],
      [
        'Redis out of memory',
        async (chance) => {
          await redis.command('CONFIG', 'SET', 'maxmemory-policy', 'noeviction')
          await redis.command('CONFIG', 'SET', 'maxmemory', '1')
          const undo = (): Promise<unknown> => redis.command('CONFIG', 'SET', 'maxmemory', '0')
          return { target: 'Redis', holdMs: chance.between(leaseMs, 6 * leaseMs), undo }
        },
      ],
      [
        'Redis stopped',
        (chance) => {
          redis.freeze()
          return { target: 'Redis', holdMs: chance.between(leaseMs, 4 * leaseMs), undo: () => redis.thaw() }
        },
      ],
    ]
  }

  /** A lane of its own: a wrong clock does harm only together with something else. */
  function redisClock(): readonly Kind[] {
    return [
      [
        'Redis clock set',
        (chance) => {
          const ms = Math.round(chance.between(leaseMs, furthestMs)) * chance.pick([1, -1])
          const set = (by: number): void => {
            for (const victim of victims) victim.redis.skewRedisTime(by)
          }
          const total = (): number => victims.reduce((sum, { redis }) => sum + redis.met(), 0)
          const before = total()
          set(ms)
          return {
            target: `Redis, ${ms} ms`,
            holdMs: chance.between(leaseMs, 6 * leaseMs),
            undo: () => set(0),
            met: () => total() - before,
          }
        },
      ],
    ]
  }
}
