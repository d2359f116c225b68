import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import express from 'express'
import { type ApiKeys, bearerAuth, contracts, createApiKeys, keyRouter, memoryStore, type Store } from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import type { Cache } from '../../../src/cache/cache.js'
import { systemClock } from '../../../src/core/clock.js'
import { secretFormat } from '../../../src/core/secret.js'
import type { Limit } from '../../../src/http/contract.js'
import { atEnd } from '../../support/cleanup.js'
import { type Checked, exchange, type Serving, serveContract } from '../../support/contract.js'
import { SERVER_SECRET } from '../../support/process.js'
import { startRedis, type TestRedis } from '../../support/redis.js'

const [HERE, ELSEWHERE] = ['192.0.2.1', '192.0.2.2']

/** How far the clock that limits go by is ahead of the machine's. */
let ahead = 0
let stopped: number | undefined
const clock = { ...systemClock, monotonicMs: () => (stopped ?? systemClock.monotonicMs()) + ahead }

afterEach(() => {
  ahead = 0
  stopped = undefined
  jest.restoreAllMocks()
})

describe('an address that keeps presenting bad keys', () => {
  test('is answered 429 without a read of the store, until the minute of its first failure is over', async () => {
    stopped = systemClock.monotonicMs()
    const { ask, asked } = await guarded({ failuresPerMinute: 5 })
    // The middleware and the router share one count.
    const failures = ['GET /data', 'POST /keys/self/rotate', 'GET /keys', 'GET /data', 'POST /keys/self/rotate'] as const
    for (const what of failures) expect((await ask(what, { secret: stranger() })).status).toBe(401)
    const before = asked()
    for (const [passed, wait] of [
      [0, '60'],
      [20_000, '40'],
      [39_999, '1'],
    ] as const) {
      ahead += passed
      for (const what of failures) {
        const { status, headers, body } = await ask(what, { secret: stranger() })
        expect([what, status, headers['retry-after'], body.code]).toEqual([what, 429, wait, 'rate_limited'])
      }
    }
    expect(asked()).toBe(before)
    ahead += 1
    expect((await ask('GET /data', { secret: stranger() })).status).toBe(401)
    expect(asked()).toBe(before + 1)
  })

  test('is no trouble to others, nor to keys that this process has met', async () => {
    const { keys, ask, flood, other } = await guarded({ failuresPerMinute: 5 })
    const issue = async (maker: ApiKeys): Promise<string> => (await maker.create({ as: 'application', ownerId: 'acme', name: 'n' })).secret
    const [familiar, unfamiliar] = [await issue(other), await issue(other)]
    expect((await ask('GET /data', { secret: familiar, from: ELSEWHERE })).status).toBe(200)
    await flood()
    // Past its lease it has to be asked for again.
    ahead += 31_000
    expect(keys.peek(familiar)).toBeUndefined()
    expect((await ask('GET /data', { secret: familiar })).status).toBe(200)
    expect((await ask('GET /data', { secret: unfamiliar })).status).toBe(429)
    expect((await ask('GET /data', { secret: stranger(), from: ELSEWHERE })).status).toBe(401)
    expect((await ask('GET /data', { secret: unfamiliar, from: ELSEWHERE })).status).toBe(200)
  })

  test('can go on with a key that it has just rotated', async () => {
    const { ask, flood, other } = await guarded({ failuresPerMinute: 5 })
    const { secret } = await other.create({ as: 'application', ownerId: 'acme', name: 'n' })
    expect((await ask('GET /data', { secret })).status).toBe(200)
    await flood()
    const rotated = await ask('POST /keys/self/rotate', { secret })
    expect(rotated.status).toBe(200)
    expect((await ask('GET /data', { secret: rotated.body.secret })).status).toBe(200)
  })

  test('P2: gets the answer that it lost, with a dead key that this process has never met', async () => {
    const { ask, flood, other } = await guarded({ failuresPerMinute: 5 })
    const { secret } = await other.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const request = { method: 'POST', path: '/keys/self/rotate', body: {} }
    const first = await other.rotate({ as: { secret }, idempotencyKey: 'lost', request })
    await flood()
    expect((await ask('POST /keys/self/rotate', { secret })).status).toBe(429)
    const again = await ask('POST /keys/self/rotate', { secret, idempotencyKey: 'lost' })
    expect([again.status, again.headers['idempotent-replayed'], again.body.secret]).toEqual([200, 'true', first.secret])
  })

  test('is let be where the guard is off', async () => {
    const { ask } = await guarded({ failuresPerMinute: false })
    for (let n = 0; n < 320; n++) expect((await ask('GET /data', { secret: stranger() })).status).toBe(401)
    expect((await ask('POST /keys/self/rotate', { secret: stranger() })).status).toBe(401)
  })

  test('has 300 failures a minute unless told otherwise', async () => {
    const { ask } = await guarded({})
    for (let n = 0; n < 300; n++) expect((await ask('GET /data', { secret: stranger() })).status).toBe(401)
    for (const what of ['GET /data', 'POST /keys/self/rotate'] as const) expect((await ask(what, { secret: stranger() })).status).toBe(429)
  })

  test.each([0, -1, 1.5, 1_000_001, Number.NaN, Number.POSITIVE_INFINITY, '300', true, null])('is not counted to %p', (value) => {
    const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
    const failuresPerMinute = value as number
    for (const make of [() => bearerAuth(keys, { failuresPerMinute }), () => keyRouter(keys, { failuresPerMinute })]) {
      expect(make).toThrow(
        expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining('failuresPerMinute must be a whole number') }),
      )
    }
  })
})

