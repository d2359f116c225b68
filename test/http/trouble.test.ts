import crypto from 'node:crypto'
import type { Server } from 'node:http'
import express from 'express'
import {
  type ApiKeyError,
  type ApiKeys,
  type ApiKeysOptions,
  bearerAuth,
  contracts,
  createApiKeys,
  type Denial,
  keyRouter,
  memoryStore,
  type Store,
} from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import express4 from 'express4'
import { atEnd } from '../support/cleanup.js'
import { TestClock } from '../support/clock.js'
import { type Checked, exchange } from '../support/contract.js'
import { SERVER_SECRET } from '../support/process.js'

interface Scene {
  readonly keys: ApiKeys
  readonly url: string
  readonly told: ApiKeyError[]
  readonly secret: string
}

const failing = (error: unknown) => (): never => {
  throw error
}

async function scene(
  before: (app: express.Express, keys: ApiKeys) => void = () => {},
  {
    contract = contracts.standard,
    framework = express,
    ...options
  }: Partial<ApiKeysOptions> & { contract?: Contract; framework?: typeof express } = {},
): Promise<Scene> {
  const told: ApiKeyError[] = []
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, onError: (error) => told.push(error), ...options })
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['api_keys:read'] })
  const app = framework()
  before(app, keys)
  app.use('/keys', keyRouter(keys, { contract }))
  app.get('/data', bearerAuth(keys), (_req, res) => {
    res.json({})
  })
  const server: Server = await new Promise((resolve) => {
    const listening = app.listen(0, '127.0.0.1', () => resolve(listening))
  })
  atEnd(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
    await keys.close()
  })
  return { keys, told, secret, url: `http://127.0.0.1:${(server.address() as { port: number }).port}` }
}

const FRAMEWORKS = [
  ['Express 5', express],
  ['Express 4', express4 as unknown as typeof express],
] as const

describe.each(FRAMEWORKS)('on %s', (_name, framework) => {
  test.each<[string, Partial<Contract>]>([
    ['throws', { failure: failing(new Error('of the contract')) }],
    ['returns nothing', { failure: (() => undefined) as never }],
    ['returns what cannot be written', { failure: () => ({ body: { n: 1n } }) }],
  ])('a contract whose failure %s is answered for with 500, and told of', async (_what, broken) => {
    const { url, told } = await scene(undefined, { contract: { ...contracts.standard, ...broken }, framework })
    const answer = await exchange(url, { path: '/keys/self/rotate' })
    expect([answer.status, answer.body.code]).toEqual([500, 'internal_error'])
    expect(told).toMatchObject([{ code: 'internal_error', cause: expect.any(Error) }])
  })

  test.each<[string, (res: express.Response) => void]>([
    [
      'writeHead',
      (res) => {
        res.writeHead = failing(new Error('of a hook'))
      },
    ],
    [
      'end',
      (res) => {
        res.end = failing(new Error('of a hook'))
      },
    ],
    [
      'setHeader',
      (res) => {
        res.setHeader = failing(new Error('of a hook'))
      },
    ],
  ])('a hook on %s that throws is told of, the client hears that something went wrong, and the process lives', async (what, hook) => {
    const { url, told, secret, keys } = await scene(
      (app) =>
        app.use((_req, res, next) => {
          hook(res)
          next()
        }),
      { framework },
    )
    for (const sent of [
      { path: '/keys/self/rotate' },
      { method: 'GET', path: '/keys', secret: 'sk_live_none' },
      { method: 'GET', path: '/data' },
    ]) {
      const answer = await exchange(url, sent)
      expect([sent.path, answer.status, answer.body.code]).toEqual([sent.path, 500, 'internal_error'])
    }
    // What was done is not told of as if it had not been.
    const done = await exchange(url, { path: '/keys/self/rotate', secret, idempotencyKey: 'k' })
    const generation = (await keys.list({ ownerId: 'acme' })).items[0]?.generation
    // The headers of a limit are set before anything is done.
    expect([done.status, done.body.code, generation]).toEqual(
      what === 'setHeader' ? [500, 'internal_error', 1] : [503, 'outcome_unknown', 2],
    )
    expect(told.every(({ cause }) => String(cause).includes('of a hook'))).toBe(true)
    expect(told.length).toBeGreaterThanOrEqual(4)
  })
})

