import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import express5 from 'express'
import { memoryStore } from 'express-api-keys'
import { redisCache } from 'express-api-keys/redis'
import express4 from 'express4'
import fc from 'fast-check'
import { Redis } from 'ioredis'
import { exchangeBytes, requestBytes, wire } from '../support/bytes.js'
import { atEnd } from '../support/cleanup.js'
import { type Instance, serve } from '../support/instance.js'
import { startRedis } from '../support/redis.js'
import { stores } from '../support/stores.js'

const PATH = '/keys/self/rotate'
const BODY = '{"retire":"now", "emergency":false}'.padEnd(300)

function portOf({ server }: Instance): number {
  return (server.address() as AddressInfo).port
}

async function issue({ keys }: Instance): Promise<{ id: string; secret: string }> {
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'worker' })
  return { id: key.id, secret }
}

/** A rotation as it should be, and one connection for it. */
function rotation(secret: string, idempotencyKey: string, more: readonly (readonly [string, string])[] = [], body = '{}'): Buffer {
  const headers = [
    ['Host', 'x'],
    ['Authorization', `Bearer ${secret}`],
    ['Idempotency-Key', idempotencyKey],
    ['Content-Type', 'application/json'],
    ...(body === '' ? [] : [['Content-Length', String(body.length)]]),
    ...more,
  ] as [string, string][]
  return requestBytes('POST', PATH, headers, body)
}

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
])('on %s', (_name, framework) => {
  let here: Instance
  beforeAll(async () => {
    here = await serve(memoryStore(), {}, framework)
  })

  test.each<[string, (secret: string, other: string) => Buffer]>([
    ['two Authorization headers', (secret, other) => rotation(secret, 'k', [['Authorization', `Bearer ${other}`]])],
    ['two Authorization headers in different case', (secret) => rotation(secret, 'k', [['AUTHORIZATION', `Bearer ${secret}`]])],
    ['an empty Authorization header behind the good one', (secret) => rotation(secret, 'k', [['authorization', '']])],
    ['two Idempotency-Keys', (secret) => rotation(secret, 'k', [['Idempotency-Key', 'k']])],
    ['two Idempotency-Keys, of which one is empty', (secret) => rotation(secret, 'k', [['idempotency-key', '']])],
    ['two Content-Lengths', (secret) => rotation(secret, 'k', [['Content-Length', '2']])],
    ['two Content-Lengths that differ', (secret) => rotation(secret, 'k', [['Content-Length', '3']])],
    ['a list of Content-Lengths', (secret) => rotation(secret, 'k', [['Content-Length', '2, 2']], '')],
    ['a Content-Length with a sign', (secret) => rotation(secret, 'k', [['Content-Length', '+2']], '')],
    ['a negative Content-Length', (secret) => rotation(secret, 'k', [['Content-Length', '-1']], '')],
    ['a Content-Length in hex', (secret) => rotation(secret, 'k', [['Content-Length', '0x2']], '')],
    ['a Content-Length beyond all numbers', (secret) => rotation(secret, 'k', [['Content-Length', '9'.repeat(40)]], '')],
    ['Transfer-Encoding beside Content-Length', (secret) => rotation(secret, 'k', [['Transfer-Encoding', 'chunked']])],
    ['a Transfer-Encoding that does not end in chunked', (secret) => rotation(secret, 'k', [['Transfer-Encoding', 'chunked, gzip']], '')],
    [
      'a chunk without a size',
      (secret) => Buffer.concat([rotation(secret, 'k', [['Transfer-Encoding', 'chunked']], ''), Buffer.from('z\r\n{}\r\n0\r\n\r\n')]),
    ],
    ['a folded Idempotency-Key', (secret) => rotation(secret, 'k\r\n j')],
    ['a folded Authorization with a second token', (secret, other) => rotation(`${secret}\r\n Bearer ${other}`, 'k')],
    ['a space before the colon', (secret) => rotation(secret, 'k', [['Authorization ', 'x']])],
    ['a NUL in a header', (secret) => rotation(secret, 'k', [['X-A', 'a\0b']])],
    ['a NUL in the Idempotency-Key', (secret) => rotation(secret, 'k\0')],
    ['a header without a name', (secret) => rotation(secret, 'k', [['', 'x']])],
    ['more headers than there is room for', (secret) => rotation(secret, 'k', [['X-A', 'x'.repeat(20_000)]])],
  ])('refuses %s, and nothing changes', async (_what, make) => {
    const [{ id, secret }, other] = [await issue(here), await issue(here)]
    const answer = await exchangeBytes(portOf(here), make(secret, other.secret))
    expect([400, 431]).toContain(answer?.status)
    expect(JSON.stringify(answer)).not.toContain(secret)
    expect([(await here.keys.get(id))?.generation, (await here.keys.get(other.id))?.generation]).toEqual([1, 1])
  })

  // Node hears of the end in the same turn as of the head, before anybody has had the time to read the body.
  test.each([
    ['a body that breaks off', 'Transfer-Encoding', 'chunked', 'z\r\n'],
    ['a body that breaks off in the middle', 'Transfer-Encoding', 'chunked', '5\r\n{"ret\r\nz\r\n'],
    ['a whole body with garbage behind it', 'Content-Length', '29', '{"retire":{"afterMs":600000}}\0\0\r\n\r\n'],
  ])('P2: %s is never taken for a request without one, whose answer the retry could not ask for', async (_what, name, value, sent) => {
    const { id, secret } = await issue(here)
    const { socket, answers } = await wire(portOf(here))
    const handled = here.keys.get(id)
    socket.write(Buffer.concat([rotation(secret, 'k', [[name, value]], ''), Buffer.from(sent)]))
    await answers(1)
    await handled
    await connections(here, 0)
    const body = '{"retire":{"afterMs":600000}}'
    const retries = [1, 2].map(() => exchangeBytes(portOf(here), rotation(secret, 'k', [], body)))
    const [first, second] = await Promise.all(retries)
    expect([first?.status, second?.status, second?.body]).toEqual([200, 200, first?.body])
    expect((await here.keys.get(id))?.generation).toBe(2)
    socket.destroy()
  })

  test('bodies that never come leave nothing behind: no connection, no timer, no change', async () => {
    const { id, secret } = await issue(here)
    await connections(here, 0)
    const before = resources()
    const begun = new Promise<void>((resolve) => {
      let count = 0
      here.server.on('request', () => {
        count++
        if (count === 50) resolve()
      })
    })
    const open = await Promise.all(Array.from({ length: 50 }, () => wire(portOf(here))))
    for (const [n, { socket }] of open.entries()) {
      const head = rotation(secret, 'k', n % 2 === 0 ? [['Content-Length', '100']] : [['Transfer-Encoding', 'chunked']], '')
      socket.write(Buffer.concat([head, Buffer.from(n % 2 === 0 ? '{"emergency":' : '5\r\n{"em')]))
    }
    await begun
    for (const [n, { socket }] of open.entries()) {
      if (n % 3 === 0) socket.resetAndDestroy()
      else if (n % 3 === 1) socket.destroy()
      else socket.end()
    }
    await connections(here, 0)
    await Promise.all(open.map(({ socket }) => socket.destroyed || once(socket, 'close')))
    // What is still closing is gone some turns later; what is left behind is never gone.
    while (Object.entries(resources()).some(([name, count]) => count > (before[name] ?? 0))) await new Promise(setImmediate)
    expect((await here.keys.get(id))?.generation).toBe(1)
    expect((await exchangeBytes(portOf(here), rotation(secret, 'k')))?.status).toBe(200)
  })
})

