import { ApiKeyError } from '../../errors.js'
import type { GenerationRow, KeyRow, StoreTransaction } from '../../store/store.js'
import { timeOrderedId } from '../id.js'
import type { KeyFields, NewKeyFields } from '../input.js'
import { keyDisabled, keyNotFound, keyRevoked } from '../refusals.js'
import type { MintedSecret, SecretFormat } from '../secret.js'
import type { Change, Effect } from './change.js'
import { firstExpiry, type LifetimePolicy, refuseLonger } from './lifetime.js'
import type { MintedRotationSecret } from './rotation-secret.js'

/** Graces up to this long are counted from the commit: what a COMMIT may take is nothing beside longer ones. */
const LONGEST_COUNTED_FROM_COMMIT_MS = 600_000
/** How much later such a grace period ends at first than it should. No COMMIT that is answered takes longer. */
const GRACE_ALLOWANCE_MS = 60_000

/** How a rotation is done, checked. */
export interface RotationPlan {
  /** 0 for at once. */
  readonly graceMs: number
  readonly onFirstUse: boolean
  readonly emergency: boolean
  readonly successor: boolean
  readonly scopeRequired: boolean
  readonly keepRotationSecret: boolean
  /** When the key is to expire from now on; undefined for as before. */
  readonly expiresAt?: number | null
}

/** Makes a key. */
export function creation(
  settings: LifetimePolicy & { readonly format: SecretFormat },
  { expiresAt: asked, ...rest }: NewKeyFields,
  rotationSecretStart: string | undefined,
): Change {
  const { format } = settings
  const fields = { ...rest, expiresAt: asked ?? null }
  return {
    name: 'create',
    target: null,
    ownerId: fields.ownerId,
    selfAllowed: false,
    reach: () => fields,
    mintsRotationSecret: rotationSecretStart === undefined ? 'never' : { start: rotationSecretStart },
    fingerprint: { ...fields, ...(rotationSecretStart === undefined ? {} : { rotationSecret: true }) },
    async apply(tx, { caller, now, minted }) {
      const expiresAt = firstExpiry(settings, asked, now)
      if (hasPassed(expiresAt, now)) throw expiryPassed()
      const secret = format.mint(format.startFor(fields.environment))
      const key = newKey({ ...fields, expiresAt, ownerId: fields.ownerId ?? existing(caller).ownerId }, secret, now)
      await tx.insertKey(key)
      await tx.insertGeneration(generationRow(key, secret, now, minted?.hash ?? null))
      return { key, ...secretsOf(secret, minted), events: [{ type: 'key.created', key, details: {} }], waits: false }
    },
  }
}

/** Replaces the active secret of a key, and its rotation secret with it. */
export function rotation(settings: LifetimePolicy & { readonly format: SecretFormat }, target: string, plan: RotationPlan): Change {
  const { graceMs, onFirstUse, emergency, successor, scopeRequired, keepRotationSecret, expiresAt } = plan
  const { format } = settings
  const moved = expiresAt === undefined ? {} : { expiresAt }
  const usual = graceMs === 0 && !emergency && !successor && expiresAt === undefined
  return {
    name: 'rotate',
    target,
    selfAllowed: !scopeRequired,
    reach: (target) => target && { ...target, ...moved },
    rotationSecretGuards: true,
    mintsRotationSecret: keepRotationSecret ? 'never' : 'like the target',
    ...(emergency ? { neverReplayed: true } : {}),
    fingerprint: usual ? null : { graceMs, onFirstUse, emergency, successor, ...moved },
    async apply(tx, { target: old, now, recordId, minted }): Promise<Effect> {
      const before = existing(old)
      const current: KeyRow = { ...before, ...moved }
      if (expiresAt !== undefined) refuseExpiry(settings, expiresAt, before.expiresAt, now)
      const active = await tx.generationOf(current.id, current.generation)
      const earlier = await tx.generationOf(current.id, current.generation - 1)
      const activeHash = active?.rotationSecretHash ?? null
      const hash = keepRotationSecret ? activeHash : (minted?.hash ?? null)
      const refusal = refusalOfRotation({ plan, key: current, before: earlier, activeHash, hash, now })
      if (refusal !== undefined) throw refusal

      // A key keeps the form that its clients and its other instances know.
      const secret = format.mint(current.secretStart === '' ? format.startFor(current.environment) : current.secretStart)
      const grace = graceAfter(plan, now, current.expiresAt)
      const retirement = { at: now, by: recordId, reason: 'rotated', ...(graceMs === 0 ? {} : { graceEndsAt: grace.endsAt }) } as const
      const digests = await tx.retireGenerations(current.id, retirement)
      // Earlier answers hold secrets that are dead now.
      await tx.eraseReplays(current.id, emergency ? null : recordId)
      const next: NextSecret = { secret, hash, grace, now }
      const effect = successor ? await succeed(tx, before, plan, next) : await renew(tx, current, plan, next)
      return {
        ...effect,
        ...secretsOf(secret, minted),
        ...(graceMs === 0 ? { retired: { digests, reason: 'rotated' as const } } : { changed: digests, acceptedUntil: grace.endsAt }),
        ...(grace.provisional ? { graceMs } : {}),
        waits: true,
      }
    },
  }
}

