import { dropOldest } from '../../drop-oldest.js'
import { ApiKeyError } from '../../errors.js'
import type {
  EventRow,
  EventType,
  GenerationRow,
  JsonObject,
  KeyRow,
  ReplayAnswer,
  ReplayRow,
  Store,
  StoreTransaction,
} from '../../store/store.js'
import { operatorOf, secretOf } from '../actor.js'
import type { Command, Operator, Origin } from '../api-keys.js'
import type { Clock } from '../clock.js'
import { failureOf } from '../failures.js'
import { timeOrderedId } from '../id.js'
import { digestOf, redactSecrets, type SecretFormat } from '../secret.js'
import { semaphore } from '../semaphore.js'
import { batchedRead } from '../verify/batched-read.js'
import type { Leases } from '../verify/lease.js'
import { endedBecause, marginMs } from '../verify/verdict.js'
import { authorise, type Reach } from './authorise.js'
import { COMMIT_ALLOWANCE_MS, decideReplay, invalidKey, type SealedAnswer, superseded } from './replay-decision.js'
import type { RequestShape, SealCredentials, Seals } from './replay-seal.js'
import type { MintedRotationSecret, RotationSecrets } from './rotation-secret.js'

/** One kind of change, as the transaction of `mutations` needs to know it. */
export interface Mutation {
  /** Names the command in the default fingerprint. */
  readonly name: string
  /** The key to change; `self` for the caller's own, null where the mutation makes one. */
  readonly target: string | 'self' | null
  /** Whose key it makes, where it makes one; undefined for the caller's own owner. */
  readonly ownerId?: string | undefined
  /** What it makes of the key, as far as that matters for who may do it; left out where it hands nothing out. */
  reach?(target: KeyRow | undefined): Reach | undefined
  /** Whether a key may do this to itself without `api_keys:write`. */
  readonly selfAllowed: boolean
  /** Whether a key that has a rotation secret needs it to do this to itself. Default false. */
  readonly rotationSecretGuards?: boolean
  /** Whether `apply` needs a new rotation secret, which takes too long to be made inside the transaction. Default never. */
  readonly mintsRotationSecret?: 'never' | 'like the target' | { readonly start: string }
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
  /** How long after the commit that is to be, where `acceptedUntil` is provisional. */
  readonly graceMs?: number
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

/**
 * Transactions of one process at a time. Those that wait for one locked row must not take up a whole connection pool (pg: 10), or
 * the two reads that renew the leases of everybody else would wait behind them.
 */
const TRANSACTIONS_AT_ONCE = 8

/** Reads of replay records of one process at a time: a flood of guesses fills batches, not the pool. */
const REPLAY_READS_AT_ONCE = 1

/** A duplicate that waited for its twin finds the record in its second round. */
const MAX_ROUNDS = 3

/** More commands than this waiting for their turn would wait longer than their clients do. */
const MAX_QUEUED = 1_000

/** Each refusal and each replay is audited at most this often, so that whoever keeps asking cannot fill the trail. */
const AUDIT_MS = 60_000
const MAX_AUDITS = 1_000

/** For how long a rotation without an Idempotency-Key can be asked for again: some retries of a client, and little for a thief beside it. */
const WITHOUT_KEY_MS = 60_000

/**
 * A refusal of a rotation secret goes out at a multiple of this after the request came in: whatever made it a refusal took its 50 ms of
 * bcrypt well inside, so the time says no more than the words.
 */
const REFUSAL_BEAT_MS = 250
const LAST_STEP_MS = 10

type MutationCommand = Command & { readonly rotationSecret?: string; readonly retryFrom?: string }

/** A caller that presents a secret, as the authority knows it. */
interface Presented {
  readonly secret: string
  readonly digest: string
  readonly key: KeyRow
  readonly generation: GenerationRow
  /** Why the secret is not accepted any more; undefined while it is. */
  readonly ended: 'rotated' | 'revoked' | 'expired' | undefined
  /** Whether the command is about its own key. */
  readonly own: boolean
}

/** Where the answer of a command is recorded, and what opens it; without `ids` it is recorded nowhere. */
interface RecordPlan {
  readonly ids: readonly string[]
  readonly principal: string
  readonly credentials: SealCredentials
  readonly windowMs: number
  /** How much longer the window may seem to last, where the instant of the commit is not known. */
  readonly allowanceMs: number
  /** How long after the new secret's first use the answer can still be asked for. */
  readonly graceMs: number
  readonly withoutKey: boolean
}

/** A command, with all that is known about it before its transaction. */
interface Prepared {
  readonly presented: Presented | undefined
  readonly plan: RecordPlan
  readonly recorded: ReplayAnswer | undefined
  /** When that was read. */
  readonly askedAt: number
}

type Outcome =
  | { readonly kind: 'refused'; readonly error: ApiKeyError }
  /** Somebody else has carried it out meanwhile, and its answer is there. */
  | { readonly kind: 'recorded' }
  | Applied

interface Applied {
  readonly kind: 'applied'
  readonly effect: Effect
  readonly record: ReplayRow | undefined
  readonly waitMs: number
  /** What the store's clock showed, and this process's before it was asked. */
  readonly now: number
  readonly askedAt: number
}

/** When the leases are over that may contradict a change. */
interface Timing extends Pick<Applied, 'waitMs' | 'now' | 'askedAt'> {
  /** When this process knew that all of it is committed: every lease that can contradict it was asked for before. */
  readonly waitFrom: number
}

/** A record, and what it is sealed with. */
interface Kept {
  readonly record: ReplayRow
  readonly index: number
  readonly credentials: SealCredentials
}

/** What became of a grace period after COMMIT. */
interface GraceEnd {
  /** What the answer says otherwise than before. */
  readonly answer: Pick<SealedAnswer, 'acceptedUntil'>
  /** Of the secret that it is about, where its end may have changed. */
  readonly digest?: string | undefined
  /** The longest lease that may have been granted until then. */
  readonly waitMs?: number
  /** When this process knew. */
  readonly at: number
}

export interface Mutations {
  run(mutation: Mutation, command: MutationCommand): Promise<Done>
  /** Resolves when what is written behind answers has been written. */
  idle(): Promise<void>
  /** Puts the refusal of a retired secret into the audit trail. */
  auditRefusedSecret(digest: string, origin: Origin): Promise<void>
}

/**
 * Carries out mutations: the transaction, the wait and the replay. Effect, replay record and audit event commit together, so there is
 * no "in progress" state that a crash could leave behind: a killed process is a rollback, and a duplicate queues on the
 * row lock and then replays. A record that is there already is found by a read that many share, and costs neither a transaction nor a lock.
 */
export function mutations(parts: MutationParts): Mutations {
  const { store, clock, format, leases, seals, rotationSecrets, report } = parts
  const inTurn = semaphore(TRANSACTIONS_AT_ONCE, MAX_QUEUED, 'More commands are waiting for the store than it can carry out.')
  const readReplays = batchedRead(clock, (ids) => store.replays(ids), { first: () => true, atOnce: REPLAY_READS_AT_ONCE })
  // What is audited behind answers takes one connection, however much there is of it.
  const auditsInTurn = semaphore(1, MAX_QUEUED, 'More lines are waiting for the audit trail than it can take.')
  const audited = new Map<string, number>()
  const behind = new Set<Promise<void>>()

  return {
    async idle() {
      while (behind.size > 0) await Promise.all(behind)
    },

    async run(mutation, command) {
      const arrived = clock.monotonicMs()
      try {
        return await carryOut(mutation, command)
      } catch (error) {
        if (command.rotationSecret !== undefined && error instanceof ApiKeyError && error.code === 'invalid_key') await untilBeat(arrived)
        throw error
      }
    },

    auditRefusedSecret,
  }

  async function untilBeat(arrived: number): Promise<void> {
    const passed = clock.monotonicMs() - arrived
    const until = arrived + REFUSAL_BEAT_MS * Math.ceil((passed + LAST_STEP_MS) / REFUSAL_BEAT_MS)
    // A timer's rounding depends on when it was set: the last one is set by another timer, whatever came before.
    await clock.sleep(until - LAST_STEP_MS - clock.monotonicMs())
    await clock.sleep(until - clock.monotonicMs())
  }

  async function carryOut(mutation: Mutation, command: MutationCommand): Promise<Done> {
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const prepared = await prepare(mutation, command)
      const replayed = prepared.recorded === undefined ? undefined : await replay(mutation, command, prepared, prepared.recorded)
      if (replayed !== undefined) return replayed
      const { presented } = prepared
      const ready = presented === undefined ? await readyAlone(mutation, command) : await readyWithKey(mutation, command, presented)
      const outcome = await inTurn(() => durably(mutation, command, prepared, ready)).catch((error) => {
        throw explained(failureOf(error), prepared.plan.ids.length > 0)
      })
      if (outcome.kind === 'refused') throw outcome.error
      // A duplicate that waited for its twin: the next round finds the record.
      if (outcome.kind === 'recorded') continue
      try {
        const { effect, record } = outcome
        await tellCaches(effect)
        const waits = effect.waits && parts.othersHoldLeases()
        return await answer(effect, { ...outcome, recordId: record?.id ?? null, waits, settled: false, replayed: false })
      } catch (error) {
        // "Something went wrong" would be read as "nothing has changed".
        const known = failureOf(error)
        throw known.code === 'internal_error' ? unanswered(known) : known
      }
    }
    throw new ApiKeyError('store_unavailable', 'The store shows a record to transactions only; it may answer reads from a stale copy.')
  }

