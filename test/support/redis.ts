import { spawnSync } from 'node:child_process'
import { Redis } from 'ioredis'
import { atEnd } from './cleanup.js'
import { type FaultProxy, faultProxy } from './proxy.js'
import { type RedisServer, redisBinary, redisServer } from './redis-server.js'

export interface TestRedis {
  readonly url: string
  /** Kills the server (SIGKILL), or cuts the way to it. */
  stop(): Promise<void>
  /** Starts it again on the same port, empty. */
  start(): Promise<void>
  /** Forgets every entry. */
  flush(): Promise<void>
  /** Every key and value as text. */
  dump(): Promise<string>
}

/**
 * A Redis that a test may kill: a server of its own where there is one on PATH, or else a proxy before the one at REDIS_URL, on
 * which it touches this package's entries only.
 */
export async function startRedis(): Promise<TestRedis> {
  const isOwn = redisBinary() !== undefined
  const { url, start, stop } = isOwn ? await ownGate() : await wayTo(process.env.REDIS_URL)

  return {
    url,
    stop,
    start,
    flush: () =>
      withClient(url, async (client) => {
        const keys = await client.keys('express-api-keys:*')
        if (keys.length > 0) await client.del(...keys)
      }),
    dump: () =>
      withClient(url, async (client) => {
        const lines: string[] = []
        for (const key of await client.keys('*')) {
          const type = await client.type(key)
          if (type === 'string') lines.push(`${key} ${(await client.getBuffer(key))?.toString('latin1')}`)
          // An entry may end between the list and the look.
          else if (isOwn && type !== 'none') throw new Error(`An entry of type ${type} under ${key} was not expected.`)
        }
        return lines.join('\n')
      }),
  }
}

/** A server that a test may turn into something else, until the end of the test. */
export async function ownRedis(how: Parameters<typeof redisServer>[0] = {}): Promise<RedisServer> {
  const server = await redisServer(how)
  atEnd(server.close)
  return server
}

/** For tests that need servers of their own, which a REDIS_URL cannot give. */
export function ifServer(): typeof test.skip {
  return spawnSync('redis-server', ['--version']).status === 0 ? test : test.skip
}

interface Gate {
  readonly url: string
  start(): Promise<void>
  stop(): Promise<void>
}

async function ownGate(): Promise<Gate> {
  const { url, start, kill } = await ownRedis()
  return { url, start, stop: kill }
}

async function wayTo(url: string | undefined): Promise<Gate> {
  if (url === undefined) throw new Error('No redis-server on PATH and no REDIS_URL: run the tests with npm test.')
  const target = new URL(url)
  target.port ||= '6379'
  let proxy: FaultProxy | undefined = await faultProxy(target)
  const { port } = proxy
  const stop = async (): Promise<void> => {
    await proxy?.close()
    proxy = undefined
  }
  atEnd(stop)
  return {
    url: `redis://127.0.0.1:${port}`,
    async start() {
      proxy = await faultProxy(target, port)
    },
    stop,
  }
}

async function withClient<T>(url: string, work: (client: Redis) => Promise<T>): Promise<T> {
  const client = new Redis(url, { lazyConnect: true })
  await client.connect()
  try {
    return await work(client)
  } finally {
    client.disconnect()
  }
}
