import { ok, rejects, deepStrictEqual as same } from 'node:assert/strict'
import type { KeyRow, RemovedKeys, Store } from '../../store/store.js'
import { type Check, digest, eventOf, generationOf, issue, recordOf, replayOf } from './samples.js'

/** What is pruned, erased and ended for many keys at once. */
export function housekeeping(check: Check): void {
  check('finds keys by owner, by whether they were revoked, and by when they were or expired', async (store, sibling) => {
    const [one, two, three] = [await issue(store, { revokedAt: 1_000 }), await issue(store, { expiresAt: 2_000 }), await issue(store)]
    const other = await issue(store, { ownerId: 'other' })
    const ids = async (choice: Parameters<Store['keyIds']>[0]): Promise<string[]> => [...(await sibling.keyIds(choice, 10))].sort()
    const sorted = (...made: { key: KeyRow }[]): string[] => made.map(({ key }) => key.id).sort()
    same(await ids({}), sorted(one, two, three, other))
    same(await ids({ ownerId: 'owner' }), sorted(one, two, three))
    same(await ids({ ownerId: 'owner', unrevoked: true }), sorted(two, three))
    same(await ids({ revokedBefore: 1_001 }), sorted(one))
    same(await ids({ revokedBefore: 1_000 }), [])
    same(await ids({ expiredBefore: 2_001 }), sorted(two))
    same(await ids({ expiredBefore: 2_000 }), [])
    same((await sibling.keyIds({}, 3)).length, 3)
  })

  check(
    'lists events of all keys, oldest first, and removes the oldest, or those of an owner with the records of their keys',
    async (store) => {
      const [mine, theirs] = [await issue(store), await issue(store, { ownerId: 'other' })]
      const events = [eventOf(mine.key, 1_000), eventOf(theirs.key, 2_000), eventOf(mine.key, 3_000), eventOf(mine.key, 4_000)]
      await store.transaction(async (tx) => {
        await tx.appendEvents([])
        await tx.appendEvents(events.toReversed())
        await tx.insertReplay(replayOf(mine.key, { id: 'mine' }))
        await tx.insertReplay(replayOf(theirs.key, { id: 'theirs' }))
      })
      const [first, second, third, fourth] = events
      same(await store.trail({ limit: 10 }), events)
      same(await store.trail({ limit: 2, after: { at: 1_000, id: first?.id ?? '' } }), [second, third])
      same(await store.trail({ limit: 10, ownerId: 'owner', since: 3_000, before: 4_000 }), [third])
      same(await store.pruneEvents({ before: 3_001 }, 2), { events: 2, replays: 0 })
      same(await store.pruneEvents({ before: 3_001 }, 2), { events: 1, replays: 0 })
      same(await store.trail({ limit: 10 }), [fourth])
      same([(await recordOf(store, 'mine'))?.id, (await recordOf(store, 'theirs'))?.id], ['mine', 'theirs'])
      same(await store.pruneEvents({ ownerId: 'owner' }, 10), { events: 1, replays: 1 })
      same([await recordOf(store, 'mine'), (await recordOf(store, 'theirs'))?.id], [undefined, 'theirs'])
    },
  )

  check('removes replay records by their age, but never one whose window is still open', async (store) => {
    const { key } = await issue(store)
    await store.transaction(async (tx) => {
      for (const [id, createdAt, expiresAt] of [
        ['old', 1_000, 2_000],
        ['older', 500, 600],
        ['open', 1_000, 9_000],
        ['young', 3_000, 3_500],
      ] as const)
        await tx.insertReplay(replayOf(key, { id, createdAt, expiresAt }))
    })
    same([await store.pruneReplays(3_000, 1), await store.pruneReplays(3_000, 10), await store.pruneReplays(3_000, 10)], [1, 1, 0])
    const left = await Promise.all(['old', 'older', 'open', 'young'].map(async (id) => (await recordOf(store, id))?.id))
    same(left, [undefined, undefined, 'open', 'young'])
  })

  ends(check)
  removals(check)
}

