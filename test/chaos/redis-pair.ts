import { setTimeout as pause } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { faultProxy } from '../support/proxy.js'
import { type RedisServer, redisServer } from '../support/redis-server.js'

/** A Redis with a replica, both of which can be treated badly. */
export interface RedisPair {
  /** Where the primary is. */
  port(): number
  /** Sends a command to the primary. */
  command(name: string, ...args: string[]): Promise<unknown>
  /** Remembers all entries; resolves with how to write them over whatever is there then. */
  remember(): Promise<() => Promise<void>>
  /** Has the primary write a snapshot. */
  save(): Promise<void>
  /** Suspends the primary, like a machine that hangs. */
  freeze(): void
  thaw(): void
  /** Kills the primary and starts it again from the last snapshot that was saved. */
  restart(downMs: number): Promise<void>
  /** Cuts the replica off from the primary. */
  lag(): void
  /** Makes the lagging replica the primary, kills the old one and gives the new one an empty replica. Resolves with the new port. */
  promote(): Promise<number>
  close(): Promise<void>
}

/** Starts both on free ports of this machine. */
export async function redisPair(): Promise<RedisPair> {
  let primary = await node()
  const replication = await faultProxy(primary.port)
  let replica = await node(replication.port)

  return {
    port: () => primary.port,
    command: (name, ...args) => send(primary.port, name, ...args),
    async remember() {
      const entries = await withClient(primary.port, async (client) => {
        const names = await client.keys('*')
        return Promise.all(names.map(async (name) => [name, await client.dumpBuffer(name), await client.pttl(name)] as const))
      })
      return () =>
        withClient(primary.port, async (client) => {
          const there = entries.filter(([, dump, ttl]) => dump !== null && ttl !== -2)
          await Promise.all(there.map(([name, dump, ttl]) => client.restore(name, Math.max(0, ttl), dump as Buffer, 'REPLACE')))
        })
    },
    async save() {
      for (let saved = false; !saved; ) {
        // For a new replica it writes one already, and it refuses two at once.
        saved = await send(primary.port, 'SAVE').then(
          () => true,
          (error: Error) => {
            if (!error.message.includes('already in progress')) throw error
            return pause(20, false)
          },
        )
      }
    },
    freeze: () => primary.signal('SIGSTOP'),
    thaw: () => primary.signal('SIGCONT'),
    async restart(downMs) {
      await primary.kill()
      await pause(downMs)
      await primary.start()
    },
    lag: () => replication.trouble('down', { kind: 'black-hole' }),
    async promote() {
      const old = primary
      await replica.promote()
      primary = replica
      replication.redirect(primary.port)
      replication.heal()
      await old.close()
      replica = await node(replication.port)
      return primary.port
    },
    async close() {
      await Promise.all([primary.close(), replica.close()])
      await replication.close()
    },
  }
}

interface Node extends RedisServer {
  promote(): Promise<void>
}

async function node(replicaOf?: number): Promise<Node> {
  let primary = replicaOf
  const server = await redisServer({
    args: () => ['--repl-diskless-sync-delay', '0', ...(primary === undefined ? [] : ['--replicaof', `127.0.0.1 ${primary}`])],
  })
  return {
    ...server,
    async promote() {
      primary = undefined
      await send(server.port, 'REPLICAOF', 'NO', 'ONE')
    },
  }
}

async function send(port: number, name: string, ...args: string[]): Promise<unknown> {
  return withClient(port, (client) => client.call(name, ...args))
}

async function withClient<T>(port: number, work: (client: Redis) => Promise<T>): Promise<T> {
  const client = new Redis(port, '127.0.0.1', { lazyConnect: true, commandTimeout: 2_000 })
  client.on('error', () => {})
  try {
    await client.connect()
    return await work(client)
  } finally {
    client.disconnect()
  }
}
