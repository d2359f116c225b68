import { inTime } from '../in-time.js'
import { monotonicMs } from '../real-time.js'
import { onceIn } from './once-in.js'

/** Trouble is reported once in this time for each method: a cache that is away fails at every request. */
const REPORT_MS = 60_000
const MAX_METHODS = 10

/** What `work` resolves with; reports and rejects where it throws, hangs, or answers what makes no sense. */
export type Attempt = <T>(method: string, work: () => T | Promise<T>, makesSense?: (answer: T) => boolean) => Promise<T>

/** Attempts at what the application brought, such as its `cache`. */
export function reportingAttempt(what: string, limitMs: number, report: (error: unknown) => void): Attempt {
  const isDue = onceIn(REPORT_MS, MAX_METHODS, monotonicMs)
  return async (method, work, makesSense = () => true) => {
    try {
      const answer = await inTime(limitMs, work(), () => new Error(`The ${what} gave no answer within ${limitMs} ms.`))
      if (!makesSense(answer)) throw new Error(`The ${what} gave an answer that makes no sense.`)
      return answer
    } catch (error) {
      if (isDue(method)) report(error)
      throw error
    }
  }
}
