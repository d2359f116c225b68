import type { Request } from 'express'
import type { Internals } from '../../core/internals.js'
import { network } from './route-limits.js'
import { hitsIn, keep, slide, type Window, waitMs, withHit } from './window.js'

/** Failures a minute from one network, after which secrets that this instance has not accepted before are refused unasked. */
export const DEFAULT_FAILURES_PER_MINUTE = 300

/** Failed authentications by network: what keeps well-formed garbage from buying reads of the store without end. */
export interface FailureGuard {
  /** How many seconds until this network may again try a secret that this instance does not know; undefined while it may. */
  blockedFor(req: Request, max: number): number | undefined
  note(req: Request): void
}

const WINDOW_MS = 60_000
/** Each middleware has a limit of its own, and they share the count: its slots depend on none of them. */
const COUNT = { max: Number.POSITIVE_INFINITY, windowMs: WINDOW_MS }

const guards = new WeakMap<Internals, FailureGuard>()

/** The count that every middleware over these keys shares. Each process counts for itself: the guard protects its own reads. */
export function failureGuard(internals: Internals): FailureGuard {
  const known = guards.get(internals)
  if (known !== undefined) return known
  const failures = new Map<string, Window>()
  const time = (): number => Math.floor(internals.clock.monotonicMs())
  const guard: FailureGuard = {
    blockedFor(req, max) {
      const now = time()
      const window = slide(failures.get(network(req)) ?? [], COUNT, now)
      return hitsIn(window) < max ? undefined : Math.ceil(waitMs(window, { max, windowMs: WINDOW_MS }, now) / 1_000)
    },
    note(req) {
      const [name, now] = [network(req), time()]
      keep(failures, name, withHit(slide(failures.get(name) ?? [], COUNT, now), COUNT, now))
    },
  }
  guards.set(internals, guard)
  return guard
}
