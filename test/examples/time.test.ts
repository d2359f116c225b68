import { createApiKeys, memoryStore } from 'express-api-keys'
import { turnedClock } from 'express-api-keys/testing'

const secret = 'a-server-secret-for-tests-0123456789'

test('the old secret works until its grace period is over', async () => {
  const clock = turnedClock()
  const keys = createApiKeys({ store: memoryStore({ now: clock.wallMs }), serverSecret: secret, clock })
  const { key, secret: old } = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci' })
  await keys.rotate({ as: 'application', id: key.id, retire: { afterMs: 3_600_000 } })

  clock.advance(3_599_000)
  expect(await keys.verify(old)).toMatchObject({ ok: true })
  clock.advance(1_000)
  expect(await keys.verify(old)).toEqual({ ok: false, reason: 'rotated' })
  await keys.close()
})

test('a key that one instance has revoked is rejected by the other', async () => {
  const clock = turnedClock()
  const store = memoryStore({ now: clock.wallMs })
  const [here, there] = [createApiKeys({ store, serverSecret: secret, clock }), createApiKeys({ store, serverSecret: secret, clock })]
  await here.migrate()
  const { key, secret: live } = await here.create({ as: 'application', ownerId: 'acme', name: 'ci' })
  expect(await there.verify(live)).toMatchObject({ ok: true })

  // The clock stands still: over a store in memory no change waits.
  await here.revoke({ as: 'application', id: key.id })
  expect(await there.verify(live)).toEqual({ ok: false, reason: 'revoked' })
  await Promise.all([here.close(), there.close()])
})

test('fake timers of the test runner stop nothing', async () => {
  const store = memoryStore()
  const keys = createApiKeys({ store, serverSecret: secret })
  const others = createApiKeys({ store, serverSecret: secret })
  await keys.migrate()
  const { key, secret: live } = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci' })

  jest.useFakeTimers()
  const begun = others.verify(live)
  const rotated = await keys.rotate({ as: 'application', id: key.id })
  jest.useRealTimers()

  expect(await begun).toMatchObject({ key: { id: key.id } })
  expect(await others.verify(rotated.secret)).toMatchObject({ ok: true })
  await Promise.all([keys.close(), others.close()])
})
