import { inspect } from 'node:util'
import { createApiKeys, memoryStore } from 'express-api-keys'

test('a result shows its secret to who reads the property, and to no printer', async () => {
  const server = 'the-server-secret-0123456789-0123456789'
  const keys = createApiKeys({ store: memoryStore(), secret: server })
  const made = await keys.create({ ownerId: 'acme', name: 'n' })
  const rotated = await keys.rotate({ secret: made.secret, idempotencyKey: 'i' })
  const verified = await keys.verify(rotated.secret)
  const refused = await keys.rotate({ secret: made.secret }).catch((error: unknown) => error)
  expect(made.secret).toMatch(/^sk_live_/)
  expect(Object.isFrozen(made.key.scopes) && Object.isFrozen(made.key.metadata)).toBe(true)
  for (const value of [made, rotated, verified, refused, keys, { made }, [rotated], { ...made }]) {
    for (const text of [
      inspect(value, { depth: null, showHidden: true, getters: false }),
      JSON.stringify(value) ?? '',
      String(value),
      ...(value instanceof Error ? [value.stack ?? '', value.message] : []),
    ]) {
      for (const secret of [made.secret, rotated.secret, server]) expect(text).not.toContain(secret)
    }
  }
})
