import { Feed } from '../../../src/core/verify/feed.js'
import type { FeedAnswer, FeedChange, FeedPosition } from '../../../src/store/store.js'

const MEMORY_MS = 1_000

test('the first answer is where an instance begins, and nothing of before it is admitted', () => {
  const { feed, dropped } = begun(5)
  expect([feed.position, feed.admits('a', 4), feed.admits('a', 5), feed.admits('a', 9)]).toEqual([at(5), false, true, true])
  expect([feed.hasSeen(at(5)), feed.hasSeen(at(4)), feed.hasSeen(at(6)), dropped]).toEqual([true, false, false, []])
})

test('P3: nothing of before a change is admitted once it was followed, and all else is', () => {
  const { feed, dropped } = begun(5)
  expect(feed.take(answer(7, [change(6, 'a'), change(7, 'b')]), at(5), 0)).toBe('followed')
  expect([feed.position?.seq, dropped]).toEqual([7, ['a', 'b']])
  expect([feed.admits('a', 5), feed.admits('a', 6), feed.admits('b', 6), feed.admits('b', 7), feed.admits('c', 5)]).toEqual([
    false,
    true,
    false,
    true,
    true,
  ])
})

test('P3: what is forgotten raises the floor, so that nothing of before it is admitted again', () => {
  const { feed } = begun(5)
  feed.take(answer(6, [change(6, 'a')]), at(5), 0)
  feed.take(answer(7, [change(7, 'b')]), at(6), MEMORY_MS)
  expect([feed.admits('a', 5), feed.admits('c', 5), feed.hasSeen(at(5))]).toEqual([false, true, true])
  feed.take(answer(7, []), at(7), MEMORY_MS + 1)
  expect([feed.admits('a', 5), feed.admits('c', 5), feed.admits('c', 6), feed.hasSeen(at(5)), feed.hasSeen(at(6))]).toEqual([
    false,
    false,
    true,
    false,
    true,
  ])
})

test('P3: however many changes there are, those that are forgotten raise the floor', () => {
  const { feed } = begun(0)
  const many = Array.from({ length: 20_001 }, (_, n) => change(n + 1, `${n + 1}`))
  feed.take(answer(20_001, many), at(0), 0)
  expect([feed.admits('1', 0), feed.admits('other', 0), feed.admits('other', 1), feed.admits('2', 1)]).toEqual([false, false, true, false])
})

test('P3: what another instance has said is remembered until it was read, and moves nothing', () => {
  const { feed, dropped } = begun(5)
  feed.hear(['a'], 7, 0)
  expect([feed.position?.seq, dropped, feed.admits('a', 6), feed.admits('a', 7), feed.admits('b', 5)]).toEqual([5, [], false, true, true])
  // An earlier one that comes late takes nothing back.
  feed.hear(['a'], 6, 0)
  feed.take(answer(6, [change(6, 'b')]), at(5), 0)
  expect(feed.admits('a', 6)).toBe(false)
  feed.take(answer(7, [change(7, 'a')]), at(6), 0)
  expect([feed.admits('a', 6), feed.admits('a', 7)]).toEqual([false, true])
})

test('what another instance has said of a history that never came is forgotten after a while', () => {
  const { feed } = begun(5)
  feed.hear(['a'], 99, 0)
  feed.take(answer(6, [change(6, 'b')]), at(5), MEMORY_MS + 1)
  expect(feed.admits('a', 6)).toBe(true)
})

test.each<[string, FeedAnswer, number]>([
  ['with a gap', { ...answer(8, [change(8, 'a')]), tagAfter: 'tag 6' }, 6],
  ['that begins with a gap', answer(7, [change(7, 'a')]), 5],
  ['beyond its own end', answer(6, [change(6, 'a'), change(7, 'b')]), 5],
  ['with another tag at its end', { ...answer(6, [change(6, 'a')]), tag: 'another' }, 5],
  ['with another tag at its end, and no change', { ...answer(5, []), tag: 'another' }, 5],
  ['with another tag where the instance has been', answer(7, [{ ...change(6, 'a'), tag: 'another' }, change(7, 'b')]), 5],
  ['with another tag where its read was sent from', { ...answer(7, [change(7, 'a')]), tagAfter: 'another' }, 6],
  ['whose change there was pruned', { ...answer(6, []), tagAfter: undefined }, 6],
  ['whose change there was pruned, with later ones', { ...answer(7, [change(7, 'a')]), tagAfter: undefined }, 6],
  ['of a feed that went back', { ...answer(4, []), tagAfter: undefined }, 6],
  ['of a feed that went back, with the tag that was there', { ...answer(4, []), tagAfter: 'tag 6' }, 6],
])('P3: an answer %s is lost', (_what, wrong, from) => {
  const { feed } = begun(5)
  feed.take(answer(6, [change(6, 'x')]), at(5), 0)
  expect(feed.take(wrong, at(from), 0)).toBe('lost')
})

test('an answer that holds the first changes only moves on through them, and says that there is more', () => {
  const { feed } = begun(5)
  expect(feed.take(answer(9, [change(6, 'a'), change(7, 'b')]), at(5), 0)).toBe('more')
  expect([feed.position?.seq, feed.admits('b', 6)]).toEqual([7, false])
})

test('an older answer to a read that overlapped moves nothing back', () => {
  const { feed, dropped } = begun(5)
  feed.take(answer(7, [change(6, 'a'), change(7, 'b')]), at(5), 0)
  expect(feed.take(answer(6, [change(6, 'a')]), at(5), 0)).toBe('followed')
  expect([feed.position?.seq, dropped]).toEqual([7, ['a', 'b']])
})

