import type { Restore, Unlisting } from './check.js'
import type { Kind, NemesisParts } from './nemesis.js'

/** What loses data, or the list of those that changes wait for. */
export function losses({
  database,
  victims,
  redis,
  leaseMs,
  now,
  record,
}: Pick<NemesisParts, 'database' | 'victims' | 'redis' | 'leaseMs' | 'now'> & {
  readonly record: (op: Restore | Unlisting) => void
}): readonly Kind[] {
  const timed = async (work: () => Promise<unknown>): Promise<{ start: number; end: number }> => {
    const start = now()
    await work()
    return { start, end: now() }
  }
  return [
    [
      'database restored',
      async (chance) => {
        const cache = chance.pick(['left as it is', 'emptied', 'restored too'] as const)
        const snapshot = await timed(() => database.backUp())
        // Redis may be in trouble of its own.
        const back = cache === 'restored too' ? await redis.remember().catch(() => undefined) : undefined
        return {
          target: `PostgreSQL, with Redis ${cache}`,
          holdMs: chance.between(leaseMs, 16 * leaseMs),
          async undo() {
            record({ f: 'restore', snapshot, ...(await timed(() => database.restore())) })
            if (cache !== 'left as it is') await redis.command('FLUSHALL').catch(() => {})
            await back?.().catch(() => {})
          },
        }
      },
    ],
    [
      'standby promoted',
      async (chance) => {
        if (!database.hasStandby()) return { target: 'none that is left', holdMs: 0, undo: () => {}, met: () => 0 }
        const snapshot = await timed(() => database.cutOffStandby())
        const takeOver = async (): Promise<void> => {
          await database.promote()
          for (const { postgres } of victims) postgres.redirect(Number(new URL(database.url()).port))
        }
        return {
          target: 'PostgreSQL',
          holdMs: chance.between(leaseMs, 8 * leaseMs),
          undo: async () => record({ f: 'restore', snapshot, ...(await timed(takeOver)) }),
        }
      },
    ],
    [
      'instances unlisted',
      async (chance) => {
        let unlisted = 0
        const all = chance.chance(0.5)
        const span = await timed(async () => {
          unlisted = await database.unlist(all)
        })
        record({ f: 'unlisting', ...span })
        return { target: all ? 'all instances' : 'one instance', holdMs: 0, undo: () => {}, met: () => unlisted }
      },
    ],
  ]
}
