import { createHash, randomBytes } from 'node:crypto'
import { inspect } from 'node:util'
import bcrypt from 'bcrypt'
import express from 'express'
import {
  type ApiKeyError,
  type ApiKeys,
  type ApiKeysOptions,
  bearerAuth,
  createApiKeys,
  type FoundKey,
  keyRouter,
  type LegacyFormatOptions,
  legacyFormat,
  memoryStore,
  type Store,
} from 'express-api-keys'
import { atEnd } from '../../support/cleanup.js'
import { TestClock } from '../../support/clock.js'
import { listen } from '../../support/listen.js'
import { SERVER_SECRET } from '../../support/process.js'
import { stores } from '../../support/stores.js'
import { call } from '../../support/traffic.js'

const PEPPER = 'a-pepper-of-more-than-32-bytes-0123456789'
const acme: FoundKey = { ownerId: 'acme', name: 'ci', scopes: ['reports:read'] }

function instance(store: Store, find: LegacyFormatOptions['find'], options: Partial<ApiKeysOptions> = {}): ApiKeys {
  const legacyFormats = [legacyFormat({ match: /old_\d+_\w{16}/, pepper: PEPPER, find })]
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, onError: () => {}, ...options, legacyFormats })
  atEnd(() => keys.close())
  return keys
}

let last = 0
const secretOf = (): string => `old_${++last}_${randomBytes(8).toString('hex')}`

test.each([['memory', async () => ({ store: memoryStore() })], ...stores] as const)(
  'on %s, a key behind a bcrypt hash comes in when it is first used, by whatever it is used for',
  async (_name, make) => {
    const { store } = await make()
    const old = new Map<string, string>()
    const secrets = [secretOf(), secretOf(), secretOf()]
    for (const secret of secrets) old.set(secret.split('_')[1] ?? '', await bcrypt.hash(secret, 4))
    let asked = 0
    const find = async (secret: string): Promise<FoundKey | undefined> => {
      asked++
      const hash = old.get(secret.split('_')[1] ?? '')
      return hash !== undefined && (await bcrypt.compare(secret, hash)) ? acme : undefined
    }
    const [here, there] = [instance(store, find), instance(store, find)]
    await here.migrate()
    const app = express()
    app.use('/keys', keyRouter(here))
    app.get('/data', bearerAuth(here), (_req, res) => void res.json({}))
    const url = await listen(app)
    const [used, rotated, both] = secrets as [string, string, string]
    // The same id with another secret is a stranger.
    expect((await call(`${url}/data`, { secret: `${used.slice(0, -1)}x` })).status).toBe(401)
    for (let n = 0; n < 5; n++) expect((await call(`${url}/data`, { secret: used })).status).toBe(200)
    expect((await call(`${url}/keys/self/rotate`, { method: 'POST', secret: rotated, idempotencyKey: 'once' })).status).toBe(200)
    expect((await call(`${url}/data`, { secret: rotated })).status).toBe(401)
    // Many at once, in two instances.
    const verdicts = await Promise.all([here, there, here, there].map((keys) => keys.verify(both)))
    expect(verdicts.map(({ ok }) => ok)).toEqual([true, true, true, true])
    expect((await here.list({})).items).toHaveLength(3)
    expect(asked).toBeLessThanOrEqual(5)
  },
)

test('P3: what was ended here is not found again, whatever the old system says', async () => {
  const { store } = await (stores[0] as (typeof stores)[number])[1]()
  let asked = 0
  const find = (): FoundKey => {
    asked++
    return acme
  }
  const [here, there] = [instance(store, find), instance(store, find)]
  await here.migrate()
  const secret = secretOf()
  const { key } = (await here.verify(secret)) as { key: { id: string } }
  expect((await there.verify(secret)).ok).toBe(true)
  await here.revoke({ as: 'application', id: key.id })
  for (const keys of [here, there, instance(store, find)]) {
    expect(keys.peek(secret)?.ok ?? false).toBe(false)
    expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'revoked' })
  }
  expect(asked).toBe(1)
  const dead = secretOf()
  const revoked = instance(store, () => ({ ...acme, revokedAt: new Date() }))
  expect(await revoked.verify(dead)).toEqual({ ok: false, reason: 'revoked' })
  expect(await here.verify(dead)).toEqual({ ok: false, reason: 'revoked' })
})

