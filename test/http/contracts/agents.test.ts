import { type ApiKeys, contracts, type JsonObject, memoryStore } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { everyStore, exchange, playContract, type Serving, serveContract } from '../../support/contract.js'
import { freshDatabase } from '../../support/postgres.js'
import { startServer } from '../../support/process.js'
import { startRedis } from '../../support/redis.js'

const contract = contracts.agents
const path = '/self/rotate-key'

playContract({
  contract,
  async prepare(keys) {
    const { key, secret, rotationSecret } = await keys.create({
      as: 'application',
      ownerId: 'agent-1',
      name: 'Scout',
      rotationSecret: true,
    })
    return { request: { path, secret, body: { rotationSecret } }, secret, retires: secret, id: key.id }
  },
  async prepareGuarded(keys) {
    const { secret, rotationSecret = '' } = await keys.create({
      as: 'application',
      ownerId: 'agent-1',
      name: 'Scout',
      rotationSecret: true,
    })
    return { request: { path, secret, body: { rotationSecret } }, rotationSecret }
  },
  secretOf: ({ body }) => body.apiKey,
  rotationSecretOf: ({ body }) => body.rotationSecret,
  published: { error: { code: 'invalid_key', message: 'Invalid API key or invalid rotation secret' } },
})

describe.each(everyStore)('on %s', (_name, makeStore) => {
  let here: Serving
  beforeAll(async () => {
    here = await serveContract(contract, await makeStore(), { limits: false })
  })

  test('answers as published, and both credentials are new', async () => {
    const { secret, rotationSecret } = await agent(here.keys)
    const { status, body } = await here.send({ path, secret, body: { rotationSecret } })
    expect([status, body]).toEqual([
      200,
      {
        message: 'API key and rotation secret rotated successfully. Save both — they will not be shown again.',
        apiKey: expect.stringMatching(/^sk_live_[0-9A-Za-z]{49}$/),
        rotationSecret: expect.stringMatching(/^rot_live_[0-9A-Za-z]{49}$/),
        agentId: 'agent-1',
        agentName: 'Scout',
      },
    ])
    const stale = await here.send({ path, secret: body.apiKey, body: { rotationSecret } })
    expect(stale.status).toBe(401)
    expect(await here.accepted(body.apiKey)).toBe(200)
    expect((await here.send({ path, secret: body.apiKey, body: { rotationSecret: body.rotationSecret } })).status).toBe(200)
  })

  test('an agent is who its metadata says, and its owner where that says nothing', async () => {
    const named = async (metadata: JsonObject): Promise<string> => {
      const { secret, rotationSecret } = await here.keys.create({
        as: 'application',
        ownerId: 'studio',
        name: 'Scout',
        metadata,
        rotationSecret: true,
      })
      const { status, body } = await here.send({ path, secret, body: { rotationSecret } })
      const again = await here.send({ path, secret: body.apiKey, body: { rotationSecret: body.rotationSecret } })
      expect([status, again.status, again.body.agentId]).toEqual([200, 200, body.agentId])
      return body.agentId
    }
    expect([await named({ agentId: 'agent-1' }), await named({ agentId: 'agent-2', more: 1 })]).toEqual(['agent-1', 'agent-2'])
    for (const metadata of [{}, { agentId: 7 }, { agentId: null }, { agentId: ['agent-1'] }, { agent_id: 'agent-1' }])
      expect(await named(metadata)).toBe('studio')
  })

  test('one answer to a bad key and to a bad rotation secret; 403 only to the holder of the exact key', async () => {
    const { secret, rotationSecret, id } = await agent(here.keys)
    const other = await agent(here.keys)
    const plain = await here.keys.create({ as: 'application', ownerId: 'agent-2', name: 'Plain' })
    const send = async (given?: string, second?: unknown): Promise<unknown> => {
      const { status, body } = await here.send({ path, secret: given, body: second === undefined ? {} : { rotationSecret: second } })
      return [status, body.error]
    }
    const refused = [401, { code: 'invalid_key', message: 'Invalid API key or invalid rotation secret' }]
    expect(await send(secret, other.rotationSecret)).toEqual(refused)
    expect(await send(secret, 'rot_live_guess')).toEqual(refused)
    expect(await send('sk_live_guess', rotationSecret)).toEqual(refused)
    expect(await send(rotationSecret, rotationSecret)).toEqual(refused)
    expect(await send(secret, secret)).toEqual(refused)
    for (const given of [undefined, 'a b', '"quoted"', 'not-a-key']) expect(await send(given, rotationSecret)).toEqual(refused)
    // 400 comes before 401, and 401 before 403.
    for (const missing of [undefined, '', null, 7]) {
      for (const given of [secret, 'sk_live_guess', 'a b', undefined])
        expect(await send(given, missing)).toMatchObject([400, { code: 'rotation_secret_missing' }])
    }
    expect(await send(plain.secret, rotationSecret)).toEqual([
      403,
      { code: 'rotation_secret_not_configured', message: 'The agent has no rotation secret; an operator can rotate its key.' },
    ])
    expect((await here.keys.get(id))?.generation).toBe(1)
    await here.keys.revoke({ as: 'application', id })
    expect(await send(secret, other.rotationSecret)).toEqual(refused)
    expect(await send(secret, rotationSecret)).toEqual([403, { code: 'agent_revoked', message: 'The agent is revoked.' }])
    expect(await send(other.secret, rotationSecret)).toEqual(refused)
    const rotated = await here.keys.rotate({ as: { secret: other.secret }, rotationSecret: other.rotationSecret })
    expect(await send(other.secret, other.rotationSecret)).toEqual(refused)
    expect(await here.accepted(rotated.secret)).toBe(200)
  })

  test('a lost answer opens for both credentials together only', async () => {
    const { secret, rotationSecret } = await agent(here.keys)
    const other = await agent(here.keys)
    const send = (second: string): ReturnType<Serving['send']> =>
      here.send({ path, secret, idempotencyKey: 'lost', body: { rotationSecret: second } })
    const first = await send(rotationSecret)
    expect((await send(other.rotationSecret)).status).toBe(401)
    expect((await here.send({ path, secret, idempotencyKey: 'lost', body: {} })).status).toBe(400)
    expect((await send(rotationSecret)).body).toEqual(first.body)
    // Nor by another way that asks for one credential only.
    const request = { method: 'POST', path: contract.path + path, body: {} }
    const around = await here.keys.rotate({ as: { secret }, idempotencyKey: 'lost', request }).catch(({ code }) => code)
    expect(around).toBe('invalid_key')
  })

  test('every attempt that meets the key is in the audit trail', async () => {
    const { secret, rotationSecret, id } = await agent(here.keys)
    const other = await agent(here.keys)
    await here.send({ path, secret, body: { rotationSecret: other.rotationSecret } })
    await here.send({ path, secret, body: { rotationSecret }, headers: ['User-Agent', 'scout/1'] })
    await here.send({ path, secret, body: { rotationSecret: other.rotationSecret } })
    const types = async (): Promise<string[]> => ((await here.keys.events({ id }))?.items ?? []).map(({ type }) => type).sort()
    while ((await types()).length < 4) await new Promise(setImmediate)
    expect(await types()).toEqual(['key.created', 'key.retired_secret_refused', 'key.rotated', 'key.rotation_secret_refused'])
    const rotated = (await here.keys.events({ id }))?.items.find(({ type }) => type === 'key.rotated')
    expect(rotated).toMatchObject({ actor: `key:${id}`, ip: '127.0.0.1', userAgent: 'scout/1' })
  })
})

