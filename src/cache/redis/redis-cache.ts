import type { Cluster, Redis } from 'ioredis'
import { ApiKeyError } from '../../errors.js'
import { clearTimeout, monotonicMs, nextTurn, setImmediate, setTimeout } from '../../real-time.js'
import type { Cache, Counters, Hit } from '../cache.js'

export interface RedisCacheOptions {
  /** How long one command may take before it reads as "no answer", in milliseconds: 10 to 5,000. Default 150. */
  timeoutMs?: number
  /**
   * Hears when Redis stops answering (`down`, with the cause where one is known) and when it answers again (`up`). Requests go on all the
   * while. What it throws or rejects with goes to stderr. Default: one line on stderr at each change.
   */
  onStateChange?: (state: 'up' | 'down', cause?: unknown) => unknown
}

const PREFIX = 'express-api-keys:v1:'
const COUNTER_PREFIX = 'express-api-keys:count:'
/** Our entries are some 1,000 characters; with 8 KiB of metadata some 12,000, with the longest list of scopes besides some 30,000. */
const MAX_ENTRY_LENGTH = 32_768

/** After this many requests in a row had no answer Redis is left alone: fewer, and one lost command would do it; more, and requests wait in vain. */
const FAILURES = 5
/** One command then tries again after this long, which doubles each time it fails, up to the longest. */
const FIRST_PAUSE_MS = 1_000
const LONGEST_PAUSE_MS = 10_000

/** The longest wait between two attempts to connect. A Redis that comes back is in use again about this soon. */
const LONGEST_RETRY_MS = 1_000

/** What a window is divided into, where more hits than this fit in. A hit counts for at most one slot longer than the window. */
const COUNTER_SLOTS = 20

/** What is asked in one turn of the event loop goes in commands of at most this many keys. */
const MOST_KEYS = 100

/**
 * Guarantees that the entries and the time are of one node and one moment. For what is no entry of ours, by its type or its length, it answers 0,
 * and does not send it. (Some clusters want to see KEYS itself in each call.)
 */
const GET = `
local entries = {}
for i = 1, #KEYS do
  local length = redis.pcall('STRLEN', KEYS[i])
  if type(length) == 'table' then
    if not string.find(length.err, 'WRONGTYPE', 1, true) then return length end
    entries[i] = 0
  elseif length == 0 then
    entries[i] = false
  elseif length > ${MAX_ENTRY_LENGTH} then
    entries[i] = 0
  else
    entries[i] = redis.call('GET', KEYS[i])
  end
end
return { entries, redis.call('TIME') }`

/**
 * Guarantees that a tombstone stays and that a write that lands late stores nothing: the second of each key's two arguments is an instant on
 * this server's clock. The rest of a life is counted here, at the moment of writing, since SET knows PXAT only from 6.2 on.
 */
const FILL = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.ceil(time[2] / 1000)
local filled = {}
for i = 1, #KEYS do
  local left = tonumber(ARGV[2 * i]) - now
  local there = redis.pcall('GET', KEYS[i])
  local foreign = type(there) == 'table'
  if foreign and not string.find(there.err, 'WRONGTYPE', 1, true) then return there end
  local kept = foreign or there and (string.sub(there, 1, 1) == 'r' or redis.call('PTTL', KEYS[i]) >= left)
  filled[i] = 0
  if left > 0 and not kept then
    redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', left)
    filled[i] = 1
  end
