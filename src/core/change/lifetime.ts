import { invalidRequest } from '../refusals.js'

/** What the application allows about the lives of its keys. */
export interface LifetimePolicy {
  /** How far ahead an expiry may be when it is set, in milliseconds; undefined for no bound. */
  readonly maxLifetimeMs: number | undefined
}

/** Whoever adds the lifetime to its own clock must not be refused because that clock is a little ahead of the store's. */
const CLOCK_ALLOWANCE_MS = 60_000

/** The expiry of a new key: as asked for or, where nothing was said, the latest that there may be. Throws `invalid_request` for a later one. */
export function firstExpiry({ maxLifetimeMs }: LifetimePolicy, asked: number | null | undefined, now: number): number | null {
  if (asked === undefined) return maxLifetimeMs === undefined ? null : now + maxLifetimeMs
  refuseLater(maxLifetimeMs, asked, now)
  return asked
}

/** Throws `invalid_request` for an expiry that is too far ahead. A key that lives for longer already may keep its expiry, or get an earlier one. */
export function refuseLonger({ maxLifetimeMs }: LifetimePolicy, asked: number | null, before: number | null, now: number): void {
  if (before === null || (asked !== null && asked <= before)) return
  refuseLater(maxLifetimeMs, asked, now)
}

function refuseLater(maxLifetimeMs: number | undefined, asked: number | null, now: number): void {
  if (maxLifetimeMs === undefined || (asked !== null && asked <= now + maxLifetimeMs + CLOCK_ALLOWANCE_MS)) return
  throw invalidRequest(`expiresAt must be at most ${maxLifetimeMs} ms from now: no key may live for longer here.`)
}
