import { createHash } from 'node:crypto'
import type { Cluster, Redis } from 'ioredis'
import { RedisStore } from 'rate-limit-redis'
import { ApiKeyError } from '../errors.js'
import type { Cache, Counters } from './cache.js'

export interface RedisCacheOptions {
  /** How long one command may take before it reads as "no answer", in milliseconds: 10 to 5,000. Default 150. */
  timeoutMs?: number
  /**
   * Hears when Redis stops answering (`down`, with the cause where one is known) and when it answers again (`up`). Requests go on all the
   * while. What it throws is lost.
   */
  onStateChange?: (state: 'up' | 'down', cause?: unknown) => void
}

const PREFIX = 'express-api-keys:v1:'
const COUNTER_PREFIX = 'express-api-keys:count:'
/** Our entries are some 1,000 characters; with 8 KiB of metadata some 12,000, with the longest list of scopes besides some 30,000. */
const MAX_ENTRY_LENGTH = 32_768

/** After this many failures in a row Redis is left alone: fewer, and one lost connection would do it; more, and requests wait in vain. */
const FAILURES = 5
/** One command then tries again after this long, which doubles each time it fails, up to the longest. */
const FIRST_PAUSE_MS = 1_000
const LONGEST_PAUSE_MS = 10_000

/** The longest wait between two attempts to connect. A Redis that comes back is in use again about this soon. */
const LONGEST_RETRY_MS = 1_000

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
interface Scripts {
  apiKeysGet(key: string): Promise<unknown>
  apiKeysFill(key: string, value: string, expiresAtMs: number): Promise<unknown>
  apiKeysForget(key: string): Promise<unknown>
}
type Connection = (Redis | Cluster) & Scripts

/**
 * Shares verdicts between instances through Redis (6.0 or later), over an ioredis `Redis` or `Cluster`, with Sentinel or without. It works on
 * a duplicate of the client, with settings that make a Redis in trouble cost little: no offline queue, no resending, every command raced
 * against a timer, and a pause after repeated failures. The client itself is left as it is and stays the application's.
 * Connects at the first use; until it is connected there is no answer.
 *
 * @throws ApiKeyError `invalid_option` when the client is no ioredis client or an option is unknown or out of range.
 */
