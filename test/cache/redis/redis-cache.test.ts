import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net'
import { resolve } from 'node:path'
import { redisCache } from 'express-api-keys/redis'
import { Cluster, Redis, type RedisOptions } from 'ioredis'
import type { Cache, Counters } from '../../../src/cache/cache.js'
import { atEnd } from '../../support/cleanup.js'
import { freePort } from '../../support/port.js'
import { ifServer, ownRedis, startRedis, type TestRedis } from '../../support/redis.js'

const ACTIVE = 'a.mac.body'
const TOMBSTONE = 'r.mac.body'
const LONG_MS = 60_000
const KEY = 'express-api-keys:v1:'

let redis: TestRedis
let admin: Redis
let names = 0

beforeAll(async () => {
  redis = await startRedis()
  admin = connect(redis.url)
})

describe('an entry', () => {
  let cache: Cache
  beforeAll(async () => {
    cache = await open(redis.url)
  })

  test('reads as null where there is none, together with the clock of the server', async () => {
    const before = await serverTime()
    const answer = await cache.get(digest())
    expect(answer).toEqual({ value: null, timeMs: expect.any(Number) })
    expect(Number.isInteger(answer?.timeMs)).toBe(true)
    expect(answer?.timeMs).toBeGreaterThanOrEqual(before)
    expect(answer?.timeMs).toBeLessThanOrEqual(await serverTime())
  })

  test('is there until an instant on the clock of the server, and never longer', async () => {
    const it = digest()
    const expiresAt = (await serverTime()) + LONG_MS
    await cache.fill(it, ACTIVE, expiresAt)
    expect((await cache.get(it))?.value).toBe(ACTIVE)
    const before = await serverTime()
    const left = await admin.pttl(KEY + it)
    expect(before + left).toBeLessThanOrEqual(expiresAt + 2)
    expect(left).toBeGreaterThan(LONG_MS - 5_000)
  })

  test('stores nothing when the instant is past or no instant, or when it is too long to be read', async () => {
    const it = digest()
    const now = await serverTime()
    for (const late of [now, now - 1, now - LONG_MS, 0, -1, Number.NaN, Number.POSITIVE_INFINITY]) await cache.fill(it, ACTIVE, late)
    await cache.fill(it, `a${'x'.repeat(32_768)}`, now + LONG_MS)
    expect((await cache.get(it))?.value).toBeNull()
  })

  test('that lands late is born dead', async () => {
    const it = digest()
    const { url, release } = await slowWay(redis.url)
    const slow = await open(url, { timeoutMs: 50 })
    const expiresAt = (await serverTime()) + 200
    const { hold, held } = release
    hold()
    await slow.fill(it, ACTIVE, expiresAt)
    await held
    await until(async () => (await serverTime()) > expiresAt)
    const written = await commandsSeen('set')
    release.go()
    await until(async () => (await slow.get(it))?.value === null)
    expect(await commandsSeen('set')).toBe(written)
    expect(await admin.exists(KEY + it)).toBe(0)
  })

  test('gives way to one that lasts longer, and to none that does not', async () => {
    const it = digest()
    const now = await serverTime()
    await cache.fill(it, 'a.first', now + LONG_MS)
    await cache.fill(it, 'a.shorter', now + LONG_MS - 1_000)
    expect((await cache.get(it))?.value).toBe('a.first')
    await cache.fill(it, 'a.longer', now + LONG_MS + 1_000)
    expect((await cache.get(it))?.value).toBe('a.longer')
  })

  test('that somebody made eternal is replaced', async () => {
    const it = digest()
    await admin.set(KEY + it, 'a.eternal')
    await cache.fill(it, ACTIVE, (await serverTime()) + LONG_MS)
    expect((await cache.get(it))?.value).toBe(ACTIVE)
    expect(await admin.pttl(KEY + it)).toBeGreaterThan(0)
  })

  test('can be forgotten, and forgetting none is no trouble', async () => {
    const it = digest()
    await cache.forget(it)
    await cache.fill(it, ACTIVE, (await serverTime()) + LONG_MS)
    await cache.forget(it)
    expect((await cache.get(it))?.value).toBeNull()
  })

  test('of the wrong type, or too long, reads as no answer', async () => {
    const [list, long] = [digest(), digest()]
    await admin.rpush(KEY + list, 'x')
    await admin.set(KEY + long, 'x'.repeat(32_769))
    expect(await cache.get(list)).toBeUndefined()
    expect(await cache.get(long)).toBeUndefined()
    await cache.fill(list, ACTIVE, (await serverTime()) + LONG_MS)
    await admin.del(KEY + list, KEY + long)
  })

  test('that is asked for beside others goes with them, and gets its own answer', async () => {
    const all = Array.from({ length: 250 }, digest)
    const now = await serverTime()
    const scripts = await commandsSeen('evalsha')
    await Promise.all(all.map((it, i) => cache.fill(it, `a.${i}`, now + (i % 5 === 0 ? -1 : LONG_MS))))
    const [list, long] = [digest(), digest()]
    await admin.rpush(KEY + list, 'x')
    await admin.set(KEY + long, 'x'.repeat(32_769))
    const answers = await Promise.all([list, ...all, long].map((it) => cache.get(it)))
    expect(answers.map((answer) => answer?.value)).toEqual([undefined, ...all.map((_, i) => (i % 5 === 0 ? null : `a.${i}`)), undefined])
    expect(new Set(answers.slice(1, 11).map((answer) => answer?.timeMs)).size).toBe(1)
    // Too long an entry is not even sent.
    await admin.set(KEY + long, 'x'.repeat(64_000_000))
    expect((await Promise.all([long, ...all.slice(0, 3)].map((it) => cache.get(it)))).map((answer) => answer?.value)).toEqual([
      undefined,
      null,
      'a.1',
      'a.2',
    ])
    await admin.del(KEY + long)
    // In hundreds; a script that the server has to be told first counts as another command.
    expect((await commandsSeen('evalsha')) - scripts).toBeLessThanOrEqual(7)
    await cache.fill(list, ACTIVE, now + LONG_MS)
    expect(await admin.type(KEY + list)).toBe('list')
  })

  test('is known by its digest under the name of this package', async () => {
    const it = digest()
    await cache.bury(it, TOMBSTONE, LONG_MS)
    expect(await admin.get(`express-api-keys:v1:${it}`)).toBe(TOMBSTONE)
  })

  test('survives that the server forgets its scripts', async () => {
    const it = digest()
    await cache.fill(it, ACTIVE, (await serverTime()) + LONG_MS)
    await admin.script('FLUSH')
    expect((await cache.get(it))?.value).toBe(ACTIVE)
  })
})

