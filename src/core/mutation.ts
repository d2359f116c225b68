import { randomBytes } from 'node:crypto'
import { ApiKeyError } from '../errors.js'
import type { EventType, GenerationRow, JsonObject, KeyRow, ReplayRow, Store, StoreTransaction } from '../store/store.js'
import type { CommandContext } from './api-keys.js'
import type { Clock } from './clock.js'
import { endedBecause, type Leases, storeFailure } from './lease.js'
import type { RequestShape, Seals } from './replay.js'
import { digestOf, type SecretFormat } from './secret.js'

/** The scope that lets a key create, change, rotate and revoke every key of its owner. */
export const WRITE_SCOPE = 'api_keys:write'

/** One kind of change, as the transaction of `mutations` needs to know it. */
export interface Mutation {
  /** Names the command in the default fingerprint. */
  readonly name: string
  /** The key to change; `self` for the caller's own, null where the mutation makes one. */
  readonly target: string | 'self' | null
  /** Whether a key may do this to itself without `api_keys:write`. */
  readonly selfAllowed: boolean
  /** Everything that a retry must repeat, for callers that gave no request of their own. */
  readonly fingerprint: unknown
  /** Refuses, or writes the change. `by` is the id of the replay record, which retired generations point to. */
  apply(
    tx: StoreTransaction,
    scene: { caller: KeyRow | undefined; target: KeyRow | undefined; now: number; by: string | null },
  ): Promise<Effect>
}

/** What a mutation did, before it is durable. */
export interface Effect {
  readonly key: KeyRow
  /** The new secret, where one was made. */
  readonly secret?: string
  /** Digests that are no longer accepted, and why. */
  readonly retired?: { readonly digests: readonly string[]; readonly reason: 'rotated' | 'revoked' }
  /** The digest whose verdict has changed but stays good. */
  readonly changed?: string
  /** Null where nothing happened that the audit trail should tell. */
  readonly event: { readonly type: EventType; readonly details: JsonObject } | null
  /** False where no lease can contradict the answer (a new key). */
  readonly waits: boolean
}

/** A finished mutation. */
export interface Done {
  readonly key: KeyRow
  readonly secret: string | undefined
  readonly replayed: boolean
  /** With `waitForLease: false`: until when (wall clock, ms) a lease may still contradict the answer. */
  readonly acceptedUntil: number | undefined
}

export interface MutationParts {
  readonly store: Store
  readonly clock: Clock
  readonly format: SecretFormat
  readonly leases: Leases
  readonly seals: Seals
  readonly replayWindowMs: number
  readonly replayGraceMs: number
  readonly waitForLease: boolean
  readonly report: (error: unknown) => void
}

/** After it is settled, a record is replayed this often: enough for every retry of a bad network, few enough for a thief. */
const MAX_REPLAYS = 5

/**
 * Transactions of one process at a time. Those that wait for one locked row must not take up a whole connection pool (pg: 10), or
 * the two reads that renew the leases of everybody else would wait behind them.
 */
const TRANSACTIONS_AT_ONCE = 8

/** More commands than this waiting for their turn would wait longer than their clients do. */
const MAX_QUEUED = 1_000

/** What a rotation waits beyond the lease, for clocks that run at slightly different speeds. */
function marginMs(leaseMs: number): number {
  return Math.max(50, leaseMs / 100)
}

/** Audits a dead secret at most this often, so that whoever keeps presenting one cannot fill the trail. */
const REFUSAL_AUDIT_MS = 60_000
const MAX_REFUSAL_AUDITS = 1_000

type Outcome =
  | { readonly kind: 'refused'; readonly error: ApiKeyError }
  | { readonly kind: 'applied'; readonly effect: Effect; readonly recordId: string | null; readonly waitMs: number }
  | { readonly kind: 'replayed'; readonly answer: SealedAnswer; readonly record: ReplayRow; readonly waitMs: number }

interface SealedAnswer {
  readonly key: KeyRow
  readonly secret?: string
}

/**
 * Carries out mutations: the transaction, the wait and the replay. Effect, replay record and audit event commit together, so there is
 * no "in progress" state that a crash could leave behind: a killed process is a rollback, and a duplicate queues on the
 * row lock and then replays.
 */
