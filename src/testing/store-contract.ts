import type { Store } from '../store/store.js'
import { feeds, followers, memberships, moments } from './store-contract/feed.js'
import { housekeeping } from './store-contract/housekeeping.js'
import { imports } from './store-contract/imports.js'
import { listings, reads } from './store-contract/reads.js'
import { replays, seals } from './store-contract/replays.js'
import type { Check } from './store-contract/samples.js'
import { firstUses, lastUses, retirements } from './store-contract/secrets.js'
import { leases, locks, transactions } from './store-contract/transactions.js'

/** What a test runner gives: those of jest, vitest and node:test all fit. */
export interface TestRunner {
  describe(name: string, tests: () => void): unknown
  test(name: string, run: () => Promise<void>): unknown
}

/**
 * The suite that every store has to pass, ours and third parties' alike: `storeContract({ describe, test }, 'my store', makeStore)`.
 *
 * @param makeStore makes a store over data of its own, not migrated yet; called once per test. With `sibling`, another store
 *   over the same data, as a second process would have it.
 */
export function storeContract(
  { describe, test }: TestRunner,
  name: string,
  makeStore: () => Promise<{ store: Store; sibling?: Store; close(): Promise<void> }>,
): void {
  const check: Check = (title, run) => {
    test(title, async () => {
      const { store, sibling = store, close } = await makeStore()
      try {
        await store.migrate()
        await run(store, sibling)
      } finally {
        await close()
      }
    })
  }

  describe(name, () => {
    for (const declare of [
      reads,
      listings,
      transactions,
      locks,
      imports,
      leases,
      retirements,
      firstUses,
      lastUses,
      replays,
      seals,
      feeds,
      followers,
      memberships,
      moments,
      housekeeping,
    ])
      declare(check)
  })
}
