import { dense, digestsOf, KEPT, MOST_CHANGES, newTag } from './feed.js'
import type { AuthorityAnswer, FeedChange, FeedPosition, FeedReader, MemberRow, Membership, Store } from './store.js'

/** The feed and the members of a store in memory. Every call does its work before it returns. */
export interface MemoryFeed {
  readonly store: Pick<Store, 'join' | 'leave' | 'acknowledge' | 'revokeMembers' | 'removeMembers' | 'pruneFeed'> & {
    currentPosition(): FeedPosition
  }
  /** Adds one change with these digests; none where there are none. */
  append(digests: Iterable<string>): void
  answer(reader: FeedReader): Pick<AuthorityAnswer, 'feed' | 'member'>
  membership(after: number | undefined): Pick<Membership, 'seq' | 'tag' | 'tagAfter' | 'members'>
}

interface Change extends FeedChange {
  readonly at: number
}

export function memoryFeed(now: () => number): MemoryFeed {
  const first: Change = { seq: 0, tag: newTag(), digests: [], at: now() }
  /** Without gaps. */
  const changes: Change[] = [first]
  const members = new Map<string, MemberRow>()
  let prunedTo = 0

  const newest = (): Change => changes.at(-1) ?? first
  const indexOf = (seq: number): number => seq - (changes[0] ?? first).seq

  return {
    append(given) {
      const digests = digestsOf(given)
      if (digests.length > 0) changes.push({ seq: newest().seq + 1, tag: newTag(), digests, at: now() })
    },

    answer({ session, after }) {
      const { seq, tag } = newest()
      const from = after === undefined ? changes.length : Math.max(0, indexOf(after) + 1)
      const found = changes.slice(from, from + MOST_CHANGES).map((change) => ({ ...placeOf(change), digests: [...change.digests] }))
      const tagAfter = after === undefined ? undefined : changes[indexOf(after)]?.tag
      const member = session === undefined ? undefined : members.get(session)
      return {
        feed: { seq, tag, prunedTo, tagAfter, changes: dense(found, { seq, prunedTo, after }) },
        member: member === undefined ? 'none' : member.revoked ? 'revoked' : 'active',
      }
    },

    membership: (after) => ({
      ...placeOf(newest()),
      tagAfter: after === undefined ? undefined : changes[indexOf(after)]?.tag,
      members: [...members.values()].map((row) => ({ ...row, channels: [...row.channels] })),
    }),

    store: {
      currentPosition: () => placeOf(newest()),

      async join({ session, mode, channels }) {
        if (members.has(session)) return
        members.set(session, { session, mode, channels: [...channels], revoked: false, acked: 0, joinedAt: now() })
      },

      async leave(session) {
        members.delete(session)
      },

      async acknowledge(session, { seq, tag }) {
        const row = members.get(session)
        if (row !== undefined && row.acked < seq && changes[indexOf(seq)]?.tag === tag) members.set(session, { ...row, acked: seq })
      },

      async revokeMembers(sessions) {
        for (const session of sessions) {
          const row = members.get(session)
          if (row !== undefined) members.set(session, { ...row, revoked: true })
        }
      },

      async removeMembers(sessions) {
        for (const session of sessions) if (members.get(session)?.revoked === true) members.delete(session)
      },

      async pruneFeed() {
        const { seq } = newest()
        const old = now() - KEPT.ms
        const kept = changes.findIndex((change) => change.seq > seq - KEPT.least || (change.seq > seq - KEPT.most && change.at >= old))
        const gone = changes.splice(0, kept).at(-1)
        if (gone !== undefined) prunedTo = gone.seq
      },
    },
  }
}

function placeOf({ seq, tag }: Change): FeedPosition {
  return { seq, tag }
}
