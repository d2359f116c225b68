import { once } from 'node:events'
import { connect } from 'node:net'
import { serve } from '../support/instance.js'
import { SERVER_SECRET, startServer } from '../support/process.js'
import { stores } from '../support/stores.js'
import { type Answer, call } from '../support/traffic.js'

describe.each(stores)('on %s', (_name, makeStore) => {
  test('P2: a client whose response was cut off gets the same secret with the key that died in the rotation', async () => {
    const { store } = await makeStore()
    const { keys, url } = await serve(store)
    const { key, secret } = await keys.create({ ownerId: 'acme', name: 'cut off' })
    const { port } = new URL(url)
    const socket = connect(Number(port), '127.0.0.1')
    socket.write(
      `POST /keys/self/rotate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${secret}\r\nIdempotency-Key: cut\r\nContent-Length: 0\r\n\r\n`,
    )
    while ((await keys.get(key.id))?.generation !== 2) await new Promise(setImmediate)
    socket.destroy()
    await once(socket, 'close')

    const retry = (): Promise<Answer> => call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'cut' })
    const first = await retry()
    const again = await retry()
    expect([first.status, again.status]).toEqual([200, 200])
    expect(first.headers.get('idempotent-replayed')).toBe('true')
    expect(again.body).toEqual(first.body)
    expect((await call(`${url}/data`, { secret: secretOf(first) })).status).toBe(200)
    expect((await call(`${url}/data`, { secret })).status).toBe(401)
  })

  test.each([
    ['right after COMMIT', 'after-commit', true],
    ['right before COMMIT', 'before-commit', false],
  ])('P2: a process killed with SIGKILL %s and started again gives the retry its secret', async (_when, CRASH, replayed) => {
    const { store, url: STORE_URL, query } = await makeStore()
    const { keys } = await serve(store)
    const { key, secret } = await keys.create({ ownerId: 'acme', name: 'killed' })
    const rotate = { method: 'POST', secret, idempotencyKey: 'killed' }
    const doomed = await startServer({ STORE_URL, CRASH, OPTIONS: '{"leaseMs":100}' })
    await expect(call(`${doomed.url}/keys/self/rotate`, rotate)).rejects.toThrow('fetch failed')
    await doomed.gone
    expect(doomed.child.signalCode).toBe('SIGKILL')
    expect(await query(`select 1 from express_api_key_generations where key_id = '${key.id}'`)).toHaveLength(replayed ? 2 : 1)

    const restarted = await startServer({ STORE_URL, OPTIONS: '{"leaseMs":100}' })
    const first = await call(`${restarted.url}/keys/self/rotate`, rotate)
    const again = await call(`${restarted.url}/keys/self/rotate`, rotate)
    expect([first.status, again.status]).toEqual([200, 200])
    expect(first.headers.get('idempotent-replayed')).toBe(replayed ? 'true' : null)
    expect(again.body).toEqual(first.body)
    expect(await query(`select 1 from express_api_key_generations where key_id = '${key.id}'`)).toHaveLength(2)
    expect((await call(`${restarted.url}/data`, { secret: secretOf(first) })).status).toBe(200)
  })

  describe('the answer is no longer given', () => {
    test('after the replay window: 401 to the dead key', async () => {
      const { rotate, query } = await rotated(makeStore)
      await query('update express_api_key_replays set expires_at = 1')
      expect(await refusal(rotate())).toEqual([401, 'invalid_key'])
    })

    test('after the new secret was used, once the grace is over: 401 to the dead key, 409 to the live one', async () => {
      const { rotate, query, url, secret } = await rotated(makeStore)
      expect((await call(`${url}/data`, { secret })).status).toBe(200)
      expect((await rotate()).status).toBe(200)
      await firstUseNoted(query)
      await query('update express_api_key_generations set first_used_at = first_used_at - 10001 where first_used_at is not null')
      expect(await refusal(rotate())).toEqual([401, 'invalid_key'])
      expect(await refusal(rotate(secret))).toEqual([409, 'idempotency_key_spent'])
      expect(await query('select 1 from express_api_key_replays where sealed is not null')).toEqual([])
    })

    test('after the next rotation: 409 rotation_superseded, and no secret', async () => {
      const { rotate, url, secret } = await rotated(makeStore)
      expect((await call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'next' })).status).toBe(200)
      const answer = await rotate()
      expect([answer.status, answer.body]).toMatchObject([409, { code: 'rotation_superseded' }])
      expect(JSON.stringify(answer.body)).not.toContain('sk_live_')
    })

    test('after a revocation: 401', async () => {
      const { rotate, keys, id } = await rotated(makeStore)
      await keys.revoke({ id })
      expect(await refusal(rotate())).toEqual([401, 'invalid_key'])
    })

    test('after five replays: 401', async () => {
      const { rotate } = await rotated(makeStore)
      for (let n = 0; n < 5; n++) expect((await rotate()).status).toBe(200)
      expect(await refusal(rotate())).toEqual([401, 'invalid_key'])
    })

    test('to an older dead key with the same Idempotency-Key, which does not use up the replays of the client', async () => {
      const { keys, url, rotate, secret } = await rotated(makeStore)
      const third = await call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'third' })
      expect(third.status).toBe(200)
      // The first rotation's dead key tries the Idempotency-Key of the second one's.
      for (let n = 0; n < 8; n++) expect(await refusal(rotate(undefined, 'third'))).toEqual([401, 'invalid_key'])
      const replay = await call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'third' })
      expect(replay.body).toEqual(third.body)
      expect(await keys.verify(secret)).toEqual({ ok: false, reason: 'rotated' })
    })

    test('to a key that was revoked after it had rotated another one: dead means dead', async () => {
      const { store } = await makeStore()
      const { keys, url } = await serve(store)
      const admin = await keys.create({ ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
      const target = await keys.create({ ownerId: 'acme', name: 'target' })
      const send = (): Promise<Answer> =>
        call(`${url}/keys/${target.key.id}/rotate`, { method: 'POST', secret: admin.secret, idempotencyKey: 'other' })
      expect((await send()).status).toBe(200)
      await keys.revoke({ id: admin.key.id })
      expect(await refusal(send())).toEqual([401, 'invalid_key'])
    })
  })

  test('P2: a record sealed before the server secret was changed opens after it', async () => {
    const { store } = await makeStore()
    const before = await serve(store)
    const { secret } = await before.keys.create({ ownerId: 'acme', name: 'n' })
    const first = await call(`${before.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
    const after = await serve(store, { secret: ['another-server-secret-0123456789-0123456789', SERVER_SECRET] })
    const retry = await call(`${after.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
    expect([retry.status, retry.body]).toEqual([200, first.body])
  })

  test('a retried revocation by the key itself is answered, though it died of it', async () => {
    const { store } = await makeStore()
    const { keys, url } = await serve(store)
    const { key, secret } = await keys.create({ ownerId: 'acme', name: 'n' })
    const send = (): Promise<Answer> => call(`${url}/keys/${key.id}/revoke`, { method: 'POST', secret, idempotencyKey: 'bye' })
    const first = await send()
    expect([first.status, first.body]).toMatchObject([200, { key: { status: 'revoked' } }])
    expect((await send()).body).toEqual(first.body)
    expect((await call(`${url}/data`, { secret })).status).toBe(401)
  })
})

