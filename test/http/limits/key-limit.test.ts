import express from 'express'
import {
  ApiKeyError,
  type ApiKeys,
  type ApiKeysOptions,
  bearerAuth,
  createApiKeys,
  type KeyLimitOptions,
  keyLimit,
  memoryStore,
} from 'express-api-keys'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import { atEnd } from '../../support/cleanup.js'
import { TestClock } from '../../support/clock.js'
import { type Checked, exchange } from '../../support/contract.js'
import { listen } from '../../support/listen.js'
import { SERVER_SECRET } from '../../support/process.js'
import { startRedis } from '../../support/redis.js'

type Limits = KeyLimitOptions | readonly KeyLimitOptions[]

interface Served {
  readonly keys: ApiKeys
  readonly errors: ApiKeyError[]
  ask(secret?: string, path?: string): Promise<Checked>
}

async function serve(limits: Limits, options: Partial<ApiKeysOptions> = {}, optional = false): Promise<Served> {
  const errors: ApiKeyError[] = []
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: (error) => void errors.push(error), ...options })
  atEnd(() => keys.close())
  const app = express()
  app.use(bearerAuth(keys, { optional }))
  app.get('/data', keyLimit(keys, limits), (_req, res) => void res.json({ in: true }))
  app.get('/other', keyLimit(keys, limits), (_req, res) => void res.json({ in: true }))
  const url = await listen(app)
  return {
    keys,
    errors,
    ask: (secret, path = '/data') => exchange(url, { method: 'GET', path, ...(secret === undefined ? {} : { secret }) }),
  }
}

const make = async (keys: ApiKeys, ownerId = 'acme', metadata: { plan?: string } = {}): Promise<{ secret: string; id: string }> => {
  const { secret, key } = await keys.create({ as: 'application', ownerId, name: 'n', metadata })
  return { secret, id: key.id }
}

const statuses = async (asked: readonly Promise<Checked>[]): Promise<number[]> => (await Promise.all(asked)).map(({ status }) => status)

test('a key may make so many requests in a window, counted across its rotations, and is told when to come back', async () => {
  const clock = new TestClock()
  const { keys, ask } = await serve({ windowMs: 60_000, limit: 3 }, { clock })
  const { secret } = await make(keys)
  const first = await ask(secret)
  expect([first.status, first.headers.ratelimit, first.headers['ratelimit-policy']]).toEqual([
    200,
    expect.stringMatching(/^"default-key-60s"; r=2; t=60$/),
    expect.stringMatching(/^"default-key-60s"; q=3; w=60; pk=:/),
  ])
  const { secret: next } = await keys.rotate({ as: { secret } })
  clock.advance(20_000)
  expect([(await ask(next)).status, (await ask(next, '/other')).status]).toEqual([200, 200])
  const refused = await ask(next)
  expect([refused.status, refused.body.code, refused.headers['retry-after']]).toEqual([429, 'rate_limited', '40'])
  expect((await ask((await make(keys)).secret)).status).toBe(200)
  clock.advance(39_999)
  expect((await ask(next)).status).toBe(429)
  clock.advance(1)
  expect((await ask(next)).status).toBe(200)
})

test('a plan decides, and a limit may be of an owner', async () => {
  const limit: KeyLimitOptions['limit'] = ({ metadata }) =>
    metadata.plan === 'pro' ? 3 : metadata.plan === 'unlimited' ? Number.POSITIVE_INFINITY : 1
  const { keys, ask } = await serve({ windowMs: 60_000, limit })
  const counts: number[] = []
  for (const plan of ['free', 'pro', 'unlimited']) {
    const { secret } = await make(keys, 'acme', { plan })
    counts.push((await statuses(Array.from({ length: 5 }, () => ask(secret)))).filter((status) => status === 200).length)
  }
  expect(counts).toEqual([1, 3, 5])

  const owners = await serve({ windowMs: 60_000, limit: 2, by: 'owner' })
  const [one, two, foreign] = [await make(owners.keys), await make(owners.keys), await make(owners.keys, 'other')]
  expect([(await owners.ask(one.secret)).status, (await owners.ask(two.secret)).status, (await owners.ask(one.secret)).status]).toEqual([
    200, 200, 429,
  ])
  expect((await owners.ask(foreign.secret)).status).toBe(200)
})

