import type { Cluster, Redis } from 'ioredis'
import { inTime } from '../../in-time.js'
import type { CacheServerFacts } from '../tools.js'

/** Asks the servers behind the application's own client. Rejects with what is known of the cause where they do not answer in `ms`. */
export async function inspectRedis(client: Redis | Cluster, ms: number): Promise<readonly CacheServerFacts[]> {
  let cause: unknown
  const note = (error: unknown): void => {
    cause = error
  }
  client.on('error', note)
  try {
    return await inTime(ms, asked(client), () => new Error('It took too long.'))
  } catch (error) {
    // Of a lost connection a command says less than the client does.
    throw new Error('Redis does not answer.', { cause: cause ?? error })
  } finally {
    client.removeListener('error', note)
  }
}

async function asked(client: Redis | Cluster): Promise<readonly CacheServerFacts[]> {
  await client.ping()
  const servers = 'nodes' in client ? client.nodes('master') : [client]
  return Promise.all(servers.map(factsOf))
}

/** From INFO, which managed servers allow where they refuse CONFIG. */
async function factsOf(server: Redis): Promise<CacheServerFacts> {
  const text = await server.info()
  const field = (name: string): string | undefined => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(text)?.[1]
  const maxMemory = field('maxmemory')
  return {
    version: field('redis_version'),
    eviction: field('maxmemory_policy'),
    maxMemory: maxMemory === undefined ? undefined : Number(maxMemory),
  }
}