test.each([contracts.standard, contracts.suwappu])(
  'a fault in the program is no fault of the store: $name says 500, and nothing has changed',
  async (contract) => {
    const { url, told, secret, keys } = await scene(undefined, { contract })
    const real = crypto.randomBytes
    jest.spyOn(crypto, 'randomBytes').mockImplementation((() => failing(new Error('no entropy'))()) as never)
    const path = contract === contracts.suwappu ? '/keys/keys/rotate' : '/keys/self/rotate'
    const answer = await exchange(url, { path, secret, idempotencyKey: 'k' })
    jest.restoreAllMocks()
    expect(crypto.randomBytes).toBe(real)
    expect(answer.status).toBe(500)
    expect(answer.body).toMatchObject(
      contract === contracts.suwappu ? { success: false, error: 'Key rotation failed' } : { code: 'internal_error' },
    )
    expect(told).toMatchObject([{ code: 'internal_error', cause: { message: 'no entropy' } }])
    expect((await keys.list({ ownerId: 'acme' })).items[0]?.generation).toBe(1)
    expect((await exchange(url, { path, secret, idempotencyKey: 'k' })).status).toBe(200)
  },
)

describe('a fault of the store', () => {
  const broken = (fault: () => unknown): { readonly store: Store; readonly set: (on: boolean) => void } => {
    let on = false
    const inner = memoryStore()
    const store = new Proxy(inner, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name, target)
        return on && typeof value === 'function' ? failing(fault()) : value
      },
    })
    return {
      store,
      set(value) {
        on = value
      },
    }
  }

  test('is told once for each cause and minute, with the cause, however many requests meet it; the client hears 503', async () => {
    const clock = new TestClock()
    let code = '08006'
    const { store, set } = broken(() => Object.assign(new Error('of the driver'), { code }))
    const { url, told, secret } = await scene(undefined, { store, clock })
    set(true)
    const ask = async (): Promise<void> => {
      for (const sent of [
        { path: '/keys/self/rotate', secret },
        { method: 'GET', path: '/keys', secret },
        { method: 'GET', path: '/data', secret },
      ]) {
        for (let n = 0; n < 3; n++) {
          const answer = await exchange(url, sent)
          expect([answer.status, answer.body.code, answer.headers['retry-after']]).toEqual([503, 'store_unavailable', '1'])
        }
      }
    }
    await ask()
    expect(told).toMatchObject([{ code: 'store_unavailable', cause: { message: 'of the driver', code: '08006' } }])
    clock.advance(59_999)
    await ask()
    expect(told).toHaveLength(1)
    code = '57P01'
    await ask()
    expect(told.map(({ cause }) => (cause as { code: string }).code)).toEqual(['08006', '57P01'])
    clock.advance(1)
    code = '08006'
    await ask()
    expect(told).toHaveLength(3)
    set(false)
    expect((await exchange(url, { method: 'GET', path: '/data', secret })).status).toBe(200)
  })
})

describe('a callback of the application that fails', () => {
  test.each<[string, () => unknown]>([
    ['throws', failing(new Error('of the logger sk_live_0123456789012345678901234567890123456789012345678'))],
    ['rejects', async () => Promise.reject(new Error('of the logger\nin two lines'))],
  ])('an onError that %s is told of on stderr, on one line without secrets, and nothing else happens', async (_how, onError) => {
    const lines: unknown[][] = []
    jest.spyOn(console, 'error').mockImplementation((...line: unknown[]) => void lines.push(line))
    const keys = createApiKeys({ store: { ...memoryStore(), read: failing(new Error('away')) }, serverSecret: SERVER_SECRET, onError })
    const { secret } = await createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET }).create({
      as: 'application',
      ownerId: 'o',
      name: 'n',
    })
    await expect(keys.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
    await new Promise(setImmediate)
    jest.restoreAllMocks()
    expect(lines).toEqual([[expect.stringMatching(/^express-api-keys: onError has failed: \(Error of the logger.*\)$/)]])
    expect(String(lines)).not.toContain('0123456789012345')
  })

  test('neither a console that throws nor an error that throws when it is looked at ends anything', async () => {
    const hostile = Object.defineProperty(new Error('x'), 'message', { get: failing(new Error('of a getter')) })
    jest.spyOn(console, 'error').mockImplementation(failing(new Error('of the console')))
    for (const onError of [failing(hostile), async () => Promise.reject(hostile), undefined]) {
      const read = (): Promise<never> => Promise.reject(hostile)
      const keys = createApiKeys({ store: { ...memoryStore(), read }, serverSecret: SERVER_SECRET, ...(onError && { onError }) })
      const { secret } = await createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET }).create({
        as: 'application',
        ownerId: 'o',
        name: 'n',
      })
      await expect(keys.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
      await new Promise(setImmediate)
    }
    jest.restoreAllMocks()
  })

  test('the default logger prints one line without secrets, and none of the driver’s own objects', async () => {
    const lines: unknown[][] = []
    jest.spyOn(console, 'error').mockImplementation((...line: unknown[]) => void lines.push(line))
    const { secret } = await createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET }).create({
      as: 'application',
      ownerId: 'o',
      name: 'n',
    })
    const fault = Object.assign(new Error(`insert failed\nfor ${secret}`), { code: '08006', parameters: [secret], detail: secret })
    const keys = createApiKeys({ store: { ...memoryStore(), read: () => Promise.reject(fault) }, serverSecret: SERVER_SECRET })
    await expect(keys.verify(secret)).rejects.toMatchObject({ code: 'store_unavailable' })
    jest.restoreAllMocks()
    expect(lines).toEqual([
      ['express-api-keys: store_unavailable: The store could not be asked. (Error 08006 insert failed for [redacted])'],
    ])
  })

  test('a listener that throws or rejects, and a cache that does, change no answer', async () => {
    const nothing = failing(new Error('of the cache'))
    const cache = {
      get: nothing,
      fill: nothing,
      bury: async () => Promise.reject(new Error('of the cache')),
      forget: nothing,
      close: nothing,
    }
    const { keys, told, secret, url } = await scene(undefined, { cache })
    keys.on('rotated', failing(new Error('of a listener')))
    keys.on('denied', async () => Promise.reject(new Error('of a listener')))
    expect((await exchange(url, { method: 'GET', path: '/data' })).status).toBe(401)
    expect((await exchange(url, { method: 'GET', path: '/data', secret })).status).toBe(200)
    expect((await exchange(url, { path: '/keys/self/rotate', secret })).status).toBe(200)
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
    expect(new Set(told.map(({ cause }) => (cause as Error).message))).toEqual(new Set(['of a listener', 'of the cache']))
  })
})