describe('three attempts in 15 minutes from one address', () => {
  test('failed ones count; the fourth is 429 before anything else is looked at; successful replays do not count and are answered', async () => {
    const here = await serveContract(contract, memoryStore(), { trustProxy: true })
    const { secret, rotationSecret } = await agent(here.keys)
    const from = (address: string, sent: object): ReturnType<Serving['send']> =>
      here.send({ path, headers: ['X-Forwarded-For', address], ...sent })
    const good = { secret, body: { rotationSecret }, idempotencyKey: 'third' }
    expect((await from('192.0.2.1', {})).status).toBe(400)
    expect((await from('192.0.2.1', { secret: 'sk_live_guess', body: { rotationSecret } })).status).toBe(401)
    const third = await from('192.0.2.1', good)
    expect(third.status).toBe(200)
    for (let i = 0; i < 3; i++) expect((await from('192.0.2.1', good)).body).toEqual(third.body)
    const next = { secret: third.body.apiKey, body: { rotationSecret: third.body.rotationSecret } }
    for (const sent of [{}, next, { ...next, idempotencyKey: 'fourth' }]) {
      const over = await from('192.0.2.1', sent)
      expect([over.status, over.body.error.code]).toEqual([429, 'rate_limited'])
      expect(Number(over.headers['retry-after'])).toBeGreaterThan(880)
      expect(Number(over.headers['retry-after'])).toBeLessThanOrEqual(900)
    }
    expect(third.headers['ratelimit-policy']).toContain('q=3; w=900')
    expect((await from('192.0.2.1', good)).status).toBe(200)
    expect((await from('192.0.2.2', next)).status).toBe(200)
  })

  test('a successful replay leaves the attempts as many as they were', async () => {
    const here = await serveContract(contract, memoryStore())
    const { secret, rotationSecret } = await agent(here.keys)
    const good = { path, secret, body: { rotationSecret }, idempotencyKey: 'first' }
    const first = await here.send(good)
    for (let i = 0; i < 4; i++) expect((await here.send(good)).body).toEqual(first.body)
    const statuses = []
    for (let i = 0; i < 3; i++) statuses.push((await here.send({ path })).status)
    expect(statuses).toEqual([400, 400, 429])
  })

  test('an IPv6 network is one address', async () => {
    const here = await serveContract(contract, memoryStore(), { trustProxy: true })
    const from = async (address: string): Promise<number> => (await here.send({ path, headers: ['X-Forwarded-For', address] })).status
    const statuses = []
    for (const host of ['1', '2', 'ffff:1', 'abc']) statuses.push(await from(`2001:db8:0:1::${host}`))
    expect(statuses).toEqual([400, 400, 400, 429])
    expect(await from('2001:db8:1:1::1')).toBe(400)
  })

  test('two processes that share Redis share the count, and go on counting when Redis is gone', async () => {
    const [database, redis] = [await freshDatabase(), await startRedis()]
    const OPTIONS = JSON.stringify({ leaseMs: 100 })
    const processes = await Promise.all(
      [1, 2].map(() => startServer({ STORE_URL: database.url, REDIS_URL: redis.url, CONTRACT: 'agents', OPTIONS, TRUST_PROXY: '1' })),
    )
    const here = await serveContract(contract, postgresStore(database.pool), { leaseMs: 100 })
    const { secret, rotationSecret } = await agent(here.keys)
    const [one = '', two = ''] = processes.map(({ url }) => `${url}/keys`)
    const send = (base: string, sent: object = {}): ReturnType<typeof exchange> => exchange(base, { path, ...sent })
    // Each connects at its first use of Redis, and counts for itself until then.
    for (let n = 1, together = false; !together; n++) {
      const headers = ['X-Forwarded-For', `192.0.2.${n}`]
      await send(one, { headers })
      together = /r=1;/.test((await send(two, { headers })).headers.ratelimit ?? '')
    }
    expect((await send(one)).status).toBe(400)
    expect((await send(two)).status).toBe(400)
    const good = { secret, body: { rotationSecret }, idempotencyKey: 'third' }
    const third = await send(one, good)
    expect(third.status).toBe(200)
    for (const base of [two, one]) {
      const over = await send(base)
      expect(over.status).toBe(429)
      expect(Number(over.headers['retry-after'])).toBeGreaterThan(870)
      expect((await send(base, good)).body).toEqual(third.body)
    }
    await redis.stop()
    expect((await send(one)).status).toBe(429)
    await redis.start()
    // Redis has forgotten them, but the process has not: two were its own.
    const statuses = []
    for (let n = 0; n < 3; n++) statuses.push((await send(one)).status)
    expect(statuses.slice(1)).toEqual([429, 429])
  })
})

async function agent(keys: ApiKeys): Promise<{ secret: string; rotationSecret: string; id: string }> {
  const {
    key,
    secret,
    rotationSecret = '',
  } = await keys.create({ as: 'application', ownerId: 'agent-1', name: 'Scout', rotationSecret: true })
  return { secret, rotationSecret, id: key.id }
}