interface Rotated {
  readonly keys: Awaited<ReturnType<typeof serve>>['keys']
  readonly url: string
  readonly id: string
  /** The new one. */
  readonly secret: string
  readonly query: Awaited<ReturnType<(typeof stores)[number][1]>>['query']
  /** Repeats the rotation, with the dead key unless told otherwise. */
  rotate(secret?: string, idempotencyKey?: string): Promise<Answer>
}

async function rotated(makeStore: (typeof stores)[number][1]): Promise<Rotated> {
  const { store, query } = await makeStore()
  const { keys, url } = await serve(store)
  const { key, secret: dead } = await keys.create({ ownerId: 'acme', name: 'n' })
  const rotate = (secret = dead, idempotencyKey = 'first'): Promise<Answer> =>
    call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey })
  const answer = await rotate()
  expect(answer.status).toBe(200)
  return { keys, url, id: key.id, secret: secretOf(answer), query, rotate }
}

async function refusal(answer: Promise<Answer>): Promise<[number, string | undefined]> {
  const { status, body } = await answer
  return [status, (body as { code?: string }).code]
}

/** The write of a first use is made in the background; waits until it is there. */
async function firstUseNoted(query: Rotated['query']): Promise<void> {
  while ((await query('select 1 from express_api_key_generations where generation = 2 and first_used_at is not null')).length === 0) {
    await new Promise(setImmediate)
  }
}

function secretOf({ body }: Answer): string {
  return (body as { secret: string }).secret
}
