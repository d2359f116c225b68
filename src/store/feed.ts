import { randomBytes } from 'node:crypto'
import { ApiKeyError } from '../errors.js'
import type { FeedChange } from './store.js'

/** How many changes one read hands out. */
export const MOST_CHANGES = 1_000

/** Which changes are kept: of the newest `most` those that are younger than `ms`, and the newest `least` whatever their age. */
export const KEPT = { most: 10_000, least: 1_000, ms: 600_000 } as const

/** What tells a change from others of the same number. */
export function newTag(): string {
  return randomBytes(16).toString('base64url')
}

/** The digests of one change, each once. SQL has them in its text, and the feed keeps them in lists, so nothing else than base64url may be among them. */
export function digestsOf(given: Iterable<string>): readonly string[] {
  const digests = [...new Set(given)]
  if (digests.every((digest) => /^[\w-]{1,255}$/.test(digest))) return digests
  throw new ApiKeyError('internal_error', 'A change names digests that are not base64url.')
}

/**
 * The changes of a read, in order.
 *
 * @throws ApiKeyError `store_misconfigured` where one is missing: a reader that passed over it would go on accepting what it ended.
 */
export function dense(
  found: readonly FeedChange[],
  { seq, prunedTo, after }: { readonly seq: number; readonly prunedTo: number; readonly after: number | undefined },
): readonly FeedChange[] {
  if (after === undefined || after < prunedTo || after >= seq) return []
  const changes = found.toSorted((a, b) => a.seq - b.seq)
  const whole = changes.length === Math.min(seq - after, MOST_CHANGES) && changes.every((change, index) => change.seq === after + 1 + index)
  if (whole) return changes
  throw new ApiKeyError(
    'store_misconfigured',
    'The feed of changes has a gap; rows of express_api_key_changes were deleted, or are hidden.',
  )
}
