import { ApiKeyError } from '../../errors.js'
import type { GenerationRow, KeyRow } from '../../store/store.js'
import { timeOrderedId } from '../id.js'
import type { KeyFields, NewKeyFields } from '../input.js'
import type { MintedSecret, SecretFormat } from '../secret.js'
import type { MintedRotationSecret } from './rotation-secret.js'
import type { Effect, Mutation } from './run-change.js'

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
}

/** Makes a key. */
export function creation(format: SecretFormat, fields: NewKeyFields, rotationSecretStart: string | undefined): Mutation {
  return {
    name: 'create',
    target: null,
    ownerId: fields.ownerId,
    selfAllowed: false,
    reach: () => fields,
    mintsRotationSecret: rotationSecretStart === undefined ? 'never' : { start: rotationSecretStart },
    fingerprint: { ...fields, ...(rotationSecretStart === undefined ? {} : { rotationSecret: true }) },
    async apply(tx, { caller, now, minted: second }) {
      if (fields.expiresAt !== null && fields.expiresAt <= now) {
        throw new ApiKeyError('invalid_request', 'expiresAt has passed; a key that has expired would never work.')
      }
      const secret = format.mint(format.startFor(fields.environment))
      const key = newKey({ ...fields, ownerId: fields.ownerId ?? present(caller).ownerId }, secret, now)
      await tx.insertKey(key)
      await tx.insertGeneration(generationRow(key, secret, now, second?.hash ?? null))
      return { key, ...secretsOf(secret, second), events: [{ type: 'key.created', key, details: {} }], waits: false }
    },
  }
}

/** Replaces the active secret of a key, and its rotation secret with it. */
export function rotation(format: SecretFormat, target: string, plan: RotationPlan): Mutation {
  const { graceMs, onFirstUse, emergency, successor, scopeRequired, keepRotationSecret } = plan
  const usual = graceMs === 0 && !emergency && !successor
  return {
    name: 'rotate',
    target,
    selfAllowed: !scopeRequired,
    reach: (target) => target,
    rotationSecretGuards: true,
    mintsRotationSecret: keepRotationSecret ? 'never' : 'like the target',
    ...(emergency ? { neverReplayed: true } : {}),
    fingerprint: usual ? null : { graceMs, onFirstUse, emergency, successor },
    async apply(tx, { target: old, now, by, minted: second }): Promise<Effect> {
      const current = present(old)
      if (current.revokedAt !== null) throw new ApiKeyError('key_revoked', 'The key is revoked; a revoked key cannot be rotated.')
      if (current.expiresAt !== null && current.expiresAt <= now) {
        throw new ApiKeyError('key_expired', 'The key has expired, and a rotation keeps its expiry; move the expiry first.')
      }
      const active = await tx.generationOf(current.id, current.generation)
      const before = await tx.generationOf(current.id, current.generation - 1)
      const inGrace = before !== undefined && before.graceEndsAt !== null && before.graceEndsAt > now
      if (inGrace && !emergency) {
        throw new ApiKeyError(
          'rotation_in_grace',
          'The secret before the active one is still in its grace period; wait for its end, or rotate with the active one and "emergency": true.',
        )
      }
      const hash = keepRotationSecret ? (active?.rotationSecretHash ?? null) : (second?.hash ?? null)
      if ((hash === null) !== ((active?.rotationSecretHash ?? null) === null)) {
        throw new ApiKeyError('store_unavailable', 'The key has changed in the middle of its rotation; try again.')
      }
      // A key keeps the form that its clients and its other instances know.
      const secret = format.mint(current.secretStart === '' ? format.startFor(current.environment) : current.secretStart)
      const { endsAt, provisional } = graceEnd(plan, now, current.expiresAt)
      const grace = graceMs === 0 ? {} : { graceEndsAt: endsAt }
      const digests = await tx.retireGenerations(current.id, { at: now, by, reason: 'rotated', ...grace })
      const updatedAt = Math.max(now, current.updatedAt + 1)
      // Earlier answers hold secrets that are dead now.
      await tx.eraseReplays(current.id, emergency ? null : by)
      const effect = successor ? await succeed() : await renew()
      return {
        ...effect,
        ...secretsOf(secret, second),
        ...(graceMs === 0 ? { retired: { digests, reason: 'rotated' as const } } : { changed: digests, acceptedUntil: endsAt }),
        ...(provisional ? { graceMs } : {}),
        waits: true,
      }

      async function renew(): Promise<Pick<Effect, 'key' | 'events'>> {
        const key: KeyRow = { ...current, ...shown(secret), secretCreatedAt: now, generation: current.generation + 1, updatedAt }
        await tx.insertGeneration({ ...generationRow(key, secret, now, hash), retiresEarlier: onFirstUse })
        await tx.updateKey(key)
        const details = {
          generation: key.generation,
          // The trail tells no instant that may still change.
          ...(graceMs === 0 || provisional ? {} : { oldSecretExpiresAt: new Date(endsAt).toISOString() }),
          ...(onFirstUse ? { retire: 'on-first-use' } : graceMs === 0 ? {} : { retire: { afterMs: graceMs } }),
          ...(emergency ? { emergency } : {}),
        }
        return { key, events: [{ type: 'key.rotated', key, details }] }
      }

      async function succeed(): Promise<Pick<Effect, 'key' | 'events'>> {
        const key = newKey(current, secret, now)
        const ended: KeyRow = { ...current, revokedAt: now, revokedReason: 'rotated', rotatedTo: key.id, updatedAt }
        await tx.updateKey(ended)
        await tx.insertKey(key)
        await tx.insertGeneration(generationRow(key, secret, now, hash))
        return {
          key,
          events: [
            { type: 'key.rotated', key: ended, details: { rotatedTo: key.id } },
            { type: 'key.created', key, details: { rotatedFrom: current.id } },
          ],
        }
      }
    },
  }
}

