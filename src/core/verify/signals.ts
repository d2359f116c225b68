import { getEventListeners } from 'node:events'
import { ApiKeyError, type RejectionReason } from '../../errors.js'
import { clearTimeout, setTimeout } from '../../real-time.js'
import type { Verified } from '../api-keys.js'
import { type Clock, elapsedMs, type Instant, instant } from '../clock.js'
import type { ApiKey } from '../key.js'
import { invalidKey, keyDisabled } from '../refusals.js'

/** When a good verdict ends by itself, on the store's clock, and what it is then. */
export interface End {
  readonly at: number
  readonly as: 'expired' | 'rotated'
}

export interface SignalsParts {
  readonly clock: Clock
  /** Reads the feed, and with it what is due. */
  readonly poll: () => Promise<unknown>
  /** In how many milliseconds that has to be done for the feed's own sake; 0 for now. */
  readonly pollInMs: (now: Instant) => number
  readonly pollEveryMs: () => number
  /** When all changes were known for the last time; undefined before the first. */
  readonly followedAt: (now: Instant) => Instant | undefined
  readonly storeTime: (when: Instant) => number | undefined
  readonly inBackground: (work: Promise<unknown>) => void
  readonly report: (error: unknown) => void
}

interface Watched {
  readonly signal: WeakRef<AbortSignal>
  /** The same while somebody may listen to it: only this table may know it then. */
  held: AbortSignal | undefined
  readonly keyId: string
  /** What the signal stands for: a verdict that says anything else is another one. */
  readonly said: string
  updatedAt: string
  end: End
  readAt: Instant
  /** Since when nothing that was read of it counts. */
  doubtedAt: Instant | undefined
}

/** Without a word of the store, a signal is believed to be good for this long: a store that is away for a moment ends no stream. */
const PATIENCE_MS = 30_000
/** The same where something about the key is known to have changed, or the time between two polls where that is longer. */
const DOUBT_MS = 1_000
/** What nobody has changed is read again this often, for what somebody may have done by hand in the database. */
const REREAD_MS = 17_000
/** How many of those go with one poll. */
const REREAD_AT_ONCE = 50
/** How often signals that nobody listens to are let go. */
const SWEEP_MS = 5_000
/** No two polls for the sake of signals are closer. */
const LEAST_PAUSE_MS = 10
/** What failed is tried again after this part of the time between two polls. */
const AGAIN = 1 / 6

const NEVER: End = { at: Number.POSITIVE_INFINITY, as: 'expired' }

/** Only the signal leads to it, so both live as long as either is known to somebody. */
const controllers = new WeakMap<AbortSignal, AbortController>()

/** The signals of good verdicts, by digest: whoever listens hears when one ends. While somebody may, the feed is followed without any traffic. */
export class Signals {
  readonly #parts: SignalsParts
  readonly #table = new Map<string, Watched>()
  #timer: ReturnType<typeof setTimeout> | undefined
  /** When it fires, on the monotonic clock. */
  #timerMs = 0
  #looking = false
  #closed = false
  #sweptMs: number

  constructor(parts: SignalsParts) {
    this.#parts = parts
    this.#sweptMs = parts.clock.monotonicMs()
  }

  /**
   * The signal of a verdict.
   *
   * @param end undefined where the verdict is not known any more: it is then asked for once more
   */
  of(digest: string, { key }: Pick<Verified, 'key'>, end: End | undefined): AbortSignal {
    const watched = this.#table.get(digest)
    const signal = watched?.signal.deref()
    if (watched !== undefined && signal !== undefined) {
      if (watched.said === saidOf(key)) return signal
      if (key.updatedAt < watched.updatedAt) return AbortSignal.abort(changed(key.id))
      this.#finish(digest, watched, changed(key.id))
    }
    return this.#closed ? AbortSignal.abort(closedNow()) : this.#watch(digest, key, end)
  }