describe('a limit', () => {
  test('P2: nobody else can use up the requests in which a lost answer is asked for', async () => {
    const here = await serveContract(narrow({ max: 3, windowMs: 60_000, by: 'ip' }), memoryStore())
    const [victim, other] = [await issue(here), await issue(here)]
    const lost = { ...ROTATE, secret: victim, idempotencyKey: 'lost' }
    const first = await here.send(lost)
    expect(first.status).toBe(200)
    // Those of a good key wait for each other, and a second each for an answer from elsewhere.
    const times: [secret: string | undefined, many: number][] = [
      [undefined, 40],
      [stranger(), 40],
      [other, 5],
    ]
    const attempts = times.flatMap(([secret, many]) => Array.from({ length: many }, () => ({ ...lost, secret })))
    const statuses = await Promise.all(attempts.map(async (sent) => (await exchange(here.url + contracts.suwappu.path, sent)).status))
    expect(statuses.filter((status) => status === 429).length).toBe(83)
    const again = await here.send(lost)
    expect([again.status, again.body]).toEqual([200, first.body])
  })

  test('does not let anything but a lost answer through: a flood of guesses costs shared reads, and no transaction', async () => {
    const store = memoryStore()
    const here = await serveContract(narrow({ max: 1, windowMs: 60_000, by: 'ip' }), store)
    const [dead, live] = [await issue(here), await issue(here)]
    await here.send({ ...ROTATE, secret: dead })
    const transactions = jest.spyOn(store, 'transaction')
    const guess = async (secret: string): Promise<number> => (await here.send({ ...ROTATE, secret, idempotencyKey: randomUUID() })).status
    for (const secret of [stranger(), dead]) {
      expect(await Promise.all(Array.from({ length: 100 }, () => guess(secret)))).toEqual(Array(100).fill(429))
    }
    expect(await guess(live)).toBe(429)
    // One, at most, for the line in the audit trail that says that a dead secret was there.
    expect(transactions.mock.calls.length).toBeLessThanOrEqual(1)
  })

  test('asks nobody to wait for longer than its window, also when the clock on the wall is set back', async () => {
    const here = await serveContract(narrow({ max: 1, windowMs: 60_000, by: 'ip' }), memoryStore(), { failuresPerMinute: 1 })
    await here.send(ROTATE)
    const [real, url] = [Date.now, `${here.url}/data`]
    jest.spyOn(Date, 'now').mockImplementation(() => real() - 3_600_000)
    const waits = [(await here.send(ROTATE)).headers['retry-after']]
    await fetch(url, { headers: { authorization: `Bearer ${stranger()}` } })
    waits.push((await fetch(url, { headers: { authorization: `Bearer ${stranger()}` } })).headers.get('retry-after') ?? undefined)
    for (const wait of waits) expect([Number(wait) > 50, Number(wait) <= 60]).toEqual([true, true])
  })

  test.each<[string, (redis: TestRedis) => Promise<Serving[]>]>([
    ['one process', async () => [await serveContract(narrow({ max: 20, windowMs: 60_000, by: 'ip' }), memoryStore())]],
    ['one whose Redis gives up on all of them together', async () => [await givenUpOn(25)]],
    ['two that share Redis', async (redis) => [await sharing(redis, 20), await sharing(redis, 20)]],
  ])('counts each of the requests that come at once, on %s', async (_where, start) => {
    const all = await start(await startRedis())
    const answers = await Promise.all(Array.from({ length: 25 }, (_, n) => (all[n % all.length] as Serving).send(ROTATE)))
    const statuses = answers.map(({ status }) => status)
    expect([401, 429].map((wanted) => statuses.filter((status) => status === wanted).length)).toEqual([20, 5])
  })

  test('holds while Redis is away, from memory, and for each process after that', async () => {
    const redis = await startRedis()
    const [one, two] = [await sharing(redis, 4), await sharing(redis, 4)]
    const ask = async (...of: Serving[]): Promise<number[]> => {
      const statuses = []
      for (const each of of) statuses.push((await each.send(ROTATE)).status)
      return statuses
    }
    // The last answer was the third of both together, and that is what the second goes on from.
    expect(await ask(one, one, two)).toEqual([401, 401, 401])
    await redis.stop()
    expect(await ask(two, two, two)).toEqual([401, 429, 429])
    // The first knows of two.
    expect(await ask(one, one, one, one)).toEqual([401, 401, 429, 429])
    await redis.start()
    await Promise.all([one.answering(), two.answering()])
    expect(await Promise.all(Array.from({ length: 10 }, async () => (await one.send(ROTATE)).status))).toEqual(Array(10).fill(429))
    // Redis came back empty, and nobody has told it: the second has let two through, and the third none.
    expect(await ask(two, two, two)).toEqual([401, 401, 429])
    expect(await ask(await sharing(redis, 4))).toEqual([401])
  })

  test.each<[string, Cache['counters']]>([
    [
      'throw at once',
      () => {
        throw new Error('of the cache')
      },
    ],
    ['count nonsense', () => ({ hit: async () => ({ counted: true, hits: -1, waitMs: 5, at: 0 }), takeBack: async () => {} })],
  ])('holds in the process alone where the counters of a cache %s, and one report says so', async (_how, counters) => {
    const nothing = async (): Promise<undefined> => {}
    const cache = { get: nothing, fill: nothing, bury: async () => false, forget: nothing, close: nothing, counters } as Cache
    const told: unknown[] = []
    const onError = (error: unknown): void => void told.push(error)
    const here = await serveContract(narrow({ max: 2, windowMs: 60_000, by: 'ip' }), memoryStore(), { cache, onError })
    const statuses = []
    for (let n = 0; n < 4; n++) statuses.push((await here.send(ROTATE)).status)
    expect(statuses).toEqual([401, 401, 429, 429])
    expect(told).toHaveLength(1)
  })

  test('is not begun anew by a Redis that has lost the count in mid-window', async () => {
    const redis = await startRedis()
    const here = await sharing(redis, 3)
    const statuses = []
    for (let n = 0; n < 4; n++) statuses.push((await here.send(ROTATE)).status)
    expect(statuses).toEqual([401, 401, 401, 429])
    await redis.flush()
    ahead = 5_000
    expect((await here.send(ROTATE)).status).toBe(429)
  })

  test('is not used up by the requests of windows that are over, made while Redis was away', async () => {
    const redis = await startRedis()
    const here = await sharing(redis, 3)
    await redis.stop()
    const ask = async (): Promise<number> => (await here.send(ROTATE)).status
    expect([await ask(), await ask(), await ask(), await ask()]).toEqual([401, 401, 401, 429])
    ahead = 60_001
    await redis.start()
    await here.answering()
    expect([await ask(), await ask(), await ask(), await ask()]).toEqual([401, 401, 401, 429])
  })

  test('begins anew when its window is over', async () => {
    const redis = await startRedis()
    for (const here of [
      await sharing(redis, 1),
      await serveContract(narrow({ max: 1, windowMs: 60_000, by: 'ip' }), memoryStore(), { clock }),
    ]) {
      expect([(await here.send(ROTATE)).status, (await here.send(ROTATE)).status]).toEqual([401, 429])
      ahead = 60_001
      await redis.flush()
      expect([(await here.send(ROTATE)).status, (await here.send(ROTATE)).status]).toEqual([401, 429])
      ahead = 0
    }
  })

  test('lets no more through in two windows back to back, and lets in a client that waits as long as it says', async () => {
    stopped = systemClock.monotonicMs()
    const here = await serveContract(narrow({ max: 3, windowMs: 60_000, by: 'ip' }), memoryStore(), { clock })
    const ask = async (): Promise<[number, string | undefined]> => {
      const { status, headers } = await here.send(ROTATE)
      return [status, headers['retry-after']]
    }
    expect((await ask())[0]).toBe(401)
    ahead = 59_000
    expect([(await ask())[0], (await ask())[0], await ask()]).toEqual([401, 401, [429, '1']])
    // A window that begins with its first request is over now, and the next would take three.
    ahead = 60_000
    expect([(await ask())[0], await ask(), await ask()]).toEqual([401, [429, '59'], [429, '59']])
    ahead = 118_999
    expect(await ask()).toEqual([429, '1'])
    ahead = 119_000
    expect([(await ask())[0], (await ask())[0], await ask()]).toEqual([401, 401, [429, '1']])
  })

  test('says in its headers what is left, and until when', async () => {
    stopped = systemClock.monotonicMs()
    const here = await serveContract(narrow({ max: 2, windowMs: 60_000, by: 'ip' }), memoryStore(), { clock })
    const headers = []
    for (const passed of [0, 20_000, 30_000]) {
      ahead = passed
      const { headers: said } = await here.send(ROTATE)
      headers.push([said.ratelimit, said['retry-after']])
      expect(said['ratelimit-policy']).toMatch(/^"suwappu-post-keys-rotate"; q=2; w=60; pk=:\w+=*:$/)
    }
    expect(headers.map(([limit, wait]) => [limit?.replace(/^"[\w-]+"; /, ''), wait])).toEqual([
      ['r=1; t=60', undefined],
      ['r=0; t=40', undefined],
      ['r=0; t=30', '30'],
    ])
  })

  test('counts a key that rotates itself over and over as one key', async () => {
    const here = await serveContract(narrow({ max: 5, windowMs: 60_000, by: 'credential' }), memoryStore())
    const calm = await issue(here)
    let secret = await issue(here)
    for (let n = 0; n < 5; n++) {
      const rotated = await here.send({ ...ROTATE, secret })
      expect(rotated.status).toBe(200)
      secret = rotated.body.api_key
    }
    expect((await here.send({ ...ROTATE, secret })).status).toBe(429)
    expect(await here.accepted(secret)).toBe(200)
    expect((await here.send({ ...ROTATE, secret: calm })).status).toBe(200)
  })

  test.each([
    ['alone', async () => undefined],
    ['that counts in Redis', startRedis],
  ])('P2: is not used up by asking a store that is away, in a process %s', async (_how, start) => {
    const inner = memoryStore()
    let away = true
    const transaction: Store['transaction'] = (work) => (away ? Promise.reject(new Error('away')) : inner.transaction(work))
    const [store, redis] = [{ ...inner, transaction }, await start()]
    const here =
      redis === undefined ? await serveContract(narrow({ max: 3, windowMs: 60_000, by: 'ip' }), store) : await sharing(redis, 3, store)
    away = false
    const secret = await issue(here)
    away = true
    const asked = []
    for (let n = 0; n < 5; n++) asked.push((await here.send({ ...ROTATE, secret, idempotencyKey: 'k' })).status)
    expect(asked).toEqual([503, 503, 503, 503, 503])
    away = false
    expect((await here.send({ ...ROTATE, secret, idempotencyKey: 'k' })).status).toBe(200)
  })

  test('is not got round by asking for one answer after the other that was never given', async () => {
    const inner = memoryStore()
    let transactions = 0
    const transaction: Store['transaction'] = (work) => {
      transactions++
      return inner.transaction(work)
    }
    const store = { ...inner, transaction }
    const here = await serveContract(narrow({ max: 3, windowMs: 60_000, by: 'credential' }), store, { trustProxy: true })
    const dead = await issue(here)
    const ask = (idempotencyKey: string, from: string): Promise<Checked> =>
      here.send({ ...ROTATE, secret: dead, idempotencyKey, headers: ['X-Forwarded-For', from] })
    const lost = await ask('lost', ELSEWHERE)
    transactions = 0
    for (let n = 0; n < 200; n++) expect([401, 429]).toContain((await ask(`guess-${n}`, HERE)).status)
    expect(transactions).toBeLessThanOrEqual(2)
    // A client that asks for what there is, from somewhere else, is not held up by it.
    for (let n = 0; n < 5; n++) expect((await ask('lost', ELSEWHERE)).body).toEqual(lost.body)
  })

  test('of a key is one limit, whichever instance made the key, has met its secret or rotates it', async () => {
    const [redis, store] = [await startRedis(), memoryStore()]
    const instances = [await sharing(redis, 3, store, 'credential'), await sharing(redis, 3, store, 'credential')]
    const maker = await serveContract(narrow({ max: 3, windowMs: 60_000, by: 'credential' }), store)
    let secret = await issue(maker)
    const statuses = []
    for (let n = 0; n < 6; n++) {
      const { status, body } = await (instances[n % 2] as Serving).send({ ...ROTATE, secret })
      statuses.push(status)
      if (status === 200) secret = body.api_key as string
    }
    expect(statuses).toEqual([200, 200, 200, 429, 429, 429])
  })

  test('counts what is asked with a dead secret on its own, and not as the key it was of', async () => {
    const here = await serveContract(narrow({ max: 3, windowMs: 60_000, by: 'credential' }), memoryStore())
    const dead = await issue(here)
    const { body } = await here.send({ ...ROTATE, secret: dead })
    const asked = []
    for (let n = 0; n < 5; n++) asked.push((await here.send({ ...ROTATE, secret: dead })).status)
    expect(asked).toEqual([401, 401, 401, 429, 429])
    expect((await here.send({ ...ROTATE, secret: body.api_key })).status).toBe(200)
  })
})