describe('a tombstone', () => {
  let cache: Cache
  beforeAll(async () => {
    cache = await open(redis.url)
  })

  test('replaces whatever is there, and lives as long as it is told', async () => {
    const [active, list] = [digest(), digest()]
    await cache.fill(active, ACTIVE, (await serverTime()) + 2 * LONG_MS)
    await admin.rpush(KEY + list, 'x')
    for (const it of [active, list]) {
      expect(await cache.bury(it, TOMBSTONE, LONG_MS)).toBe(true)
      expect((await cache.get(it))?.value).toBe(TOMBSTONE)
      expect(await admin.pttl(KEY + it)).toBeLessThanOrEqual(LONG_MS)
    }
  })

  test('stays, whatever is filled or forgotten before, after or at the same time', async () => {
    const expiresAt = (await serverTime()) + 2 * LONG_MS
    const acts = [
      (it: string) => cache.fill(it, ACTIVE, expiresAt),
      (it: string) => cache.bury(it, TOMBSTONE, LONG_MS),
      (it: string) => cache.forget(it),
    ] as const
    for (const order of [
      [0, 1, 2],
      [0, 2, 1],
      [1, 0, 2],
      [1, 2, 0],
      [2, 0, 1],
      [2, 1, 0],
    ]) {
      const [inTurn, atOnce] = [digest(), digest()]
      for (const act of order) await acts[act]?.(inTurn)
      await Promise.all(order.map((act) => acts[act]?.(atOnce)))
      expect((await cache.get(inTurn))?.value).toBe(TOMBSTONE)
      expect((await cache.get(atOnce))?.value).toBe(TOMBSTONE)
    }
  })

  test('of no length of life is not stored', async () => {
    const it = digest()
    for (const ttlMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) expect(await cache.bury(it, TOMBSTONE, ttlMs)).toBe(false)
    expect((await cache.get(it))?.value).toBeNull()
  })
})

