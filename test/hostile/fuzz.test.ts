import { once } from 'node:events'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js'
import type { ErrorRequestHandler } from 'express'
import type { ApiKey, ApiKeys } from 'express-api-keys'
import fc from 'fast-check'
import jwt from 'jsonwebtoken'
import Database from 'libsql'
import { exchangeBytes, type RawAnswer, requestBytes } from '../support/bytes.js'
import { atEnd } from '../support/cleanup.js'
import { SERVER_SECRET } from '../support/process.js'
import { stores } from '../support/stores.js'
import { examples, type Hostile, hostileRequests } from './requests.js'

/** Requests for each contract and server. `npm run test:fuzz` makes 5,000. */
const RUNS = Number(process.env.FUZZ_RUNS ?? 200)
const SHARED = 'the-shared-secret-of-the-operators-of-this-test'

/** Stand in a request for what only the run knows. */
const MARKS = ['worker', 'admin', 'rotation', 'unknown', 'operator', 'workerId', 'adminId', 'foreignId'] as const
type Marked = { readonly [mark in (typeof MARKS)[number]]: string }

interface Target {
  readonly port: number
  readonly keys: ApiKeys
  readonly contracts: typeof import('express-api-keys').contracts
}

const everyServer: readonly (readonly [framework: string, store: string])[] = [
  ['express', 'memory'],
  ['express4', 'SQLite'],
]

describe.each(everyServer)('on %s and %s', (framework, store) => {
  let here: Target
  let marked: Marked
  let foreign: ApiKey
  let foreignRotation: string
  let everIssued: string[]
  beforeAll(async () => {
    here = await serveOn(framework, store)
    const scopes = ['api_keys:read', 'api_keys:write']
    const {
      key,
      secret,
      rotationSecret = '',
    } = await here.keys.create({ as: 'application', ownerId: 'rival', name: 'foreign', scopes, rotationSecret: true })
    foreign = key
    foreignRotation = rotationSecret
    everIssued = [secret]
  })

  /** Two keys and an operator of one owner, and a foreign key beside them. */
  async function stage(rotationSecret: boolean): Promise<Marked> {
    const worker = await here.keys.create({
      as: 'application',
      ownerId: 'acme',
      name: 'worker',
      ...(rotationSecret ? { rotationSecret } : {}),
    })
    const admin = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:read', 'api_keys:write'] })
    const claims = { iss: 'https://id.example', aud: 'keys', sub: 'ada', owners: ['acme'], scope: 'api_keys:read api_keys:write' }
    const operator = jwt.sign(claims, SHARED, { expiresIn: '1h' })
    const { rotationSecret: rotation = foreignRotation } = worker
    everIssued.push(worker.secret, admin.secret, rotation, operator)
    const ids = { workerId: worker.key.id, adminId: admin.key.id, foreignId: foreign.id }
    return { ...ids, worker: worker.secret, admin: admin.secret, rotation, operator, unknown: unknownSecret }
  }

  test.each(['standard', 'redditFind', 'agents', 'rixl', 'suwappu', 'blendFi', 'bearerAuth'] as const)(
    'whatever is sent to %s, it answers in its own words, keeps its secrets and changes only what it says it changed',
    async (name) => {
      const contract = name === 'bearerAuth' ? undefined : here.contracts[name]
      const failure = new Ajv2020().compile((contract ?? here.contracts.standard).failureSchema ?? false)
      const statuses = new Map<number, number>()
      marked = await stage(name === 'agents')
      await fc.assert(
        fc.asyncProperty(hostileRequests(contract), async (request) => {
          const bytes = bytesOf(request, marked)
          const known = [SERVER_SECRET, SHARED, unknownSecret, ...everIssued]
          const before = await look()
          const answer = await exchangeBytes(here.port, bytes, { hangUp: request.framing === 'too long' })
          statuses.set(answer?.status ?? 0, (statuses.get(answer?.status ?? 0) ?? 0) + 1)
          if (answer !== undefined) holds(answer, request, failure, known)
          pristine()
          const after = await look()
          expect(after.foreign).toEqual(before.foreign)
          // A request that Node's parser gave up half-way may have been carried out all the same, as may one of which no answer came.
          const told = answer?.headers['content-type'] !== undefined && answer.status >= 400
          const harmless = told || request.method === 'GET' || request.method === 'HEAD'
          if (harmless) expect(after).toEqual(before)
          else marked = await stage(name === 'agents')
        }),
        {
          // Those of agents cost two bcrypt hashes each.
          numRuns: name === 'agents' ? RUNS / 4 : RUNS,
          interruptAfterTimeLimit: 100 * RUNS,
          markInterruptAsFailure: true,
          examples: examples(contract).map((request) => [request]),
        },
      )
      // Some went through, and some did not: the requests were neither all nonsense nor all harmless.
      expect([statuses.has(200), [...statuses.keys()].filter((status) => status >= 400).length > 2]).toEqual([true, true])
      if (process.env.FUZZ_RUNS !== undefined) console.info(name, Object.fromEntries([...statuses].sort()))
    },
  )

  /** All that a request could change, but for when a key was last used. */
  async function look(): Promise<{ foreign: unknown; own: unknown }> {
    const facts = async (id: string): Promise<object> => {
      const { lastUsedAt: _at, lastUsedIp: _ip, lastUsedUserAgent: _agent, ...key } = (await here.keys.get(id)) ?? {}
      return key
    }
    const [{ items: acme }, { items: rival }] = await Promise.all([
      here.keys.list({ ownerId: 'acme', limit: 1 }),
      here.keys.list({ ownerId: 'rival' }),
    ])
    const own = [await facts(marked.workerId), await facts(marked.adminId), acme[0]?.id]
    return { foreign: [await facts(foreign.id), rival.length], own }
  }
})