function refuseExpiry(policy: LifetimePolicy, asked: number | null, before: number | null, now: number): void {
  if (hasPassed(asked, now)) throw expiryPassed()
  refuseLonger(policy, asked, before, now)
}

function hasPassed(expiresAt: number | null, now: number): boolean {
  return expiresAt !== null && expiresAt <= now
}

function expiryPassed(): ApiKeyError {
  return new ApiKeyError('invalid_request', 'expiresAt has passed; a key that has expired would never work.')
}

/** What a rotation is refused by, as read under the locks. */
export interface RotationCase {
  readonly plan: Pick<RotationPlan, 'emergency'>
  readonly key: KeyRow
  /** The generation before the active one. */
  readonly before: GenerationRow | undefined
  /** Of the rotation secret that is active, and of the one that comes after it. */
  readonly activeHash: string | null
  readonly hash: string | null
  readonly now: number
}

/** Why a key cannot be rotated now; undefined where it can. */
export function refusalOfRotation({ plan: { emergency }, key, before, activeHash, hash, now }: RotationCase): ApiKeyError | undefined {
  if (key.revokedAt !== null) return keyRevoked()
  if (key.disabledAt !== null) return keyDisabled(key.id)
  if (key.expiresAt !== null && key.expiresAt <= now) {
    return new ApiKeyError(
      'key_expired',
      'The key has expired, and a rotation keeps its expiry unless it is given another: send expiresAt.',
    )
  }
  const inGrace = before !== undefined && before.graceEndsAt !== null && before.graceEndsAt > now
  if (inGrace && !emergency) {
    return new ApiKeyError(
      'rotation_in_grace',
      'The secret before the active one is still in its grace period; wait for its end, or rotate with the active one and "emergency": true.',
    )
  }
  // A new rotation secret is made before the transaction, by what the key had then.
  if ((hash === null) !== (activeHash === null)) {
    return new ApiKeyError('store_unavailable', 'The key has changed in the middle of its rotation; try again.')
  }
  return undefined
}

/** What comes after the active secret of a key. */
interface NextSecret {
  readonly secret: MintedSecret
  /** Of its rotation secret. */
  readonly hash: string | null
  /** Of the secret before it. */
  readonly grace: Grace
  readonly now: number
}

/** Gives a key its next generation. */
async function renew(
  tx: StoreTransaction,
  current: KeyRow,
  { graceMs, onFirstUse, emergency, expiresAt }: RotationPlan,
  { secret, hash, grace, now }: NextSecret,
): Promise<Pick<Effect, 'key' | 'events'>> {
  const key: KeyRow = {
    ...current,
    ...shown(secret),
    secretCreatedAt: now,
    generation: current.generation + 1,
    updatedAt: updateTime(current, now),
  }
  await tx.insertGeneration({ ...generationRow(key, secret, now, hash), retiresEarlier: onFirstUse })
  await tx.updateKey(key)
  const details = {
    generation: key.generation,
    // The trail tells no instant that may still change.
    ...(graceMs === 0 || grace.provisional ? {} : { oldSecretExpiresAt: new Date(grace.endsAt).toISOString() }),
    ...(onFirstUse ? { retire: 'on-first-use' } : graceMs === 0 ? {} : { retire: { afterMs: graceMs } }),
    ...(emergency ? { emergency } : {}),
    ...movedTo(expiresAt),
  }
  return { key, events: [{ type: 'key.rotated', key, details }] }
}