describe.each(stores)('on %s', (_name, make) => {
  let here: Instance
  beforeAll(async () => {
    const [{ store }, { url }] = [await make(), await startRedis()]
    const redis = new Redis(url)
    atEnd(async () => redis.disconnect())
    // With Redis there is a way to go between the head of a request and its body.
    here = await serve(store, { leaseMs: 250, cache: redisCache(redis) })
    await exchangeBytes(portOf(here), rotation((await issue(here)).secret, 'connects'))
  })

  test('P1, P2: the same rotation many times in one go on one connection is done once, and answered alike', async () => {
    const { id, secret } = await issue(here)
    const { socket, answers } = await wire(portOf(here))
    socket.write(Buffer.concat(Array.from({ length: 8 }, () => rotation(secret, 'same'))))
    const all = await answers(8)
    expect(all.map(({ status }) => status)).toEqual(Array.from({ length: 8 }, () => 200))
    expect(new Set(all.map(({ body }) => body)).size).toBe(1)
    expect(all.filter(({ headers }) => headers['idempotent-replayed'] === 'true')).toHaveLength(7)
    expect((await here.keys.get(id))?.generation).toBe(2)
    socket.destroy()
  })

  test('P1, P2: rotations with different Idempotency-Keys in one go have one winner, who can ask again', async () => {
    const { id, secret } = await issue(here)
    const { socket, answers } = await wire(portOf(here))
    const names = ['a', 'b', 'c', 'd']
    socket.write(Buffer.concat(names.map((name) => rotation(secret, name))))
    const all = await answers(names.length)
    expect(all.map(({ status }) => status).sort()).toEqual([200, 401, 401, 401])
    expect((await here.keys.get(id))?.generation).toBe(2)
    const won = all.findIndex(({ status }) => status === 200)
    const again = await exchangeBytes(portOf(here), rotation(secret, names[won] ?? ''))
    expect([again?.status, again?.body]).toEqual([200, all[won]?.body])
    socket.destroy()
  })

  test('P2: wherever a connection is cut in the midst of a rotation, the retry gets the one active secret', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({ side: fc.constantFrom('sending', 'receiving'), part: fc.double({ min: 0, max: 1, noNaN: true }), reset: fc.boolean() }),
        async ({ side, part, reset }) => {
          const { id, secret } = await issue(here)
          const bytes = rotation(secret, 'cut', [], BODY)
          const { socket, heard } = await wire(portOf(here))
          const gone = once(socket, 'close')
          const cut = (): void => {
            if (reset) socket.resetAndDestroy()
            else socket.destroy()
          }
          if (side === 'sending') socket.write(bytes.subarray(0, Math.round(part * bytes.length)), cut)
          else {
            // An answer has some 700 bytes, and comes in one piece or in several.
            socket.on('data', () => heard().length >= part * 700 && cut())
            socket.end(bytes)
            socket.on('end', cut)
          }
          await gone
          const answers = [1, 2].map(() => exchangeBytes(portOf(here), rotation(secret, 'cut', [], BODY)))
          const [first, second] = await Promise.all(answers)
          expect([first?.status, second?.status, second?.body]).toEqual([200, 200, first?.body])
          const fresh = JSON.parse(first?.body ?? '').secret as string
          expect(await here.keys.get(id)).toMatchObject({ generation: 2, secretLast4: fresh.slice(-4) })
        },
      ),
      { numRuns: 25, examples: [[{ side: 'sending', part: 1, reset: true }], [{ side: 'sending', part: 0, reset: false }]] },
    )
  })
})

