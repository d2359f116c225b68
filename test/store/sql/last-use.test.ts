import { createApiKeys } from 'express-api-keys'
import { keyUses } from '../../../src/core/last-use.js'
import { everyStore } from '../../support/contract.js'
import { stores } from '../../support/stores.js'

const SECRET = 'the-server-secret-0123456789-0123456789'

describe.each(everyStore)('on %s', (_name, makeStore) => {
  test('a last use that is written late neither brings a revoked key back nor undoes a rotation, and a change undoes no last use', async () => {
    const store = await makeStore()
    const keys = createApiKeys({ store, serverSecret: SECRET, leaseMs: 250 })
    await keys.migrate()
    const [revoked, rotated] = [
      await keys.create({ as: 'application', ownerId: 'acme', name: 'revoked' }),
      await keys.create({ as: 'application', ownerId: 'acme', name: 'rotated' }),
    ]
    const uses = keyUses(store, { monotonicMs: () => performance.now(), wallMs: Date.now, sleep: async () => {} }, () => {})
    for (const { key } of [revoked, rotated]) uses.note(key.id, () => ({ ip: '192.0.2.1', userAgent: 'late/1' }))
    const ended = await keys.revoke({ as: 'application', id: revoked.key.id, reason: 'leaked' })
    const { key: turned } = await keys.rotate({ as: 'application', id: rotated.key.id })
    await uses.close()
    const used = { lastUsedAt: expect.any(String), lastUsedIp: '192.0.2.1', lastUsedUserAgent: 'late/1' }
    expect(await keys.get(revoked.key.id)).toEqual({ ...ended.key, ...used })
    expect(await keys.get(rotated.key.id)).toEqual({ ...turned, ...used })
    expect(await keys.verify(revoked.secret)).toEqual({ ok: false, reason: 'revoked' })
    const { key: again } = await keys.rotate({ as: 'application', id: rotated.key.id })
    expect(again).toMatchObject({ ...used, generation: 3 })
    expect(await keys.get(rotated.key.id)).toEqual(again)
    await keys.close()
  })
})

test('on PostgreSQL a key that somebody is changing does not hold up the last uses of others, and gets its own after that', async () => {
  const [, make] = stores.find(([name]) => name === 'PostgreSQL') as (typeof stores)[number]
  const { store } = await make()
  const keys = createApiKeys({ store, serverSecret: SECRET, leaseMs: 250 })
  await keys.migrate()
  const [changing, other] = [
    await keys.create({ as: 'application', ownerId: 'acme', name: 'changing' }),
    await keys.create({ as: 'application', ownerId: 'acme', name: 'other' }),
  ]
  const ids = [changing, other].map(({ key }) => key.id)
  let writing: Promise<void> = Promise.resolve()
  await store.transaction(async (tx) => {
    await tx.lockKeys([changing.key.id])
    writing = store.recordUses(ids.map((keyId) => ({ keyId, agoMs: 0, ip: '192.0.2.1', userAgent: null })))
    writing.catch(() => {})
    // Ends when it is written; the transaction would be given up before the test is.
    while ((await store.key(other.key.id))?.key.lastUsedIp !== '192.0.2.1') await tx.now()
    expect((await store.key(changing.key.id))?.key.lastUsedIp).toBeNull()
  })
  await writing
  for (const id of ids) expect((await store.key(id))?.key.lastUsedIp).toBe('192.0.2.1')
  await keys.close()
})
