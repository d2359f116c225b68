import { spawn } from 'node:child_process'
import { once } from 'node:events'
import bcrypt from 'bcrypt'
import { type ApiKeyError, createApiKeys, type IssuedKey, memoryStore, type Store } from 'express-api-keys'
import Database from 'libsql'
import { createConnection } from 'mysql2'
import { Client } from 'pg'
import { TestClock } from '../support/clock.js'
import { serve } from '../support/instance.js'
import { SERVER_SECRET } from '../support/process.js'
import { stores, type TestStore } from '../support/stores.js'
import { type Answer, call } from '../support/traffic.js'

type Keys = ReturnType<typeof createApiKeys>

const UNGUESSABLE = 'an-idempotency-key-of-at-least-22'

describe.each(stores)('on %s', (name, makeStore) => {
  test('P2: an answer that was lost forty times in a row is given for the next time of asking', async () => {
    const { rotate, secret } = await rotated(await makeStore())
    for (let n = 0; n < 40; n++) {
      const answer = await rotate()
      expect([answer.status, secretOf(answer)]).toEqual([200, secret])
    }
  })

  test('P2: a replay takes no transaction', async () => {
    const made = await makeStore()
    let transactions = 0
    const store: Store = {
      ...made.store,
      transaction(work) {
        transactions++
        return made.store.transaction(work)
      },
    }
    const { rotate } = await rotated({ ...made, store })
    await rotate()
    // That line of the audit trail is written once a minute, behind the answer.
    while ((await made.query(`select 1 from express_api_key_events where type = 'key.replayed'`)).length === 0) await turn()
    expect(transactions).toBeGreaterThan(0)
    transactions = 0
    for (let n = 0; n < 10; n++) expect((await rotate()).status).toBe(200)
    expect(transactions).toBe(0)
  })

  test('P2: a replay waits for no row, and for nobody who writes', async () => {
    const made = await makeStore()
    const { rotate, secret } = await rotated(made)
    const letGo = await lockKeys(name, made)
    try {
      expect(secretOf(await rotate())).toBe(secret)
    } finally {
      await letGo()
    }
  })

  test('P4: a revocation leaves no sealed answer of its key behind', async () => {
    const made = await makeStore()
    const { keys, id } = await rotated(made)
    const sealed = (): Promise<unknown[]> => made.query('select id from express_api_key_replays where sealed is not null')
    expect(await sealed()).toHaveLength(1)
    await keys.revoke({ as: 'application', id })
    expect(await sealed()).toEqual([])
  })
})

test('P2: a replay compares no rotation secret: the seal opens for it or does not', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  const { secret, rotationSecret = '' } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', rotationSecret: true })
  const rotate = (second: string): Promise<IssuedKey> => keys.rotate({ as: { secret }, idempotencyKey: 'k', rotationSecret: second })
  const compare = jest.spyOn(bcrypt, 'compare')
  const first = await rotate(rotationSecret)
  expect(compare).toHaveBeenCalledTimes(1)
  for (let n = 0; n < 5; n++) expect(await rotate(rotationSecret)).toMatchObject({ replayed: true, secret: first.secret })
  expect(compare).toHaveBeenCalledTimes(1)
  await expect(rotate(first.rotationSecret ?? '')).rejects.toMatchObject({ code: 'invalid_key' })
  compare.mockRestore()
  await keys.close()
})

test('P1: the application that repeats a rotation with its Idempotency-Key gets one rotation and one answer', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const rotate = (): Promise<IssuedKey> => keys.rotate({ as: 'application', id: key.id, idempotencyKey: UNGUESSABLE })
  const first = await rotate()
  expect(await rotate()).toMatchObject({ replayed: true, secret: first.secret })
  expect((await keys.get(key.id))?.generation).toBe(2)
  await keys.close()
})

test('P3: what is held from before a lowering is waited for in full on the clock of whoever lowered it, counted from its commit', async () => {
  const [clock, storeClock] = [new TestClock(), new TestClock()]
  const inner = memoryStore({ now: () => storeClock.wallMs() })
  let commitMs = 0
  const store: Store = {
    ...inner,
    shared: true,
    async setLease(ms) {
      const change = await inner.setLease(ms)
      clock.advance(commitMs)
      return change
    },
  }
  const waited = (): Promise<number> => inner.transaction((tx) => tx.waitMs())
  const instance = (leaseMs: number): Keys => createApiKeys({ store, serverSecret: SERVER_SECRET, clock, leaseMs })
  const before = instance(10_000)
  await before.migrate()
  const { secret } = await before.create({ as: 'application', ownerId: 'acme', name: 'n' })
  commitMs = 700
  const lowering = instance(1_000)
  await lowering.migrate()
  for (const [ms, left] of [
    [0, 10_000],
    [2_000, 10_000],
    // A millisecond before the lease and its margin are over.
    [8_099, 10_000],
    [1_001, 1_000],
  ] as const) {
    clock.advance(ms)
    // Whatever the store takes the time to be.
    storeClock.advance(3_600_000)
    expect(await lowering.verify(secret)).toMatchObject({ ok: true })
    for (let n = 0; n < 20; n++) await turn()
    expect([ms, await waited()]).toEqual([ms, left])
  }
  for (const keys of [before, lowering]) await keys.close()
})