end
return filled`

/** Guarantees that a tombstone is not dug up. */
const FORGET = `
local there = redis.call('GET', KEYS[1])
if there and string.sub(there, 1, 1) ~= 'r' then return redis.call('DEL', KEYS[1]) end
return 0`

/**
 * Guarantees that no stretch of time as long as the window has more than the limit, and that a hit is counted or refused in one step. Where the
 * third argument is an instant, it takes back one of the hits that were counted in its slot instead, if there are any left.
 *
 * A window is a text of slots, `last:hits`, oldest first; each is dated by its last hit and slides out a window after it. Up to ${COUNTER_SLOTS} hits each
 * millisecond has a slot of its own; beyond, slots are a ${COUNTER_SLOTS}th of the window. What is dated later than now was counted before the clock was
 * set back, and counts as of now.
 * @see https://www.figma.com/blog/an-alternative-approach-to-rate-limiting/
 */
const COUNT = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local max, window, back = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function slot(at)
  return max > ${COUNTER_SLOTS} and math.floor(at * ${COUNTER_SLOTS} / window) or at
end

local slots, hits = {}, 0
for last, count in string.gmatch(redis.call('GET', KEYS[1]) or '', '(%d+):(%d+)') do
  last, count = math.min(tonumber(last), now), tonumber(count)
  if back and slot(last) == slot(back) then count = count - 1 end
  if count > 0 and last + window > now then
    slots[#slots + 1] = { last, count }
    hits = hits + count
  end
end

local counted = not back and hits + 1 <= max
if counted then
  local newest = slots[#slots]
  if newest and slot(newest[1]) == slot(now) then
    newest[1], newest[2] = now, newest[2] + 1
  else
    slots[#slots + 1] = { now, 1 }
  end
  hits = hits + 1
end

local text, left, wait = {}, hits, nil
for i = 1, #slots do
  text[i] = string.format('%.0f:%.0f', slots[i][1], slots[i][2])
  left = left - slots[i][2]
  if not wait and left < max then wait = slots[i][1] + window - now end
end
if #slots > 0 then
  redis.call('SET', KEYS[1], table.concat(text, ' '), 'PX', math.ceil(slots[#slots][1] + window - now))
else
  redis.call('DEL', KEYS[1])
end
return { counted and 1 or 0, math.min(hits, max), math.ceil(wait or window), now }`

/** The commands that the scripts become on a client. Without a cluster the number of keys goes before them. */
interface Scripts {
  apiKeysGet(...keys: (number | string)[]): Promise<unknown>
  apiKeysFill(...keysAndArguments: (number | string)[]): Promise<unknown>
  apiKeysForget(key: string): Promise<unknown>
  apiKeysCount(key: string, ...limitAndInstant: (number | string)[]): Promise<unknown>
}
interface Filling {
  readonly name: string
  readonly value: string
  readonly expiresAtMs: number
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
  const { timeoutMs, onStateChange = logState } = checkedOptions(client, options)
  const breaker = createBreaker()
  let connection: Connection | undefined
  let closed = false
  let state: 'up' | 'down' = 'up'

  // A cluster takes the keys of one slot at a time, and so does a proxy that hides one; ioredis then puts the commands together.
  let mostKeys = isCluster(client) ? 1 : MOST_KEYS
  const get = together((keys: readonly string[]) =>
    run(
      (redis) => redis.apiKeysGet(...countOf(redis, keys), ...keys).catch(apartFromNowOn),
      (reply) => readEntries(reply, keys.length),
      keys.length,
    ),
  )
  const fill = together((fillings: readonly Filling[]) => {
    const keys = fillings.map(({ name }) => name)
    const rest = fillings.flatMap(({ value, expiresAtMs }) => [value, Math.floor(expiresAtMs)])
    return run(
      (redis) => redis.apiKeysFill(...countOf(redis, keys), ...keys, ...rest).catch(apartFromNowOn),
      (reply) => readCounts(reply, keys.length),
    )
  })

