import express from 'express'
import { type ApiKeys, createApiKeys, keyRouter, memoryStore, type Operator } from 'express-api-keys'
import { type TestApiKeys, testApiKeys } from 'express-api-keys/testing'
import { exchange } from '../../support/contract.js'
import { listen } from '../../support/listen.js'
import { SERVER_SECRET } from '../../support/process.js'

const DAY = 86_400_000
const MAX = 90 * DAY
const TOO_LONG = { code: 'invalid_request', message: `expiresAt must be at most ${MAX} ms from now: no key may live for longer here.` }
const APPLICATION = { as: 'application', ownerId: 'acme', name: 'n' } as const

let test90: TestApiKeys
let keys: ApiKeys
const ahead = (ms: number): string => new Date(test90.clock.wallMs() + ms).toISOString()

beforeEach(async () => {
  test90 = await testApiKeys({ maxLifetimeMs: MAX })
  keys = test90.keys
})
afterEach(() => test90.close())

test('a new key lives as long as it says, or as long as it may where it says nothing', async () => {
  expect((await keys.create({ ...APPLICATION, expiresAt: ahead(DAY) })).key.expiresAt).toBe(ahead(DAY))
  expect((await keys.create({ ...APPLICATION, expiresAt: ahead(MAX) })).key.expiresAt).toBe(ahead(MAX))
  const { key, secret } = await keys.create(APPLICATION)
  expect(key.expiresAt).toBe(ahead(MAX))
  test90.clock.advance(MAX - 1)
  expect(await keys.verify(secret)).toMatchObject({ ok: true })
  test90.clock.advance(1)
  expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'expired' })
})

test('no key is made to live longer, whoever asks', async () => {
  const admin = await keys.create({ ...APPLICATION, scopes: ['api_keys:admin'] })
  const { key } = await keys.create({ ...APPLICATION, name: 'another' })
  const operator: Operator = {
    ...{ issuer: 'https://id.example', subject: 'ada', scopes: ['*'] },
    owners: 'all',
    grants: { scopes: ['*'], environments: ['live'] },
  }
  for (const as of ['application' as const, { secret: admin.secret }, { operator }]) {
    for (const expiresAt of [null, ahead(MAX + 61_000), '9999-12-31T23:59:59Z']) {
      await expect(keys.create({ ...APPLICATION, as, expiresAt })).rejects.toMatchObject(TOO_LONG)
      await expect(keys.update({ as, id: key.id, changes: { expiresAt } })).rejects.toMatchObject(TOO_LONG)
    }
  }
  expect((await keys.list({ ownerId: 'acme' })).items).toHaveLength(2)
  expect(await keys.get(key.id)).toEqual(key)
})

test('a clock that is a little ahead of the store is no reason to refuse', async () => {
  expect((await keys.create({ ...APPLICATION, expiresAt: ahead(MAX + 60_000) })).key.expiresAt).toBe(ahead(MAX + 60_000))
  await expect(keys.create({ ...APPLICATION, expiresAt: ahead(MAX + 60_001) })).rejects.toMatchObject(TOO_LONG)
})

test('a change may renew a key for as long as a new one, counted from the change', async () => {
  const { key } = await keys.create(APPLICATION)
  test90.clock.advance(30 * DAY)
  const { key: renewed } = await keys.update({ as: 'application', id: key.id, changes: { expiresAt: ahead(MAX) } })
  expect(renewed.expiresAt).toBe(ahead(MAX))
  const { key: renamed } = await keys.update({ as: 'application', id: key.id, changes: { name: 'm' } })
  expect(renamed.expiresAt).toBe(renewed.expiresAt)
})

test('a rotation keeps the expiry, and a successor gets it', async () => {
  const { key } = await keys.create({ ...APPLICATION, expiresAt: ahead(DAY) })
  test90.clock.advance(1_000)
  const same = await keys.rotate({ as: 'application', id: key.id })
  expect(same.key.expiresAt).toBe(key.expiresAt)
  expect((await keys.rotate({ as: 'application', id: key.id, identity: 'successor' })).key.expiresAt).toBe(key.expiresAt)
})

