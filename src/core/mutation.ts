import { randomBytes } from 'node:crypto'
import { ApiKeyError } from '../errors.js'
import type { EventRow, EventType, GenerationRow, JsonObject, KeyRow, ReplayRow, Store, StoreTransaction } from '../store/store.js'
import type { CommandContext, Operator, Origin } from './api-keys.js'
import type { Clock } from './clock.js'
import { endedBecause, type Leases, marginMs, storeFailure } from './lease.js'
import type { RequestShape, Seals } from './replay.js'
import type { MintedRotationSecret, RotationSecrets } from './rotation-secret.js'
import { digestOf, type SecretFormat } from './secret.js'
import { semaphore } from './semaphore.js'

/** The scope that lets a key create, change, rotate and revoke every key of its owner. */
export const WRITE_SCOPE = 'api_keys:write'

/** One kind of change, as the transaction of `mutations` needs to know it. */
export interface Mutation {
  /** Names the command in the default fingerprint. */
  readonly name: string
  /** The key to change; `self` for the caller's own, null where the mutation makes one. */
  readonly target: string | 'self' | null
  /** Whose key it makes, where it makes one. */
  readonly ownerId?: string
  /** Whether a key may do this to itself without `api_keys:write`. */
  readonly selfAllowed: boolean
  /** Whether a key that has a rotation secret needs it to do this to itself. Default false. */
  readonly rotationSecretGuards?: boolean
  /** Whether `apply` needs a new rotation secret, which takes too long to be made inside the transaction. Default never. */
  readonly mintsRotationSecret?: 'never' | 'always' | 'like the target'
  /** Whether its answer must not be kept, not even sealed. Default false. */
  readonly neverReplayed?: boolean
  /** Everything that a retry must repeat, for callers that gave no request of their own. */
  readonly fingerprint: unknown
  /** Refuses, or writes the change. `by` is the id of the replay record, which retired generations point to. */
  apply(
    tx: StoreTransaction,
    scene: {
      caller: KeyRow | undefined
      target: KeyRow | undefined
      /** The digest of the secret that the caller presented; null where it presented none. */
      presented: string | null
      now: number
      by: string | null
      minted: MintedRotationSecret | undefined
    },
  ): Promise<Effect>
}

/** What a mutation did, before it is durable. */
export interface Effect {
  readonly key: KeyRow
  /** The new secret, where one was made. */
  readonly secret?: string
  /** The new rotation secret, where one was made. */
  readonly rotationSecret?: string
  /** Until when the old secret is still accepted, where it has a grace period. */
  readonly acceptedUntil?: number
  /** Digests that are no longer accepted, and why. */
  readonly retired?: { readonly digests: readonly string[]; readonly reason: 'rotated' | 'revoked' }
  /** The digests whose verdict has changed but stays good. */
  readonly changed?: readonly string[]
  /** What the audit trail should tell. */
  readonly events: readonly { readonly type: EventType; readonly key: KeyRow; readonly details: JsonObject }[]
  /** False where no lease can contradict the answer (a new key). */
  readonly waits: boolean
}

/** A finished mutation. */
export interface Done {
  readonly key: KeyRow
  readonly secret: string | undefined
  readonly rotationSecret: string | undefined
  readonly replayed: boolean
  /** Until when (ms since the epoch) what was retired may still be accepted, where it may. */
  readonly acceptedUntil: number | undefined
}