const ROTATE = { path: '/keys/rotate' }
const format = secretFormat('sk', true)

/** A key that is well-formed, and nobody's. */
function stranger(): string {
  return format.mint('sk_live_').secret
}

async function issue({ keys }: Serving): Promise<string> {
  return (await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })).secret
}

function narrow(limit: Limit): Contract {
  const [route] = contracts.suwappu.routes
  return { ...contracts.suwappu, routes: [{ ...route, limit }] } as Contract
}

/** An instance that counts in Redis; it is connected. */
async function sharing(
  redis: TestRedis,
  max: number,
  store = memoryStore(),
  by: Limit['by'] = 'ip',
): Promise<Serving & { answering(): Promise<void> }> {
  const client = new Redis(redis.url)
  client.on('error', () => {})
  atEnd(async () => client.disconnect())
  const cache = redisCache(client, { timeoutMs: 5_000 })
  const answering = async (): Promise<void> => {
    while ((await cache.get('none')) === undefined) await new Promise(setImmediate)
  }
  const serving = await serveContract(narrow({ max, windowMs: 60_000, by }), store, { cache, clock })
  await answering()
  return { ...serving, answering }
}

/** An instance whose shared counter fails, when it has been asked so many times. */
function givenUpOn(requests: number): Promise<Serving> {
  const waiting: (() => void)[] = []
  const cache: Cache = {
    get: async () => undefined,
    fill: async () => {},
    bury: async () => false,
    forget: async () => {},
    counters: () => ({
      async hit() {
        await new Promise<void>((resolve) => {
          waiting.push(resolve)
          if (waiting.length === requests) for (const giveUp of waiting) giveUp()
        })
        throw new Error('no answer')
      },
      async takeBack() {},
    }),
    close: async () => {},
  }
  return serveContract(narrow({ max: 20, windowMs: 60_000, by: 'ip' }), memoryStore(), { cache })
}