  /** Carries a command out, and counts the grace period that it began from its commit. From the end of this on the change is durable. */
  async function durably(
    mutation: Mutation,
    command: MutationCommand,
    prepared: Prepared,
    ready: Ready,
  ): Promise<Exclude<Outcome, Applied> | (Applied & Timing & { readonly committed: number })> {
    const outcome = await logged((tx, log) => transact(tx, log, mutation, command, prepared, ready))
    if (outcome.kind !== 'applied') return outcome
    const committed = clock.monotonicMs()
    const { effect, record, now, askedAt } = outcome
    const kept = record && { record, index: 0, credentials: prepared.plan.credentials }
    const ended = await endGrace(effect, kept, now + (committed - askedAt))
    return { ...outcome, effect: { ...effect, ...ended.answer }, waitMs: ended.waitMs ?? outcome.waitMs, committed, waitFrom: ended.at }
  }

  /**
   * Counts a grace period from the commit, where its end is provisional, and seals the answer again with the end that it has now. Whoever seals it again
   * first decides: the one that made the change, or a replay that found it before that was done. Where it fails, nothing is told
   * yet of a rotation that can be asked for again: its repetition decides. Where there is no record, the provisional end stays, and is told.
   */
  async function endGrace(given: SealedAnswer, kept: Kept | undefined, committedAt?: number): Promise<GraceEnd> {
    const { key, acceptedUntil: from, graceMs } = given
    if (from === undefined || graceMs === undefined) return { answer: {}, at: clock.monotonicMs() }
    const lower = async (tx: StoreTransaction): Promise<Omit<GraceEnd, 'at'>> => {
      await tx.lockKeys([key.id])
      const to = Math.min(from, Math.ceil((committedAt ?? (await tx.now())) + graceMs))
      if (await resealed(tx, { ...given, acceptedUntil: to }, kept)) await tx.lowerGrace(key.id, key.generation - 1, { from, to })
      const old = await tx.generationOf(key.id, key.generation - 1)
      return { answer: { acceptedUntil: old?.graceEndsAt ?? to }, digest: old?.digest, waitMs: await tx.waitMs() }
    }
    // Again where nobody knows whether it was done: the second time tells what the first one did.
    for (let tries = 0, unknown = true; unknown && tries < 2; tries++) {
      try {
        return { ...(await store.transaction(lower)), at: clock.monotonicMs() }
      } catch (error) {
        report(error)
        unknown = failureOf(error).code === 'outcome_unknown'
        // An end that is told must not be lowered any more, and a replay may still do that.
        if (kept?.record.sealed != null && !(unknown && tries === 0)) throw unanswered(error)
      }
    }
    return { answer: {}, at: clock.monotonicMs() }
  }