  return {
    timeoutMs,
    get: (digest) => get(PREFIX + digest),
    async fill(digest, value, expiresAtMs) {
      if (!Number.isFinite(expiresAtMs) || value.length > MAX_ENTRY_LENGTH) return
      await fill({ name: PREFIX + digest, value, expiresAtMs })
    },
    async bury(digest, value, ttlMs) {
      if (!(ttlMs > 0 && ttlMs <= Number.MAX_SAFE_INTEGER)) return false
      return (await run((redis) => redis.set(PREFIX + digest, value, 'PX', Math.ceil(ttlMs)), readOk)) === true
    },
    async forget(digest) {
      await run((redis) => redis.apiKeysForget(PREFIX + digest), readCount)
    },
    counters({ max, windowMs }): Counters {
      const count = (name: string, ...at: number[]): Promise<Hit | undefined> =>
        run(
          (redis) => redis.apiKeysCount(COUNTER_PREFIX + name, max, windowMs, ...at),
          (reply) => readHit(reply, max, windowMs),
        )
      return {
        hit: (name) => count(name),
        async takeBack(name, at) {
          if (Number.isSafeInteger(at)) await count(name, at)
        },
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
      await nextTurn()
    },
  }

  /**
   * Gathers what is asked in one turn of the event loop and sends it as one. A command for each would cost the process several times what
   * the lines of its request do, pipelined or not.
   */
  function together<Item, Answer>(
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
        if (waiting.length >= (breaker.isOpen() ? 1 : mostKeys)) sendOff()
        else if (waiting.length === 1) setImmediate(sendOff)
      })
  }

  function countOf(redis: Connection, keys: readonly string[]): number[] {
    return isCluster(redis) ? [] : [keys.length]
  }

  function apartFromNowOn(error: unknown): never {
    if (error instanceof Error && /cross-?slot|same slot/i.test(error.message)) {
      mostKeys = 1
      // What no longer goes together here, the client may put together.
      if (connection !== undefined) connection.options.autoPipeliningIgnoredCommands = []
    }
    throw error
  }

  /**
   * What `read` makes of the reply, or undefined when there is none in time or one that makes no sense. Never rejects. A reply that comes
   * later is lost; its command may still be carried out, so each command is one that may come late. `asking` wait for the reply.
   */
  async function run<T>(
    command: (redis: Connection) => Promise<unknown>,
    read: (reply: unknown) => T | undefined,
    asking = 1,
  ): Promise<T | undefined> {
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
      // A refusal is an answer too, if a bad one: nobody has waited in vain.
      const refused = isRefusal(cause)
      if (!breaker.failed(pass, refused ? 1 : asking)) return undefined
      tell('down', cause)
      // A connection that went silent may stay so for a quarter of an hour, until TCP gives up: a new one knows better.
      if (cause instanceof NoAnswer && !closed) {
        breaker.droppedConnection()
        redis.disconnect(true)
      }
      return undefined
    }
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
      // A wrong password is refused on a connection that stays open: no close says so.
      if (isRefusal(error)) tell('down', error)
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
    // A listener's own trouble must not become an answer, nor end the process; it may be an async function.
    try {
      Promise.resolve(onStateChange(now, cause)).catch(complain)
    } catch (failure) {
      complain(failure)
    }
  }
}

function isRefusal(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError'
}

function complain(failure: unknown): void {
  console.error(`express-api-keys: onStateChange has failed: ${oneLine(failure)}`)
}

/** The default `onStateChange`. */
function logState(state: 'up' | 'down', cause?: unknown): void {
  const why = cause === undefined ? '' : ` (${oneLine(cause)})`
  const change = state === 'up' ? 'answers again.' : `has stopped answering${why}; requests go on without it.`
  console.error(`express-api-keys: Redis ${change}`)
}

