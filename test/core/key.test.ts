import { apiKey, isKeyId, keyEvent } from '../../src/core/key.js'
import type { KeyRow } from '../../src/store/store.js'

const ROW: KeyRow = {
  id: '01890000-0000-7000-8000-000000000001',
  ownerId: 'acme',
  name: 'n',
  environment: 'test',
  scopes: ['a', 'b'],
  allowedIps: ['192.0.2.1'],
  metadata: { list: [{ deep: null }] },
  generation: 3,
  createdAt: 1_000,
  updatedAt: 2_000,
  expiresAt: 3_000,
  disabledAt: 3_500,
  revokedAt: 4_000,
  revokedReason: 'left',
  rotatedTo: '01890000-0000-7000-8000-000000000002',
  secretStart: 'sk_test_',
  secretLast4: 'abcd',
  secretCreatedAt: 1_500,
  lastUsedAt: 5_000,
  lastUsedIp: '::1',
  lastUsedUserAgent: 'agent/1',
}

test('a key shows its row, with instants in RFC 3339', () => {
  expect(apiKey(ROW)).toEqual({
    ...ROW,
    status: 'revoked',
    createdAt: '1970-01-01T00:00:01.000Z',
    updatedAt: '1970-01-01T00:00:02.000Z',
    secretCreatedAt: '1970-01-01T00:00:01.500Z',
    expiresAt: '1970-01-01T00:00:03.000Z',
    disabledAt: '1970-01-01T00:00:03.500Z',
    revokedAt: '1970-01-01T00:00:04.000Z',
    lastUsedAt: '1970-01-01T00:00:05.000Z',
  })
  const never = { expiresAt: null, disabledAt: null, revokedAt: null, lastUsedAt: null }
  expect(apiKey({ ...ROW, ...never })).toMatchObject({ ...never, status: 'active' })
})

test('a key is expired from its expiry on, disabled whatever its expiry is, and revoked whatever else it is', () => {
  const statusAt = (at: number, more: Partial<typeof ROW | { disabledAt: null; revokedAt: null }>): string =>
    apiKey({ ...ROW, expiresAt: 3_000, disabledAt: null, revokedAt: null, ...more }, at).status
  expect([statusAt(2_999, {}), statusAt(3_000, {})]).toEqual(['active', 'expired'])
  for (const at of [2_999, 3_000]) {
    expect([statusAt(at, { disabledAt: 1_000 }), statusAt(at, { revokedAt: 1_000, disabledAt: 1_000 })]).toEqual(['disabled', 'revoked'])
  }
})

test('a key is frozen all the way down, and shares nothing with its row', () => {
  const key = apiKey(ROW)
  const list = key.metadata.list as { deep: null }[]
  for (const part of [key, key.scopes, key.metadata, list, list[0]]) expect(Object.isFrozen(part)).toBe(true)
  for (const part of [ROW.scopes, ROW.metadata, ROW.metadata.list]) expect(Object.isFrozen(part)).toBe(false)
})

test('an event shows its row but for the owner', () => {
  const row = { id: 'e', keyId: 'k', ownerId: 'acme', type: 'key.rotated', at: 1_000, actor: 'system', ip: null, userAgent: null } as const
  const { ownerId: _, ...shown } = row
  expect(keyEvent({ ...row, details: { generation: 2 } })).toEqual({
    ...shown,
    details: { generation: 2 },
    at: '1970-01-01T00:00:01.000Z',
  })
})

test('the id of a key is a UUID and nothing around it', () => {
  expect([isKeyId(ROW.id), isKeyId(ROW.id.toUpperCase())]).toEqual([true, true])
  for (const id of [`x${ROW.id}`, `${ROW.id}x`, ROW.id.replaceAll('-', ''), '']) expect(isKeyId(id)).toBe(false)
})