  async function resealed(tx: StoreTransaction, { graceMs: _, ...answer }: SealedAnswer, kept: Kept | undefined): Promise<boolean> {
    const from = kept?.record.sealed ?? null
    if (kept === undefined || from === null) return true
    const { record, index, credentials } = kept
    return tx.reseal(record.id, { from, to: seals.seal(record, credentials, sealable(answer), index) })
  }

  /** Waits for what may still contradict a change, settles its record, and makes the answer of it. */
  async function answer(
    given: SealedAnswer,
    about: Timing & {
      readonly recordId: string | null
      /** When this process knew that the change is committed. */
      readonly committed: number
      readonly waits: boolean
      readonly settled: boolean
      readonly replayed: boolean
    },
  ): Promise<Done> {
    const { recordId, committed, settled } = about
    // Where the old secret ends at an instant to come, only a lease that may outlast that can contradict it.
    const waits = about.waits && !((given.acceptedUntil ?? 0) > leasesOver(about))
    if (given.secret !== undefined) leases.introduce(digestOf(given.secret), given.key.id)
    const settle = async (): Promise<void> => {
      if (waits) await clock.sleep(about.waitFrom + about.waitMs + marginMs(about.waitMs) - clock.monotonicMs())
      if (recordId !== null && !settled) await store.settle(recordId, clock.monotonicMs() - committed).catch(report)
    }
    // A record is settled when its leases are over, also where nobody waits for that: another instance may, and goes by it.
    if (parts.waitForLease) await settle()
    else inBackground(settle())

    // Another rotation may have come in between: a secret that is dead already is not handed out.
    if (given.secret !== undefined && !settled && (await supersededSince(given.key))) throw superseded()
    // On the store's clock, as every instant that is told: that of this machine may be wrong.
    const lastLease = waits && !parts.waitForLease ? Math.ceil(leasesOver(about)) : undefined
    const acceptedUntil = Math.max(given.acceptedUntil ?? 0, lastLease ?? 0)
    return {
      key: given.key,
      secret: given.secret,
      rotationSecret: given.rotationSecret,
      replayed: about.replayed,
      acceptedUntil: acceptedUntil === 0 ? undefined : acceptedUntil,
    }
  }