/**
 * When a grace period that begins now ends. A short one counts from the commit, whose instant is known only afterwards: its end is provisional, later
 * than it should be, and lowered then.
 */
function graceEnd(
  { graceMs, onFirstUse }: RotationPlan,
  now: number,
  keyExpiresAt: number | null,
): { readonly endsAt: number; readonly provisional: boolean } {
  const latest = keyExpiresAt ?? Number.POSITIVE_INFINITY
  const provisional = graceMs > 0 && graceMs <= LONGEST_COUNTED_FROM_COMMIT_MS && !onFirstUse && now + graceMs < latest
  return { endsAt: Math.min(now + graceMs + (provisional ? GRACE_ALLOWANCE_MS : 0), latest), provisional }
}

/** Ends a key for good. */
export function revocation(target: string, reason: string | null): Mutation {
  return {
    name: 'revoke',
    target,
    selfAllowed: true,
    fingerprint: reason,
    async apply(tx, { target: old, now, by }): Promise<Effect> {
      const current = present(old)
      // Waits even when there is nothing to do: the revocation that did it may still be waiting itself.
      if (current.revokedAt !== null) return { key: current, events: [], waits: true }
      const key: KeyRow = { ...current, revokedAt: now, revokedReason: reason, updatedAt: Math.max(now, current.updatedAt + 1) }
      const digests = await tx.retireGenerations(key.id, { at: now, by, reason: 'revoked' })
      await tx.updateKey(key)
      await tx.eraseReplays(key.id, by)
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
export function alteration(target: string, changes: Partial<KeyFields>): Mutation {
  return {
    name: 'update',
    target,
    selfAllowed: false,
    reach: (target) => target && { ...target, ...changes },
    fingerprint: changes,
    async apply(tx, { target: old, now }): Promise<Effect> {
      const current = present(old)
      if (current.revokedAt !== null) throw new ApiKeyError('key_revoked', 'The key is revoked; nothing about it can change any more.')
      const key: KeyRow = { ...current, ...changes, updatedAt: Math.max(now, current.updatedAt + 1) }
      await tx.updateKey(key)
      // The secret before the active one may be in its grace period, and then stands for the same key.
      const digests: string[] = []
      for (const number of [key.generation, key.generation - 1]) {
        const digest = (await tx.generationOf(key.id, number))?.digest
        if (digest !== undefined) digests.push(digest)
      }
      return { key, changed: digests, events: [{ type: 'key.updated', key, details: { changed: Object.keys(changes) } }], waits: true }
    },
  }
}

function newKey(fields: KeyFields, secret: MintedSecret, now: number): KeyRow {
  const { ownerId, name, environment, scopes, metadata, expiresAt } = fields
  return {
    ...{ ownerId, name, environment, scopes, metadata, expiresAt },
    ...shown(secret),
    secretCreatedAt: now,
    id: timeOrderedId(now),
    generation: 1,
    createdAt: now,
    updatedAt: now,
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

function secretsOf({ secret }: MintedSecret, second: MintedRotationSecret | undefined): Pick<Effect, 'secret' | 'rotationSecret'> {
  return { secret, ...(second === undefined ? {} : { rotationSecret: second.rotationSecret }) }
}

function present(target: KeyRow | undefined): KeyRow {
  if (target === undefined) throw new ApiKeyError('key_not_found', 'There is no such key.')
  return target
}
