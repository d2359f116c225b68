/** Counters by name. Their methods reject when there is no answer in time; whoever counts then has to count alone. */
export interface Counters {
  /** Adds one, and resolves with the number of hits in the window and the instant (by this process's clock) at which it ends. */
  increment(name: string): Promise<{ readonly hits: number; readonly endsAt: Date }>
  /** Takes one back. */
  decrement(name: string): Promise<void>
}

/**
 * A shared memory that makes verifying fast. It is never trusted: entries are authenticated by the core, and the lease
 * they carry is checked against the authority's clock. Nothing here ever rejects or takes longer than its time limit
 * (about 150 ms); trouble reads as "no answer".
 *
 * An entry is an opaque ASCII string. One that begins with `r` is a tombstone (its digest is retired for good); one that begins
 * with `a` is active.
 */
export interface Cache {
  /** How long a call may take by the cache's own limit. A second more, and it counts as no answer. Default 0. */
  readonly timeoutMs?: number

  /**
   * Reads one entry together with the cache server's clock (milliseconds since the epoch), both from the node that owns it.
   * Undefined when there is no answer; `value` is null when there is no entry.
   */
  get(digest: string): Promise<{ readonly value: string | null; readonly timeMs: number } | undefined>

  /**
   * Stores an active entry until `expiresAtMs` on the cache server's clock, an absolute instant, so that a write that
   * lands late is born dead. Never replaces a tombstone, nor an active entry that lasts longer.
   */
  fill(digest: string, value: string, expiresAtMs: number): Promise<void>

  /** Stores a tombstone over whatever is there, for `ttlMs`. Resolves with whether the cache said so. */
  bury(digest: string, value: string, ttlMs: number): Promise<boolean>

  /** Forgets an active entry. Leaves a tombstone. */
  forget(digest: string): Promise<void>

  /** Makes counters that every instance shares, for rate limits; each counts for `windowMs` from its first hit. Optional. */
  counters?(windowMs: number): Counters

  /** Lets go of the connections that the cache opened itself. */
  close(): Promise<void>
}
