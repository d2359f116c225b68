import { randomUUID } from 'node:crypto'
import bcrypt from 'bcrypt'
import { type ApiKeyError, type ApiKeys, contracts, createApiKeys, type IssuedKey, memoryStore, type Store } from 'express-api-keys'
import { replaySeals } from '../../src/core/change/replay-seal.js'
import { TestClock } from '../support/clock.js'
import type { Checked, Sent } from '../support/contract.js'
import { type Losing, serveLosing } from '../support/losing.js'
import { SERVER_SECRET } from '../support/process.js'
import { stores } from '../support/stores.js'

interface Client {
  readonly contract: (typeof contracts)[keyof typeof contracts]
  make(keys: ApiKeys): Promise<IssuedKey>
  request(made: IssuedKey): Sent
  secretOf(answer: Checked | undefined): string
}

const own = (keys: ApiKeys, more: object = {}): Promise<IssuedKey> =>
  keys.create({ as: 'application', ownerId: 'acme', name: 'client', ...more })

const CLIENTS: readonly Client[] = [
  {
    contract: contracts.standard,
    make: own,
    request: ({ secret }) => ({ path: '/self/rotate', secret, idempotencyKey: 'lost' }),
    secretOf: (answer) => answer?.body.secret,
  },
  {
    contract: contracts.suwappu,
    make: own,
    request: ({ secret }) => ({ path: '/keys/rotate', secret, idempotencyKey: 'lost' }),
    secretOf: (answer) => answer?.body.api_key,
  },
  {
    contract: contracts.blendFi,
    make: own,
    request: ({ key, secret }) => ({ path: `/${key.id}/rotate`, secret, idempotencyKey: 'lost' }),
    secretOf: (answer) => answer?.body.api_key,
  },
  {
    contract: contracts.agents,
    make: (keys) => own(keys, { rotationSecret: true }),
    request: ({ secret, rotationSecret }) => ({ path: '/self/rotate-key', secret, idempotencyKey: 'lost', body: { rotationSecret } }),
    secretOf: (answer) => answer?.body.apiKey,
  },
]

const everywhere = CLIENTS.flatMap((client) => stores.map(([name, make]) => [client.contract.name, name, client, make] as const))

describe('P2: a client ends with the one live secret', () => {
  test.each(everywhere)('after twelve lost answers in a row, on %s over %s', async (_contract, _store, client, makeStore) => {
    const here = await serveLosing(client.contract, (await makeStore()).store)
    const made = await client.make(here.keys)
    const request = client.request(made)
    here.lose(12)
    for (let n = 0; n < 12; n++) expect(await here.send(request)).toBeUndefined()
    const answer = await here.send(request)
    expect([answer?.status, answer?.headers['idempotent-replayed']]).toEqual([200, 'true'])
    expect([await here.accepted(made.secret), await here.accepted(client.secretOf(answer))]).toEqual([401, 200])
  })

  test.each(everywhere.filter(([contract]) => contract !== 'agents'))(
    'that repeats at once and without delay when its connection is cut, ten times, on %s over %s',
    async (_contract, _store, client, makeStore) => {
      const here = await serveLosing(client.contract, (await makeStore()).store)
      const made = await client.make(here.keys)
      here.lose(10, 'request')
      for (let n = 0; n < 10; n++) expect(await here.send(client.request(made))).toBeUndefined()
      const answer = await here.send(client.request(made))
      expect(answer?.status).toBe(200)
      expect([await here.accepted(made.secret), await here.accepted(client.secretOf(answer))]).toEqual([401, 200])
    },
  )

  test('that repeats an attempt before the first is through, where three attempts are allowed in fifteen minutes', async () => {
    const client = CLIENTS.find(({ contract }) => contract === contracts.agents) as Client
    const here = await serveLosing(client.contract, memoryStore())
    const made = await client.make(here.keys)
    const answers = await Promise.all(Array.from({ length: 8 }, () => here.send(client.request(made))))
    expect(answers.map((answer) => answer?.status)).toEqual(Array(8).fill(200))
    expect(new Set(answers.map(client.secretOf)).size).toBe(1)
  })

  test.each(everywhere)(
    'whatever a thief with its dead secret does at the same address, on %s over %s',
    async (_c, _s, client, makeStore) => {
      const { store } = await makeStore()
      const counted = counting(store)
      const here = await serveLosing(client.contract, counted.store)
      const made = await client.make(here.keys)
      const request = client.request(made)
      here.lose(1)
      await here.send(request)
      await counted.quiet()
      const before = counted.transactions()
      const guesses = await Promise.all(Array.from({ length: 160 }, () => here.send({ ...request, idempotencyKey: randomUUID() })))
      for (const guess of guesses) expect([401, 429]).toContain(guess?.status)
      await counted.quiet()
      // One at most, for the line in the audit trail that says that a dead secret was there.
      expect(counted.transactions() - before).toBeLessThanOrEqual(1)
      const answer = await here.send(request)
      expect([answer?.status, await here.accepted(client.secretOf(answer))]).toEqual([200, 200])
    },
  )

  test.each(everywhere)('after a time in which all answers were 503, on %s over %s', async (_contract, _store, client, makeStore) => {
    const { store } = await makeStore()
    let away = false
    const absent = new Proxy(store, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name, target)
        if (typeof value !== 'function' || name === 'close') return value
        return (...args: unknown[]) => (away ? Promise.reject(new Error('away')) : Reflect.apply(value, target, args))
      },
    })
    const here = await serveLosing(client.contract, absent)
    const made = await client.make(here.keys)
    const request = client.request(made)
    const trouble = async (): Promise<void> => {
      away = true
      for (let n = 0; n < 10; n++) expect((await here.send(request))?.status).toBe(503)
      away = false
    }
    await trouble()
    here.lose(1)
    await here.send(request)
    await trouble()
    const answer = await here.send(request)
    expect([answer?.status, await here.accepted(client.secretOf(answer))]).toEqual([200, 200])
  })
})

