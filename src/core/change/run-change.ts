import { ApiKeyError } from '../../errors.js'
import type { EventRow, KeyRow, ReplayAnswer, Store } from '../../store/store.js'
import { ipNotAllowed, isAllowedFrom } from '../allowed-ips.js'
import type { Origin } from '../api-keys.js'
import { auditTrail } from '../audit.js'
import { background } from '../background.js'
import type { Clock } from '../clock.js'
import { failureOf } from '../failures.js'
import type { Finder } from '../import/finder.js'
import type { KnownFormats } from '../known-formats.js'
import type { Recalls } from '../recall/recalls.js'
import { invalidKey, keyDisabled } from '../refusals.js'
import { semaphore } from '../semaphore.js'
import { batchedRead } from '../verify/batched-read.js'
import type { Verifier } from '../verify/verifier.js'
import { type CommittedChange, finisher, graceEnder, unanswered } from './after-commit.js'
import { authenticator } from './authenticate.js'
import type { Change, ChangeCommand, Effect, FinishedChange } from './change.js'
import { preparer } from './prepare.js'
import { type RecordedAnswer, replayer } from './replay.js'
import { type PlannedChange, type RecordPlan, recordPlan } from './replay-record.js'
import type { Seals } from './replay-seal.js'
import type { RotationSecrets } from './rotation-secret.js'
import { changeTransaction, type Outcome, type PreparedChange } from './transaction.js'

export interface RunParts {
  readonly store: Store
  readonly clock: Clock
  readonly format: KnownFormats
  readonly finder: Finder
  readonly verifier: Verifier
  readonly recalls: Recalls
  readonly seals: Seals
  readonly rotationSecrets: RotationSecrets
  /** Hears of every line of the audit trail once it is committed. */
  readonly tell: (event: EventRow, key: KeyRow) => void
  readonly replayWindowMs: number
  readonly replayGraceMs: number
  readonly waitForLease: boolean
  readonly report: (error: unknown) => void
}

export interface ChangeRunner {
  run(change: Change, command: ChangeCommand): Promise<FinishedChange>
  /** Resolves when the work in the background has ended. */
  idle(): Promise<void>
  /** Puts the refusal of a retired secret into the audit trail. */
  auditRefusedSecret(digest: string, origin: Origin): Promise<void>
}

/**
 * Transactions of one process at a time. Those that wait for one locked row must not take up a whole connection pool (pg: 10), or
 * the two reads that renew the leases of everybody else would wait behind them.
 */
const TRANSACTIONS_AT_ONCE = 8
/** More commands than this waiting for their turn would wait longer than their clients do. */
const MAX_QUEUED = 1_000
/** Reads of replay records of one process at a time: a flood of guesses fills batches, not the pool. */
const REPLAY_READS_AT_ONCE = 1
/** A duplicate that waited for its twin finds the record in its second round. */
const MAX_ROUNDS = 3

/**
 * Runs changes: finds who asks, gives the recorded answer where there is one, and otherwise makes the change in one transaction and waits for the leases.
 * A duplicate queues on the row lock and then gets the recorded answer. A record that is there already is found by a read that many share, and costs
 * neither a transaction nor a lock.
 */
