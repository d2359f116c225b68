import { ok, deepStrictEqual as same } from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { Cache, Counters, Hit } from '../cache/cache.js'
import { clearTimeout, setTimeout } from '../real-time.js'
import { channelChecks } from './channel-checks.js'
import type { TestRunner } from './store-contract.js'

/**
 * The suite that every cache has to pass, ours and third parties' alike: `cacheContract({ describe, test }, 'my cache', makeCache)`. It goes by the
 * clock that the cache tells with each reading, and waits for instants on it: some seconds in all.
 *
 * @param makeCache makes a cache over data of its own, which answers; called once per test. With `sibling`, another cache over the same data, as a
 *   second process would have it. With `fail`, what takes the server away for good; where it is left out, nothing is asked about failures.
 */
export function cacheContract(
  { describe, test }: TestRunner,
  name: string,
  makeCache: () => Promise<{ cache: Cache; sibling?: Cache; fail?(): Promise<void>; close(): Promise<void> }>,
): void {
  const check = (title: string, run: (cache: Cache, sibling: Cache, fail?: () => Promise<void>) => Promise<void>): void => {
    test(title, async () => {
      const { cache, sibling = cache, fail, close } = await makeCache()
      try {
        await run(cache, sibling, fail)
      } finally {
        await close()
      }
    })
  }

  describe(name, () => {
    entryChecks(check)
    tombstoneChecks(check)
    counterChecks(check)
    troubleChecks(check)
    // A cache need not have a channel: nothing is asked of it then.
    channelChecks((title, run) =>
      check(`channel: ${title}`, async (cache, sibling, fail) => {
        const [channel, other] = [cache.channel?.(), sibling.channel?.()]
        if (channel !== undefined && other !== undefined) await run(channel, other, fail)
      }),
    )
    endChecks(check)
  })
}

type Check = (title: string, run: (cache: Cache, sibling: Cache, fail?: () => Promise<void>) => Promise<void>) => void

const [ACTIVE, TOMBSTONE] = ['a.mac.body', 'r.mac.body']
const LONG_MS = 60_000
const SHORT_MS = 150