/** The name and the message alone: an error of ioredis carries the command with its arguments, and a message may name a URL with a password. */
function oneLine(error: unknown): string {
  const { name, message } = error instanceof Error ? error : { name: typeof error, message: '' }
  return `${name} ${message}`
    .replaceAll(/\s+/g, ' ')
    .replaceAll(/\/\/[^/@\s]*@/g, '//')
    .slice(0, 300)
    .trim()
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
      if (!error.message.includes('READONLY') || monotonicMs() < reconnectAt) return false
      reconnectAt = monotonicMs() + 1_000
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
        // These gather by themselves.
        autoPipeliningIgnoredCommands: ['apiKeysGet', 'apiKeysFill'],
        role: 'master',
        retryStrategy: retryDelayMs,
        sentinelRetryStrategy: retryDelayMs,
      })
  const numberOfKeys = isCluster(opened) ? { numberOfKeys: 1 } : {}
  opened.defineCommand('apiKeysGet', { ...numberOfKeys, lua: GET })
  opened.defineCommand('apiKeysFill', { ...numberOfKeys, lua: FILL })
  opened.defineCommand('apiKeysForget', { numberOfKeys: 1, lua: FORGET })
  opened.defineCommand('apiKeysCount', { numberOfKeys: 1, lua: COUNT })
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
  /** Whether Redis is left alone but for one command now and then. */
  isOpen(): boolean
  /** Undefined while Redis is left alone. */
  enter(): Pass | undefined
  succeeded(): void
  /** Whether Redis is left alone from now on because of it. `asking` is how many waited for the command. */
  failed(pass: Pass, asking: number): boolean
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
    isOpen: () => pauseMs > 0,
    enter() {
      if (pauseMs === 0) return 'through'
      if (probing || monotonicMs() < resumeAt) return undefined
      probing = true
      return 'probe'
    },
    succeeded() {
      failures = 0
      pauseMs = 0
      probing = false
    },
    failed(pass, asking) {
      if (pass === 'probe') probing = false
      // Sent before the pause began, and no news.
      else if (pauseMs > 0) return false
      failures += asking
      if (pauseMs === 0 && failures < FAILURES) return false
      failures = 0
      pauseMs = Math.min(pauseMs === 0 ? FIRST_PAUSE_MS : pauseMs * 2, LONGEST_PAUSE_MS)
      resumeAt = monotonicMs() + pauseMs
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
      if (monotonicMs() < reviveAt) return false
      reviveAt = monotonicMs() + 1_000
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
function readEntries(reply: unknown, count: number): ({ value: string | null; timeMs: number } | undefined)[] | undefined {
  if (!Array.isArray(reply) || reply.length !== 2) return undefined
  const [values, time] = reply as unknown[]
  if (!Array.isArray(values) || values.length !== count) return undefined
  if (!Array.isArray(time) || time.length !== 2) return undefined
  const [seconds, micros] = time as unknown[]
  if (typeof seconds !== 'string' || typeof micros !== 'string') return undefined
  if (!/^\d{1,12}$/.test(seconds) || !/^\d{1,6}$/.test(micros)) return undefined
  const timeMs = Number(seconds) * 1_000 + Math.floor(Number(micros) / 1_000)
  return (values as unknown[]).map((value) =>
    value === null || (typeof value === 'string' && value.length <= MAX_ENTRY_LENGTH) ? { value, timeMs } : undefined,
  )
}

function readCounts(reply: unknown, count: number): (0 | 1)[] | undefined {
  if (!Array.isArray(reply) || reply.length !== count) return undefined
  const counts = (reply as unknown[]).map(readCount)
  return counts.every((each) => each !== undefined) ? counts : undefined
}

/** An integer; a string where the application's client has `stringNumbers`. */
function readCount(reply: unknown): 0 | 1 | undefined {
  return reply === 0 || reply === '0' ? 0 : reply === 1 || reply === '1' ? 1 : undefined
}

function readHit(reply: unknown, max: number, windowMs: number): Hit | undefined {
  if (!Array.isArray(reply) || reply.length !== 4) return undefined
  // Strings where the application's client has `stringNumbers`.
  if (!reply.every((each) => typeof each === 'number' || (typeof each === 'string' && /^\d{1,16}$/.test(each)))) return undefined
  const [counted, hits, waitMs, at] = reply.map(Number) as [number, number, number, number]
  if (![hits, waitMs, at].every((each) => Number.isSafeInteger(each) && each >= 0)) return undefined
  if ((counted !== 0 && counted !== 1) || hits < counted || hits > max || waitMs > Math.ceil(windowMs)) return undefined
  return { counted: counted === 1, hits, waitMs: Math.min(waitMs, windowMs), at }
}

function readOk(reply: unknown): true | undefined {
  return reply === 'OK' ? true : undefined
}