export function redisCache(client: Redis | Cluster, options: RedisCacheOptions = {}): Cache {
  const { timeoutMs, onStateChange } = checkedOptions(client, options)
  const breaker = createBreaker()
  const scripts = new Map<string, string>()
  let connection: Connection | undefined
  let closed = false
  let state: 'up' | 'down' = 'up'

  return {
    get(digest) {
      return run((redis) => redis.apiKeysGet(PREFIX + digest), readEntry)
    },
    async fill(digest, value, expiresAtMs) {
      if (!Number.isFinite(expiresAtMs) || value.length > MAX_ENTRY_LENGTH) return
      await run((redis) => redis.apiKeysFill(PREFIX + digest, value, Math.floor(expiresAtMs)), readCount)
    },
    async bury(digest, value, ttlMs) {
      if (!(ttlMs > 0 && ttlMs <= Number.MAX_SAFE_INTEGER)) return false
      return (await run((redis) => redis.set(PREFIX + digest, value, 'PX', Math.ceil(ttlMs)), readOk)) === true
    },
    async forget(digest) {
      await run((redis) => redis.apiKeysForget(PREFIX + digest), readCount)
    },
    counters(windowMs): Counters {
      const store = new RedisStore({ prefix: COUNTER_PREFIX, sendCommand: send })
      const ready = store.init({ windowMs } as Parameters<RedisStore['init']>[0])
      return {
        async increment(name) {
          await ready
          const { totalHits, resetTime } = await store.increment(name)
          if (resetTime === undefined) throw new Error('The counter has no end.')
          return { hits: totalHits, endsAt: resetTime }
        },
        decrement: (name) => store.decrement(name),
      }
    },
    async close() {
      closed = true
      if (connection === undefined) return
      const nodes = isCluster(connection) ? connection.nodes() : [connection]
      connection.disconnect()
      // disconnect() alone waits for the server to say goodbye, which a dead one never does.
      for (const { stream } of nodes) stream?.destroy()
      connection = undefined
      await new Promise((resolve) => setImmediate(resolve))
    },
  }

  /**
   * What `read` makes of the reply, or undefined when there is none in time or one that makes no sense. Never rejects. A reply that comes
   * later is lost; its command may still be carried out, so each command is one that may come late.
   */
  async function run<T>(command: (redis: Connection) => Promise<unknown>, read: (reply: unknown) => T | undefined): Promise<T | undefined> {
    const redis = connected()
    if (redis === undefined) return undefined
    const pass = breaker.enter()
    if (pass === undefined) return undefined
    try {
      const answer = read(await inTime(command(redis), timeoutMs))
      if (answer === undefined) throw new Error('Redis gave a reply that makes no sense.')
      breaker.succeeded()
      tell('up')
      return answer
    } catch (cause) {
      if (!breaker.failed(pass)) return undefined
      tell('down', cause)
      // A connection that went silent may stay so for a quarter of an hour, until TCP gives up: a new one knows better.
      if (cause instanceof NoAnswer && !closed) {
        breaker.droppedConnection()
        redis.disconnect(true)
      }
      return undefined
    }
  }

  /**
   * Runs a command of the counters' library. It loads its scripts once and then names them by their hash, which fails for ever when Redis
   * is away at that moment, and on every other node of a cluster: so a script is only kept, and sent whole each time.
   */
  async function send(...[name = '', ...rest]: string[]): Promise<number | string | (number | string)[]> {
    if (name === 'SCRIPT') {
      const script = rest[1] ?? ''
      const hash = createHash('sha1').update(script).digest('hex')
      scripts.set(hash, script)
      return hash
    }
    const reply = await run(
      (redis) => {
        if (name !== 'EVALSHA') return redis.call(name, rest)
        const [hash = '', keys = '', ...args] = rest
        return redis.eval(scripts.get(hash) ?? '', Number(keys), ...args)
      },
      (answer) => (answer === null || answer === undefined ? undefined : (answer as number | string | (number | string)[])),
    )
    if (reply === undefined) throw new Error('Redis gave no answer.')
    return reply
  }

  /** The connection, if it can be written to now. What is not costs nothing; ioredis goes on trying to connect by itself. */
  function connected(): Connection | undefined {
    if (closed) return undefined
    try {
      connection ??= open()
    } catch (cause) {
      tell('down', cause)
      return undefined
    }
    // Only a connector that refuses to try (one of the application's own, say) ends here without close().
    if (connection.status === 'end' && breaker.mayRevive()) connection.connect().catch(() => {})
    return connection.status === 'ready' ? connection : undefined
  }

  function open(): Connection {
    let lastError: unknown
    const opened = duplicate(client, timeoutMs)
    // Without this listener ioredis would print the error, or throw it.
    opened.on('error', (error: unknown) => {
      lastError = error
    })
    opened.on('close', () => {
      if (!breaker.closedConnection()) tell('down', lastError)
    })
    opened.on('ready', () => {
      lastError = undefined
      breaker.readyConnection()
    })
    return opened
  }

  function tell(now: 'up' | 'down', cause?: unknown): void {
    if (closed || now === state) return
    state = now
    try {
      onStateChange?.(now, cause)
    } catch {
      // A listener's own trouble must not become an answer.
    }
  }
}

function checkedOptions(client: unknown, options: RedisCacheOptions): RedisCacheOptions & { timeoutMs: number } {
  const { duplicate, defineCommand } = (client ?? {}) as Partial<Redis>
  if (typeof duplicate !== 'function' || typeof defineCommand !== 'function') {
    throw new ApiKeyError('invalid_option', 'redisCache takes an ioredis client: redisCache(new Redis(url)).')
  }
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
  return { ...options, timeoutMs }
}

/** A client with the application's settings and our rules on top. The rules name nothing that rules out Sentinel or Cluster. */
function duplicate(client: Redis | Cluster, timeoutMs: number): Connection {
  let reconnectAt = 0
  const connectionRules = {
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    // Later than our own timer. It sets free what waits behind a command that ioredis forgot: an automatic pipeline holds up the next one.
    commandTimeout: timeoutMs + 100,
    disconnectTimeout: timeoutMs,
    // A master that became a replica refuses writes: connect anew, to where the name points now. (Redis 6 says so in mid-sentence, from a
    // script.) Not more than once a second: the name may go on pointing at a replica, which can still be read.
    reconnectOnError: (error: Error) => {
      if (!error.message.includes('READONLY') || performance.now() < reconnectAt) return false
      reconnectAt = performance.now() + 1_000
      return true
    },
  }
  const clientRules = { enableOfflineQueue: false, enableAutoPipelining: true, lazyConnect: false }
  const opened = isCluster(client)
    ? client.duplicate([], {
        ...clientRules,
        scaleReads: 'master',
        // A command that meets a lost node is sent again after 100 ms; more than this nobody waits for.
        maxRedirections: 3,
        clusterRetryStrategy: retryDelayMs,
        // As an object: the spread of an optional type loses which members may be undefined.
        redisOptions: { ...client.options.redisOptions, ...connectionRules } as object,
      })
    : client.duplicate({
        ...clientRules,
        ...connectionRules,
        role: 'master',
        retryStrategy: retryDelayMs,
        sentinelRetryStrategy: retryDelayMs,
      })
  opened.defineCommand('apiKeysGet', { numberOfKeys: 1, lua: GET })
  opened.defineCommand('apiKeysFill', { numberOfKeys: 1, lua: FILL })
  opened.defineCommand('apiKeysForget', { numberOfKeys: 1, lua: FORGET })
  return opened as Connection
}