function ends(check: Check): void {
  check('ends many keys at once as single revocations would', async (store, sibling) => {
    const [active, graced, ended] = [await issue(store), await issue(store), await issue(store, { revokedAt: 5, revokedReason: 'before' })]
    const now = await store.transaction((tx) => tx.now())
    const newer = { ...generationOf(graced.key, 2) }
    await store.transaction(async (tx) => {
      await tx.retireGenerations(graced.key.id, { at: now, by: null, reason: 'rotated', graceEndsAt: now + 60_000 })
      await tx.insertGeneration(newer)
      await tx.insertReplay(replayOf(active.key, { id: 'about' }))
      await tx.insertReplay(replayOf(ended.key, { id: 'given', callerId: graced.key.id }))
    })
    const digests = await sibling.transaction(async (tx) => {
      const ids = [active, graced, ended].map(({ key }) => key.id)
      await tx.lockKeys(ids)
      return tx.endKeys([...ids, '00000000-0000-4000-8000-000000000000'], { at: now + 1, reason: 'closed' })
    })
    same([...digests].sort(), [active.generation.digest, graced.generation.digest, newer.digest].sort())
    const row = async (id: string): Promise<KeyRow | undefined> => (await store.key(id))?.key
    for (const { key } of [active, graced]) {
      const { revokedAt, revokedReason, updatedAt } = (await row(key.id)) ?? key
      same([revokedAt, revokedReason], [now + 1, 'closed'])
      ok(updatedAt > key.updatedAt)
    }
    same((await row(ended.key.id))?.revokedReason, 'before')
    const { found } = await store.read([active.generation.digest, graced.generation.digest, newer.digest])
    same(
      found.map(({ generation: { retiredAt, retiredReason, graceEndsAt } }) => [retiredAt, retiredReason, graceEndsAt]),
      found.map(() => [now + 1, 'revoked', null]),
    )
    same([(await recordOf(store, 'about'))?.sealed, (await recordOf(store, 'given'))?.sealed], [null, null])
  })
}

function removals(check: Check): void {
  const remove = (store: Store, ids: readonly string[], replays: 'kept' | 'removed'): Promise<RemovedKeys> =>
    store.transaction(async (tx) => {
      await tx.lockKeys(ids)
      return tx.removeKeys(ids, replays)
    })

  check('removes keys, and leaves of each secret a tombstone that nothing takes the place of', async (store, sibling) => {
    const { key, generation } = await issue(store, { name: 'personal' })
    const [next, other] = [generationOf(key, 2), await issue(store)]
    const now = await store.transaction((tx) => tx.now())
    await store.transaction(async (tx) => {
      await tx.retireGenerations(key.id, { at: now, by: null, reason: 'rotated' })
      await tx.insertGeneration(next)
    })
    same(await remove(sibling, [key.id], 'removed'), { keys: 1, replays: 0, tombstones: 2, digests: [next.digest] })
    same(await store.markFirstUse(next.digest), { retired: [], waitMs: 0 })
    same([await store.key(key.id), (await store.read([generation.digest, next.digest])).found], [undefined, []])
    same((await store.key(other.key.id))?.key.id, other.key.id)
    const left = await store.transaction((tx) => tx.generation(next.digest))
    same(left, {
      ...{ digest: next.digest, keyId: next.digest, generation: 0, createdAt: 0, retiredAt: 0, graceEndsAt: null, retiredBy: null },
      ...{ retiredReason: null, firstUsedAt: null, retiresEarlier: false, rotationSecretHash: null, secretStart: '', secretLast4: '' },
    })
    await rejects(store.transaction((tx) => tx.insertGeneration({ ...generationOf(other.key, 7), digest: generation.digest })))
    same(await remove(store, [key.id], 'removed'), { keys: 0, replays: 0, tombstones: 0, digests: [] })
    same(await remove(store, [], 'removed'), { keys: 0, replays: 0, tombstones: 0, digests: [] })
  })

  check('removes the records of removed keys, or keeps what a retry of them is refused by', async (store) => {
    const [one, two, three] = [await issue(store), await issue(store), await issue(store)]
    await store.transaction(async (tx) => {
      await tx.insertReplay(replayOf(one.key, { id: 'kept', callerId: 'operator' }))
      await tx.insertReplay(replayOf(two.key, { id: 'removed' }))
      await tx.insertReplay(replayOf(three.key, { id: 'answered', callerId: one.key.id }))
      await tx.insertReplay(replayOf(three.key, { id: digest() }))
    })
    same((await remove(store, [one.key.id], 'kept')).replays, 0)
    same((await remove(store, [two.key.id], 'removed')).replays, 1)
    const kept = await recordOf(store, 'kept')
    same([kept?.sealed, kept?.callerId, kept?.keyId], [null, '', one.key.id])
    same([await recordOf(store, 'removed'), (await recordOf(store, 'answered'))?.sealed], [undefined, null])
  })
}
