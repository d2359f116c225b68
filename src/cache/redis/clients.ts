import type { Cluster, Redis } from 'ioredis'
import { MAX_MESSAGE_LENGTH } from '../../channel.js'
import { monotonicMs } from '../../real-time.js'
import { COUNT, FILL, FORGET, GET, type Script } from './scripts.js'

/** What the cache needs of the application's client. A client of another make is one more function here that returns this. */
export interface Client {
  /** How many keys one command may name: one, as soon as a cluster is known to be there. */
  mostKeys(): number
  /** Whether an error is the server's own answer. */
  isRefusal(error: unknown): boolean
  /** Opens a connection of ours, with the application's settings and our rules on top. It goes on trying to connect by itself. */
  open(timeoutMs: number, listeners: Listeners): Link
}

interface Listeners {
  error(error: unknown): void
  close(): void
  ready(): void
}

export interface EarListeners {
  /** What came as a message, from where Redis says. */
  heard(address: string, message: string): void
  close(): void
}

/** A connection of ours for listening alone. It does not connect again once it is lost. */
export interface Ear {
  /** Resolves when it can be used; rejects when it is lost before. May never settle. */
  readonly ready: Promise<unknown>
  subscribe(addresses: readonly string[]): Promise<unknown>
  unsubscribe(addresses: readonly string[]): Promise<unknown>
  /** Ends it at once. */
  close(): void
}

/** A connection of ours. Its commands may reject, or never settle. */
export interface Link {
  isReady(): boolean
  run(script: Script, keys: readonly string[], ...args: (string | number)[]): Promise<unknown>
  set(key: string, value: string, ttlMs: number): Promise<unknown>
  publish(address: string, message: string): Promise<unknown>
  /** Opens another connection, to where this one leads, for listening; undefined where it leads nowhere yet. */
  openEar(listeners: EarListeners): Ear | undefined
  /** Whether it has given up connecting, which only a connector of the application's own does before `close`. */
  hasEnded(): boolean
  /** Connects again after it has ended. */
  connect(): void
  /** Connects anew, in the place of a connection that may be dead. */
  reconnect(): void
  /** Ends it at once. */
  close(): void
}

/** How to use what the application gave; undefined where it is not a client of a known make. */
export function clientOf(given: unknown): Client | undefined {
  const { duplicate, defineCommand } = (given ?? {}) as Partial<Redis>
  return typeof duplicate === 'function' && typeof defineCommand === 'function' ? ioredisClient(given as Redis | Cluster) : undefined
}

/** What is asked in one turn of the event loop goes in commands of at most this many keys. */
const MOST_KEYS = 100

/** The longest wait between two attempts to connect. A Redis that comes back is in use again about this soon. */
const LONGEST_RETRY_MS = 1_000

/** Longer than any that is listened under. */
const MAX_ADDRESS_BYTES = 100

/** What scripts become on a client of ioredis. */
type Commands = Record<Script['name'], (...args: (string | number)[]) => Promise<unknown>>

/** An ioredis `Redis`, with Sentinel or without, or a `Cluster`. */
function ioredisClient(client: Redis | Cluster): Client {
  // A cluster takes the keys of one slot at a time, and so does a proxy that hides one; ioredis then puts the commands together.
  let mostKeys = isCluster(client) ? 1 : MOST_KEYS
  return {
    mostKeys: () => mostKeys,
    isRefusal,
    open(timeoutMs, listeners) {
      const opened = isCluster(client) ? duplicateCluster(client, timeoutMs) : duplicateRedis(client, timeoutMs)
      // Without a listener of errors ioredis would print them, or throw.
      opened.on('error', listeners.error).on('close', listeners.close).on('ready', listeners.ready)
      const numberOfKeys = isCluster(opened) ? { numberOfKeys: 1 } : {}
      for (const { name, lua } of [GET, FILL, FORGET, COUNT]) opened.defineCommand(name, { ...numberOfKeys, lua })
      return {
        isReady: () => opened.status === 'ready',
        async run({ name }, keys, ...args) {
          try {
            // Where the number of keys is not defined, it goes before them.
            return await (opened as unknown as Commands)[name](...(isCluster(opened) ? [] : [keys.length]), ...keys, ...args)
          } catch (error) {
            if (error instanceof Error && /cross-?slot|same slot/i.test(error.message)) {
              mostKeys = 1
              // What no longer goes together here, the client may put together.
              opened.options.autoPipeliningIgnoredCommands = []
            }
            throw error
          }
        },
        set: (key, value, ttlMs) => opened.set(key, value, 'PX', ttlMs),
        publish: (address, message) => (isCluster(opened) ? readyNode(opened) : opened).publish(address, message),
        openEar(listeners) {
          const way = isCluster(opened) ? anyOf(opened.nodes('master')) : (client as Redis)
          return way && ioredisEar(way, timeoutMs, listeners)
        },
        hasEnded: () => opened.status === 'end',
        connect: () => void opened.connect().catch(() => {}),
        reconnect: () => opened.disconnect(true),
        close() {
          const nodes = isCluster(opened) ? opened.nodes() : [opened]
          opened.disconnect()
          // disconnect() alone waits for the server to say goodbye, which a dead one never does.
          for (const { stream } of nodes) stream?.destroy()
        },
      }
    },
  }
}