test('P3: an instance that was closed accepts nothing, not even what it has a lease on', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, leaseMs: 60_000 })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const verdict = await keys.verify(secret)
  expect([verdict.ok && verdict.live(), keys.peek(secret)?.ok]).toEqual([true, true])
  await keys.close()
  expect([verdict.ok && verdict.live(), keys.peek(secret)]).toEqual([false, undefined])
  await expect(keys.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
})

test('P4: the first use of the new secret closes its answer when the grace is over, whether or not a seal is erased', async () => {
  const clock = new TestClock()
  const { keys, store, secret, rotate } = await unerased(clock)
  const first = await rotate()
  await keys.verify(first.secret)
  while ((await store.key(first.key.id))?.generation.firstUsedAt === null) await turn()
  clock.advance(9_999)
  expect((await rotate()).secret).toBe(first.secret)
  clock.advance(1)
  await expect(rotate()).rejects.toMatchObject({ code: 'invalid_key' })
  expect(await keys.verify(secret)).toMatchObject({ ok: false })
})

test('P4: an answer whose end was moved in the store closes ten minutes after its window at the latest', async () => {
  const clock = new TestClock()
  const { rotate } = await unerased(clock, (expiresAt) => expiresAt + 86_400_000)
  const first = await rotate()
  clock.advance(600_000 + 60_000 - 1)
  expect((await rotate()).secret).toBe(first.secret)
  clock.advance(1)
  await expect(rotate()).rejects.toMatchObject({ code: 'invalid_key' })
})

test('P5: a fault of the store is told with its cause, once a minute', async () => {
  const clock = new TestClock()
  const told: ApiKeyError[] = []
  const cause = Object.assign(new Error('permission denied for table express_api_keys'), { code: '42501' })
  const store: Store = { ...memoryStore(), read: () => Promise.reject(cause) }
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, clock, onError: (error) => void told.push(error) })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  for (const count of [1, 1, 2]) {
    if (count === 2) clock.advance(60_000)
    await expect(keys.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
    expect(told).toHaveLength(count)
  }
  expect(told[0]).toMatchObject({ code: 'store_unavailable', cause })
  await keys.close()
})

test('P5: an onError that fails later leaves its process alone, which says so', async () => {
  const program = `
    import { createApiKeys, memoryStore } from './src/index.ts'
    const store = { ...memoryStore(), read: async () => { throw new Error('the store is away') } }
    const onError = async () => { throw new Error('the log is away') }
    const keys = createApiKeys({ store, serverSecret: '${SERVER_SECRET}', onError })
    const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    await keys.verify(secret).catch(() => {})
    setTimeout(() => console.log('alive'), 50)`
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', program], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      said += chunk
    })
  }
  const [code] = await once(child, 'close')
  expect(said).toContain('onError has failed: (Error the log is away)')
  expect([code, said.endsWith('alive\n')]).toEqual([0, true])
})

test('who does not say who asks is refused, and nothing changes', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const { id } = key
  const refused = { code: 'invalid_request' }
  for (const who of [{}, { as: undefined }, { as: { secret: undefined } }, { as: null }] as never[]) {
    await expect(keys.create({ ...(who as object), ownerId: 'acme', name: 'x' } as never)).rejects.toMatchObject(refused)
    await expect(keys.rotate({ ...(who as object), id } as never)).rejects.toMatchObject(refused)
    await expect(keys.revoke({ ...(who as object), id } as never)).rejects.toMatchObject(refused)
    await expect(keys.update({ ...(who as object), id, changes: { name: 'x' } } as never)).rejects.toMatchObject(refused)
  }
  expect((await keys.list({ ownerId: 'acme' })).items).toEqual([key])
  expect(await keys.verify(secret)).toMatchObject({ ok: true })
  await keys.close()
})

