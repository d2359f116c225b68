import type { Change } from '../../../src/core/change/change.js'
import { type Facts, firstRefusal, type KnownSecret, REFUSAL_ORDER, refusalOf } from '../../../src/core/change/refusal-order.js'
import type { ApiKeyError } from '../../../src/errors.js'
import type { GenerationRow, KeyRow } from '../../../src/store/store.js'

test('the order of the refusals', () => {
  expect(Object.entries(REFUSAL_ORDER).map(([part, checks]) => [part, checks.map(({ name }: { name: string }) => name)])).toEqual([
    ['form', ['rotationSecretWithoutSecret', 'selfWithoutSecret', 'malformedSecret', 'malformedRotationSecret']],
    ['identity', ['unknownSecret']],
    ['life', ['revokedForBothCredentials', 'revokedWithoutRotationSecret', 'disabledKey', 'endedSecret', 'secretOverLimit']],
    ['proof', ['rotationSecretNotConfigured', 'wrongRotationSecret', 'rotationSecretComparedWithAnotherHash', 'secretInGrace']],
    ['rights', ['unauthorised', 'missingRotationSecret', 'overLimit']],
  ])
})

test.each([
  [{ secret: 'none', rotationSecret: 'malformed', target: 'self' }, 'invalid_request: A rotation secret belongs to the key'],
  [{ secret: 'none', rotationSecret: 'well-formed', target: null }, 'invalid_request: A rotation secret belongs to the key'],
  [{ secret: 'none', rotationSecret: 'none', target: 'self' }, 'invalid_request: Only a key has a "self"'],
  [{ secret: 'none', rotationSecret: 'none', target: 'id' }, 'nothing'],
  [{ secret: 'malformed', rotationSecret: 'malformed', target: 'self' }, 'invalid_key (malformed)'],
  [{ secret: 'well-formed', rotationSecret: 'malformed', target: 'self' }, 'invalid_key'],
  [{ secret: 'well-formed', rotationSecret: 'well-formed', target: 'self' }, 'nothing'],
  [{ secret: 'well-formed', rotationSecret: 'none', target: 'self' }, 'nothing'],
] as const)('as they are written, %j are refused as %s', (credentials, expected) => {
  const refusal = firstRefusal(REFUSAL_ORDER.form, credentials)
  expect(told(refusal)).toEqual(expect.stringContaining(expected))
})

const change: Change = {
  name: 'rotate',
  target: 'self',
  selfAllowed: false,
  rotationSecretGuards: true,
  reach: (target) => target,
  fingerprint: null,
  apply: () => Promise.reject(new Error('not here')),
}
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
const generation = { retiredAt: null, rotationSecretHash: null } as GenerationRow
const secret: KnownSecret = { key, generation, ended: undefined, own: true }
const inGrace: KnownSecret = { ...secret, generation: { ...generation, retiredAt: 1_000 } }
const withHash: KnownSecret = { ...secret, generation: { ...generation, rotationSecretHash: 'hash' } }
const writer: KnownSecret = { ...withHash, key: { ...key, scopes: ['api_keys:write'] } }
const operator = { issuer: 'https://id.example', subject: 'ada', scopes: [], owners: 'all' } as const
const command = { as: { secret: 'sk' } } as const

/** Everything that can be wrong is; each step puts right what the step before it was refused for. */
const LADDER: readonly (readonly [refusal: string, facts: Partial<Facts>])[] = [
  ['invalid_key (unknown)', { presented: 'unknown', proof: { hash: 'other' }, overLimit: true }],
  ['key_revoked', { presented: { ...inGrace, ended: 'revoked' }, proof: { hash: 'other' }, overLimit: true }],
  ['rotation_secret_not_configured', { presented: { ...inGrace, ended: 'revoked' }, proof: 'not configured', overLimit: true }],
  ['invalid_key (revoked, key)', { presented: { ...inGrace, ended: 'revoked' }, proof: 'wrong', overLimit: true }],
  ['invalid_key (rotated, key)', { presented: { ...inGrace, ended: 'rotated' }, proof: 'wrong', overLimit: true }],
  ['key_disabled (disabled, key)', { presented: { ...inGrace, ended: 'disabled' }, proof: 'wrong', overLimit: true }],
  ['invalid_key (expired, key)', { presented: { ...inGrace, ended: 'expired' }, proof: undefined, overLimit: true }],
  ['rate_limited', { presented: inGrace, proof: 'not configured', overLimit: true }],
  ['rotation_secret_not_configured', { presented: inGrace, proof: 'not configured' }],
  ['invalid_key (rotation_secret, key)', { presented: inGrace, proof: 'wrong' }],
  ['invalid_key', { presented: inGrace, proof: { hash: 'other' } }],
  ['secret_in_grace', { presented: inGrace }],
  ['key_not_found', { presented: withHash, target: undefined }],
  ['insufficient_scope', { presented: withHash }],
  ['rotation_secret_required', { presented: writer }],
  ['nothing', { presented: writer, proof: { hash: 'hash' } }],
  ['insufficient_scope', { command: { as: { operator } }, presented: undefined, overLimit: true }],
  ['rate_limited', { command: { as: 'application' }, presented: undefined, overLimit: true }],
  ['nothing', { command: { as: 'application' }, presented: undefined }],
]

test.each(LADDER)('the first refusal is the answer: %s', (expected, more) => {
  const facts: Facts = { change, command, presented: undefined, proof: undefined, target: key, overLimit: false, ...more }
  expect(told(refusalOf(facts)).replace(/: .*/, '')).toBe(expected)
})

test.each<[string, Partial<Facts>]>([
  ['for a key that has none', { presented: { ...secret, key: writer.key } }],
  ['for another key', { presented: { ...writer, own: false } }],
  ['for a change that it does not guard', { presented: writer, change: { ...change, rotationSecretGuards: false } }],
])('a rotation secret is not asked for %s', (_what, more) => {
  expect(refusalOf({ change, command, presented: secret, proof: undefined, target: key, overLimit: false, ...more })).toBeUndefined()
})

test('a key that is made belongs to the owner of the caller where none is named', () => {
  const making: Change = { ...change, target: null, reach: () => key }
  const facts: Facts = { change: making, command, presented: writer, proof: undefined, target: undefined, overLimit: false }
  expect(refusalOf({ ...facts, change: { ...making, rotationSecretGuards: false } })).toBeUndefined()
  expect(told(refusalOf({ ...facts, change: { ...making, ownerId: 'globex' } }))).toContain('insufficient_scope')
})

test('an open delegation is passed on', () => {
  const target = { ...key, scopes: ['reports:read'] }
  const facts: Facts = { change, command, presented: { ...writer, own: false }, proof: undefined, target, overLimit: false }
  expect(told(refusalOf(facts))).toContain('insufficient_scope')
  expect(refusalOf({ ...facts, command: { ...command, delegation: 'open' } })).toBeUndefined()
})

function told(refusal: ApiKeyError | undefined): string {
  if (refusal === undefined) return 'nothing'
  const { code, reason, keyId, message } = refusal
  const more = [reason, keyId].filter((part) => part !== undefined)
  return `${code}${more.length === 0 ? '' : ` (${more.join(', ')})`}: ${message}`
}
