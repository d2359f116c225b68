import type { Clock } from '../core/clock.js'
import { monotonicMs, nextTurn } from '../real-time.js'

/** A clock that stands still until a test turns it. */
export interface TurnedClock extends Clock {
  /** As in `Clock`; it can be handed on by itself, as in `memoryStore({ now: clock.wallMs })`. */
  readonly wallMs: () => number
  /** Lets `ms` milliseconds pass, and ends every sleep that is over. What then goes on does so in the background: await it. */
  advance(ms: number): void
  /** Lets `ms` milliseconds pass as on a suspended machine: the wall clock goes on, the monotonic one does not, and no sleep ends. */
  suspend(ms: number): void
  /** Sets the wall clock `by` milliseconds forward or, where negative, back. */
  setWall(by: number): void
  /** Resolves when at least `count` callers sleep on this clock. Rejects after 15 seconds of real time. */
  asleep(count: number): Promise<void>
}

const PATIENCE_MS = 15_000

/**
 * Makes a clock for tests: `createApiKeys({ store: memoryStore({ now: clock.wallMs }), serverSecret: secret, clock })`. Its wall clock begins at 2027-01-15T08:00:00Z.
 * It has no timers of its own, so it works the same whether or not a test runner fakes them.
 */
export function turnedClock(): TurnedClock {
  return new TestClock()
}

/** Both faces start at fixed instants and can be moved apart. `wallMs` can be handed on by itself, to a store. */
export class TestClock implements TurnedClock {
  #monotonic = 1_000
  #wall = 1_800_000_000_000
  #sleepers: { until: number; wake: () => void }[] = []

  readonly monotonicMs = (): number => this.#monotonic

  readonly wallMs = (): number => this.#wall

  sleep(ms: number): Promise<void> {
    if (ms <= 0) return Promise.resolve()
    return new Promise((wake) => this.#sleepers.push({ until: this.#monotonic + ms, wake }))
  }

  advance(ms: number): void {
    if (!(ms >= 0))
      throw new RangeError('Time goes forward: advance takes milliseconds, 0 or more. For a clock that is set back, use setWall.')
    this.#monotonic += ms
    this.#wall += ms
    const due = this.#sleepers.filter(({ until }) => until <= this.#monotonic)
    this.#sleepers = this.#sleepers.filter(({ until }) => until > this.#monotonic)
    for (const { wake } of due) wake()
  }

  suspend(ms: number): void {
    this.#wall += ms
  }

  setWall(by: number): void {
    this.#wall += by
  }

  async asleep(count: number): Promise<void> {
    const end = monotonicMs() + PATIENCE_MS
    while (this.#sleepers.length < count) {
      if (monotonicMs() > end) throw new Error(`${this.#sleepers.length} are asleep, not ${count}.`)
      await nextTurn()
    }
  }
}
