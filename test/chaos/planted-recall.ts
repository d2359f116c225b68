import { setTimeout } from 'node:timers/promises'
import type { Cache } from '../../src/cache/cache.js'
import type { Channel } from '../../src/channel.js'
import { type Message, messageCodec } from '../../src/core/recall/messages.js'
import { cacheEntryCodec } from '../../src/core/verify/cache-entry.js'
import type { FeedPosition, MemberRow, Store } from '../../src/store/store.js'
import type { Plant } from './plants.js'

/** The parts of an instance that breaks the rules of following and recalling. One for all instances of a process. */
export interface PlantedRecall {
  store(store: Store): Store
  cache(cache: Cache): Cache
  channel(channel: Channel): Channel
}

export interface Planted {
  readonly plant: Plant | undefined
  readonly serverSecret: string
  readonly storeId: string
  readonly leaseMs: number
}

/** Longer than any lease of a run. */
const LATE_MS = 1_500
/** So many reads take up to a lease longer, where the lease begins with the answer. */
const SLOW = 0.3

export function plantedRecall({ plant, serverSecret, storeId, leaseMs }: Planted): PlantedRecall {
  const codec = messageCodec([Buffer.from(serverSecret)])
  const entries = cacheEntryCodec([Buffer.from(serverSecret)])
  const sessions: string[] = []
  /** The first tag that was seen of each number. */
  const tags = new Map<number, string>()
  let position: FeedPosition = { seq: 0, tag: '' }
  let before: readonly MemberRow[] | undefined
  let nonce = ''

  const see = (seen: FeedPosition): void => {
    if (!tags.has(seen.seq)) tags.set(seen.seq, seen.tag)
    if (seen.seq >= position.seq) position = { seq: seen.seq, tag: seen.tag }
  }

  return {
    store(store) {
      const broken = (methods: Partial<Store>): Store => Object.assign(Object.create(store) as Store, methods)
      switch (plant) {
        case 'ack-before-drop':
          return broken({
            join(member) {
              sessions.push(member.session)
              return store.join(member)
            },
          })
        case 'deadline-from-reply':
          return broken({
            async read(...asked) {
              const sent = performance.now()
              const answer = await store.read(...asked)
              if (Math.random() < SLOW) await setTimeout(Math.random() * leaseMs)
              return { ...answer, leaseMs: answer.leaseMs + performance.now() - sent }
            },
          })
        case 'members-before-commit':
          return broken({
            async members(...asked) {
              const found = await store.members(...asked)
              const members = before ?? found.members
              before = found.members
              return { ...found, members }
            },
          })
        case 'one-step-reaping':
          return broken({
            async revokeMembers(revoked) {
              await store.revokeMembers(revoked)
              await store.removeMembers(revoked)
            },
          })
        case 'tag-not-compared':
          return broken({ read: async (digests, reader) => continued(await store.read(digests, reader), reader?.after) })
        case 'relay-from-ahead':
        case 'relay-of-any-position':
          return broken({
            async read(...asked) {
              const answer = await store.read(...asked)
              see(answer.feed)
              return answer
            },
          })
        case 'membership-not-looked-at':
          return broken({ read: async (...asked) => ({ ...(await store.read(...asked)), member: 'active' }) })
        default:
          return store
      }
    },

    cache(cache) {
      if (plant !== 'relay-from-ahead' && plant !== 'relay-of-any-position') return cache
      return Object.assign(Object.create(cache) as Cache, {
        async get(digest: string) {
          const found = await cache.get(digest)
          const entry = typeof found?.value === 'string' ? entries.open(storeId, digest, found.value) : undefined
          if (found === undefined || entry === undefined || 'retired' in entry) return found
          if (plant === 'relay-from-ahead' && entry.position.seq <= position.seq) return found
          return { ...found, value: entries.active(storeId, digest, { ...entry, position }) }
        },
      })
    },

    channel(channel) {
      if (plant !== 'ack-before-drop' && plant !== 'any-ack-will-do') return channel
      return {
        name: channel.name,
        isOpen: () => channel.isOpen(),
        close: () => channel.close(),
        send(address, text) {
          const message = codec.read(text)
          if (message?.type === 'recall') ({ nonce } = message)
          return channel.send(address, text)
        },
        listen: (addresses, listener) =>
          channel.listen(addresses, (text, address) => {
            const message = codec.read(text)
            if (message?.type === 'recall' && plant === 'ack-before-drop') {
              acknowledge(channel, message)
              void setTimeout(LATE_MS).then(() => listener(text, address))
            } else {
              const any = message?.type === 'acknowledgement' && plant === 'any-ack-will-do'
              listener(any ? codec.write({ ...message, nonce }) : text, address)
            }
          }),
      }
    },
  }

  function acknowledge(channel: Channel, message: Message & { readonly type: 'recall' }): void {
    const { storeId, nonce, inbox } = message
    if (sessions.length > 0) void channel.send(inbox, codec.write({ type: 'acknowledgement', storeId, nonce, sessions }))
  }

  /** An answer that goes on from wherever its reader is, whatever became of the feed. */
  function continued(answer: Awaited<ReturnType<Store['read']>>, after: number | undefined): typeof answer {
    const { feed } = answer
    for (const change of feed.changes) see(change)
    see(feed)
    if (after === undefined) return answer
    const tagAfter = tags.get(after) ?? feed.tagAfter
    if (feed.seq > after) return { ...answer, feed: { ...feed, tagAfter } }
    return { ...answer, feed: { ...feed, seq: after, tag: tagAfter ?? feed.tag, tagAfter, changes: [] } }
  }
}
