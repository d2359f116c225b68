import { ok, rejects, deepStrictEqual as same } from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { ApiKeyError } from '../../errors.js'
import type { GenerationRow, KeyRow } from '../../store/store.js'
import { type Check, digest, eventOf, generationOf, issue } from './samples.js'

/** Keys that come in many at a time. */
export function imports(check: Check): void {
  check('takes 500 keys at once, each as it is', async (store) => {
    const { key: sample } = await issue(store)
    const rows = Array.from({ length: 500 }, (_, n) => made(sample, n))
    await store.transaction(async (tx) => {
      await tx.insertKeys(rows)
      await tx.appendEvents(rows.map(({ key }, n) => eventOf(key, n)))
      await tx.insertKeys([])
      await tx.appendEvents([])
    })
    for (const { key, generation } of [rows[0], rows[250], rows[499]] as Made[]) {
      same(await store.key(key.id), { key, generation })
      same((await store.read([generation.digest])).found, [{ key, generation }])
      same((await store.events({ keyId: key.id, limit: 10 })).length, 1)
    }
  })

  check('knows which digests it has, dead or alive', async (store, sibling) => {
    const { key, generation } = await issue(store)
    const others = Array.from({ length: 498 }, digest)
    const dead = await issue(store)
    await store.transaction((tx) => tx.retireGenerations(dead.key.id, { at: key.createdAt, by: null, reason: 'revoked' }))
    const known = await sibling.transaction((tx) => tx.knownDigests([generation.digest, ...others, dead.generation.digest]))
    same([...known].sort(), [generation.digest, dead.generation.digest].sort())
    same(await store.transaction((tx) => tx.knownDigests([])), [])
    // What the transaction itself has written, too.
    const row = made(key, 1)
    await store.transaction(async (tx) => {
      await tx.insertKeys([row])
      same(await tx.knownDigests([row.generation.digest]), [row.generation.digest])
    })
  })

  check('refuses keys of which one is there already, and keeps none of them', async (store) => {
    const { key, generation } = await issue(store)
    for (const twin of [
      made(key, 1, { id: key.id }),
      { ...made(key, 2), generation: { ...made(key, 2).generation, digest: generation.digest } },
    ]) {
      const fresh = made(key, 3)
      await rejects(
        store.transaction((tx) => tx.insertKeys([fresh, twin])),
        ApiKeyError,
      )
      ok((await store.key(fresh.key.id)) === undefined, 'a key of a failed transaction was kept')
    }
    same(await store.key(key.id), { key, generation })
  })
}

interface Made {
  readonly key: KeyRow
  readonly generation: GenerationRow
}

function made(sample: KeyRow, n: number, fields: Partial<KeyRow> = {}): Made {
  const key: KeyRow = {
    ...sample,
    ...{ id: randomUUID(), name: `name ${n}`, secretStart: '', secretLast4: '', lastUsedAt: n % 2 === 0 ? null : sample.createdAt - n },
    ...fields,
  }
  return { key, generation: { ...generationOf(key, 1), secretStart: '', secretLast4: '', firstUsedAt: key.lastUsedAt } }
}
