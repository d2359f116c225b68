import type { Change } from '../../../src/core/change/change.js'
import type { KnownSecret } from '../../../src/core/change/refusal-order.js'
import { decideReplay, type ReplayCase } from '../../../src/core/change/replay-decision.js'
import type { GenerationRow, KeyRow, ReplayRow } from '../../../src/store/store.js'

const change = { name: 'rotate', target: 'self', selfAllowed: true, reach: (target) => target, fingerprint: null } as Change
const key = {
  id: 'key',
  ownerId: 'acme',
  environment: 'live',
  scopes: [],
  allowedIps: null,
  expiresAt: null,
  disabledAt: null,
  revokedAt: null,
} as unknown as KeyRow
const active = { retiredAt: null, retiredBy: null, retiredReason: null, rotationSecretHash: null, firstUsedAt: null } as GenerationRow
const record = {
  ...{ id: 'record', keyId: 'key', generation: 2, sealed: 'sealed', createdAt: 1_000, windowMs: 5_000, graceMs: 100 },
  expiresAt: 6_000,
} as ReplayRow
const answer = { key, secret: 'sk_new' }
/** The secret that the recorded rotation retired. */
const retired: KnownSecret = { key, generation: { ...active, retiredAt: 1_000, retiredBy: 'record' }, ended: 'rotated', own: true }
const alive: KnownSecret = { key, generation: active, ended: undefined, own: true }
const other = { ...key, id: 'other' }
const writer: KnownSecret = { ...alive, key: { ...key, scopes: ['api_keys:write'] }, own: false }
const operator = { issuer: 'i', subject: 'ada', scopes: ['api_keys:write'], owners: 'all' as const }
const grants = { scopes: [], environments: ['live' as const] }

const GIVEN: ReplayCase = {
  change,
  command: { as: { secret: 'sk_old' } },
  presented: retired,
  target: undefined,
  record,
  made: active,
  now: 2_000,
  sameRequest: true,
  withoutKey: false,
  allowanceMs: 0,
  open: () => JSON.stringify(answer),
}
const forOther = { change: { ...change, target: 'other' }, presented: writer, target: other }
const asOperator = { ...forOther, presented: undefined, command: { as: { operator: { ...operator, grants } } } }
const unopened = { open: () => undefined }

test.each<[string, Partial<ReplayCase>]>([
  ['to the secret that died of the recorded rotation', {}],
  ['to a secret that is still good', { presented: alive }],
  ['in the last millisecond of the window', { now: 5_999 }],
  ['after the window, where nobody has timed the commit', { now: 6_499, allowanceMs: 500, record: { ...record, expiresAt: 6_500 } }],
  ['shortly after the first use of the new secret', { made: { ...active, firstUsedAt: 1_901 } }],
  ['where the change made no secret', { made: undefined, record: { ...record, generation: null } }],
  ['of another key, to a caller that may still change it', forOther],
  ['to an operator that may still act for the owner', asOperator],
  ['to the application', { ...forOther, presented: undefined, command: { as: 'application' } }],
  ['without an Idempotency-Key', { withoutKey: true }],
])('P2: a recorded answer is given %s', (_when, more) => {
  expect(decideReplay({ ...GIVEN, ...more })).toEqual({ kind: 'given', answer })
})

test('an answer that was sealed before keys had secretCreatedAt gets it from its generation', () => {
  const given = decideReplay({ ...GIVEN, made: { ...active, createdAt: 900 } })
  expect(given).toEqual({ kind: 'given', answer: { ...answer, key: { ...key, secretCreatedAt: 900 } } })
  const { allowedIps: _none, disabledAt: _never, ...earlier } = key
  const open = (): string => JSON.stringify({ ...answer, key: { ...earlier, secretCreatedAt: 800 } })
  expect(decideReplay({ ...GIVEN, open, made: { ...active, createdAt: 900 } })).toMatchObject({
    answer: { key: { secretCreatedAt: 800, allowedIps: null, disabledAt: null } },
  })
})