export interface MutationParts {
  readonly store: Store
  readonly clock: Clock
  readonly format: SecretFormat
  readonly leases: Leases
  readonly seals: Seals
  readonly rotationSecrets: RotationSecrets
  /** Whether anybody but this instance may hold a lease on the store's keys. */
  readonly othersHoldLeases: () => boolean
  /** Hears of every line of the audit trail once it is committed. */
  readonly tell: (event: EventRow, key: KeyRow) => void
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

/** Audits a dead secret at most this often, so that whoever keeps presenting one cannot fill the trail. */
const REFUSAL_AUDIT_MS = 60_000
const MAX_REFUSAL_AUDITS = 1_000

/**
 * A refusal of a rotation secret goes out at a multiple of this after the request came in: whatever made it a refusal took its 50 ms of
 * bcrypt well inside, so the time says no more than the words.
 */
const REFUSAL_BEAT_MS = 250
const LAST_STEP_MS = 10

/** Who is calling, as the transaction knows it. */
interface Presented {
  readonly secret: string
  readonly digest: string
  /** The hash that a presented rotation secret was compared with, and fits. */
  readonly provenHash: string | undefined
}

type Outcome =
  | { readonly kind: 'refused'; readonly error: ApiKeyError }
  | ({ readonly kind: 'applied'; readonly effect: Effect; readonly recordId: string | null } & Timing)
  | ({ readonly kind: 'replayed'; readonly answer: SealedAnswer; readonly record: ReplayRow } & Timing)

interface Timing {
  readonly waitMs: number
  /** What the store's clock showed, and this process's before it was asked. */
  readonly now: number
  readonly askedAt: number
}

interface SealedAnswer {
  readonly key: KeyRow
  readonly secret?: string
  readonly rotationSecret?: string
  readonly acceptedUntil?: number
}

export interface Mutations {
  run(mutation: Mutation, context: CommandContext & { rotationSecret?: string }): Promise<Done>
  /** Resolves when what is written behind answers has been written. */
  idle(): Promise<void>
  /** Puts the refusal of a retired secret into the audit trail. */
  auditRefusedSecret(digest: string, origin: Origin): Promise<void>
}

/**
 * Carries out mutations: the transaction, the wait and the replay. Effect, replay record and audit event commit together, so there is
 * no "in progress" state that a crash could leave behind: a killed process is a rollback, and a duplicate queues on the
 * row lock and then replays.
 */
export function mutations(parts: MutationParts): Mutations {
  const { store, clock, format, leases, seals, rotationSecrets, report } = parts
  const inTurn = semaphore(TRANSACTIONS_AT_ONCE, MAX_QUEUED, 'More commands are waiting for the store than it can carry out.')
  const audited = new Map<string, number>()
  const behind = new Set<Promise<void>>()

  return {
    async idle() {
      while (behind.size > 0) await Promise.all(behind)
    },

    async run(mutation, context) {
      const arrived = clock.monotonicMs()
      try {
        return await carryOut(mutation, context, arrived)
      } catch (error) {
        if (context.rotationSecret !== undefined && error instanceof ApiKeyError && error.code === 'invalid_key') {
          const passed = clock.monotonicMs() - arrived
          const until = arrived + REFUSAL_BEAT_MS * Math.ceil((passed + LAST_STEP_MS) / REFUSAL_BEAT_MS)
          // A timer's rounding depends on when it was set: the last one is set by another timer, whatever came before.
          await clock.sleep(until - LAST_STEP_MS - clock.monotonicMs())
          await clock.sleep(until - clock.monotonicMs())
        }
        throw error
      }
    },

    async auditRefusedSecret(digest, origin) {
      if (!auditIsDue(digest)) return
      await logged(async (tx, log) => {
        const generation = await tx.generation(digest)
        const [key] = generation === undefined ? [] : await tx.lockKeys([generation.keyId])
        if (generation === undefined || key === undefined) return
        const now = await tx.now()
        const reason = endedBecause(key, generation, now)
        if (reason === undefined) return
        const details = { generation: generation.generation, reason }
        await log(event('key.retired_secret_refused', key, now, origin, `key:${key.id}`, details), key)
      })
    },
  }

  async function carryOut(mutation: Mutation, context: CommandContext & { rotationSecret?: string }, arrived: number): Promise<Done> {
    const { presented, minted } = await prepare(mutation, context)
    const idempotencyKey = presented === undefined && context.operator === undefined ? undefined : context.idempotencyKey

    const outcome = await inTurn(() =>
      logged((tx, log) => transact(tx, log, mutation, { ...context, idempotencyKey }, presented, minted, arrived)),
    ).catch((error) => {
      throw explained(storeFailure(error), idempotencyKey !== undefined)
    })
    // From here on the change is durable. Every lease that can contradict it was asked for before this instant.
    const committed = clock.monotonicMs()
    if (outcome.kind === 'refused') throw outcome.error
    try {
      return await answer(outcome, committed)
    } catch (error) {
      // "Something went wrong" would be read as "nothing has changed".
      const known = storeFailure(error)
      throw known.code === 'internal_error' ? unanswered(known) : known
    }
  }

  async function answer(outcome: Exclude<Outcome, { kind: 'refused' }>, committed: number): Promise<Done> {
    const given = outcome.kind === 'applied' ? outcome.effect : outcome.answer
    const recordId = outcome.kind === 'applied' ? outcome.recordId : outcome.record.id
    if (outcome.kind === 'applied') await tellCaches(outcome.effect)
    if (given.secret !== undefined) leases.introduce(digestOf(given.secret), given.key.id)
    const settled = outcome.kind === 'replayed' && outcome.record.settledAt !== null
    const waits = parts.othersHoldLeases() && !settled && (outcome.kind === 'replayed' || outcome.effect.waits)
    const waitMs = waits ? outcome.waitMs + marginMs(outcome.waitMs) : 0
    const settle = async (): Promise<void> => {
      if (waits) await clock.sleep(committed + waitMs - clock.monotonicMs())
      if (recordId !== null && !settled) await store.settle(recordId).catch(report)
    }
    // A record is settled when its leases are over, also where nobody waits for that: another instance may, and goes by it.
    if (parts.waitForLease) await settle()
    else void settle()

    // Another rotation may have come in between: a secret that is dead already is not handed out.
    if (given.secret !== undefined && (await supersededSince(given.key))) throw superseded()
    // On the store's clock, as every instant that is told: that of this machine may be wrong.
    const lastLease = waits && !parts.waitForLease ? Math.ceil(outcome.now + (committed - outcome.askedAt) + waitMs) : undefined
    const acceptedUntil = Math.max(given.acceptedUntil ?? 0, lastLease ?? 0)
    return {
      key: given.key,
      secret: given.secret,
      rotationSecret: given.rotationSecret,
      replayed: outcome.kind === 'replayed',
      acceptedUntil: acceptedUntil === 0 ? undefined : acceptedUntil,
    }
  }

  /**
   * What has to happen before the transaction, since it takes long: bcrypt never runs while a row is locked. Nothing is decided here that
   * could change until then: whose secret it is, whose key the target is and whether a key has a rotation secret are settled for ever.
   */
  async function prepare(
    mutation: Mutation,
    { secret, rotationSecret, ...context }: CommandContext & { rotationSecret?: string },
  ): Promise<{ presented: Presented | undefined; minted: MintedRotationSecret | undefined }> {
    const targetId = mutation.target === 'self' ? null : mutation.target
    if (secret === undefined) {
      if (rotationSecret !== undefined) throw new ApiKeyError('invalid_request', 'A rotation secret belongs to the key that presents it.')
      if (mutation.target === 'self') throw new ApiKeyError('invalid_request', 'Only a key has a "self"; name the key by its id.')
      const found = targetId === null ? undefined : await store.key(targetId)
      const forbidden = authorise(mutation, undefined, context.operator, found?.key)
      if (forbidden !== undefined) throw forbidden
      return { presented: undefined, minted: await mintFor(mutation, found?.key, found?.generation) }
    }
    if (!format.wellFormed(secret)) throw invalidKey()
    if (rotationSecret !== undefined && !rotationSecrets.wellFormed(rotationSecret)) throw invalidKey()
    const digest = digestOf(secret)
    const asked = await leases.look(digest)
    const hash = asked.found?.generation.rotationSecretHash ?? null
    // A secret that never was costs no bcrypt, or whoever makes some up could keep it from everybody else; only the time that it takes.
    if (asked.found === undefined) {
      if (rotationSecret !== undefined) await rotationSecrets.feign(rotationSecret)
      throw invalidKey()
    }
    const proven = rotationSecret !== undefined && (await rotationSecrets.matches(rotationSecret, hash))
    const { key, generation } = asked.found
    const ended = endedBecause(key, generation, asked.at)
    if (rotationSecret !== undefined) {
      if (hash === null && ended !== 'rotated' && ended !== 'expired') {
        throw new ApiKeyError(
          'rotation_secret_not_configured',
          'This key has no rotation secret; rotate it without one, or have it rotated for it.',
        )
      }
      if (!proven) {
        if (ended === undefined) auditLater('key.rotation_secret_refused', key, context)
        throw invalidKey()
      }
      // Told to nobody but the holder of both credentials.
      if (ended === 'revoked') throw new ApiKeyError('key_revoked', 'The key is revoked; a revoked key cannot be rotated.')
    }
    // Its first use ends the grace period of the secret before it, whatever it is used for.
    if (ended === undefined && generation.retiresEarlier) await leases.verify(digest)
    const target = targetId === null ? undefined : targetId === key.id ? asked.found : await store.key(targetId)
    if (targetId !== null && target?.key.ownerId !== key.ownerId) throw ended === undefined ? notFound() : invalidKey()
    const about = targetId === null ? asked.found : target
    const forbidden =
      ended === undefined ? authorise(mutation, key, undefined, mutation.target === null ? undefined : about?.key) : undefined
    if (forbidden !== undefined) throw forbidden
    // An expiry can be moved between here and there.
    const minted = ended === undefined || ended === 'expired' ? await mintFor(mutation, about?.key, about?.generation) : undefined
    return { presented: { secret, digest, provenHash: proven && hash !== null ? hash : undefined }, minted }
  }

  async function mintFor(
    { mintsRotationSecret: when = 'never', fingerprint }: Mutation,
    target: KeyRow | undefined,
    generation: GenerationRow | undefined,
  ): Promise<MintedRotationSecret | undefined> {
    if (when === 'always') {
      const { environment = 'live' } = (fingerprint ?? {}) as { environment?: 'live' | 'test' }
      return rotationSecrets.mint(environment)
    }
    if (when === 'never' || target === undefined || generation === undefined || generation.rotationSecretHash === null) return undefined
    return rotationSecrets.mint(target.environment)
  }

  async function transact(
    tx: StoreTransaction,
    log: Log,
    mutation: Mutation,
    context: Omit<CommandContext, 'idempotencyKey'> & { idempotencyKey: string | undefined; rotationSecret?: string },
    presented: Presented | undefined,
    minted: MintedRotationSecret | undefined,
    arrived: number,
  ): Promise<Outcome> {
    const { operator, idempotencyKey } = context
    // Whose secret it is never changes, so this needs no lock. What it is worth does: it is read again below, under the lock.
    // No filter on status: it would turn a duplicate that waited for its twin into "not found", and lock the client out.
    const callerId = presented === undefined ? undefined : (await tx.generation(presented.digest))?.keyId
    if (presented !== undefined && callerId === undefined) return { kind: 'refused', error: invalidKey() }
    // A key's duplicates queue on its row; an operator has none.
    if (operator !== undefined && idempotencyKey !== undefined)
      await tx.lockName(digestOf(JSON.stringify([operator.issuer, operator.subject, idempotencyKey])))
    const targetId = mutation.target === 'self' ? callerId : (mutation.target ?? undefined)
    const locked = await tx.lockKeys([...new Set([callerId, targetId])].filter((id) => id !== undefined))
    const caller = locked.find(({ id }) => id === callerId)
    const target = locked.find(({ id }) => id === targetId)
    const generation = presented === undefined ? undefined : await tx.generation(presented.digest)
    if (presented !== undefined && (caller === undefined || generation === undefined)) return { kind: 'refused', error: invalidKey() }
    // The hash that was compared before the transaction has to be the one that counts now.
    if (presented?.provenHash !== undefined && presented.provenHash !== generation?.rotationSecretHash) {
      return { kind: 'refused', error: invalidKey() }
    }
    const askedAt = clock.monotonicMs()
    const now = await tx.now()
    // On the store's clock, and rather too early: what the store's answer took on its way counts for the client.
    const arrivedAt = now - (clock.monotonicMs() - arrived)
    const principal = caller?.id ?? (operator === undefined ? undefined : `operator:${JSON.stringify([operator.issuer, operator.subject])}`)
    const actor =
      operator !== undefined ? `operator:${operator.subject}@${operator.issuer}` : caller === undefined ? 'system' : `key:${caller.id}`

    const recordIds = principal === undefined || idempotencyKey === undefined ? [] : seals.ids(principal, idempotencyKey)
    const record = recordIds.length === 0 ? undefined : await tx.replay(recordIds)
    let active = true
    if (caller !== undefined && generation !== undefined && presented !== undefined) {
      const ended = endedBecause(caller, generation, now)
      active = ended === undefined
      // The one thing a dead secret is still good for: the answer of the very mutation that retired it.
      const ownAnswer =
        record !== undefined && generation.retiredBy === record.id && !(caller.expiresAt !== null && caller.expiresAt <= now)
      if (!active && !ownAnswer) {
        if (auditIsDue(presented.digest)) {
          const details = { generation: generation.generation, reason: ended ?? 'rotated' }
          await log(event('key.retired_secret_refused', caller, now, context, actor, details), caller)
        }
        return { kind: 'refused', error: invalidKey() }
      }
      if (active && generation.firstUsedAt === null) leases.noteFirstUse(presented.digest)
      const guarded = mutation.rotationSecretGuards === true && target?.id === caller.id && generation.rotationSecretHash !== null
      if (active && guarded && presented.provenHash === undefined) {
        return {
          kind: 'refused',
          error: new ApiKeyError('rotation_secret_required', 'This key has a rotation secret, and needs it to rotate itself.'),
        }
      }
    }

    const forbidden = authorise(mutation, caller, operator, target)
    if (forbidden !== undefined) return { kind: 'refused', error: forbidden }

    const credentials = { secret: presented?.secret ?? '', rotationSecret: context.rotationSecret, idempotencyKey: idempotencyKey ?? '' }
    if (record !== undefined) {
      const index = recordIds.indexOf(record.id)
      // A duplicate that came in before the first answer went out shares it, however long it queued since, and is not counted.
      const counted = record.settledAt !== null && record.settledAt < arrivedAt
      const spent = counted && record.replays >= MAX_REPLAYS
      const replay = await decideReplay(tx, record, index, credentials, { active, spent, now }, requestOf(mutation, context))
      if (replay instanceof ApiKeyError) {
        if (replay.code === 'invalid_key' || replay.code === 'idempotency_key_spent') {
          await tx.countReplay(record.id, 'refusals')
          const about = caller ?? target
          if (about !== undefined && auditIsDue(record.id)) {
            await log(event('key.replay_refused', about, now, context, actor, { keyId: record.keyId }), about)
          }
        }
        return { kind: 'refused', error: replay }
      }
      // What was done for one owner is not shown to whoever may act for another only.
      if (operator !== undefined && operator.owners !== 'all' && !operator.owners.includes(replay.key.ownerId)) {
        return { kind: 'refused', error: notFound() }
      }
      if (counted) await tx.countReplay(record.id, 'replays')
      await log(event('key.replayed', replay.key, now, context, actor, {}), replay.key)
      return { kind: 'replayed', answer: replay, record, waitMs: await tx.waitMs(), now, askedAt }
    }
    if (context.replayOnly === true) return { kind: 'refused', error: tooMany() }

    const by = recordIds[0] ?? null
    const effect = await mutation.apply(tx, { caller, target, presented: presented?.digest ?? null, now, by, minted })
    if (by !== null && principal !== undefined) {
      const open = {
        id: by,
        callerId: principal,
        keyId: effect.key.id,
        generation: effect.secret === undefined ? null : effect.key.generation,
        fingerprint: seals.fingerprint(0, requestOf(mutation, context)),
        expiresAt: now + parts.replayWindowMs,
      }
      const { key, secret, rotationSecret, acceptedUntil } = effect
      const sealed = mutation.neverReplayed
        ? null
        : seals.seal(open, credentials, JSON.stringify({ key, secret, rotationSecret, acceptedUntil } satisfies Unsealed))
      await tx.insertReplay({ ...open, sealed, createdAt: now, settledAt: null, replays: 0, refusals: 0 })
    }
    for (const { type, key, details } of effect.events) await log(event(type, key, now, context, actor, details), key)
    return { kind: 'applied', effect, recordId: by, waitMs: effect.waits ? await tx.waitMs() : 0, now, askedAt }
  }

  /** The recorded answer, or why it is not given. */
  async function decideReplay(
    tx: StoreTransaction,
    record: ReplayRow,
    index: number,
    credentials: { secret: string; rotationSecret: string | undefined; idempotencyKey: string },
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
    await Promise.all((effect.changed ?? []).map((digest) => leases.forget(digest)))
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

  /** One transaction, whose lines of the audit trail are told to listeners once they are committed. */
  async function logged<T>(work: (tx: StoreTransaction, log: Log) => Promise<T>): Promise<T> {
    const lines: [EventRow, KeyRow][] = []
    const result = await store.transaction((tx) =>
      work(tx, async (row, key) => {
        await tx.appendEvent(row)
        lines.push([row, key])
      }),
    )
    for (const line of lines) parts.tell(...line)
    return result
  }

  function auditIsDue(subject: string): boolean {
    const last = audited.get(subject)
    if (last !== undefined && clock.monotonicMs() - last < REFUSAL_AUDIT_MS) return false
    audited.set(subject, clock.monotonicMs())
    if (audited.size > MAX_REFUSAL_AUDITS) audited.delete(audited.keys().next().value ?? subject)
    return true
  }

  /** Not awaited: what goes into the trail must not show in the time of an answer. */
  function auditLater(type: EventType, key: KeyRow, origin: Origin): void {
    if (!auditIsDue(`${type} ${key.id}`)) return
    const work = logged(async (tx, log) => log(event(type, key, await tx.now(), origin, `key:${key.id}`, {}), key))
      .catch(report)
      .finally(() => behind.delete(work))
    behind.add(work)
  }
}

type Log = (row: EventRow, key: KeyRow) => Promise<void>
type Unsealed = { readonly [name in keyof SealedAnswer]: SealedAnswer[name] | undefined }

/** Who may do what to whom. A foreign key is as unknown as one that does not exist. */
function authorise(
  mutation: Mutation,
  caller: KeyRow | undefined,
  operator: Operator | undefined,
  target: KeyRow | undefined,
): ApiKeyError | undefined {
  const ownerId = target?.ownerId ?? mutation.ownerId
  const foreign =
    operator !== undefined
      ? operator.owners !== 'all' && (ownerId === undefined || !operator.owners.includes(ownerId))
      : caller !== undefined && target !== undefined && target.ownerId !== caller.ownerId
  if (mutation.target !== null && (target === undefined || foreign)) return notFound()
  const scopes = operator?.scopes ?? caller?.scopes
  if (scopes === undefined) return undefined
  if (caller !== undefined && mutation.selfAllowed && target?.id === caller.id) return undefined
  if (!scopes.includes(WRITE_SCOPE)) return new ApiKeyError('insufficient_scope', `This needs the scope ${WRITE_SCOPE}.`)
  return foreign ? new ApiKeyError('insufficient_scope', 'This token does not name that owner.') : undefined
}

function requestOf(mutation: Mutation, context: Pick<CommandContext, 'request'>): RequestShape {
  return context.request ?? { method: mutation.name, path: mutation.target ?? '', body: mutation.fingerprint }
}

function event(type: EventType, key: KeyRow, at: number, { ip, userAgent }: Origin, actor: string, details: JsonObject): EventRow {
  return {
    id: timeOrderedId(at),
    keyId: key.id,
    ownerId: key.ownerId,
    type,
    at,
    actor,
    ip: originText(ip),
    userAgent: originText(userAgent),
    details,
  }
}

/** What a stranger wrote, cut to what a column holds and without the NUL that PostgreSQL refuses. */
export function originText(text: string | undefined): string | null {
  return text?.slice(0, 255).toWellFormed().replaceAll('\0', '') ?? null
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

function notFound(): ApiKeyError {
  return new ApiKeyError('key_not_found', 'There is no such key.')
}

/** What a request over its limit is told, unless it turns out to ask for an answer that was lost. */
function tooMany(): ApiKeyError {
  return new ApiKeyError('rate_limited', 'Too many requests; try again later.')
}

function unanswered(cause: unknown): ApiKeyError {
  return new ApiKeyError(
    'outcome_unknown',
    'The change was made, and its answer could not be. Repeat the request with the same Idempotency-Key.',
    {
      cause,
    },
  )
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
