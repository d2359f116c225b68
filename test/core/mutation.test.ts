import { createApiKeys, memoryStore, type Store } from 'express-api-keys'
import { TestClock } from '../support/clock.js'

const SECRET = 'the-server-secret-0123456789-0123456789'

test('P2: an answer can be asked for again until the replay window ends, and not a millisecond longer', async () => {
  const clock = new TestClock()
  const keys = createApiKeys({ store: memoryStore({ now: () => clock.wallMs() }), secret: SECRET, clock, replayWindowMs: 60_000 })
  const { secret } = await keys.create({ ownerId: 'acme', name: 'n' })
  const rotate = (): ReturnType<typeof keys.rotate> => keys.rotate({ secret, idempotencyKey: 'k' })
  const first = await rotate()
  clock.advance(59_999)
  expect((await rotate()).secret).toBe(first.secret)
  clock.advance(1)
  await expect(rotate()).rejects.toMatchObject({ code: 'invalid_key' })
})

test('P3: an answer waits for the lease in force and a margin, counted from after COMMIT', async () => {
  const clock = new TestClock()
  const { keys, rotate } = await sharedStore(clock)
  const { secret } = await keys.create({ ownerId: 'acme', name: 'n' })
  const answered = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(1)
  clock.advance(1_049)
  expect(await answered.settled()).toBe(false)
  clock.advance(1)
  expect((await answered.done).replayed).toBe(false)
})

test('P3: a replay of an answer that is not settled yet waits from its own first sight; a settled one does not wait', async () => {
  const clock = new TestClock()
  const { keys, rotate } = await sharedStore(clock)
  const { secret } = await keys.create({ ownerId: 'acme', name: 'n' })
  const first = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(1)
  clock.advance(500)
  const second = rotate({ secret, idempotencyKey: 'k' })
  await clock.asleep(2)
  clock.advance(550)
  expect((await first.done).replayed).toBe(false)
  // The first has settled the record, but the second had seen it unsettled.
  expect(await second.settled()).toBe(false)
  clock.advance(500)
  expect((await second.done).secret).toBe((await first.done).secret)
  const third = rotate({ secret, idempotencyKey: 'k' })
  expect((await third.done).secret).toBe((await first.done).secret)
})

test('waitForLease: false answers at once and says until when the old secret may still be accepted', async () => {
  const clock = new TestClock()
  const { keys } = await sharedStore(clock, { waitForLease: false })
  const { secret } = await keys.create({ ownerId: 'acme', name: 'n' })
  const { acceptedUntil } = await keys.rotate({ secret, idempotencyKey: 'k' })
  expect(acceptedUntil).toBe(new Date(clock.wallMs() + 1_050).toISOString())
})

test('a store in memory that nobody shares needs no wait', async () => {
  const clock = new TestClock()
  const keys = createApiKeys({ store: memoryStore({ now: () => clock.wallMs() }), secret: SECRET, clock })
  const { secret } = await keys.create({ ownerId: 'acme', name: 'n' })
  await keys.rotate({ secret })
  expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
})

test('close waits for commands under way, and after it there are no answers', async () => {
  const clock = new TestClock()
  const { keys, rotate } = await sharedStore(clock)
  const { secret } = await keys.create({ ownerId: 'acme', name: 'n' })
  const answered = rotate({ secret })
  await clock.asleep(1)
  let closed = false
  const closing = keys.close().then(() => {
    closed = true
  })
  expect(await answered.settled()).toBe(false)
  expect(closed).toBe(false)
  clock.advance(1_050)
  expect((await answered.done).key.generation).toBe(2)
  await closing
  await expect(keys.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
})

interface Pending {
  readonly done: Promise<Awaited<ReturnType<ReturnType<typeof createApiKeys>['rotate']>>>
  /** Whether it has been answered by now, when all that can go on without the clock has gone on. */
  settled(): Promise<boolean>
}

async function sharedStore(
  clock: TestClock,
  options: { waitForLease?: boolean } = {},
): Promise<{ keys: ReturnType<typeof createApiKeys>; rotate(command: { secret: string; idempotencyKey?: string }): Pending }> {
  const store: Store = { ...memoryStore({ now: () => clock.wallMs() }), shared: true }
  const keys = createApiKeys({ store, secret: SECRET, clock, leaseMs: 1_000, ...options })
  await keys.migrate()
  return {
    keys,
    rotate(command) {
      const done = keys.rotate(command)
      let answered = false
      done.then(
        () => {
          answered = true
        },
        () => {
          answered = true
        },
      )
      return {
        done,
        async settled() {
          // Everything here runs in memory: some turns of the event loop carry it as far as it can go.
          for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
          return answered
        },
      }
    },
  }
}