describe('a counter', () => {
  const countersOf = (cache: Cache, max = 1_000, windowMs = LONG_MS): Counters => cache.counters?.({ max, windowMs }) as Counters
  const keyOf = (name: string): string => `express-api-keys:count:${name}`

  test('is one for all, counts each hit once, and ends with its window', async () => {
    const [one, two] = [countersOf(await open(redis.url), 50), countersOf(await open(redis.url), 50)]
    const it = digest()
    const said = await Promise.all(Array.from({ length: 60 }, (_, n) => (n % 2 === 0 ? one : two).hit(it)))
    const counted = said.filter((hit) => hit?.counted)
    expect(counted.map((hit) => hit?.hits).sort((a = 0, b = 0) => a - b)).toEqual(Array.from({ length: 50 }, (_, n) => n + 1))
    expect(said.length - counted.length).toBe(10)
    for (const hit of said) {
      expect(hit?.waitMs).toBeGreaterThan(LONG_MS - 15_000)
      expect(hit?.waitMs).toBeLessThanOrEqual(LONG_MS)
    }
    const left = await admin.pttl(keyOf(it))
    expect(left).toBeGreaterThan(0)
    expect(left).toBeLessThanOrEqual(LONG_MS)
    await one.takeBack(it, counted[0]?.at ?? 0)
    expect(await two.hit(it)).toMatchObject({ counted: true, hits: 50 })
    expect(await two.hit(digest())).toMatchObject({ counted: true, hits: 1 })
  })

  test.each([3, 40])('of %i lets no more through in any stretch of time as long as its window, to two instances', async (max) => {
    const windowMs = 300
    const all = [countersOf(await open(redis.url), max, windowMs), countersOf(await open(redis.url), max, windowMs)]
    const it = digest()
    const instants: number[] = []
    const end = performance.now() + 4 * windowMs
    while (performance.now() < end) {
      for (const hit of await Promise.all(all.map((counters) => counters.hit(it)))) if (hit?.counted) instants.push(hit.at)
    }
    instants.sort((a, b) => a - b)
    expect(instants.length).toBeGreaterThan(2 * max)
    for (const [n, at] of instants.slice(max).entries()) expect(at - (instants[n] ?? 0)).toBeGreaterThanOrEqual(windowMs)
  })

  test('lets in a client that waits as long as it says', async () => {
    const counters = countersOf(await open(redis.url), 2, 200)
    const it = digest()
    for (let n = 0; n < 2; n++) expect((await counters.hit(it))?.counted).toBe(true)
    const refused = await counters.hit(it)
    expect(refused).toMatchObject({ counted: false, hits: 2 })
    await until(async () => (await serverTime()) >= (refused?.at ?? 0) + (refused?.waitMs ?? 0))
    expect(await counters.hit(it)).toMatchObject({ counted: true })
  })

  test('takes nothing back of a hit that has slid out, and never falls below zero', async () => {
    const counters = countersOf(await open(redis.url), 2, 200)
    const it = digest()
    const first = await counters.hit(it)
    for (let n = 0; n < 3; n++) await counters.takeBack(it, first?.at ?? 0)
    expect(await admin.exists(keyOf(it))).toBe(0)
    const old = await counters.hit(it)
    await until(async () => (await serverTime()) >= (old?.at ?? 0) + 200)
    for (const hits of [1, 2]) expect((await counters.hit(it))?.hits).toBe(hits)
    await counters.takeBack(it, old?.at ?? 0)
    expect((await counters.hit(it))?.counted).toBe(false)
  })

  test('that somebody wrote to is begun anew, or holds for a window at most', async () => {
    const counters = countersOf(await open(redis.url), 2)
    const now = await serverTime()
    for (const nonsense of ['x', '-5', `${now}:-5`, '1e9:2', '']) {
      const it = digest()
      await admin.set(keyOf(it), nonsense)
      expect([nonsense, await counters.hit(it)]).toEqual([nonsense, expect.objectContaining({ counted: true, hits: 1 })])
    }
    for (const full of [`${now}:99999999999999999999`, `${now + 3_600_000}:2`]) {
      const it = digest()
      await admin.set(keyOf(it), full)
      const hit = await counters.hit(it)
      expect(hit).toMatchObject({ counted: false, hits: 2 })
      expect(hit?.waitMs).toBeLessThanOrEqual(LONG_MS)
      // Dated as of now, or it would stay full for an hour.
      expect(await admin.pttl(keyOf(it))).toBeLessThanOrEqual(LONG_MS)
    }
    // Two slots that are of one instant now: one hit is taken back, not one of each.
    const [it, slow] = [digest(), countersOf(await open(redis.url), 40, 600_000)]
    await admin.set(keyOf(it), `${now + 3_600_000}:1 ${now + 7_200_000}:1`)
    await slow.takeBack(it, await serverTime())
    expect((await slow.hit(it))?.hits).toBe(2)
    const list = digest()
    await admin.rpush(keyOf(list), 'x')
    for (const hits of [1, 2]) expect(await counters.hit(list)).toMatchObject({ counted: true, hits })
  })

  test('survives that the server forgets its scripts, and that it was away when it was made', async () => {
    const own = await startRedis()
    const cache = await open(own.url)
    await own.stop()
    await until(async () => (await cache.get(digest())) === undefined)
    const counters = countersOf(cache)
    const it = digest()
    expect(await counters.hit(it)).toBeUndefined()
    await counters.takeBack(it, 1)
    await own.start()
    await answering(cache)
    expect((await counters.hit(it))?.hits).toBe(1)
    await connect(own.url).script('FLUSH')
    expect((await counters.hit(it))?.hits).toBe(2)
  })

  test('gives no answer in time where Redis has fallen silent, and at once where it is left alone', async () => {
    const { url, release } = await slowWay(redis.url)
    const counters = countersOf(await open(url, { timeoutMs: 100 }))
    release.hold()
    for (let i = 0; i < 5; i++) expect(await timed(async () => expect(await counters.hit(digest())).toBeUndefined())).toBeLessThan(1_000)
    const spent = await timed(async () => {
      for (let i = 0; i < 100; i++) expect(await counters.hit(digest())).toBeUndefined()
    })
    expect(spent).toBeLessThan(1_000)
    release.go()
  })

  test.each([
    ['a number', ':1\r\n'],
    ['an empty list', '*0\r\n'],
    ['too little', '*3\r\n:1\r\n:1\r\n:0\r\n'],
    ['a third state', '*4\r\n:2\r\n:1\r\n:0\r\n:1\r\n'],
    ['a hit that it counted as none', '*4\r\n:1\r\n:0\r\n:0\r\n:1\r\n'],
    ['a negative number of hits', '*4\r\n:0\r\n:-1\r\n:0\r\n:1\r\n'],
    ['more hits than the limit', '*4\r\n:0\r\n:1001\r\n:0\r\n:1\r\n'],
    ['a wait below zero', '*4\r\n:1\r\n:1\r\n:-1\r\n:1\r\n'],
    ['a wait of more than a window', '*4\r\n:0\r\n:1000\r\n:60001\r\n:1\r\n'],
    ['a time below zero', '*4\r\n:1\r\n:1\r\n:5\r\n:-1\r\n'],
    ['a time that is no number', '*4\r\n:1\r\n:1\r\n:5\r\n$4\r\nnoon\r\n'],
    ['a huge time', '*4\r\n:1\r\n:1\r\n:5\r\n:9223372036854775807\r\n'],
    ['a list', '*4\r\n:1\r\n*0\r\n:5\r\n:1\r\n'],
    ['an error', '-ERR no\r\n'],
  ])('gives no answer where Redis answers with %s', async (_what, reply) => {
    let asked = 0
    const url = await fakeServer((socket) => {
      socket.on('data', (data) => {
        for (const name of commandNames(data)) {
          if (isOurs(name)) asked++
          socket.write(isOurs(name) ? reply : handshake(name))
        }
      })
    })
    const counters = countersOf(closing(redisCache(connect(url, { lazyConnect: true }), { onStateChange() {} })))
    await until(async () => {
      expect(await counters.hit(digest())).toBeUndefined()
      return asked > 0
    })
  })
})

