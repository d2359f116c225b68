import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type ApiKeys, type ApiKeysOptions, createApiKeys, memoryStore, type Store, type Verified } from 'express-api-keys'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import { postgresStore } from '../../../src/store/sql/postgres.js'
import { atEnd } from '../../support/cleanup.js'
import { TestClock } from '../../support/clock.js'
import { freshDatabase } from '../../support/postgres.js'
import { SERVER_SECRET } from '../../support/process.js'
import { startRedis } from '../../support/redis.js'
import { stores } from '../../support/stores.js'

const places: readonly (readonly [string, () => Promise<Store>])[] = [
  ['memory', async () => memoryStore()],
  ...stores.map(([name, make]) => [name, async () => (await make()).store] as const),
]

describe.each(places)('on %s, with two instances and no traffic', (_name, makeStore) => {
  test('P3: fires when another instance revokes the key, within a lease', async () => {
    const { here, there, id, verdict } = await pair(await makeStore())
    const { signal } = verdict
    const began = performance.now()
    await there.revoke({ as: 'application', id })
    expect(await firing(signal)).toMatchObject({ code: 'invalid_key', reason: 'revoked', keyId: id })
    // A lease, its margin, and what a busy machine adds.
    expect(performance.now() - began).toBeLessThan(2_000)
    expect(here.peek('sk')?.ok).toBe(false)
  })

  test('fires when a rotation retires the secret, and not for the new one', async () => {
    const { here, there, id, verdict } = await pair(await makeStore())
    const { secret } = await there.rotate({ as: 'application', id })
    const { signal } = await good(here, secret)
    expect(await firing(verdict.signal)).toMatchObject({ reason: 'rotated' })
    expect(signal.aborted).toBe(false)
  })

  test('fires when the scopes are changed, and not for a new name', async () => {
    const { here, there, id, secret, verdict } = await pair(await makeStore())
    const { signal } = verdict
    await there.update({ as: 'application', id, changes: { name: 'another' } })
    await seen(here, secret, ({ name }) => name === 'another')
    expect(signal.aborted).toBe(false)
    await there.update({ as: 'application', id, changes: { scopes: [] } })
    expect(await firing(signal)).toMatchObject({ code: 'insufficient_scope', keyId: id })
    // What was good before is not good again for whoever kept it.
    expect(verdict.signal).toBe(signal)
    expect((await good(here, secret)).signal.aborted).toBe(false)
  })

  test('lives on through a rotation with a grace period, and fires at its end', async () => {
    const { here, there, id, secret, verdict } = await pair(await makeStore())
    const { signal } = verdict
    await there.rotate({ as: 'application', id, retire: { afterMs: 700 } })
    const later = await seen(here, secret, (_key, { grace }) => grace !== undefined)
    expect([signal.aborted, later.signal === signal]).toEqual([false, true])
    expect(await firing(signal)).toMatchObject({ code: 'invalid_key', reason: 'rotated' })
  })
})

test('P3: fires when a revocation is recalled through Redis, with no poll in between', async () => {
  const { url } = await startRedis()
  const { pool } = await freshDatabase()
  const cache = (): ApiKeysOptions['cache'] => {
    const client = new Redis(url)
    atEnd(() => client.quit())
    return redisCache(client)
  }
  // Its clock stands still: nothing is ever due.
  const { here, there, id, secret, verdict } = await pair(postgresStore(pool), { clock: new TestClock() }, cache)
  await there.update({ as: 'application', id, changes: { name: 'another' } })
  await seen(here, secret, ({ name }) => name === 'another')
  const fired = firing(verdict.signal)
  await there.revoke({ as: 'application', id })
  expect(await fired).toMatchObject({ reason: 'revoked' })
})