function entryChecks(check: Check): void {
  check('reads null where there is no entry, with a clock that does not go back', async (cache, sibling) => {
    let last = 0
    for (const each of [cache, sibling, cache]) {
      const reading = await each.get(digest())
      ok(reading?.value === null, 'an entry that nobody wrote was read')
      ok(reading.timeMs >= last, 'the clock went back')
      last = reading.timeMs
    }
  })

  check('gives back an entry as it was written, however long it is, to every instance', async (cache, sibling) => {
    for (const value of ['a', ACTIVE, `a.${'x'.repeat(30_000)}`]) {
      const it = digest()
      await cache.fill(it, value, (await timeOf(cache)) + LONG_MS)
      for (const each of [cache, sibling]) same((await each.get(it))?.value, value)
    }
    const long = digest()
    const value = `a.${'x'.repeat(100_000)}`
    await cache.fill(long, value, (await timeOf(cache)) + LONG_MS)
    const reading = await sibling.get(long)
    ok(reading === undefined || reading.value === null || reading.value === value, 'an entry came back cut')
  })

  check('gives each reader its own answer where many ask at once', async (cache, sibling) => {
    const expiresAt = (await timeOf(cache)) + LONG_MS
    const all = Array.from({ length: 250 }, digest)
    await Promise.all(all.map((it, n) => cache.fill(it, `a.${n}`, n % 5 === 0 ? expiresAt - 2 * LONG_MS : expiresAt)))
    const readings = await Promise.all(all.map((it) => sibling.get(it)))
    same(
      readings.map((reading) => reading?.value),
      all.map((_, n) => (n % 5 === 0 ? null : `a.${n}`)),
    )
  })

  check('a fill that lands after its expiry stores nothing', async (cache) => {
    const now = await timeOf(cache)
    for (const late of [now, now - 1, now - LONG_MS, 0, -1, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const it = digest()
      await cache.fill(it, ACTIVE, late)
      same([late, (await cache.get(it))?.value], [late, null])
    }
  })

  check('an entry is never read after its expiry, by the clock that comes with the reading', async (cache, sibling) => {
    const it = digest()
    const expiresAt = (await timeOf(cache)) + SHORT_MS
    await cache.fill(it, ACTIVE, expiresAt)
    for (;;) {
      const reading = await sibling.get(it)
      if (reading?.value === ACTIVE) ok(reading.timeMs <= expiresAt, 'an entry was read after its expiry')
      else if (reading !== undefined) break
    }
    await until(cache, expiresAt)
    same((await sibling.get(it))?.value, null)
  })

  check('an active entry gives way to one that lasts longer, and to no other', async (cache, sibling) => {
    const it = digest()
    const expiresAt = (await timeOf(cache)) + LONG_MS
    await cache.fill(it, 'a.first', expiresAt)
    await sibling.fill(it, 'a.shorter', expiresAt - 1_000)
    same((await cache.get(it))?.value, 'a.first')
    await sibling.fill(it, 'a.longer', expiresAt + 1_000)
    same((await cache.get(it))?.value, 'a.longer')
  })

  check('forgets an active entry, and forgetting none does no harm', async (cache, sibling) => {
    const it = digest()
    await cache.forget(it)
    await cache.fill(it, ACTIVE, (await timeOf(cache)) + LONG_MS)
    await sibling.forget(it)
    same((await cache.get(it))?.value, null)
  })
}

function tombstoneChecks(check: Check): void {
  check('a tombstone goes over whatever is there', async (cache, sibling) => {
    const [none, active] = [digest(), digest()]
    await cache.fill(active, ACTIVE, (await timeOf(cache)) + 2 * LONG_MS)
    for (const it of [none, active]) {
      same(await sibling.bury(it, TOMBSTONE, LONG_MS), true)
      same((await cache.get(it))?.value, TOMBSTONE)
      same(await cache.bury(it, 'r.again', LONG_MS), true)
      same((await sibling.get(it))?.value, 'r.again')
    }
  })

  check('a tombstone stays, whatever is filled or forgotten before, after or at the same time', async (cache, sibling) => {
    const expiresAt = (await timeOf(cache)) + 2 * LONG_MS
    const fill = (it: string): Promise<unknown> => sibling.fill(it, ACTIVE, expiresAt)
    const bury = (it: string): Promise<unknown> => cache.bury(it, TOMBSTONE, LONG_MS)
    const forget = (it: string): Promise<unknown> => sibling.forget(it)
    const orders = [
      [fill, bury, forget],
      [fill, forget, bury],
      [bury, fill, forget],
      [bury, forget, fill],
      [forget, fill, bury],
      [forget, bury, fill],
    ]
    for (const order of orders) {
      const [inTurn, atOnce] = [digest(), digest()]
      for (const act of order) await act(inTurn)
      await Promise.all(order.map((act) => act(atOnce)))
      for (const it of [inTurn, atOnce]) same((await cache.get(it))?.value, TOMBSTONE)
    }
  })

  check('a tombstone of no length of life is not stored, and one that is over makes room', async (cache, sibling) => {
    const it = digest()
    for (const ttlMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) same([ttlMs, await cache.bury(it, TOMBSTONE, ttlMs)], [ttlMs, false])
    same((await sibling.get(it))?.value, null)
    same(await cache.bury(it, TOMBSTONE, SHORT_MS), true)
    await until(cache, (await timeOf(cache)) + SHORT_MS)
    same((await sibling.get(it))?.value, null)
    await sibling.fill(it, ACTIVE, (await timeOf(cache)) + LONG_MS)
    same((await cache.get(it))?.value, ACTIVE)
  })
}

/** A cache need not have counters: nothing is asked of them then. */
function counterChecks(check: Check): void {
  const checkCounters = (title: string, limit: Limit, run: (one: Counters, two: Counters, cache: Cache) => Promise<void>): void =>
    check(title, async (cache, sibling) => {
      const [one, two] = [cache.counters?.(limit), sibling.counters?.(limit)]
      if (one !== undefined && two !== undefined) await run(one, two, cache)
    })

  checkCounters('a counter is one for all, and counts each hit once', { max: 50, windowMs: LONG_MS }, async (one, two) => {
    const [it, other] = [digest(), digest()]
    const hits = await Promise.all(Array.from({ length: 60 }, (_, n) => hit(n % 2 === 0 ? one : two, it)))
    const counted = hits.filter((each) => each.counted)
    same(
      counted.map((each) => each.hits).sort((a, b) => a - b),
      Array.from({ length: 50 }, (_, n) => n + 1),
    )
    for (const { hits: there, waitMs } of hits) {
      ok(there <= 50, 'there are more hits than the limit')
      ok(waitMs > 0 && waitMs <= LONG_MS, `a wait of ${waitMs} ms is not in the window`)
    }
    same((await hit(two, other)).hits, 1)
  })

  for (const max of [2, 40]) {
    const limit = { max, windowMs: 2 * SHORT_MS }
    checkCounters(`a counter of ${max} never has more in any stretch of time as long as its window`, limit, async (one, two, cache) => {
      const it = digest()
      const instants: number[] = []
      const end = (await timeOf(cache)) + 3 * limit.windowMs
      while ((await timeOf(cache)) < end) {
        for (const each of await Promise.all([hit(one, it), hit(two, it)])) if (each.counted) instants.push(each.at)
      }
      instants.sort((a, b) => a - b)
      ok(instants.length > max, 'nothing was let in after the first window')
      for (const [n, at] of instants.slice(max).entries()) {
        const began = instants[n] ?? 0
        ok(at - began >= limit.windowMs, `${max + 1} hits were counted within ${at - began} ms`)
      }
    })
  }

  checkCounters('lets in a client that waits as long as it is told', { max: 2, windowMs: SHORT_MS }, async (one, two, cache) => {
    const it = digest()
    for (const each of [one, two]) same((await hit(each, it)).counted, true)
    const refused = await hit(one, it)
    same(refused.counted, false)
    await until(cache, (await timeOf(cache)) + refused.waitMs)
    same((await hit(two, it)).counted, true)
  })

  checkCounters('takes back a hit, once it is there', { max: 2, windowMs: LONG_MS }, async (one, two) => {
    const it = digest()
    const first = await hit(one, it)
    same((await hit(two, it)).counted, true)
    await two.takeBack(it, first.at)
    same((await hit(one, it)).counted, true)
    same((await hit(two, it)).counted, false)
  })

  checkCounters('never counts below zero', { max: 2, windowMs: LONG_MS }, async (one, two) => {
    const it = digest()
    await one.takeBack(it, Date.now())
    const first = await hit(one, it)
    for (const each of [one, two, one]) await each.takeBack(it, first.at)
    same([(await hit(one, it)).hits, (await hit(two, it)).hits, (await hit(one, it)).counted], [1, 2, false])
  })

  checkCounters('a hit that has slid out is not taken from a later window', { max: 2, windowMs: SHORT_MS }, async (one, two, cache) => {
    const it = digest()
    const old = await hit(one, it)
    await until(cache, (await timeOf(cache)) + SHORT_MS)
    for (const each of [one, two]) same((await hit(each, it)).counted, true)
    await one.takeBack(it, old.at)
    same((await hit(two, it)).counted, false)
  })
}

function troubleChecks(check: Check): void {
  check('says nothing wrong when its server is gone: no answer, in time, and never a rejection', async (cache, _sibling, fail) => {
    if (fail === undefined) return
    const counters = cache.counters?.({ max: 2, windowMs: LONG_MS })
    const it = digest()
    await cache.bury(it, TOMBSTONE, LONG_MS)
    await fail()
    const limitMs = 1_000 + (cache.timeoutMs ?? 0)
    for (let n = 0; n < 10; n++) {
      const answers = Promise.all([
        cache.get(it),
        cache.fill(it, ACTIVE, Date.now() + LONG_MS),
        cache.bury(it, TOMBSTONE, LONG_MS),
        cache.forget(it),
        counters?.hit(it),
        counters?.takeBack(it, Date.now()),
      ])
      same(await inTime(answers, limitMs), [undefined, undefined, false, undefined, undefined, undefined])
    }
    await inTime(cache.close(), limitMs)
  })

  check('can be closed twice, and asked afterwards', async (cache) => {
    const it = digest()
    const counters = cache.counters?.({ max: 2, windowMs: LONG_MS })
    await cache.close()
    await cache.close()
    await cache.get(it)
    await cache.fill(it, ACTIVE, Date.now() + LONG_MS)
    await cache.bury(it, TOMBSTONE, LONG_MS)
    await cache.forget(it)
    await counters?.hit(it)
    await counters?.takeBack(it, Date.now())
  })
}

function endChecks(check: Check): void {
  check('ends its channels with itself', async (cache, sibling) => {
    const [channel, other] = [cache.channel?.(), sibling === cache ? undefined : sibling.channel?.()]
    if (channel === undefined) return
    const address = `check:${digest()}`
    ok((await channel.listen([address], () => {})) !== undefined, 'the channel does not open')
    await other?.listen([address], () => {})
    await cache.close()
    same([channel.isOpen(), other?.isOpen()], [false, other && true])
    same(await channel.listen([address], () => {}), undefined)
    await channel.send(address, 'too late')
    await channel.close()
  })
}

interface Limit {
  readonly max: number
  readonly windowMs: number
}

function digest(): string {
  return randomBytes(32).toString('base64url')
}

async function hit(counters: Counters, name: string): Promise<Hit> {
  const said = await counters.hit(name)
  ok(said !== undefined, 'the counter gave no answer')
  return said
}

async function timeOf(cache: Cache): Promise<number> {
  const reading = await cache.get(digest())
  ok(reading !== undefined, 'the cache gave no answer')
  return reading.timeMs
}

/** Resolves when the clock of the cache has passed an instant. */
async function until(cache: Cache, instant: number): Promise<void> {
  for (let now = await timeOf(cache); now <= instant; now = await timeOf(cache)) await pause(instant - now + 1)
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}

function inTime<T>(answer: Promise<T>, limitMs: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`There was no answer within ${limitMs} ms.`)), limitMs)
    answer.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
