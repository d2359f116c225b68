import { createHash, randomUUID } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import {
  type ApiKeys,
  type ApiKeysOptions,
  createApiKeys,
  type IssuedKey,
  legacyFormat,
  memoryStore,
  type Operator,
  type Store,
} from 'express-api-keys'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import { auditTrail } from '../../src/core/audit.js'
import { background } from '../../src/core/background.js'
import { systemClock } from '../../src/core/clock.js'
import { type HousekeepingParts, housekeeping } from '../../src/core/housekeeping.js'
import { atEnd } from '../support/cleanup.js'
import { TestClock } from '../support/clock.js'
import { dumpDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'
import { startRedis } from '../support/redis.js'
import { stores } from '../support/stores.js'

const application = { as: 'application' } as const
const DAY_MS = 86_400_000

function instance(store: Store, options: Partial<ApiKeysOptions> = {}): ApiKeys {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 250, onError: () => {}, ...options })
  atEnd(() => keys.close())
  return keys
}

const make = (keys: ApiKeys, ownerId: string, more: object = {}): Promise<IssuedKey> =>
  keys.create({ ...application, ownerId, name: `of ${ownerId}`, ...more })

describe.each([['memory', async () => ({ store: memoryStore() })], ...stores] as const)('on %s', (_name, makeStore) => {
  test('P3: all keys of an owner are ended at once, on every instance, those too that are made meanwhile', async () => {
    const { store } = await makeStore()
    // One of them hears of nothing, and is waited for.
    const [here, there] = [instance(store, { leaseMs: 1_500 }), instance(store, { leaseMs: 1_500 })]
    const deaf = instance(store, { leaseMs: 1_500, recall: false })
    await here.migrate()
    const mine: IssuedKey[] = []
    for (let n = 0; n < 12; n++) mine.push(await make(here, 'acme'))
    const other = await make(here, 'globex')
    const [graced] = mine as [IssuedKey]
    const fresh = await here.rotate({ as: { secret: graced.secret }, idempotencyKey: 'k', retire: { afterMs: 60_000 } })
    const secrets = [...mine.map(({ secret }) => secret), fresh.secret]
    for (const secret of [...secrets, other.secret]) for (const keys of [there, deaf]) expect((await keys.verify(secret)).ok).toBe(true)
    // From here on it accepts what it knows, for as long as its lease.
    while (deaf.peek(fresh.secret)?.ok !== true) await deaf.verify(fresh.secret)
    const ended = here.revokeAll({ ...application, ownerId: 'acme', reason: 'closed' })
    const late = await make(there, 'acme').catch(() => undefined)
    const { revoked } = await ended
    expect(revoked).toBeGreaterThanOrEqual(12)
    for (const secret of secrets) for (const keys of [here, there, deaf]) expect(keys.peek(secret)?.ok ?? false).toBe(false)
    for (const secret of secrets)
      for (const keys of [here, there]) expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'revoked' })
    expect((await there.verify(other.secret)).ok).toBe(true)
    if (late !== undefined) await here.revokeAll({ ...application, ownerId: 'acme' })
    expect((await here.list({ ownerId: 'acme', status: 'active' })).items).toEqual([])
    expect((await here.events({ id: graced.key.id }))?.items[0]).toMatchObject({
      type: 'key.revoked',
      actor: 'system',
      details: { reason: 'closed' },
    })
    // A lost answer from before is not handed out any more.
    await expect(here.rotate({ as: { secret: graced.secret }, idempotencyKey: 'k', retire: { afterMs: 60_000 } })).rejects.toMatchObject({
      code: 'invalid_key',
    })
  })

  test('more than one batch is ended, pruned and erased, and others are left alone', async () => {
    const { store } = await makeStore()
    const old = legacyFormat({ match: /old_\w+/, randomBits: 128 })
    const keys = instance(store, { legacyFormats: [old] })
    await keys.migrate()
    const rows = (count: number, ownerId: string, more: object = {}): object[] =>
      Array.from({ length: count }, (_, n) => ({
        hash: createHash('sha256').update(`old_${ownerId}${n}`).digest(),
        ownerId,
        name: `${n}`,
        ...more,
      }))
    await keys.import([...rows(1_100, 'acme'), ...rows(3, 'globex'), ...rows(700, 'past', { revokedAt: '2020-01-01T00:00:00Z' })] as never)
    expect(await keys.revokeAll({ ...application, ownerId: 'acme' })).toEqual({ revoked: 1_100 })
    const progress: number[] = []
    expect(await keys.prune({ revokedBefore: '2020-01-02T00:00:00Z', onProgress: ({ keys: count }) => void progress.push(count) })).toEqual(
      { events: 0, replays: 0, keys: 700 },
    )
    expect(progress).toEqual([500, 700])
    // What was pruned is no key any more, and cannot come back.
    expect(await keys.import(rows(700, 'past') as never)).toMatchObject({ imported: 0, existing: 700 })
    expect(await keys.verify('old_past0')).toEqual({ ok: false, reason: 'unknown' })
    expect(await keys.erase({ ...application, ownerId: 'acme' })).toEqual({ keys: 1_100, events: 2_200, replays: 0, tombstones: 1_100 })
    expect((await keys.list({})).items.map(({ ownerId }) => ownerId)).toEqual(['globex', 'globex', 'globex'])
    expect(await keys.erase({ ...application, ownerId: 'acme' })).toEqual({ keys: 0, events: 0, replays: 0, tombstones: 0 })
  })

  test('old events, records and expired keys are pruned, and what is young enough to be asked for is not', async () => {
    const { store } = await makeStore()
    const keys = instance(store)
    await keys.migrate()
    const { secret, key } = await make(keys, 'acme')
    await keys.rotate({ as: { secret }, idempotencyKey: 'k' })
    const expiring = await make(keys, 'acme', { expiresAt: new Date(Date.now() + 3_000) })
    expect((await keys.verify(expiring.secret)).ok).toBe(true)
    const day = (ago: number): Date => new Date(Date.now() - ago * DAY_MS)
    expect(await keys.prune({ eventsBefore: day(0.5), replaysBefore: day(2), expiredBefore: day(1) })).toEqual({
      events: 0,
      replays: 0,
      keys: 0,
    })
    expect((await keys.rotate({ as: { secret }, idempotencyKey: 'k' })).replayed).toBe(true)
    expect((await keys.events({ id: key.id }))?.items.length).toBeGreaterThan(0)
    await expect(keys.prune({ replaysBefore: day(0.9) })).rejects.toThrow('replaysBefore must be at least 24 hours ago')
    const { events } = await keys.prune({ eventsBefore: new Date(Date.now() - 1) })
    expect(events).toBeGreaterThanOrEqual(1)
  })
})

