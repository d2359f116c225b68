import { once } from 'node:events'
import { connect } from 'node:net'
import { atEnd } from '../support/cleanup.js'
import { serve } from '../support/instance.js'
import { SERVER_SECRET, startServer } from '../support/process.js'
import { faultProxy } from '../support/proxy.js'
import { SOURCE } from '../support/source.js'
import { stores } from '../support/stores.js'
import { type Answer, call } from '../support/traffic.js'

describe.each(stores)('on %s', (_name, makeStore) => {
  test('P2: a client whose response was cut off gets the same secret with the key that died in the rotation', async () => {
    const { store } = await makeStore()
    const { keys, url } = await serve(store)
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'cut off' })
    const { port } = new URL(url)
    const socket = connect(Number(port), '127.0.0.1')
    socket.write(`POST /keys/self/rotate HTTP/1.1\r\nHost: x\r\n${carrying(secret)}\r\nIdempotency-Key: cut\r\nContent-Length: 0\r\n\r\n`)
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
    ['right after COMMIT', 'after store.transaction', true],
    ['right before COMMIT', 'before commit', false],
  ])('P2: a process killed with SIGKILL %s and started again gives the retry its secret', async (_when, crash, replayed) => {
    const { store, url: STORE_URL, query } = await makeStore()
    const { keys } = await serve(store)
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'killed' })
    const rotate = { method: 'POST', secret, idempotencyKey: 'killed' }
    const doomed = await startServer({ STORE_URL, OPTIONS: '{"leaseMs":100}' })
    await expect(call(`${doomed.url}/keys/self/rotate`, { ...rotate, crash })).rejects.toThrow('fetch failed')
    await doomed.gone
    expect(doomed.child.signalCode).toBe('SIGKILL')
    expect(await query(`select 1 from express_api_key_generations where key_id = '${key.id}'`)).toHaveLength(replayed ? 2 : 1)

    const restarted = await startServer({ STORE_URL, OPTIONS: '{"leaseMs":100}', EXPRESS: '4' })
    const first = await call(`${restarted.url}/keys/self/rotate`, rotate)
    const again = await call(`${restarted.url}/keys/self/rotate`, rotate)
    expect([first.status, again.status]).toEqual([200, 200])
    expect(first.headers.get('idempotent-replayed')).toBe(replayed ? 'true' : null)
    expect(again.body).toEqual(first.body)
    expect(await query(`select 1 from express_api_key_generations where key_id = '${key.id}'`)).toHaveLength(2)
    expect((await call(`${restarted.url}/data`, { secret: secretOf(first) })).status).toBe(200)
  })

  test('P2: a client whose answer is dropped on the way asks until it arrives, and gets what was lost', async () => {
    const { store, query } = await makeStore()
    const { keys, url } = await serve(store)
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'behind a bad line' })
    const line = await badLine(url, 3)
    const answers: Answer[] = []
    for (let tries = 0; answers.length === 0 && tries < 10; tries++) {
      await call(`${line.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'bad-line' }).then(
        (answer) => answers.push(answer),
        () => {},
      )
    }
    const [answer] = answers
    expect([answer?.status, answer?.headers.get('idempotent-replayed')]).toEqual([200, 'true'])
    expect(line.dropped).toHaveLength(3)
    for (const lost of line.dropped) expect(lost).toContain(answer === undefined ? 'an answer' : secretOf(answer))
    expect(await query(`select 1 from express_api_key_generations where key_id = '${key.id}'`)).toHaveLength(2)
  })

  test('P2: another key that sends the same Idempotency-Key rotates itself and hears nothing of the answer', async () => {
    const { rotate, keys, url, id, secret } = await rotated(makeStore)
    for (const ownerId of ['acme', 'rival']) {
      const other = await keys.create({ as: 'application', ownerId, name: 'other', scopes: ['api_keys:write'] })
      const own = await rotate(other.secret)
      expect([own.status, own.body]).toMatchObject([200, { key: { id: other.key.id, generation: 2 } }])
      expect(own.headers.get('idempotent-replayed')).toBeNull()
      expect(secretOf(own)).not.toBe(secret)
    }
    const rival = await keys.create({ as: 'application', ownerId: 'rival', name: 'rival', scopes: ['api_keys:write'] })
    const foreign = await call(`${url}/keys/${id}/rotate`, { method: 'POST', secret: rival.secret, idempotencyKey: 'first' })
    expect([foreign.status, foreign.body]).toMatchObject([404, { code: 'key_not_found' }])
    expect(secretOf(await rotate())).toBe(secret)
  })

  test('P2: the new secret with the same Idempotency-Key does not open the answer, nor use up the replays of the client', async () => {
    const { rotate, secret } = await rotated(makeStore)
    for (let n = 0; n < 8; n++) expect(await refusal(rotate(secret))).toEqual([409, 'idempotency_key_spent'])
    expect(secretOf(await rotate())).toBe(secret)
  })

  test('P2: a key that rotated another one asks again, and hears 409 and never 401 once the answer is gone', async () => {
    const { send, query, target } = await rotatedByAdmin(makeStore)
    const first = await send()
    expect(first.status).toBe(200)
    for (let n = 0; n < 7; n++) expect((await send()).body).toEqual(first.body)
    await query('update express_api_key_replays set expires_at = 1')
    expect(await refusal(send())).toEqual([409, 'idempotency_key_spent'])
    expect(await query(`select 1 from express_api_key_generations where key_id = '${target}'`)).toHaveLength(2)
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
    })

    test('after the next rotation: 409 rotation_superseded, and no secret', async () => {
      const { rotate, query, url, secret } = await rotated(makeStore)
      expect((await call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'next' })).status).toBe(200)
      // Only the answer of the next one is still kept.
      expect(await query('select generation from express_api_key_replays where sealed is not null')).toMatchObject([{ generation: 3 }])
      const answer = await rotate()
      expect([answer.status, answer.body]).toMatchObject([409, { code: 'rotation_superseded' }])
      expect(JSON.stringify(answer.body)).not.toContain('sk_live_')
    })

    test('after a revocation: 401', async () => {
      const { rotate, keys, id } = await rotated(makeStore)
      await keys.revoke({ as: 'application', id })
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

    test('after the key itself has expired: 401', async () => {
      const { rotate, query } = await rotated(makeStore)
      await query('update express_api_keys set expires_at = 1')
      expect(await refusal(rotate())).toEqual([401, 'invalid_key'])
    })

    test('to a key that was revoked after it had rotated another one: dead means dead', async () => {
      const { send, keys, admin } = await rotatedByAdmin(makeStore)
      expect((await send()).status).toBe(200)
      await keys.revoke({ as: 'application', id: admin.key.id })
      expect(await refusal(send())).toEqual([401, 'invalid_key'])
    })

    test('to a key that rotated itself after it had rotated another one: 401 to its dead secret, 409 to its live one', async () => {
      const { send, keys, admin } = await rotatedByAdmin(makeStore)
      expect((await send()).status).toBe(200)
      const { secret } = await keys.rotate({ as: { secret: admin.secret }, idempotencyKey: 'itself' })
      expect(await refusal(send())).toEqual([401, 'invalid_key'])
      expect(await refusal(send(secret))).toEqual([409, 'idempotency_key_spent'])
    })

    test('to a key that has lost the scope since: 403', async () => {
      const { send, keys, admin } = await rotatedByAdmin(makeStore)
      expect((await send()).status).toBe(200)
      await keys.update({ as: 'application', id: admin.key.id, changes: { scopes: [] } })
      expect(await refusal(send())).toEqual([403, 'insufficient_scope'])
    })

    test('when the rotated key was revoked since: 409, and no secret, even if its record came back from a backup', async () => {
      const { send, keys, query, target } = await rotatedByAdmin(makeStore)
      expect((await send()).status).toBe(200)
      const [backup] = await query<{ sealed: string }>('select sealed from express_api_key_replays')
      await keys.revoke({ as: 'application', id: target })
      await query(`update express_api_key_replays set sealed = '${backup?.sealed}'`)
      const answer = await send()
      expect([answer.status, answer.body]).toMatchObject([409, { code: 'idempotency_key_spent' }])
      expect(JSON.stringify(answer.body)).not.toContain('sk_live_')
    })
  })

  test('P2: a record sealed before the server secret was changed opens after it', async () => {
    const { store } = await makeStore()
    const before = await serve(store)
    const { secret } = await before.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const first = await call(`${before.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
    const after = await serve(store, { serverSecret: ['another-server-secret-0123456789-0123456789', SERVER_SECRET] })
    const retry = await call(`${after.url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: 'k' })
    expect([retry.status, retry.body]).toEqual([200, first.body])
  })

  test('a retried revocation by the key itself is answered, though it died of it', async () => {
    const { store } = await makeStore()
    const { keys, url } = await serve(store)
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
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
  const { key, secret: dead } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const rotate = (secret = dead, idempotencyKey = 'first'): Promise<Answer> =>
    call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey })
  const answer = await rotate()
  expect(answer.status).toBe(200)
  return { keys, url, id: key.id, secret: secretOf(answer), query, rotate }
}

/** A key that may rotate others, and the request in which it rotates one. */
async function rotatedByAdmin(makeStore: (typeof stores)[number][1]): Promise<{
  keys: Rotated['keys']
  admin: Awaited<ReturnType<Rotated['keys']['create']>>
  target: string
  query: Rotated['query']
  send(secret?: string): Promise<Answer>
}> {
  const { store, query } = await makeStore()
  const { keys, url } = await serve(store)
  const admin = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
  const target = (await keys.create({ as: 'application', ownerId: 'acme', name: 'target' })).key.id
  const send = (secret = admin.secret): Promise<Answer> =>
    call(`${url}/keys/${target}/rotate`, { method: 'POST', secret, idempotencyKey: 'other' })
  return { keys, admin, target, query, send }
}

/** A way to a server on which so many answers are lost, whole, after the server has sent them. */
async function badLine(server: string, losses: number): Promise<{ url: string; dropped: string[] }> {
  const dropped: string[] = []
  const line = await faultProxy(new URL(server))
  atEnd(() => line.close())
  line.trouble('down', {
    kind: 'truncate',
    bytes: 0,
    lost(bytes) {
      if (dropped.push(String(bytes)) === losses) line.heal()
    },
  })
  return { url: `http://127.0.0.1:${line.port}`, dropped }
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

/** The header that carries a key. */
function carrying(secret: string): string {
  return Object.entries(SOURCE.sent(secret))
    .map((header) => header.join(': '))
    .join('\r\n')
}
