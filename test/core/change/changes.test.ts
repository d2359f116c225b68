import { type RotationCase, refusalOfRotation } from '../../../src/core/change/changes.js'
import type { GenerationRow, KeyRow } from '../../../src/store/store.js'

const key = { revokedAt: null, disabledAt: null, expiresAt: null } as KeyRow
const graced = { graceEndsAt: 2_001 } as GenerationRow
const FINE: RotationCase = { plan: { emergency: false }, key, before: undefined, activeHash: null, hash: null, now: 2_000 }

/** Everything that can be wrong is; each step puts right what the step before it was refused for. */
test.each<[string, Partial<RotationCase>]>([
  ['key_disabled', { key: { ...key, disabledAt: 1, expiresAt: 2_000 }, before: graced, hash: 'new' }],
  ['key_revoked', { key: { ...key, revokedAt: 1, disabledAt: 1, expiresAt: 2_000 }, before: graced, hash: 'new' }],
  ['key_expired', { key: { ...key, expiresAt: 2_000 }, before: graced, hash: 'new' }],
  ['rotation_in_grace', { key: { ...key, expiresAt: 2_001 }, before: graced, hash: 'new' }],
  ['store_unavailable', { before: { ...graced, graceEndsAt: 2_000 }, hash: 'new' }],
  ['store_unavailable', { activeHash: 'old' }],
])('a rotation is first refused with %s', (code, more) => {
  expect(refusalOfRotation({ ...FINE, ...more })?.code).toBe(code)
})

test.each<[string, Partial<RotationCase>]>([
  ['of a first secret', {}],
  ['after the grace period of the secret before', { before: { ...graced, graceEndsAt: 2_000 } }],
  ['after one that was retired at once', { before: { ...graced, graceEndsAt: null } }],
  ['in a grace period, in an emergency', { plan: { emergency: true }, before: graced }],
  ['with a rotation secret', { activeHash: 'old', hash: 'new' }],
])('a rotation is not refused %s', (_which, more) => {
  expect(refusalOfRotation({ ...FINE, ...more })).toBeUndefined()
})