test('a "no" is believed for three seconds, and a secret of this package is never looked for', async () => {
  const clock = new TestClock()
  let asked = 0
  let answer: FoundKey | undefined
  const keys = instance(
    memoryStore({ now: clock.wallMs }),
    () => {
      asked++
      return answer
    },
    { clock },
  )
  const secret = secretOf()
  for (let n = 0; n < 5; n++) expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'unknown' })
  expect([asked, keys.peek(secret)]).toEqual([1, { ok: false, reason: 'unknown' }])
  answer = acme
  clock.advance(3_000)
  expect(keys.peek(secret)).toBeUndefined()
  expect((await keys.verify(secret)).ok).toBe(true)
  expect(asked).toBe(2)
  await keys.verify(`sk_live_${'0'.repeat(49)}`)
  expect(asked).toBe(2)
})

test('an old system that is away, slow or mad is 503 or 500, never 401, and the operator hears why', async () => {
  const errors: ApiKeyError[] = []
  let behave: () => unknown = () => undefined
  const keys = instance(memoryStore(), () => behave() as FoundKey, { onError: (error) => errors.push(error) })
  const app = express()
  app.get('/data', bearerAuth(keys), (_req, res) => void res.json({}))
  const url = await listen(app)
  const secret = secretOf()
  const cases: readonly [() => unknown, number][] = [
    [() => Promise.reject(new Error('connect ECONNREFUSED')), 503],
    [
      () => {
        throw new Error(`no ${secret}`)
      },
      503,
    ],
    [() => ({ ownerId: 'acme' }), 500],
    [() => true, 500],
    [() => 'yes', 500],
    [() => ({ ...acme, secret }), 500],
    [() => ({ ...acme, metadata: { deep: [{ secret }] } }), 500],
  ]
  for (const [how, status] of cases) {
    behave = how
    const answer = await call(`${url}/data`, { secret })
    expect(answer.status).toBe(status)
    expect(JSON.stringify(answer.body)).not.toContain(secret)
  }
  expect(errors.length).toBeGreaterThanOrEqual(cases.length - 1)
  expect(inspect(errors)).not.toContain(secret)
  expect((await keys.list({})).items).toEqual([])
  behave = () => acme
  expect((await call(`${url}/data`, { secret })).status).toBe(200)
})

test('a flood of strangers asks the old system four at a time, and each secret once', async () => {
  let [now, most, asked] = [0, 0, 0]
  const waiting: (() => void)[] = []
  const keys = instance(memoryStore(), async () => {
    asked++
    most = Math.max(most, ++now)
    await new Promise<void>((resolve) => waiting.push(resolve))
    now--
    return undefined
  })
  const secrets = Array.from({ length: 300 }, secretOf)
  const answers = [...secrets, ...secrets].map((secret) => keys.verify(secret).catch((error: ApiKeyError) => error))
  let over = false
  const all = Promise.all(answers).finally(() => {
    over = true
  })
  while (!over) {
    waiting.splice(0).forEach((resolve) => void resolve())
    await new Promise(setImmediate)
  }
  const told = (await all).map((answer) => ('code' in answer ? answer.code : 'reason' in answer ? answer.reason : 'ok'))
  expect(new Set(told)).toEqual(new Set(['unknown', 'store_unavailable']))
  expect(most).toBe(4)
  expect(asked).toBeLessThanOrEqual(300)
})

test('P4: what is kept of a secret that was found cannot be computed without the pepper', async () => {
  const { store, query } = await (stores[1] as (typeof stores)[number])[1]()
  const keys = instance(store, () => acme)
  await keys.migrate()
  const secret = secretOf()
  expect((await keys.verify(secret)).ok).toBe(true)
  const rows = await query<{ digest: string }>('select * from express_api_key_generations')
  expect(rows).toHaveLength(1)
  const sha256 = createHash('sha256').update(secret).digest('base64url')
  expect(JSON.stringify([rows, await query('select * from express_api_keys')])).not.toMatch(
    new RegExp(`${sha256}|${secret}|${secret.slice(-8)}`),
  )
})