test('two first answers that overlap are of one place, or the second is read again', () => {
  const { feed } = begun(5)
  expect([5, 6, 4].map((seq) => feed.take(answer(seq, []), undefined, 0))).toEqual(['followed', 'more', 'more'])
  expect(feed.position).toEqual(at(5))
})

test('answers that overlap are followed once, change by change', () => {
  const { feed, dropped } = begun(5)
  feed.take(answer(7, [change(6, 'a'), change(7, 'b')]), at(5), 0)
  expect(feed.take(answer(9, [change(6, 'a'), change(7, 'b'), change(8, 'c'), change(9, 'd')]), at(5), 0)).toBe('followed')
  expect([feed.position, dropped]).toEqual(
    [at(9), ['a', 'b', 'c', 'd']].map((one) => (Array.isArray(one) ? one : expect.objectContaining(one))),
  )
  expect(feed.hasSeen(at(8))).toBe(true)
})

test('P3: what ends at a position that is forgotten, or before its own end, is read again', () => {
  const { feed } = begun(5)
  feed.take(answer(6, [change(6, 'a')]), at(5), 0)
  feed.take(answer(7, [change(7, 'b')]), at(6), MEMORY_MS + 1)
  // The first changes of two, while another answer has told of both.
  expect(feed.take(answer(7, [change(7, 'b')]), at(6), MEMORY_MS + 1)).toBe('followed')
  const { feed: other } = begun(5)
  other.take(answer(7, [change(6, 'a'), change(7, 'b')]), at(5), 0)
  expect(other.take(answer(7, [change(6, 'a')]), at(5), 0)).toBe('more')
  expect(feed.take(answer(5, []), at(5), MEMORY_MS + 1)).toBe('more')
})

test('P3: where all changes are forgotten, the last of them is where the instance is', () => {
  const { feed } = begun(5)
  feed.take(answer(7, [change(6, 'a'), change(7, 'a')]), at(5), 0)
  expect(feed.take(answer(7, []), at(7), MEMORY_MS + 1)).toBe('followed')
  expect([feed.position, feed.admits('a', 6), feed.admits('c', 6), feed.admits('a', 7)]).toEqual([at(7), false, false, true])
  expect([5, 6, 7].map((seq) => feed.hasSeen(at(seq)))).toEqual([false, false, true])
})

test('P3: of two changes of a digest the later one is remembered when the earlier one is forgotten', () => {
  const { feed } = begun(5)
  feed.take(answer(6, [change(6, 'a')]), at(5), 0)
  feed.take(answer(7, [change(7, 'a')]), at(6), MEMORY_MS + 1)
  expect([feed.admits('a', 6), feed.admits('c', 6), feed.admits('a', 7)]).toEqual([false, true, true])
})

test('what was heard is forgotten in the order of hearing, each by its own latest word, and no later because it was said twice', () => {
  const { feed } = begun(5)
  feed.hear(['a'], 7, 0)
  feed.hear(['b'], 8, 0)
  feed.hear(['a'], 9, MEMORY_MS)
  feed.hear(['c'], 99, 1)
  feed.hear(['c'], 99, MEMORY_MS)
  expect(['a', 'b', 'c'].map((digest) => feed.admits(digest, 6))).toEqual([false, false, false])
  feed.hear(['d'], 9, MEMORY_MS + 1)
  expect(['a', 'b', 'd'].map((digest) => feed.admits(digest, 6))).toEqual([false, true, false])
  feed.hear([], 0, MEMORY_MS + 2)
  feed.take(answer(5, []), at(5), 2 * MEMORY_MS + 1)
  expect(['a', 'c', 'd'].map((digest) => feed.admits(digest, 6))).toEqual([true, true, false])
})

test('what is heard before the first answer counts from then on', () => {
  const dropped: string[] = []
  const feed = new Feed((digest) => dropped.push(digest), MEMORY_MS)
  expect([feed.hasSeen(at(5)), feed.admits('a', 5)]).toEqual([false, false])
  feed.hear(['a'], 7, 0)
  feed.take(answer(5, []), undefined, 0)
  expect([feed.admits('a', 5), feed.admits('b', 5)]).toEqual([false, true])
})

test('after it has started over nothing of the history before counts', () => {
  const { feed } = begun(5)
  feed.take(answer(6, [change(6, 'a')]), at(5), 0)
  feed.startOver()
  feed.take(answer(3, []), undefined, 0)
  expect([feed.admits('a', 3), feed.position]).toEqual([true, at(3)])
})

test('P3: after it has started over, an answer to an earlier read is lost, and nothing is admitted', () => {
  const { feed } = begun(5)
  feed.hear(['a'], 9, 0)
  feed.startOver()
  expect([feed.position, feed.admits('b', 99), feed.take(answer(5, []), at(5), 0)]).toEqual([undefined, false, 'lost'])
  feed.take(answer(3, []), undefined, 0)
  expect(feed.admits('a', 3)).toBe(true)
})

function begun(seq: number): { feed: Feed; dropped: string[] } {
  const dropped: string[] = []
  const feed = new Feed((digest) => dropped.push(digest), MEMORY_MS)
  expect(feed.take(answer(seq, []), undefined, 0)).toBe('followed')
  return { feed, dropped }
}

function at(seq: number): FeedPosition {
  return { seq, tag: `tag ${seq}` }
}

function change(seq: number, ...digests: string[]): FeedChange {
  return { ...at(seq), digests }
}

function answer(seq: number, changes: readonly FeedChange[]): FeedAnswer {
  return { ...at(seq), prunedTo: 0, tagAfter: `tag ${(changes[0]?.seq ?? seq + 1) - 1}`, changes }
}
