import { serve } from '../support/instance.js'
import { SERVER_SECRET, startServer } from '../support/process.js'
import { stores } from '../support/stores.js'
import { type Answer, call } from '../support/traffic.js'

const FIFTY = Array.from({ length: 50 }, (_, n) => n)
const OLDER_SECRET = 'the-server-secret-before-it-0123456789-0123'
const unrelated = [
  ['fifty Idempotency-Keys', (n: number) => ({ idempotencyKey: `k${n}` })],
  ['no Idempotency-Key', () => ({})],
] as const

describe.each(stores)('on %s', (_name, makeStore) => {
  test('P1: fifty concurrent rotations with one Idempotency-Key make one generation and fifty equal answers', async () => {
    const { store, url: storeUrl, query } = await makeStore()
    // A lease that is longer than fifty requests take to come in on a busy machine: those share the first answer, uncounted.
    const leaseMs = 3_000
    const { keys, url } = await serve(store, { leaseMs })
    const other = await startServer({ STORE_URL: storeUrl, OPTIONS: JSON.stringify({ leaseMs }), EXPRESS: '4' })
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'fifty' })
    // Through both processes, one on Express 5 and one on 4, so that only the database can be what keeps them apart.
    const answers = await Promise.all(
      FIFTY.map((n) => call(`${n % 2 === 0 ? url : other.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'one' })),
    )
    expect(answers.map(({ status }) => status)).toEqual(FIFTY.map(() => 200))
    expect(new Set(answers.map(({ body }) => JSON.stringify(body))).size).toBe(1)
    expect(answers.filter(({ headers }) => headers.get('idempotent-replayed') === null)).toHaveLength(1)
    expect(await generationsOf(query, key.id)).toEqual([1, 2])
  })

  test('P1: one Idempotency-Key means one rotation while the server secret is being changed', async () => {
    const { store, query } = await makeStore()
    const leaseMs = 3_000
    const before = await serve(store, { leaseMs, serverSecret: [OLDER_SECRET, SERVER_SECRET] })
    const after = await serve(store, { leaseMs, serverSecret: [SERVER_SECRET, OLDER_SECRET] })
    const { key, secret } = await before.keys.create({ as: 'application', ownerId: 'acme', name: 'in between' })
    const answers = await Promise.all(
      FIFTY.map((n) => call(`${n % 2 === 0 ? before.url : after.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'one' })),
    )
    expect(tally(answers)).toEqual({ 200: 50 })
    expect(new Set(answers.map(({ body }) => JSON.stringify(body))).size).toBe(1)
    expect(await generationsOf(query, key.id)).toEqual([1, 2])
  })

  test.each(unrelated)('P1: of fifty rotations by the key itself with %s one wins, and the others are refused', async (_what, naming) => {
    const { store, url: storeUrl, query } = await makeStore()
    const { keys, url } = await serve(store)
    const other = await startServer({ STORE_URL: storeUrl, OPTIONS: '{"leaseMs":100}' })
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'itself' })
    const answers = await Promise.all(
      FIFTY.map((n) => call(`${n % 2 === 0 ? url : other.url}/keys/self/rotate`, { method: 'POST', secret, ...naming(n) })),
    )
    expect(tally(answers)).toEqual({ 200: 1, 401: 49 })
    expect(await generationsOf(query, key.id)).toEqual([1, 2])
    const winner = answers.find(({ status }) => status === 200)
    expect((await call(`${url}/data`, { secret: secretOf(winner) })).status).toBe(200)
  })

  test.each(unrelated)('P1: of fifty rotations by another key with %s, none hands out a dead secret', async (_what, naming) => {
    const { store, query } = await makeStore()
    // An instance that never answers, and a lease that is longer than fifty rotations take to commit: nothing is rotated between an answer and its use here.
    await store.migrate()
    await store.join({ session: 'silent', mode: 'feed', channels: [] })
    const { keys, url } = await serve(store, { leaseMs: 1_000 })
    const admin = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'target' })
    const accepted: number[] = []
    const answers = await Promise.all(
      FIFTY.map(async (n) => {
        const answer = await call(`${url}/keys/${key.id}/rotate`, { method: 'POST', secret: admin.secret, ...naming(n) })
        if (answer.status === 200) accepted.push((await call(`${url}/data`, { secret: secretOf(answer) })).status)
        // On a busy machine one of fifty can wait for its row for too long; 503 says that nothing has changed.
        else expect(answer.body).toMatchObject({ code: answer.status === 503 ? 'store_unavailable' : 'rotation_superseded' })
        expect(answer.status === 200 || !JSON.stringify(answer.body).includes('sk_live_')).toBe(true)
        return answer
      }),
    )
    const { 200: won = 0, 409: superseded = 0, 503: unchanged = 0 } = tally(answers)
    expect(won).toBeGreaterThanOrEqual(1)
    expect(won + superseded + unchanged).toBe(50)
    const last = 51 - unchanged
    expect(accepted).toEqual(Array.from({ length: won }, () => 200))
    expect(await generationsOf(query, key.id)).toEqual(Array.from({ length: last }, (_, n) => n + 1))
    const active = await query(
      `select 1 from express_api_key_generations where key_id = '${key.id}' and retired_at is null and generation = ${last}`,
    )
    expect(active).toHaveLength(1)
    expect(await query(`select 1 from express_api_key_generations where key_id = '${key.id}' and retired_at is not null`)).toHaveLength(
      last - 1,
    )
  })

  test('P1: a retry after the replay window makes no second rotation', async () => {
    const { store, query } = await makeStore()
    const { keys, url } = await serve(store)
    const admin = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'target' })
    const send = (): Promise<Answer> =>
      call(`${url}/keys/${key.id}/rotate`, { method: 'POST', secret: admin.secret, idempotencyKey: 'once' })
    expect((await send()).status).toBe(200)
    await query('update express_api_key_replays set expires_at = 1')
    const late = await send()
    expect([late.status, late.body]).toMatchObject([409, { code: 'idempotency_key_spent' }])
    expect(await generationsOf(query, key.id)).toEqual([1, 2])
  })

  test('P1: a retried creation makes one key', async () => {
    const { store } = await makeStore()
    const { keys, url } = await serve(store)
    const admin = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const send = (name: string): Promise<Answer> =>
      call(`${url}/keys`, { method: 'POST', secret: admin.secret, idempotencyKey: 'create', body: { name } })
    // A creation has no leases to wait for and is settled at once: after that, five replays are given.
    const answers = await Promise.all(FIFTY.slice(0, 6).map(() => send('worker')))
    expect(tally(answers)).toEqual({ 201: 6 })
    expect(new Set(answers.map(({ body }) => JSON.stringify(body))).size).toBe(1)
    expect((await keys.list({ ownerId: 'acme' })).items).toHaveLength(2)
    expect((await send('another')).status).toBe(422)
  })
})

async function generationsOf(query: <Row>(statement: string) => Promise<Row[]>, id: string): Promise<number[]> {
  const rows = await query<{ generation: number }>(
    `select generation from express_api_key_generations where key_id = '${id}' order by generation`,
  )
  return rows.map(({ generation }) => Number(generation))
}

function tally(answers: readonly Answer[]): Record<number, number> {
  const counts: Record<number, number> = {}
  for (const { status } of answers) counts[status] = (counts[status] ?? 0) + 1
  return counts
}

function secretOf(answer: Answer | undefined): string {
  const { secret } = (answer?.body ?? {}) as { secret?: string }
  return secret ?? 'no secret'
}
