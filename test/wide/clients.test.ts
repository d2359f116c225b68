import { spawn, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { join } from 'node:path'
import { json } from 'node:stream/consumers'
import express from 'express'
import { type ApiKeys, bearerAuth, contracts, createApiKeys, type IssuedKey, keyRouter, memoryStore, type Store } from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import { sqliteStore } from 'express-api-keys/sqlite'
import Database from 'libsql'
import { atEnd } from '../support/cleanup.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'
import { call, verdict } from '../support/traffic.js'
import { type Attempt, type Fault, type Line, startLine } from './clients/line.js'

type Settings = 'defaults' | 'recovers' | 'hasty'

interface Client {
  readonly title: string
  readonly command: readonly [string, ...string[]]
  /** Faults that it does not recover from, whatever its settings. */
  readonly except: readonly string[]
}

/** What a client's call resolved to, or the error with which it gave up. */
interface End {
  readonly status?: number
  readonly body?: unknown
  readonly error?: string
}

interface Served {
  readonly keys: ApiKeys
  readonly url: string
  storeAway(away: boolean): void
}

interface Wire {
  readonly contract: Contract
  path(made: IssuedKey): string
  secretOf(body: unknown): string | undefined
}

const CLIENTS = join(__dirname, 'clients')
/** How long a client waits for an answer: longer than any takes on a busy machine, save where none is going to come. */
const PATIENCE_MS = 30_000
const PATIENCE_WITH_SILENCE_MS = 3_000

const WIRES: readonly Wire[] = [
  { contract: contracts.standard, path: () => `${mountOf(contracts.standard)}/self/rotate`, secretOf: (body) => field(body, 'secret') },
  { contract: contracts.suwappu, path: () => `${mountOf(contracts.suwappu)}/keys/rotate`, secretOf: (body) => field(body, 'api_key') },
  {
    contract: contracts.blendFi,
    path: ({ key }) => `${mountOf(contracts.blendFi)}/${key.id}/rotate`,
    secretOf: (body) => field(body, 'api_key'),
  },
]

/** What becomes of the first attempts; the next one goes through. */
const TROUBLES: { readonly [name: string]: readonly Fault[] } = {
  'an answer cut off': ['cut'],
  'a connection reset': ['reset'],
  'a connection cut while the rotation waits': ['cut in the wait'],
  'a connection cut twice while the rotation waits': ['cut in the wait', 'cut in the wait'],
  'an answer that never comes': ['stall'],
  'a truncated body': ['truncated'],
  'headers without a body': ['headers only'],
  'a 502': ['502'],
  'a 504': ['504'],
  'three losses in a row': ['cut', 'reset', 'cut'],
  'a 503 of the server': ['store away'],
  'a lost answer and a 503 of the server': ['cut', 'store away'],
}
const TWELVE_LOSSES = 'twelve losses in a row'
/** Held to its end, not to an answer: who waits for an hour makes the test time out. */
const AN_HOUR = 'a 429 that says to come back in an hour'
const TEN_LOSSES = 'ten losses in a row'
const CUT_BODIES = ['a truncated body', 'headers without a body']

const node = (name: string, except: readonly string[] = []): Client => ({
  title: name,
  command: [process.execPath, join(CLIENTS, 'run.mjs'), name],
  except,
})

const clients: readonly Client[] = [
  node('axios'),
  node('got'),
  node('undici', CUT_BODIES),
  node('ky', CUT_BODIES),
  node('fetch'),
  node('node-fetch'),
  node('superagent'),
  node('curl'),
  ...pythons(),
]

/** What each client came to. They spend their time waiting between attempts, so that several are under way at once. */
const begun = new Map<Client, { readonly defaults: Promise<Ended[]>; readonly recovers: Promise<Ended[]> }>()
const turns: Promise<unknown>[] = Array(6).fill(Promise.resolve())
/** The owners, each of one key, whose rotation is committed; and an event for each. */
const rotated = new Set<string>()
const commits = new EventEmitter()
let line: Line
let quick: Served
let slow: Served
beforeAll(async () => {
  line = await startLine()
  quick = await serve(memoryStore())
  // In memory nobody else can hold a lease, so nothing waits for one.
  const database = new Database(':memory:')
  atEnd(async () => database.close())
  slow = await serve(sqliteStore(database), 300)
  for (const client of clients) {
    const defaults = inTurn(() => attempt(client, 'defaults', TROUBLES))
    const more: typeof TROUBLES = { [TWELVE_LOSSES]: Array<Fault>(12).fill('cut'), [AN_HOUR]: ['429'] }
    const recovers = inTurn(() => attempt(client, 'recovers', { ...TROUBLES, ...more }))
    begun.set(client, { defaults, recovers })
  }
})

describe.each(clients.map((client) => [client.title, client] as const))('P2: %s', (_title, client) => {
  test('with its defaults locks nobody out', async () => {
    expect(await begun.get(client)?.defaults).toHaveLength(WIRES.length * Object.keys(TROUBLES).length)
  })

  test('with the settings of the page for client authors ends with the one active secret', async () => {
    const all = (await begun.get(client)?.recovers) ?? []
    expect(all).toHaveLength(WIRES.length * (Object.keys(TROUBLES).length + 2))
    const ended = all.filter(({ trouble }) => trouble !== AN_HOUR)
    const without = ended.filter(({ secret }) => secret === undefined).map(({ contract, trouble }) => `${contract}: ${trouble}`)
    expect(without).toEqual(WIRES.flatMap(({ contract }) => client.except.map((trouble) => `${contract.name}: ${trouble}`)))
    for (const { attempts, faults, secret } of ended) expect(attempts.length).toBeGreaterThan(secret === undefined ? 0 : faults.length)
  })
})

test.each(['axios', 'superagent'])('P2: %s that repeats ten times without any delay ends with the one active secret', async (name) => {
  for (const fault of ['cut', 'cut in the wait'] as const) {
    const ended = await attempt(node(name), 'hasty', { [TEN_LOSSES]: Array<Fault>(10).fill(fault) }, 10)
    for (const { attempts, secret } of ended) expect([attempts.length, secret]).toEqual([11, expect.any(String)])
  }
})

describe('P2: a client that knows no Idempotency-Key', () => {
  test.each(WIRES.filter(({ contract }) => contract !== contracts.blendFi).map((wire) => [wire.contract.name, wire] as const))(
    'gets its lost answer by %s, and a thief at another address does not',
    async (_name, wire) => {
      const served = await serve(memoryStore(), 50, true)
      const made = await own(served.keys)
      const { url, attempts } = open(served, wire, made, ['cut'])
      const headers = { authorization: `Bearer ${made.secret}` }
      await expect(fetch(url, { method: 'POST', headers })).rejects.toThrow('fetch failed')
      const stolen = await fetch(served.url + wire.path(made), {
        method: 'POST',
        headers: { ...headers, 'x-forwarded-for': '198.51.100.7' },
      })
      expect(stolen.status).toBe(401)
      const [end] = await run(node('fetch'), 'recovers', [{ url, headers, retries: 3, timeoutMs: PATIENCE_MS }])
      const secret = wire.secretOf(end?.body)
      expect(attempts.map(({ answer }) => [answer?.status, secretIn(wire, answer)])).toEqual([
        [200, secret],
        [200, secret],
      ])
      expect([await verdict(served.url, secret ?? ''), await verdict(served.url, made.secret)]).toEqual([200, 401])
    },
  )
})

/** Does some of the work at a time. */
function inTurn<Result>(work: () => Promise<Result>): Promise<Result> {
  const result = (turns.shift() ?? Promise.resolve()).then(work)
  turns.push(result.catch(() => {}))
  return result
}

interface Ended {
  readonly contract: string
  readonly trouble: string
  readonly faults: readonly Fault[]
  readonly attempts: readonly Attempt[]
  /** What the client ended with; undefined where it gave up without an answer. */
  readonly secret: string | undefined
}

/** Has a client rotate one key for each contract and trouble, and holds that afterwards nobody is locked out. */
async function attempt(
  client: Client,
  settings: Settings,
  troubles: typeof TROUBLES,
  retries: number | undefined = undefined,
): Promise<Ended[]> {
  const cases = await Promise.all(
    WIRES.flatMap((wire) =>
      Object.entries(troubles).map(async ([trouble, faults]) => {
        const served = faults.includes('cut in the wait') ? slow : faults.includes('store away') ? await serve(absentable()) : quick
        const made = await own(served.keys)
        return { wire, trouble, faults, served, made, idempotencyKey: randomUUID(), ...open(served, wire, made, faults) }
      }),
    ),
  )
  const requests = cases.map(({ url, made, idempotencyKey, faults }) => ({
    url,
    headers: { authorization: `Bearer ${made.secret}`, 'idempotency-key': idempotencyKey },
    retries: retries ?? Math.max(faults.length, 5),
    timeoutMs: faults.includes('stall') ? PATIENCE_WITH_SILENCE_MS : PATIENCE_MS,
  }))
  const ends = await run(client, settings, requests)
  return Promise.all(
    cases.map(async ({ wire, trouble, faults, served, made, idempotencyKey, attempts }, index) => {
      const { status, body } = ends[index] ?? {}
      const secret = status === 200 ? wire.secretOf(body) : undefined
      const repeated = await call(served.url + wire.path(made), {
        method: 'POST',
        secret: made.secret,
        idempotencyKey,
      })
      const active = wire.secretOf(repeated.body)
      const statuses = attempts.map(({ answer }) => answer?.status)
      const seen = { contract: wire.contract.name, trouble, statuses, repeated: repeated.status }
      expect({ ...seen, secrets: new Set([active, ...attempts.flatMap(({ answer }) => secretIn(wire, answer) ?? [])]).size }).toEqual({
        ...seen,
        statuses: attempts.map(({ fault, answer }) => (fault === 'store away' ? 503 : answer && 200)),
        repeated: 200,
        secrets: 1,
      })
      expect([await verdict(served.url, active ?? ''), await verdict(served.url, made.secret)]).toEqual([200, 401])
      expect({ ...seen, rotations: await rotations(served.keys, made) }).toEqual({ ...seen, rotations: 1 })
      if (secret !== undefined) expect(secret).toBe(active)
      return { contract: wire.contract.name, trouble, faults, attempts, secret }
    }),
  )
}

/** Two contracts are published at the same path. */
function mountOf({ name, path }: Contract): string {
  return `/${name}${path}`
}

/** Runs a client in a process of its own, with all requests under way at once. */
async function run(
  { command: [program, ...args] }: Client,
  settings: Settings,
  requests: readonly { url: string; headers: object; retries: number; timeoutMs: number }[],
): Promise<End[]> {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  child.stdin.end(JSON.stringify({ settings, requests }))
  return (await json(child.stdout)) as End[]
}

/** All contracts over one set of keys, on real HTTP. */
async function serve(store: Store, leaseMs = 50, retryWithoutKey = false): Promise<Served> {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs, onError: () => {} })
  atEnd(() => keys.close())
  // Told at the commit, before the wait for the leases.
  keys.on('rotated', ({ key: { ownerId } }) => {
    rotated.add(ownerId)
    commits.emit(ownerId)
  })
  await keys.migrate()
  const app = express().set('trust proxy', 1)
  for (const { contract } of WIRES) app.use(mountOf(contract), keyRouter(keys, { contract, retryWithoutKey }))
  // All ask from one address after their rotations, with hundreds of dead secrets within a minute.
  app.get('/data', bearerAuth(keys, { failuresPerMinute: false }), (req, res) => void res.json(req.apiKey?.id))
  return { keys, url: await listen(app), storeAway: (away) => Object.assign(store, { away }) }
}