describe('a replay', () => {
  test.each(stores)('costs no transaction, no row lock and no bcrypt, however often it is asked for, on %s', async (_name, makeStore) => {
    const { store } = await makeStore()
    const counted = counting(store)
    const here = await serveLosing(contracts.agents, counted.store)
    const made = await own(here.keys, { rotationSecret: true })
    const request: Sent = {
      path: '/self/rotate-key',
      secret: made.secret,
      idempotencyKey: 'lost',
      body: { rotationSecret: made.rotationSecret },
    }
    const first = await here.send(request)
    expect(first?.status).toBe(200)
    await here.send(request)
    await counted.quiet()
    const before = [counted.transactions(), counted.locks()]
    const compares = jest.spyOn(bcrypt, 'compare')
    for (let n = 0; n < 100; n++) expect((await here.send(request))?.body).toEqual(first?.body)
    await counted.quiet()
    expect([counted.transactions(), counted.locks()]).toEqual(before)
    expect(compares).not.toHaveBeenCalled()
    compares.mockRestore()
    // It is in the audit trail all the same, once a minute.
    const types = (await here.keys.events({ id: made.key.id }))?.items.map(({ type }) => type)
    expect(types?.filter((type) => type === 'key.replayed')).toHaveLength(1)
  })

  test('is for the rotation secret too, though nobody compares its hash', async () => {
    const here = await serveLosing(contracts.agents, memoryStore(), { router: { limits: false } })
    const [made, other] = [await own(here.keys, { rotationSecret: true }), await own(here.keys, { rotationSecret: true })]
    const ask = (rotationSecret: string | undefined): Promise<Checked | undefined> =>
      here.send({ path: '/self/rotate-key', secret: made.secret, idempotencyKey: 'lost', body: { rotationSecret } })
    expect((await ask(made.rotationSecret))?.status).toBe(200)
    expect((await ask(other.rotationSecret))?.status).toBe(401)
    expect((await ask(made.rotationSecret))?.status).toBe(200)
  })

  test('of a rotation by the key itself is given whatever the key may do by now', async () => {
    const here = await serveLosing(contracts.redditFind, memoryStore())
    const made = await own(here.keys, { scopes: ['api_keys:write', 'a'] })
    const request = { path: `/${made.key.id}/rotate`, secret: made.secret, idempotencyKey: 'lost' }
    const first = await here.send(request)
    await here.keys.update({ as: 'application', id: made.key.id, changes: { scopes: [] } })
    expect([(await here.send(request))?.status, (await here.send(request))?.body]).toEqual([200, first?.body])
  })

  test.each(['api_keys:write', 'a'])(
    'of a change to another key is given only while the caller may still make it: not without %s',
    async (lost) => {
      const here = await serveLosing(contracts.standard, memoryStore())
      const caller = await own(here.keys, { scopes: ['api_keys:write', 'a'] })
      const target = await own(here.keys, { scopes: ['a'] })
      const requests = [
        { path: `/${target.key.id}/rotate`, secret: caller.secret, idempotencyKey: 'rotated' },
        { path: '/', secret: caller.secret, idempotencyKey: 'made', body: { name: 'n', scopes: ['a'] } },
      ]
      for (const request of requests) expect([200, 201]).toContain((await here.send(request))?.status)
      const scopes = ['api_keys:write', 'a'].filter((scope) => scope !== lost)
      await here.keys.update({ as: 'application', id: caller.key.id, changes: { scopes } })
      for (const request of requests) {
        const answer = await here.send(request)
        expect([answer?.status, answer?.body.code, JSON.stringify(answer?.body).includes('sk_live_')]).toEqual([
          403,
          'insufficient_scope',
          false,
        ])
      }
    },
  )
})

