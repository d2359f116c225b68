import { ok, rejects, deepStrictEqual as same } from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { ApiKeyError } from '../../errors.js'
import type { KeyRow, Store, StoreTransaction } from '../../store/store.js'
import { type Check, eventOf, generationOf, issue, replayOf } from './samples.js'

/** What a transaction writes, and what it leaves behind when it fails. */
export function transactions(check: Check): void {
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
      allowedIps: ['192.0.2.0/24', '2001:db8::1'],
      generation: 1,
      updatedAt: key.updatedAt + 5,
      expiresAt: key.createdAt + 9,
      disabledAt: key.createdAt + 6,
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
}

/** What transactions wait for. */
export function locks(check: Check): void {
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
}

/** For how long a rotation must wait. */
export function leases(check: Check): void {
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
}
