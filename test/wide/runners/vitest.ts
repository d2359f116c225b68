// The same as node-test.ts, by Vitest.
import { testApiKeys } from 'express-api-keys/testing'
import { expect, test, vi } from 'vitest'

test('an old secret works until its grace period is over', async () => {
  await using made = await testApiKeys()
  const { keys, clock, issue } = made
  const { key, secret, headers } = await issue()
  expect(headers).toEqual({ Authorization: `Bearer ${secret}` })
  await keys.rotate({ as: 'application', id: key.id, retire: { afterMs: 60_000 } })
  expect(await keys.verify(secret)).toMatchObject({ ok: true })
  clock.advance(60_000)
  expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
})

test('what sleeps ends while the timers are faked', async () => {
  const { keys, clock, issue, close } = await testApiKeys()
  const { secret } = await issue({ rotationSecret: true })
  vi.useFakeTimers()
  await expect(keys.rotate({ as: { secret }, rotationSecret: `rot_live_${'x'.repeat(49)}` })).rejects.toMatchObject({ code: 'invalid_key' })
  vi.useRealTimers()
  expect(clock.monotonicMs()).toBe(1_250)
  await close()
})
