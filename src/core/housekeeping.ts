import { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import type { EventRow, KeyChoice, KeyRow, Store, StoreTransaction } from '../store/store.js'
import { actorOption, operatorOf } from './actor.js'
import type { Erased, OwnerCommand, Pruned, PruneOptions } from './api-keys.js'
import { actorName } from './audit.js'
import type { Clock } from './clock.js'
import { timeOrderedId } from './id.js'
import { instantOf, ownerText, reasonText } from './input.js'
import type { Recalls } from './recall/recalls.js'
import { invalidRequest } from './refusals.js'
import type { Contradiction } from './verify/verifier.js'

export interface HousekeepingParts {
  readonly store: Store
  readonly clock: Clock
  readonly recalls: Recalls
  readonly replayWindowMs: number
  /** Hears of every line of the audit trail once it is committed. */
  readonly tell: (event: EventRow, key: KeyRow) => void
}

export interface Housekeeping {
  prune(options: PruneOptions): Promise<Pruned>
  revokeAll(command: OwnerCommand & { reason?: string }): Promise<{ readonly revoked: number }>
  erase(command: OwnerCommand): Promise<Erased>
}

/** So many rows go in one transaction, which then holds no lock for long. */
const BATCH = 500
const LEAST_REPLAY_AGE_MS = 86_400_000
const PRUNED = ['eventsBefore', 'replaysBefore', 'revokedBefore', 'expiredBefore'] as const

type Batched = (
  choice: KeyChoice,
  work: (tx: StoreTransaction, rows: readonly KeyRow[]) => Promise<{ readonly digests: readonly string[]; done(): unknown }>,
) => Promise<void>

/** Does something to all such keys, 500 at a time, until there is none, and resolves when every instance knows of all that was ended. */
function batched({ store, clock, recalls }: HousekeepingParts): Batched {
  return async (choice, work) => {
    const waits: Promise<unknown>[] = []
    for (;;) {
      const found = await store.keyIds(choice, BATCH)
      if (found.length === 0) break
      const { digests, done, waitMs } = await store.transaction(async (tx) => {
        const rows = await tx.lockKeys(found)
        const outcome = await work(tx, rows)
        if (outcome.digests.length > 0) await tx.appendChange(outcome.digests)
        return { ...outcome, waitMs: await tx.waitMs() }
      })
      done()
      const change: Contradiction = { retired: { digests, reason: 'revoked' } }
      if (digests.length > 0) waits.push(recalls.settled({ change, committedAt: clock.monotonicMs(), waitMs }))
    }
    await Promise.all(waits)
  }
}

/** Ends and removes many keys, in batches until none is left, those too that were made meanwhile. */
export function housekeeping(parts: HousekeepingParts): Housekeeping {
  const { store } = parts
  const inBatches = batched(parts)
  return {
    async prune(options) {
      refuseUnknown(options, [...PRUNED, 'onProgress'], 'prune', 'invalid_request')
      const before = await pruneInstants(parts, options)
      const removed = { events: 0, replays: 0, keys: 0 }
      const note = (what: keyof Pruned, count: number): boolean => {
        removed[what] += count
        if (count > 0) options.onProgress?.({ ...removed })
        return count === BATCH
      }
      const { eventsBefore, replaysBefore, revokedBefore, expiredBefore } = before
      if (eventsBefore !== undefined) while (note('events', (await store.pruneEvents({ before: eventsBefore }, BATCH)).events)) {}
      if (replaysBefore !== undefined) while (note('replays', await store.pruneReplays(replaysBefore, BATCH))) {}
      const choices: KeyChoice[] = [
        ...(revokedBefore === undefined ? [] : [{ revokedBefore }]),
        ...(expiredBefore === undefined ? [] : [{ expiredBefore }]),
      ]
      for (const choice of choices) {
        await inBatches(choice, async (tx, rows) => {
          // Under the lock: somebody may have given a key a later expiry since it was found, and its clients go by that.
          const { digests, keys } = await tx.removeKeys(ids(rows.filter((row) => isStill(row, choice))), 'kept')
          return { digests, done: () => note('keys', keys) }
        })
      }
      return removed
    },

    async revokeAll(command) {
      refuseUnknown(command, ['as', 'ownerId', 'reason'], 'revokeAll', 'invalid_request')
      const reason = command.reason === undefined ? null : reasonText(command.reason)
      const { ownerId, actor } = ownerOf(command)
      return { revoked: await endAll(parts, ownerId, { actor, reason }) }
    },

    async erase(command) {
      refuseUnknown(command, ['as', 'ownerId'], 'erase', 'invalid_request')
      const { ownerId, actor } = ownerOf(command)
      const erased = { keys: 0, events: 0, replays: 0, tombstones: 0 }
      // First no instance accepts them any more, as after a revocation; then nothing of them is left.
      await endAll(parts, ownerId, { actor, reason: null })
      await inBatches({ ownerId }, async (tx, rows) => {
        const { keys, replays, tombstones, digests } = await tx.removeKeys(ids(rows), 'removed')
        erased.keys += keys
        erased.replays += replays
        erased.tombstones += tombstones
        return { digests, done: () => {} }
      })
      for (;;) {
        const { events, replays } = await store.pruneEvents({ ownerId }, BATCH)
        erased.events += events
        erased.replays += replays
        if (events < BATCH) break
      }
      await store.scrub?.()
      return erased
    },
  }
}

/** Revokes every key of an owner, and resolves with how many when no instance accepts any of them. */
async function endAll(
  parts: HousekeepingParts,
  ownerId: string,
  { actor, reason }: { readonly actor: string; readonly reason: string | null },
): Promise<number> {
  let revoked = 0
  await batched(parts)({ ownerId, unrevoked: true }, async (tx, rows) => {
    const ending = rows.filter(({ revokedAt }) => revokedAt === null)
    const at = await tx.now()
    const digests = await tx.endKeys(ids(ending), { at, reason })
    const lines = ending.map((row) => [revocationOf(row, { at, actor, reason }), { ...row, revokedAt: at, revokedReason: reason }] as const)
    await tx.appendEvents(lines.map(([event]) => event))
    const done = (): void => {
      revoked += ending.length
      for (const [event, row] of lines) parts.tell(event, row)
    }
    return { digests, done }
  })
  await othersToo(parts)
  return revoked
}

/** What another call has ended, such as this one before its answer was lost, may not be known to every instance yet: everything up to now has to be. */
async function othersToo({ store, clock, recalls }: HousekeepingParts): Promise<void> {
  const waitMs = await store.transaction((tx) => tx.waitMs())
  await recalls.settled({ change: undefined, committedAt: clock.monotonicMs(), waitMs })
}

/** Whether a key was revoked, or has expired, earlier than it is pruned by. */
function isStill({ revokedAt, expiresAt }: KeyRow, { revokedBefore, expiredBefore }: KeyChoice): boolean {
  const isEarlier = (at: number | null, before: number | undefined): boolean => before === undefined || (at !== null && at < before)
  return isEarlier(revokedAt, revokedBefore) && isEarlier(expiresAt, expiredBefore)
}

function ids(rows: readonly KeyRow[]): readonly string[] {
  return rows.map(({ id }) => id)
}

function revocationOf(
  { id, ownerId }: KeyRow,
  { at, actor, reason }: { readonly at: number; readonly actor: string; readonly reason: string | null },
): EventRow {
  return {
    ...{ id: timeOrderedId(at), keyId: id, ownerId, type: 'key.revoked', at, actor, ip: null, userAgent: null },
    details: reason === null ? {} : { reason },
  }
}

/** The owner whom somebody may end, and how the audit trail calls them. A key cannot end those of its owner all at once. */
function ownerOf(command: OwnerCommand): { readonly ownerId: string; readonly actor: string } {
  const as = actorOption(command.as)
  const ownerId = ownerText(command.ownerId)
  const operator = operatorOf(as)
  if (as !== 'application' && operator === undefined)
    throw invalidRequest("as must be 'application' or { operator }: a key ends one key at a time.")
  if (operator !== undefined) {
    const owns = operator.owners === 'all' || operator.owners.includes(ownerId)
    if (!owns || !operator.scopes.includes('api_keys:admin'))
      throw new ApiKeyError('insufficient_scope', 'This needs the scope api_keys:admin, for this owner.')
  }
  return { ownerId, actor: actorName(as, undefined) }
}

/** Checks what is to be pruned, by the store's clock and by this machine's: one that was set forward would have what is still good be removed. Throws `invalid_request`. */
async function pruneInstants(
  { store, clock, replayWindowMs }: HousekeepingParts,
  options: PruneOptions,
): Promise<{ readonly [name in (typeof PRUNED)[number]]?: number }> {
  const given = PRUNED.filter((name) => options[name] !== undefined)
  if (given.length === 0) throw invalidRequest(`Say what to prune: ${PRUNED.join(', ')}.`)
  const now = Math.min(await store.transaction((tx) => tx.now()), clock.wallMs())
  return Object.fromEntries(
    given.map((name) => {
      const at = instantOf(options[name], name)
      if (at === null || at > now) throw invalidRequest(`${name} must be an instant that has passed.`)
      const youngest = now - Math.max(LEAST_REPLAY_AGE_MS, replayWindowMs)
      if (name === 'replaysBefore' && at > youngest)
        throw invalidRequest(
          'replaysBefore must be at least 24 hours ago, and as long as the replay window: a retry would make its change once more.',
        )
      return [name, at]
    }),
  )
}
