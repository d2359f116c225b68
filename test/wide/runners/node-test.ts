// What a user of node:test writes.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { testApiKeys } from 'express-api-keys/testing'

test('an old secret works until its grace period is over', async (t) => {
  const { keys, clock, issue, close } = await testApiKeys()
  t.after(close)
  const { key, secret, headers } = await issue()
  assert.deepEqual(headers, { Authorization: `Bearer ${secret}` })
  await keys.rotate({ as: 'application', id: key.id, retire: { afterMs: 60_000 } })
  assert.equal((await keys.verify(secret)).ok, true)
  clock.advance(60_000)
  assert.deepEqual(await keys.verify(secret), { ok: false, reason: 'rotated' })
})

test('what sleeps ends while the timers are faked', async (t) => {
  const { keys, clock, issue, close } = await testApiKeys()
  t.after(close)
  const { secret } = await issue({ rotationSecret: true })
  t.mock.timers.enable()
  await assert.rejects(keys.rotate({ as: { secret }, rotationSecret: `rot_live_${'x'.repeat(49)}` }), { code: 'invalid_key' })
  t.mock.timers.reset()
  assert.equal(clock.monotonicMs(), 1_250)
})
