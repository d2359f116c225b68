import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net'
import { resolve } from 'node:path'
import { type RedisCacheOptions, redisCache } from 'express-api-keys/redis'
import { Redis, type RedisOptions } from 'ioredis'
import type { Cache } from '../../../src/cache/cache.js'
import type { Channel } from '../../../src/channel.js'
import { channelContract } from '../../support/channel-contract.js'
import { atEnd } from '../../support/cleanup.js'
import { faultProxy } from '../../support/proxy.js'
import { ifServer, ownRedis, startRedis, type TestRedis } from '../../support/redis.js'

const HERE = 'here'
let redis: TestRedis
let admin: Redis

beforeAll(async () => {
  redis = await startRedis()
  admin = connect(redis.url)
})

channelContract('the channel of redisCache', async () => {
  const own = await startRedis()
  const [channel, sibling] = [open(own.url), open(own.url)].map((each) => each.channel) as [Channel, Channel]
  return {
    channel,
    sibling,
    fail: own.stop,
    async close() {
      for (const each of [channel, sibling]) await each.close()
      await own.stop()
    },
  }
})

describe('what goes over Redis', () => {
  test('is named after this package, whatever the prefix and the database of a client', async () => {
    const [one, two] = [open(redis.url, { keyPrefix: 'one:', db: 1 }), open(redis.url, { keyPrefix: 'two:' })]
    const ear = await listen(one.channel)
    expect((await admin.pubsub('CHANNELS', '*')).sort()).toEqual([
      'express-api-keys:here',
      expect.stringMatching(/^express-api-keys:self:[\w-]{16}$/),
    ])
    await arrives(two.channel, ear)
  })

  test('comes in the order in which it was sent, with nothing lost while nothing is wrong', async () => {
    const [one, two] = [open(redis.url, {}, { timeoutMs: 5_000 }), open(redis.url, {}, { timeoutMs: 5_000 })]
    const { heard } = await listen(one.channel)
    await listen(two.channel)
    const texts = Array.from({ length: 5_000 }, (_, n) => `${n}.${'x'.repeat(n % 50 === 0 ? 6_990 : 100)}`)
    await Promise.all(texts.map((text) => two.channel.send(HERE, text)))
    await until(() => heard.length === texts.length)
    expect(heard).toEqual(texts)
  })

  test('opens a connection for listening at the first call, one for all, and ends it with the last listener', async () => {
    const { cache, channel } = open(redis.url)
    await until(async () => (await cache.get('none')) !== undefined)
    const before = await listeningConnections()
    await channel.send(HERE, 'nobody hears')
    expect([await listeningConnections(), channel.isOpen()]).toEqual([before, false])
    const ears = await Promise.all([listen(channel), listen(channel, 'there')])
    expect(await listeningConnections()).toBe(before + 1)
    for (const { stop } of ears) stop()
    expect(channel.isOpen()).toBe(false)
    await until(async () => (await listeningConnections()) === before)
    await arrives(channel, await listen(channel))
  })

  test('is heard on each channel of a cache apart, until the cache is closed', async () => {
    const { cache, channel } = open(redis.url)
    const other = (cache as Required<Cache>).channel()
    const [one, two] = [await listen(channel), await listen(other)]
    await other.close()
    await arrives(channel, one)
    expect([other.isOpen(), two.heard.length]).toEqual([false, 0])
    await cache.close()
    expect(channel.isOpen()).toBe(false)
  })
})