export function changeRunner(parts: RunParts): ChangeRunner {
  const { store, clock, report } = parts
  const behind = background(report)
  const audit = auditTrail({ ...parts, background: behind })
  const inTurn = semaphore(TRANSACTIONS_AT_ONCE, MAX_QUEUED, 'More commands are waiting for the store than it can carry out.')
  const readRecord = batchedRead((ids) => store.replays(ids), { first: () => true, atOnce: REPLAY_READS_AT_ONCE })
  const { identify, prove } = authenticator({ ...parts, readRecord })
  const endGrace = graceEnder(parts)
  const { finish, settled } = finisher({ ...parts, background: behind })
  const replay = replayer({ ...parts, audit, inTurn, endGrace, finish })
  const prepare = preparer({ ...parts, audit, prove })
  const transact = changeTransaction({ ...parts, audit })

  return {
    async run(change, command) {
      const arrivedAt = clock.monotonicMs()
      try {
        return await inRounds(change, command)
      } catch (error) {
        const refused = error instanceof ApiKeyError && error.code === 'invalid_key'
        if (refused && command.rotationSecret !== undefined) await untilBeat(clock, arrivedAt)
        throw error
      }
    },
    idle: behind.idle,
    auditRefusedSecret: audit.writeRefusedSecret,
  }

  async function inRounds(change: Change, command: ChangeCommand): Promise<FinishedChange> {
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const presented = await identify(change, command)
      const planned: PlannedChange = { change, command, presented, plan: recordPlan(parts, change, command, presented) }
      await settled(planned.plan.ids)
      const recorded = await findRecord(clock, readRecord, planned.plan)
      refuseAddress(planned, recorded !== undefined)
      const replayed = recorded === undefined ? undefined : await replay(planned, recorded)
      if (replayed !== undefined) return replayed
      const prepared = await prepare(planned)
      const outcome = await inTurn(() => durably(prepared)).catch((error) => {
        throw withAdvice(failureOf(error), planned.plan.ids.length > 0)
      })
      if (outcome.kind === 'refused') throw outcome.error
      // The next round finds the record of its twin.
      if (outcome.kind === 'recorded') continue
      return answered(outcome)
    }
    throw new ApiKeyError('store_unavailable', 'The store shows a record to transactions only; it may answer reads from a stale copy.')
  }

  /** Makes a change, and counts the grace period that it began from its commit. From the end of this on the change is durable. */
  async function durably(prepared: PreparedChange): Promise<Exclude<Outcome, { kind: 'applied' }> | DurableChange> {
    const outcome = await transact(prepared)
    if (outcome.kind !== 'applied') return outcome
    const committedAt = clock.monotonicMs()
    const { effect, record, now, askedAt } = outcome
    const kept = record && { record, index: 0, credentials: prepared.plan.credentials }
    const ended = await endGrace(effect, kept, now + (committedAt - askedAt))
    const answer = { ...effect, ...ended.answer }
    const waitMs = ended.waitMs ?? outcome.waitMs
    return { kind: 'durable', effect, answer, recordId: record?.id ?? null, waitMs, now, askedAt, committedAt, waitFrom: ended.at }
  }

  async function answered({ kind: _, effect, ...committed }: DurableChange): Promise<FinishedChange> {
    try {
      const { retired, changed, waits } = effect
      const change = retired === undefined && changed === undefined ? undefined : { retired, changed }
      return await finish({ ...committed, contradicted: waits, change, settled: false, replayed: false })
    } catch (error) {
      // "Something went wrong" would be read as "nothing has changed".
      const known = failureOf(error)
      throw known.code === 'internal_error' ? unanswered(known) : known
    }
  }
}

/**
 * Refuses a key that may not be used from where its caller is, for a replay too. A secret that is dead is told so as everywhere, unless it comes for an answer of its own:
 * a client deletes its key on that word. One that is disabled is not dead, and is told so from anywhere.
 */
function refuseAddress({ command, presented }: PlannedChange, hasRecord: boolean): void {
  if (presented === undefined || isAllowedFrom(presented.key, command.origin?.ip)) return
  if (presented.ended === undefined || hasRecord) throw ipNotAllowed(presented.key)
  throw presented.ended === 'disabled' ? keyDisabled(presented.key.id) : invalidKey(presented.ended, presented.key.id)
}

interface DurableChange extends Omit<CommittedChange, 'contradicted' | 'change' | 'settled' | 'replayed'> {
  readonly kind: 'durable'
  readonly effect: Effect
}

/**
 * A refusal of a rotation secret goes out at a multiple of this after the request came in. Whatever made it a refusal took its 50 ms of bcrypt well inside,
 * so the time says no more than the words.
 */
const REFUSAL_BEAT_MS = 250
const LAST_STEP_MS = 10

async function untilBeat(clock: Clock, arrivedAt: number): Promise<void> {
  const passed = clock.monotonicMs() - arrivedAt
  const until = arrivedAt + REFUSAL_BEAT_MS * Math.ceil((passed + LAST_STEP_MS) / REFUSAL_BEAT_MS)
  // A timer's rounding depends on when it was set: the last one is set by another timer, whatever came before.
  await clock.sleep(until - LAST_STEP_MS - clock.monotonicMs())
  await clock.sleep(until - clock.monotonicMs())
}

async function findRecord(
  clock: Clock,
  readRecord: (id: string) => Promise<ReplayAnswer>,
  plan: RecordPlan,
): Promise<RecordedAnswer | undefined> {
  const askedAt = clock.monotonicMs()
  const answers = await Promise.all(plan.ids.map(readRecord))
  for (const [index, id] of plan.ids.entries()) {
    const read = answers[index]
    const found = read?.found.find(({ record }) => record.id === id)
    if (read !== undefined && found !== undefined) return { ...found, read, askedAt }
  }
  return undefined
}

/** Says what to do where nobody knows whether a change was made. */
function withAdvice(error: ApiKeyError, repeatable: boolean): ApiKeyError {
  if (error.code !== 'outcome_unknown') return error
  const advice = repeatable
    ? 'Repeat the request with the same Idempotency-Key.'
    : 'Check which state the key is in before trying again, and send an Idempotency-Key next time.'
  return new ApiKeyError('outcome_unknown', `The connection to the store was lost at the moment of commit. ${advice}`, {
    cause: error.cause ?? error,
  })
}