/** Puts a new key in the place of a key, which is revoked and keeps its own expiry. */
async function succeed(
  tx: StoreTransaction,
  before: KeyRow,
  { expiresAt }: RotationPlan,
  { secret, hash, now }: NextSecret,
): Promise<Pick<Effect, 'key' | 'events'>> {
  const key = newKey(expiresAt === undefined ? before : { ...before, expiresAt }, secret, now)
  const ended: KeyRow = {
    ...before,
    revokedAt: now,
    revokedReason: 'rotated',
    rotatedTo: key.id,
    updatedAt: updateTime(before, now),
  }
  await tx.updateKey(ended)
  await tx.insertKey(key)
  await tx.insertGeneration(generationRow(key, secret, now, hash))
  return {
    key,
    events: [
      { type: 'key.rotated', key: ended, details: { rotatedTo: key.id } },
      { type: 'key.created', key, details: { rotatedFrom: before.id, ...movedTo(expiresAt) } },
    ],
  }
}

/** What the trail tells of an expiry that a rotation has set. */
function movedTo(expiresAt: number | null | undefined): { readonly expiresAt?: string | null } {
  if (expiresAt === undefined) return {}
  return { expiresAt: expiresAt === null ? null : new Date(expiresAt).toISOString() }
}

interface Grace {
  readonly endsAt: number
  /** Whether `endsAt` is later than it should be, until the commit is known. */
  readonly provisional: boolean
}

/** When a grace period that begins now ends. A short one counts from the commit, whose instant is known only afterwards. */
function graceAfter({ graceMs, onFirstUse }: RotationPlan, now: number, keyExpiresAt: number | null): Grace {
  const latest = keyExpiresAt ?? Number.POSITIVE_INFINITY
  const provisional = graceMs > 0 && graceMs <= LONGEST_COUNTED_FROM_COMMIT_MS && !onFirstUse && now + graceMs < latest
  return { endsAt: Math.min(now + graceMs + (provisional ? GRACE_ALLOWANCE_MS : 0), latest), provisional }
}

/** Ends a key for good. */
export function revocation(target: string, reason: string | null): Change {
  return {
    name: 'revoke',
    target,
    selfAllowed: true,
    fingerprint: reason,
    async apply(tx, { target: old, now, recordId }): Promise<Effect> {
      const current = existing(old)
      // Waits even when there is nothing to do: the revocation that did it may still be waiting itself.
      if (current.revokedAt !== null) return { key: current, events: [], waits: true }
      const key: KeyRow = { ...current, revokedAt: now, revokedReason: reason, updatedAt: updateTime(current, now) }
      const digests = await tx.retireGenerations(key.id, { at: now, by: recordId, reason: 'revoked' })
      await tx.updateKey(key)
      await tx.eraseReplays(key.id, recordId)
      return {
        key,
        retired: { digests, reason: 'revoked' },
        events: [{ type: 'key.revoked', key, details: reason === null ? {} : { reason } }],
        waits: true,
      }
    },
  }
}

/** Changes what callers may choose about a key. */
export function alteration(policy: LifetimePolicy, target: string, changes: Partial<KeyFields>): Change {
  return {
    name: 'update',
    target,
    selfAllowed: false,
    reach: (target) => target && { ...target, ...changes },
    fingerprint: changes,
    async apply(tx, { target: old, now }): Promise<Effect> {
      const current = existing(old)
      if (current.revokedAt !== null) throw new ApiKeyError('key_revoked', 'The key is revoked; nothing about it can change any more.')
      if (changes.expiresAt !== undefined) refuseLonger(policy, changes.expiresAt, current.expiresAt, now)
      const key: KeyRow = { ...current, ...changes, updatedAt: updateTime(current, now) }
      await tx.updateKey(key)
      const digests = await digestsOf(tx, key)
      return { key, changed: digests, events: [{ type: 'key.updated', key, details: { changed: Object.keys(changes) } }], waits: true }
    },
  }
}

