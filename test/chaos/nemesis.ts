import { setTimeout } from 'node:timers/promises'
import type { Fault } from './check.js'
import type { CommitTrouble, Direction, FaultProxy } from './proxy.js'
import type { Random } from './random.js'
import type { RedisPair } from './redis-pair.js'

/** A server process and its lines. */
export interface Victim {
  readonly postgres: FaultProxy
  readonly redis: FaultProxy
  signal(signal: NodeJS.Signals): void
  kill(): Promise<void>
  start(): Promise<void>
  setWallClock(byMs: number): Promise<void>
  /** The lease that it asks for from its next start on. */
  setLease(ms: number): void
}

export interface NemesisParts {
  readonly victims: readonly Victim[]
  readonly redis: RedisPair
  /** One for each lane, so that what one lane takes its time for does not change what another does. */
  readonly random: (lane: number) => Random
  readonly leaseMs: number
  readonly now: () => number
  readonly record: (fault: Fault) => void
  readonly log: (line: string) => void
}

interface Nemesis {
  /** Undoes what is being done, and resolves when all is whole again. */
  stop(): Promise<void>
}

/** A fault that has been made: what was hit, how long it should last, and how it ends. */
interface Made {
  readonly target: string
  readonly holdMs: number
  readonly undo: () => unknown
}

type Kind = readonly [name: string, make: (chance: Random) => Made | Promise<Made>]

/**
 * Breaks things, one on each of four lanes at a time: the lines, the processes, Redis and its clock. Each lane goes through all its kinds in
 * an order of chance before it begins anew.
 */
export function startNemesis({ victims, redis, random, leaseMs, now, record, log }: NemesisParts): Nemesis {
  const end = new AbortController()
  const { signal } = end
  // Redis is left alone for longer: after trouble, servers do without it for seconds, and a Redis that nobody asks does no harm.
  const lanes = [
    goThrough(lines(), random(0), 2 * leaseMs),
    goThrough(processes(), random(1), 2 * leaseMs),
    goThrough(redisItself(), random(2), 6 * leaseMs),
    goThrough(redisClock(), random(3), 2 * leaseMs),
  ]
  // A fault that cannot be made is told of at the end.
  for (const lane of lanes) lane.catch(() => {})

  return {
    async stop() {
      end.abort()
      await Promise.all(lanes)
    },
  }

  async function goThrough(kinds: readonly Kind[], chance: Random, longestGapMs: number): Promise<void> {
    for (;;) {
      for (const [kind, make] of chance.shuffled(kinds)) {
        await pause(chance.between(50, longestGapMs))
        if (signal.aborted) return
        const start = now()
        const { target, holdMs, undo } = await make(chance)
        await pause(holdMs)
        await undo()
        record({ f: 'fault', kind, target, start, end: now() })
        log(`${Math.round(start)} to ${Math.round(now())} ms: ${kind}, ${target}`)
      }
    }
  }

  /** Shorter when it is time to stop. */
  async function pause(ms: number): Promise<void> {
    await setTimeout(ms, undefined, { signal }).catch(() => {})
  }

  function lines(): readonly Kind[] {
    /** One line, or all to one database. */
    const some = (chance: Random, databases: readonly ('postgres' | 'redis')[] = ['postgres', 'postgres', 'redis']) => {
      const database = chance.pick(databases)
      const all = chance.chance(0.25)
      const one = Math.floor(chance.between(0, victims.length))
      const proxies = victims.filter((_, index) => all || index === one).map((victim) => victim[database])
      return { proxies, target: `${all ? 'all servers' : `server ${one}`} to ${database}` }
    }
    const on = (proxies: readonly FaultProxy[], target: string, holdMs: number, act: (proxy: FaultProxy) => void): Made => {
      for (const proxy of proxies) act(proxy)
      return {
        target,
        holdMs,
        undo() {
          for (const proxy of proxies) proxy.heal()
        },
      }
    }
    const directions: readonly Direction[] = ['up', 'down']
    const commits: readonly CommitTrouble[] = ['cut-answer', 'lose-answer', 'cut-request']
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
        (commit): Kind => [
          `commit: ${commit}`,
          (chance) => {
            const { proxies, target } = some(chance, ['postgres'])
            return on(proxies, target, chance.between(leaseMs, 4 * leaseMs), (proxy) => proxy.troubleCommits(commit))
          },
        ],
      ),
    ]
  }

  function processes(): readonly Kind[] {
    const one = (chance: Random): { victim: Victim; target: string } => {
      const index = Math.floor(chance.between(0, victims.length))
      return { victim: victims[index] as Victim, target: `server ${index}` }
    }
    return [
      [
        'process stopped',
        (chance) => {
          const { victim, target } = one(chance)
          victim.signal('SIGSTOP')
          return { target, holdMs: chance.between(1.1 * leaseMs, 6 * leaseMs), undo: () => victim.signal('SIGCONT') }
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
          const ms = Math.round(leaseMs * chance.pick([0.5, 1, 2]))
          await victim.kill()
          victim.setLease(ms)
          return { target: `${target}, ${ms} ms`, holdMs: 0, undo: () => victim.start() }
        },
      ],
      [
        'wall clock set',
        async (chance) => {
          const { victim, target } = one(chance)
          const ms = Math.round(chance.between(100, 5_000)) * chance.pick([1, -1])
          await victim.setWallClock(ms)
          return { target: `${target}, ${ms} ms`, holdMs: chance.between(leaseMs, 6 * leaseMs), undo: () => victim.setWallClock(0) }
        },
      ],
    ]
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
          await redis.command('SAVE')
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
          const ms = Math.round(chance.between(leaseMs, 5_000)) * chance.pick([1, -1])
          const set = (by: number): void => {
            for (const victim of victims) victim.redis.skewRedisTime(by)
          }
          set(ms)
          return { target: `Redis, ${ms} ms`, holdMs: chance.between(leaseMs, 6 * leaseMs), undo: () => set(0) }
        },
      ],
    ]
  }
}