describe.each(FRAMEWORKS)('an address that cannot be had, on %s', (_name, framework) => {
  test.each<[string, (app: express.Express) => void, readonly string[]]>([
    [
      'since the application does not like what was written',
      (app) =>
        app.set('trust proxy', (address: string) => {
          if (address === 'unknown') throw new Error('of the application')
          return true
        }),
      ['X-Forwarded-For', '192.0.2.1, unknown'],
    ],
    [
      'since somebody has destroyed the request',
      (app) =>
        app.use((req, _res, next) => {
          Object.defineProperty(req, 'socket', { value: null })
          next()
        }),
      [],
    ],
  ])('refuses nobody and ends nothing: %s', async (_why, before, headers) => {
    const { url, keys, secret } = await scene(before, { framework })
    const denials: Denial[] = []
    keys.on('denied', (denial) => denials.push(denial))
    for (const sent of [{ method: 'GET', path: '/keys' }, { method: 'GET', path: '/data' }, { path: '/keys/self/rotate' }]) {
      expect([sent.path, (await exchange(url, { ...sent, headers })).status]).toEqual([sent.path, 401])
    }
    expect((await exchange(url, { method: 'GET', path: '/data', secret, headers })).status).toBe(200)
    expect((await exchange(url, { path: '/keys/self/rotate', secret, headers })).status).toBe(200)
    await new Promise(setImmediate)
    expect(denials.map(({ origin }) => origin.ip)).toEqual([undefined, undefined, undefined])
  })
})

describe('a contract', () => {
  test.each<[string, () => unknown]>([
    ['a promise', async () => ({})],
    ['a promise that rejects', async () => Promise.reject(new Error('of the contract'))],
    ['nothing', () => undefined],
    ['a text', () => 'done'],
  ])('whose success is %s does not lose the new secret in silence', async (_what, success) => {
    const contract = { ...contracts.standard, routes: contracts.standard.routes.map((route) => ({ ...route, success })) } as Contract
    const { url, told, secret } = await scene(undefined, { contract })
    const answer = await exchange(url, { path: '/keys/self/rotate', secret, idempotencyKey: 'k' })
    expect([answer.status, answer.body.code, told.map(({ code }) => code)]).toEqual([503, 'outcome_unknown', ['outcome_unknown']])
  })

  test('whose failure is a promise that rejects is answered for, and ends nothing', async () => {
    const failure = (async () => Promise.reject(new Error('of the contract'))) as never
    const { url, told } = await scene(undefined, { contract: { ...contracts.standard, failure } })
    expect((await exchange(url, { path: '/keys/self/rotate' })).status).toBe(500)
    await new Promise(setImmediate)
    expect(told).toMatchObject([{ code: 'internal_error' }])
  })
})

