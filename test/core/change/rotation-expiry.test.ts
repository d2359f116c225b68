import { type ApiKeys, createApiKeys, type JsonObject, memoryStore } from 'express-api-keys'
import { SERVER_SECRET } from '../../support/process.js'

const DAY = 86_400_000
const inDays = (days: number): string => new Date(Date.now() + days * DAY).toISOString()
const SOON = inDays(10)
const LATER = inDays(20)
const application = { as: 'application', ownerId: 'acme', name: 'n' } as const

let keys: ApiKeys
beforeEach(() => {
  keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
})
afterEach(() => keys.close())

test('the application gives a rotated key a later expiry, an earlier one, or none, and without a word it stays', async () => {
  const { key } = await keys.create({ ...application, expiresAt: SOON })
  for (const expiresAt of [LATER, SOON, null]) {
    expect((await keys.rotate({ as: 'application', id: key.id, expiresAt })).key.expiresAt).toBe(expiresAt)
    expect((await keys.rotate({ as: 'application', id: key.id })).key.expiresAt).toBe(expiresAt)
  }
  const { items = [] } = (await keys.events({ id: key.id })) ?? {}
  expect(items.map(({ details }) => (details as JsonObject).expiresAt)).toEqual([
    undefined,
    null,
    undefined,
    SOON,
    undefined,
    LATER,
    undefined,
  ])
})

test('a key that takes the place of another gets the new expiry, and the other keeps its own', async () => {
  const { key } = await keys.create({ ...application, expiresAt: SOON })
  const next = await keys.rotate({ as: 'application', id: key.id, identity: 'successor', expiresAt: LATER })
  expect([next.key.expiresAt, next.key.id === key.id]).toEqual([LATER, false])
  expect(await keys.get(key.id)).toMatchObject({ expiresAt: SOON, status: 'revoked', rotatedTo: next.key.id })
  const { items = [] } = (await keys.events({ id: next.key.id })) ?? {}
  expect(items.map(({ details }) => details)).toEqual([{ rotatedFrom: key.id, expiresAt: LATER }])
})

test('the old secret of a grace period does not outlive the new expiry', async () => {
  const { key } = await keys.create(application)
  const expiresAt = new Date(Date.now() + 60_000)
  const rotated = await keys.rotate({ as: 'application', id: key.id, retire: { afterMs: DAY }, expiresAt })
  expect(rotated.acceptedUntil).toBe(expiresAt.toISOString())
})

test('a key that rotates itself may come to an earlier end, and to no later one', async () => {
  const { secret } = await keys.create({ ...application, expiresAt: LATER })
  for (const expiresAt of [inDays(21), null]) {
    await expect(keys.rotate({ as: { secret }, expiresAt })).rejects.toMatchObject({ code: 'insufficient_scope' })
  }
  const { key } = await keys.rotate({ as: { secret }, expiresAt: SOON })
  expect(key.expiresAt).toBe(SOON)
  const admin = await keys.create({ ...application, expiresAt: SOON, scopes: ['api_keys:admin'] })
  expect((await keys.rotate({ as: { secret: admin.secret }, expiresAt: LATER })).key.expiresAt).toBe(LATER)
})

test('a key that rotates another gives it no later end than its own', async () => {
  const caller = await keys.create({ ...application, expiresAt: SOON, scopes: ['api_keys:write'] })
  const { key } = await keys.create({ ...application, expiresAt: inDays(1) })
  const rotate = (expiresAt: string | null) => keys.rotate({ as: { secret: caller.secret }, id: key.id, expiresAt })
  for (const expiresAt of [LATER, null]) await expect(rotate(expiresAt)).rejects.toMatchObject({ code: 'insufficient_scope' })
  expect((await rotate(SOON)).key.expiresAt).toBe(SOON)
})

test('an operator moves an expiry where it may rotate', async () => {
  const { key } = await keys.create({ ...application, expiresAt: SOON })
  const operator = { issuer: 'us', subject: 'ann', scopes: ['api_keys:write'], owners: ['acme'] }
  const grants = { scopes: ['*'], environments: ['live'] as const }
  expect((await keys.rotate({ as: { operator: { ...operator, grants } }, id: key.id, expiresAt: LATER })).key.expiresAt).toBe(LATER)
  await expect(keys.rotate({ as: { operator }, id: key.id, expiresAt: SOON })).rejects.toMatchObject({ code: 'insufficient_scope' })
})

test('an expiry that has passed, one that is none, and one beyond maxLifetimeMs are refused, and nothing is rotated', async () => {
  const strict = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, maxLifetimeMs: 15 * DAY })
  const { key, secret } = await strict.create({ ...application, expiresAt: SOON })
  for (const expiresAt of [new Date(0), 'soon', LATER, null, 5 as never]) {
    await expect(strict.rotate({ as: 'application', id: key.id, expiresAt })).rejects.toMatchObject({ code: 'invalid_request' })
  }
  expect(await strict.verify(secret)).toMatchObject({ ok: true, key: { generation: 1, expiresAt: SOON } })
  await strict.close()
})

test('a key that has expired lives again with a new secret where the application gives it another expiry', async () => {
  const { key, secret } = await keys.create({ ...application, expiresAt: new Date(Date.now() + 40) })
  for (let known = await keys.get(key.id); known?.status === 'active'; known = await keys.get(key.id)) await new Promise(setImmediate)
  await expect(keys.rotate({ as: 'application', id: key.id })).rejects.toMatchObject({ code: 'key_expired' })
  const rotated = await keys.rotate({ as: 'application', id: key.id, expiresAt: SOON })
  expect([(await keys.verify(rotated.secret)).ok, (await keys.verify(secret)).ok]).toEqual([true, false])
})

test('P1: the same Idempotency-Key with another expiry is refused, and with the same one it is the same rotation', async () => {
  const { key } = await keys.create({ ...application, expiresAt: SOON })
  const idempotencyKey = 'rotate-with-an-expiry-0001'
  const rotate = (expiresAt?: string) => keys.rotate({ as: 'application', id: key.id, idempotencyKey, ...(expiresAt && { expiresAt }) })
  const { secret } = await rotate(LATER)
  expect(await rotate(LATER)).toMatchObject({ secret, replayed: true })
  for (const other of [SOON, undefined]) await expect(rotate(other)).rejects.toMatchObject({ code: 'idempotency_key_mismatch' })
})