test.each<[string, object, string]>([
  ['nothing', {}, 'Say what to prune'],
  ['an instant that has not come', { eventsBefore: '2200-01-01T00:00:00Z' }, 'eventsBefore must be an instant that has passed.'],
  ['no instant', { revokedBefore: 'yesterday' }, 'revokedBefore must be an RFC 3339 instant'],
  ['null', { eventsBefore: null }, 'eventsBefore must be an instant that has passed.'],
  ['a wrong name', { eventBefore: '2020-01-01T00:00:00Z' }, 'Write "eventsBefore" instead.'],
])('prune refuses %s', async (_case, options, said) => {
  await expect(instance(memoryStore()).prune(options)).rejects.toThrow(said)
})

test('only the application, and operators for their owners, end all keys of one', async () => {
  const keys = instance(memoryStore())
  const { secret } = await make(keys, 'acme', { scopes: ['api_keys:admin'] })
  const operator: Operator = {
    issuer: 'i',
    subject: 's',
    scopes: ['api_keys:admin'],
    owners: ['acme'],
    grants: { scopes: [], environments: [] },
  } as never
  const refused: readonly [object, string][] = [
    [{ ownerId: 'acme' }, 'as must say who asks'],
    [{ as: { secret }, ownerId: 'acme' }, 'a key ends one key at a time'],
    [{ as: { operator }, ownerId: 'globex' }, 'api_keys:admin, for this owner'],
    [{ as: { operator: { ...operator, scopes: ['api_keys:write'] } }, ownerId: 'acme' }, 'api_keys:admin, for this owner'],
    [{ ...application, ownerId: '*' }, 'ownerId must not be "*"'],
    [{ ...application }, 'ownerId must be a string'],
    [{ ...application, ownerId: undefined }, 'ownerId must be a string'],
    [{ ...application, ownerid: 'acme' }, 'Write "ownerId" instead.'],
  ]
  for (const [command, said] of refused) {
    await expect(keys.revokeAll(command as never)).rejects.toThrow(said)
    await expect(keys.erase(command as never)).rejects.toThrow(said)
  }
  expect((await keys.verify(secret)).ok).toBe(true)
  expect(await keys.revokeAll({ as: { operator }, ownerId: 'acme' })).toEqual({ revoked: 1 })
  expect((await keys.verify(secret)).ok).toBe(false)
})