describe('the client of the application', () => {
  test('keeps its options and its connection, and nothing is opened before the first use', async () => {
    const client = connect(redis.url, { keyPrefix: 'app:', stringNumbers: true })
    await client.ping()
    const options = JSON.stringify(client.options)
    const connections = await openConnections()
    const cache = redisCache(client)
    expect(await openConnections()).toBe(connections)
    await answering(cache)
    expect(await openConnections()).toBe(connections + 1)
    await cache.close()
    await until(async () => (await openConnections()) === connections)
    expect(JSON.stringify(client.options)).toBe(options)
    expect(await client.ping()).toBe('PONG')
    expect(client.listenerCount('error')).toBe(1)
  })

  test('may have a key prefix, which then stands before our names', async () => {
    const cache = await open(redis.url, {}, { keyPrefix: 'app:' })
    const it = digest()
    await cache.fill(it, ACTIVE, (await serverTime()) + LONG_MS)
    expect((await cache.get(it))?.value).toBe(ACTIVE)
    expect(await admin.del(`app:${KEY}${it}`)).toBe(1)
  })

  test('may be lazy: the first reads have no answer, and then there is one', async () => {
    const client = connect(redis.url, { lazyConnect: true })
    const cache = closing(redisCache(client))
    expect(await cache.get(digest())).toBeUndefined()
    await answering(cache)
    expect(client.status).toBe('wait')
  })

  test('is duplicated by our rules', async () => {
    const client = connect(redis.url, { lazyConnect: true })
    const duplicate = jest.spyOn(client, 'duplicate')
    const cache = closing(redisCache(client, { timeoutMs: 1_000 }))
    expect(duplicate).not.toHaveBeenCalled()
    await answering(cache)
    expect(duplicate).toHaveBeenCalledTimes(1)
    const opened = duplicate.mock.results[0]?.value as Redis
    expect(opened.options).toMatchObject({
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: 0,
      enableAutoPipelining: true,
    })
    const { retryStrategy, reconnectOnError } = opened.options
    for (const times of [1, 2, 10, 1_000_000]) {
      const delay = Number(retryStrategy?.(times))
      expect(delay).toBeGreaterThan(0)
      expect(delay).toBeLessThanOrEqual(1_000)
    }
    expect(reconnectOnError?.(new Error('ERR wrong'))).toBe(false)
    expect(reconnectOnError?.(new Error("READONLY You can't write against a read only replica."))).toBe(true)
  })
})