describe('a cache of the application’s own', () => {
  const nothing = (): never => failing(new Error('of the cache'))()
  const silent = (): Promise<never> => new Promise(() => {})
  const sound = {
    get: async () => undefined,
    fill: async () => {},
    bury: async () => true,
    forget: async () => {},
    close: async () => {},
  } as const
  const within = { counted: true, hits: 1, waitMs: 30_000, at: 5 }
  const counting = (counters: object): object => ({
    counters: () => ({ hit: async () => within, takeBack: async () => {}, ...counters }),
  })
  const saying = (wrong: object): object => counting({ hit: async () => ({ ...within, ...wrong }) })

  test.each<[string, object]>([
    ['whose get resolves with null', { get: async () => null }],
    ['whose get resolves with a text', { get: async () => 'a.mac.body' }],
    ['whose get resolves with a number for a value', { get: async () => ({ value: 5, timeMs: 0 }) }],
    ['whose get resolves with no time', { get: async () => ({ value: null }) }],
    ['whose get never answers', { get: silent }],
    ['whose bury resolves with nothing', { bury: async () => undefined }],
    ['whose bury never answers', { bury: silent }],
    ['whose counters throws', { counters: nothing }],
    ['whose counters returns nothing', { counters: () => undefined }],
    ['whose hit throws', counting({ hit: nothing })],
    ['whose hit rejects', counting({ hit: async () => nothing() })],
    ['whose hit resolves with null', counting({ hit: async () => null })],
    ['whose hit is counted or not', saying({ counted: undefined })],
    ['whose hit is refused below zero', saying({ counted: false, hits: -1 })],
    ['whose hits are a text', saying({ hits: '1' })],
    ['whose hits are more than the limit', saying({ hits: 1e9 })],
    ['whose hit has no wait', saying({ waitMs: undefined })],
    ['whose hit has a wait below zero', saying({ waitMs: -1 })],
    ['whose hit has a wait of more than a window', saying({ counted: false, waitMs: 3_600_001 })],
    ['whose hit has no instant', saying({ at: Number.NaN })],
    ['whose hit never answers', counting({ hit: silent })],
    ['whose takeBack throws', counting({ takeBack: nothing })],
    ['whose takeBack never answers', counting({ takeBack: silent })],
  ])('%s changes no answer, and is told of', async (_what, parts) => {
    const { told, secret, url, keys } = await scene(undefined, { cache: { ...sound, ...parts } as never })
    const rotation = { path: '/keys/self/rotate', secret, idempotencyKey: 'k' }
    const first = await exchange(url, rotation)
    expect([first.status, first.headers['idempotent-replayed']]).toEqual([200, undefined])
    const again = await exchange(url, rotation)
    expect([again.status, again.headers['idempotent-replayed'], again.body.secret]).toEqual([200, 'true', first.body.secret])
    expect((await exchange(url, { method: 'GET', path: '/data', secret: first.body.secret })).status).toBe(200)
    expect((await keys.list({ ownerId: 'acme' })).items[0]?.generation).toBe(2)
    // What no answer waits for is told of later.
    while (told.length === 0) await new Promise(setImmediate)
    const causes = told.map(({ cause }) => String(cause))
    for (const line of causes) expect(line).toMatch(/of the cache|The cache gave|undefined/)
  })
})

