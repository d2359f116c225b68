import type { Clock } from '../../src/core/clock.js'

/** A clock that a test turns. Both faces start at the same instant and can be moved apart. */
export class TestClock implements Clock {
  #monotonic = 1_000
  #wall = 1_800_000_000_000
  #sleepers: { until: number; wake: () => void }[] = []

  monotonicMs(): number {
    return this.#monotonic
  }

  wallMs(): number {
    return this.#wall
  }

  sleep(ms: number): Promise<void> {
    if (ms <= 0) return Promise.resolve()
    return new Promise((wake) => this.#sleepers.push({ until: this.#monotonic + ms, wake }))
  }

  /** Lets time pass on both faces, and wakes who has slept enough. */
  advance(ms: number): void {
    this.#monotonic += ms
    this.#wall += ms
    const due = this.#sleepers.filter(({ until }) => until <= this.#monotonic)
    this.#sleepers = this.#sleepers.filter(({ until }) => until > this.#monotonic)
    for (const { wake } of due) wake()
  }

  /** A suspended machine: the wall clock goes on, the monotonic one does not. */
  suspend(ms: number): void {
    this.#wall += ms
  }

  /** Somebody sets the wall clock. */
  setWall(by: number): void {
    this.#wall += by
  }

  /** Resolves when this many are asleep; gives up after 15 seconds, or nobody would hear that none goes to sleep. */
  async asleep(count: number): Promise<void> {
    const end = performance.now() + 15_000
    while (this.#sleepers.length < count) {
      if (performance.now() > end) throw new Error(`${this.#sleepers.length} are asleep, not ${count}.`)
      await new Promise(setImmediate)
    }
  }
}
