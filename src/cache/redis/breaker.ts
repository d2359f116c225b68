import { monotonicMs } from '../../real-time.js'

type Pass = 'through' | 'probe'

export interface Breaker {
  /** Whether Redis is left alone but for one command now and then. */
  isOpen(): boolean
  /** Undefined while Redis is left alone. */
  enter(): Pass | undefined
  succeeded(): void
  /** Whether Redis is left alone from now on because of it. `asking` is how many waited for the command. */
  failed(pass: Pass, asking: number): boolean
  /** We are about to cut the connection. */
  droppedConnection(): void
  /** Whether it was us who cut it. */
  closedConnection(): boolean
  readyConnection(): void
  /** True once a second. */
  mayRevive(): boolean
}

/** After this many requests in a row had no answer Redis is left alone: fewer, and one lost command would do it; more, and requests wait in vain. */
const FAILURES = 5
/** One command then tries again after this long, which doubles each time it fails, up to the longest. */
const FIRST_PAUSE_MS = 1_000
const LONGEST_PAUSE_MS = 10_000
const REVIVE_MS = 1_000

/** Closed, it lets everything through; open, nothing for a pause, then one command to see. */
export function createBreaker(): Breaker {
  let failures = 0
  let pauseMs = 0
  let resumeAt = 0
  let probing = false
  let dropping = false
  let lost = false
  let reviveAt = 0

  return {
    isOpen: () => pauseMs > 0,
    enter() {
      if (pauseMs === 0) return 'through'
      if (probing || monotonicMs() < resumeAt) return undefined
      probing = true
      return 'probe'
    },
    succeeded() {
      failures = 0
      pauseMs = 0
      probing = false
    },
    failed(pass, asking) {
      if (pass === 'probe') probing = false
      // Sent before the pause began, and no news.
      else if (pauseMs > 0) return false
      failures += asking
      if (pauseMs === 0 && failures < FAILURES) return false
      failures = 0
      pauseMs = Math.min(pauseMs === 0 ? FIRST_PAUSE_MS : pauseMs * 2, LONGEST_PAUSE_MS)
      resumeAt = monotonicMs() + pauseMs
      return true
    },
    droppedConnection() {
      dropping = true
    },
    closedConnection() {
      const ours = dropping
      dropping = false
      if (!ours) lost = true
      return ours
    },
    readyConnection() {
      dropping = false
      // It was away and is back, so ask at once. A server that we left because it accepts and is silent has its pause.
      if (lost) resumeAt = 0
      lost = false
    },
    mayRevive() {
      if (monotonicMs() < reviveAt) return false
      reviveAt = monotonicMs() + REVIVE_MS
      return true
    },
  }
}
