import { ApiKeyError } from '../errors.js'

/** Runs at most `size` pieces of work at a time. Where `maxQueued` wait already, the next is refused: `store_unavailable` with the message `busy`. */
export function semaphore(size: number, maxQueued: number, busy: string): <T>(work: () => Promise<T>) => Promise<T> {
  let free = size
  const queue: (() => void)[] = []
  return async (work) => {
    if (queue.length >= maxQueued) throw new ApiKeyError('store_unavailable', busy)
    if (free > 0) free--
    else await new Promise<void>((resolve) => queue.push(resolve))
    try {
      return await work()
    } finally {
      const next = queue.shift()
      if (next === undefined) free++
      else next()
    }
  }
}
