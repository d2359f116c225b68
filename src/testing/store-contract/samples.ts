import { randomBytes, randomUUID } from 'node:crypto'
import type { EventRow, GenerationRow, KeyRow, ReplayRow, Store } from '../../store/store.js'

/** Declares a test over one store, and another over the same data. */
export type Check = (title: string, run: (store: Store, sibling: Store) => Promise<void>) => void

export async function issue(store: Store, fields: Partial<KeyRow> = {}): Promise<{ key: KeyRow; generation: GenerationRow }> {
  return store.transaction(async (tx) => {
    const now = await tx.now()
    const key: KeyRow = {
      id: randomUUID(),
      ownerId: 'owner',
      name: 'name',
      environment: 'test',
      scopes: [],
      metadata: {},
      generation: 1,
      createdAt: now,
      updatedAt: now,
      allowedIps: null,
      expiresAt: null,
      disabledAt: null,
      revokedAt: null,
      revokedReason: null,
      rotatedTo: null,
      secretStart: 'sk_test_',
      secretLast4: 'abcd',
      secretCreatedAt: now,
      lastUsedAt: null,
      lastUsedIp: null,
      lastUsedUserAgent: null,
      ...fields,
    }
    const generation = generationOf(key, 1)
    await tx.insertKey(key)
    await tx.insertGeneration(generation)
    return { key, generation }
  })
}

export function recordOf(store: Store, id: string): Promise<ReplayRow | undefined> {
  return store.transaction((tx) => tx.replay(['nobody', id]))
}

export function digest(): string {
  return randomBytes(32).toString('base64url')
}

export function generationOf(key: KeyRow, generation: number): GenerationRow {
  return {
    digest: digest(),
    keyId: key.id,
    generation,
    createdAt: key.createdAt,
    retiredAt: null,
    graceEndsAt: null,
    retiredBy: null,
    retiredReason: null,
    firstUsedAt: null,
    retiresEarlier: false,
    rotationSecretHash: null,
    secretStart: 'sk_test_',
    secretLast4: 'abcd',
  }
}

export function replayOf(key: KeyRow, fields: Partial<ReplayRow>): ReplayRow {
  return {
    id: randomUUID(),
    callerId: key.id,
    keyId: key.id,
    generation: 1,
    fingerprint: 'fingerprint',
    sealed: 'seal',
    createdAt: key.createdAt,
    windowMs: 600_000,
    graceMs: 10_000,
    expiresAt: key.createdAt + 600_000,
    settledAt: null,
    ...fields,
  }
}

export function eventOf(key: KeyRow, at: number): EventRow {
  const { ownerId } = key
  const details = { generation: 2 }
  return { id: randomUUID(), keyId: key.id, ownerId, type: 'key.rotated', at, actor: 'system', ip: '::1', userAgent: null, details }
}
