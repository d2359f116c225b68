import { createApiKeys, memoryStore } from 'express-api-keys'

const SECRET = 'the-server-secret-0123456789-0123456789'

test('the audit trail names who was given an answer again, whosever key it is about', async () => {
  const store = memoryStore()
  const keys = createApiKeys({ store, serverSecret: SECRET })
  const admin = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:admin'] })
  const as = { secret: admin.secret }
  const twice = async <T>(command: () => Promise<T>): Promise<T> => {
    await command()
    return command()
  }
  const made = await twice(() => keys.create({ as, name: 'n', idempotencyKey: 'create' }))
  await twice(() => keys.rotate({ as, id: made.key.id, idempotencyKey: 'rotate' }))
  await twice(() => keys.revoke({ as, id: made.key.id, idempotencyKey: 'revoke' }))
  await twice(() => keys.rotate({ as, idempotencyKey: 'own' }))
  // What is written behind answers is there when the keys are closed.
  await keys.close()
  const actors = async (keyId: string): Promise<string[]> => {
    const events = await store.events({ keyId, limit: 100 })
    return events.filter(({ type }) => type === 'key.replayed').map(({ actor }) => actor)
  }
  const { id } = admin.key
  expect(await actors(made.key.id)).toEqual(Array(3).fill(`key:${id}`))
  expect(await actors(id)).toEqual([`key:${id}`])
})