/** Goes on for ever; the jitter keeps a fleet from coming back at one instant. */
function retryDelayMs(times: number): number {
  return Math.min(25 * 2 ** Math.min(times, 10), LONGEST_RETRY_MS) * (0.5 + Math.random() / 2)
}

function isCluster(client: Redis | Cluster): client is Cluster {
  return 'nodes' in client && typeof client.nodes === 'function'
}

type Pass = 'through' | 'probe'

interface Breaker {
  /** Undefined while Redis is left alone. */
  enter(): Pass | undefined
  succeeded(): void
  /** Whether Redis is left alone from now on because of it. */
  failed(pass: Pass): boolean
  /** We are about to cut the connection. */
  droppedConnection(): void
  /** Whether it was us who cut it. */
  closedConnection(): boolean
  readyConnection(): void
  /** True once a second. */
  mayRevive(): boolean
}

/** Closed, it lets everything through; open, nothing for a pause, then one command to see. */
function createBreaker(): Breaker {
  let failures = 0
  let pauseMs = 0
  let resumeAt = 0
  let probing = false
  let dropping = false
  let lost = false
  let reviveAt = 0

  return {
    enter() {
      if (pauseMs === 0) return 'through'
      if (probing || performance.now() < resumeAt) return undefined
      probing = true
      return 'probe'
    },
    succeeded() {
      failures = 0
      pauseMs = 0
      probing = false
    },
    failed(pass) {
      if (pass === 'probe') probing = false
      // Sent before the pause began, and no news.
      else if (pauseMs > 0) return false
      if (pauseMs === 0 && ++failures < FAILURES) return false
      failures = 0
      pauseMs = Math.min(pauseMs === 0 ? FIRST_PAUSE_MS : pauseMs * 2, LONGEST_PAUSE_MS)
      resumeAt = performance.now() + pauseMs
      return true
    },
    droppedConnection() {
      dropping = true
    },
    closedConnection() {
      const ours = dropping
      dropping = false
      if (!ours) lost = true
      return ours
    },
    readyConnection() {
      dropping = false
      // It was away and is back, so ask at once. A server that we left because it accepts and is silent has its pause.
      if (lost) resumeAt = 0
      lost = false
    },
    mayRevive() {
      if (performance.now() < reviveAt) return false
      reviveAt = performance.now() + 1_000
      return true
    },
  }
}

class NoAnswer extends Error {}

/** Our own timer: ioredis can leave a promise pending for ever. */
function inTime<T>(work: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new NoAnswer(`Redis gave no answer within ${ms} ms.`)), ms)
    timer.unref()
    work.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}

/** Takes nothing on trust, like its neighbours: a reply of another shape is no answer. */
function readEntry(reply: unknown): { value: string | null; timeMs: number } | undefined {
  if (!Array.isArray(reply) || reply.length !== 2) return undefined
  const [value, time] = reply as unknown[]
  if (value !== null && (typeof value !== 'string' || value.length > MAX_ENTRY_LENGTH)) return undefined
  if (!Array.isArray(time) || time.length !== 2) return undefined
  const [seconds, micros] = time as unknown[]
  if (typeof seconds !== 'string' || typeof micros !== 'string') return undefined
  if (!/^\d{1,12}$/.test(seconds) || !/^\d{1,6}$/.test(micros)) return undefined
  return { value, timeMs: Number(seconds) * 1_000 + Math.floor(Number(micros) / 1_000) }
}

/** An integer; a string where the application's client has `stringNumbers`. */
function readCount(reply: unknown): number | undefined {
  return reply === 0 || reply === '0' ? 0 : reply === 1 || reply === '1' ? 1 : undefined
}

function readOk(reply: unknown): true | undefined {
  return reply === 'OK' ? true : undefined
}
