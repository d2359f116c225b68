import { ApiKeyError } from '../errors.js'
import type { Clock } from './clock.js'
import { failureOf } from './failures.js'

/** How often seals that are no longer wanted are erased, and old changes pruned, while there is traffic. */
const ERASE_MS = 3_000
const PRUNE_MS = 60_000

export interface Lifecycle {
  /** Runs one command, so that `close()` can wait for it. Rejects with `store_unavailable` once `close()` was called. */
  command<T>(work: () => Promise<T>): Promise<T>
  /** Waits for the commands under way, then calls `end`. A second call waits for the first. */
  close(): Promise<void>
}

export function lifecycle(parts: {
  readonly clock: Clock
  /** Erases the seals that can no longer be asked for. Never rejects. */
  readonly eraseSeals: () => Promise<void>
  /** Forgets old changes of the feed. Never rejects. */
  readonly pruneFeed: () => Promise<void>
  readonly reportStoreFault: (error: ApiKeyError) => void
  /** Stops accepting, before what is under way is waited for. */
  readonly begin: () => void
  readonly end: () => Promise<void>
}): Lifecycle {
  const { clock, eraseSeals, pruneFeed, reportStoreFault, begin, end } = parts
  const underWay = new Set<Promise<unknown>>()
  let erasedAt = Number.NEGATIVE_INFINITY
  let prunedAt = clock.monotonicMs()
  let closing: Promise<void> | undefined

  return {
    async command(work) {
      if (closing !== undefined) throw new ApiKeyError('store_unavailable', 'These API keys have been closed.')
      const running = work().catch((error: unknown) => {
        const known = failureOf(error)
        reportStoreFault(known)
        throw known
      })
      underWay.add(running)
      try {
        const result = await running
        eraseNowAndThen()
        return result
      } finally {
        underWay.delete(running)
      }
    },

    close() {
      closing ??= (async () => {
        begin()
        while (underWay.size > 0) await Promise.allSettled([...underWay])
        await end()
      })()
      return closing
    },
  }

  /** Seals that can no longer be asked for go within seconds of traffic, no matter which instance made them. */
  function eraseNowAndThen(): void {
    const now = clock.monotonicMs()
    if (closing !== undefined || now - erasedAt < ERASE_MS) return
    erasedAt = now
    track(eraseSeals())
    if (now - prunedAt < PRUNE_MS) return
    prunedAt = now
    track(pruneFeed())
  }

  function track(work: Promise<void>): void {
    const tracked = work.finally(() => underWay.delete(tracked))
    underWay.add(tracked)
  }
}
