import { clearTimeout, setTimeout } from './real-time.js'

/**
 * The outcome of `work`, or after `limitMs` a rejection with what `late` makes. The work itself goes on; where it fails after that, `missed` hears of it.
 * The timer does not keep the process alive.
 */
export function inTime<T>(
  limitMs: number,
  work: T | PromiseLike<T>,
  late: () => unknown,
  missed: (error: unknown) => void = () => {},
): Promise<T> {
  return new Promise((resolve, reject) => {
    let over = false
    const timer = setTimeout(() => {
      over = true
      reject(late())
    }, limitMs)
    timer.unref()
    const failed = (error: unknown): void => {
      if (over) missed(error)
      reject(error)
    }
    Promise.resolve(work)
      .then(resolve, failed)
      .finally(() => clearTimeout(timer))
  })
}