test('after close() no timer is left of all that was started', async () => {
  const left = new Set<unknown>()
  const real = { setInterval, clearInterval }
  jest.spyOn(globalThis, 'setInterval').mockImplementation(((...args: Parameters<typeof setInterval>) => {
    const timer = real.setInterval(...args)
    left.add(timer)
    return timer
  }) as typeof setInterval)
  jest.spyOn(globalThis, 'clearInterval').mockImplementation((timer) => {
    left.delete(timer)
    real.clearInterval(timer)
  })
  const here = await serve(memoryStore())
  const { secret } = await issue(here)
  const get = (token: string): Buffer =>
    requestBytes('GET', '/data', [
      ['Host', 'x'],
      ['Authorization', `Bearer ${token}`],
      ['Connection', 'close'],
    ])
  expect((await exchangeBytes(portOf(here), get(secret)))?.status).toBe(200)
  expect((await exchangeBytes(portOf(here), get('sk_live_0')))?.status).toBe(401)
  expect((await exchangeBytes(portOf(here), rotation(secret, 'k')))?.status).toBe(200)
  expect((await exchangeBytes(portOf(here), rotation(secret, 'j')))?.status).toBe(401)
  here.server.closeAllConnections()
  await new Promise((resolve) => here.server.close(resolve))
  await here.keys.close()
  expect(left.size).toBe(0)
})

/** What keeps this process alive, counted. */
function resources(): { [name: string]: number } {
  const counts: { [name: string]: number } = {}
  for (const name of process.getActiveResourcesInfo()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

/** Resolves when the server has so many connections. */
async function connections({ server }: Instance, wanted: number): Promise<void> {
  const count = (): Promise<number> =>
    new Promise((resolve, reject) => server.getConnections((error, n) => (error ? reject(error) : resolve(n))))
  while ((await count()) !== wanted) await new Promise(setImmediate)
}
