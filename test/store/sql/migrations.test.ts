import { createApiKeys } from 'express-api-keys'
import { stores } from '../../support/stores.js'

describe.each(stores)('on %s', (_name, makeStore) => {
  test('keys from before secretCreatedAt tell when their active secret was made', async () => {
    const { store, query } = await makeStore()
    const keys = createApiKeys({ store, serverSecret: 'the-server-secret-0123456789-0123456789', leaseMs: 250 })
    await keys.migrate()
    const [fresh, rotated] = [
      await keys.create({ as: 'application', ownerId: 'acme', name: 'fresh' }),
      await keys.create({ as: 'application', ownerId: 'acme', name: 'rotated' }),
    ]
    const { key, secret } = await keys.rotate({ as: 'application', id: rotated.key.id })
    // As the release before left them.
    await query('delete from express_api_key_migrations where version >= 4')
    for (const table of ['feed', 'changes', 'instances']) await query(`drop table express_api_key_${table}`)
    const indexes = [
      'keys_by_creation',
      'keys_by_last4',
      'keys_by_expiry',
      'keys_by_end',
      'key_events_by_time',
      'key_events_by_owner',
      'key_replays_by_time',
    ]
    for (const index of indexes) await query(`drop index express_api_${index}`)
    await query('alter table express_api_key_settings drop column protocol')
    await query('alter table express_api_keys drop column secret_created_at')
    for (const column of ['allowed_ips', 'disabled_at']) await query(`alter table express_api_keys drop column ${column}`)
    await keys.migrate()
    expect(await keys.get(fresh.key.id)).toEqual(fresh.key)
    expect(await keys.get(key.id)).toEqual(key)
    expect((await keys.list({ ownerId: 'acme' })).items).toEqual([key, fresh.key])
    // A reader of another instance, that has no lease yet.
    const other = createApiKeys({ store, serverSecret: 'the-server-secret-0123456789-0123456789' })
    expect(await other.verify(secret)).toMatchObject({ ok: true, key: { secretCreatedAt: key.secretCreatedAt } })
    const { key: updated } = await other.update({ as: 'application', id: key.id, changes: { name: 'renamed' } })
    expect(updated.secretCreatedAt).toBe(key.secretCreatedAt)
    await Promise.all([keys.close(), other.close()])
  })
})
