import type { CacheServerFacts } from '../../cache/tools.js'
import type { Membership } from '../../store/store.js'
import type { DatabaseFacts } from '../../store/tools.js'

/** What could not be looked at, and why. */
export interface Failed {
  readonly error: Error
}

/** Everything that was looked at. What is undefined was not: there is none of it, or something before it failed. */
export interface Examined {
  /** Its length; undefined where the module of `--config` has it. */
  readonly serverSecret: { readonly bytes: number } | 'missing' | undefined
  readonly prefixes: readonly [string, ...string[]]
  /** What the newest keys begin with. */
  readonly starts: readonly string[]
  readonly database: string | undefined
  readonly facts: DatabaseFacts | Failed | undefined
  readonly versions: { readonly found: number; readonly known: number } | undefined
  readonly membership: Membership | Failed | undefined
  readonly feed: 'whole' | Failed | undefined
  /** The lease of the store, and that of the application where it is known. */
  readonly leaseMs: { readonly store: number; readonly application: number | undefined } | undefined
  readonly cache: readonly CacheServerFacts[] | Failed | undefined
  /** Over which ways this side reaches instances. */
  readonly channels: readonly string[]
}

export function hasFailed(one: unknown): one is Failed {
  return typeof one === 'object' && one !== null && 'error' in one
}