test('of several windows each holds, the longest wait is told, and who is refused by one is counted by none', async () => {
  const clock = new TestClock()
  const { keys, ask } = await serve(
    [
      { windowMs: 1_000, limit: 2 },
      { windowMs: 60_000, limit: 3 },
    ],
    { clock },
  )
  const { secret } = await make(keys)
  expect([(await ask(secret)).status, (await ask(secret)).status]).toEqual([200, 200])
  const tooFast = await ask(secret)
  expect([tooFast.status, tooFast.headers['retry-after']]).toEqual([429, '1'])
  clock.advance(1_000)
  const third = await ask(secret)
  expect(third.status).toBe(200)
  expect(third.headers.ratelimit).toMatch(/"default-key-1s"; r=1; t=1.*"default-key-60s"; r=0; t=59/)
  const tooMany = await ask(secret)
  expect([tooMany.status, tooMany.headers['retry-after']]).toEqual([429, '59'])
})

test.each<[string, (...args: never[]) => unknown]>([
  ['NaN', () => Number.NaN],
  ['a negative number', () => -1],
  ['half a request', () => 2.5],
  ['a text', () => '100'],
  ['nothing', () => undefined],
  ['a promise', async () => 100],
  ['a promise that rejects', () => Promise.reject(new Error('secret plan'))],
  [
    'what it throws',
    () => {
      throw new Error('secret plan')
    },
  ],
])('a limit function that returns %s lets nobody in: 500, which onError hears of and the client does not', async (_what, limit) => {
  const { keys, errors, ask } = await serve({ windowMs: 1_000, limit: limit as () => number })
  const { status, body } = await ask((await make(keys)).secret)
  expect([status, body.code, JSON.stringify(body).includes('plan')]).toEqual([500, 'internal_error', false])
  expect(errors.map(({ code }) => code)).toEqual(['internal_error'])
})

test('a limit of 0 refuses every request', async () => {
  const { keys, ask } = await serve({ windowMs: 30_000, limit: 0 })
  const { status, headers } = await ask((await make(keys)).secret)
  expect([status, headers['retry-after']]).toEqual([429, '30'])
})

test('without a key: 401 behind an optional bearerAuth, 500 where there is none', async () => {
  const { ask } = await serve({ windowMs: 1_000, limit: 1 }, {}, true)
  expect((await ask()).status).toBe(401)
  const said = jest.spyOn(console, 'error').mockImplementation(() => {})
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  atEnd(() => keys.close())
  const url = await listen(express().get('/', keyLimit(keys, { windowMs: 1_000, limit: 1 }), (_req, res) => void res.json({})))
  expect((await exchange(url, { method: 'GET', path: '/' })).status).toBe(500)
  expect(said).toHaveBeenCalledWith(expect.stringContaining('no bearerAuth stands before keyLimit'))
  said.mockRestore()
})

test('instances that share Redis share the count, and go on counting without it', async () => {
  const redis = await startRedis()
  const store = memoryStore()
  const instances: Served[] = []
  for (let n = 0; n < 2; n++) {
    const client = new Redis(redis.url)
    client.on('error', () => {})
    atEnd(async () => client.disconnect())
    instances.push(await serve({ windowMs: 60_000, limit: 4 }, { store, cache: redisCache(client, { onStateChange: () => {} }) }))
  }
  const [one, other] = instances as [Served, Served]
  // Each connects at its first use of Redis, and counts for itself until then.
  for (let together = false; !together; ) {
    const { secret } = await make(one.keys)
    await one.ask(secret)
    together = /r=2;/.test((await other.ask(secret)).headers.ratelimit ?? '')
  }
  const { secret } = await make(one.keys)
  expect([(await one.ask(secret)).status, (await other.ask(secret)).status, (await one.ask(secret)).status]).toEqual([200, 200, 200])
  expect([(await other.ask(secret)).status, (await one.ask(secret)).status]).toEqual([200, 429])
  await redis.stop()
  expect((await one.ask(secret)).status).toBe(429)
})

test.each<[string, unknown]>([
  ['no options', undefined],
  ['an empty list', []],
  ['no window', { limit: 1 }],
  ['a window that is no number', { windowMs: '60s', limit: 1 }],
  ['a window of nothing', { windowMs: 0, limit: 1 }],
  ['no limit', { windowMs: 1_000 }],
  ['a negative limit', { windowMs: 1_000, limit: -1 }],
  ['a limit that is no number', { windowMs: 1_000, limit: Number.NaN }],
  ['an unknown option', { windowMs: 1_000, limit: 1, max: 1 }],
  ['an unknown by', { windowMs: 1_000, limit: 1, by: 'ip' }],
  ['a name with a quote', { windowMs: 1_000, limit: 1, name: 'a"b' }],
])('refuses at start-up: %s', (_what, limits) => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  atEnd(() => keys.close())
  expect(() => keyLimit(keys, limits as KeyLimitOptions)).toThrow(ApiKeyError)
})
