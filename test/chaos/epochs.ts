import type { Create, Op, Read, Restore, Revoke, Rotate } from './check.js'
import { groups } from './groups.js'

/** What a history shows between two losses of data, together with what was there before and was kept. */
export interface Epoch {
  readonly ops: readonly Op[]
  /** What ended before is judged in an earlier epoch. */
  readonly begins: number
  /** What was asked for before may have been lost. */
  readonly goesOnAt: number
  /** From when on every server knows what was lost: none relies on what it has read for longer. */
  readonly settledAt: number
  readonly isLast: boolean
  /** Keys of which a change, or the first use of a secret, was lost or may have been. */
  readonly touched: ReadonlySet<string>
  /** Digests of secrets that were made by changes that were surely lost. */
  readonly lost: ReadonlySet<string>
  /** Whether there may be keys that nobody was told of. */
  readonly strangers: boolean
}

type Attempt = Rotate | Revoke | Create

/**
 * Cuts a history where data were lost. In each epoch, what was answered before the snapshot was taken has happened, what was asked for after that and ended before the loss
 * has not, and of what lies in between nobody can say: a server may carry out later what its client has given up.
 *
 * @param longestMs for how long a server may rely on what it has read
 */
export function epochs(history: readonly Op[], longestMs: number): readonly Epoch[] {
  const losses = history.filter((op) => op.f === 'restore').toSorted((a, b) => a.start - b.start)
  const first: Epoch = {
    ...{
      ops: history,
      begins: Number.NEGATIVE_INFINITY,
      goesOnAt: Number.NEGATIVE_INFINITY,
      settledAt: Number.NEGATIVE_INFINITY,
      isLast: false,
    },
    ...{ touched: new Set(), lost: new Set(), strangers: false },
  }
  const all = [first]
  for (const loss of losses) all.push(after(loss, all.at(-1) ?? first, longestMs))
  return all.map((epoch, index) => {
    const next = losses[index]
    return { ...epoch, isLast: next === undefined, ops: next === undefined ? epoch.ops : until(next, epoch.ops) }
  })
}

function after(loss: Restore, { ops, touched, strangers }: Epoch, longestMs: number): Epoch {
  const { snapshot, start, end } = loss
  const attempts = groups(ops.filter(isAttempt), requestOf)
  const fates = new Map([...attempts].map(([request, all]) => [request, fateOf(all, loss)]))
  const lost = ops.filter(isAttempt).filter((op) => fates.get(requestOf(op)) === 'lost' && op.start < end)
  const made = new Set(lost.flatMap((op) => (op.f === 'rotate' ? (op.made ?? []) : op.f === 'create' ? (op.digest ?? []) : [])))
  const doubtful = ops.filter(isAttempt).filter((op) => fates.get(requestOf(op)) === 'doubtful')
  const ending = new Set(ops.flatMap((op) => (op.f === 'rotate' && op.retire === 'on-first-use' ? (op.made ?? []) : [])))
  const inWindow = (op: Op): boolean => op.end > snapshot.start && op.start < end
  const surelyOver = ({ type, start: sent, end: ended }: Read): boolean => type !== 'info' && sent >= snapshot.end && ended <= start
  const uses = ops.filter((op) => op.f === 'read').filter((op) => inWindow(op) && op.type !== 'fail' && ending.has(op.digest))
  const again = ops.flatMap((op) => (op.f === 'rotate' && op.type === 'ok' && op.start >= end ? (op.made ?? []) : []))
  return {
    ops: ops.flatMap((op): Op[] => {
      if (!inWindow(op)) return [op]
      if (op.f === 'read') return surelyOver(op) ? [] : [unknown(op)]
      if (!isAttempt(op)) return [op]
      return fates.get(requestOf(op)) === 'doubtful' && op.type !== 'fail' ? [unknown(op)] : []
    }),
    begins: start,
    goesOnAt: end,
    settledAt: end + longestMs,
    isLast: true,
    touched: new Set([...touched, ...[...lost, ...doubtful, ...uses].flatMap(({ key }) => key ?? [])]),
    lost: new Set([...made].filter((digest) => !again.includes(digest))),
    strangers: strangers || doubtful.some(({ f }) => f === 'create'),
  }
}

/** What became of a request of which something lies between the snapshot and the loss. */
function fateOf(attempts: readonly Attempt[], { snapshot, start, end }: Restore): 'kept' | 'lost' | 'doubtful' {
  const before = attempts.filter((op) => op.start < end)
  if (before.every((op) => op.end <= snapshot.start)) return 'kept'
  if (before.some((op) => op.type === 'ok' && op.end <= snapshot.start)) return 'kept'
  return before.every((op) => op.type !== 'info' && op.start >= snapshot.end && op.end <= start) ? 'lost' : 'doubtful'
}

/** What is known by the time of a loss. */
function until({ start, end }: Restore, ops: readonly Op[]): readonly Op[] {
  return ops.flatMap((op): Op[] => {
    if (op.f === 'fault' || op.f === 'clock' || op.end <= start) return [op]
    return (isAttempt(op) || op.f === 'read') && op.start < end ? [unknown(op)] : []
  })
}

/** The same without what its answer said, but for the secret that was in it: its client may use that. */
function unknown<Kind extends Attempt | Read>(op: Kind): Kind {
  const bare: Record<string, unknown> = { ...op, type: 'info', status: 0 }
  for (const said of ['generation', 'graceEndsAt', 'replayed', 'seen', 'code', 'took']) delete bare[said]
  if (op.f === 'create') for (const said of ['key', 'digest']) delete bare[said]
  return bare as unknown as Kind
}

function isAttempt(op: Op): op is Attempt {
  return op.f === 'rotate' || op.f === 'revoke' || op.f === 'create'
}

function requestOf(op: Attempt): string {
  return JSON.stringify([op.f, op.f === 'create' ? (op.idempotencyKey ?? op.key) : op.key, op.idempotencyKey])
}