export function mutations(parts: MutationParts): (mutation: Mutation, context: CommandContext) => Promise<Done> {
  const { store, clock, format, leases, seals, report } = parts
  const inTurn = semaphore(TRANSACTIONS_AT_ONCE)
  const audited = new Map<string, number>()

  return async (mutation, context) => {
    if (context.secret !== undefined && !format.wellFormed(context.secret)) throw invalidKey()
    const presented = context.secret === undefined ? undefined : { secret: context.secret, digest: digestOf(context.secret) }
    const idempotencyKey = presented === undefined ? undefined : context.idempotencyKey
    const arrived = clock.monotonicMs()

    const outcome = await inTurn(() =>
      store.transaction((tx) => transact(tx, mutation, context, presented, idempotencyKey, arrived)),
    ).catch((error) => {
      throw explained(storeFailure(error), idempotencyKey !== undefined)
    })
    // From here on the change is durable. Every lease that can contradict it was asked for before this instant.
    const committed = clock.monotonicMs()
    if (outcome.kind === 'refused') throw outcome.error

    const answer = outcome.kind === 'applied' ? outcome.effect : outcome.answer
    const recordId = outcome.kind === 'applied' ? outcome.recordId : outcome.record.id
    if (outcome.kind === 'applied') await tellCaches(outcome.effect)
    const settled = outcome.kind === 'replayed' && outcome.record.settledAt !== null
    const waits = store.shared && !settled && (outcome.kind === 'replayed' || outcome.effect.waits)
    const waitMs = waits ? outcome.waitMs + marginMs(outcome.waitMs) : 0
    const settle = async (): Promise<void> => {
      if (waits) await clock.sleep(committed + waitMs - clock.monotonicMs())
      if (recordId !== null && !settled) await store.settle(recordId).catch(report)
    }
    // A record is settled when its leases are over, also where nobody waits for that: another instance may, and goes by it.
    if (parts.waitForLease) await settle()
    else void settle()

    // Another rotation may have come in between: a secret that is dead already is not handed out.
    if (answer.secret !== undefined && (await supersededSince(answer.key))) throw superseded()
    const acceptedUntil = waits && !parts.waitForLease ? clock.wallMs() + waitMs : undefined
    return { key: answer.key, secret: answer.secret, replayed: outcome.kind === 'replayed', acceptedUntil }
  }

  async function transact(
    tx: StoreTransaction,
    mutation: Mutation,
    context: CommandContext,
    presented: { secret: string; digest: string } | undefined,
    idempotencyKey: string | undefined,
    arrived: number,
  ): Promise<Outcome> {
    // Whose secret it is never changes, so this needs no lock. What it is worth does: it is read again below, under the lock.
    // No filter on status: it would turn a duplicate that waited for its twin into "not found", and lock the client out.
    const callerId = presented === undefined ? undefined : (await tx.generation(presented.digest))?.keyId
    if (presented !== undefined && callerId === undefined) return { kind: 'refused', error: invalidKey() }
    const targetId = mutation.target === 'self' ? callerId : (mutation.target ?? undefined)
    const locked = await tx.lockKeys([...new Set([callerId, targetId])].filter((id) => id !== undefined))
    const caller = locked.find(({ id }) => id === callerId)
    const target = locked.find(({ id }) => id === targetId)
    const generation = presented === undefined ? undefined : await tx.generation(presented.digest)
    if (presented !== undefined && (caller === undefined || generation === undefined)) return { kind: 'refused', error: invalidKey() }
    const now = await tx.now()

    const recordIds = caller === undefined || idempotencyKey === undefined ? [] : seals.ids(caller.id, idempotencyKey)
    const record = recordIds.length === 0 ? undefined : await tx.replay(recordIds)
    let active = true
    if (caller !== undefined && generation !== undefined && presented !== undefined) {
      const ended = endedBecause(caller, generation, now)
      active = ended === undefined
      // The one thing a dead secret is still good for: the answer of the very mutation that retired it.
      const ownAnswer =
        record !== undefined && generation.retiredBy === record.id && !(caller.expiresAt !== null && caller.expiresAt <= now)
      if (!active && !ownAnswer) {
        await auditRefusal(tx, caller, generation, now, context, ended ?? 'rotated')
        return { kind: 'refused', error: invalidKey() }
      }
      if (active && generation.firstUsedAt === null) leases.noteFirstUse(presented.digest)
    }

    const forbidden = authorise(mutation, caller, target)
    if (forbidden !== undefined) return { kind: 'refused', error: forbidden }

    if (record !== undefined && caller !== undefined && presented !== undefined && idempotencyKey !== undefined) {
      const index = recordIds.indexOf(record.id)
      // A duplicate that came in before the first answer went out shares it, however long it queued since, and is not counted.
      const counted = record.settledAt !== null && record.settledAt < now - (clock.monotonicMs() - arrived)
      const credentials = { secret: presented.secret, idempotencyKey }
      const spent = counted && record.replays >= MAX_REPLAYS
      const replay = await decideReplay(tx, record, index, credentials, { active, spent, now }, requestOf(mutation, context))
      if (replay instanceof ApiKeyError) {
        if (replay.code === 'invalid_key' || replay.code === 'idempotency_key_spent') {
          await tx.countReplay(record.id, 'refusals')
          await auditRefusedReplay(tx, caller, record, now, context)
        }
        return { kind: 'refused', error: replay }
      }
      if (counted) await tx.countReplay(record.id, 'replays')
      await tx.appendEvent(event('key.replayed', replay.key, now, context, caller, {}))
      return { kind: 'replayed', answer: replay, record, waitMs: await tx.waitMs() }
    }

    const by = recordIds[0] ?? null
    const effect = await mutation.apply(tx, { caller, target, now, by })
    if (by !== null && caller !== undefined && presented !== undefined && idempotencyKey !== undefined) {
      const open = {
        id: by,
        callerId: caller.id,
        keyId: effect.key.id,
        generation: effect.secret === undefined ? null : effect.key.generation,
        fingerprint: seals.fingerprint(0, requestOf(mutation, context)),
        expiresAt: now + parts.replayWindowMs,
      }
      const answer: SealedAnswer = { key: effect.key, ...(effect.secret === undefined ? {} : { secret: effect.secret }) }
      const sealed = seals.seal(open, { secret: presented.secret, idempotencyKey }, JSON.stringify(answer))
      await tx.insertReplay({ ...open, sealed, createdAt: now, settledAt: null, replays: 0, refusals: 0 })
    }
    if (effect.event !== null) await tx.appendEvent(event(effect.event.type, effect.key, now, context, caller, effect.event.details))
    return { kind: 'applied', effect, recordId: by, waitMs: effect.waits ? await tx.waitMs() : 0 }
  }

  /** The recorded answer, or why it is not given. */
  async function decideReplay(
    tx: StoreTransaction,
    record: ReplayRow,
    index: number,
    credentials: { secret: string; idempotencyKey: string },
    { active, spent, now }: { active: boolean; spent: boolean; now: number },
    request: RequestShape,
  ): Promise<SealedAnswer | ApiKeyError> {
    if (seals.fingerprint(index, request) !== record.fingerprint) {
      return new ApiKeyError(
        'idempotency_key_mismatch',
        'This Idempotency-Key was used for another request; a new request needs a new one.',
      )
    }
    // A live caller must not be told 401: clients delete their key on it.
    const refusal = active
      ? new ApiKeyError(
          'idempotency_key_spent',
          'What this Idempotency-Key stands for was done, and its answer can no longer be given; use a new one.',
        )
      : invalidKey()
    if (record.generation !== null) {
      const made = await tx.generationOf(record.keyId, record.generation)
      if (made === undefined || made.retiredReason === 'rotated') return superseded()
      const burnt = made.firstUsedAt !== null && made.firstUsedAt + parts.replayGraceMs <= now
      if (burnt) await tx.eraseReplays(record.keyId, null)
      if (burnt || made.retiredAt !== null) return refusal
    }
    if (record.sealed === null || record.expiresAt <= now || spent) return refusal
    const opened = seals.open(index, record, credentials, record.sealed)
    return opened === undefined ? refusal : (JSON.parse(opened) as SealedAnswer)
  }

  async function tellCaches(effect: Effect): Promise<void> {
    if (effect.retired !== undefined) await leases.retire(effect.retired.digests, effect.retired.reason)
    if (effect.changed !== undefined) await leases.forget(effect.changed)
  }

  async function supersededSince(key: KeyRow): Promise<boolean> {
    try {
      const current = await store.key(key.id)
      return current === undefined || current.key.generation !== key.generation || current.generation.retiredAt !== null
    } catch (error) {
      // The client may hold a dead key by now: an answer that is probably good beats none.
      report(error)
      return false
    }
  }

  async function auditRefusal(
    tx: StoreTransaction,
    key: KeyRow,
    { digest, generation }: GenerationRow,
    now: number,
    context: CommandContext,
    reason: string,
  ): Promise<void> {
    const last = audited.get(digest)
    if (last !== undefined && clock.monotonicMs() - last < REFUSAL_AUDIT_MS) return
    audited.set(digest, clock.monotonicMs())
    if (audited.size > MAX_REFUSAL_AUDITS) audited.delete(audited.keys().next().value ?? digest)
    await tx.appendEvent(event('key.retired_secret_refused', key, now, context, key, { generation, reason }))
  }

  async function auditRefusedReplay(
    tx: StoreTransaction,
    caller: KeyRow,
    record: ReplayRow,
    now: number,
    context: CommandContext,
  ): Promise<void> {
    const last = audited.get(record.id)
    if (last !== undefined && clock.monotonicMs() - last < REFUSAL_AUDIT_MS) return
    audited.set(record.id, clock.monotonicMs())
    if (audited.size > MAX_REFUSAL_AUDITS) audited.delete(audited.keys().next().value ?? record.id)
    await tx.appendEvent(event('key.replay_refused', caller, now, context, caller, { keyId: record.keyId }))
  }
}

