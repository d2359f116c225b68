import type { Store } from '../store/store.js'
import type { Clock } from './clock.js'
import { digestOf } from './secret.js'

/** One answer of the store serves everybody who asks within this time: whoever may ask must not be able to load the store. */
const ANSWER_MS = 1_000
/** No key has it. Reading about it takes every column that reading about a key does, so tables of an earlier release show. */
const NOBODYS = digestOf('')

/** Resolves while the store answers from its primary and its tables can be read; rejects as the store does. */
export function readiness(store: Pick<Store, 'read'>, clock: Pick<Clock, 'monotonicMs'>): () => Promise<void> {
  let asking: Promise<void> | undefined
  let answeredMs = Number.NEGATIVE_INFINITY
  return async () => {
    if (clock.monotonicMs() - answeredMs < ANSWER_MS) return
    asking ??= ask().finally(() => {
      asking = undefined
    })
    await asking
  }

  async function ask(): Promise<void> {
    const askedMs = clock.monotonicMs()
    await store.read([NOBODYS])
    answeredMs = askedMs
  }
}