describe('a connection for listening', () => {
  test('that is lost is told at once, and made good', async () => {
    const { channel } = open(redis.url)
    const ear = await listen(channel)
    for (let n = 0; n < 3; n++) {
      await admin.call('CLIENT', 'KILL', 'TYPE', 'pubsub')
      await until(() => !channel.isOpen())
      await until(channel.isOpen)
      await arrives(channel, ear)
    }
  })

  test('is made good after Redis was killed and started again', async () => {
    const own = await startRedis()
    const { channel } = open(own.url)
    const ear = await listen(channel)
    await own.stop()
    await until(() => !channel.isOpen())
    expect(await channel.listen(['there'], () => {})).toBeUndefined()
    await own.start()
    await until(channel.isOpen)
    await arrives(channel, ear)
  })

  test('that went silent is given up for another one, while all else goes on', async () => {
    const proxy = await faultProxy(new URL(redis.url))
    atEnd(() => proxy.close())
    const states: string[] = []
    const { cache, channel } = await openByAnotherWay(`redis://127.0.0.1:${proxy.port}`, states)
    const ear = await listen(channel)
    proxy.trouble('down', { kind: 'black-hole' })
    await until(() => !channel.isOpen())
    expect(await channel.listen(['there'], () => {})).toBeUndefined()
    expect(await cache.get('none')).toEqual({ value: null, timeMs: expect.any(Number) })
    proxy.heal()
    await until(channel.isOpen)
    await arrives(channel, ear)
    expect(states).toEqual([])
  })

  test('through which no message comes is no channel, until one does', async () => {
    const way = await relay(redis.url, (bytes) => (way.isOpen || !bytes.includes('\r\nmessage\r\n') ? bytes : undefined))
    const states: string[] = []
    const { channel } = await openByAnotherWay(way.url, states)
    const heard: string[] = []
    expect(await channel.listen([HERE], (text) => heard.push(text))).toBeUndefined()
    expect(channel.isOpen()).toBe(false)
    way.isOpen = true
    await until(channel.isOpen)
    await arrives(channel, { heard })
    expect(states).toEqual([])
  })

  test.each([2, 3] as const)('hands on nothing that was not asked for, over RESP%s', async (protocol) => {
    const kind = protocol === 2 ? '*' : '>'
    const bulk = (text: string | Buffer | null): string => (text === null ? '$-1\r\n' : `$${text.length}\r\n${text.toString('latin1')}\r\n`)
    const message = (...parts: (string | Buffer | null)[]): string =>
      `${kind}${parts.length + 1}\r\n$7\r\nmessage\r\n${parts.map(bulk).join('')}`
    const there = 'express-api-keys:here'
    const hostile = [
      message('express-api-keys:elsewhere', 'text'),
      message('here', 'text'),
      message('', 'text'),
      message('x'.repeat(100_000), 'text'),
      message('__proto__', 'text'),
      message(there, ''),
      message(there, 'x'.repeat(7_001)),
      message(there, 'x'.repeat(1_000_000)),
      message(there, Buffer.from('é')),
      message(there, Buffer.from([0xff, 0xfe])),
      message(there, null),
      message(null, 'text'),
      message(null, null),
      message(there),
      `${kind}3\r\n$7\r\nmessage\r\n${bulk(there)}:7\r\n`,
      `${kind}3\r\n$7\r\nmessage\r\n${bulk(there)}*1\r\n${bulk('text')}`,
      `${kind}4\r\n$8\r\npmessage\r\n${bulk('*')}${bulk(there)}${bulk('text')}`,
      `${kind}3\r\n$8\r\nsmessage\r\n${bulk(there)}${bulk('text')}`,
    ].join('')
    const way = await relay(redis.url, (bytes) => {
      if (!bytes.includes('\r\nmessage\r\n')) return bytes
      way.met++
      return Buffer.concat([Buffer.from(hostile, 'latin1'), bytes])
    })
    const { channel } = await openByAnotherWay(way.url, [], { protocol })
    const heard: unknown[] = []
    const stop = await channel.listen([HERE], (...all) => heard.push(all))
    expect(stop).toBeDefined()
    await channel.send(HERE, 'sound')
    await until(() => heard.length > 0)
    expect(heard).toEqual([['sound', HERE]])
    expect(way.met).toBeGreaterThan(1)
  })
})

describe('a Redis that refuses', () => {
  ifServer()('a password leaves the channel shut until it is right', async () => {
    const server = await ownRedis({ args: () => ['--requirepass', 'right'] })
    const { channel } = open(server.url, { password: 'wrong' })
    const heard: string[] = []
    expect(await channel.listen([HERE], (text) => heard.push(text))).toBeUndefined()
    expect(channel.isOpen()).toBe(false)
    const owner = connect(server.url, { password: 'right' })
    await owner.config('SET', 'requirepass', 'wrong')
    await until(channel.isOpen)
    await arrives(channel, { heard })
  })

  ifServer().each([
    ['SUBSCRIBE', ['-subscribe']],
    ['PUBLISH', ['-publish']],
    ['our addresses', ['resetchannels', '&other:*']],
  ])('%s leaves the cache as it is, and the channel shut until it is allowed', async (_what, rules) => {
    const server = await ownRedis()
    const owner = connect(server.url)
    await owner.acl('SETUSER', 'app', 'on', '>pw', '~*', '+@all', 'allchannels', ...rules)
    const states: string[] = []
    const { cache, channel } = open(server.url, { username: 'app', password: 'pw' }, { onStateChange: (state) => states.push(state) })
    const heard: string[] = []
    const before = await connectionsSeen(owner)
    expect(await channel.listen([HERE], (text) => heard.push(text))).toBeUndefined()
    // It is tried less and less often.
    expect((await connectionsSeen(owner)) - before).toBeLessThan(15)
    for (let n = 0; n < 10; n++) await channel.send(HERE, 'refused')
    expect(channel.isOpen()).toBe(false)
    expect(await cache.get('none')).toEqual({ value: null, timeMs: expect.any(Number) })
    expect(states).toEqual([])
    await owner.acl('SETUSER', 'app', '+@all', 'resetchannels', '&express-api-keys:*')
    await until(channel.isOpen)
    await arrives(channel, { heard })
  })
})

