import type { Cluster, Redis } from 'ioredis'
import type { Channel } from '../../channel.js'
import { ApiKeyError } from '../../errors.js'
import { setImmediate } from '../../real-time.js'
import type { Cache, Counters, Hit } from '../cache.js'
import { CACHE_TOOLS, type CacheTools } from '../tools.js'
import { redisChannel } from './channel.js'
import { type Client, clientOf } from './clients.js'
import { type Connection, createConnection, type StateListener } from './connection.js'
import { inspectRedis } from './inspect.js'
import { COUNT, FILL, FORGET, GET, MAX_ENTRY_LENGTH, readCount, readCounts, readEntries, readHit, readOk } from './scripts.js'

export interface RedisCacheOptions {
  /** How long one command may take before it reads as "no answer", in milliseconds: 10 to 5,000. Default 150. */
  timeoutMs?: number | undefined
  /**
   * Hears when Redis stops answering (`down`, with the cause where one is known) and when it answers again (`up`). Requests go on all the
   * while. What it throws or rejects with goes to stderr. Default: one line on stderr at each change.
   */
  onStateChange?: ((state: 'up' | 'down', cause?: unknown) => unknown) | undefined
}

const PREFIX = 'express-api-keys:v1:'
const COUNTER_PREFIX = 'express-api-keys:count:'

/**
 * Shares verdicts between instances through Redis (6.0 or later), over an ioredis `Redis` or `Cluster`, with Sentinel or without. It works on
 * a duplicate of the client, with settings that make a Redis in trouble cost little: no offline queue, no resending, every command raced
 * against a timer, and a pause after repeated failures. The client itself is left as it is and stays the application's.
 * Connects at the first use; until it is connected there is no answer.
 *
 * @throws ApiKeyError `invalid_option` when the client is not an ioredis client or an option is unknown or out of range.
 */
export function redisCache(client: Redis | Cluster, options: RedisCacheOptions = {}): Cache {
  const known = checkedClient(client)
  const { timeoutMs, onStateChange } = checkedOptions(options)
  const connection = createConnection(known, timeoutMs, onStateChange)
  const get = batched(known, connection, (keys: readonly string[]) =>
    connection.run(
      (link) => link.run(GET, keys),
      (reply) => readEntries(reply, keys.length),
      keys.length,
    ),
  )
  const fill = batched(known, connection, (fillings: readonly Filling[]) => {
    const keys = fillings.map(({ key }) => key)
    const rest = fillings.flatMap(({ value, expiresAtMs }) => [value, Math.floor(expiresAtMs)])
    return connection.run(
      (link) => link.run(FILL, keys, ...rest),
      (reply) => readCounts(reply, keys.length),
    )
  })

  const channels: Channel[] = []

  const cache: Cache & { readonly [CACHE_TOOLS]: CacheTools } = {
    [CACHE_TOOLS]: { inspect: (ms) => inspectRedis(client, ms) },
    timeoutMs,
    get: (digest) => get(PREFIX + digest),
    async fill(digest, value, expiresAtMs) {
      if (!Number.isFinite(expiresAtMs) || value.length > MAX_ENTRY_LENGTH) return
      await fill({ key: PREFIX + digest, value, expiresAtMs })
    },
    async bury(digest, value, ttlMs) {
      if (!(ttlMs > 0 && ttlMs <= Number.MAX_SAFE_INTEGER)) return false
      return (await connection.run((link) => link.set(PREFIX + digest, value, Math.ceil(ttlMs)), readOk)) === true
    },
    async forget(digest) {
      await connection.run((link) => link.run(FORGET, [PREFIX + digest]), readCount)
    },
    counters: (limit) => redisCounters(connection, limit),
    channel() {
      const channel = redisChannel(known, connection, timeoutMs)
      channels.push(channel)
      return channel
    },
    async close() {
      await Promise.all(channels.splice(0).map((channel) => channel.close()))
      await connection.close()
    },
  }
  return cache
}

interface Filling {
  readonly key: string
  readonly value: string
  readonly expiresAtMs: number
}

/**
 * Gathers what is asked in one turn of the event loop and sends it as one. A command for each would cost the process several times what
 * the lines of its request do, pipelined or not.
 */
function batched<Item, Answer>(
  client: Client,
  connection: Connection,
  send: (items: readonly Item[]) => Promise<readonly (Answer | undefined)[] | undefined>,
): (item: Item) => Promise<Answer | undefined> {
  let waiting: { readonly item: Item; readonly resolve: (answer: Answer | undefined) => void }[] = []
  const sendOff = (): void => {
    const batch = waiting
    waiting = []
    if (batch.length === 0) return
    void send(batch.map(({ item }) => item)).then((answers) => {
      for (const [index, { resolve }] of batch.entries()) resolve(answers?.[index])
    })
  }
  return (item) =>
    new Promise((resolve) => {
      waiting.push({ item, resolve })
      // In trouble, one is enough to find out whether it is over; the others need not wait for the answer.
      if (waiting.length >= (connection.isLeftAlone() ? 1 : client.mostKeys())) sendOff()
      else if (waiting.length === 1) setImmediate(sendOff)
    })
}

function redisCounters(connection: Connection, { max, windowMs }: { readonly max: number; readonly windowMs: number }): Counters {
  const count = (name: string, ...at: number[]): Promise<Hit | undefined> =>
    connection.run(
      (link) => link.run(COUNT, [COUNTER_PREFIX + name], max, windowMs, ...at),
      (reply) => readHit(reply, max, windowMs),
    )
  return {
    hit: (name) => count(name),
    async takeBack(name, at) {
      if (Number.isSafeInteger(at)) await count(name, at)
    },
  }
}

function checkedClient(client: unknown): Client {
  const known = clientOf(client)
  if (known === undefined) throw new ApiKeyError('invalid_option', 'redisCache takes an ioredis client: redisCache(new Redis(url)).')
  return known
}

function checkedOptions(options: RedisCacheOptions): { readonly timeoutMs: number; readonly onStateChange: StateListener | undefined } {
  if (typeof options !== 'object' || options === null) {
    throw new ApiKeyError('invalid_option', 'The options of redisCache must be an object, such as { timeoutMs: 150 }.')
  }
  for (const name of Object.keys(options)) {
    if (name === 'timeoutMs' || name === 'onStateChange') continue
    throw new ApiKeyError('invalid_option', `redisCache has no option "${name}". It takes timeoutMs and onStateChange.`)
  }
  const { timeoutMs = 150, onStateChange } = options
  if (!Number.isInteger(timeoutMs) || timeoutMs < 10 || timeoutMs > 5_000) {
    throw new ApiKeyError('invalid_option', `timeoutMs must be a whole number from 10 to 5000, not ${String(timeoutMs)}.`)
  }
  if (onStateChange !== undefined && typeof onStateChange !== 'function') {
    throw new ApiKeyError('invalid_option', 'onStateChange must be a function, such as (state, cause) => log(state, cause).')
  }
  return { timeoutMs, onStateChange }
}