describe('with a clock that is turned', () => {
  test('fires when the key expires, and goes on where its expiry was moved', async () => {
    const { clock, keys, id, secret } = await alone({ expiresInMs: 3_600_000 })
    const { signal } = await good(keys, secret)
    await keys.update({ as: 'application', id, changes: { expiresAt: new Date(clock.wallMs() + 7_200_000) } })
    clock.advance(3_600_001)
    await seen(keys, secret, () => true)
    expect(signal.aborted).toBe(false)
    clock.advance(3_600_000)
    expect(await firing(signal)).toMatchObject({ code: 'invalid_key', reason: 'expired' })
  })

  test('fires at the expiry also while the store cannot be asked', async () => {
    const { clock, keys, secret, trouble } = await alone({ expiresInMs: 60_000 })
    const { signal } = await good(keys, secret)
    trouble.isDown = true
    clock.advance(60_000)
    expect(await firing(signal)).toMatchObject({ code: 'invalid_key', reason: 'expired' })
  })

  test('a store that is away for a moment ends no stream, and one that stays away does after 30 seconds', async () => {
    const { clock, keys, secret, trouble } = await alone()
    const { signal } = await good(keys, secret)
    trouble.isDown = true
    clock.advance(29_000)
    await trouble.asked()
    await trouble.asked()
    expect(signal.aborted).toBe(false)
    clock.advance(1_100)
    expect(await firing(signal)).toMatchObject({ code: 'store_unavailable' })
    expect(trouble.reported).toContain('store_unavailable')
  })

  test('a key that was pushed out of a full table still ends in time', async () => {
    const { keys, id, secret } = await alone({ maxKnownSecrets: 100 })
    const { signal } = await good(keys, secret)
    for (let n = 0; n < 120; n++) {
      const other = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
      await good(keys, other.secret)
    }
    expect(keys.peek(secret)).toBeUndefined()
    await keys.revoke({ as: 'application', id })
    expect(await firing(signal)).toMatchObject({ reason: 'revoked' })
  })

  test('P3: fires when another instance revokes the key long after the last traffic, though nobody is asked', async () => {
    const { clock, keys, id, secret, store, trouble } = await alone({ recall: false })
    const { signal } = await good(keys, secret)
    // The read that looks after the traffic there was, and one that only the signal has made.
    for (let n = 0; n < 2; n++) {
      clock.advance(5_000)
      await trouble.asked()
    }
    const other = createApiKeys({ store, clock, serverSecret: SERVER_SECRET, leaseMs: 100, onError: () => {} })
    atEnd(() => other.close())
    let isOver = false
    void other.revoke({ as: 'application', id }).then(() => (isOver = true))
    // Less than the time after which everything is read again.
    for (let step = 0; step < 150 && !(isOver && signal.aborted); step++) {
      clock.advance(20)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    expect([isOver, signal.reason]).toEqual([true, expect.objectContaining({ reason: 'revoked' })])
  }, 10_000)

  test('somebody who deletes the key by hand is noticed by reading it again', async () => {
    const { clock, keys, secret, trouble } = await alone()
    const { signal } = await good(keys, secret)
    trouble.deleted.add(digestOf(secret))
    clock.advance(17_000)
    expect(await firing(signal)).toMatchObject({ reason: 'unknown' })
  })

  test('a verdict that was kept while the key died has a signal that fires', async () => {
    const { keys, id, secret } = await alone()
    const verdict = await good(keys, secret)
    await keys.revoke({ as: 'application', id })
    expect(await firing(verdict.signal)).toMatchObject({ reason: 'revoked' })
  })

  test('close() fires all of them, and a verdict from before has none but one that has fired', async () => {
    const { keys, secret } = await alone()
    const verdict = await good(keys, secret)
    const { signal } = verdict
    await keys.close()
    expect([signal.aborted, signal.reason.code, verdict.signal.aborted]).toEqual([true, 'store_unavailable', true])
  })

  test('all verdicts on a secret share one, and copies and prints of a verdict have none', async () => {
    const { keys, secret } = await alone()
    const [one, other] = [await good(keys, secret), await good(keys, secret)]
    expect(one.signal).toBe(other.signal)
    expect(Object.keys(one)).toEqual(['ok', 'key', 'live'])
    expect('signal' in { ...one }).toBe(false)
  })

  test('whoever asks for no signal has nothing read for it, and what nobody listens to is let go', async () => {
    const { clock, keys, secret, trouble } = await alone()
    const verdict = await good(keys, secret)
    // The one that looks after the traffic there was.
    clock.advance(60_000)
    await trouble.asked()
    const { reads } = trouble
    clock.advance(60_000)
    await new Promise((resolve) => setTimeout(resolve, 150))
    expect(trouble.reads).toBe(reads)

    const ref = new WeakRef(verdict.signal)
    await trouble.asked()
    clock.advance(6_000)
    await trouble.asked()
    for (let tries = 0; ref.deref() !== undefined && tries < 50; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 5))
      collectGarbage()
    }
    expect(ref.deref()).toBeUndefined()
  })

  test.each<[string, (signal: AbortSignal, fired: () => void) => void]>([
    ['listens', (signal, fired) => signal.addEventListener('abort', fired)],
    ['has set onabort', (signal, fired) => Object.assign(signal, { onabort: fired })],
    ['joined it with others', (signal, fired) => AbortSignal.any([signal]).addEventListener('abort', fired)],
  ])('whoever %s and keeps nothing hears of the end, whatever the garbage collector does', async (_how, listen) => {
    const { clock, keys, id, secret, trouble } = await alone()
    const fired = jest.fn()
    const listenTo = async (): Promise<void> => listen((await good(keys, secret)).signal, fired)
    await listenTo()
    for (let n = 0; n < 3; n++) {
      clock.advance(6_000)
      await trouble.asked()
      collectGarbage()
    }
    await keys.revoke({ as: 'application', id })
    expect(fired).toHaveBeenCalledTimes(1)
  })
})