/** Has a key refused everywhere until it is enabled again. Hands nothing out, as a revocation. */
export function disabling(target: string, reason: string | null): Change {
  return {
    name: 'disable',
    target,
    selfAllowed: false,
    fingerprint: reason,
    apply: (tx, { target: old, now }) => switched(tx, existing(old), now, { to: 'disabled', reason }),
  }
}

/** Ends that. It hands out what the key may do. */
export function enabling(target: string, reason: string | null): Change {
  return {
    name: 'enable',
    target,
    selfAllowed: false,
    reach: (target) => target,
    fingerprint: reason,
    apply: (tx, { target: old, now }) => switched(tx, existing(old), now, { to: 'enabled', reason }),
  }
}

async function switched(
  tx: StoreTransaction,
  current: KeyRow,
  now: number,
  { to, reason }: { readonly to: 'disabled' | 'enabled'; readonly reason: string | null },
): Promise<Effect> {
  if (current.revokedAt !== null) throw new ApiKeyError('key_revoked', 'The key is revoked; nothing about it can change any more.')
  const changed = await digestsOf(tx, current)
  // Waits even when there is nothing to do: the change that did it may still be waiting itself.
  if ((current.disabledAt !== null) === (to === 'disabled')) return { key: current, changed, events: [], waits: true }
  const key: KeyRow = { ...current, disabledAt: to === 'disabled' ? now : null, updatedAt: updateTime(current, now) }
  await tx.updateKey(key)
  return { key, changed, events: [{ type: `key.${to}`, key, details: reason === null ? {} : { reason } }], waits: true }
}

/** The secrets that stand for a key: the one before the active one may be in its grace period. */
async function digestsOf(tx: StoreTransaction, { id, generation }: KeyRow): Promise<readonly string[]> {
  const rows = [await tx.generationOf(id, generation), await tx.generationOf(id, generation - 1)]
  return rows.flatMap((row) => (row === undefined ? [] : [row.digest]))
}

function newKey(fields: KeyFields, secret: MintedSecret, now: number): KeyRow {
  const { ownerId, name, environment, scopes, metadata, allowedIps, expiresAt } = fields
  return {
    ...{ ownerId, name, environment, scopes, metadata, allowedIps, expiresAt },
    ...shown(secret),
    secretCreatedAt: now,
    id: timeOrderedId(now),
    generation: 1,
    createdAt: now,
    updatedAt: now,
    disabledAt: null,
    revokedAt: null,
    revokedReason: null,
    rotatedTo: null,
    lastUsedAt: null,
    lastUsedIp: null,
    lastUsedUserAgent: null,
  }
}

function generationRow(key: KeyRow, secret: MintedSecret, now: number, rotationSecretHash: string | null): GenerationRow {
  return {
    ...shown(secret),
    digest: secret.digest,
    keyId: key.id,
    generation: key.generation,
    createdAt: now,
    retiredAt: null,
    graceEndsAt: null,
    retiredBy: null,
    retiredReason: null,
    firstUsedAt: null,
    retiresEarlier: false,
    rotationSecretHash,
  }
}

function shown({ start, last4 }: MintedSecret): Pick<KeyRow, 'secretStart' | 'secretLast4'> {
  return { secretStart: start, secretLast4: last4 }
}

function secretsOf({ secret }: MintedSecret, minted: MintedRotationSecret | undefined): Pick<Effect, 'secret' | 'rotationSecret'> {
  return { secret, ...(minted === undefined ? {} : { rotationSecret: minted.rotationSecret }) }
}

function existing(key: KeyRow | undefined): KeyRow {
  if (key === undefined) throw keyNotFound()
  return key
}

/** Later than before, even where the store's clock was set back. */
function updateTime({ updatedAt }: KeyRow, now: number): number {
  return Math.max(now, updatedAt + 1)
}
