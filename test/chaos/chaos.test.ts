import { type RunOptions, type RunResult, run, saveHistory } from './run.js'

test('P1, P2, P3, P5: while lines, processes, Redis and clocks fail, not one promise is broken', async () => {
  const { counts, violations } = await runSaved({ seed: 1, seconds: 20 })
  expect(violations).toEqual([])

  // A run in which little happened would prove little.
  expect(counts.rotations).toBeGreaterThanOrEqual(20)
  expect(counts.replays).toBeGreaterThanOrEqual(5)
  expect(counts.operations['read ok']).toBeGreaterThanOrEqual(200)
  expect(counts.operations['read fail']).toBeGreaterThanOrEqual(200)
  const kinds = ['partition', 'black hole', 'commit: cut-answer', 'process stopped', 'process killed', 'lagging replica promoted']
  for (const kind of kinds) expect(counts.faults).toHaveProperty([kind])
}, 150_000)

test('a rotation that answers without waiting for the leases is noticed', async () => {
  const { violations } = await run({ ...options(), seed: 1, seconds: 3, plant: 'no-wait' })
  expect(violations.map(({ rule }) => rule)).toContain('dead-accepted')
}, 150_000)

async function runSaved(what: Pick<RunOptions, 'seed' | 'seconds'>): Promise<RunResult> {
  const result = await run({ ...options(), ...what })
  if (result.violations.length > 0) saveHistory(what.seed, result.history)
  return result
}

function options(): Pick<RunOptions, 'postgresUrl'> {
  return { postgresUrl: process.env.TEST_POSTGRES_URL ?? '' }
}