/** Well-formed, and nobody's. */
const unknownSecret = `sk_live_${'0'.repeat(43)}1Vxh1Z`

function holds(answer: RawAnswer, { method }: Hostile, failure: ValidateFunction, known: readonly string[]): void {
  const { status, headers, body } = answer
  const whole = JSON.stringify(headers) + body
  expect(status).toBeLessThan(500)
  expect(known.filter((secret) => whole.includes(secret))).toEqual([])
  const issued = /(sk|rot)_(live|test)_[0-9A-Za-z]{49}/.test(whole)
  expect(issued && !(status >= 200 && status < 300)).toBe(false)
  // What Node's own parser refuses, and what the application answers, is not the router's.
  if (headers['content-type'] === undefined || headers['x-answered-by'] === 'application') return
  if (status < 400 || method === 'HEAD') return
  expect([JSON.parse(body), failure(JSON.parse(body)), failure.errors]).toEqual([JSON.parse(body), true, null])
  expect(headers['cache-control']).toBe('no-store')
  if (status === 401) expect(headers['www-authenticate']).toMatch(/^Bearer realm="api"/)
}

const PROTOTYPES = [Object.prototype, Array.prototype, Function.prototype, String.prototype]
const before = PROTOTYPES.map((each) => Reflect.ownKeys(each).length)

function pristine(): void {
  expect(PROTOTYPES.map((each) => Reflect.ownKeys(each).length)).toEqual(before)
  expect(({} as { polluted?: unknown }).polluted).toBeUndefined()
}

function bytesOf({ method, path, headers, body, framing }: Hostile, marked: Marked): Buffer {
  const fill = (text: string): string => text.replaceAll(/\{(\w+)\}/g, (all, mark) => marked[mark as keyof Marked] ?? all)
  const filled = Buffer.from(fill(body.toString('latin1')), 'latin1')
  const chunks = framing === 'chunks' || framing === 'both'
  const length = filled.length + (framing === 'too short' ? -Math.min(filled.length, 3) : framing === 'too long' ? 5 : 0)
  const lines: [string, string][] = [
    ['Host', 'x'],
    // First, so that whatever comes after cannot keep the connection open.
    ['Connection', 'close'],
    ...headers.map(([name, value]): [string, string] => [name, fill(value)]),
    ...(framing === 'none' || framing === 'chunks' ? [] : [['Content-Length', String(length)] as [string, string]]),
    ...(chunks ? [['Transfer-Encoding', 'chunked'] as [string, string]] : []),
  ]
  const sent = chunks
    ? Buffer.concat([
        Buffer.from(filled.length === 0 ? '' : `${filled.length.toString(16)}\r\n`),
        filled,
        Buffer.from(filled.length === 0 ? '0\r\n\r\n' : '\r\n0\r\n\r\n'),
      ])
    : filled
  return requestBytes(method, fill(path), lines, sent)
}

/** All of the package on the Express that is asked for: a copy of its own, as an application would have it. */
async function serveOn(framework: string, store: string): Promise<Target> {
  const served: Target[] = []
  await jest.isolateModulesAsync(async () => {
    jest.doMock('express', () => jest.requireActual(framework))
    const { default: express } = await import('express')
    const { bearerAuth, contracts, createApiKeys, keyRouter, memoryStore } = await import('express-api-keys')
    const { operatorJwt } = await import('express-api-keys/jwt')
    const { sqliteStore } = await import('express-api-keys/sqlite')
    const file = store === 'memory' ? undefined : await stores.find(([name]) => name === store)?.[1]()
    const kept = file === undefined ? memoryStore() : sqliteStore(new Database(file.url))
    // Nobody waits here: neither for leases, nor for the beat of refused rotation secrets.
    const clock = { monotonicMs: () => performance.now(), wallMs: () => Date.now(), sleep: async () => {} }
    const keys = createApiKeys({ store: kept, serverSecret: SERVER_SECRET, leaseMs: 5_000, onError: () => {}, clock })
    await keys.migrate()
    const operators = operatorJwt({ issuer: 'https://id.example', audience: 'keys', algorithms: ['HS256'], key: SHARED })
    const app = express()
    app.set('trust proxy', true)
    app.set('query parser', 'extended')
    for (const [name, contract] of Object.entries(contracts)) {
      const more = contract.operators === true ? { operators } : {}
      app.use(`/${name}`, keyRouter(keys, { contract, limits: false, failuresPerMinute: false, ...more }))
    }
    app.get('/data', bearerAuth(keys, { failuresPerMinute: false, deprecation: true }), (req, res) => {
      res.json({ id: req.apiKey?.id })
    })
    app.use((_req, res) => {
      res.status(404).set('X-Answered-By', 'application').send('none of ours')
    })
    const whatIsPassedOn: ErrorRequestHandler = (error, _req, res, _next) => {
      res.status(500).send(String(error))
    }
    app.use(whatIsPassedOn)
    const server: Server = app.listen(0, '127.0.0.1')
    await once(server, 'listening')
    atEnd(async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
      await keys.close()
    })
    served.push({ port: (server.address() as AddressInfo).port, keys, contracts })
  })
  const [target] = served
  if (target === undefined) throw new Error('Nothing was served.')
  return target
}
