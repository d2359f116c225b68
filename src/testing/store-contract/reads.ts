import { ok, deepStrictEqual as same } from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import type { KeyFilters, KeyRow } from '../../store/store.js'
import { type Check, digest, eventOf, issue } from './samples.js'

/** What a store answers outside of transactions. */
export function reads(check: Check): void {
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

  check('names its data, the same through every instance', async (store, sibling) => {
    const { storeId } = await store.read([])
    ok(/^[\w-]{8,}$/.test(storeId), 'the store has no name')
    same((await sibling.read([])).storeId, storeId)
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
}

/** What it lists. */
export function listings(check: Check): void {
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

  check('lists only the keys that pass every filter', async (store) => {
    const ownerId = randomUUID()
    const far = 253_402_300_799_999
    const make = async (fields: Partial<KeyRow>): Promise<{ key: KeyRow }> => {
      // Another owner has one that no filter tells from it.
      await issue(store, fields)
      return issue(store, { ownerId, ...fields })
    }
    const { key: plain } = await make({ createdAt: 10, name: '100% of Ä_b!', expiresAt: null, secretLast4: 'aB3d' })
    const { key: late } = await make({ createdAt: 9, name: '100 x ä-b', environment: 'live', expiresAt: far, lastUsedAt: 20 })
    const { key: over } = await make({ createdAt: 8, name: 'REPORTS', expiresAt: 30, lastUsedAt: 40, secretLast4: 'ab3d' })
    const { key: gone } = await make({ createdAt: 7, name: 'reports', expiresAt: 30, revokedAt: 25 })
    const { key: off } = await make({ createdAt: 6, name: 'off', expiresAt: 30, disabledAt: 25, lastUsedAt: 99 })
    const found = async (filters: KeyFilters): Promise<unknown> =>
      (await store.keys({ ownerId, ...filters, limit: 10 })).map(({ id }) => id)
    const cases: readonly [KeyFilters, readonly KeyRow[]][] = [
      [{}, [plain, late, over, gone, off]],
      [{ status: 'active' }, [plain, late]],
      [{ status: 'expired' }, [over]],
      [{ status: 'disabled' }, [off]],
      [{ status: 'revoked' }, [gone]],
      [{ environment: 'live' }, [late]],
      [{ expiresBefore: 30 }, []],
      [{ expiresBefore: 31 }, [over, gone, off]],
      [{ lastUsedBefore: 20 }, [plain, gone]],
      [{ lastUsedBefore: 21 }, [plain, late, gone]],
      [{ name: 'ePorT' }, [over, gone]],
      [{ name: '0%' }, [plain]],
      [{ name: '_b' }, [plain]],
      [{ name: '!' }, [plain]],
      [{ name: 'Ä' }, [plain]],
      [{ last4: 'aB3d' }, [plain]],
      [{ name: 'reports', status: 'revoked' }, [gone]],
      [{ name: 'reports', environment: 'live' }, []],
    ]
    for (const [filters, keys] of cases) same([filters, await found(filters)], [filters, keys.map(({ id }) => id)])
  })

  check('lists the keys of all owners where none is named', async (store) => {
    const [one, other] = [randomUUID(), randomUUID()]
    const name = `found ${randomUUID()}`
    const { key: older } = await issue(store, { ownerId: one, name, createdAt: 5 })
    const { key: newer } = await issue(store, { ownerId: other, name, createdAt: 6 })
    same(await store.keys({ name, limit: 10 }), [newer, older])
    same(await store.keys({ name, limit: 10, after: { at: 6, id: newer.id } }), [older])
  })
}