  /** Whose command it is, and whether its answer is recorded already. Nothing here takes a lock or a comparison of hashes. */
  async function prepare(mutation: Mutation, command: MutationCommand): Promise<Prepared> {
    const presented = await presentedBy(mutation, command)
    const plan = recordPlan(mutation, command, presented)
    const askedAt = clock.monotonicMs()
    const answers = await Promise.all(plan.ids.map((id) => readReplays(id)))
    for (const [index, id] of plan.ids.entries()) {
      const read = answers[index]?.answer
      const found = read?.found.filter(({ record }) => record.id === id) ?? []
      if (read !== undefined && found.length > 0) return { presented, plan, askedAt, recorded: { ...read, found } }
    }
    return { presented, plan, askedAt, recorded: undefined }
  }

  async function presentedBy(mutation: Mutation, { as, rotationSecret, idempotencyKey }: MutationCommand): Promise<Presented | undefined> {
    const secret = secretOf(as)
    if (secret === undefined) {
      if (rotationSecret !== undefined) throw new ApiKeyError('invalid_request', 'A rotation secret belongs to the key that presents it.')
      if (mutation.target === 'self') throw new ApiKeyError('invalid_request', 'Only a key has a "self"; name the key by its id.')
      return undefined
    }
    if (!format.wellFormed(secret)) throw invalidKey('malformed')
    if (rotationSecret !== undefined && !rotationSecrets.wellFormed(rotationSecret)) throw invalidKey()
    const digest = digestOf(secret)
    const { at, found } = await leases.look(digest)
    // A secret that never was costs no bcrypt, or whoever makes some up could keep it from everybody else; only the time that it takes.
    if (found === undefined) {
      if (rotationSecret !== undefined) await rotationSecrets.feign(rotationSecret)
      // Nor does it take less time than a dead one, whose record is looked for.
      const [id] = idempotencyKey === undefined ? [] : seals.ids('nobody', idempotencyKey)
      if (id !== undefined) await readReplays(id)
      throw invalidKey('unknown')
    }
    const { key, generation } = found
    const own = mutation.target === 'self' || mutation.target === key.id
    return { secret, digest, key, generation, ended: endedBecause(key, generation, at), own }
  }