/** A store that is away while its `away` is set. */
function absentable(): Store {
  return new Proxy(memoryStore(), {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target)
      if (typeof value !== 'function' || name === 'close') return value
      return (...args: unknown[]) =>
        Reflect.get(target, 'away') === true ? Promise.reject(new Error('away')) : Reflect.apply(value, target, args)
    },
  })
}

let owners = 0

/** A key of an owner of its own. */
const own = (keys: ApiKeys): Promise<IssuedKey> => keys.create({ as: 'application', ownerId: `${++owners}`, name: 'client' })

/** The address at which this key's rotation meets these faults, for a client with an address of its own. */
function open(served: Served, wire: Wire, issued: IssuedKey, faults: readonly Fault[]): ReturnType<Line['open']> {
  const { url, attempts } = line.open({
    upstream: served.url,
    address: `10.0.${Number(issued.key.ownerId) >> 8}.${Number(issued.key.ownerId) & 255}`,
    faults,
    async done() {
      if (!rotated.has(issued.key.ownerId)) await once(commits, issued.key.ownerId)
    },
    storeAway: served.storeAway,
  })
  return { url: url + wire.path(issued), attempts }
}

/** How many rotations an owner with one key has made, whether they gave it another secret or a successor. */
async function rotations(keys: ApiKeys, { key: { ownerId } }: IssuedKey): Promise<number> {
  const { items } = await keys.list({ ownerId })
  return items.reduce((sum, { generation }) => sum + generation, 0) - 1
}

