import { createApiKeys, type Store } from 'express-api-keys'
import { keyUses } from '../../src/core/uses.js'
import { TestClock } from '../support/clock.js'
import { everyStore } from '../support/contract.js'

const SECRET = 'the-server-secret-0123456789-0123456789'
const MINUTE = 60_000

type Written = Parameters<Store['recordUses']>[0]

describe('the last use of a key', () => {
  let clock: TestClock
  let written: Written[]
  let record: Store['recordUses']
  let reported: unknown[]
  let uses: ReturnType<typeof keyUses>
  beforeEach(() => {
    // Timers are turned by hand together with the clock; what the rest of Node needs goes on.
    jest.useFakeTimers({ doNotFake: ['nextTick', 'setImmediate', 'queueMicrotask', 'performance', 'Date'] })
    clock = new TestClock()
    written = []
    reported = []
    record = async (batch) => {
      written.push([...batch])
    }
    const store = { recordUses: (batch: Written) => record(batch) } as Store
    uses = keyUses(store, clock, (error) => reported.push(error))
  })
  afterEach(async () => {
    await uses.close()
    expect(jest.getTimerCount()).toBe(0)
    jest.useRealTimers()
  })
  const passes = async (ms: number): Promise<void> => {
    for (let left = ms; left > 0; left -= 500) {
      clock.advance(Math.min(left, 500))
      await jest.advanceTimersByTimeAsync(Math.min(left, 500))
    }
  }
  const use = (keyId: string, ip = '192.0.2.1'): void => uses.note(keyId, () => ({ ip, userAgent: 'agent/1' }))

  test('is written behind the request, at most once a minute, however often it is used', async () => {
    for (let ms = 0; ms < 10 * MINUTE; ms += 500) {
      use('busy')
      await passes(500)
    }
    expect(written.length).toBeGreaterThanOrEqual(8)
    expect(written.length).toBeLessThanOrEqual(10)
    expect(written.every((batch) => batch.length === 1)).toBe(true)
  })

  test('tells how long before the write it was, and where the first request of the minute came from', async () => {
    use('key')
    await passes(400)
    use('key', '192.0.2.9')
    expect(written).toEqual([])
    await passes(600)
    expect(written).toEqual([[{ keyId: 'key', agoMs: 1_000, ip: '192.0.2.1', userAgent: 'agent/1' }]])
  })

  test('goes out together with that of others, at most two hundred in one write', async () => {
    for (let n = 0; n < 450; n++) use(`key ${n}`)
    await passes(1_000)
    expect(written.map(({ length }) => length)).toEqual([200, 200, 50])
    expect(new Set(written.flat().map(({ keyId }) => keyId)).size).toBe(450)
  })

  test('is lost with a word where it cannot be written, and written again with the use of a later minute', async () => {
    const works = record
    record = () => Promise.reject(new Error('down'))
    use('key')
    await passes(1_000)
    expect(reported).toMatchObject([{ message: 'down' }])
    record = works
    await passes(2 * MINUTE)
    use('key')
    await passes(1_000)
    expect(written).toHaveLength(1)
  })

  test('is written when the keys are closed, also while another write is under way', async () => {
    let go = (): void => {}
    const works = record
    record = async (batch) => {
      await new Promise<void>((resolve) => {
        go = resolve
      })
      record = works
      await works(batch)
    }
    use('first')
    await passes(1_000)
    use('second')
    let closed = false
    const closing = uses.close().then(() => {
      closed = true
    })
    await passes(500)
    expect([closed, written]).toEqual([false, []])
    go()
    await closing
    expect(written.flat().map(({ keyId }) => keyId)).toEqual(['first', 'second'])
  })

  test('is cut to what a column holds, and has no NUL', async () => {
    uses.note('key', () => ({ ip: undefined, userAgent: `a\0${'x'.repeat(300)}` }))
    await uses.close()
    expect(written[0]).toMatchObject([{ ip: null, userAgent: `a${'x'.repeat(253)}` }])
  })
})

describe.each(everyStore)('on %s', (_name, makeStore) => {
  test('a last use that is written late neither brings a revoked key back nor undoes a rotation, and a change undoes no last use', async () => {
    const store = await makeStore()
    const keys = createApiKeys({ store, secret: SECRET, leaseMs: 50 })
    await keys.migrate()
    const [revoked, rotated] = [
      await keys.create({ ownerId: 'acme', name: 'revoked' }),
      await keys.create({ ownerId: 'acme', name: 'rotated' }),
    ]
    const uses = keyUses(store, { monotonicMs: () => performance.now(), wallMs: Date.now, sleep: async () => {} }, () => {})
    for (const { key } of [revoked, rotated]) uses.note(key.id, () => ({ ip: '192.0.2.1', userAgent: 'late/1' }))
    const ended = await keys.revoke({ id: revoked.key.id, reason: 'leaked' })
    const { key: turned } = await keys.rotate({ id: rotated.key.id })
    await uses.close()
    const used = { lastUsedAt: expect.any(String), lastUsedIp: '192.0.2.1', lastUsedUserAgent: 'late/1' }
    expect(await keys.get(revoked.key.id)).toEqual({ ...ended.key, ...used })
    expect(await keys.get(rotated.key.id)).toEqual({ ...turned, ...used })
    expect(await keys.verify(revoked.secret)).toEqual({ ok: false, reason: 'revoked' })
    const { key: again } = await keys.rotate({ id: rotated.key.id })
    expect(again).toMatchObject({ ...used, generation: 3 })
    expect(await keys.get(rotated.key.id)).toEqual(again)
    await keys.close()
  })
})
