import { ok, deepStrictEqual as same } from 'node:assert/strict'
import type { ReplayAnswer } from '../../store/store.js'
import { type Check, digest, issue, recordOf, replayOf } from './samples.js'

/** The records of finished changes. */
export function replays(check: Check): void {
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
}

/** The answers that are sealed in them. */
export function seals(check: Check): void {
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
}