  function recordPlan(mutation: Mutation, command: MutationCommand, presented: Presented | undefined): RecordPlan {
    const { as, idempotencyKey, rotationSecret, retryFrom } = command
    const operator = operatorOf(as)
    const principal =
      presented !== undefined
        ? presented.key.id
        : operator === undefined
          ? 'application'
          : `operator:${JSON.stringify([operator.issuer, operator.subject])}`
    const secret = presented?.secret ?? ''
    const withKey = {
      principal,
      windowMs: parts.replayWindowMs,
      allowanceMs: COMMIT_ALLOWANCE_MS,
      graceMs: parts.replayGraceMs,
      withoutKey: false,
    }
    if (idempotencyKey !== undefined) {
      return { ...withKey, ids: seals.ids(principal, idempotencyKey), credentials: { secret, rotationSecret, idempotencyKey } }
    }
    const credentials = { secret, rotationSecret, idempotencyKey: '', network: retryFrom }
    const retried = retryFrom !== undefined && presented?.own === true && mutation.name === 'rotate' && mutation.neverReplayed !== true
    if (!retried) return { ...withKey, ids: [], credentials }
    // A rotation of a key by itself succeeds once for each secret, so the secret can stand for the Idempotency-Key.
    const ids = seals.idsWithoutKey(principal, presented.digest)
    return {
      ids,
      principal,
      credentials,
      windowMs: Math.min(WITHOUT_KEY_MS, parts.replayWindowMs),
      allowanceMs: 0,
      graceMs: 0,
      withoutKey: true,
    }
  }

  /** Gives the recorded answer, or throws why not. Undefined where the caller has named no record, and gets none: nothing is to be said of it. */
  async function replay(
    mutation: Mutation,
    command: MutationCommand,
    prepared: Prepared,
    recorded: ReplayAnswer,
  ): Promise<Done | undefined> {
    const { presented, plan, askedAt } = prepared
    const [{ record, made } = failed()] = recorded.found
    const index = plan.ids.indexOf(record.id)
    if (presented?.own !== true) await mayStill(mutation, command, presented)
    const decision = isDead(presented, record.id, recorded.at)
      ? invalidKey(presented?.ended, presented?.key.id)
      : decideReplay({
          record,
          made,
          now: recorded.at,
          sameRequest: seals.fingerprint(index, requestOf(mutation, command)) === record.fingerprint,
          active: presented?.ended === undefined,
          allowanceMs: plan.allowanceMs,
          open: (sealed) => seals.open(index, record, plan.credentials, sealed),
        })
    if (decision instanceof ApiKeyError) {
      if (plan.withoutKey) return undefined
      const unopened = decision.code === 'invalid_key' || decision.code === 'idempotency_key_spent'
      if (unopened && presented !== undefined) auditLater('key.replay_refused', presented.key, command, record.id, { keyId: record.keyId })
      throw decision
    }
    const owners = operatorOf(command.as)?.owners
    // What was done for one owner is not shown to whoever may act for another only.
    if (owners !== undefined && owners !== 'all' && !owners.includes(decision.key.ownerId)) throw notFound()
    auditReplay(command, decision.key, record.id, plan)
    const settled = record.settledAt !== null
    const waits = !settled && parts.othersHoldLeases()
    // The first answer is still on its way, or its process died. Once it is settled, its end has been told.
    const ended: GraceEnd =
      settled || decision.graceMs === undefined
        ? { answer: {}, at: clock.monotonicMs() }
        : await inTurn(() => endGrace(decision, { record, index, credentials: plan.credentials }))
    if (ended.digest !== undefined) await leases.forget(ended.digest)
    const timing = { waitMs: ended.waitMs ?? recorded.waitMs, now: recorded.at, askedAt, waitFrom: ended.at, committed: ended.at }
    return answer({ ...decision, ...ended.answer }, { ...timing, recordId: record.id, waits, settled, replayed: true })
  }

  /** The answer of a change to another key is given only while the caller may still make that change. */
  async function mayStill(mutation: Mutation, command: MutationCommand, presented: Presented | undefined): Promise<void> {
    if (presented?.ended !== undefined) throw invalidKey(presented.ended)
    if (presented !== undefined && presented.generation.retiredAt !== null) throw inGrace()
    const found = mutation.target === null || mutation.target === 'self' ? undefined : await store.key(mutation.target)
    const forbidden = authorised(mutation, command, presented?.key, found?.key)
    if (forbidden !== undefined) throw forbidden
  }

  function auditReplay(command: MutationCommand, key: KeyRow, recordId: string, { withoutKey }: RecordPlan): void {
    if (!withoutKey) {
      auditLater('key.replayed', key, command, recordId, {})
      return
    }
    report(
      new ApiKeyError(
        'retried_without_key',
        'A rotation without an Idempotency-Key was repeated with the same secret from the same network, and its answer was given again.',
      ),
    )
    inBackground(
      auditsInTurn(() =>
        logged(async (tx, log) => log(event('key.replayed', key, await tx.now(), command, actorOf(command, key), { withoutKey }), key)),
      ),
    )
  }

