import { longSilent, reaper } from '../../../src/core/recall/reaper.js'
import type { MemberRow } from '../../../src/store/store.js'

const LEASE_AND_MARGIN = 1_050
const HOUR = 3_600_000

test('a member is over once it has been known to be revoked for a lease and a margin, and not a moment before', () => {
  const known = reaper()
  known.saw([member('gone', { revoked: true })], 5_000)
  expect(known.isOver('gone', LEASE_AND_MARGIN, 5_000 + LEASE_AND_MARGIN - 1)).toBe(false)
  expect(known.isOver('gone', LEASE_AND_MARGIN, 5_000 + LEASE_AND_MARGIN)).toBe(true)
})

test('seeing once more that a member is revoked does not begin the count again', () => {
  const known = reaper()
  for (const at of [0, 500, 1_000]) known.saw([member('gone', { revoked: true })], at)
  expect(known.isOver('gone', LEASE_AND_MARGIN, LEASE_AND_MARGIN)).toBe(true)
})

test('who was just marked is known to be revoked from then on, and one that was known before since then', () => {
  const known = reaper()
  const row = member('before', { revoked: true })
  known.saw([row], 0)
  known.revoked(['now', 'before'], 500)
  known.saw([row, member('now', { revoked: true })], 600)
  expect(['now', 'before'].map((session) => known.isOver(session, LEASE_AND_MARGIN, LEASE_AND_MARGIN))).toEqual([false, true])
  expect(known.isOver('now', LEASE_AND_MARGIN, 500 + LEASE_AND_MARGIN)).toBe(true)
})

test('a member that is not revoked, or was never seen, is not over, however long ago that was', () => {
  const known = reaper()
  known.saw([member('there')], 0)
  expect([known.isOver('there', LEASE_AND_MARGIN, HOUR), known.isOver('stranger', LEASE_AND_MARGIN, HOUR)]).toEqual([false, false])
})

test('a member that was seen without its revocation in between is counted from the next one', () => {
  const known = reaper()
  known.saw([member('back', { revoked: true })], 0)
  known.saw([member('back')], 500)
  known.saw([member('back', { revoked: true })], 1_000)
  expect(known.isOver('back', LEASE_AND_MARGIN, 2_000)).toBe(false)
  expect(known.isOver('back', LEASE_AND_MARGIN, 2_050)).toBe(true)
})

test('a member whose row is gone is forgotten', () => {
  const known = reaper()
  known.saw([member('gone', { revoked: true })], 0)
  known.saw([], 1)
  expect(known.isOver('gone', LEASE_AND_MARGIN, HOUR)).toBe(false)
})

test('a member that only reads counts as silent for long after an hour, by the clock of the store; one that answers recalls never does', () => {
  const members = [member('reads', { mode: 'feed' }), member('answers')]
  expect(longSilent(members, HOUR)).toEqual([])
  expect(longSilent(members, HOUR + 1).map(({ session }) => session)).toEqual(['reads'])
})

function member(session: string, more: Partial<MemberRow> = {}): MemberRow {
  return { session, mode: 'recall', channels: ['fake'], revoked: false, acked: 0, joinedAt: 0, ...more }
}
