import { ok, deepStrictEqual as same } from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import type { GenerationRow, StoreTransaction } from '../../store/store.js'
import { type Check, digest, generationOf, issue } from './samples.js'

/** How secrets end. */
export function retirements(check: Check): void {
  check('retires what is active in one conditional write, and only once', async (store) => {
    const { key, generation } = await issue(store)
    const retire = (by: string): Promise<readonly string[]> =>
      store.transaction((tx) => tx.retireGenerations(key.id, { at: 42, by, reason: 'rotated' }))
    const [first, second] = [await retire('one'), await retire('two')]
    same([first, second], [[generation.digest], []])
    const now = await store.transaction((tx) => tx.generation(generation.digest))
    same(now, { ...generation, retiredAt: 42, retiredBy: 'one', retiredReason: 'rotated' })
    same(await store.transaction((tx) => tx.generationOf(key.id, 1)), now)
    same(await store.transaction((tx) => tx.generationOf(key.id, 2)), undefined)
  })

  check('of racing transactions one retires the active secret', async (store, sibling) => {
    const { key, generation } = await issue(store)
    const retire = (tx: StoreTransaction): Promise<readonly string[]> =>
      tx.retireGenerations(key.id, { at: 42, by: null, reason: 'rotated' })
    // Connected before, or the first would be over by then.
    await sibling.transaction((tx) => tx.now())
    let second: Promise<readonly string[]> | undefined
    const first = await store.transaction(async (tx) => {
      const digests = await retire(tx)
      second = sibling.transaction(retire)
      // Time enough for the second to have looked, where it does not wait.
      for (let n = 0; n < 100; n++) await tx.now()
      return digests
    })
    const more = await Promise.all(Array.from({ length: 10 }, (_, n) => (n % 2 === 0 ? store : sibling).transaction(retire)))
    const retired = [first, await second, ...more].map((digests) => digests ?? [])
    same(retired.flat(), [generation.digest])
  })

  check('retires again what has a grace period, but never what is over', async (store) => {
    const { key, generation } = await issue(store)
    const now = await store.transaction((tx) => tx.now())
    const retire = (at: number, by: string, graceEndsAt?: number): Promise<readonly string[]> =>
      store.transaction((tx) =>
        tx.retireGenerations(key.id, { at, by, reason: 'rotated', ...(graceEndsAt === undefined ? {} : { graceEndsAt }) }),
      )
    const row = (): Promise<GenerationRow | undefined> => store.transaction((tx) => tx.generation(generation.digest))
    same(await retire(now, 'grace', now + 60_000), [generation.digest])
    same([(await row())?.retiredAt, (await row())?.graceEndsAt], [now, now + 60_000])
    same(await retire(now + 1, 'emergency'), [generation.digest])
    same([(await row())?.retiredBy, (await row())?.graceEndsAt], ['emergency', null])
    same(await retire(now + 2, 'again'), [])
  })

  check('a grace period that is over does not begin again when the clock is set back, and counts among what was changed', async (store) => {
    const { key, generation } = await issue(store)
    const second = generationOf(key, 2)
    const ends = await store.transaction(async (tx) => {
      const at = await tx.now()
      await tx.retireGenerations(key.id, { at, by: 'grace', reason: 'rotated', graceEndsAt: at + 1_000 })
      await tx.insertGeneration(second)
      return at + 1_000
    })
    same(await store.transaction((tx) => tx.retireGenerations(key.id, { at: ends, by: 'next', reason: 'rotated' })), [
      generation.digest,
      second.digest,
    ])
    const row = await store.transaction((tx) => tx.generation(generation.digest))
    same([row?.retiredBy, row?.graceEndsAt], ['grace', null])
  })

  check('lowers the end of a grace period from the one that is named, and never raises one', async (store, sibling) => {
    const { key, generation } = await issue(store)
    const now = await store.transaction((tx) => tx.now())
    const lowered = async (from: number, to: number): Promise<number | null | undefined> => {
      await sibling.transaction((tx) => tx.lowerGrace(key.id, 1, { from, to }))
      return (await store.transaction((tx) => tx.generation(generation.digest)))?.graceEndsAt
    }
    same(await lowered(now, now - 1), null)
    await store.transaction((tx) => tx.retireGenerations(key.id, { at: now, by: null, reason: 'rotated', graceEndsAt: now + 60_000 }))
    same(await lowered(now + 60_000, now + 60_001), now + 60_000)
    same(await lowered(now + 50_000, now + 1_000), now + 60_000)
    same(await lowered(now + 60_000, now + 3_000), now + 3_000)
    same(await lowered(now + 60_000, now + 2_000), now + 3_000)
  })
}

