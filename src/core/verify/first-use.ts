import { dropOldest } from '../../drop-oldest.js'
import type { Store } from '../../store/store.js'

/** The first uses of secrets, which the store has to know of: they close replays, and can end the secret before. */
export interface FirstUses {
  /** Tells the store, in the background, that a secret was presented. */
  note(digest: string): void
  /**
   * This secret is used for the first time, and with that ends the grace period of the one before it: here and now in the store, and before this use is accepted, in every
   * instance. Whoever meets the mark waits by its own clock, and only then takes it away.
   */
  endEarlier(digest: string): Promise<void>
  /** Forgets what was told: the store may have lost it. */
  startOver(): void
}

/** Of secrets whose first use was told; forgetting one costs a write that changes nothing. */
const MAX_TOLD = 50_000

/** @param settled waits until nobody relies on these digests any more; `waitMs` is the longest lease on them */
export function firstUses(
  store: Store,
  settled: (change: { retired: { digests: readonly string[]; reason: 'rotated' } }, waitMs: number) => Promise<unknown>,
  inBackground: (work: Promise<unknown>) => void,
): FirstUses {
  /** An entry in the cache from before goes on saying otherwise. */
  const told = new Set<string>()

  return {
    note(digest) {
      if (told.has(digest)) return
      told.add(digest)
      dropOldest(told, MAX_TOLD)
      inBackground(
        store.markFirstUse(digest).then(
          async ({ retired, waitMs }) => {
            if (retired.length > 0) await settled({ retired: { digests: retired, reason: 'rotated' } }, waitMs)
          },
          (error: unknown) => {
            told.delete(digest)
            throw error
          },
        ),
      )
    },

    async endEarlier(digest) {
      const { retired, waitMs } = await store.markFirstUse(digest)
      await settled({ retired: { digests: retired, reason: 'rotated' } }, waitMs)
      await store.settleFirstUse(digest)
    },

    startOver: () => told.clear(),
  }
}
