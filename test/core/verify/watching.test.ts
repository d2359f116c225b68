import { createApiKeys, type FeedPosition, memoryStore, type Store } from 'express-api-keys'
import { SERVER_SECRET } from '../../support/process.js'

test('P3: a feed that is as long as before, and has other tags, ends what is known at once', async () => {
  const { keys, secret, watched } = await scene()
  expect(keys.peek(secret)?.ok).toBe(true)
  watched.look = (there) => there && { ...there, tag: 'another' }
  expect(keys.peek(secret)).toBeUndefined()
  await keys.close()
})

test.each<[string, (there: FeedPosition | undefined) => FeedPosition | undefined]>([
  ['cannot tell', () => undefined],
  [
    'throws',
    () => {
      throw new Error('busy')
    },
  ],
])('P3: while a store %s where its feed is, each request is served by a read of its own', async (_how, look) => {
  const { keys, secret, watched } = await scene()
  watched.look = look
  expect(keys.peek(secret)).toBeUndefined()
  const { reads } = watched
  for (let n = 1; n <= 2; n++) {
    const result = await keys.verify(secret)
    expect([result.ok && result.live(), result.ok && result.live(), watched.reads > reads + n - 1]).toEqual([true, false, true])
  }
  watched.look = (there) => there
  expect((await keys.verify(secret)).ok).toBe(true)
  expect(keys.peek(secret)?.ok).toBe(true)
  await keys.close()
})

async function scene() {
  const inner = memoryStore()
  const watched = { look: (there: FeedPosition | undefined): FeedPosition | undefined => there, reads: 0 }
  const store: Store = {
    ...inner,
    currentPosition: () => watched.look(inner.currentPosition?.()),
    read(...asked) {
      watched.reads++
      return inner.read(...asked)
    },
  }
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  expect((await keys.verify(secret)).ok).toBe(true)
  return { keys, secret, watched }
}
