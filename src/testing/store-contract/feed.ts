import { ok, rejects, deepStrictEqual as same } from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { ApiKeyError } from '../../errors.js'
import type { AuthorityAnswer, FeedChange, FeedPosition, Member, MemberRow, Store } from '../../store/store.js'
import { type Check, digest, generationOf, issue } from './samples.js'

/** What it says of changes. */
export function feeds(check: Check): void {
  check('the feed begins with a position that has a tag, and changes nothing by itself', async (store, sibling) => {
    const { feed } = await store.read([], { after: 0 })
    ok(/^[\w-]{22}$/.test(feed.tag), 'the first position has no tag')
    same(feed, { seq: 0, tag: feed.tag, prunedTo: 0, tagAfter: feed.tag, changes: [] })
    const { key } = await issue(store)
    await store.setLease(70)
    await store.join(memberOf())
    await store.recordUses([{ keyId: key.id, agoMs: 0, ip: null, userAgent: null }])
    same((await sibling.read([], { after: 0 })).feed, feed)
  })

  check(
    'a transaction adds one change with the digests of all its calls, each once, and one that fails adds none',
    async (store, sibling) => {
      const [a, b, c] = [digest(), digest(), digest()]
      await store.transaction(async (tx) => {
        await tx.appendChange([a, b])
        await tx.appendChange([])
        await tx.appendChange([b, c])
      })
      const failed = store.transaction(async (tx) => {
        await tx.appendChange([digest()])
        throw new Error('thrown')
      })
      await rejects(failed, /thrown/)
      await store.transaction((tx) => tx.appendChange([]))
      await sibling.transaction((tx) => tx.appendChange([c]))
      const { feed } = await store.read([], { after: 0 })
      same(
        feed.changes.map(({ seq, digests }) => [seq, digests.toSorted()]),
        [
          [1, [a, b, c].toSorted()],
          [2, [c]],
        ],
      )
      same([feed.seq, feed.tag], [2, feed.changes[1]?.tag])
      ok(new Set(feed.changes.map(({ tag }) => tag)).size === 2, 'two changes have one tag')
    },
  )

  check('a reader gets what comes after its position, and the tag that its position has in the store', async (store, sibling) => {
    for (let n = 0; n < 3; n++) await change(store)
    const all = (await store.read([], { after: 0 })).feed
    const later = (await sibling.read([digest()], { after: 2 })).feed
    same(later, { ...all, tagAfter: all.changes[1]?.tag, changes: all.changes.slice(2) })
    same((await store.read([], { after: 3 })).feed, { ...all, tagAfter: all.tag, changes: [] })
    same((await store.read([])).feed, { ...all, tagAfter: undefined, changes: [] })
    same((await store.read([], { after: 4 })).feed, { ...all, tagAfter: undefined, changes: [] })
  })

  check('a change is refused whose digests are not base64url', async (store) => {
    for (const odd of ["'; commit; --", 'a,b', 'a b', ''])
      await rejects(
        store.transaction((tx) => tx.appendChange([odd])),
        ApiKeyError,
      )
    same((await store.read([])).feed.seq, 0)
  })

  check('the first use of a secret that ends a grace period is a change, once', async (store) => {
    const { key, generation } = await issue(store)
    const second = { ...generationOf(key, 2), retiresEarlier: true }
    await store.transaction(async (tx) => {
      const at = await tx.now()
      await tx.retireGenerations(key.id, { at, by: null, reason: 'rotated', graceEndsAt: at + 60_000 })
      await tx.insertGeneration(second)
    })
    await store.markFirstUse(generation.digest)
    same((await store.read([])).feed.seq, 0)
    for (const _ of [1, 2]) await store.markFirstUse(second.digest)
    same(
      (await store.read([], { after: 0 })).feed.changes.map(({ digests }) => digests),
      [[generation.digest]],
    )
  })
}

