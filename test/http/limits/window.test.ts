import fc from 'fast-check'
import type { Counters, Hit } from '../../../src/cache/cache.js'
import { routeCounter } from '../../../src/http/limits/route-limits.js'
import { hitsIn, NewestNames, slide, type Window, waitMs, withHit, withoutHit } from '../../../src/http/limits/window.js'
import { turnedClock } from '../../../src/testing/turned-clock.js'

const WINDOW_MS = 1_000
/** How much longer than the window a hit may count: nothing where each has a slot of its own. */
const errorOf = (max: number): number => (max > 20 ? WINDOW_MS / 20 : 0)

const someMax = fc.oneof(fc.integer({ min: 1, max: 6 }), fc.constantFrom(20, 21, 50))
const pauses = fc.oneof(fc.constantFrom(0, 1, WINDOW_MS - 1, WINDOW_MS, WINDOW_MS + 1), fc.integer({ min: 0, max: 400 }))

test('a window lets in what a log of every instant would, but for the error it states', () => {
  const steps = fc.array(fc.record({ pause: pauses, times: fc.integer({ min: 1, max: 30 }), takeBack: fc.integer({ min: -3, max: 40 }) }), {
    maxLength: 30,
  })
  fc.assert(
    fc.property(someMax, steps, (max, all) => {
      const limit = { max, windowMs: WINDOW_MS }
      let window: Window = []
      let now = 0
      const log: number[] = []
      const since = (start: number): number => log.filter((at) => at > start).length
      const counted = (): boolean => {
        window = slide(window, limit, now)
        if (hitsIn(window) >= max) return false
        window = withHit(window, limit, now)
        log.push(now)
        return true
      }
      for (const { pause, times, takeBack } of all) {
        now += pause
        for (let n = 0; n < times; n++) {
          const [exact, longest] = [since(now - WINDOW_MS), since(now - WINDOW_MS - errorOf(max))]
          if (counted()) expect(exact).toBeLessThan(max)
          else expect(longest).toBeGreaterThanOrEqual(max)
        }
        expect(window.length).toBeLessThanOrEqual(21)
        const wait = waitMs(window, limit, now)
        expect(wait).toBeGreaterThan(0)
        expect(wait).toBeLessThanOrEqual(WINDOW_MS)
        if (hitsIn(window) === max) {
          expect(hitsIn(slide(window, limit, now + wait))).toBeLessThan(max)
          expect(hitsIn(slide(window, limit, now + wait - 1))).toBe(max)
        }
        const before = hitsIn(window)
        const [at] = log.slice(takeBack)
        if (takeBack < 0 || at === undefined) continue
        window = withoutHit(window, limit, at)
        const taken = before - hitsIn(window)
        if (at > now - WINDOW_MS) expect(taken).toBe(1)
        if (at <= now - WINDOW_MS - errorOf(max)) expect(taken).toBe(0)
        if (taken === 1) log.splice(log.indexOf(at), 1)
      }
    }),
    { numRuns: 500 },
  )
})

test('a slot that several hits share lasts until the last of them has slid out', () => {
  const limit = { max: 21, windowMs: WINDOW_MS }
  let window = withHit([], limit, 0)
  window = withHit(slide(window, limit, 40), limit, 40)
  expect([hitsIn(slide(window, limit, WINDOW_MS + 39)), hitsIn(slide(window, limit, WINDOW_MS + 40))]).toEqual([2, 0])
})

test('taking a hit back that has slid out takes none from a later window, and none is taken below zero', () => {
  const limit = { max: 3, windowMs: WINDOW_MS }
  let window = withHit([], limit, 0)
  window = withHit(slide(window, limit, 1_500), limit, 1_500)
  expect(withoutHit(window, limit, 0)).toEqual(window)
  window = withoutHit(window, limit, 1_500)
  expect(window).toEqual([])
  expect(withoutHit(window, limit, 1_500)).toEqual([])
})