describe('a Redis in trouble', () => {
  test('that is down costs nothing, and is in use again soon after it is back', async () => {
    const own = await startRedis()
    const states: string[] = []
    const cache = await open(own.url, { timeoutMs: 5_000, onStateChange: (state) => states.push(state) })
    await own.stop()
    await until(async () => (await cache.get(digest())) === undefined)
    for (let i = 0; i < 20; i++) {
      const spent = await timed(async () => {
        expect(await cache.get(digest())).toBeUndefined()
        await cache.fill(digest(), ACTIVE, Date.now() + LONG_MS)
        expect(await cache.bury(digest(), TOMBSTONE, LONG_MS)).toBe(false)
        await cache.forget(digest())
      })
      expect(spent).toBeLessThan(1_000)
    }
    await own.start()
    await answering(cache)
    expect(states).toEqual(['down', 'up'])
  })

  test('that was never there tells why, once', async () => {
    const heard: [string, unknown][] = []
    const cache = closing(
      redisCache(connect(`redis://127.0.0.1:${await freePort()}`, { lazyConnect: true }), {
        onStateChange(state, cause) {
          heard.push([state, cause])
          throw new Error('A listener of no use.')
        },
      }),
    )
    await until(async () => (await cache.get(digest())) === undefined && heard.length > 0)
    expect(heard).toEqual([['down', expect.objectContaining({ code: 'ECONNREFUSED' })]])
  })

  ifServer()('whose password is wrong is told of with the cause, and again when it is right', async () => {
    const url = await ownServer()
    const owner = connect(url)
    await owner.config('SET', 'requirepass', 'the-right-one')
    const wrong = { lazyConnect: true, password: 'the-wrong-one', reconnectOnError: null }
    const heard: [string, unknown][] = []
    const lines: unknown[][] = []
    jest.spyOn(console, 'error').mockImplementation((...line: unknown[]) => void lines.push(line))
    const caches = [{ onStateChange: (...now: [string, unknown?]) => void heard.push([now[0], now[1]]) }, {}].map((options) =>
      closing(redisCache(connect(url, wrong), options)),
    )
    const askUntil = (isSo: () => boolean): Promise<void> =>
      until(async () => {
        for (const cache of caches) await cache.get(digest())
        return isSo()
      })
    await askUntil(() => heard.length > 0 && lines.length > 0)
    for (let n = 0; n < 20; n++) await askUntil(() => true)
    expect(heard).toEqual([['down', expect.objectContaining({ message: expect.stringMatching(/^(WRONGPASS|NOAUTH)/) })]])
    expect(lines).toEqual([
      [
        expect.stringMatching(
          /^express-api-keys: Redis has stopped answering \(ReplyError (WRONGPASS|NOAUTH).*\); requests go on without it\.$/,
        ),
      ],
    ])
    await owner.config('SET', 'requirepass', 'the-wrong-one')
    await owner.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
    await askUntil(() => heard.length > 1 && lines.length > 1)
    jest.restoreAllMocks()
    expect([heard.at(-1), lines.at(-1)]).toEqual([['up', undefined], ['express-api-keys: Redis answers again.']])
    expect(JSON.stringify(lines)).not.toMatch(/the-(wrong|right)-one/)
  })

  test('that is killed with commands on their way answers none of them wrongly', async () => {
    const own = await startRedis()
    const cache = await open(own.url)
    const spent = await timed(async () => {
      const burials = Array.from({ length: 200 }, () => cache.bury(digest(), TOMBSTONE, LONG_MS))
      const reads = Array.from({ length: 200 }, () => cache.get(digest()))
      await own.stop()
      for (const buried of await Promise.all(burials)) expect(typeof buried).toBe('boolean')
      for (const read of await Promise.all(reads)) expect(read?.value ?? null).toBeNull()
    })
    expect(spent).toBeLessThan(1_000)
    await own.start()
    await answering(cache)
  })

  test('that accepts and says nothing is never waited for', async () => {
    const cache = closing(redisCache(connect(await fakeServer(() => {}), { lazyConnect: true }), { timeoutMs: 5_000 }))
    for (let i = 0; i < 10; i++) expect(await timed(() => cache.get(digest()))).toBeLessThan(1_000)
  })

  test('that falls silent is waited for as long as the limit says, and after five times not at all', async () => {
    const { url, release } = await slowWay(redis.url)
    const states: unknown[] = []
    const cache = await open(url, { timeoutMs: 100, onStateChange: (state, cause) => states.push([state, String(cause)]) })
    release.hold()
    for (let i = 0; i < 5; i++) {
      const spent = await timed(async () => expect(await cache.get(digest())).toBeUndefined())
      expect(spent).toBeGreaterThan(90)
      expect(spent).toBeLessThan(1_000)
    }
    expect(states).toEqual([['down', 'Error: Redis gave no answer within 100 ms.']])
    const spent = await timed(async () => {
      for (let i = 0; i < 100; i++) expect(await cache.get(digest())).toBeUndefined()
    })
    expect(spent).toBeLessThan(1_000)
    release.go()
    await answering(cache)
    expect(states).toHaveLength(2)
  })

  test('to which one connection has died without a word is connected to anew', async () => {
    const { hostname, port } = new URL(redis.url)
    const [alive, dead] = [new Set<Socket>(), new Set<Socket>()]
    const url = await fakeServer((socket) => {
      alive.add(socket)
      const onward = dial(Number(port), hostname)
      onward.on('error', () => {}).on('close', () => socket.destroy())
      socket.on('data', (data) => dead.has(socket) || onward.write(data)).on('close', () => onward.destroy())
      onward.pipe(socket)
    })
    const cache = await open(url, { timeoutMs: 50 })
    for (const socket of alive) dead.add(socket)
    await until(async () => (await cache.get(digest())) === undefined)
    await answering(cache)
    expect(alive.size).toBeGreaterThan(dead.size)
  })

  test('that shakes hands but answers no command is asked by one request at a time, ever more seldom', async () => {
    const url = await fakeServer((socket) => {
      socket.on('data', (data) => {
        for (const name of commandNames(data)) if (!isOurs(name)) socket.write(handshake(name))
      })
    })
    const cache = closing(redisCache(connect(url, { lazyConnect: true }), { timeoutMs: 20 }))
    let waits = 0
    const end = performance.now() + 2_000
    while (performance.now() < end) {
      const spent = await Promise.all(Array.from({ length: 10 }, () => timed(() => cache.get(digest()))))
      waits += spent.filter((ms) => ms > 15).length
      await turn()
    }
    // The first ten to find out and one a second later, not ten; a slow machine loses its own connections and may wait a few times more.
    expect(waits).toBeGreaterThanOrEqual(10)
    expect(waits).toBeLessThanOrEqual(15)
  })

  test.each([
    ['a number', ':1\r\n'],
    ['a word', '+OK\r\n'],
    ['nothing', '*-1\r\n'],
    ['an empty list', '*0\r\n'],
    ['an entry without a time', '*1\r\n$1\r\na\r\n'],
    ['a time that is a word', '*2\r\n$1\r\na\r\n$4\r\nnoon\r\n'],
    ['a time of one part', '*2\r\n$1\r\na\r\n*1\r\n$1\r\n1\r\n'],
    ['a time of letters', '*2\r\n$1\r\na\r\n*2\r\n$3\r\n1e9\r\n$1\r\n0\r\n'],
    ['a time below zero', '*2\r\n$1\r\na\r\n*2\r\n$2\r\n-1\r\n$1\r\n0\r\n'],
    ['a time of numbers', '*2\r\n$1\r\na\r\n*2\r\n:1\r\n:0\r\n'],
    ['an entry that is a number', '*2\r\n:1\r\n*2\r\n$1\r\n1\r\n$1\r\n0\r\n'],
    ['an entry that is a list', '*2\r\n*0\r\n*2\r\n$1\r\n1\r\n$1\r\n0\r\n'],
    ['three things', '*3\r\n$1\r\na\r\n*2\r\n$1\r\n1\r\n$1\r\n0\r\n:1\r\n'],
    ['an error', '-ERR no\r\n'],
    ['no protocol at all', 'HTTP/1.1 400 Bad Request\r\n\r\n'],
  ])('that answers with %s gives no answer', async (_what, reply) => {
    let asked = 0
    const url = await fakeServer((socket) => {
      socket.on('data', (data) => {
        for (const name of commandNames(data)) {
          if (isOurs(name)) asked++
          socket.write(isOurs(name) ? reply : handshake(name))
        }
      })
    })
    const cache = closing(redisCache(connect(url, { lazyConnect: true })))
    await until(async () => (await cache.get(digest())) !== undefined || asked > 0)
    await until(async () => {
      expect(await cache.get(digest())).toBeUndefined()
      await cache.fill(digest(), ACTIVE, Date.now() + LONG_MS)
      await cache.forget(digest())
      expect(await cache.bury(digest(), TOMBSTONE, LONG_MS)).toBe(/^\+OK/.test(reply))
      return asked >= 5
    })
  })

  ifServer()('that has become a replica is read, says no to a burial, and is connected to anew', async () => {
    const url = await ownServer()
    const client = connect(url)
    const cache = await open(url)
    const it = digest()
    await cache.fill(it, ACTIVE, (await serverTime()) + LONG_MS)
    await client.call('REPLICAOF', '127.0.0.1', String(await freePort()))
    const connected = await total(client)
    expect(await cache.bury(it, TOMBSTONE, LONG_MS)).toBe(false)
    await until(async () => (await total(client)) > connected)
    await until(async () => (await cache.get(it))?.value === ACTIVE)
    await client.call('REPLICAOF', 'NO', 'ONE')
    await until(() => cache.bury(it, TOMBSTONE, LONG_MS))
  })
})