  /**
   * What has to happen before the transaction of a key, since it takes long: bcrypt never runs while a row is locked. Nothing is decided here that
   * could change until then: whose secret it is, whose key the target is and whether a key has a rotation secret are settled for ever.
   */
  async function readyWithKey(mutation: Mutation, command: MutationCommand, presented: Presented): Promise<Ready> {
    const { key, generation, ended, digest, own } = presented
    if (ended !== undefined) throw await refusalOfDead(command, presented)
    if (command.replayOnly === true) throw tooMany()
    const provenHash = command.rotationSecret === undefined ? undefined : await proven(command, presented, command.rotationSecret)
    if (generation.firstUsedAt === null) leases.noteFirstUse(digest)
    if (generation.retiredAt !== null) throw inGrace()
    // Its first use ends the grace period of the secret before it, whatever it is used for.
    if (generation.retiresEarlier) await leases.verify(digest)
    const target = mutation.target === null ? undefined : own ? { key, generation } : await store.key(mutation.target)
    const forbidden = authorised(mutation, command, key, target?.key)
    if (forbidden !== undefined) throw forbidden
    // Before a new rotation secret is made, which takes as long as a comparison.
    if (needsRotationSecret(mutation, own, generation, provenHash)) throw rotationSecretRequired()
    return { provenHash, minted: await mintFor(mutation, target?.key, target?.generation) }
  }

  async function readyAlone(mutation: Mutation, command: MutationCommand): Promise<Ready> {
    const target = mutation.target === null ? undefined : await store.key(mutation.target)
    const forbidden = authorised(mutation, command, undefined, target?.key)
    if (forbidden !== undefined) throw forbidden
    if (command.replayOnly === true) throw tooMany()
    return { provenHash: undefined, minted: await mintFor(mutation, target?.key, target?.generation) }
  }

  /** The hash of the rotation secret that was presented and fits. */
  async function proven(command: MutationCommand, { key, generation }: Presented, rotationSecret: string): Promise<string> {
    const hash = generation.rotationSecretHash
    if (hash === null) throw rotationSecretNotConfigured()
    if (await rotationSecrets.matches(rotationSecret, hash)) return hash
    auditLater('key.rotation_secret_refused', key, command, `rotation secret ${key.id}`, {})
    throw invalidKey('rotation_secret', key.id)
  }

  /** What a secret that is no longer accepted is told, once it is known that it asks for no answer of its own. */
  async function refusalOfDead({ rotationSecret, origin = {} }: MutationCommand, presented: Presented): Promise<ApiKeyError> {
    const { digest, ended, generation } = presented
    if (rotationSecret !== undefined) {
      const hash = generation.rotationSecretHash
      if (ended !== 'revoked') await rotationSecrets.feign(rotationSecret)
      else if (hash === null) return rotationSecretNotConfigured()
      // Told to nobody but the holder of both credentials.
      else if (await rotationSecrets.matches(rotationSecret, hash)) {
        return new ApiKeyError('key_revoked', 'The key is revoked; a revoked key cannot be rotated.')
      }
    }
    inBackground(auditsInTurn(() => auditRefusedSecret(digest, origin)))
    return invalidKey(ended, presented.key.id)
  }

  async function mintFor(
    { mintsRotationSecret: when = 'never' }: Mutation,
    target: KeyRow | undefined,
    generation: GenerationRow | undefined,
  ): Promise<MintedRotationSecret | undefined> {
    if (typeof when === 'object') return rotationSecrets.mint(when.start)
    if (when === 'never' || target === undefined || generation === undefined || generation.rotationSecretHash === null) return undefined
    return rotationSecrets.mint(rotationSecrets.startLike(target))
  }

