/**
 * The hits of a sliding window, oldest first, gathered in slots that each remember the last of their hits. Pure: the caller hands in the time,
 * in whole milliseconds of a clock that never goes back.
 *
 * No stretch of `windowMs`, wherever it begins, has more than `max` counted hits. The error is on the strict side: a hit counts for at most
 * one slot (a twentieth of the window) longer than the window. With a `max` of up to 20 each millisecond has a slot of its own, so there is no error.
 *
 * These are the sliding window counters of Figma, but with each slot dated by its last hit, so that nobody waits longer than a window. (Two weighted
 * buckets, or GCRA, let almost twice the limit through in a window that begins with a burst.)
 * @see https://www.figma.com/blog/an-alternative-approach-to-rate-limiting/
 */
export type Window = readonly Slot[]

interface Slot {
  readonly last: number
  readonly hits: number
}

interface WindowLimit {
  readonly max: number
  readonly windowMs: number
}

/** A day. */
export const LONGEST_WINDOW_MS = 86_400_000
/** A window has at most this many slots, and one more for the oldest hits, of which some have slid out. */
const SLOTS = 20

/** Names that one process counts at most; beyond it the oldest are forgotten, which are strangers' long before they are a client's. */
const MAX_NAMES = 50_000

/** The window as it is now, without what has slid out. */
export function slide(window: Window, { windowMs }: WindowLimit, now: number): Window {
  return window.filter(({ last }) => last + windowMs > now)
}

/** The window with one hit more, whether or not there is room. */
export function withHit(window: Window, limit: WindowLimit, now: number): Window {
  const newest = window.at(-1)
  if (newest === undefined || slotOf(newest.last, limit) !== slotOf(now, limit)) return [...window, { last: now, hits: 1 }]
  return [...window.slice(0, -1), { last: now, hits: newest.hits + 1 }]
}

/** The window without one of the hits that were counted together with the one at `at`. The same window where that has slid out. */
export function withoutHit(window: Window, limit: WindowLimit, at: number): Window {
  return window
    .map((slot) => (slotOf(slot.last, limit) === slotOf(at, limit) ? { ...slot, hits: slot.hits - 1 } : slot))
    .filter(({ hits }) => hits > 0)
}

export function hitsIn(window: Window): number {
  return window.reduce((sum, { hits }) => sum + hits, 0)
}

/** Milliseconds until a window has room for one hit more or, where it has room already, until its oldest hit slides out. Never more than the window. */
export function waitMs(window: Window, { max, windowMs }: WindowLimit, now: number): number {
  let left = hitsIn(window)
  for (const { last, hits } of window) {
    left -= hits
    if (left < max) return last + windowMs - now
  }
  return windowMs
}

/** What is known by name. The older half goes when there are too many. (To drop the oldest alone, a Map walks over every place that was deleted before.) */
export class NewestNames<T> {
  #newer = new Map<string, T>()
  #older = new Map<string, T>()

  get(name: string): T | undefined {
    return this.#newer.get(name) ?? this.#older.get(name)
  }

  /** Keeps a value, as the newest. */
  set(name: string, value: T): void {
    this.#newer.set(name, value)
    if (this.#newer.size < MAX_NAMES / 2) return
    this.#older = this.#newer
    this.#newer = new Map()
  }
}

function slotOf(at: number, { max, windowMs }: WindowLimit): number {
  return max > SLOTS ? Math.floor((at * SLOTS) / windowMs) : at
}