/** What readers see while others write. */
export function followers(check: Check): void {
  check('a read hands out no more than 1,000 changes, each once however many digests it asks for', async (store) => {
    // In a store that is not shared they cost nothing; a thousand durable commits may take a slow disk minutes.
    const all = store.shared ? 12 : 1_003
    const most = Math.min(all, 1_000)
    for (let n = 0; n < all; n++) await change(store)
    // None is old enough to be forgotten yet.
    await store.pruneFeed()
    const known = [await issue(store), await issue(store)]
    const first = await store.read(
      known.map(({ generation }) => generation.digest),
      { after: 0 },
    )
    same(
      [first.found.length, first.feed.prunedTo, first.feed.seq, first.feed.changes.length, first.feed.changes.at(-1)?.seq],
      [2, 0, all, most, most],
    )
    same(
      (await store.read([], { after: all - 3 })).feed.changes.map(({ seq }) => seq),
      [all - 2, all - 1, all],
    )
  })

  check('of fifty transactions at once every reader sees each change once, in order, and with its effect', async (store, sibling) => {
    const { key } = await issue(store)
    const committed: string[] = []
    const run = async (each: Store, n: number): Promise<void> => {
      const made = generationOf(key, n + 2)
      const work = each.transaction(async (tx) => {
        if (n % 3 === 0) await tx.appendChange([made.digest])
        await tx.insertGeneration(made)
        if (n % 3 !== 0) await tx.appendChange([made.digest])
        if (n % 5 === 0) throw new Error('thrown')
      })
      await work.then(
        () => void committed.push(made.digest),
        () => {},
      )
    }
    const all = Promise.all(Array.from({ length: 50 }, (_, n) => run(n % 2 === 0 ? store : sibling, n)))
    const followed = Promise.all([follow(store, all), follow(sibling, all), follow(store, all)])
    await all
    // Those that threw, and no others.
    same(committed.length, 40)
    for (const seen of await followed) {
      same(
        seen.map(({ seq }) => seq),
        committed.map((_, n) => n + 1),
      )
      same(seen.flatMap(({ digests }) => digests).toSorted(), committed.toSorted())
    }
  })

  check('a read shows a change exactly if it shows what was changed', async (store, sibling) => {
    const { key, generation } = await issue(store)
    const work = (async () => {
      for (let n = 0; n < 20; n++) {
        await store.transaction(async (tx) => {
          const [row] = await tx.lockKeys([key.id])
          ok(row)
          await tx.updateKey({ ...row, metadata: { n: n + 1 } })
          await tx.appendChange([generation.digest])
        })
      }
    })()
    const answers: AuthorityAnswer[] = []
    await whileRunning(work, async () => void answers.push(await sibling.read([generation.digest], { after: 0 })))
    answers.push(await sibling.read([generation.digest], { after: 0 }))
    for (const { feed, found } of answers) same([feed.seq, feed.changes.length], Array(2).fill(found[0]?.key.metadata.n ?? 0))
  })
}

/** Who follows the feed. */
export function memberships(check: Check): void {
  check('a member joins, is granted the lease, and leaves', async (store, sibling) => {
    const member = memberOf({ channels: ['redis', 'postgres'] })
    const { session } = member
    same([(await store.read([])).member, (await store.read([], { session })).member], ['none', 'none'])
    await store.join(member)
    await sibling.join({ ...member, mode: 'feed', channels: [] })
    same((await sibling.read([digest()], { session })).member, 'active')
    const { members } = await sibling.members()
    same(members, [{ ...member, revoked: false, acked: 0, joinedAt: members[0]?.joinedAt }])
    await store.leave(session)
    await store.leave(session)
    same([(await sibling.read([], { session })).member, (await store.members()).members], ['none', []])
  })

  check('what a member knows is noted, and never lowered', async (store, sibling) => {
    const [one, two] = [memberOf(), memberOf({ mode: 'feed' })]
    for (const member of [one, two]) await store.join(member)
    const acked = async (): Promise<unknown> => byName((await sibling.members()).members)[one.session]?.acked
    const positions: FeedPosition[] = []
    for (let n = 0; n < 3; n++) {
      await change(store)
      const { seq, tag } = await sibling.members()
      positions.push({ seq, tag })
    }
    const [first, second, third] = positions as [FeedPosition, FeedPosition, FeedPosition]
    for (const [position, noted] of [
      [second, 2],
      [first, 2],
      [{ ...third, tag: first.tag }, 2],
      [{ ...third, seq: 9 }, 2],
      [third, 3],
    ] as const) {
      await store.acknowledge(one.session, position)
      same(await acked(), noted)
    }
    await store.acknowledge(randomUUID(), third)
    same(byName((await store.members()).members)[two.session]?.acked, 0)
  })

  check('a member that is revoked is granted nothing, is told, and only then may be removed', async (store, sibling) => {
    const [one, two] = [memberOf(), memberOf()]
    for (const member of [one, two]) await store.join(member)
    await store.removeMembers([one.session, two.session])
    same((await store.members()).members.length, 2)
    await store.revokeMembers([one.session, randomUUID()])
    await store.revokeMembers([])
    await store.join(one)
    same((await sibling.read([], { session: one.session })).member, 'revoked')
    same((await sibling.read([], { session: two.session })).member, 'active')
    same(byName((await sibling.members()).members)[one.session]?.revoked, true)
    await sibling.removeMembers([one.session, two.session])
    await sibling.removeMembers([])
    same((await store.read([], { session: one.session })).member, 'none')
    same(Object.keys(byName((await store.members()).members)), [two.session])
  })
}

