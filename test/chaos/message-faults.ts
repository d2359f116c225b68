import type { Kind, NemesisParts, Victim } from './nemesis.js'
import type { MessageFate, Sent, Trouble } from './troubled-channel.js'

/** So much of what servers have said to each other is kept, also from before they were killed or data were lost. */
const KEPT = 2_000

/** What goes wrong between instances that ask each other whether they know of a change. */
export function messageFaults({ victims, leaseMs }: Pick<NemesisParts, 'victims' | 'leaseMs'>): readonly Kind[] {
  const library: Sent[] = []
  const fates: readonly (readonly [name: string, fate: MessageFate])[] = [
    ['messages lost', 'drop'],
    ['messages doubled', 'double'],
    ['messages late', 'delay'],
    ['messages replayed', 'replay'],
    ['messages forged', 'forge'],
  ]
  return fates.map(
    ([name, fate]): Kind => [
      name as Kind[0],
      async (chance) => {
        const side = chance.pick(['send', 'hear'] as const)
        const all = chance.chance(0.5)
        const one = Math.floor(chance.between(0, victims.length))
        const hit = victims.filter((_, index) => all || index === one)
        const trouble: Trouble = { side, fate, share: chance.pick([0.5, 1]), ms: chance.between(leaseMs / 4, 4 * leaseMs) }
        const earlier = fate === 'replay' ? chance.shuffled(library).slice(0, 200) : []
        const begun = await Promise.all(hit.map((victim) => set(victim, trouble, earlier)))
        let met = 0
        return {
          target: `${all ? 'all servers' : `server ${one}`}, ${side}, ${trouble.share * 100} %`,
          holdMs: chance.between(2 * leaseMs, 10 * leaseMs),
          async undo() {
            const ends = await Promise.all(hit.map((victim) => set(victim, undefined, [])))
            for (const [index, end] of ends.entries()) {
              // Of one that was killed meanwhile, only what its successor has met is known.
              const before = begun[index]?.met ?? 0
              met += end === undefined ? 0 : end.met >= before ? end.met - before : end.met
              library.push(...(end?.library ?? []))
            }
            library.splice(0, library.length - KEPT)
          },
          met: () => met,
        }
      },
    ],
  )
}

async function set(
  victim: Victim,
  trouble: Trouble | undefined,
  library: readonly Sent[],
): Promise<{ met: number; library: Sent[] } | undefined> {
  return (await victim.steer('messages', { trouble, library })) as { met: number; library: Sent[] } | undefined
}