async function pair(store: Store, hers: Partial<ApiKeysOptions> = {}, cache: () => ApiKeysOptions['cache'] = () => undefined) {
  const start = (options: Partial<ApiKeysOptions>): ApiKeys => {
    const made = cache()
    const keys = createApiKeys({
      store,
      serverSecret: SERVER_SECRET,
      leaseMs: 500,
      onError: () => {},
      ...(made && { cache: made }),
      ...options,
    })
    atEnd(() => keys.close())
    return keys
  }
  const [here, there] = [start(hers), start({})]
  await here.migrate()
  const { key, secret } = await there.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['a'] })
  const verdict = await good(here, secret)
  return { here, there, id: key.id, secret, verdict }
}

interface AloneOptions {
  readonly expiresInMs?: number
  readonly maxKnownSecrets?: number
  readonly recall?: boolean
}

/** One instance over a store whose clock, trouble and reads are in the test's hands. */
async function alone({ expiresInMs, maxKnownSecrets = 100, recall = true }: AloneOptions = {}) {
  const clock = new TestClock()
  const inner = memoryStore({ now: clock.wallMs })
  const waiting: (() => void)[] = []
  const trouble = {
    isDown: false,
    reads: 0,
    deleted: new Set<string>(),
    reported: [] as string[],
    asked: () => new Promise<void>((resolve) => waiting.push(resolve)),
  }
  const { currentPosition: _none, ...rest } = inner
  const store: Store = {
    ...rest,
    async read(digests, reader) {
      trouble.reads++
      for (const wake of waiting.splice(0)) setImmediate(wake)
      if (trouble.isDown) throw new Error('down')
      return inner.read(
        digests.filter((digest) => !trouble.deleted.has(digest)),
        reader,
      )
    },
  }
  const keys = createApiKeys({
    ...{ store, clock, serverSecret: SERVER_SECRET, leaseMs: 100, maxKnownSecrets, recall },
    onError: ({ code }) => trouble.reported.push(code),
  })
  atEnd(() => keys.close())
  await keys.migrate()
  // Until the members of this server are trusted to be all there are.
  clock.advance(1_000)
  const expiresAt = expiresInMs === undefined ? null : new Date(clock.wallMs() + expiresInMs)
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', expiresAt })
  return { clock, keys, id: key.id, secret, store: rest as Store, trouble }
}

async function good(keys: ApiKeys, secret: string): Promise<Verified> {
  const verdict = await keys.verify(secret)
  if (!verdict.ok) throw new Error(verdict.reason)
  return verdict
}

/** Waits until a verdict says something. */
async function seen(keys: ApiKeys, secret: string, says: (key: Verified['key'], verdict: Verified) => boolean): Promise<Verified> {
  for (;;) {
    const verdict = await good(keys, secret)
    if (says(verdict.key, verdict)) return verdict
    await new Promise((resolve) => setImmediate(resolve))
  }
}

async function firing(signal: AbortSignal): Promise<unknown> {
  if (!signal.aborted) await once(signal, 'abort')
  return signal.reason
}

function digestOf(secret: string): string {
  return createHash('sha256').update(secret).digest('base64url')
}

function collectGarbage(): void {
  setFlagsFromString('--expose-gc')
  ;(runInNewContext('gc') as () => void)()
}
