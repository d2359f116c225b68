import { systemClock } from '../../src/core/clock.js'

jest.mock('../../src/real-time.js', () => require('../support/global-time.js'))

test('the clocks of the machine are its monotonic and its wall clock', () => {
  const [monotonic, wall] = [performance.now(), Date.now()]
  expect(systemClock.monotonicMs()).toBeGreaterThanOrEqual(monotonic)
  expect(systemClock.monotonicMs() - monotonic).toBeLessThan(60_000)
  expect(Math.abs(systemClock.wallMs() - wall)).toBeLessThan(60_000)
})

test('a sleep is never shorter than it was told to be, though timers may fire early', async () => {
  let now = 1_000
  jest.spyOn(performance, 'now').mockImplementation(() => now)
  const early = jest.spyOn(globalThis, 'setTimeout').mockImplementation(((run: () => void, ms = 0) => {
    now += ms / 2
    setImmediate(run)
  }) as never)
  await systemClock.sleep(40)
  expect(now).toBeGreaterThanOrEqual(1_040)
  expect(early.mock.calls.length).toBeGreaterThan(1)
  early.mockClear()
  await systemClock.sleep(0)
  await systemClock.sleep(-5)
  expect(early).not.toHaveBeenCalled()
  jest.restoreAllMocks()
})
