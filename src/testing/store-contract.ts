import { ok, rejects, deepStrictEqual as same } from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { ApiKeyError } from '../errors.js'
import type { EventRow, GenerationRow, KeyRow, ReplayAnswer, ReplayRow, Store, StoreTransaction } from '../store/store.js'

/** What a test runner gives: those of jest, vitest and node:test all fit. */
export interface TestRunner {
  describe(name: string, tests: () => void): unknown
  test(name: string, run: () => Promise<void>): unknown
}

/**
 * The suite that every store has to pass, ours and third parties' alike: `storeContract({ describe, test }, 'my store', makeStore)`.
 *
 * @param makeStore makes a store over data of its own, not migrated yet; called once per test. With `sibling`, another store
 *   over the same data, as a second process would have it.
 */
export function storeContract(
  { describe, test }: TestRunner,
  name: string,
  makeStore: () => Promise<{ store: Store; sibling?: Store; close(): Promise<void> }>,
): void {
  const check = (title: string, run: (store: Store, sibling: Store) => Promise<void>): void => {
    test(title, async () => {
      const { store, sibling = store, close } = await makeStore()
      try {
        await store.migrate()
        await run(store, sibling)
      } finally {
        await close()
      }
    })
  }

  describe(name, () => {
    check('migrates again, and from two processes at once, without harm', async (store, sibling) => {
      const { key } = await issue(store)
      await Promise.all([store.migrate(), sibling.migrate(), store.migrate()])
      same((await store.key(key.id))?.key, key)
    })

    check('gives back a key and its generation as they were written', async (store, sibling) => {
      const { key, generation } = await issue(store, {
        name: `quotes ' " \` ; drop table express_api_keys; -- \\ %_ 🗝️ é`,
        ownerId: `o'; --`,
        scopes: ['a:b', "c'd"],
        metadata: { deep: [1, 2.5, null, { ключ: '\u2028"' }], empty: {} },
        expiresAt: 253_402_300_799_999,
      })
      for (const each of [store, sibling]) {
        same(await each.key(key.id), { key, generation })
        same((await each.read([generation.digest])).found, [{ key, generation }])
        same(await each.keys({ ownerId: key.ownerId, limit: 10 }), [key])
      }
    })

    check('answers for many digests at once, and leaves out the unknown', async (store) => {
      const known = [await issue(store), await issue(store), await issue(store)]
      const unknown = Array.from({ length: 97 }, digest)
      const { found } = await store.read([...unknown, ...known.map(({ generation }) => generation.digest)])
      same(found.map(({ key }) => key.id).sort(), known.map(({ key }) => key.id).sort())
      same((await store.read(unknown)).found, [])
      same(await store.key(randomUUID()), undefined)
    })

    check('an answer is never dated later than a change that it does not show', async (store, sibling) => {
      const { key, generation } = await issue(store)
      const reads: { at: number; retired: boolean }[] = []
      let reading = true
      const reader = (async () => {
        while (reading) {
          const { at, found } = await sibling.read([generation.digest])
          reads.push({ at, retired: found[0]?.generation.retiredAt !== null })
        }
      })()
      const committedAfter = await store.transaction(async (tx) => {
        await tx.lockKeys([key.id])
        await tx.retireGenerations(key.id, { at: await tx.now(), by: null, reason: 'rotated' })
        return tx.now()
      })
      const after = await store.read([generation.digest])
      reading = false
      await reader
      ok(after.at >= committedAfter, 'the clock of a read went backwards over a commit')
      ok(after.found[0]?.generation.retiredAt !== null, 'a read after the commit does not show it')
      for (const { at, retired } of reads) ok(retired || at <= after.at, 'an older state was dated later than a newer one')
    })

    check('a throw rolls everything back, and is passed on as it is', async (store) => {
      const { key, generation } = await issue(store)
      const thrown = new Error('of the caller')
      const failed: unknown = await store
        .transaction(async (tx) => {
          await tx.lockKeys([key.id])
          await tx.retireGenerations(key.id, { at: 1, by: 'x', reason: 'revoked' })
          await tx.insertGeneration(generationOf(key, 2))
          await tx.updateKey({ ...key, generation: 2, name: 'changed' })
          await tx.insertReplay(replayOf(key, { id: 'lost' }))
          await tx.appendEvent(eventOf(key, 1))
          throw thrown
        })
        .catch((error: unknown) => error)
      ok(failed === thrown, 'what was thrown came out as something else')
      same(await store.key(key.id), { key, generation })
      same(await store.events({ keyId: key.id, limit: 10 }), [])
      same(await store.transaction((tx) => tx.replay(['lost'])), undefined)
    })

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

    check('refuses a second key of one id, a second generation of one number or digest, and a second record of one id', async (store) => {
      const { key, generation } = await issue(store)
      await store.transaction((tx) => tx.insertReplay(replayOf(key, { id: 'r' })))
      const twins: ((tx: StoreTransaction) => Promise<void>)[] = [
        (tx) => tx.insertKey(key),
        (tx) => tx.insertGeneration(generationOf(key, 1)),
        (tx) => tx.insertGeneration({ ...generationOf(key, 2), digest: generation.digest }),
        (tx) => tx.insertReplay(replayOf(key, { id: 'r' })),
      ]
      for (const twin of twins) await rejects(store.transaction(twin), ApiKeyError)
    })

    check('writes every mutable field of a key and leaves the others', async (store) => {
      const { key } = await issue(store)
      const changed: KeyRow = {
        ...key,
        name: 'other',
        scopes: ['x'],
        metadata: { y: 1 },
        generation: 1,
        updatedAt: key.updatedAt + 5,
        expiresAt: key.createdAt + 9,
        revokedAt: key.createdAt + 7,
        revokedReason: 'gone',
        rotatedTo: randomUUID(),
        secretStart: 'sk_live_',
        secretLast4: 'wxyz',
        secretCreatedAt: key.secretCreatedAt + 3,
      }
      await store.transaction((tx) => tx.updateKey(changed))
      same((await store.key(key.id))?.key, changed)
    })

    check('names its data, the same through every instance', async (store, sibling) => {
      const { storeId } = await store.read([])
      ok(/^[\w-]{8,}$/.test(storeId), 'the store has no name')
      same((await sibling.read([])).storeId, storeId)
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

    check('a grace period that is over does not begin again when the clock is set back', async (store) => {
      const { key, generation } = await issue(store)
      const second = generationOf(key, 2)
      const ends = await store.transaction(async (tx) => {
        const at = await tx.now()
        await tx.retireGenerations(key.id, { at, by: 'grace', reason: 'rotated', graceEndsAt: at + 1_000 })
        await tx.insertGeneration(second)
        return at + 1_000
      })
      same(await store.transaction((tx) => tx.retireGenerations(key.id, { at: ends, by: 'next', reason: 'rotated' })), [second.digest])
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

    check('puts one seal in the place of another once, and none where it was erased', async (store, sibling) => {
      const { key } = await issue(store)
      const id = digest()
      const reseal = (from: string, to: string): Promise<boolean> => sibling.transaction((tx) => tx.reseal(id, { from, to }))
      same(await reseal('seal', 'other'), false)
      await store.transaction((tx) => tx.insertReplay(replayOf(key, { id })))
      same([await reseal('seal', 'second'), (await recordOf(store, id))?.sealed], [true, 'second'])
      same([await reseal('seal', 'third'), (await recordOf(store, id))?.sealed], [false, 'second'])
      await store.transaction((tx) => tx.eraseReplays(key.id, null))
      same([await reseal('second', 'third'), (await recordOf(store, id))?.sealed], [false, null])
    })

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

    check('a name is held by one transaction at a time', async (store, sibling) => {
      const order: string[] = []
      let entered = (): void => {}
      const inside = new Promise<void>((resolve) => {
        entered = resolve
      })
      const first = store.transaction(async (tx) => {
        await tx.lockName('name')
        entered()
        await tx.now()
        await new Promise((resolve) => setTimeout(resolve, 50))
        order.push('first')
      })
      await inside
      const second = sibling.transaction(async (tx) => {
        await tx.lockName('name')
        order.push('second')
      })
      await Promise.all([first, second])
      same(order, ['first', 'second'])
    })

    check('twenty transactions that each add a generation lose none', async (store, sibling) => {
      const { key } = await issue(store)
      const bump = (each: Store): Promise<void> =>
        each.transaction(async (tx) => {
          const [row] = await tx.lockKeys([key.id])
          ok(row)
          await tx.retireGenerations(key.id, { at: await tx.now(), by: null, reason: 'rotated' })
          await tx.insertGeneration(generationOf(key, row.generation + 1))
          await tx.updateKey({ ...row, generation: row.generation + 1 })
        })
      await Promise.all(Array.from({ length: 20 }, (_, n) => bump(n % 2 === 0 ? store : sibling)))
      const now = await store.key(key.id)
      same([now?.key.generation, now?.generation.generation, now?.generation.retiredAt], [21, 21, null])
    })

    check('who waited for a lock sees what the holder committed', async (store, sibling) => {
      const { key, generation } = await issue(store)
      const seen: unknown[] = []
      let second: Promise<void> | undefined
      await store.transaction(async (tx) => {
        await tx.lockKeys([key.id])
        second = sibling.transaction(async (other) => {
          await other.lockKeys([key.id])
          seen.push((await other.generation(generation.digest))?.retiredBy, (await other.replay(['mine']))?.id)
        })
        await tx.retireGenerations(key.id, { at: await tx.now(), by: 'the first', reason: 'rotated' })
        await tx.insertReplay(replayOf(key, { id: 'mine' }))
      })
      await second
      same(seen, ['the first', 'mine'])
    })

    check('two transactions that name the same keys the other way round do not block each other for good', async (store, sibling) => {
      const [a, b] = [await issue(store), await issue(store)]
      const ids = [a.key.id, b.key.id]
      const both = (each: Store, order: string[]): Promise<readonly KeyRow[]> => each.transaction((tx) => tx.lockKeys(order))
      const rounds = await Promise.all(
        Array.from({ length: 10 }, (_, n) => (n % 2 === 0 ? both(store, ids) : both(sibling, ids.toReversed()))),
      )
      for (const rows of rounds)
        same(
          rows.map(({ id }) => id),
          ids.toSorted(),
        )
      same(await store.transaction((tx) => tx.lockKeys([randomUUID()])), [])
      same(await store.transaction((tx) => tx.lockKeys([])), [])
    })

    check('of racing records with one id exactly one is written', async (store, sibling) => {
      const { key } = await issue(store)
      const race = await Promise.allSettled(
        Array.from({ length: 10 }, (_, n) =>
          (n % 2 === 0 ? store : sibling).transaction((tx) => tx.insertReplay(replayOf(key, { id: 'raced' }))),
        ),
      )
      same(race.filter(({ status }) => status === 'fulfilled').length, 1)
    })

    check('finds records with what they made, without a lock, as they are committed', async (store, sibling) => {
      const { key, generation } = await issue(store)
      const record = replayOf(key, { id: 'made' })
      const bare = replayOf(key, { id: 'bare', generation: null })
      await store.transaction(async (tx) => {
        await tx.insertReplay(record)
        await tx.insertReplay(bare)
      })
      const sorted = ({ found }: ReplayAnswer): ReplayAnswer['found'] => found.toSorted((a, b) => (a.record.id < b.record.id ? -1 : 1))
      const { leaseMs } = await store.read([])
      const asked = await store.transaction((tx) => tx.now())
      await store.transaction(async (tx) => {
        await tx.lockKeys([key.id])
        await tx.eraseReplays(key.id, null)
        // A store alone may have one connection only, and it is taken.
        if (sibling === store) return
        const answer = await sibling.replays(['nobody', 'made', 'bare'])
        same(sorted(answer), [
          { record: bare, made: undefined },
          { record, made: generation },
        ])
        ok(answer.waitMs >= leaseMs && answer.at >= asked - 1)
      })
      same(
        sorted(await store.replays(['made', 'bare'])).map((one) => one.record.sealed),
        [null, null],
      )
      same((await store.replays(Array.from({ length: 100 }, digest))).found, [])
    })

    check('settles a record once, and moves the end of its window to what it is from the commit on, never later', async (store) => {
      const { key } = await issue(store)
      const at = await store.transaction((tx) => tx.now())
      await store.transaction(async (tx) => {
        await tx.insertReplay(replayOf(key, { id: 'slow', createdAt: at - 30_000, windowMs: 5_000, expiresAt: at + 575_000 }))
        await tx.insertReplay(replayOf(key, { id: 'late', createdAt: at - 600_000, windowMs: 5_000, expiresAt: at + 1_000 }))
      })
      await store.settle('slow', 2_000)
      await store.settle('late', 0)
      const [slow, late] = [await recordOf(store, 'slow'), await recordOf(store, 'late')]
      ok(slow !== undefined && slow.settledAt !== null && slow.settledAt >= at)
      ok(slow.expiresAt >= at + 3_000 && slow.expiresAt <= slow.settledAt + 3_000)
      same(late?.expiresAt, at + 1_000)
      await store.settle('slow', 0)
      same(await recordOf(store, 'slow'), slow)
      await store.settle('nobody', 0)
    })

    check('erases seals: of one key where told, and everywhere once the window or the first use is past', async (store) => {
      const [{ key, generation }, other] = [await issue(store), await issue(store)]
      const at = await store.transaction((tx) => tx.now())
      await store.transaction(async (tx) => {
        await tx.insertReplay(replayOf(key, { id: 'kept', expiresAt: at + 600_000 }))
        await tx.insertReplay(replayOf(key, { id: 'erased', expiresAt: at + 600_000 }))
        await tx.insertReplay(replayOf(other.key, { id: 'expired', expiresAt: at - 1 }))
        await tx.insertReplay(replayOf(other.key, { id: 'revocation', generation: null, expiresAt: at + 600_000 }))
        await tx.eraseReplays(key.id, 'kept')
      })
      const sealed = async (): Promise<unknown[]> =>
        Promise.all(['kept', 'erased', 'expired', 'revocation'].map(async (id) => (await recordOf(store, id))?.sealed))
      same(await sealed(), ['seal', null, 'seal', 'seal'])
      await store.eraseSeals()
      same(await sealed(), ['seal', null, null, 'seal'])
      await store.markFirstUse(generation.digest)
      await store.eraseSeals()
      same(await sealed(), ['seal', null, null, 'seal'])
      await store.transaction((tx) => tx.insertReplay(replayOf(key, { id: 'at once', expiresAt: at + 600_000, graceMs: -1 })))
      await store.eraseSeals()
      same([...(await sealed()), (await recordOf(store, 'at once'))?.sealed], ['seal', null, null, 'seal', null])
      await store.transaction((tx) => tx.eraseReplays(other.key.id, null))
      same(await sealed(), ['seal', null, null, null])
      await store.transaction((tx) => tx.insertReplay(replayOf(other.key, { id: 'asked for', callerId: key.id })))
      await store.transaction((tx) => tx.eraseReplays(key.id, null))
      same([...(await sealed()), (await recordOf(store, 'asked for'))?.sealed], [null, null, null, null, null])
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

    check('lists keys and events newest first, page by page, also where instants are equal', async (store) => {
      const ownerId = randomUUID()
      const keys: KeyRow[] = []
      for (const createdAt of [5, 7, 7, 7, 6]) keys.push((await issue(store, { ownerId, createdAt })).key)
      await issue(store)
      const order = <T extends { id: string }>(rows: T[], at: (row: T) => number): T[] =>
        rows.toSorted((a, b) => at(b) - at(a) || (a.id < b.id ? 1 : -1))
      const paged: KeyRow[] = []
      for (let last: KeyRow | undefined; ; ) {
        const page = await store.keys({ ownerId, limit: 2, after: last && { at: last.createdAt, id: last.id } })
        paged.push(...page)
        last = page.at(-1)
        if (page.length < 2) break
      }
      same(
        paged,
        order(keys, ({ createdAt }) => createdAt),
      )

      const [key] = keys as [KeyRow]
      const events = [3, 9, 9, 4].map((at) => eventOf(key, at))
      await store.transaction(async (tx) => {
        for (const event of events) await tx.appendEvent(event)
      })
      const all = order(events, ({ at }) => at)
      same(await store.events({ keyId: key.id, limit: 10 }), all)
      same(await store.events({ keyId: key.id, limit: 2, after: all[1] && { at: all[1].at, id: all[1].id } }), all.slice(2))
    })

    check('rotations go on waiting for the longest lease that may still be held, until that is settled', async (store, sibling) => {
      const wait = (): Promise<number> => sibling.transaction((tx) => tx.waitMs())
      await store.setLease(5_000)
      same([(await store.read([])).leaseMs, await wait()], [5_000, 5_000])
      const first = await store.setLease(300)
      same([(await store.read([])).leaseMs, await wait(), first.waitMs], [300, 5_000, 5_000])
      same((await sibling.replays([])).waitMs, 5_000)
      same(await sibling.setLease(800), first)
      same([(await store.read([])).leaseMs, await wait()], [800, 5_000])
      const second = await store.setLease(200)
      same(second.waitMs, 5_000)
      await store.settleLease(first.version)
      same(await wait(), 5_000)
      same(await sibling.setLease(200), second)
      await sibling.settleLease(second.version)
      same([await wait(), (await store.setLease(200)).waitMs], [200, 0])
      await store.setLease(9_000)
      same([(await store.read([])).leaseMs, await wait()], [9_000, 9_000])
      same((await store.setLease(9_000)).waitMs, 0)
    })

    check('rows that were handed out are copies', async (store) => {
      const { key, generation } = await issue(store, { metadata: { list: [1] }, scopes: ['a'] })
      const { found } = await store.read([generation.digest])
      const [copy] = found
      ok(copy)
      Object.assign(copy.key.scopes, ['b'])
      Object.assign(copy.key.metadata.list as object, [2])
      same((await store.key(key.id))?.key, key)
    })
  })
}

async function issue(store: Store, fields: Partial<KeyRow> = {}): Promise<{ key: KeyRow; generation: GenerationRow }> {
  return store.transaction(async (tx) => {
    const now = await tx.now()
    const key: KeyRow = {
      id: randomUUID(),
      ownerId: 'owner',
      name: 'name',
      environment: 'test',
      scopes: [],
      metadata: {},
      generation: 1,
      createdAt: now,
      updatedAt: now,
      expiresAt: null,
      revokedAt: null,
      revokedReason: null,
      rotatedTo: null,
      secretStart: 'sk_test_',
      secretLast4: 'abcd',
      secretCreatedAt: now,
      lastUsedAt: null,
      lastUsedIp: null,
      lastUsedUserAgent: null,
      ...fields,
    }
    const generation = generationOf(key, 1)
    await tx.insertKey(key)
    await tx.insertGeneration(generation)
    return { key, generation }
  })
}

function recordOf(store: Store, id: string): Promise<ReplayRow | undefined> {
  return store.transaction((tx) => tx.replay(['nobody', id]))
}

function digest(): string {
  return randomBytes(32).toString('base64url')
}

function generationOf(key: KeyRow, generation: number): GenerationRow {
  return {
    digest: digest(),
    keyId: key.id,
    generation,
    createdAt: key.createdAt,
    retiredAt: null,
    graceEndsAt: null,
    retiredBy: null,
    retiredReason: null,
    firstUsedAt: null,
    retiresEarlier: false,
    rotationSecretHash: null,
    secretStart: 'sk_test_',
    secretLast4: 'abcd',
  }
}

function replayOf(key: KeyRow, fields: Partial<ReplayRow>): ReplayRow {
  return {
    id: randomUUID(),
    callerId: key.id,
    keyId: key.id,
    generation: 1,
    fingerprint: 'fingerprint',
    sealed: 'seal',
    createdAt: key.createdAt,
    windowMs: 600_000,
    graceMs: 10_000,
    expiresAt: key.createdAt + 600_000,
    settledAt: null,
    ...fields,
  }
}

function eventOf(key: KeyRow, at: number): EventRow {
  const { ownerId } = key
  const details = { generation: 2 }
  return { id: randomUUID(), keyId: key.id, ownerId, type: 'key.rotated', at, actor: 'system', ip: '::1', userAgent: null, details }
}
