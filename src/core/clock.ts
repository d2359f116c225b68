import { monotonicMs, setTimeout, wallMs } from '../real-time.js'

/**
 * The time, as an option, so that a test can turn it.
 *
 * Leases are measured on both clocks at once: the monotonic one cannot be set back, and the wall clock goes on while a
 * machine is suspended, which on Linux the monotonic one does not.
 */
export interface Clock {
  /** Milliseconds on a clock that never goes back. */
  monotonicMs(): number
  /** Milliseconds since the epoch. */
  wallMs(): number
  /** Resolves after `ms` milliseconds on the monotonic clock. */
  sleep(ms: number): Promise<void>
}

/** An instant on both clocks. */
export interface Instant {
  readonly monotonicMs: number
  readonly wallMs: number
}

export const systemClock: Clock = {
  monotonicMs,
  wallMs,
  // Not unref'ed: somebody is waiting for this rotation, and a script must not end before its answer.
  sleep: async (ms) => {
    const end = monotonicMs() + ms
    for (let left = ms; left > 0; left = end - monotonicMs()) {
      await new Promise<void>((resolve) => {
        setTimeout(resolve, Math.ceil(left))
      })
    }
  },
}

export function instant(clock: Clock): Instant {
  return { monotonicMs: clock.monotonicMs(), wallMs: clock.wallMs() }
}

/** The time that has passed since `start` by whichever clock says more; never negative. */
export function elapsedMs(clock: Clock, start: Instant): number {
  return Math.max(clock.monotonicMs() - start.monotonicMs, clock.wallMs() - start.wallMs)
}
