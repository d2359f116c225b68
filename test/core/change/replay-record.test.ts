import type { Presented } from '../../../src/core/change/authenticate.js'
import type { Change, ChangeCommand } from '../../../src/core/change/change.js'
import { newRecord, type RecordPlan, recordPlan, requestOf } from '../../../src/core/change/replay-record.js'
import { replaySeals } from '../../../src/core/change/replay-seal.js'
import type { KeyRow } from '../../../src/store/store.js'

const seals = replaySeals([Buffer.alloc(32, 1), Buffer.alloc(32, 2)])
const settings = { seals, replayWindowMs: 600_000, replayGraceMs: 10_000 }
const change = { name: 'rotate', target: 'self', fingerprint: null } as Change
const presented = { secret: 'sk_old', digest: 'digest', key: { id: 'key' }, own: true } as Presented
const operator = { issuer: 'i', subject: 'ada', scopes: [], owners: 'all' } as const

function planOf(command: ChangeCommand, by: Presented | undefined = presented, what: Change = change): RecordPlan {
  return recordPlan(settings, what, command, by)
}

test('a record is named by its caller and Idempotency-Key, and opens with what the caller presents', () => {
  const command: ChangeCommand = { as: { secret: 'sk_old' }, idempotencyKey: 'k', rotationSecret: 'rot', retryFrom: 'net' }
  expect(planOf(command)).toEqual({
    ids: seals.ids('key', 'k'),
    callerId: 'key',
    credentials: { secret: 'sk_old', rotationSecret: 'rot', idempotencyKey: 'k' },
    windowMs: 600_000,
    allowanceMs: 600_000,
    graceMs: 10_000,
    withoutKey: false,
  })
  const alone: [ChangeCommand, string][] = [
    [{ as: 'application', idempotencyKey: 'k' }, 'application'],
    [{ as: { operator }, idempotencyKey: 'k' }, 'operator:["i","ada"]'],
  ]
  for (const [one, callerId] of alone) {
    expect(recordPlan(settings, change, one, undefined)).toMatchObject({
      ids: seals.ids(callerId, 'k'),
      callerId,
      credentials: { secret: '' },
    })
  }
})

test('without an Idempotency-Key the secret of a rotation of its own key stands for one, for a minute at most', () => {
  const command: ChangeCommand = { as: { secret: 'sk_old' }, retryFrom: 'net' }
  const plan = planOf(command)
  expect(plan).toEqual({
    ids: seals.idsWithoutKey('key', 'digest'),
    callerId: 'key',
    credentials: { secret: 'sk_old', rotationSecret: undefined, idempotencyKey: '', network: 'net' },
    windowMs: 60_000,
    allowanceMs: 0,
    graceMs: 0,
    withoutKey: true,
  })
  expect(recordPlan({ ...settings, replayWindowMs: 5_000 }, change, command, presented).windowMs).toBe(5_000)
})

test.each<[string, ChangeCommand, Presented | undefined, Change]>([
  ['that names no network', { as: { secret: 'sk_old' } }, presented, change],
  ['of another key', { as: { secret: 'sk_old' }, retryFrom: 'net' }, { ...presented, own: false }, change],
  ['by nobody with a secret', { as: 'application', retryFrom: 'net' }, undefined, change],
  ['that is an emergency', { as: { secret: 'sk_old' }, retryFrom: 'net' }, presented, { ...change, neverReplayed: true }],
  ['that is no rotation', { as: { secret: 'sk_old' }, retryFrom: 'net' }, presented, { ...change, name: 'revoke' }],
])('a change without an Idempotency-Key %s is recorded nowhere', (_which, command, by, what) => {
  const plan = recordPlan(settings, what, command, by)
  expect([plan.ids, plan.withoutKey]).toEqual([[], false])
  expect(
    newRecord(seals, { change: what, command, presented: by, plan }, { key: presented.key, events: [], waits: true }, 1),
  ).toBeUndefined()
})

test('a record holds a sealed answer, but that of an emergency', () => {
  const command: ChangeCommand = { as: { secret: 'sk_old' }, idempotencyKey: 'k' }
  const plan = planOf(command)
  const key = { id: 'key', generation: 2 } as KeyRow
  const effect = { key, secret: 'sk_new', retired: { digests: ['digest'], reason: 'rotated' }, events: [], waits: true } as const
  const record = newRecord(seals, { change, command, presented, plan }, effect, 1_000)
  expect(record).toMatchObject({ callerId: 'key', keyId: 'key', generation: 2, createdAt: 1_000, expiresAt: 1_201_000, settledAt: null })
  if (record === undefined) throw new Error('no record')
  expect(JSON.parse(seals.open(0, record, plan.credentials, record.sealed ?? '') ?? '')).toEqual({ key, secret: 'sk_new' })
  expect(JSON.stringify(record)).not.toContain('sk_new')
  const emergency = newRecord(seals, { change: { ...change, neverReplayed: true }, command, presented, plan }, effect, 1_000)
  expect(emergency).toMatchObject({ id: record.id, sealed: null })
  const noSecret = newRecord(seals, { change, command, presented, plan }, { key, events: [], waits: true }, 1_000)
  expect(noSecret?.generation).toBeNull()
})

test('a retry repeats the request that is named, or else the command', () => {
  const request = { method: 'POST', path: '/keys/self/rotate' }
  expect(requestOf(change, { as: 'application', request })).toBe(request)
  expect(requestOf(change, { as: 'application' })).toEqual({ method: 'rotate', path: 'self', body: null })
  expect(requestOf({ ...change, target: null }, { as: 'application' })).toMatchObject({ path: '' })
})