describe('a refusal', () => {
  test('is told to those who listen, with the reason that the client is not told', async () => {
    const { keys, secret, url } = await scene((app, own) => {
      app.get('/scoped', bearerAuth(own, { scope: 'a' }), (_req, res) => {
        res.json({})
      })
    })
    const denials: Denial[] = []
    keys.on('denied', (denial) => denials.push(denial))
    const make = (): ReturnType<ApiKeys['create']> => keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const [rotated, revoked, expired] = [await make(), await make(), await make()]
    await keys.rotate({ as: { secret: rotated.secret } })
    await keys.revoke({ as: 'application', id: revoked.key.id })
    await keys.update({ as: 'application', id: expired.key.id, changes: { expiresAt: new Date(1) } })
    const unknown = await createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET }).create({
      as: 'application',
      ownerId: 'o',
      name: 'n',
    })
    const headers = ['User-Agent', 'tester/1']
    const seen: [Partial<Denial>, Checked][] = []
    for (const [path, presented] of [
      ['/data', undefined],
      ['/data', 'a b'],
      ['/data', 'sk_live_x'],
      ['/data', unknown.secret],
      ['/data', rotated.secret],
      ['/data', revoked.secret],
      ['/data', expired.secret],
      ['/scoped', secret],
      ['/keys', unknown.secret],
      ['/keys/self/rotate', unknown.secret],
      ['/keys/self/rotate', rotated.secret],
      ['/keys/self/rotate', revoked.secret],
      ['/keys/self/rotate', expired.secret],
    ] as const) {
      const method = path.endsWith('rotate') ? 'POST' : 'GET'
      const answer = await exchange(url, { method, path, headers, ...(presented === undefined ? {} : { secret: presented }) })
      await new Promise(setImmediate)
      seen.push([denials.at(-1) ?? {}, answer])
    }
    expect(seen.map(([{ code, reason }]) => [code, reason])).toEqual([
      ['credential_missing', undefined],
      ['credential_malformed', undefined],
      ['invalid_key', 'malformed'],
      ['invalid_key', 'unknown'],
      ['invalid_key', 'rotated'],
      ['invalid_key', 'revoked'],
      ['invalid_key', 'expired'],
      ['insufficient_scope', undefined],
      ['invalid_key', 'unknown'],
      ['invalid_key', 'unknown'],
      ['invalid_key', 'rotated'],
      ['invalid_key', 'revoked'],
      ['invalid_key', 'expired'],
    ])
    for (const [{ origin }, { body }] of seen) {
      expect(origin).toEqual({ ip: '127.0.0.1', userAgent: 'tester/1' })
      expect(JSON.stringify(body)).not.toMatch(/unknown|rotated|revoked|expired/)
    }
    expect(denials).toHaveLength(seen.length)
    const [weak] = (await keys.list({ ownerId: 'acme' })).items.slice(-1)
    expect(seen.map(([{ keyId }]) => keyId).slice(7)).toEqual([
      weak?.id,
      undefined,
      undefined,
      rotated.key.id,
      revoked.key.id,
      expired.key.id,
    ])
  })

  test('of a stranger costs as little with an Idempotency-Key as without where nothing can be asked for again', async () => {
    const store = memoryStore()
    const reads = jest.spyOn(store, 'read')
    const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, onError: () => {} })
    const app = express()
    app.use('/keys', keyRouter(keys, { failuresPerMinute: 5 }))
    const server: Server = await new Promise((resolve) => {
      const listening = app.listen(0, '127.0.0.1', () => resolve(listening))
    })
    atEnd(async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    })
    const url = `http://127.0.0.1:${(server.address() as { port: number }).port}`
    const strangers = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
    const statuses: number[] = []
    for (let n = 0; n < 50; n++) {
      const { secret } = await strangers.create({ as: 'application', ownerId: 'o', name: 'n' })
      statuses.push((await exchange(url, { method: 'GET', path: '/keys', secret, idempotencyKey: `guess-${n}` })).status)
    }
    expect(statuses).toEqual([...Array(5).fill(401), ...Array(45).fill(429)])
    expect(reads).toHaveBeenCalledTimes(5)
  })
})

test('the document is made once for each path, and an X-Request-Id that is too long is not looked into', async () => {
  let made = 0
  const routes = new Proxy(contracts.standard.routes, {
    get(target, name, receiver) {
      if (name === Symbol.iterator) made++
      return Reflect.get(target, name, receiver)
    },
  })
  const { url } = await scene(undefined, { contract: { ...contracts.standard, requestId: true, routes } })
  const before = made
  const answers: Checked[] = []
  const test = jest.spyOn(RegExp.prototype, 'test')
  for (const length of [5, 128, 129, 15_000]) {
    // Too few word characters in a row for a secret.
    const id = 'a-'.repeat(length).slice(0, length)
    answers.push(await exchange(url, { method: 'GET', path: '/keys/openapi.json', headers: ['X-Request-Id', id] }))
    expect([length, answers.at(-1)?.headers['x-request-id'] === id]).toEqual([length, length <= 128])
  }
  const longest = Math.max(...test.mock.calls.filter((_call, i) => String(test.mock.contexts[i]).includes('49')).map(([id]) => id.length))
  jest.restoreAllMocks()
  // Once for its check, and once for the document.
  expect([longest, made - before]).toEqual([128, 2])
  expect(answers.map(({ body }) => body)).toEqual(answers.map(() => answers[0]?.body))
})

test('a guard that stands before the router is told of at the first request that got past it', async () => {
  const { told, secret, url } = await scene((app, keys) => app.use(bearerAuth(keys)))
  const first = await exchange(url, { path: '/keys/self/rotate', secret, idempotencyKey: 'k' })
  expect(first.status).toBe(200)
  expect(told).toMatchObject([{ code: 'invalid_option', message: expect.stringContaining('Mount keyRouter first.') }])
  await exchange(url, { path: '/keys/self/rotate', secret: first.body.secret, idempotencyKey: 'l' })
  expect(told).toHaveLength(1)
})