test('a key from before the policy keeps its expiry through rotations and changes, or gets an earlier one', async () => {
  const store = memoryStore()
  const before = createApiKeys({ store, serverSecret: SERVER_SECRET })
  const endless = await before.create(APPLICATION)
  const late = await before.create({ ...APPLICATION, expiresAt: '9000-01-01T00:00:00.000Z' })
  const after = createApiKeys({ store, serverSecret: SERVER_SECRET, maxLifetimeMs: MAX })
  const change = async (id: string, expiresAt: string | null): Promise<string | null> =>
    (await after.update({ as: 'application', id, changes: { expiresAt } })).key.expiresAt
  expect((await after.rotate({ as: 'application', id: endless.key.id })).key.expiresAt).toBeNull()
  expect(await change(endless.key.id, null)).toBeNull()
  expect(await change(late.key.id, '9000-01-01T00:00:00.000Z')).toBe('9000-01-01T00:00:00.000Z')
  expect(await change(late.key.id, '8000-01-01T00:00:00.000Z')).toBe('8000-01-01T00:00:00.000Z')
  await expect(change(late.key.id, '8000-01-01T00:00:00.001Z')).rejects.toMatchObject(TOO_LONG)
  await expect(change(late.key.id, null)).rejects.toMatchObject(TOO_LONG)
  expect(await change(endless.key.id, '8000-01-01T00:00:00.000Z')).toBe('8000-01-01T00:00:00.000Z')
  await expect(change(endless.key.id, null)).rejects.toMatchObject(TOO_LONG)
})

test('a retry gets the expiry of the key that was made, however late it comes', async () => {
  const command = { ...APPLICATION, idempotencyKey: 'a-value-that-is-made-at-random' }
  const made = await keys.create(command)
  test90.clock.advance(1_000)
  const repeated = await keys.create(command)
  expect([repeated.replayed, repeated.secret, repeated.key.expiresAt]).toEqual([true, made.secret, made.key.expiresAt])
})

test('a delegate outlives neither the policy nor its maker', async () => {
  const writer = await keys.create({ ...APPLICATION, scopes: ['api_keys:write'], expiresAt: ahead(DAY) })
  const as = { secret: writer.secret }
  await expect(keys.create({ as, name: 'n' })).rejects.toMatchObject({ code: 'insufficient_scope' })
  expect((await keys.create({ as, name: 'n', expiresAt: ahead(DAY) })).key.expiresAt).toBe(ahead(DAY))
})

test('over HTTP it is a 400 that says how far ahead an expiry may be', async () => {
  const { secret } = await keys.create({ ...APPLICATION, scopes: ['api_keys:admin'] })
  const url = await listen(express().use(keyRouter(keys)))
  const post = (body: object): ReturnType<typeof exchange> => exchange(url, { method: 'POST', path: '/', secret, body })
  for (const expiresAt of [null, ahead(MAX + DAY)]) {
    expect(await post({ name: 'n', expiresAt })).toMatchObject({ status: 400, body: { code: 'invalid_request', detail: TOO_LONG.message } })
  }
  expect(await post({ name: 'n' })).toMatchObject({ status: 201, body: { key: { expiresAt: ahead(MAX) } } })
})

test.each<[string, unknown]>([
  ['undefined, which would lift the bound', undefined],
  ['no number', Number.NaN],
  ['endless', Number.POSITIVE_INFINITY],
  ['text', '90d'],
  ['less than a minute', 59_999],
  ['more than a century', 36_525 * DAY + 1],
  ['half a millisecond', 60_000.5],
])('refuses at start-up a maxLifetimeMs that is %s', (_what, maxLifetimeMs) => {
  const make = (): ApiKeys => createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, maxLifetimeMs: maxLifetimeMs as number })
  expect(make).toThrow(expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining('maxLifetimeMs') }))
})
