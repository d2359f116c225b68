import { performance } from 'node:perf_hooks'
import timers from 'node:timers'

/**
 * Timers and clocks as they were when the package was loaded. A test that fakes the global ones around a call, and then takes them back, would otherwise
 * leave something waiting for a timer that never fires. Whoever wants to turn time gives a `clock`.
 */
export const setTimeout: typeof globalThis.setTimeout = timers.setTimeout
export const clearTimeout: typeof globalThis.clearTimeout = timers.clearTimeout
export const setInterval: typeof globalThis.setInterval = timers.setInterval
export const clearInterval: typeof globalThis.clearInterval = timers.clearInterval
export const setImmediate: typeof globalThis.setImmediate = timers.setImmediate

export const monotonicMs: () => number = performance.now.bind(performance)
export const wallMs: () => number = Date.now

/** Lets everything else that is due go first. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve)
  })
}
