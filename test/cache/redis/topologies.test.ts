import { spawnSync } from 'node:child_process'
import type { Cache, Channel, Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { cacheContract } from 'express-api-keys/testing'
import { Cluster, Redis } from 'ioredis'
import { digestOf } from '../../../src/core/secret.js'
import { atEnd } from '../../support/cleanup.js'
import { type Instance, serve } from '../../support/instance.js'
import { freshDatabase } from '../../support/postgres.js'
import { ifServer, ownRedis } from '../../support/redis.js'
import type { RedisServer } from '../../support/redis-server.js'
import { call } from '../../support/traffic.js'

/** Longer than a busy machine takes for an answer: one that comes after its lease is no answer. */
const LEASE_MS = 800

ifServer()('P3, P5: a Cluster of three masters and three replicas moves a slot and loses a master in mid-traffic', async () => {
  const nodes = await startCluster(1)
  await until(async () => (await Promise.all(nodes.map(knowsAll))).every(Boolean))
  const clients = [clientOf(nodes), clientOf(nodes)]
  const { one, steadily, goesOn, end } = await startTraffic(clients)

  // Two keys that are only looked at, so that they stay in their slots, which belong to two masters.
  const moved = await one.keys.create({ as: 'application', ownerId: 'acme', name: 'moves' })
  const slot = await slotOf(moved.secret)
  const stays = await elsewhere(await ownerOf(slot))
  for (const { secret } of [moved, stays]) steadily(secret)
  await goesOn(moved.secret, stays.secret)

  const [source, target] = [await ownerOf(slot), await ownerOf(await slotOf(stays.secret))]
  await target.client.call('CLUSTER', 'SETSLOT', slot, 'IMPORTING', await idOf(source))
  await source.client.call('CLUSTER', 'SETSLOT', slot, 'MIGRATING', await idOf(target))
  // The half-way state may last: an entry that is not here any more is asked for where it goes.
  await goesOn(moved.secret)
  for (;;) {
    const names = (await source.client.call('CLUSTER', 'GETKEYSINSLOT', slot, '10')) as string[]
    if (names.length === 0) break
    await source.client.call('MIGRATE', '127.0.0.1', target.port, '', '0', '5000', 'REPLACE', 'KEYS', ...names)
  }
  for (const node of [target, source]) await node.client.call('CLUSTER', 'SETSLOT', slot, 'NODE', await idOf(target))
  await until(async () => (await ownerOf(slot)) === target)
  await goesOn(moved.secret)

  // Both keys are on this one now.
  await target.kill()
  const left = nodes.filter((node) => node !== target)
  // Its replica takes its place once the others have missed it for a second.
  await until(async () => (await ownerOf(slot)) !== target)
  await until(async () => (await Promise.all(left.map(isWhole))).every(Boolean))
  await goesOn(moved.secret, stays.secret)
  await target.start()
  await until(async () => /master_link_status:up/.test(await target.client.info('replication')))
  await goesOn(moved.secret)
  expect(await end()).toEqual([])

  async function elsewhere(owner: Node): Promise<{ secret: string }> {
    for (;;) {
      const key = await one.keys.create({ as: 'application', ownerId: 'acme', name: 'stays' })
      if ((await ownerOf(await slotOf(key.secret))) !== owner) return key
    }
  }

  async function ownerOf(number: string): Promise<Node> {
    const [node] = nodes.filter(({ isUp }) => isUp()) as [Node]
    const ranges = (await node.client.call('CLUSTER', 'SLOTS')) as [number, number, [string, number]][]
    const range = ranges.find(([first, last]) => first <= Number(number) && Number(number) <= last)
    return nodes.find(({ port }) => port === range?.[2][1]) ?? Promise.reject(new Error(`Nobody owns slot ${number}.`))
  }

  async function slotOf(secret: string): Promise<string> {
    return String(await (nodes[0] as Node).client.call('CLUSTER', 'KEYSLOT', `express-api-keys:v1:${digestOf(secret)}`))
  }

  async function idOf(node: Node): Promise<string> {
    return String(await node.client.call('CLUSTER', 'MYID'))
  }

  /** Whether a node has heard of every other, and that three of them can take the place of a master. */
  async function knowsAll(node: Node): Promise<boolean> {
    const list = String(await node.client.call('CLUSTER', 'NODES'))
    const replication = await node.client.info('replication')
    return (await isWhole(node)) && list.match(/slave [0-9a-f]{40} .* connected/g)?.length === 3 && !/link_status:down/.test(replication)
  }
})

ifServer()('P3, P5: Sentinel puts a replica in the place of a killed master in mid-traffic', async () => {
  const master = await startNode()
  const replicas = await Promise.all([1, 2].map(() => startNode('--replicaof', '127.0.0.1', String(master.port))))
  await until(async () => /connected_slaves:2/.test(await master.client.info('replication')))
  const sentinels = await Promise.all([1, 2, 3].map(() => startSentinel(master)))
  const [first] = sentinels as [Node]
  await until(async () => (await Promise.all(sentinels.map(seesAll))).every(Boolean))
  const options = { sentinels: sentinels.map(({ port }) => ({ host: '127.0.0.1', port })), name: 'keys', lazyConnect: true }
  const { one, steadily, goesOn, end } = await startTraffic([new Redis(options), new Redis(options)])
  const { secret } = await one.keys.create({ as: 'application', ownerId: 'acme', name: 'only looked at' })
  steadily(secret)
  await goesOn(secret)

  await master.kill()
  await until(async () => {
    const [, port] = (await first.client.call('SENTINEL', 'get-master-addr-by-name', 'keys')) as string[]
    return replicas.some((replica) => replica.port === Number(port))
  })
  await goesOn(secret)
  // It comes back as a master, until it is told otherwise; nobody may go by it.
  await master.start()
  await goesOn(secret)
  expect(await end()).toEqual([])

  async function seesAll({ client }: Node): Promise<boolean> {
    const [said] = (await client.call('SENTINEL', 'MASTERS')) as string[][]
    const value = (name: string): string | undefined => said?.[said.indexOf(name) + 1]
    return value('num-slaves') === '2' && value('num-other-sentinels') === '2' && value('flags') === 'master'
  }
})

ifServer()('a channel over a Cluster goes on while one node after the other is killed', async () => {
  const nodes = await startCluster(1)
  await until(async () => (await Promise.all(nodes.map(isWhole))).every(Boolean))
  const { channels, arrives } = await openChannels([clientOf(nodes), clientOf(nodes), clientOf(nodes)])
  for (const node of nodes) {
    await node.kill()
    for (const channel of channels) await arrives(channel)
    await node.start()
    await until(async () => (await Promise.all(nodes.map(isWhole))).every(Boolean))
  }
  for (const channel of channels) await arrives(channel)
})

ifServer()('a channel behind Sentinel follows it to another master, and does not stay with one that hangs', async () => {
  const master = await startNode()
  const replica = await startNode('--replicaof', '127.0.0.1', String(master.port))
  await until(async () => /connected_slaves:1/.test(await master.client.info('replication')))
  const guard = await startSentinel(master, 1)
  await until(async () => /slaves=1/.test(await guard.client.info('sentinel')))
  const options = { sentinels: [{ host: '127.0.0.1', port: guard.port }], name: 'keys', lazyConnect: true }
  const { channels, arrives } = await openChannels([new Redis(options), new Redis(options)])
  // It keeps its connections, and says nothing on them.
  master.signal('SIGSTOP')
  await until(async () => {
    const [, port] = (await guard.client.call('SENTINEL', 'get-master-addr-by-name', 'keys')) as string[]
    return Number(port) === replica.port
  })
  for (const channel of channels) await arrives(channel)
  expect(await replica.client.pubsub('NUMSUB', 'express-api-keys:here')).toEqual(['express-api-keys:here', channels.length])
  master.signal('SIGCONT')
})

/** Channels that listen under one address. `arrives` resolves when each has heard, and is open. */
async function openChannels(
  clients: readonly (Redis | Cluster)[],
): Promise<{ channels: readonly Channel[]; arrives(from: Channel): Promise<void> }> {
  const heard = clients.map(() => new Set<string>())
  const channels = clients.map((client) => {
    client.on('error', () => {})
    atEnd(async () => client.disconnect())
    const cache = redisCache(client, { timeoutMs: 500, onStateChange() {} }) as Required<Cache>
    atEnd(() => cache.close())
    return cache.channel()
  })
  for (const [n, channel] of channels.entries()) void channel.listen(['here'], (text) => heard[n]?.add(text))
  let sent = 0
  return {
    channels,
    async arrives(from) {
      const text = `text ${sent++}`
      await until(async () => {
        if (heard.every((each) => each.has(text)) && channels.every((channel) => channel.isOpen())) return true
        await from.send('here', text)
        return false
      })
    },
  }
}

let cluster: Promise<Node[]> | undefined
cacheContract({ describe, test: ifServer() }, 'redisCache on a Cluster of three masters', async () => {
  cluster ??= startCluster(0)
  const nodes = await cluster
  await until(async () => (await Promise.all(nodes.map(isWhole))).every(Boolean))
  return answering(clientOf(nodes), clientOf(nodes))
})

let sentinel: Promise<Node> | undefined
cacheContract({ describe, test: ifServer() }, 'redisCache behind Sentinel', async () => {
  sentinel ??= startNode().then((master) => startSentinel(master))
  const options = { sentinels: [{ host: '127.0.0.1', port: (await sentinel).port }], name: 'keys', lazyConnect: true }
  return answering(new Redis(options), new Redis(options))
})

/** Caches over these clients, which answer. */
async function answering(...clients: readonly (Redis | Cluster)[]): Promise<{ cache: Cache; sibling: Cache; close(): Promise<void> }> {
  const [cache, sibling] = clients.map((client) => redisCache(client, { timeoutMs: 2_000 })) as [Cache, Cache]
  // In a cluster each node is connected to at its first use.
  const names = Array.from({ length: 50 }, (_, n) => `name ${n}`)
  const all = async (): Promise<boolean> =>
    (await Promise.all([cache, sibling].flatMap((each) => names.map((name) => each.get(name))))).every((reading) => reading !== undefined)
  await until(all)
  return {
    cache,
    sibling,
    async close() {
      for (const each of [cache, sibling]) await each.close()
    },
  }
}

/** Three masters, each with so many replicas. */
async function startCluster(replicas: number): Promise<Node[]> {
  const nodes = await Promise.all(
    Array.from({ length: 3 * (1 + replicas) }, () => startNode('--cluster-enabled', 'yes', '--cluster-node-timeout', '1000')),
  )
  const addresses = nodes.map(({ port }) => `127.0.0.1:${port}`)
  const made = spawnSync('redis-cli', ['--cluster', 'create', ...addresses, '--cluster-replicas', String(replicas), '--cluster-yes'], {
    encoding: 'utf8',
  })
  if (made.status !== 0) throw new Error(`The cluster was not made: ${made.stdout}${made.stderr}`)
  return nodes
}

function clientOf(nodes: readonly Node[]): Cluster {
  return new Cluster(
    nodes.map(({ port }) => ({ host: '127.0.0.1', port })),
    { lazyConnect: true },
  )
}

async function isWhole(node: Node): Promise<boolean> {
  return /cluster_state:ok/.test(String(await node.client.call('CLUSTER', 'INFO')))
}

interface Traffic {
  readonly one: Instance
  /** Looks at a key on the first instance, over and over. */
  steadily(secret: string): void
  /**
   * Resolves when every key that is rotated all the while has been rotated again, by either instance, and when the second instance has taken
   * a lease on each of these secrets over from the first, and asked the store for none.
   */
  goesOn(...relayed: string[]): Promise<void>
  /** Resolves with every answer that was wrong. */
  end(): Promise<readonly string[]>
}

/** Two instances on one database, each with its client, and keys that are looked at and rotated through both. */
async function startTraffic(clients: readonly (Redis | Cluster)[]): Promise<Traffic> {
  const { pool } = await freshDatabase()
  const wrong: string[] = []
  const rounds = Array.from({ length: 4 }, () => 0)
  const loops: Promise<void>[] = []
  let running = true
  const apps = await Promise.all(
    clients.map(async (client) => {
      client.on('error', () => {})
      atEnd(async () => client.disconnect())
      const store = postgresStore(pool)
      const reads: string[] = []
      const counted: Store = Object.assign(Object.create(store) as Store, {
        read(...asked: Parameters<Store['read']>) {
          reads.push(...asked[0])
          return store.read(...asked)
        },
      })
      const instance = await serve(counted, { leaseMs: LEASE_MS, cache: redisCache(client) })
      return { ...instance, readsOf: (secret: string) => reads.filter((digest) => digest === digestOf(secret)).length }
    }),
  )
  const [one, other] = apps as [(typeof apps)[number], (typeof apps)[number]]
  atEnd(async () => {
    running = false
    await Promise.all(loops)
  })
  for (const index of rounds.keys()) loops.push(rove(index))

  async function rove(index: number): Promise<void> {
    let { secret } = await one.keys.create({ as: 'application', ownerId: 'acme', name: `rotated ${index}` })
    for (let round = 0; running; round++) {
      for (let n = 0; n < 3; n++) await Promise.all(apps.map((app) => look(app, secret, 200)))
      const by = round % 2 === 0 ? one : other
      const answer = await call(`${by.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: `round-${round}` })
      if (answer.status !== 200) {
        wrong.push(`A rotation was answered ${answer.status}: ${JSON.stringify(answer.body)}`)
        continue
      }
      const old = secret
      secret = (answer.body as { secret: string }).secret
      await Promise.all(apps.flatMap((app) => [look(app, old, 401), look(app, secret, 200)]))
      rounds[index] = round + 1
    }
  }

  async function look({ url }: Instance, secret: string, right: number): Promise<void> {
    const { status, body } = await call(`${url}/data`, { secret })
    if (status !== right) wrong.push(`A request was answered ${status} instead of ${right}: ${JSON.stringify(body)}`)
    // Traffic, not a flood: there are a dozen servers on this machine.
    await pause(5)
  }

  function relays(secret: string): Promise<void> {
    return until(async () => {
      await pause(LEASE_MS + 20)
      const before = other.readsOf(secret)
      const verdict = await other.keys.verify(secret)
      return wrong.length > 0 || (verdict.ok && other.readsOf(secret) === before)
    })
  }

  return {
    one,
    steadily(secret) {
      const loop = async (): Promise<void> => {
        while (running) await look(one, secret, 200)
      }
      loops.push(loop())
    },
    async goesOn(...relayed) {
      // One that was under way, and one that was not.
      const goal = rounds.map((round) => round + 2)
      await Promise.all([
        until(async () => wrong.length > 0 || rounds.every((round, index) => round >= (goal[index] ?? 0))),
        ...relayed.map(relays),
      ])
      expect(wrong).toEqual([])
    },
    async end() {
      running = false
      await Promise.all(loops)
      return wrong
    },
  }
}

interface Node extends RedisServer {
  readonly client: Redis
}

async function startNode(...args: string[]): Promise<Node> {
  return node({ args: () => args })
}

async function startSentinel(master: Node, quorum = 2): Promise<Node> {
  return node({
    args: () => ['--sentinel'],
    config: [
      `sentinel monitor keys 127.0.0.1 ${master.port} ${quorum}`,
      'sentinel down-after-milliseconds keys 1000',
      'sentinel failover-timeout keys 3000',
    ],
  })
}

async function node(how: Parameters<typeof ownRedis>[0]): Promise<Node> {
  const server = await ownRedis(how)
  const client = new Redis(server.port, '127.0.0.1', { lazyConnect: true, retryStrategy: () => 50, maxRetriesPerRequest: null })
  client.on('error', () => {})
  atEnd(async () => client.disconnect())
  await client.ping()
  const start = async (): Promise<void> => {
    await server.start()
    await client.ping()
  }
  return { ...server, client, start }
}

async function until(isSo: () => Promise<boolean>): Promise<void> {
  while (!(await isSo())) await pause(10)
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