const DEAD = { ...retired, generation: { ...retired.generation, retiredBy: 'another record' } }

test.each<[string, Partial<ReplayCase>, code: string, audited: boolean]>([
  ['to a secret that another change retired', { presented: DEAD }, 'invalid_key', true],
  ['to the secret of a key that has expired', { presented: { ...retired, key: { ...key, expiresAt: 2_000 } } }, 'invalid_key', true],
  ['for another request', { sameRequest: false, ...unopened }, 'idempotency_key_mismatch', false],
  ['for another request, to a dead secret', { sameRequest: false, presented: DEAD }, 'invalid_key', true],
  ['after the next rotation', { made: { ...active, retiredReason: 'rotated', retiredAt: 1_500 } }, 'rotation_superseded', false],
  ['where the secret that was made is gone', { made: undefined }, 'rotation_superseded', false],
  ['after a revocation', { made: { ...active, retiredReason: 'revoked', retiredAt: 1_500 } }, 'invalid_key', true],
  ['at the end of the window', { now: 6_000 }, 'invalid_key', true],
  ['at the end of the window, to a live caller', { now: 6_000, presented: alive }, 'idempotency_key_spent', true],
  ['where its end was moved in the store', { now: 6_000, record: { ...record, expiresAt: 99_000 } }, 'invalid_key', true],
  ['where its end makes no sense', { record: { ...record, expiresAt: Number.NaN } }, 'invalid_key', true],
  ['once the first use is long enough ago', { made: { ...active, firstUsedAt: 1_900 } }, 'invalid_key', true],
  ['once it was erased', { record: { ...record, sealed: null } }, 'invalid_key', true],
  ['to credentials that do not open it', unopened, 'invalid_key', true],
  ['to a live caller whose credentials do not open it', { ...unopened, presented: alive }, 'idempotency_key_spent', true],
  ['of another key, to a dead secret', { ...forOther, presented: { ...retired, own: false } }, 'invalid_key', false],
  ['of another key, in a grace period', { ...forOther, presented: { ...retired, ended: undefined, own: false } }, 'secret_in_grace', false],
  ['of another key, without the scope', { ...forOther, presented: { ...alive, own: false } }, 'insufficient_scope', false],
  ['of another key, which is gone', { ...forOther, target: undefined }, 'key_not_found', false],
  ['of another owner', { ...forOther, target: { ...other, ownerId: 'globex' } }, 'key_not_found', false],
  ['to an operator without grants', { ...asOperator, command: { as: { operator } } }, 'insufficient_scope', false],
  [
    'to an operator that made a key for an owner that it may not act for any more',
    {
      ...{ change: { ...change, target: null, ownerId: 'globex', reach: () => key }, presented: undefined, target: undefined },
      command: { as: { operator: { ...operator, grants, owners: ['globex'] } } },
    },
    'key_not_found',
    false,
  ],
  ['to an operator whose Idempotency-Key does not open it', { ...asOperator, ...unopened }, 'idempotency_key_spent', true],
])('a recorded answer is not given %s', (_when, more, code, audited) => {
  expect(decideReplay({ ...GIVEN, ...more })).toMatchObject({ kind: 'refused', error: { code }, audited })
})

test.each<[string, Partial<ReplayCase>]>([
  ['does not open', unopened],
  ['is closed', { now: 6_000 }],
  ['is of another request', { sameRequest: false }],
  ['is superseded', { made: undefined }],
  ['is of another change', { presented: DEAD }],
])('nothing is said of a record that the caller has not named and that %s', (_what, more) => {
  expect(decideReplay({ ...GIVEN, withoutKey: true, ...more })).toEqual({ kind: 'passed over' })
})

test('a seal is not opened for a request that is refused before', () => {
  const open = jest.fn()
  for (const more of [
    { presented: DEAD },
    { sameRequest: false },
    { made: undefined },
    { now: 6_000 },
    { ...forOther, target: undefined },
  ]) {
    decideReplay({ ...GIVEN, ...more, open })
  }
  expect(open).not.toHaveBeenCalled()
})
