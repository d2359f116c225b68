import type { Store } from 'express-api-keys'
import { keyUses } from '../../src/core/last-use.js'
import { TestClock } from '../support/clock.js'

jest.mock('../../src/real-time.js', () => require('../support/global-time.js'))

const MINUTE = 60_000
const ORIGIN = { ip: '::1', userAgent: 'agent/1' }

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
    for (let n = 450; n < 650; n++) use(`key ${n}`)
    await passes(1_000)
    expect(written.map(({ length }) => length)).toEqual([200, 200, 50, 200])
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

describe('the table of last uses', () => {
  beforeEach(() => jest.useFakeTimers())
  afterEach(() => jest.useRealTimers())

  test('a key is written once a minute, and where a use came from is not asked in between', async () => {
    const { uses, pass, writes } = world()
    let asked = 0
    const note = (): void =>
      uses.note('a', () => {
        asked++
        return ORIGIN
      })
    for (let ms = 0; ms < 59_000; ms += 1_000) {
      note()
      await pass(1_000)
    }
    expect([writes.length, asked]).toEqual([1, 1])
    // The sweep comes every quarter of a minute.
    await pass(16_000)
    note()
    await pass(1_000)
    expect([writes.length, asked]).toEqual([2, 2])
  })

  test('a sweep forgets what is a minute old, and no more, and ends when there is nothing left', async () => {
    const { uses, pass, writes } = world()
    uses.note('a', () => ORIGIN)
    await pass(30_000)
    uses.note('b', () => ORIGIN)
    await pass(30_000)
    for (const keyId of ['a', 'b']) uses.note(keyId, () => ORIGIN)
    await uses.flush()
    expect(writes.flat().map(({ keyId }) => keyId)).toEqual(['a', 'b', 'a'])
    expect(jest.getTimerCount()).toBe(1)
    await pass(75_000)
    expect(jest.getTimerCount()).toBe(0)
    uses.note('a', () => ORIGIN)
    expect(jest.getTimerCount()).toBe(2)
    await uses.close()
  })

  test('fifty thousand keys are remembered, and the oldest is forgotten first', async () => {
    const { uses, writes } = world()
    for (let n = 0; n <= 50_000; n++) uses.note(`${n}`, () => ORIGIN)
    await uses.flush()
    writes.length = 0
    for (const keyId of ['1', '50000', '0']) uses.note(keyId, () => ORIGIN)
    await uses.flush()
    expect(writes.flat().map(({ keyId }) => keyId)).toEqual(['0'])
  })

  test('closing writes what is waiting and leaves no timer behind; with nothing in wait nothing is written', async () => {
    const { uses, writes } = world()
    uses.note('a', () => ORIGIN)
    expect(jest.getTimerCount()).toBe(2)
    await uses.close()
    expect([writes.length, jest.getTimerCount()]).toEqual([1, 0])
    await uses.close()
    expect(writes).toHaveLength(1)
  })
})

function world(): {
  uses: ReturnType<typeof keyUses>
  writes: Written[number][][]
  /** Lets time pass on the clock and on the timers. */
  pass(ms: number): Promise<void>
} {
  const clock = new TestClock()
  const writes: Written[number][][] = []
  const store: Pick<Store, 'recordUses'> = {
    async recordUses(uses) {
      writes.push([...uses])
    },
  }
  const uses = keyUses(store as Store, clock, () => {})
  return {
    uses,
    writes,
    async pass(ms) {
      clock.advance(ms)
      await jest.advanceTimersByTimeAsync(ms)
    },
  }
}