interface Guarded {
  readonly keys: ApiKeys
  /** Other keys over the same store, as another process has them. */
  readonly other: ApiKeys
  ask(what: `${string} ${string}`, request: { secret: string; from?: string; idempotencyKey?: string }): Promise<Checked>
  /** How many times `keys` has asked the store. */
  asked(): number
  /** Uses up what one address may fail. */
  flood(): Promise<void>
}

async function guarded(options: { failuresPerMinute?: number | false }): Promise<Guarded> {
  const inner = memoryStore()
  let asked = 0
  const counted: Store = {
    ...inner,
    // What a rotation waits for: somebody else holds leases too.
    shared: true,
    read: (...args: Parameters<Store['read']>) => {
      asked++
      return inner.read(...args)
    },
  }
  const other = createApiKeys({ store: { ...inner, shared: true }, serverSecret: SERVER_SECRET, leaseMs: 50 })
  const keys = createApiKeys({ store: counted, serverSecret: SERVER_SECRET, leaseMs: 50, clock })
  const app = express()
  app.set('trust proxy', 1)
  app.use('/keys', keyRouter(keys, { ...options, limits: false }))
  app.get('/data', bearerAuth(keys, options), (_req, res) => {
    res.json({})
  })
  const server = app.listen(0, '127.0.0.1')
  await once(server, 'listening')
  atEnd(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
    await Promise.all([keys.close(), other.close()])
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const ask: Guarded['ask'] = (what, { from = HERE, ...sent }) => {
    const [method = '', path = ''] = what.split(' ')
    return exchange(url, { method, path, ...sent, headers: ['X-Forwarded-For', from] })
  }
  return {
    keys,
    other,
    ask,
    asked: () => asked,
    async flood() {
      for (let n = 0; n < 5; n++) expect((await ask('GET /data', { secret: stranger() })).status).toBe(401)
      expect((await ask('GET /data', { secret: stranger() })).status).toBe(429)
    },
  }
}
