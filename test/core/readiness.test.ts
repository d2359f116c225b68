import { type ApiKeys, createApiKeys, memoryStore, type Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { atEnd } from '../support/cleanup.js'
import { TestClock } from '../support/clock.js'
import { freshDatabase, throughProxy } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'

function instance(store: Store, clock = new TestClock()): { keys: ApiKeys; clock: TestClock } {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, clock, onError: () => {} })
  atEnd(() => keys.close())
  return { keys, clock }
}

test('an instance is ready while its store answers, whoever asks and how often', async () => {
  const inner = memoryStore()
  let reads = 0
  let away = false
  const store: Store = Object.assign(Object.create(inner) as Store, {
    read: (...args: Parameters<Store['read']>) => {
      reads++
      return away ? Promise.reject(new Error('away')) : inner.read(...args)
    },
  })
  const { keys, clock } = instance(store)
  await Promise.all(Array.from({ length: 100 }, () => keys.ready()))
  await keys.ready()
  expect(reads).toBe(1)
  clock.advance(999)
  away = true
  await keys.ready()
  clock.advance(1)
  const answers = await Promise.allSettled(Array.from({ length: 100 }, () => keys.ready()))
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set(['rejected']))
  expect(reads).toBe(2)
  await expect(keys.ready()).rejects.toMatchObject({ code: 'store_unavailable', status: 503 })
  away = false
  await keys.ready()
})

test('an instance that is being closed is not ready any more', async () => {
  const { keys } = instance(memoryStore())
  await keys.ready()
  await keys.close()
  await expect(keys.ready()).rejects.toMatchObject({ code: 'store_unavailable' })
})

test('an instance without its tables is not ready, nor one whose database is away', async () => {
  const { url } = await freshDatabase()
  const { pool, proxy } = await throughProxy(url)
  const { keys, clock } = instance(postgresStore(pool))
  await expect(keys.ready()).rejects.toMatchObject({ code: 'store_misconfigured', message: expect.stringContaining('keys.migrate()') })
  await keys.migrate()
  await keys.ready()
  await pool.query('alter table express_api_keys drop column allowed_ips')
  clock.advance(1_000)
  await expect(keys.ready()).rejects.toMatchObject({ code: 'store_misconfigured' })
  await pool.query('alter table express_api_keys add column allowed_ips text')
  await keys.ready()
  proxy.refuse()
  clock.advance(1_000)
  await expect(keys.ready()).rejects.toMatchObject({ code: 'store_unavailable' })
})