  async function transact(
    tx: StoreTransaction,
    log: Log,
    mutation: Mutation,
    command: MutationCommand,
    { presented, plan }: Prepared,
    { provenHash, minted }: Ready,
  ): Promise<Outcome> {
    // A key's duplicates queue on its row; an operator and the application have none.
    const { idempotencyKey } = plan.credentials
    // Named without the server's secret: while that is being changed, two instances know one record by two ids.
    if (presented === undefined && idempotencyKey !== '') await tx.lockName(digestOf(JSON.stringify([plan.principal, idempotencyKey])))
    const callerId = presented?.key.id
    const targetId = mutation.target === 'self' ? callerId : (mutation.target ?? undefined)
    const locked = await tx.lockKeys([...new Set([callerId, targetId])].filter((id) => id !== undefined))
    const caller = locked.find(({ id }) => id === callerId)
    const target = locked.find(({ id }) => id === targetId)
    if (plan.ids.length > 0 && (await tx.replay(plan.ids)) !== undefined) return { kind: 'recorded' }
    const generation = presented === undefined ? undefined : await tx.generation(presented.digest)
    const askedAt = clock.monotonicMs()
    const now = await tx.now()
    if (presented !== undefined) {
      const refusal = refusalOf(mutation, caller, generation, target, provenHash, now)
      if (refusal !== undefined) return { kind: 'refused', error: refusal }
    }
    const forbidden = authorised(mutation, command, caller, target)
    if (forbidden !== undefined) return { kind: 'refused', error: forbidden }

    const by = plan.ids[0] ?? null
    const effect = await mutation.apply(tx, { caller, target, now, by, minted })
    const record = by === null ? undefined : recordOf(by, mutation, command, plan, effect, now)
    if (record !== undefined) await tx.insertReplay(record)
    const actor = actorOf(command, caller)
    for (const { type, key, details } of effect.events) await log(event(type, key, now, command, actor, details), key)
    return { kind: 'applied', effect, record, waitMs: effect.waits ? await tx.waitMs() : 0, now, askedAt }
  }

  /** What the caller's secret is worth under the lock; its key may have been rotated or revoked since it was looked at. */
  function refusalOf(
    mutation: Mutation,
    caller: KeyRow | undefined,
    generation: GenerationRow | undefined,
    target: KeyRow | undefined,
    provenHash: string | undefined,
    now: number,
  ): ApiKeyError | undefined {
    if (caller === undefined || generation === undefined) return invalidKey('unknown')
    const ended = endedBecause(caller, generation, now)
    if (ended !== undefined) return invalidKey(ended)
    if (generation.retiredAt !== null) return inGrace()
    // The hash that was compared before the transaction has to be the one that counts now.
    if (provenHash !== undefined && provenHash !== generation.rotationSecretHash) return invalidKey()
    if (needsRotationSecret(mutation, target?.id === caller.id, generation, provenHash)) return rotationSecretRequired()
    return undefined
  }