test.each(stores)('on %s, after an owner was erased no byte of theirs is left but digests', async (name, makeStore) => {
  const { store, url } = await makeStore()
  const redis = await startRedis()
  const client = new Redis(redis.url)
  atEnd(async () => client.disconnect())
  const keys = instance(store, { cache: redisCache(client) })
  await keys.migrate()
  const words = ['Mustermann-owner', 'Mustermann-name', 'Mustermann-metadata', '203.0.113.77', 'Mustermann-agent', 'Mustermann-reason']
  const [ownerId, keyName, note, ip, userAgent, reason] = words as [string, string, string, string, string, string]
  const origin = { ip, userAgent }
  const made = await keys.create({ ...application, ownerId, name: keyName, metadata: { note }, origin, idempotencyKey: randomUUID() })
  const kept = await make(keys, 'globex')
  const { secret } = await keys.rotate({ as: { secret: made.secret }, idempotencyKey: 'k', origin })
  for (let n = 0; n < 3; n++) expect((await keys.verify(secret)).ok).toBe(true)
  const ended = await keys.create({ ...application, ownerId, name: keyName })
  await keys.revoke({ ...application, id: ended.key.id, reason, origin })
  const dump = async (): Promise<string> => {
    const bytes =
      name === 'PostgreSQL'
        ? await tables(url)
        : Buffer.concat(readdirSync(dirname(url)).map((file) => readFileSync(join(dirname(url), file))))
    return bytes.toString('latin1') + (await redis.dump())
  }
  const before = await dump()
  for (const word of words) expect([word, before.includes(word)]).toEqual([word, true])
  expect(before).toContain(made.key.id)
  const erased = await keys.erase({ ...application, ownerId })
  expect(erased).toEqual({ keys: 2, events: expect.any(Number), replays: 2, tombstones: 3 })
  const after = await dump()
  for (const word of [...words, made.key.id, ended.key.id]) expect([word, after.includes(word)]).toEqual([word, false])
  expect(after).toContain(createHash('sha256').update(secret).digest('base64url'))
  expect(await keys.verify(secret)).toMatchObject({ ok: false })
  expect((await keys.verify(kept.secret)).ok).toBe(true)
})

/** A logical dump: every row of every table, without the server's log of what was. */
async function tables(url: string): Promise<Buffer> {
  const whole = (await dumpDatabase(url, 'z')).toString('latin1')
  return Buffer.from(whole, 'latin1')
}

test('a clock that jumps back makes nothing good again that was pruned', async () => {
  const clock = new TestClock()
  const store = memoryStore({ now: clock.wallMs })
  const keys = instance(store, { clock })
  const { secret } = await make(keys, 'acme', { expiresAt: new Date(clock.wallMs() + 60_000) })
  clock.advance(120_000)
  expect(await keys.prune({ expiredBefore: new Date(clock.wallMs() - 1) })).toMatchObject({ keys: 1 })
  clock.setWall(-100_000)
  expect(await instance(store, { clock }).verify(secret)).toMatchObject({ ok: false })
})