describe('a Cluster', () => {
  ifServer()('is read and written like a single server', async () => {
    const url = await ownServer('--cluster-enabled', 'yes', '--cluster-announce-ip', '127.0.0.1')
    const single = connect(url)
    await single.call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383')
    const client = new Cluster([url], { lazyConnect: true, scaleReads: 'all', keyPrefix: 'app:' })
    const cache = closing(redisCache(client))
    await answering(cache)
    const expiresAt = Date.now() + LONG_MS
    const digests = Array.from({ length: 100 }, () => digest())
    await Promise.all(digests.map((it) => cache.fill(it, `a.${it}`, expiresAt)))
    const read = await Promise.all(digests.map((it) => cache.get(it)))
    expect(read.map((answer) => answer?.value)).toEqual(digests.map((it) => `a.${it}`))
    const [it = ''] = digests
    expect(await cache.bury(it, TOMBSTONE, LONG_MS)).toBe(true)
    await cache.forget(it)
    expect((await cache.get(it))?.value).toBe(TOMBSTONE)
    expect(await single.get(`app:${KEY}${it}`)).toBe(TOMBSTONE)
    const counters = cache.counters?.({ max: 2, windowMs: LONG_MS })
    for (const counted of [true, true, false]) expect((await counters?.hit(it))?.counted).toBe(counted)
    expect(client.status).toBe('wait')
    client.disconnect()
  })

  ifServer()('behind an address that looks like a single server is soon read and written like one', async () => {
    const url = await ownServer('--cluster-enabled', 'yes')
    await connect(url).call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383')
    const cache = await open(url)
    const digests = Array.from({ length: 20 }, () => digest())
    const read = (): Promise<(string | null | undefined)[]> => Promise.all(digests.map(async (it) => (await cache.get(it))?.value))
    // The first that go together are refused, since they are in several slots.
    expect(new Set(await read())).toEqual(new Set([undefined]))
    await until(async () => (await read()).every((value) => value === null))
    await Promise.all(digests.map((it) => cache.fill(it, `a.${it}`, Date.now() + LONG_MS)))
    expect(await read()).toEqual(digests.map((it) => `a.${it}`))
  })

  test('is duplicated with its nodes and our rules, also for each node, and its own options stay', async () => {
    const client = new Cluster([{ host: '127.0.0.1', port: await freePort() }], {
      lazyConnect: true,
      redisOptions: { password: 'p', maxRetriesPerRequest: 7 },
    })
    client.on('error', () => {})
    const options = JSON.stringify(client.options)
    const duplicate = jest.spyOn(client, 'duplicate')
    const cache = closing(redisCache(client))
    expect(await cache.get(digest())).toBeUndefined()
    const [nodes, given] = duplicate.mock.calls[0] ?? []
    expect(nodes).toEqual([])
    expect(given).toMatchObject({
      enableOfflineQueue: false,
      enableAutoPipelining: true,
      scaleReads: 'master',
      redisOptions: { password: 'p', maxRetriesPerRequest: 0, autoResendUnfulfilledCommands: false },
    })
    expect(given?.clusterRetryStrategy?.(1_000)).toBeLessThanOrEqual(1_000)
    expect(JSON.stringify(client.options)).toBe(options)
  })
})