describe('the end', () => {
  test('leaves no connection and tells those who wait, at once, in whatever state', async () => {
    const silent = await relay(redis.url, () => undefined)
    const before = await listeningConnections()
    for (const url of [redis.url, silent.url, 'redis://127.0.0.1:1']) {
      for (const turns of [0, 1, 2, 5, 20, 100]) {
        const { cache, channel } = open(url)
        const listening = channel.listen([HERE], () => {})
        for (let n = 0; n < turns; n++) await new Promise(setImmediate)
        const start = performance.now()
        await Promise.all([turns % 2 === 0 ? channel.close() : cache.close(), listening])
        expect(performance.now() - start).toBeLessThan(500)
        expect(channel.isOpen()).toBe(false)
      }
    }
    await until(async () => (await listeningConnections()) === before && silent.connections() === silent.ended())
  })

  test.each<[string, () => Promise<string>, string]>([
    ['well', async () => redis.url, 'true'],
    ['silent', async () => (await relay(redis.url, () => undefined)).url, 'false'],
    ['not there', async () => 'redis://127.0.0.1:1', 'false'],
  ])('lets the process end when Redis is %s', async (_state, urlOf, isOpen) => {
    const program = `
      import { Redis } from 'ioredis'
      import { redisCache } from ${JSON.stringify(resolve('src/cache/redis/redis-cache.ts'))}
      const cache = redisCache(new Redis(${JSON.stringify(await urlOf())}, { lazyConnect: true }), { onStateChange() {}, timeoutMs: 1000 })
      const channel = cache.channel()
      const keepAlive = setInterval(() => {}, 1_000)
      const stop = await channel.listen(['here'], () => {})
      clearInterval(keepAlive)
      await cache.close()
      console.log(stop !== undefined)
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
    expect({ code, said }).toEqual({ code: 0, said: `${isOpen}\n` })
    expect(performance.now() - closedAt).toBeLessThan(3_000)
  })
})

function connect(url: string, options: ClientOptions = {}): Redis {
  const client = new Redis(url, options)
  client.on('error', () => {})
  atEnd(async () => client.disconnect())
  return client
}

type ClientOptions = Omit<RedisOptions, 'replyMapping'>

function open(url: string, client: ClientOptions = {}, options: RedisCacheOptions = {}): { cache: Cache; channel: Channel } {
  const cache = redisCache(connect(url, { lazyConnect: true, ...client }), { onStateChange() {}, ...options })
  atEnd(() => cache.close())
  return { cache, channel: (cache as Required<Cache>).channel() }
}

/** A cache that is connected to Redis, and whose connection for listening goes another way. */
async function openByAnotherWay(url: string, states: string[], options: ClientOptions = {}): Promise<{ cache: Cache; channel: Channel }> {
  const client = connect(redis.url, { lazyConnect: true, ...options })
  const cache = redisCache(client, { timeoutMs: 500, onStateChange: (state) => states.push(state) })
  atEnd(() => cache.close())
  await until(async () => (await cache.get('none')) !== undefined)
  client.options.port = Number(new URL(url).port)
  return { cache, channel: (cache as Required<Cache>).channel() }
}

interface HearingEar {
  readonly heard: readonly string[]
}

async function listen(channel: Channel, address = HERE): Promise<HearingEar & { stop(): void }> {
  const heard: string[] = []
  const stop = await channel.listen([address], (text) => heard.push(text))
  if (stop === undefined) throw new Error('The channel does not open.')
  return { heard, stop }
}

let sent = 0

/** Sends until it is heard: right after a loss, a message may be lost too. */
async function arrives(channel: Channel, { heard }: HearingEar): Promise<void> {
  const text = `text ${sent++}`
  await until(async () => {
    if (!heard.includes(text)) await channel.send(HERE, text)
    return heard.includes(text)
  })
}

async function listeningConnections(): Promise<number> {
  return ((await admin.client('LIST', 'TYPE', 'PUBSUB')) as string).trim().split('\n').filter(Boolean).length
}

/** How many connections a server has seen in its life. */
async function connectionsSeen(client: Redis): Promise<number> {
  return Number(/total_connections_received:(\d+)/.exec(await client.info('stats'))?.[1])
}

/** A way to a server, on which each piece of what it says may become another. */
interface Relay {
  readonly url: string
  isOpen: boolean
  met: number
  connections(): number
  ended(): number
}

async function relay(url: string, change: (bytes: Buffer) => Buffer | undefined): Promise<Relay> {
  const { hostname, port } = new URL(url)
  const sockets = new Set<Socket>()
  let [connections, ended] = [0, 0]
  const server = createServer((socket) => {
    connections++
    sockets.add(socket)
    const onward = dial(Number(port), hostname)
    onward.on('error', () => socket.destroy()).on('close', () => socket.destroy())
    onward.on('data', (bytes) => {
      const changed = change(bytes)
      if (changed !== undefined) socket.write(changed)
    })
    socket.on('error', () => {}).pipe(onward)
    socket.on('close', () => {
      ended++
      sockets.delete(socket)
      onward.destroy()
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  atEnd(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const at = `redis://127.0.0.1:${(server.address() as AddressInfo).port}`
  return { url: at, isOpen: false, met: 0, connections: () => connections, ended: () => ended }
}

/** Asks until it is so; gives up after 20 seconds. */
async function until(isSo: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 20_000
  while (!(await isSo())) {
    if (performance.now() > end) throw new Error('It did not come true within 20 seconds.')
    await new Promise((next) => setTimeout(next, 2))
  }
}
