import type { Channel } from '../channel.js'

/** What a counter says of one hit. */
export interface Hit {
  /** Whether there was room for it. A hit without room is not counted, so a client that keeps trying does not keep itself out. */
  readonly counted: boolean
  /** The hits in the window, this one included where it was counted: never more than the limit. */
  readonly hits: number
  /**
   * Milliseconds until the oldest hits slide out. Where this hit was not counted: until there is room, if nobody else takes it. From 0 to the
   * length of the window.
   */
  readonly waitMs: number
  /** When it was, in milliseconds on the counter's own clock. It says to `takeBack` which hit is meant. */
  readonly at: number
}

/** Counters by name, each over a sliding window. No answer in time is undefined; the caller then counts alone. */
export interface Counters {
  /**
   * Counts a hit if there is room for it, in one step that nothing can come between. No stretch of time as long as the window, wherever it
   * begins, has more counted hits than the limit. A hit may count somewhat longer than the window, but never makes anybody wait for longer.
   */
  hit(name: string): Promise<Hit | undefined>

  /** Takes back the hit that was counted at `at`. One that has slid out, or that the counter has lost, takes nothing from any other window. */
  takeBack(name: string, at: number): Promise<void>
}

/**
 * A shared memory that makes verifying fast. It is never trusted: entries are authenticated by the core, and taken only at
 * a position in the feed of changes that the reader has seen itself. Nothing here ever rejects or takes longer than its time limit
 * (about 150 ms); trouble reads as "no answer". `cacheContract` from `express-api-keys/testing` checks a cache of your own.
 *
 * An entry is an opaque ASCII string of up to 32,768 characters. One that begins with `r` is a tombstone (its digest is retired for good); one
 * that begins with `a` is active.
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

  /** Makes counters that every instance shares, for rate limits of `max` hits in `windowMs`. Optional. */
  counters?(limit: { readonly max: number; readonly windowMs: number }): Counters

  /** Makes a way to reach other instances at once, such as pub/sub, over connections of its own; each call another one. Optional. */
  channel?(): Channel

  /** Closes the connections that the cache and its channels opened themselves. */
  close(): Promise<void>
}