/** What can be told of all of it at one moment. */
export function moments(check: Check): void {
  check('the list of members says of what moment it is', async (store, sibling) => {
    await store.setLease(900)
    await change(store)
    const [read, list] = [await store.read([]), await sibling.members()]
    same([list.seq, list.tag, list.storeId, list.server], [1, read.feed.tag, read.storeId, read.server])
    same([list.waitMs, list.lowered, list.members, list.tagAfter], [900, false, [], undefined])
    const [there, ahead] = [await sibling.members(1), await sibling.members(2)]
    same([there.tagAfter, ahead.tagAfter], [read.feed.tag, undefined])
    const { version } = await store.setLease(300)
    same([(await sibling.members()).waitMs, (await sibling.members()).lowered], [900, true])
    await store.settleLease(version)
    same([(await sibling.members()).waitMs, (await sibling.members()).lowered], [300, false])
  })

  check('where the last change can be told at once, it is never behind a finished transaction', async (store, sibling) => {
    for (const each of [store, sibling]) {
      const current = each.currentPosition?.bind(each)
      if (current === undefined) continue
      const now = (): number | undefined => current()?.seq
      await each.read([])
      for (let n = 0; n < 5; n++) {
        const before: number | undefined = now()
        same(before, (await store.read([])).feed.seq)
        await store.transaction(async (tx) => {
          await tx.appendChange([digest()])
          await tx.now()
          same(now(), before)
        })
        same(now(), (before ?? 0) + 1)
      }
    }
  })
}

/** Every change that a reader meets while it follows the feed. */
async function follow(store: Store, work: Promise<unknown>): Promise<FeedChange[]> {
  const seen: FeedChange[] = []
  const next = async (): Promise<void> => {
    const newest = seen.slice(-3).flatMap(({ digests }) => digests)
    const { feed, found } = await store.read(newest, { after: seen.length })
    same(found.length, newest.length, 'a change was shown without its effect')
    ok(seen.length === 0 || feed.tagAfter === seen.at(-1)?.tag, 'a change has another tag than before')
    seen.push(...feed.changes)
    same(
      seen.map(({ seq }) => seq),
      seen.map((_, n) => n + 1),
    )
  }
  await whileRunning(work, next)
  await next()
  return seen
}

/** Does something again and again until some work is over, or one of the two fails. */
async function whileRunning(work: Promise<unknown>, step: () => Promise<void>): Promise<void> {
  let running = true
  const end = (): void => {
    running = false
  }
  work.then(end, end)
  while (running) {
    await step()
    // A store in memory would have nothing else come to its turn.
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
  await work
}

async function change(store: Store): Promise<void> {
  await store.transaction((tx) => tx.appendChange([digest()]))
}

function memberOf(fields: Partial<Member> = {}): Member {
  return { session: randomBytes(16).toString('base64url'), mode: 'recall', channels: [], ...fields }
}

function byName(members: readonly MemberRow[]): { readonly [session: string]: MemberRow } {
  return Object.fromEntries(members.map((row) => [row.session, row]))
}
