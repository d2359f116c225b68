import type { IssuedKey } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { type Instance, serve } from '../support/instance.js'
import { freshDatabase, type TestDatabase, throughProxy } from '../support/postgres.js'
import { COMMIT, type Fate } from '../support/proxy.js'
import { type Answer, call, verdict } from '../support/traffic.js'

const FATES: readonly (readonly [what: string, fate: Fate])[] = [
  ['arrives, and the connection breaks before its answer', 'cut-at-answer'],
  ['arrives, and its answer never comes', 'lose-answer'],
  ['is lost together with the connection', 'cut-request'],
  ['is lost, and the connection stays silent', 'lose-request'],
]

interface Case {
  readonly asks: (made: IssuedKey) => { path: string; method?: string; body?: object }
  readonly status: number
  /** What the audit trail says once, where it is done once. */
  readonly type: string
  /** How many secrets the owner has had by then. */
  readonly generations: number
  readonly survives: boolean
}

const MUTATIONS: { readonly [name: string]: Case } = {
  rotation: {
    asks: ({ key }) => ({ path: `/keys/${key.id}/rotate` }),
    ...{ status: 200, type: 'key.rotated', generations: 2, survives: false },
  },
  succession: {
    asks: ({ key }) => ({ path: `/successors/${key.id}/rotate` }),
    ...{ status: 200, type: 'key.rotated', generations: 2, survives: false },
  },
  creation: {
    asks: () => ({ path: '/keys', body: { name: 'made' } }),
    ...{ status: 201, type: 'key.created', generations: 2, survives: true },
  },
  revocation: {
    asks: ({ key }) => ({ path: `/keys/${key.id}/revoke` }),
    ...{ status: 200, type: 'key.revoked', generations: 1, survives: false },
  },
  change: {
    asks: ({ key }) => ({ path: `/keys/${key.id}`, method: 'PATCH', body: { name: 'changed' } }),
    ...{ status: 200, type: 'key.updated', generations: 1, survives: true },
  },
}

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
})

test.each(FATES)('P1, P2: when COMMIT %s, every mutation answers 503 outcome_unknown, and its retry finds out', async (what, fate) => {
  // All of them first: a session whose COMMIT is lost goes on holding the lease in force, which an instance that starts declares.
  const cases = await Promise.all(Object.entries(MUTATIONS).map(async ([name, how]) => ({ name, ...how, ...(await uncertain()) })))
  const outcomes = cases.map(async ({ name, asks, commit, keys, url, ...expected }) => {
    const ownerId = `${name}: ${what}`
    const made = await keys.create({ as: 'application', ownerId, name: 'n', scopes: ['api_keys:write'] })
    const { path, ...rest } = { method: 'POST', ...asks(made) }
    const send = (): Promise<Answer> => call(url + path, { ...rest, secret: made.secret, idempotencyKey: 'k' })
    const count = async (type: string): Promise<number> =>
      (await database.pool.query('select 1 from express_api_key_events where owner_id = $1 and type = $2', [ownerId, type])).rowCount ?? 0
    const before = await count(expected.type)

    commit(fate)
    const lost = await send()
    const again = await send()
    const third = await send()
    const { secret, api_key: renewed = secret } = again.body as { secret?: string; api_key?: string }
    const { rowCount: generations } = await database.pool.query(
      'select 1 from express_api_key_generations g join express_api_keys k on k.id = g.key_id where owner_id = $1',
      [ownerId],
    )
    expect([name, lost.status, lost.headers.get('retry-after'), lost.body]).toMatchObject([
      ...[name, 503, '1', { code: 'outcome_unknown' }],
    ])
    expect(JSON.stringify(lost.body)).toContain('Repeat the request with the same Idempotency-Key.')
    expect([name, again.status, again.headers.get('idempotent-replayed')]).toEqual([name, expected.status, arrives(fate) ? 'true' : null])
    expect([name, third.status, third.body]).toEqual([name, expected.status, again.body])
    expect([name, await count(expected.type), generations]).toEqual([name, before + 1, expected.generations])
    const alive = await verdict(url, made.secret)
    const used = renewed === undefined ? 200 : await verdict(url, renewed)
    expect([name, alive, used]).toEqual([name, expected.survives ? 200 : 401, 200])
  })
  for (const outcome of await Promise.allSettled(outcomes)) if (outcome.status === 'rejected') throw outcome.reason
})

test.each(FATES)('a rotation without an Idempotency-Key is told to look before it tries again when COMMIT %s', async (_what, fate) => {
  const { commit, keys, url } = await uncertain()
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  commit(fate)
  const lost = await call(`${url}/keys/self/rotate`, { method: 'POST', secret })
  expect([lost.status, lost.body]).toMatchObject([503, { code: 'outcome_unknown', detail: expect.stringMatching(/Check which state/) }])
  const again = await call(`${url}/keys/self/rotate`, { method: 'POST', secret })
  expect(again.status).toBe(arrives(fate) ? 401 : 200)
  expect((await keys.get(key.id))?.generation).toBe(2)
})

/** An instance whose next COMMIT of a mutation may have a fate. */
async function uncertain(): Promise<Instance & { commit(fate: Fate): void }> {
  const { pool, proxy } = await throughProxy(database.url)
  return {
    ...(await serve(postgresStore(pool, { transactionTimeoutMs: 6_000 }))),
    // A line of the audit trail is the last thing before the COMMIT of a mutation, and in no other transaction.
    commit: (fate) => proxy.strike({ at: COMMIT, after: 'insert into "express_api_key_events"', fate, once: true }),
  }
}

function arrives(fate: Fate): boolean {
  return fate !== 'cut-request' && fate !== 'lose-request'
}
