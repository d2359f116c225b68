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
  /** Has the primary write a snapshot. */
  save(): Promise<void>
  /** Stops the primary in its tracks, as a machine that hangs. */
  freeze(): void
  thaw(): void
  /** Kills the primary and starts it again from the last snapshot that was saved. */
  restart(downMs: number): Promise<void>
  /** The replica hears no more of the primary. */
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
    async save() {
      for (let saved = false; !saved; ) {
        // A replica that is new has it write one already, and two at once it refuses.
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
  const client = new Redis(port, '127.0.0.1', { lazyConnect: true, commandTimeout: 2_000 })
  client.on('error', () => {})
  try {
    await client.connect()
    return await client.call(name, ...args)
  } finally {
    client.disconnect()
  }
}