  #watch(digest: string, key: ApiKey, end: End | undefined): AbortSignal {
    const controller = new AbortController()
    const { signal } = controller
    const now = instant(this.#parts.clock)
    controllers.set(signal, controller)
    const { id: keyId, updatedAt } = key
    const watched: Watched = {
      signal: new WeakRef(signal),
      // Nobody has had the time to listen yet.
      held: signal,
      ...{ keyId, said: saidOf(key), updatedAt, end: end ?? NEVER, readAt: now, doubtedAt: end === undefined ? now : undefined },
    }
    this.#table.set(digest, watched)
    this.#lookIn(end === undefined ? 0 : this.#endsInMs(watched, now))
    return signal
  }

  /** The digest was read again, and is good. */
  confirm(digest: string, key: ApiKey, end: End): void {
    const watched = this.#table.get(digest)
    if (watched === undefined) return
    if (watched.said !== saidOf(key)) {
      this.#finish(digest, watched, changed(key.id))
      return
    }
    const now = instant(this.#parts.clock)
    Object.assign(watched, { updatedAt: key.updatedAt, end, readAt: now, doubtedAt: undefined })
    this.#lookIn(this.#endsInMs(watched, now))
  }

  /** The digest is not good any more. */
  end(digest: string, reason: RejectionReason): void {
    const watched = this.#table.get(digest)
    if (watched === undefined) return
    this.#finish(digest, watched, reason === 'disabled' ? keyDisabled(watched.keyId) : invalidKey(reason, watched.keyId))
  }

  /** The table is in order before the application hears of it. */
  #finish(digest: string, { signal }: Watched, reason: ApiKeyError): void {
    this.#table.delete(digest)
    const ended = signal.deref()
    if (ended !== undefined) controllers.get(ended)?.abort(reason)
  }

