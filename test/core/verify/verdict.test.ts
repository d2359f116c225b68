import { endedBecause, gracePeriod, lifeMsOf, malformed, marginMs, REJECTED, verified } from '../../../src/core/verify/verdict.js'
import type { GenerationRow, KeyRow } from '../../../src/store/store.js'

const key = { revokedAt: null, disabledAt: null, expiresAt: null } as KeyRow
const generation = { retiredAt: null, graceEndsAt: null, retiredReason: null } as GenerationRow
const retired = { ...generation, retiredAt: 1_000, retiredReason: 'rotated' } as const
const graced = { ...retired, graceEndsAt: 2_000 }

test.each<[string, KeyRow, GenerationRow, number, ReturnType<typeof endedBecause>]>([
  ['the active one of a key', key, generation, 1_000, undefined],
  ['retired at once', key, retired, 0, 'rotated'],
  ['retired by a revocation', { ...key, revokedAt: 1 }, { ...retired, retiredReason: 'revoked' }, 1_000, 'revoked'],
  ['retired, nobody knows why', key, { ...retired, retiredReason: null }, 1_000, 'rotated'],
  ['in its grace period', key, graced, 1_999, undefined],
  ['at the end of its grace period', key, graced, 2_000, 'rotated'],
  ['in its grace period, of a revoked key', { ...key, revokedAt: 1 }, graced, 1_999, 'revoked'],
  ['in its grace period, of a key that has expired', { ...key, expiresAt: 1_500 }, graced, 1_500, 'expired'],
  ['of a disabled key', { ...key, disabledAt: 1 }, generation, 0, 'disabled'],
  ['of a disabled key, in its grace period', { ...key, disabledAt: 1 }, graced, 1_999, 'disabled'],
  ['of a disabled key that was revoked too', { ...key, disabledAt: 1, revokedAt: 2 }, generation, 0, 'revoked'],
  ['of a disabled key that has expired too', { ...key, disabledAt: 1, expiresAt: 1 }, generation, 1_000, 'disabled'],
  ['of a revoked key', { ...key, revokedAt: 1 }, generation, 0, 'revoked'],
  ['of a revoked key that has expired too', { ...key, revokedAt: 1, expiresAt: 1 }, generation, 1_000, 'revoked'],
  ['a millisecond before its key expires', { ...key, expiresAt: 1_000 }, generation, 999, undefined],
  ['when its key expires', { ...key, expiresAt: 1_000 }, generation, 1_000, 'expired'],
])('a secret %s', (_what, itsKey, itsGeneration, at, expected) => {
  expect(endedBecause(itsKey, itsGeneration, at)).toBe(expected)
})

test('a grace period is that of a generation that was retired and has an end', () => {
  expect([gracePeriod(generation), gracePeriod(retired)]).toEqual([undefined, undefined])
  expect(gracePeriod({ ...generation, graceEndsAt: 2_000 })).toBeUndefined()
  expect(gracePeriod(graced)).toEqual({ replacedAt: 1_000, endsAt: 2_000 })
})

test('P3: a verdict outlives neither its lease, nor its key, nor a grace period', () => {
  const grace = { replacedAt: 0, endsAt: 1_300 }
  expect(lifeMsOf(key, undefined, 1_000, 500)).toBe(1_000)
  expect(lifeMsOf({ ...key, expiresAt: 1_400 }, undefined, 1_000, 500)).toBe(900)
  expect(lifeMsOf({ ...key, expiresAt: 1_400 }, grace, 1_000, 500)).toBe(800)
  expect(lifeMsOf(key, grace, 1_000, 1_500)).toBe(-200)
})

test('verdicts are frozen, since requests share them', () => {
  const live = (): boolean => true
  const signal = (): AbortSignal => AbortSignal.abort()
  const good = verified({} as never, { replacedAt: 0, endsAt: 1_000 }, live, signal)
  expect(good).toMatchObject({ ok: true, grace: { replacedAt: '1970-01-01T00:00:00.000Z', expiresAt: '1970-01-01T00:00:01.000Z' } })
  expect(verified({} as never, undefined, live, signal)).not.toHaveProperty('grace')
  expect(malformed).toEqual({ ok: false, reason: 'malformed' })
  for (const verdict of [good, verified({} as never, undefined, live, signal), ...Object.values(REJECTED)]) {
    expect(Object.isFrozen(verdict)).toBe(true)
  }
})

test('the margin is a hundredth of a lease, and at least 50 ms', () => {
  expect([marginMs(50), marginMs(5_000), marginMs(60_000)]).toEqual([50, 50, 600])
})
