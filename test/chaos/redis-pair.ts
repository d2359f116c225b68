import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { freePort } from '../support/port.js'
import { type Child, child } from './children.js'
import { type FaultProxy, faultProxy } from './proxy.js'

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
  const binary = redisBinary()
  if (binary === undefined) throw new Error('A chaos run needs redis-server or valkey-server on PATH.')
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-chaos-'))
  let primary = await node(binary, folder)
  const replication: FaultProxy = await faultProxy(primary.port)
  let replica = await node(binary, folder, replication.port)

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
      await old.kill()
      replica = await node(binary, folder, replication.port)
      return primary.port
    },
    async close() {
      await Promise.all([primary.kill(), replica.kill()])
      await replication.close()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Which of the two names a Redis server has here; undefined where there is none. */
export function redisBinary(): string | undefined {
  return ['redis-server', 'valkey-server'].find((name) => spawnSync(name, ['--version']).status === 0)
}

interface Node extends Child {
  readonly port: number
  promote(): Promise<void>
}

let nodes = 0

async function node(binary: string, folder: string, replicaOf?: number): Promise<Node> {
  const port = await freePort()
  const own = join(folder, String(nodes++))
  mkdirSync(own)
  const settings = [
    '--port',
    String(port),
    '--bind',
    '127.0.0.1',
    '--dir',
    own,
    '--save',
    '',
    '--appendonly',
    'no',
    '--repl-diskless-sync-delay',
    '0',
  ]
  let primary = replicaOf
  const server = child(() => ({
    command: binary,
    args: [...settings, ...(primary === undefined ? [] : ['--replicaof', `127.0.0.1 ${primary}`])],
    ready: /ready to accept connections/i,
  }))
  await server.start()
  return {
    ...server,
    port,
    async promote() {
      primary = undefined
      await send(port, 'REPLICAOF', 'NO', 'ONE')
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