test('P3: to end the keys of an owner, or to remove them, waits until every instance knows of it', async () => {
  const store = memoryStore()
  const { key } = await make(instance(store), 'acme')
  const gates: (() => void)[] = []
  const recalls = { settled: () => new Promise<void>((resolve) => gates.push(resolve)) } as unknown as HousekeepingParts['recalls']
  const house = housekeeping({ store, clock: systemClock, recalls, replayWindowMs: 600_000, tell: () => {} })
  let isOver = false
  const ended = house.revokeAll({ ...application, ownerId: 'acme' }).then(() => {
    isOver = true
  })
  // It is committed, and not answered.
  while (gates.length === 0) await new Promise(setImmediate)
  for (let turns = 0; turns < 20; turns++) await new Promise(setImmediate)
  expect([(await store.key(key.id))?.key.revokedAt, isOver]).toEqual([expect.any(Number), false])
  gates[0]?.()
  while (gates.length < 2) await new Promise(setImmediate)
  gates[1]?.()
  await ended
})

test('P3: to end keys that another call has just ended waits until every instance knows of that', async () => {
  const store = memoryStore()
  const keys = instance(store)
  await make(keys, 'acme')
  await keys.revokeAll({ ...application, ownerId: 'acme' })
  const asked: unknown[] = []
  const recalls = { settled: async ({ change }: { change: unknown }) => void asked.push(change) } as unknown as HousekeepingParts['recalls']
  const house = housekeeping({ store, clock: systemClock, recalls, replayWindowMs: 600_000, tell: () => {} })
  expect(await house.revokeAll({ ...application, ownerId: 'acme' })).toEqual({ revoked: 0 })
  // Which digests it was about is not known: everything up to now.
  expect(asked).toStrictEqual([undefined])
})

test('a key that is given a later expiry while it is being pruned stays', async () => {
  const clock = new TestClock()
  const inner = memoryStore({ now: clock.wallMs })
  const customer = instance(inner, { clock })
  const { key, secret } = await make(customer, 'acme', { expiresAt: new Date(clock.wallMs() + 60_000) })
  clock.advance(120_000)
  let isLate = false
  const store: Store = {
    ...inner,
    async keyIds(choice, limit) {
      const found = await inner.keyIds(choice, limit)
      if (!isLate) await customer.update({ ...application, id: key.id, changes: { expiresAt: new Date(clock.wallMs() + DAY_MS) } })
      isLate = true
      return found
    },
  }
  expect(await instance(store, { clock }).prune({ expiredBefore: new Date(clock.wallMs() - 1) })).toMatchObject({ keys: 0 })
  expect((await customer.verify(secret)).ok).toBe(true)
})

test('a store whose clock was set forward lets nothing be pruned that is still good', async () => {
  const clock = new TestClock()
  const keys = instance(memoryStore({ now: () => clock.wallMs() + 400 * DAY_MS }), { clock })
  const { secret } = await make(keys, 'acme')
  await expect(keys.prune({ expiredBefore: new Date(clock.wallMs() + 100 * DAY_MS) })).rejects.toThrow('must be an instant that has passed')
  await expect(keys.prune({ replaysBefore: new Date(clock.wallMs() - 1_000) })).rejects.toThrow('at least 24 hours ago')
  expect((await keys.verify(secret)).ok).toBe(true)
})

test('a line that was waiting for the audit trail is not written once its key is erased', async () => {
  const store = memoryStore()
  const keys = instance(store)
  const { key } = await make(keys, 'acme')
  const row = (await store.key(key.id))?.key
  if (row === undefined) throw new Error('There is no such key.')
  const behind = background(() => {})
  const audit = auditTrail({ store, clock: systemClock, tell: () => {}, background: behind })
  const line = { type: 'key.replayed', key: row, actor: 'system', origin: { ip: '203.0.113.77' }, details: {} } as const
  audit.writeLater(line)
  await behind.idle()
  expect((await store.trail({ ownerId: 'acme', limit: 10 })).map(({ type }) => type)).toContain('key.replayed')
  await keys.erase({ ...application, ownerId: 'acme' })
  audit.writeLater(line)
  await behind.idle()
  expect(await store.trail({ limit: 10 })).toEqual([])
})