describe('closing', () => {
  test('ends every answer, is quick, and may be done twice and before the first use', async () => {
    const unused = redisCache(connect(redis.url))
    await unused.close()
    expect(await unused.get(digest())).toBeUndefined()

    const cache = await open(redis.url)
    const it = digest()
    await cache.close()
    await cache.close()
    expect(await cache.get(it)).toBeUndefined()
    expect(await cache.bury(it, TOMBSTONE, LONG_MS)).toBe(false)
    await cache.fill(it, ACTIVE, Date.now() + LONG_MS)
    await cache.forget(it)
    expect(await admin.exists(KEY + it)).toBe(0)
  })

  test('is quick while commands are on their way to a silent server', async () => {
    const { url, release } = await slowWay(redis.url)
    const cache = await open(url, { timeoutMs: 5_000 })
    release.hold()
    const pending = [cache.get(digest()), cache.bury(digest(), TOMBSTONE, LONG_MS)]
    await release.held
    expect(await timed(() => cache.close())).toBeLessThan(1_000)
    expect(await timed(async () => expect(await Promise.all(pending)).toEqual([undefined, false]))).toBeLessThan(1_000)
  })

  test.each([
    ['up', async () => redis.url],
    ['down', async () => `redis://127.0.0.1:${await freePort()}`],
    ['silent', () => fakeServer(() => {})],
  ])('lets the process end when Redis is %s', async (_state, urlOf) => {
    const url = await urlOf()
    const program = `
      import { Redis } from 'ioredis'
      import { redisCache } from ${JSON.stringify(resolve('src/cache/redis/redis-cache.ts'))}
      const cache = redisCache(new Redis(${JSON.stringify(url)}, { lazyConnect: true }), { onStateChange() {} })
      const end = performance.now() + 500
      while (performance.now() < end && (await cache.get('d')) === undefined) await new Promise((next) => setTimeout(next, 5))
      await cache.close()
      console.log('closed')
    `
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'pipe'] })
    let said = ''
    let closedAt = Number.NaN
    child.stderr.on('data', (data) => {
      said += String(data)
    })
    child.stdout.on('data', (data) => {
      closedAt = performance.now()
      said += String(data)
    })
    const [code] = (await once(child, 'exit')) as [number | null]
    expect({ code, said }).toEqual({ code: 0, said: 'closed\n' })
    expect(performance.now() - closedAt).toBeLessThan(3_000)
  })
})

