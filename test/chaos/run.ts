import { mkdirSync, writeFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import type { Pool } from 'pg'
import { createApiKeys } from '../../src/index.js'
import { postgresStore } from '../../src/store/sql/postgres.js'
import { bundle } from '../support/bundle.js'
import { child } from '../support/child.js'
import { freePort } from '../support/port.js'
import { faultProxy } from '../support/proxy.js'
import { type Counts, check, count, type Op, type Rule, type Violation } from './check.js'
import { type ClientKey, digestOf, startTraffic } from './clients.js'
import { startNemesis, type Victim } from './nemesis.js'
import { ownDatabase } from './own-database.js'
import { areAsked, type Plant } from './plants.js'
import { random } from './random.js'
import { redisPair } from './redis-pair.js'
import type { Ports } from './requests.js'

export interface RunOptions {
  /** What decides which faults come, and in which order. Timing is the machine's. */
  readonly seed: number
  /** For how long faults come. Starting and ending take some seconds more. */
  readonly seconds: number
  /** A PostgreSQL whose programs can be used: each run has a server of its own, to do what it likes to. */
  readonly postgresUrl: string
  readonly plant?: Plant | undefined
  /** Ends the faults as soon as this rule is seen to be broken. */
  readonly stopOn?: Rule | undefined
  /** Hears of every fault. */
  readonly log?: (line: string) => void
}

export interface RunResult {
  readonly history: readonly Op[]
  readonly counts: Counts
  readonly violations: readonly Violation[]
}

const SERVER_SECRET = 'the-server-secret-of-the-chaos-runs-0123456789'
const SERVERS = 3
/** All but the last rotate themselves; that one is rotated by an administrator. Others come and go. */
const KEYS = 5
/** Short, so that there are many rotations. */
const LEASE_MS = 250
/** How long a client may take to end its last rotation, once all is whole again. */
const LAST_WORDS_MS = 30_000
/** A server may be stopped, or have just been killed. */
const STEERED_WITHIN_MS = 2_000

/** How often a history that goes on is looked at. */
const LOOK_EVERY_MS = 1_000
/** A request is in the history when its answer is: what began before an operation may come so much after it. */
const LONGEST_REQUEST_MS = 10_000

/** Runs servers, clients and a nemesis against each other, and judges what the clients saw. */
export async function run({ seed, seconds, postgresUrl, plant, stopOn, log = () => {} }: RunOptions): Promise<RunResult> {
  const closers: (() => Promise<unknown>)[] = []
  try {
    const history: Op[] = []
    const origin = performance.now()
    const now = (): number => performance.now() - origin
    let lostAt = Number.NEGATIVE_INFINITY
    const record = (op: Op): void => {
      history.push(op)
      if (op.f === 'restore') lostAt = op.end
    }

    const database = await ownDatabase(postgresUrl)
    closers.push(database.close)
    const { keys, admin, storeId } = await makeKeys(database.pool(), now, record)
    const program = await bundle(resolve('test/chaos/server.ts'), resolve('.tmp/chaos/server.mjs'))
    const redis = await redisPair()
    closers.push(redis.close)
    const servers = await Promise.all(
      Array.from({ length: SERVERS }, (_, index) =>
        startServer(program, database.url(), storeId, redis.port(), plant, index > 0, (close) => closers.push(close)),
      ),
    )

    const traffic = startTraffic({ keys, admin: admin.secret, servers, random: random(seed), now, record, lostAt: () => lostAt })
    closers.push(traffic.stop)
    const lane = (number: number): ReturnType<typeof random> => random(seed * 1_000 + number + 1)
    const nemesis = startNemesis({
      victims: servers,
      redis,
      database,
      random: lane,
      leaseMs: LEASE_MS,
      lastsMs: seconds * 1_000,
      now,
      record,
      log,
    })
    closers.push(nemesis.stop)
    const endsAt = now() + seconds * 1_000
    let seen = false
    for (let left = seconds * 1_000; left > 0 && !seen; left = endsAt - now()) {
      await setTimeout(Math.min(left, stopOn === undefined ? left : LOOK_EVERY_MS))
      seen = stopOn !== undefined && brokenBy(history, stopOn, now())
    }
    // What is broken already needs no good end.
    const lastWordsMs = seen ? 0 : LAST_WORDS_MS
    log('The faults end.')
    await nemesis.stop().catch((error: unknown) => {
      // A server that has ended by itself cannot be treated badly any more, and that is the smaller news.
      throwIfCrashed(servers)
      throw error
    })
    await traffic.stopRotating(lastWordsMs)
    await traffic.askOnceMore(lastWordsMs)
    await traffic.stop()
    for (const final of await lookInside(database.pool(), admin.id, keys, now)) record(final)
    throwIfCrashed(servers)
    return { history, counts: count(history), violations: check(history) }
  } finally {
    for (const close of closers.reverse()) await close().catch((error: unknown) => log(`It does not end well: ${String(error)}`))
  }
}

/** Whether a history that goes on shows already that a rule is broken, so that nothing still to come can explain it. */
function brokenBy(history: readonly Op[], stopOn: Rule, now: number): boolean {
  // Two 200s prove these; the others might still turn out to have been asked for.
  const before = stopOn === 'dead-accepted' || stopOn === 'one-secret' ? now : now - LONGEST_REQUEST_MS
  return check(history).some(({ rule, ops }) => rule === stopOn && Math.max(...ops.map(({ end }) => end)) <= before)
}

function throwIfCrashed(servers: readonly { crash(): string | undefined }[]): void {
  for (const [index, { crash }] of servers.entries()) {
    const lastWords = crash()
    if (lastWords !== undefined) throw new Error(`Server ${index} ended by itself: ${lastWords}`)
  }
}

/** Writes a history down, an operation a line, and says where. */
export function saveHistory(name: string, history: readonly Op[]): string {
  const file = `.tmp/chaos/${name}.jsonl`
  mkdirSync('.tmp/chaos', { recursive: true })
  writeFileSync(file, history.map((op) => `${JSON.stringify(op)}\n`).join(''))
  return file
}

async function startServer(
  program: string,
  postgresUrl: string,
  storeId: string,
  redisPort: number,
  plant: Plant | undefined,
  readsBodies: boolean,
  atEnd: (close: () => Promise<unknown>) => void,
): Promise<Victim & Ports & { crash(): string | undefined }> {
  const url = new URL(postgresUrl)
  const postgres = await faultProxy(Number(url.port))
  atEnd(() => postgres.close())
  const redis = await faultProxy(redisPort)
  atEnd(() => redis.close())
  const port = await freePort()
  const clients = await faultProxy(port)
  atEnd(() => clients.close())
  // One byte of each answer, and then the end.
  const losing = await faultProxy(clients.port)
  losing.trouble('down', { kind: 'truncate', bytes: 1 })
  atEnd(() => losing.close())
  url.port = String(postgres.port)
  const env = (): NodeJS.ProcessEnv => ({
    ...process.env,
    ...{ SERVER_SECRET, STORE_URL: url.href, STORE_ID: storeId, REDIS_URL: `redis://127.0.0.1:${redis.port}` },
    ...{ PORT: String(port), LEASE_MS: String(leaseMs), READS_BODIES: readsBodies ? '1' : '', PLANT: plant ?? '' },
    RECALL: recall ? '1' : '0',
  })
  let leaseMs = LEASE_MS
  let recall = areAsked(plant)
  const server = child(() => ({
    command: process.execPath,
    args: [program],
    env: env(),
    ready: /^ready$/m,
  }))
  atEnd(server.kill)
  await server.start()
  const steer: Victim['steer'] = async (what, how) => {
    try {
      const headers = { 'content-type': 'application/json' }
      const signal = AbortSignal.timeout(STEERED_WITHIN_MS)
      const answer = await fetch(`http://127.0.0.1:${port}/chaos/${what}`, { method: 'POST', headers, body: JSON.stringify(how), signal })
      return answer.ok ? await answer.json() : undefined
    } catch {
      return undefined
    }
  }
  const setLease = (ms: number): void => {
    leaseMs = ms
  }
  const setRecall = (on: boolean): void => {
    recall = on && areAsked(plant)
  }
  return { ...server, port: clients.port, losingPort: losing.port, postgres, redis, clients, steer, setLease, setRecall }
}

interface Beginning {
  readonly keys: ClientKey[]
  readonly admin: { readonly id: string; readonly secret: string }
  readonly storeId: string
}

async function makeKeys(pool: Pool, now: () => number, record: (op: Op) => void): Promise<Beginning> {
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, leaseMs: LEASE_MS })
  await keys.migrate()
  // No lease has been granted yet, so none of the default length can be left.
  await pool.query('update express_api_key_settings set earlier_lease_ms = 0')
  const admin = await keys.create({ as: 'application', ownerId: 'acme', name: 'rotates the last one', scopes: ['api_keys:write'] })
  const made: ClientKey[] = []
  for (let n = 1; n <= KEYS; n++) {
    const start = now()
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: `chaos ${n}` })
    record({ f: 'create', type: 'ok', status: 201, key: key.id, digest: digestOf(secret), start, end: now() })
    made.push({ id: key.id, secret, dead: [], ...(n === KEYS ? { rotatedWith: admin.secret } : {}) })
  }
  await keys.close()
  const { rows } = await pool.query<{ store_id: string }>('select store_id from express_api_key_settings')
  return { keys: made, admin: { id: admin.key.id, secret: admin.secret }, storeId: rows[0]?.store_id ?? '' }
}

/** What the database holds of every key, but for the administrator's, and what those clients hold that still have one. */
async function lookInside(pool: Pool, adminId: string, keys: readonly ClientKey[], now: () => number): Promise<Op[]> {
  const start = now()
  const { rows } = await pool.query<{ id: string; generations: number; active: string[]; revoked: boolean }>(
    `select k.id, k.revoked_at is not null as revoked, count(*)::int as generations,
       coalesce(array_agg(g.digest) filter (where g.retired_at is null), '{}') as active
     from express_api_keys k join express_api_key_generations g on g.key_id = k.id where k.id <> $1 group by k.id`,
    [adminId],
  )
  const held = new Map(keys.map(({ id, secret }) => [id, digestOf(secret)]))
  return rows.map(({ id, ...found }) => ({ f: 'final', key: id, held: held.get(id) ?? '', ...found, start, end: now() }))
}