  /** What was known of a digest is from before a change. */
  doubt(digest: string): void {
    const watched = this.#table.get(digest)
    if (watched === undefined) return
    watched.doubtedAt ??= instant(this.#parts.clock)
    this.#lookIn(0)
  }

  doubtAll(): void {
    const now = instant(this.#parts.clock)
    for (const watched of this.#table.values()) watched.doubtedAt ??= now
    this.#lookIn(0)
  }

  /** The digests to be read with the next poll, at most `most` of them. */
  due(most: number): readonly string[] {
    if (this.#table.size === 0) return []
    const now = instant(this.#parts.clock)
    const urgent: string[] = []
    const old: string[] = []
    for (const [digest, watched] of this.#table) {
      if (this.#isUrgent(watched, now)) urgent.push(digest)
      else if (this.#isOld(watched)) old.push(digest)
    }
    return [...urgent, ...old.slice(0, REREAD_AT_ONCE)].slice(0, most)
  }

  isDue(): boolean {
    if (this.#table.size === 0) return false
    const now = instant(this.#parts.clock)
    for (const watched of this.#table.values()) if (this.#isUrgent(watched, now) || this.#isOld(watched)) return true
    return false
  }

  #isUrgent(watched: Watched, now: Instant): boolean {
    return watched.doubtedAt !== undefined || this.#endsInMs(watched, now) <= 0
  }

  #isOld({ readAt }: Watched): boolean {
    return elapsedMs(this.#parts.clock, readAt) >= REREAD_MS
  }

  #endsInMs({ end }: Watched, now: Instant): number {
    return end.at - (this.#parts.storeTime(now) ?? Number.NEGATIVE_INFINITY)
  }

  /** Has the signals looked after in this time, and in that of a poll at the latest. */
  #lookIn(ms: number): void {
    if (this.#closed || this.#looking || this.#table.size === 0) return
    const { clock, pollEveryMs, inBackground } = this.#parts
    const inMs = Math.max(0, Math.min(ms, pollEveryMs()))
    const atMs = clock.monotonicMs() + inMs
    if (this.#timer !== undefined && this.#timerMs <= atMs) return
    clearTimeout(this.#timer)
    this.#timerMs = atMs
    this.#timer = setTimeout(() => inBackground(this.#look()), inMs)
    this.#timer.unref()
  }

  async #look(): Promise<void> {
    const { clock, poll, pollInMs } = this.#parts
    this.#timer = undefined
    this.#looking = true
    this.#letGo()
    let failure: unknown
    try {
      if (this.isDue() || (this.#table.size > 0 && pollInMs(instant(clock)) <= 0)) await poll()
    } catch (error) {
      failure = error
    }
    this.#judge(failure)
    this.#looking = false
    this.#lookIn(this.#nextInMs(failure !== undefined))
  }

  #nextInMs(failed: boolean): number {
    const { clock, pollInMs, pollEveryMs } = this.#parts
    if (failed) return pollEveryMs() * AGAIN
    const now = instant(clock)
    let inMs = pollInMs(now)
    for (const watched of this.#table.values()) {
      inMs = Math.min(inMs, watched.doubtedAt === undefined ? this.#endsInMs(watched, now) : 0)
    }
    return Math.max(LEAST_PAUSE_MS, inMs)
  }

  /** Ends what has come to its end, and what nothing has been heard of for too long. */
  #judge(failure: unknown): void {
    const { clock, followedAt, pollEveryMs, report } = this.#parts
    const now = instant(clock)
    const known = followedAt(now)
    const blind = known !== undefined && elapsedMs(clock, known) >= PATIENCE_MS
    const doubtMs = failure === undefined ? PATIENCE_MS : Math.max(DOUBT_MS, pollEveryMs())
    let lost = false
    for (const [digest, watched] of [...this.#table]) {
      const { end, doubtedAt, keyId } = watched
      if (this.#endsInMs(watched, now) <= 0) this.#finish(digest, watched, invalidKey(end.as, keyId))
      else if (blind || (doubtedAt !== undefined && elapsedMs(clock, doubtedAt) >= doubtMs)) {
        lost = true
        this.#finish(digest, watched, notKnown(failure))
      }
    }
    if (lost && failure !== undefined) report(failure)
  }

  /** A signal that nobody listens to may still be asked: whether it goes is then up to the garbage collector. */
  #letGo(): void {
    const now = this.#parts.clock.monotonicMs()
    if (now - this.#sweptMs < SWEEP_MS) return
    this.#sweptMs = now
    for (const [digest, watched] of this.#table) {
      const signal = watched.signal.deref()
      if (signal === undefined) this.#table.delete(digest)
      else watched.held = isHeard(signal) ? signal : undefined
    }
  }

  /** Ends all of them. */
  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    for (const [digest, watched] of [...this.#table]) this.#finish(digest, watched, closedNow())
  }
}

/** What may change about a key without ending a stream. The end of its life is looked after apart. */
const BESIDE_THE_POINT: ReadonlySet<string> = new Set<keyof ApiKey>([
  ...(['name', 'generation', 'updatedAt', 'expiresAt', 'secretStart', 'secretLast4', 'secretCreatedAt'] as const),
  ...(['lastUsedAt', 'lastUsedIp', 'lastUsedUserAgent'] as const),
])

/** What a verdict says that somebody may go by. */
function saidOf(key: ApiKey): string {
  return JSON.stringify(Object.entries(key).filter(([name]) => !BESIDE_THE_POINT.has(name)))
}

/** How many symbols a signal has as properties from the start. */
const OWN = Object.getOwnPropertySymbols(new AbortController().signal).length
/** `AbortSignal.any` keeps no signal alive that it was given, and leaves a mark on it. Where that cannot be seen, nothing is let go. */
const MARKS = ((): boolean => {
  const { signal } = new AbortController()
  AbortSignal.any([signal])
  return Object.getOwnPropertySymbols(signal).length > OWN
})()

function isHeard(signal: AbortSignal): boolean {
  return !MARKS || Object.getOwnPropertySymbols(signal).length > OWN || getEventListeners(signal, 'abort').length > 0
}

function changed(keyId: string): ApiKeyError {
  return new ApiKeyError('insufficient_scope', 'What this key may do has been changed; look at it again.', { keyId })
}

function notKnown(cause: unknown): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'The store could not be asked for too long whether this key is still good.', { cause })
}

function closedNow(): ApiKeyError {
  return new ApiKeyError('store_unavailable', 'These API keys have been closed.')
}
