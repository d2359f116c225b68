import { redisBinary } from '../support/redis-server.js'
import { kinds } from './nemesis.js'
import { run, saveHistory } from './run.js'

const postgresUrl = process.env.TEST_POSTGRES_URL ?? ''
const withServer = redisBinary() === undefined ? test.skip : test

withServer(
  'P1, P2, P3, P5: while lines, processes, stores and clocks fail, not one promise is broken',
  async () => {
    const seed = 7
    const { history, counts, violations } = await run({ seed, seconds: 15, postgresUrl })
    if (violations.length > 0) saveHistory(`seed-${seed}`, history)
    expect(violations).toEqual([])

    // A run in which little happened would prove little.
    expect(counts.operations['read ok']).toBeGreaterThanOrEqual(100)
    expect(counts.operations['read fail']).toBeGreaterThanOrEqual(50)
    expect(counts.operations['revoke ok']).toBeGreaterThanOrEqual(1)
    expect(counts.replays).toBeGreaterThanOrEqual(3)
    expect(counts.outlasted).toBeGreaterThanOrEqual(1)
    expect(counts.early).toBeGreaterThanOrEqual(5)
    expect(Object.keys(counts.retirements).length).toBeGreaterThanOrEqual(2)
    for (const fault of ['commit: waits', 'database restored', 'store clock set']) expect(counts.faults[fault]).toBeGreaterThanOrEqual(1)
    expect(Object.keys(counts.faults).length).toBeGreaterThanOrEqual(Object.keys(kinds).length / 3)
  },
  150_000,
)

withServer(
  'verifiers that ignore their deadlines do not get past the same check',
  async () => {
    const { violations } = await run({ seed: 1, seconds: 60, postgresUrl, plant: 'deadline-ignored', stopOn: 'dead-accepted' })
    expect(violations.map(({ rule }) => rule)).toContain('dead-accepted')
  },
  150_000,
)