describe('P2: the window of an answer', () => {
  const slowCommit = (clock: TestClock, ms: () => number): Store => {
    const inner = memoryStore({ now: () => clock.wallMs() })
    return {
      ...inner,
      async transaction(work) {
        const result = await inner.transaction(work)
        clock.advance(ms())
        return result
      },
    }
  }

  test('counts from the commit, whatever that took', async () => {
    const clock = new TestClock()
    let commitMs = 0
    const keys = createApiKeys({ store: slowCommit(clock, () => commitMs), serverSecret: SERVER_SECRET, clock, replayWindowMs: 5_000 })
    const { secret } = await own(keys)
    commitMs = 8_000
    const rotate = (): Promise<IssuedKey> => keys.rotate({ as: { secret }, idempotencyKey: 'slow' })
    const first = await rotate()
    commitMs = 0
    clock.advance(4_999)
    expect((await rotate()).secret).toBe(first.secret)
    clock.advance(1)
    await expect(rotate()).rejects.toMatchObject({ code: 'invalid_key' })
  })

  test('where nobody has seen the commit, is open for ten minutes more than it is long, and then closed for good', async () => {
    const clock = new TestClock()
    const store = memoryStore({ now: () => clock.wallMs() })
    const deaf: Store = { ...store, settle: async () => {} }
    const keys = createApiKeys({ store: deaf, serverSecret: SERVER_SECRET, clock, replayWindowMs: 5_000 })
    const { secret } = await own(keys)
    const rotate = (): Promise<IssuedKey> => keys.rotate({ as: { secret }, idempotencyKey: 'unseen' })
    const first = await rotate()
    clock.advance(604_999)
    expect((await rotate()).secret).toBe(first.secret)
    clock.advance(1)
    await expect(rotate()).rejects.toMatchObject({ code: 'invalid_key' })
  })

  test('is not opened again by whoever moves its end in the store', async () => {
    const clock = new TestClock()
    const inner = memoryStore({ now: () => clock.wallMs() })
    const store: Store = {
      ...inner,
      settle: async () => {},
      eraseSeals: async () => {},
      async replays(ids) {
        const answer = await inner.replays(ids)
        return {
          ...answer,
          found: answer.found.map(({ record, made }) => ({ made, record: { ...record, expiresAt: Number.MAX_SAFE_INTEGER } })),
        }
      },
    }
    const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, clock, replayWindowMs: 5_000 })
    const { secret } = await own(keys)
    const rotate = (): Promise<IssuedKey> => keys.rotate({ as: { secret }, idempotencyKey: 'moved' })
    await rotate()
    clock.advance(605_000)
    await expect(rotate()).rejects.toMatchObject({ code: 'invalid_key' })
  })

  test.each<[string, (keys: ApiKeys, issued: IssuedKey, clock: TestClock) => Promise<unknown>]>([
    ['the window is over', async (_keys, _issued, clock) => clock.advance(600_000)],
    [
      'the new secret was used, and the grace after that is over',
      async (keys, { secret }, clock) => {
        await keys.verify(secret)
        await keys.verify(secret)
        while (keys.peek(secret) === undefined) await new Promise(setImmediate)
        for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
        clock.advance(10_001)
      },
    ],
  ])('P4: is followed by its erasure within seconds of traffic: when %s', async (_what, pass) => {
    const clock = new TestClock()
    const store = memoryStore({ now: () => clock.wallMs() })
    const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, clock })
    const { secret } = await own(keys)
    const other = await own(keys)
    const issued = await keys.rotate({ as: { secret }, idempotencyKey: 'kept' })
    const ids = replaySeals([Buffer.from(SERVER_SECRET)]).ids(issued.key.id, 'kept')
    const sealed = async (): Promise<unknown> => (await store.replays(ids)).found[0]?.record.sealed
    expect(await sealed()).toEqual(expect.any(String))
    await pass(keys, issued, clock)
    clock.advance(3_000)
    // Any request that reaches the store will do.
    await keys.verify(other.secret)
    await keys.get(other.key.id)
    for (let turn = 0; turn < 20 && (await sealed()) !== null; turn++) await new Promise(setImmediate)
    expect(await sealed()).toBeNull()
  })
})