/** A message may go to any node of a cluster, and comes from every other. Here it does not wait for one that is lost, as it would where its address has a node. */
function readyNode(cluster: Cluster): Cluster | Redis {
  return anyOf(cluster.nodes('master').filter(({ status }) => status === 'ready')) ?? cluster
}

function anyOf<T>(all: readonly T[]): T | undefined {
  return all[Math.floor(Math.random() * all.length)]
}

function ioredisEar(way: Redis, timeoutMs: number, { heard, close }: EarListeners): Ear {
  const opened = way.duplicate({ ...EAR_RULES, commandTimeout: timeoutMs + 100, disconnectTimeout: timeoutMs })
  let lastError: unknown
  opened
    .on('error', (error) => {
      lastError = error
    })
    // The one event for which ioredis does not take what came for text: a message without a text would end the process.
    .on('messageBuffer', (address: unknown, message: unknown) => {
      if (isShort(address, MAX_ADDRESS_BYTES) && isShort(message, MAX_MESSAGE_LENGTH))
        heard(address.toString('latin1'), message.toString('latin1'))
    })
    .on('close', close)
  const ready = new Promise((resolve, reject) => {
    opened.once('ready', resolve).once('close', () => reject(lastError ?? new Error('The connection was lost.')))
  })
  ready.catch(() => {})
  opened.connect().catch(() => {})
  return {
    ready,
    subscribe: (addresses) => opened.subscribe(...addresses),
    unsubscribe: (addresses) => opened.unsubscribe(...addresses),
    close() {
      opened.disconnect()
      opened.stream?.destroy()
    },
  }
}

function isShort(bytes: unknown, longest: number): bytes is Buffer {
  return Buffer.isBuffer(bytes) && bytes.length <= longest
}

function isRefusal(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError'
}

function duplicateRedis(client: Redis, timeoutMs: number): Redis {
  return client.duplicate({
    ...CLIENT_RULES,
    ...connectionRules(timeoutMs),
    // These gather by themselves.
    autoPipeliningIgnoredCommands: [GET.name, FILL.name],
    role: 'master',
    retryStrategy: retryDelayMs,
    sentinelRetryStrategy: retryDelayMs,
  })
}

function duplicateCluster(client: Cluster, timeoutMs: number): Cluster {
  return client.duplicate([], {
    ...CLIENT_RULES,
    scaleReads: 'master',
    // A command that meets a lost node is sent again after 100 ms; more than this nobody waits for.
    maxRedirections: 3,
    clusterRetryStrategy: retryDelayMs,
    // As an object: the spread of an optional type loses which members may be undefined.
    redisOptions: { ...client.options.redisOptions, ...connectionRules(timeoutMs) } as object,
  })
}

/** These name nothing that rules out Sentinel or Cluster. */
const CLIENT_RULES = { enableOfflineQueue: false, enableAutoPipelining: true, lazyConnect: false }

/** A loss is told, and not made good here: what listens has to know of it, and asks anew where to connect to. */
const EAR_RULES = {
  enableOfflineQueue: false,
  enableAutoPipelining: false,
  enableReadyCheck: false,
  autoResubscribe: false,
  autoResendUnfulfilledCommands: false,
  maxRetriesPerRequest: 0,
  lazyConnect: true,
  readOnly: false,
  role: 'master',
  retryStrategy: () => null,
  sentinelRetryStrategy: () => null,
  reconnectOnError: null,
} as const

function connectionRules(timeoutMs: number) {
  let reconnectAt = 0
  return {
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
}

/** Goes on for ever; the jitter keeps a fleet from coming back at one instant. */
function retryDelayMs(times: number): number {
  return Math.min(25 * 2 ** Math.min(times, 10), LONGEST_RETRY_MS) * (0.5 + Math.random() / 2)
}

function isCluster(client: Redis | Cluster): client is Cluster {
  return 'nodes' in client && typeof client.nodes === 'function'
}
