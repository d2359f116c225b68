import type { RejectionReason } from '../../errors.js'
import type { GenerationRow, KeyRow } from '../../store/store.js'
import type { Rejected, Verified } from '../api-keys.js'
import { type ApiKey, iso } from '../key.js'

/** Why a secret that was good once is not accepted any more. */
export type EndReason = 'rotated' | 'revoked' | 'disabled' | 'expired'

/** When a secret was replaced and when it ends, by the authority's clock. */
export interface GracePeriod {
  readonly replacedAt: number
  readonly endsAt: number
}

/** Why a generation of a key is not accepted at this instant of the authority's clock, or undefined while it is. */
export function endedBecause(key: KeyRow, generation: GenerationRow, at: number): EndReason | undefined {
  if (generation.retiredAt !== null && !(generation.graceEndsAt !== null && at < generation.graceEndsAt))
    return generation.retiredReason ?? 'rotated'
  if (key.revokedAt !== null) return 'revoked'
  if (key.disabledAt !== null) return 'disabled'
  if (key.expiresAt !== null && key.expiresAt <= at) return 'expired'
  return undefined
}

/** The grace period of a generation that has one. */
export function gracePeriod({ retiredAt, graceEndsAt }: GenerationRow): GracePeriod | undefined {
  return retiredAt === null || graceEndsAt === null ? undefined : { endsAt: graceEndsAt, replacedAt: retiredAt }
}

export const REJECTED: { readonly [reason in RejectionReason]: Rejected } = {
  malformed: Object.freeze({ ok: false, reason: 'malformed' }),
  unknown: Object.freeze({ ok: false, reason: 'unknown' }),
  expired: Object.freeze({ ok: false, reason: 'expired' }),
  revoked: Object.freeze({ ok: false, reason: 'revoked' }),
  disabled: Object.freeze({ ok: false, reason: 'disabled' }),
  rotated: Object.freeze({ ok: false, reason: 'rotated' }),
  ip_not_allowed: Object.freeze({ ok: false, reason: 'ip_not_allowed' }),
}

export const malformed: Rejected = REJECTED.malformed

/** @param signal asked only where somebody wants to hear of the end */
export function verified(
  key: ApiKey,
  grace: GracePeriod | undefined,
  live: () => boolean,
  signal: (verdict: Verified) => AbortSignal,
): Verified {
  return Object.freeze(new Good(key, grace && { replacedAt: iso(grace.replacedAt), expiresAt: iso(grace.endsAt) }, live, signal))
}

/** The same verdict, which counts as long as `live` says. */
export function limited(verdict: Verified, live: () => boolean): Verified {
  return Object.freeze(new Good(verdict.key, verdict.grace, live, () => verdict.signal))
}

class Good implements Verified {
  readonly ok = true
  readonly key: ApiKey
  declare readonly grace?: NonNullable<Verified['grace']>
  readonly live: () => boolean
  readonly #makeSignal: (verdict: Verified) => AbortSignal
  /** The one that this verdict gave, for as long as anybody has it: it stays the same after it has fired. Held weakly, since the verdicts on known keys live for long. */
  #given: WeakRef<AbortSignal> | undefined

  constructor(key: ApiKey, grace: Verified['grace'], live: () => boolean, signal: (verdict: Verified) => AbortSignal) {
    this.key = key
    if (grace !== undefined) this.grace = grace
    this.live = live
    this.#makeSignal = signal
  }

  /** On the prototype, so that nothing that copies or prints a verdict begins to listen. */
  get signal(): AbortSignal {
    const given = this.#given?.deref()
    if (given !== undefined) return given
    const made = this.#makeSignal(this)
    this.#given = new WeakRef(made)
    return made
  }
}

/** When a verdict ends by itself, on the authority's clock, and why. */
export function endOf(key: KeyRow, grace: GracePeriod | undefined): { readonly at: number; readonly as: 'expired' | 'rotated' } {
  const expiresAt = key.expiresAt ?? Number.POSITIVE_INFINITY
  return grace !== undefined && grace.endsAt < expiresAt ? { at: grace.endsAt, as: 'rotated' } : { at: expiresAt, as: 'expired' }
}

/** For how much of `leaseMs` a verdict may be relied on: it outlives neither its key nor a grace period. */
export function lifeMsOf(key: KeyRow, grace: GracePeriod | undefined, leaseMs: number, at: number): number {
  return Math.min(leaseMs, (key.expiresAt ?? Number.POSITIVE_INFINITY) - at, (grace?.endsAt ?? Number.POSITIVE_INFINITY) - at)
}

/** What is waited beyond a lease, for clocks that run at slightly different speeds. */
export function marginMs(leaseMs: number): number {
  return Math.max(50, leaseMs / 100)
}