  function recordOf(id: string, mutation: Mutation, command: MutationCommand, plan: RecordPlan, effect: Effect, now: number): ReplayRow {
    const open = {
      id,
      callerId: plan.principal,
      keyId: effect.key.id,
      generation: effect.secret === undefined ? null : effect.key.generation,
      fingerprint: seals.fingerprint(0, requestOf(mutation, command)),
      createdAt: now,
      windowMs: plan.windowMs,
      graceMs: plan.graceMs,
    }
    const sealed = mutation.neverReplayed ? null : seals.seal(open, plan.credentials, sealable(effect))
    return { ...open, sealed, expiresAt: now + plan.windowMs + plan.allowanceMs, settledAt: null }
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

  async function auditRefusedSecret(digest: string, origin: Origin): Promise<void> {
    if (!auditIsDue(digest)) return
    await logged(async (tx, log) => {
      const generation = await tx.generation(digest)
      const [key] = generation === undefined ? [] : await tx.lockKeys([generation.keyId])
      if (generation === undefined || key === undefined) return
      const now = await tx.now()
      const reason = endedBecause(key, generation, now)
      if (reason === undefined) return
      const details = { generation: generation.generation, reason }
      await log(event('key.retired_secret_refused', key, now, { origin }, `key:${key.id}`, details), key)
    })
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
    if (last !== undefined && clock.monotonicMs() - last < AUDIT_MS) return false
    audited.set(subject, clock.monotonicMs())
    dropOldest(audited, MAX_AUDITS)
    return true
  }

  /** Not awaited: what goes into the trail must not show in the time of an answer. */
  function auditLater(type: EventType, key: KeyRow, command: MutationCommand, subject: string, details: JsonObject): void {
    if (!auditIsDue(`${type} ${subject}`)) return
    inBackground(
      auditsInTurn(() => logged(async (tx, log) => log(event(type, key, await tx.now(), command, actorOf(command, key), details), key))),
    )
  }

  function inBackground(work: Promise<void>): void {
    const tracked = work.catch(report).finally(() => behind.delete(tracked))
    behind.add(tracked)
  }
}

/** When the last lease from before the commit is over, by the store's clock. */
function leasesOver({ now, askedAt, waitFrom, waitMs }: Timing): number {
  return now + (waitFrom - askedAt) + waitMs + marginMs(waitMs)
}

function sealable({ key, secret, rotationSecret, acceptedUntil, graceMs }: SealedAnswer): string {
  return JSON.stringify({ key, secret, rotationSecret, acceptedUntil, graceMs } satisfies Unsealed)
}

/** The one thing a dead secret is still good for is the answer of the very mutation that retired it, and not once its key has expired. */
function isDead(presented: Presented | undefined, recordId: string, at: number): boolean {
  if (presented?.ended === undefined) return false
  const { key, generation } = presented
  return generation.retiredBy !== recordId || (key.expiresAt !== null && key.expiresAt <= at)
}

/** What was made ready before the transaction. */
interface Ready {
  /** The hash that a presented rotation secret was compared with, and fits. */
  readonly provenHash: string | undefined
  readonly minted: MintedRotationSecret | undefined
}

type Log = (row: EventRow, key: KeyRow) => Promise<void>
type Unsealed = { readonly [name in keyof SealedAnswer]: SealedAnswer[name] | undefined }

function authorised(
  mutation: Mutation,
  { as, delegation = 'bounded' }: MutationCommand,
  caller: KeyRow | undefined,
  target: KeyRow | undefined,
): ApiKeyError | undefined {
  return authorise({
    caller,
    operator: operatorOf(as),
    target,
    newOwnerId: mutation.target === null ? (mutation.ownerId ?? caller?.ownerId ?? '') : undefined,
    after: mutation.reach?.(target),
    selfAllowed: mutation.selfAllowed,
    delegation,
  })
}

/** `key:<id>`, `operator:<subject>@<issuer>` or `system`, for the audit trail. */
function actorOf({ as }: MutationCommand, caller: KeyRow | undefined): string {
  const operator: Operator | undefined = operatorOf(as)
  if (operator !== undefined) return `operator:${operator.subject}@${operator.issuer}`
  return as === 'application' || caller === undefined ? 'system' : `key:${caller.id}`
}

function requestOf(mutation: Mutation, { request }: Pick<Command, 'request'>): RequestShape {
  return request ?? { method: mutation.name, path: mutation.target ?? '', body: mutation.fingerprint }
}

function event(
  type: EventType,
  key: KeyRow,
  at: number,
  { origin: { ip, userAgent } = {} }: Pick<Command, 'origin'>,
  actor: string,
  details: JsonObject,
): EventRow {
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
  return text === undefined ? null : redactSecrets(text.slice(0, 1_024)).slice(0, 255).toWellFormed().replaceAll('\0', '')
}

function notFound(): ApiKeyError {
  return new ApiKeyError('key_not_found', 'There is no such key.')
}

function inGrace(): ApiKeyError {
  return new ApiKeyError(
    'secret_in_grace',
    'This secret has been replaced. Until it ends it can be used, but it can change nothing; use the new one.',
  )
}

function needsRotationSecret(mutation: Mutation, own: boolean, generation: GenerationRow, provenHash: string | undefined): boolean {
  return mutation.rotationSecretGuards === true && own && generation.rotationSecretHash !== null && provenHash === undefined
}

function rotationSecretRequired(): ApiKeyError {
  return new ApiKeyError('rotation_secret_required', 'This key has a rotation secret, and needs it to rotate itself.')
}

function rotationSecretNotConfigured(): ApiKeyError {
  return new ApiKeyError(
    'rotation_secret_not_configured',
    'This key has no rotation secret; rotate it without one, or have it rotated for it.',
  )
}

/** What a request over its limit is told, unless it turns out to ask for an answer that was lost. */
function tooMany(): ApiKeyError {
  return new ApiKeyError('rate_limited', 'Too many requests; try again later.')
}

function failed(): never {
  throw new RangeError('no record was found')
}

function unanswered(cause: unknown): ApiKeyError {
  return new ApiKeyError(
    'outcome_unknown',
    'The change was made, and its answer could not be. Repeat the request with the same Idempotency-Key.',
    { cause },
  )
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