test('an option or a client that is wrong is refused with what to write instead', () => {
  const client = connect(redis.url, { lazyConnect: true })
  const refused = (...args: unknown[]): unknown => {
    try {
      return (redisCache as (...args: unknown[]) => unknown)(...args)
    } catch (error) {
      return error
    }
  }
  const invalid = (message: RegExp) => expect.objectContaining({ code: 'invalid_option', message: expect.stringMatching(message) })
  for (const wrong of [undefined, null, 'redis://127.0.0.1', {}, { duplicate() {} }, new Map()]) {
    expect(refused(wrong)).toEqual(invalid(/redisCache\(new Redis\(url\)\)/))
  }
  for (const timeoutMs of [9, 5_001, 10.5, Number.NaN, '150', null]) {
    expect(refused(client, { timeoutMs })).toEqual(invalid(/^timeoutMs must be a whole number from 10 to 5000, not /))
  }
  expect(refused(client, { timeout: 150 })).toEqual(invalid(/"timeout".*timeoutMs/))
  expect(refused(client, { onStateChange: true })).toEqual(invalid(/^onStateChange must be a function/))
  expect(refused(client, null)).toEqual(invalid(/options/))
})

function digest(): string {
  return `test-${process.pid}-${names++}`
}

function connect(url: string, options: Omit<RedisOptions, 'replyMapping'> = {}): Redis {
  const client = new Redis(url, options)
  client.on('error', () => {})
  atEnd(async () => client.disconnect())
  return client
}

function closing(cache: Cache): Cache {
  atEnd(() => cache.close())
  return cache
}

/** A cache that answers. */
async function open(
  url: string,
  options: Parameters<typeof redisCache>[1] = {},
  clientOptions: Omit<RedisOptions, 'replyMapping'> = {},
): Promise<Cache> {
  const cache = closing(redisCache(connect(url, { lazyConnect: true, ...clientOptions }), options))
  await answering(cache)
  return cache
}

function answering(cache: Cache): Promise<void> {
  return until(async () => (await cache.get(digest())) !== undefined)
}

/** Asks until it is so; gives up after 15 seconds. */
async function until(isSo: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + 15_000
  while (!(await isSo())) {
    if (performance.now() > end) throw new Error('It did not come true within 15 seconds.')
    await turn()
  }
}

function turn(): Promise<void> {
  return new Promise((next) => setTimeout(next, 2))
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now()
  await work()
  return performance.now() - start
}

async function serverTime(): Promise<number> {
  const [seconds = 0, micros = 0] = (await admin.time()).map(Number)
  return seconds * 1_000 + Math.floor(micros / 1_000)
}

/** How many times the server carried out a command, also from a script. */
async function commandsSeen(name: string): Promise<number> {
  return Number(
    /calls=(\d+)/.exec((await admin.info('commandstats')).split('\n').find((line) => line.startsWith(`cmdstat_${name}:`)) ?? '')?.[1] ?? 0,
  )
}

async function openConnections(): Promise<number> {
  return ((await admin.client('LIST')) as string).trim().split('\n').length
}

/** How many connections the server has seen in its life. */
async function total(client: Redis): Promise<number> {
  return Number(/total_connections_received:(\d+)/.exec(await client.info('stats'))?.[1])
}

/** A way to the server on which the requests can be held back. */
async function slowWay(url: string): Promise<{ url: string; release: { hold(): void; go(): void; readonly held: Promise<void> } }> {
  const { hostname, port } = new URL(url)
  let holding = false
  const waiting: (() => void)[] = []
  let sawOne: () => void = () => {}
  const held = new Promise<void>((done) => {
    sawOne = done
  })
  const way = await fakeServer((socket) => {
    const onward = dial(Number(port), hostname)
    onward.on('error', () => socket.destroy()).on('close', () => socket.destroy())
    // What was sent before the socket closed still arrives, as it does on a network.
    socket.on('data', (data) => {
      if (!holding) return onward.write(data)
      sawOne()
      return waiting.push(() => onward.write(data))
    })
    socket.on('close', () => (holding ? waiting.push(() => onward.end()) : onward.end()))
    onward.pipe(socket)
  })
  return {
    url: way,
    release: {
      hold() {
        holding = true
      },
      go() {
        holding = false
        for (const pass of waiting.splice(0)) pass()
      },
      held,
    },
  }
}

async function fakeServer(onConnection: (socket: Socket) => void): Promise<string> {
  const open = new Set<Socket>()
  const server = createServer((socket) => {
    open.add(socket)
    socket.on('error', () => {}).on('close', () => open.delete(socket))
    onConnection(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  atEnd(async () => {
    for (const socket of open) socket.destroy()
    server.close()
  })
  return `redis://127.0.0.1:${(server.address() as AddressInfo).port}`
}

/** The first word of each command in a piece of RESP, which a test sends in one piece. */
function commandNames(data: Buffer): string[] {
  const words = data.toString('latin1').split('\r\n')
  return words.flatMap((word, i) => (/^\*\d+$/.test(word) ? [words[i + 2] ?? ''] : []))
}

function isOurs(command: string): boolean {
  return /^(eval|evalsha|set)$/i.test(command)
}

function handshake(command: string): string {
  if (/^hello$/i.test(command)) return '-ERR unknown command `HELLO`\r\n'
  return /^info$/i.test(command) ? '$9\r\nloading:0\r\n' : '+OK\r\n'
}

/** A server that the test may turn into something else. */
async function ownServer(...args: string[]): Promise<string> {
  return (await ownRedis({ args: () => args })).url
}
