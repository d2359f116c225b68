import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { Redis } from 'ioredis'
import { atEnd } from './cleanup.js'
import { freePort } from './port.js'

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
  const binary = ['redis-server', 'valkey-server'].find((name) => spawnSync(name, ['--version']).status === 0)
  const port = await freePort()
  const gate = binary === undefined ? proxy(port) : server(binary, port)
  const url = `redis://127.0.0.1:${port}`
  atEnd(gate.stop)
  await gate.start()

  return {
    url,
    stop: gate.stop,
    start: gate.start,
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
          else if (binary !== undefined && type !== 'none') throw new Error(`An entry of type ${type} under ${key} was not expected.`)
        }
        return lines.join('\n')
      }),
  }
}

/** For tests that need servers of their own, which a REDIS_URL cannot give. */
export function ifServer(): typeof test.skip {
  return spawnSync('redis-server', ['--version']).status === 0 ? test : test.skip
}

interface Gate {
  start(): Promise<void>
  stop(): Promise<void>
}

function server(binary: string, port: number): Gate {
  let child: ChildProcess | undefined
  return {
    async start() {
      child = spawn(binary, ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'], {
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      const { stdout } = child
      let said = ''
      for await (const chunk of stdout ?? []) {
        said += String(chunk)
        if (/ready to accept connections/i.test(said)) break
      }
      if (!/ready to accept connections/i.test(said)) throw new Error(`${binary} did not start: ${said}`)
    },
    async stop() {
      if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
      const exited = once(child, 'exit')
      child.kill('SIGKILL')
      await exited
    },
  }
}

function proxy(port: number): Gate {
  const url = process.env.REDIS_URL
  if (url === undefined) throw new Error('No redis-server on PATH and no REDIS_URL: run the tests with npm test.')
  const target = new URL(url)
  const open = new Set<Socket>()
  let listening: Server | undefined
  return {
    async start() {
      listening = createServer((socket) => {
        const onward = connect(Number(target.port || 6379), target.hostname)
        for (const end of [socket, onward]) {
          open.add(end)
          end.on('error', () => end.destroy()).on('close', () => open.delete(end))
        }
        socket.pipe(onward).pipe(socket)
      })
      listening.listen(port, '127.0.0.1')
      await once(listening, 'listening')
    },
    async stop() {
      if (listening === undefined) return
      const closed = once(listening, 'close')
      listening.close()
      for (const socket of open) socket.destroy()
      listening = undefined
      await closed
    },
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