test('P5: one process never lets more than the limit through in any window, however its shared counter comes, goes, forgets and lies', async () => {
  const steps = fc.array(
    fc.record({
      pause: pauses,
      at: fc.constantFrom('there', 'there', 'away', 'lost', 'full'),
      times: fc.integer({ min: 1, max: 8 }),
      back: fc.constantFrom(false, false, true),
    }),
    { maxLength: 25 },
  )
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 5 }), steps, async (max, all) => {
      const limit = { max, windowMs: WINDOW_MS }
      const clock = turnedClock()
      const shared = fakeCounters(limit, clock.monotonicMs)
      const hit = routeCounter(limit, shared.counters, clock)
      const log: number[] = []
      for (const { pause, at, times, back } of all) {
        clock.advance(pause)
        shared.becomes(at)
        const now = clock.monotonicMs()
        const answers = await Promise.all(Array.from({ length: times }, () => hit('name')))
        for (const { within, hits, waitMs: wait } of answers) {
          if (within) log.push(now)
          if (within) expect(hits).toBeLessThanOrEqual(max)
          expect(wait).toBeLessThanOrEqual(WINDOW_MS)
          expect(wait).toBeGreaterThan(0)
        }
        const given = answers.filter(({ within }) => within)
        if (back && given[0] !== undefined) {
          for (let n = 0; n < 3; n++) await given[0].takeBack()
          log.splice(log.indexOf(now), 1)
        }
        expect(log.filter((instant) => instant > now - WINDOW_MS).length).toBeLessThanOrEqual(max)
      }
    }),
    { numRuns: 300 },
  )
})

test('P5: the limit is all there again when a window has passed since the shared counter came back', async () => {
  const limit = { max: 3, windowMs: WINDOW_MS }
  const clock = turnedClock()
  const shared = fakeCounters(limit, clock.monotonicMs)
  const [one, two] = [routeCounter(limit, shared.counters, clock), routeCounter(limit, shared.counters, clock)]
  const ask = async (): Promise<number> => {
    const answers = await Promise.all(Array.from({ length: 5 }, () => [one('name'), two('name')]).flat())
    return answers.filter(({ within }) => within).length
  }
  expect(await ask()).toBe(3)
  clock.advance(WINDOW_MS)
  shared.becomes('away')
  expect(await ask()).toBe(6)
  clock.advance(WINDOW_MS / 2)
  shared.becomes('lost')
  expect(await ask()).toBe(0)
  clock.advance(WINDOW_MS / 2)
  expect(await ask()).toBe(3)
})

test('a request that finds the shared counter full leaves no trace: its client gets in when there is room', async () => {
  const limit = { max: 2, windowMs: WINDOW_MS }
  const clock = turnedClock()
  const shared = fakeCounters(limit, clock.monotonicMs)
  const hit = routeCounter(limit, shared.counters, clock)
  shared.becomes('full')
  for (let n = 0; n < 5; n++) expect((await hit('name')).within).toBe(false)
  shared.becomes('lost')
  expect([(await hit('name')).within, (await hit('name')).within, (await hit('name')).within]).toEqual([true, true, false])
})

test('what is given back while the shared counter is away can be used again', async () => {
  const limit = { max: 2, windowMs: WINDOW_MS }
  const clock = turnedClock()
  const shared = fakeCounters(limit, clock.monotonicMs)
  const hit = routeCounter(limit, shared.counters, clock)
  expect((await hit('name')).within).toBe(true)
  shared.becomes('away')
  for (let n = 0; n < 5; n++) {
    const { within, takeBack } = await hit('name')
    expect(within).toBe(true)
    await takeBack()
  }
  expect([(await hit('name')).within, (await hit('name')).within]).toEqual([true, false])
})

test('of very many names the newest are kept, those that came again among them, and 50,000 at most', () => {
  const names = new NewestNames<number>()
  const last = 199_999
  for (let n = 0; n <= last; n++) {
    names.set(`stranger ${n}`, n)
    names.set('client', n)
  }
  expect(names.get('client')).toBe(last)
  const kept = Array.from({ length: last + 1 }, (_, n) => names.get(`stranger ${n}`)).filter((value) => value !== undefined)
  expect(kept.length).toBeGreaterThanOrEqual(24_000)
  expect(kept.length).toBeLessThanOrEqual(50_000)
  expect(kept).toEqual(Array.from({ length: kept.length }, (_, n) => last - kept.length + 1 + n))
})

/** A shared counter that a test can take away, make forget, or make refuse everything. */
function fakeCounters(
  limit: { max: number; windowMs: number },
  time: () => number,
): { counters: Counters; becomes(state: 'there' | 'away' | 'lost' | 'full'): void } {
  let state = 'there'
  let window: Window = []
  return {
    becomes(next) {
      state = next === 'lost' ? 'there' : next
      if (next === 'lost') window = []
    },
    counters: {
      async hit(): Promise<Hit | undefined> {
        if (state === 'away') return undefined
        const at = time()
        window = slide(window, limit, at)
        const counted = state !== 'full' && hitsIn(window) < limit.max
        if (counted) window = withHit(window, limit, at)
        return { counted, hits: counted ? hitsIn(window) : limit.max, waitMs: waitMs(window, limit, at), at }
      },
      async takeBack(_name, at) {
        if (state !== 'away') window = withoutHit(window, limit, at)
      },
    },
  }
}