/** Who may do what to whom. A foreign key is as unknown as one that does not exist. */
function authorise(mutation: Mutation, caller: KeyRow | undefined, target: KeyRow | undefined): ApiKeyError | undefined {
  const missing = mutation.target !== null && (target === undefined || (caller !== undefined && target.ownerId !== caller.ownerId))
  if (missing) return new ApiKeyError('key_not_found', 'There is no such key.')
  if (caller === undefined) return undefined
  if (mutation.selfAllowed && target?.id === caller.id) return undefined
  if (caller.scopes.includes(WRITE_SCOPE)) return undefined
  return new ApiKeyError('insufficient_scope', `This needs the scope ${WRITE_SCOPE}.`)
}

function requestOf(mutation: Mutation, context: CommandContext): RequestShape {
  return context.request ?? { method: mutation.name, path: mutation.target ?? '', body: mutation.fingerprint }
}

function event(
  type: EventType,
  key: KeyRow,
  at: number,
  { ip, userAgent }: CommandContext,
  caller: KeyRow | undefined,
  details: JsonObject,
): Parameters<StoreTransaction['appendEvent']>[0] {
  return {
    id: timeOrderedId(at),
    keyId: key.id,
    ownerId: key.ownerId,
    type,
    at,
    actor: caller === undefined ? 'system' : `key:${caller.id}`,
    ip: ip?.slice(0, 255).replaceAll('\0', '') ?? null,
    userAgent: userAgent?.slice(0, 255).replaceAll('\0', '') ?? null,
    details,
  }
}

