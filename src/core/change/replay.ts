import { ApiKeyError } from '../../errors.js'
import type { GenerationRow, KeyRow, ReplayAnswer, ReplayRow, Store } from '../../store/store.js'
import { type AuditLine, type AuditTrail, actorName } from '../audit.js'
import type { Clock } from '../clock.js'
import type { CommittedChange, GraceEnd, graceEnder } from './after-commit.js'
import type { FinishedChange } from './change.js'
import { decideReplay } from './replay-decision.js'
import { type PlannedChange, requestOf } from './replay-record.js'
import type { Seals } from './replay-seal.js'

/** A record of the answer of a command, as the authority read it. */
export interface RecordedAnswer {
  readonly read: ReplayAnswer
  readonly record: ReplayRow
  /** The generation that the recorded change made; undefined where it made none. */
  readonly made: GenerationRow | undefined
  /** What this process's clock showed before that. */
  readonly askedAt: number
}

export interface ReplayParts {
  readonly store: Store
  readonly clock: Clock
  readonly seals: Seals
  readonly audit: AuditTrail
  /** Takes turns with the transactions of changes. */
  readonly inTurn: <T>(work: () => Promise<T>) => Promise<T>
  readonly endGrace: ReturnType<typeof graceEnder>
  readonly finish: (committed: CommittedChange) => Promise<FinishedChange>
  readonly report: (error: unknown) => void
}

/** Gives a recorded answer, or throws why not; undefined where the caller is to be told what it would be told without the record. */
export function replayer(parts: ReplayParts): (planned: PlannedChange, recorded: RecordedAnswer) => Promise<FinishedChange | undefined> {
  const { store, clock, seals, audit, inTurn, endGrace, finish, report } = parts
  return async (planned, recorded) => {
    const { change, command, presented, plan } = planned
    const { read, record, made, askedAt } = recorded
    const index = plan.ids.indexOf(record.id)
    const decision = decideReplay({
      change,
      command,
      presented,
      target: await targetOf(planned),
      record,
      made,
      now: read.at,
      sameRequest: seals.fingerprint(index, requestOf(change, command)) === record.fingerprint,
      withoutKey: plan.withoutKey,
      allowanceMs: plan.allowanceMs,
      open: (sealed) => seals.open(index, record, plan.credentials, sealed),
    })
    if (decision.kind === 'passed over') return undefined
    if (decision.kind === 'refused') {
      if (decision.audited && presented !== undefined) {
        audit.writeLater(lineOf(planned, 'key.replay_refused', presented.key, { keyId: record.keyId }), record.id)
      }
      throw decision.error
    }
    const { answer } = decision
    auditReplay(planned, answer.key, record.id)
    const settled = record.settledAt !== null
    // The first answer is still on its way, or its process died. Once it is settled, its end has been told.
    const ended: GraceEnd =
      settled || answer.graceMs === undefined
        ? { answer: {}, at: clock.monotonicMs() }
        : await inTurn(() => endGrace(answer, { record, index, credentials: plan.credentials }))
    return finish({
      answer: { ...answer, ...ended.answer },
      recordId: record.id,
      settled,
      replayed: true,
      contradicted: !settled,
      // Which digests it was about is not recorded: everything up to now has to be known.
      change: undefined,
      waitMs: ended.waitMs ?? read.waitMs,
      now: read.at,
      askedAt,
      committedAt: ended.at,
      waitFrom: ended.at,
    })
  }

  /** The other key that the change is to. A caller that may change nothing any more costs no read of it. */
  async function targetOf({ change, presented }: PlannedChange): Promise<KeyRow | undefined> {
    if (change.target === null || change.target === 'self' || presented?.own === true) return undefined
    if (presented !== undefined && (presented.ended !== undefined || presented.generation.retiredAt !== null)) return undefined
    return (await store.key(change.target))?.key
  }

  function auditReplay(planned: PlannedChange, key: KeyRow, recordId: string): void {
    if (!planned.plan.withoutKey) {
      audit.writeLater(lineOf(planned, 'key.replayed', key, {}), recordId)
      return
    }
    report(
      new ApiKeyError(
        'retried_without_key',
        'A rotation without an Idempotency-Key was repeated with the same secret from the same network, and its answer was given again.',
      ),
    )
    audit.writeLater(lineOf(planned, 'key.replayed', key, { withoutKey: true }))
  }
}

function lineOf({ command, presented }: PlannedChange, type: AuditLine['type'], key: KeyRow, details: AuditLine['details']): AuditLine {
  return { type, key, actor: actorName(command.as, presented?.key), origin: command.origin, details }
}