describe('a rotation without an Idempotency-Key', () => {
  const [HERE, ELSEWHERE] = ['192.0.2.1', '198.51.100.7']
  const start = async (
    options: { readonly retryWithoutKey?: boolean; readonly trustProxy?: number | boolean } = { retryWithoutKey: true },
  ): Promise<{
    here: Losing
    clock: TestClock
    told: string[]
    made: IssuedKey
    ask(from: string, more?: Partial<Sent>): Promise<Checked | undefined>
  }> => {
    const clock = new TestClock()
    const told: string[] = []
    const { retryWithoutKey, ...rest } = options
    const here = await serveLosing(contracts.standard, memoryStore({ now: () => clock.wallMs() }), {
      clock,
      router: retryWithoutKey === undefined ? {} : { retryWithoutKey },
      onError: ({ code }: ApiKeyError) => told.push(code),
      ...rest,
    })
    const made = await own(here.keys)
    const ask = (from: string, more: Partial<Sent> = {}): Promise<Checked | undefined> =>
      here.send({ path: '/self/rotate', secret: made.secret, headers: ['X-Forwarded-For', from], ...more })
    return { here, clock, told, made, ask }
  }

  test('can be repeated with the dead secret from the same network, and its answer is the same', async () => {
    const { here, told, made, ask } = await start()
    here.lose(3)
    for (let n = 0; n < 3; n++) expect(await ask(HERE)).toBeUndefined()
    const answer = await ask(HERE)
    expect([answer?.status, answer?.headers['idempotent-replayed']]).toEqual([200, 'true'])
    expect([await here.accepted(made.secret), await here.accepted(answer?.body.secret)]).toEqual([401, 200])
    expect(told.filter((code) => code === 'retried_without_key')).toHaveLength(3)
    const types = async (): Promise<number> =>
      ((await here.keys.events({ id: made.key.id }))?.items ?? []).filter(({ type }) => type === 'key.replayed').length
    while ((await types()) < 3) await new Promise(setImmediate)
    expect(await types()).toBe(3)
  })

  test.each<[string, (scene: Awaited<ReturnType<typeof start>>) => Promise<Checked | undefined>]>([
    ['in another network', ({ ask }) => ask(ELSEWHERE)],
    [
      'in the same network, once the sixty seconds are over',
      async ({ ask, clock }) => {
        clock.advance(60_000)
        return ask(HERE)
      },
    ],
    [
      'in the same network, once the new secret was used',
      async ({ here, ask }) => {
        const { body } = (await ask(HERE)) ?? {}
        await here.keys.verify(body.secret)
        for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate)
        return ask(HERE)
      },
    ],
    ['with a body of another content', ({ ask }) => ask(HERE, { body: { retire: 'on-first-use' } })],
    ['who guesses that an Idempotency-Key will do', ({ ask, made }) => ask(HERE, { idempotencyKey: made.key.id })],
    [
      'after the next rotation',
      async ({ here, ask, made }) => {
        await here.keys.rotate({ as: 'application', id: made.key.id })
        return ask(HERE)
      },
    ],
  ])('gives nothing to a thief with the dead secret %s', async (_where, steal) => {
    const scene = await start()
    expect((await scene.ask(HERE))?.status).toBe(200)
    const stolen = await steal(scene)
    expect([stolen?.status, stolen?.body.code, JSON.stringify(stolen?.body).includes('sk_live_')]).toEqual([401, 'invalid_key', false])
  })

  test.each<[string, Parameters<typeof start>[0], Partial<Sent>]>([
    ['unless it is asked for', {}, {}],
    ['in an emergency', { retryWithoutKey: true }, { body: { emergency: true } }],
    ['where a proxy is there that nobody has told the application of', { retryWithoutKey: true, trustProxy: false }, {}],
    ['where any address is believed', { retryWithoutKey: true, trustProxy: true }, {}],
    ['where a proxy writes another header', { retryWithoutKey: true, trustProxy: false }, { headers: ['X-Real-IP', '192.0.2.1'] }],
    ['where a proxy writes Forwarded only', { retryWithoutKey: true }, { headers: ['Forwarded', 'for=192.0.2.1'] }],
    ['where the address is that of a proxy', { retryWithoutKey: true }, { headers: [] }],
    ['where there are more proxies than it knows of', { retryWithoutKey: true }, { headers: ['X-Forwarded-For', '192.0.2.1, 192.0.2.9'] }],
  ])('is carried out once, and not answered again, %s', async (_when, options, more) => {
    const { ask, told } = await start(options)
    expect((await ask(HERE, more))?.status).toBe(200)
    const again = await ask(HERE, more)
    expect([again?.status, told]).toEqual([401, []])
  })

  test('of another key is not answered again', async () => {
    const { here } = await start()
    const admin = await own(here.keys, { scopes: ['api_keys:write'] })
    const target = await own(here.keys)
    const request = { path: `/${target.key.id}/rotate`, secret: admin.secret, headers: ['X-Forwarded-For', HERE] }
    const [first, second] = [await here.send(request), await here.send(request)]
    expect([first?.body.key.generation, second?.body.key.generation, second?.headers['idempotent-replayed']]).toEqual([2, 3, undefined])
  })

  test('where both credentials are presented, is answered again unless that is switched off', async () => {
    for (const [retryWithoutKey, status] of [
      [undefined, 200],
      [false, 401],
    ] as const) {
      const router = retryWithoutKey === undefined ? {} : { retryWithoutKey }
      const here = await serveLosing(contracts.agents, memoryStore(), { router, trustProxy: false })
      const made = await own(here.keys, { rotationSecret: true })
      const request = { path: '/self/rotate-key', secret: made.secret, body: { rotationSecret: made.rotationSecret } }
      expect((await here.send(request))?.status).toBe(200)
      expect((await here.send(request))?.status).toBe(status)
    }
  })
})

/** A store that counts its transactions and the rows that they lock. */
function counting(inner: Store): { readonly store: Store; transactions(): number; locks(): number; quiet(): Promise<void> } {
  let [transactions, locks, open] = [0, 0, 0]
  const store: Store = Object.assign(Object.create(inner) as Store, {
    transaction: (async (work) => {
      transactions++
      open++
      try {
        return await inner.transaction((tx) =>
          work({
            ...tx,
            lockKeys(ids) {
              locks += ids.length
              return tx.lockKeys(ids)
            },
          }),
        )
      } finally {
        open--
      }
    }) satisfies Store['transaction'],
  })
  return {
    store,
    transactions: () => transactions,
    locks: () => locks,
    async quiet() {
      for (let turn = 0; turn < 50 || open > 0; turn++) await new Promise(setImmediate)
    },
  }
}