/** What the first use of a secret changes. */
export function firstUses(check: Check): void {
  check(
    'the first use of a secret ends the grace period of the one before it, and says how long a lease on that may last',
    async (store) => {
      const { key, generation } = await issue(store)
      const second = { ...generationOf(key, 2), retiresEarlier: true }
      const now = await store.transaction(async (tx) => {
        await tx.lockKeys([key.id])
        const at = await tx.now()
        await tx.retireGenerations(key.id, { at, by: null, reason: 'rotated', graceEndsAt: at + 60_000 })
        await tx.insertGeneration(second)
        await tx.updateKey({ ...key, generation: 2 })
        return at
      })
      const { leaseMs } = await store.read([])
      // What a lost commit of the first use leaves behind is not settled.
      await store.settleFirstUse(second.digest)
      same((await store.transaction((tx) => tx.generation(second.digest)))?.retiresEarlier, true)
      for (const _ of [1, 2]) {
        const { retired, waitMs } = await store.markFirstUse(second.digest)
        same(retired, [generation.digest])
        ok(waitMs >= leaseMs, 'the wait is shorter than a lease')
      }
      const [old, made] = await store.transaction((tx) => Promise.all([tx.generation(generation.digest), tx.generation(second.digest)]))
      same([old?.retiredAt, old?.graceEndsAt], [now, null])
      ok(made?.firstUsedAt !== null && made?.retiresEarlier === true)
      await store.settleFirstUse(second.digest)
      same((await store.transaction((tx) => tx.generation(second.digest)))?.retiresEarlier, false)
      same(await store.markFirstUse(second.digest), { retired: [], waitMs: 0 })
      same(await store.markFirstUse(digest()), { retired: [], waitMs: 0 })
    },
  )

  check('the first use of a secret that retires nothing leaves the one before it alone', async (store) => {
    const { key, generation } = await issue(store)
    const second = generationOf(key, 2)
    const ends = await store.transaction(async (tx) => {
      const at = await tx.now()
      await tx.retireGenerations(key.id, { at, by: null, reason: 'rotated', graceEndsAt: at + 60_000 })
      await tx.insertGeneration(second)
      return at + 60_000
    })
    same(await store.markFirstUse(second.digest), { retired: [], waitMs: 0 })
    same((await store.transaction((tx) => tx.generation(generation.digest)))?.graceEndsAt, ends)
  })

  check('notes the first use once', async (store) => {
    const { generation } = await issue(store)
    await store.markFirstUse(generation.digest)
    const first = await store.transaction((tx) => tx.generation(generation.digest))
    ok(first !== undefined && first.firstUsedAt !== null)
    await store.markFirstUse(generation.digest)
    same(await store.transaction((tx) => tx.generation(generation.digest)), first)
    await store.markFirstUse(digest())
  })
}

/** What is kept of the last use of a key. */
export function lastUses(check: Check): void {
  check('writes the last use of a key, never over a later one, and leaves it alone in every other change', async (store, sibling) => {
    const { key } = await issue(store)
    const use = (agoMs: number, ip: string): Promise<void> => sibling.recordUses([{ keyId: key.id, agoMs, ip, userAgent: 'agent' }])
    await use(1_000, 'first')
    const first = (await store.key(key.id))?.key
    ok(first?.lastUsedAt !== undefined && first.lastUsedAt !== null && Math.abs(Date.now() - 1_000 - first.lastUsedAt) < 60_000)
    await use(50_000, 'older')
    same((await store.key(key.id))?.key, first)
    await store.transaction((tx) => tx.updateKey({ ...key, name: 'changed' }))
    same((await store.key(key.id))?.key, { ...first, name: 'changed' })
    await use(0, 'newer')
    same((await store.key(key.id))?.key.lastUsedIp, 'newer')
    await store.transaction((tx) => tx.updateKey({ ...key, revokedAt: 5, revokedReason: 'gone' }))
    await use(-1_000, 'late')
    const late = (await store.key(key.id))?.key
    same([late?.lastUsedIp, late?.revokedAt, late?.revokedReason], ['late', 5, 'gone'])
    await store.recordUses([{ keyId: randomUUID(), agoMs: 0, ip: null, userAgent: null }])
  })

  check('writes the last uses of many keys together, of each the last, also of one that is being changed', async (store, sibling) => {
    const ids = await Promise.all(Array.from({ length: 20 }, async () => (await issue(store)).key.id))
    const [locked = ''] = ids
    const uses = ids.flatMap((keyId) =>
      [2_000, 1_000, 3_000].map((agoMs) => ({ keyId, agoMs, ip: `${agoMs}`, userAgent: `it's "${agoMs}"` })),
    )
    let written: Promise<void> = Promise.resolve()
    await store.transaction(async (tx) => {
      await tx.lockKeys([locked])
      written = sibling.recordUses([...uses, { keyId: randomUUID(), agoMs: 0, ip: 'stranger', userAgent: null }])
      written.catch(() => {})
      // Where only one writes at a time, it has to wait for the end of this.
      await Promise.race([written, new Promise((resolve) => setTimeout(resolve, 100))])
    })
    await written
    const found = await Promise.all(ids.map(async (id) => (await store.key(id))?.key))
    same(
      found.map((row) => [row?.lastUsedIp, row?.lastUsedUserAgent]),
      ids.map(() => ['1000', `it's "1000"`]),
    )
    await sibling.recordUses([])
  })
}
