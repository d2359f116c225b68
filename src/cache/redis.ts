import type { Cluster, Redis, RedisOptions } from 'ioredis'
import { ApiKeyError } from '../errors.js'
import type { Cache } from './cache.js'

export interface RedisCacheOptions {
  /** How long one command may take before it reads as "no answer", in milliseconds: 10 to 5,000. Default 150. */
  timeoutMs?: number
}

const PREFIX = 'express-api-keys:v1:'
/** Our entries are some 1,000 characters, with metadata at its largest some 12,000. */
const MAX_ENTRY_LENGTH = 32_768

/** After this many failures in a row Redis is left alone, for a time that doubles up to the longest. */
const FAILURES = 5
const FIRST_PAUSE_MS = 500
const LONGEST_PAUSE_MS = 10_000

/** Guarantees that the entry and the time are of one node and one moment. */
const GET = `return { redis.call('GET', KEYS[1]), redis.call('TIME') }`

/**
 * Guarantees that a tombstone stays and that a write that lands late stores nothing: ARGV[2] is an instant on this server's clock. The rest
 * of a life is counted here, at the moment of writing, since SET knows PXAT only from 6.2 on.
 */
const FILL = `
local there = redis.call('GET', KEYS[1])
if there and string.sub(there, 1, 1) == 'r' then return 0 end
local time = redis.call('TIME')
local left = tonumber(ARGV[2]) - (time[1] * 1000 + math.ceil(time[2] / 1000))
if left <= 0 then return 0 end
if there and redis.call('PTTL', KEYS[1]) >= left then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', left)
return 1`

/** Guarantees that a tombstone is not dug up. */
const FORGET = `
local there = redis.call('GET', KEYS[1])
if there and string.sub(there, 1, 1) ~= 'r' then return redis.call('DEL', KEYS[1]) end
return 0`

/** The commands that the scripts become on a client. */
interface Scripted {
  apiKeysGet(key: string): Promise<unknown>
  apiKeysFill(key: string, value: string, expiresAtMs: string): Promise<unknown>
  apiKeysForget(key: string): Promise<unknown>
  set(key: string, value: string, px: 'PX', ttlMs: number): Promise<unknown>
  readonly status: string
  disconnect(): void
}

/**
 * Shares verdicts between instances through Redis (6.0 or later), over an ioredis `Redis` or `Cluster`. It works on a duplicate of the client, with
 * settings that make a Redis in trouble cost little: no offline queue, no resending, every command raced against a timer.
 * The client itself is left as it is and stays the application's. Connects at the first use.
 *
 * @throws ApiKeyError `invalid_option` when the client is no ioredis client or an option is unknown or out of range.
 */
export function redisCache(client: Redis | Cluster, options: RedisCacheOptions = {}): Cache {
  if (typeof client?.duplicate !== 'function' || typeof client.defineCommand !== 'function') {
    throw new ApiKeyError('invalid_option', 'redisCache takes an ioredis client: redisCache(new Redis(url)).')
  }
  for (const name of Object.keys(options)) {
    if (name !== 'timeoutMs') throw new ApiKeyError('invalid_option', `redisCache has no option "${name}". It takes timeoutMs.`)
  }
  const { timeoutMs = 150 } = options
  if (!Number.isInteger(timeoutMs) || timeoutMs < 10 || timeoutMs > 5_000) {
    throw new ApiKeyError('invalid_option', `timeoutMs must be a whole number from 10 to 5000, not ${String(timeoutMs)}.`)
  }
  let connection: Scripted | undefined
  let closed = false
  let failures = 0
  let resumeAt = 0

  return {
    async get(digest) {
      return readEntry(await run((redis) => redis.apiKeysGet(PREFIX + digest)))
    },
    async fill(digest, value, expiresAtMs) {
      await run((redis) => redis.apiKeysFill(PREFIX + digest, value, String(Math.floor(expiresAtMs))))
    },
    async bury(digest, value, ttlMs) {
      return (await run((redis) => redis.set(PREFIX + digest, value, 'PX', Math.ceil(ttlMs)))) === 'OK'
    },
    async forget(digest) {
      await run((redis) => redis.apiKeysForget(PREFIX + digest))
    },
    async close() {
      closed = true
      connection?.disconnect()
      connection = undefined
    },
  }

  /** The reply, or undefined when there is none in time. Never rejects: ioredis can leave a promise pending for ever, so the timer is our own. */
  async function run(command: (redis: Scripted) => Promise<unknown>): Promise<unknown> {
    if (closed) return undefined
    connection ??= connect(client, timeoutMs)
    // Not connected costs nothing and is no failure of a command; the client reconnects by itself.
    if (connection.status !== 'ready' || performance.now() < resumeAt) return undefined
    // One command at a time finds out whether it is over.
    if (failures >= FAILURES) resumeAt = performance.now() + timeoutMs
    try {
      const reply = await inTime(command(connection), timeoutMs)
      failures = 0
      resumeAt = 0
      return reply
    } catch {
      failures++
      if (failures >= FAILURES)
        resumeAt = performance.now() + Math.min(FIRST_PAUSE_MS * 2 ** Math.min(failures - FAILURES, 10), LONGEST_PAUSE_MS)
      return undefined
    }
  }
}

function connect(client: Redis | Cluster, timeoutMs: number): Scripted {
  const rules = {
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    commandTimeout: timeoutMs,
    enableAutoPipelining: true,
    lazyConnect: false,
    // A master that became a replica refuses writes: connect anew, to where the name points now.
    reconnectOnError: (error: Error) => error.message.startsWith('READONLY'),
  } satisfies RedisOptions
  const again = (times: number): number => Math.min(times * 50, 1_000) * (0.5 + Math.random() / 2)
  const duplicate = isCluster(client)
    ? client.duplicate([], {
        enableOfflineQueue: false,
        enableAutoPipelining: true,
        lazyConnect: false,
        clusterRetryStrategy: again,
        // The spread of an optional type loses which members may be undefined.
        redisOptions: { ...client.options.redisOptions, ...rules } as object,
      })
    : client.duplicate({ ...rules, retryStrategy: again })
  // Trouble shows as "no answer"; without a listener ioredis would print it.
  duplicate.on('error', () => {})
  duplicate.defineCommand('apiKeysGet', { numberOfKeys: 1, lua: GET })
  duplicate.defineCommand('apiKeysFill', { numberOfKeys: 1, lua: FILL })
  duplicate.defineCommand('apiKeysForget', { numberOfKeys: 1, lua: FORGET })
  return duplicate as unknown as Scripted
}

function isCluster(client: Redis | Cluster): client is Cluster {
  return 'nodes' in client && typeof client.nodes === 'function'
}

function inTime<T>(work: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('no answer in time')), ms)
    timer.unref()
    work.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}

/** Takes nothing on trust: a reply of another shape is no answer. */
function readEntry(reply: unknown): { value: string | null; timeMs: number } | undefined {
  if (!Array.isArray(reply) || reply.length !== 2 || !Array.isArray(reply[1])) return undefined
  const [value, [seconds, micros]] = reply as [unknown, unknown[]]
  if (value !== null && (typeof value !== 'string' || value.length > MAX_ENTRY_LENGTH)) return undefined
  const timeMs = Math.floor(Number(seconds) * 1_000 + Number(micros) / 1_000)
  return Number.isSafeInteger(timeMs) ? { value, timeMs } : undefined
}