function secretIn(wire: Wire, answer: Attempt['answer']): string | undefined {
  return answer?.status === 200 ? wire.secretOf(answer.text) : undefined
}

/** A field of a body, also of one that was not read as JSON; undefined where the body is not whole. */
function field(body: unknown, name: string): string | undefined {
  try {
    const value = typeof body === 'string' ? JSON.parse(body) : body
    return value?.[name]
  } catch {
    return undefined
  }
}

/** What Python offers, once for each version of urllib3 on this machine. */
function pythons(): Client[] {
  const found = new Map<string, string>()
  for (const python of ['python3', '/usr/bin/python3']) {
    const { stdout, status } = spawnSync(python, ['-c', 'import requests, urllib3; print(urllib3.__version__)'], { encoding: 'utf8' })
    if (status === 0 && !found.has(stdout.trim())) found.set(stdout.trim(), python)
  }
  if (found.size === 0) console.warn('The clients in Python are left out: no python3 with urllib3 and requests was found.')
  return [...found].flatMap(([version, python]) => {
    const client = (name: string, except: readonly string[]): Client => ({
      title: `${name} with urllib3 ${version}`,
      command: [python, '-B', join(CLIENTS, 'run.py'), name],
      except,
    })
    return [client('urllib3', []), client('requests', CUT_BODIES)]
  })
}
