import { randomInt } from 'node:crypto'
import { contracts, createApiKeys, memoryStore } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { serveContract } from '../support/contract.js'
import { freshDatabase } from '../support/postgres.js'

/** Of each kind. `npm run test:timing` makes 2,000. */
const TRIES = Number(process.env.TIMING_TRIES ?? 40)
/** So few that bcrypt, two at a time, is done with each well inside a beat. */
const AT_ONCE = 4
const KINDS = ['unknown key', 'retired key', 'retired key with its own rotation secret', 'right key and wrong rotation secret'] as const

/**
 * Two samples of times are told apart by the two-sample Kolmogorov–Smirnov statistic D at a level of 0.00001: D must stay below
 * 2.47 √(2/n). Beside it the probability that a time of one kind is longer than one of the other (the area under the ROC curve,
 * Mann–Whitney's U / n²) is printed: 0.5 is a coin.
 */
test(
  `the time of a refusal does not tell which credential was wrong (${TRIES} tries of each kind)`,
  async () => {
    const { pool } = await freshDatabase()
    const here = await serveContract(contracts.agents, postgresStore(pool), { limits: false, failuresPerMinute: false })
    const make = (): ReturnType<typeof here.keys.create> =>
      here.keys.create({ as: 'application', ownerId: 'o', name: 'n', rotationSecret: true })
    const [live, retired, other] = [await make(), await make(), await make()]
    await here.keys.rotate({ as: 'application', id: retired.key.id })
    const unknown = await createApiKeys({ store: memoryStore(), serverSecret: 'x'.repeat(32) }).create({
      as: 'application',
      ownerId: 'o',
      name: 'n',
    })
    const wrong = other.rotationSecret ?? ''
    const credentials: readonly [string, string][] = [
      [unknown.secret, wrong],
      [retired.secret, wrong],
      [retired.secret, retired.rotationSecret ?? ''],
      [live.secret, wrong],
    ]
    // In a random order, so that whatever the machine does meanwhile is spread over all kinds.
    const order = KINDS.flatMap((_, kind) => Array.from({ length: TRIES }, () => kind))
    for (let i = order.length - 1; i > 0; i--) {
      const j = randomInt(i + 1)
      ;[order[i], order[j]] = [order[j] as number, order[i] as number]
    }
    const times: number[][] = KINDS.map(() => [])
    await here.send({ path: '/self/rotate-key', secret: live.secret, body: { rotationSecret: wrong } })
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (let kind = order.pop(); kind !== undefined; kind = order.pop()) {
          const [secret = '', rotationSecret = ''] = credentials[kind] ?? []
          const start = performance.now()
          const { status } = await here.send({ path: '/self/rotate-key', secret, body: { rotationSecret } })
          times[kind]?.push(performance.now() - start)
          expect(status).toBe(401)
        }
      }),
    )
    const report: string[] = []
    const told: string[] = []
    for (const [kind, name] of KINDS.entries()) {
      const sample = [...(times[kind] ?? [])].sort((a, b) => a - b)
      const at = (part: number): string => (sample[Math.floor(part * (sample.length - 1))] ?? 0).toFixed(1)
      report.push(`${name}: p10 ${at(0.1)} ms, median ${at(0.5)} ms, p90 ${at(0.9)} ms`)
      for (const [another, beside] of KINDS.entries()) {
        if (another <= kind) continue
        const { d, auc } = compare(sample, times[another] ?? [])
        const limit = 2.47 * Math.sqrt(2 / TRIES)
        report.push(`  beside ${beside}: D = ${d.toFixed(4)} (limit ${limit.toFixed(4)}), area under the curve ${auc.toFixed(4)}`)
        if (d >= limit) told.push(`${name} / ${beside}: ${d}`)
      }
    }
    if (process.env.TIMING_TRIES !== undefined) console.log(report.join('\n'))
    expect(told).toEqual([])
  },
  TRIES * 1_000 + 60_000,
)

test('the statistic tells samples apart that differ', () => {
  const sample = (shift: number): number[] => Array.from({ length: 400 }, (_, i) => (i % 100) + shift)
  expect(compare(sample(0), sample(0))).toEqual({ d: 0, auc: 0.5 })
  const { d, auc } = compare(sample(0), sample(30))
  expect(d).toBeCloseTo(0.3)
  expect(auc).toBeGreaterThan(0.7)
  expect(d).toBeGreaterThan(2.47 * Math.sqrt(2 / 400))
})

function compare(a: readonly number[], b: readonly number[]): { d: number; auc: number } {
  const all = [...a.map((time) => [time, 0] as const), ...b.map((time) => [time, 1] as const)].sort(([x], [y]) => x - y)
  let [seenA, seenB, d, wins] = [0, 0, 0, 0]
  for (let i = 0; i < all.length; ) {
    const [beforeA, beforeB] = [seenA, seenB]
    const [time] = all[i] as readonly [number, number]
    for (; i < all.length && all[i]?.[0] === time; i++) {
      if (all[i]?.[1] === 0) seenA++
      else seenB++
    }
    // A tie counts half.
    wins += (seenB - beforeB) * (beforeA + (seenA - beforeA) / 2)
    d = Math.max(d, Math.abs(seenA / a.length - seenB / b.length))
  }
  return { d, auc: wins / (a.length * b.length) }
}
