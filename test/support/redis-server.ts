import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Child, child } from './child.js'
import { freePort } from './port.js'

/** A Redis server that can be treated badly: `kill` it and `start` it again, on the same port and in the same folder. */
export interface RedisServer extends Child {
  readonly port: number
  readonly url: string
  /** Kills it and removes its folder. */
  close(): Promise<void>
}

/** Which of the two names a Redis server has here; undefined where there is none. */
export function redisBinary(): string | undefined {
  return ['redis-server', 'valkey-server'].find((name) => spawnSync(name, ['--version']).status === 0)
}

/**
 * Starts a Redis server on a free port. It writes nothing to disk unless told to, and then to a folder of its own.
 *
 * @param args more arguments, asked for at each start.
 * @param config the lines of a configuration file, where it needs one.
 */
export async function redisServer({
  args = () => [],
  config,
}: {
  args?: () => readonly string[]
  config?: readonly string[]
} = {}): Promise<RedisServer> {
  const binary = redisBinary()
  if (binary === undefined) throw new Error('There is no redis-server on PATH: node scripts/ensure-redis.mjs installs one.')
  const port = await freePort()
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-redis-'))
  const file = join(folder, 'redis.conf')
  if (config !== undefined) writeFileSync(file, config.join('\n'))
  const usual = ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--save', '', '--appendonly', 'no']
  const server = child(() => ({
    command: binary,
    args: [...(config === undefined ? [] : [file]), ...usual, ...args()],
    // A Sentinel is ready when it says its name.
    ready: /ready to accept connections|sentinel id is/i,
  }))
  await server.start()
  return {
    ...server,
    port,
    url: `redis://127.0.0.1:${port}`,
    async close() {
      await server.kill()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}
