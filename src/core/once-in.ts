import { dropOldest } from '../drop-oldest.js'

/** Says of each subject, at most once in `periodMs`, that it is due. Where there are more than `maxSubjects`, some are due more often. */
export function onceIn(periodMs: number, maxSubjects: number, nowMs: () => number): (subject: string) => boolean {
  /** When each subject was last due, the oldest first. */
  const lastDue = new Map<string, number>()
  return (subject) => {
    const now = nowMs()
    const last = lastDue.get(subject)
    if (last !== undefined && now - last < periodMs) return false
    lastDue.delete(subject)
    lastDue.set(subject, now)
    dropOldest(lastDue, maxSubjects)
    return true
  }
}
