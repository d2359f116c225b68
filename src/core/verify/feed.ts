import type { FeedAnswer, FeedChange, FeedPosition } from '../../store/store.js'

/**
 * What became of an answer of the store. `followed`: its changes are handled up to its position. `more`: there are further ones to read. `lost`: it does not
 * go on from where this instance is, because the database was restored, a commit was lost or the feed was pruned; nothing that was known counts any more.
 */
export type Followed = 'followed' | 'more' | 'lost'

interface Remembered extends FeedChange {
  readonly atMs: number
}

interface Heard {
  readonly seq: number
  readonly atMs: number
}

/** More changes than this are not remembered, however young they are. */
const MAX_REMEMBERED = 20_000

/** What one instance knows of the feed of changes: how far it has followed it, and which digests have changed lately. Instants are on its monotonic clock. */
export class Feed {
  readonly #changed: (digest: string, seq: number) => void
  readonly #memoryMs: number
  /** Nothing from below it is admitted: changes up to it may be forgotten. */
  #floor: FeedPosition | undefined
  /** The changes after the floor, without gaps: the last one is the position. */
  #changes: Remembered[] = []
  /** The latest change of each digest among them. */
  readonly #latest = new Map<string, number>()
  /** What was heard of and not read yet. */
  readonly #heard = new Map<string, Heard>()

  /**
   * @param changed is called for each digest whose verdict has changed, and with the number of the change, before the position moves
   * @param memoryMs for how long a change is remembered at least
   */
  constructor(changed: (digest: string, seq: number) => void, memoryMs: number) {
    this.#changed = changed
    this.#memoryMs = memoryMs
  }

  /** How far the feed was followed; undefined before the first answer. Only answers of the store move it, and only forward. */
  get position(): FeedPosition | undefined {
    return this.#changes.at(-1) ?? this.#floor
  }

  /**
   * Handles an answer of the store, compared with the position that its read was sent with: reads may overlap, and an older answer is not a feed that
   * went back.
   */
  take(answer: FeedAnswer, sentFrom: FeedPosition | undefined, nowMs: number): Followed {
    if (sentFrom === undefined) {
      // The first answer is where this instance begins. Another one that was on its way beside it is of the same place, or is read again.
      if (this.position === undefined) this.#floor = { seq: answer.seq, tag: answer.tag }
      return this.hasSeen(answer) ? 'followed' : 'more'
    }
    const reached = reachedBy(answer, sentFrom)
    if (this.position === undefined || reached === undefined || !this.#agreesWith(answer.changes)) return 'lost'
    for (const change of answer.changes) if (change.seq > this.position.seq) this.#follow(change, nowMs)
    this.#forget(nowMs)
    // What is below the floor cannot be compared with what was seen there.
    return reached.seq === answer.seq && this.hasSeen(answer) ? 'followed' : 'more'
  }

  /** Remembers that these digests have changed by `seq`, as another instance says; moves nothing. */
  hear(digests: readonly string[], seq: number, nowMs: number): void {
    for (const digest of digests) {
      if ((this.#heard.get(digest)?.seq ?? 0) >= seq) continue
      // Deleted first, so that the map's order is that of hearing.
      this.#heard.delete(digest)
      this.#heard.set(digest, { seq, atMs: nowMs })
    }
    this.#forget(nowMs)
  }

  /** Whether a change that was not read before had been heard of. */
  isHeard(digest: string, seq: number): boolean {
    return (this.#heard.get(digest)?.seq ?? 0) >= seq
  }

  /** The rule of positions: whether what was read about a digest at this position is newer than every change of it that is known. */
  admits(digest: string, seq: number): boolean {
    if (this.#floor === undefined || seq < this.#floor.seq) return false
    return (this.#latest.get(digest) ?? 0) <= seq && (this.#heard.get(digest)?.seq ?? 0) <= seq
  }

  /** Whether this instance has followed the feed through this very position: one from ahead it cannot judge, one of a lost history is none. */
  hasSeen({ seq, tag }: FeedPosition): boolean {
    return this.#tagOf(seq) === tag
  }

  /** Forgets everything, as at the start. */
  startOver(): void {
    this.#floor = undefined
    this.#changes = []
    this.#latest.clear()
    this.#heard.clear()
  }

  /** The tag that this instance has seen at a position; undefined where it has seen none. */
  #tagOf(seq: number): string | undefined {
    if (this.#floor === undefined) return undefined
    return seq === this.#floor.seq ? this.#floor.tag : this.#changes[seq - this.#floor.seq - 1]?.tag
  }

  /** Whether what was seen before has the same tags. */
  #agreesWith(others: readonly FeedPosition[]): boolean {
    return others.every(({ seq, tag }) => (this.#tagOf(seq) ?? tag) === tag)
  }

  #follow(change: FeedChange, atMs: number): void {
    for (const digest of change.digests) {
      this.#latest.set(digest, change.seq)
      this.#changed(digest, change.seq)
    }
    this.#changes.push({ ...change, atMs })
  }

  /** What is forgotten raises the floor, so that nothing from before it is admitted again. */
  #forget(nowMs: number): void {
    const old = ({ atMs }: { readonly atMs: number }): boolean => nowMs - atMs > this.#memoryMs
    let count = this.#changes.findIndex((change) => !old(change))
    if (count < 0) count = this.#changes.length
    count = Math.max(count, this.#changes.length - MAX_REMEMBERED)
    for (const { seq, tag, digests } of this.#changes.splice(0, count)) {
      this.#floor = { seq, tag }
      for (const digest of digests) if (this.#latest.get(digest) === seq) this.#latest.delete(digest)
    }
    const reached = this.position?.seq ?? 0
    for (const [digest, heard] of this.#heard) {
      // What was read since says the same. What never came in all that time was of another history.
      if (!old(heard) && heard.seq > reached) break
      this.#heard.delete(digest)
    }
  }
}

/** How far an answer reaches without a gap; undefined where it does not go on from where its read was sent. */
function reachedBy({ seq, tag, tagAfter, changes }: FeedAnswer, sentFrom: FeedPosition): FeedPosition | undefined {
  // Both the newest row and the one that the reader stands on are never missing, unless the feed was pruned or another one took its place.
  if (tagAfter !== sentFrom.tag) return undefined
  let reached: FeedPosition = sentFrom
  for (const change of changes) {
    if (change.seq !== reached.seq + 1) return undefined
    reached = change
  }
  // A feed that went back ends before it.
  if (reached.seq > seq || (reached.seq === seq && reached.tag !== tag)) return undefined
  return reached
}