let lastStamp = 0
let sequence = 0

/**
 * A UUID whose order is the order of making, within one process even inside a millisecond.
 *
 * @see RFC 9562 §5.7 and §6.2 (UUIDv7 with a counter)
 */
export function timeOrderedId(now: number): string {
  sequence = now > lastStamp ? 0 : sequence + 1
  lastStamp = Math.max(now, lastStamp)
  if (sequence > 0xfff) {
    lastStamp++
    sequence = 0
  }
  const time = lastStamp.toString(16).padStart(12, '0')
  const random = randomBytes(8)
  random[0] = ((random[0] ?? 0) & 0x3f) | 0x80
  const tail = random.toString('hex')
  return `${time.slice(0, 8)}-${time.slice(8)}-7${sequence.toString(16).padStart(3, '0')}-${tail.slice(0, 4)}-${tail.slice(4)}`
}

/** One refusal for every credential that is not good: a stranger learns nothing from it. */
function invalidKey(): ApiKeyError {
  return new ApiKeyError('invalid_key', 'The API key is not valid.')
}

function superseded(): ApiKeyError {
  return new ApiKeyError('rotation_superseded', 'The key has been rotated again since; the secret of this rotation is no longer active.')
}

function explained(error: ApiKeyError, repeatable: boolean): ApiKeyError {
  if (error.code !== 'outcome_unknown') return error
  const advice = repeatable
    ? 'Repeat the request with the same Idempotency-Key.'
    : 'Check which state the key is in before trying again, and send an Idempotency-Key next time.'
  return new ApiKeyError('outcome_unknown', `The connection to the store was lost at the moment of commit. ${advice}`, {
    cause: error.cause ?? error,
  })
}

function semaphore(size: number): <T>(work: () => Promise<T>) => Promise<T> {
  let free = size
  const queue: (() => void)[] = []
  return async (work) => {
    if (queue.length >= MAX_QUEUED)
      throw new ApiKeyError('store_unavailable', 'More commands are waiting for the store than it can carry out.')
    if (free > 0) free--
    else await new Promise<void>((resolve) => queue.push(resolve))
    try {
      return await work()
    } finally {
      const next = queue.shift()
      if (next === undefined) free++
      else next()
    }
  }
}
