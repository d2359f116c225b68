import { redisBinary } from './redis-pair.js'
import { run, saveHistory } from './run.js'

const postgresUrl = process.env.TEST_POSTGRES_URL ?? ''
const withServer = redisBinary() === undefined ? test.skip : test

withServer(
  'P1, P2, P3, P5: while lines, processes, Redis and clocks fail, not one promise is broken',
  async () => {
    const seed = 1
    const { history, counts, violations } = await run({ seed, seconds: 20, postgresUrl })
    if (violations.length > 0) saveHistory(`seed-${seed}`, history)
    expect(violations).toEqual([])

    // A run in which little happened would prove little.
    expect(counts.rotations).toBeGreaterThanOrEqual(20)
    expect(counts.replays).toBeGreaterThanOrEqual(5)
    expect(counts.operations['read ok']).toBeGreaterThanOrEqual(200)
    expect(counts.operations['read fail']).toBeGreaterThanOrEqual(200)
    const kinds = ['partition', 'black hole', 'commit: cut-answer', 'process stopped', 'process killed', 'lagging replica promoted']
    for (const kind of kinds) expect(counts.faults).toHaveProperty([kind])
  },
  150_000,
)

withServer(
  'a rotation that answers without waiting for the leases does not get past the same check',
  async () => {
    const { violations } = await run({ seed: 1, seconds: 3, postgresUrl, plant: 'no-wait' })
    expect(violations.map(({ rule }) => rule)).toContain('dead-accepted')
  },
  150_000,
)