test('a key without the scope to write changes no key but itself, not even one that may less', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  const make = (scopes: string[]): Promise<IssuedKey> => keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes })
  const [{ secret }, other] = [await make(['a', 'api_keys:read']), await make([])]
  const command = { as: { secret }, id: other.key.id }
  const forbidden = { code: 'insufficient_scope' }
  await expect(keys.create({ as: { secret }, name: 'x' })).rejects.toMatchObject(forbidden)
  await expect(keys.rotate(command)).rejects.toMatchObject(forbidden)
  await expect(keys.revoke(command)).rejects.toMatchObject(forbidden)
  await expect(keys.update({ ...command, changes: { name: 'x' } })).rejects.toMatchObject(forbidden)
  expect(await keys.get(other.key.id)).toEqual(other.key)
  await keys.close()
})

test('a key hands out no more than it has, and an admin key what it likes', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  const make = (scopes: string[]): Promise<IssuedKey> => keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes })
  const [writer, admin, above] = [await make(['api_keys:write', 'a']), await make(['api_keys:admin']), await make(['b'])]
  const beyond = (secret: string): (() => Promise<unknown>)[] => [
    () => keys.create({ as: { secret }, name: 'x', scopes: ['b'] }),
    () => keys.rotate({ as: { secret }, id: above.key.id }),
    () => keys.update({ as: { secret }, id: above.key.id, changes: { scopes: [] } }),
  ]
  for (const ask of beyond(writer.secret)) await expect(ask()).rejects.toMatchObject({ code: 'insufficient_scope' })
  expect(await keys.create({ as: { secret: writer.secret }, name: 'x', scopes: ['a'] })).toMatchObject({ key: { scopes: ['a'] } })
  for (const ask of beyond(admin.secret)) await ask()
  await keys.close()
})

test('an operator hands out no more than it was granted, and one that was granted nothing hands out nothing', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  const operator = { issuer: 'https://id.example', subject: 'ada', scopes: ['api_keys:write'], owners: 'all' } as const
  const create = (grants: object, scopes: string[]): Promise<IssuedKey> =>
    keys.create({ as: { operator: { ...operator, ...grants } }, ownerId: 'acme', name: 'n', scopes })
  const granted = { grants: { scopes: ['a'], environments: ['live'] } }
  await expect(create({}, [])).rejects.toMatchObject({ code: 'insufficient_scope' })
  await expect(create(granted, ['b'])).rejects.toMatchObject({ code: 'insufficient_scope' })
  expect(await create(granted, ['a'])).toMatchObject({ key: { scopes: ['a'] } })
  await keys.close()
})

/** A key that has rotated itself, whose answer is settled; `secret` is the new one, and `rotate` repeats the request. */
async function rotated({ store }: TestStore): Promise<{ keys: Keys; id: string; secret: string; rotate: () => Promise<Answer> }> {
  const { keys, url } = await serve(store)
  const made = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const rotate = (): Promise<Answer> => call(`${url}/keys/self/rotate`, { method: 'POST', secret: made.secret, idempotencyKey: 'lost' })
  const first = await rotate()
  expect(first.status).toBe(200)
  return { keys, id: made.key.id, secret: secretOf(first), rotate }
}

/** Keys over a store that erases no seal, and says of a record that its window ends when it is told; the window is a minute. */
async function unerased(
  clock: TestClock,
  ends: (expiresAt: number) => number = (expiresAt) => expiresAt,
): Promise<{ keys: Keys; store: Store; secret: string; rotate: () => Promise<IssuedKey> }> {
  const inner = memoryStore({ now: () => clock.wallMs() })
  const store: Store = {
    ...inner,
    eraseSeals: async () => {},
    async replays(ids) {
      const answer = await inner.replays(ids)
      const found = answer.found.map(({ record, made }) => ({ record: { ...record, expiresAt: ends(record.expiresAt) }, made }))
      return { ...answer, found }
    },
  }
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, clock, replayWindowMs: 60_000 })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  return { keys, store, secret, rotate: () => keys.rotate({ as: { secret }, idempotencyKey: 'k' }) }
}

/** Holds a lock on every key, as a change of it does, until it is let go. */
async function lockKeys(name: string, { url }: TestStore): Promise<() => Promise<void>> {
  if (name === 'SQLite') {
    const database = new Database(url)
    database.exec('begin immediate')
    return async () => {
      database.exec('rollback')
      database.close()
    }
  }
  if (name === 'MariaDB') {
    const connection = createConnection({ uri: url }).promise()
    await connection.query('start transaction')
    await connection.query('select id from express_api_keys for update')
    return () => connection.end()
  }
  const client = new Client({ connectionString: url })
  await client.connect()
  await client.query('begin')
  await client.query('select id from express_api_keys for update')
  return async () => {
    await client.query('rollback')
    await client.end()
  }
}

function turn(): Promise<unknown> {
  return new Promise(setImmediate)
}

function secretOf({ body }: Answer): string {
  return (body as { secret: string }).secret
}
