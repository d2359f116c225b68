import type { AliasedExpression, ExpressionBuilder } from 'kysely'
import type { EventRow, GenerationRow, JsonObject, KeyRow, ReplayRow } from '../store.js'

/** The tables of the keys, as Kysely knows them. */
export interface Tables {
  express_api_keys: KeyTable
  express_api_key_generations: GenerationTable
  express_api_key_replays: ReplayTable
  express_api_key_events: EventTable
  express_api_key_settings: SettingsTable
  express_api_key_feed: { id: number; seq: number; tag: string; pruned_to: number }
  express_api_key_changes: { seq: number; tag: string; digests: string; at: number }
  express_api_key_instances: InstanceTable
}

interface SettingsTable {
  id: number
  lease_ms: number
  earlier_lease_ms: number
  lease_version: number
  store_id: string
  protocol: number
}

export interface InstanceTable {
  session: string
  mode: string
  /** Names with a comma between two. */
  channels: string
  revoked: number
  acked: number
  joined_at: number
}

export interface KeyTable {
  id: string
  owner_id: string
  name: string
  environment: string
  scopes: string
  metadata: string
  /** JSON list of texts; null for any address. */
  allowed_ips: string | null
  generation: number
  created_at: number
  updated_at: number
  expires_at: number | null
  disabled_at: number | null
  revoked_at: number | null
  revoked_reason: string | null
  rotated_to: string | null
  secret_start: string
  secret_last4: string
  /** Null for keys that nothing has changed since this column came. */
  secret_created_at: number | null
  last_used_at: number | null
  last_used_ip: string | null
  last_used_user_agent: string | null
}

export interface GenerationTable {
  digest: string
  key_id: string
  generation: number
  created_at: number
  retired_at: number | null
  retired_by: string | null
  retired_reason: string | null
  first_used_at: number | null
  secret_start: string
  secret_last4: string
  grace_ends_at: number | null
  retires_earlier: number
  rotation_secret_hash: string | null
}

export interface ReplayTable {
  id: string
  caller_id: string
  key_id: string
  generation: number | null
  fingerprint: string
  sealed: string | null
  created_at: number
  window_ms: number
  grace_ms: number
  expires_at: number
  settled_at: number | null
}

interface EventTable {
  id: string
  key_id: string
  owner_id: string
  type: string
  at: number
  actor: string
  ip: string | null
  user_agent: string | null
  details: string
}

/** @param madeAt when the active secret was made, by its generation: for rows that do not know it. */
export function keyRow(row: KeyTable, madeAt?: number | null): KeyRow {
  return {
    id: row.id,
    ownerId: row.owner_id,
    name: row.name,
    environment: row.environment === 'test' ? 'test' : 'live',
    scopes: JSON.parse(row.scopes) as string[],
    metadata: JSON.parse(row.metadata) as JsonObject,
    allowedIps: row.allowed_ips === null ? null : (JSON.parse(row.allowed_ips) as string[]),
    generation: Number(row.generation),
    createdAt: Number(row.created_at),
    updatedAt: Number(row.updated_at),
    expiresAt: numberOrNull(row.expires_at),
    disabledAt: numberOrNull(row.disabled_at),
    revokedAt: numberOrNull(row.revoked_at),
    revokedReason: row.revoked_reason,
    rotatedTo: row.rotated_to,
    secretStart: row.secret_start,
    secretLast4: row.secret_last4,
    // Drivers hand out 64-bit integers as strings, hence the conversions.
    secretCreatedAt: Number(row.secret_created_at ?? madeAt ?? row.created_at),
    lastUsedAt: numberOrNull(row.last_used_at),
    lastUsedIp: row.last_used_ip,
    lastUsedUserAgent: row.last_used_user_agent,
  }
}

export function keyColumns(row: KeyRow): KeyTable {
  return {
    id: row.id,
    owner_id: row.ownerId,
    name: row.name,
    environment: row.environment,
    scopes: JSON.stringify(row.scopes),
    metadata: JSON.stringify(row.metadata),
    allowed_ips: row.allowedIps === null ? null : JSON.stringify(row.allowedIps),
    generation: row.generation,
    created_at: row.createdAt,
    updated_at: row.updatedAt,
    expires_at: row.expiresAt,
    disabled_at: row.disabledAt,
    revoked_at: row.revokedAt,
    revoked_reason: row.revokedReason,
    rotated_to: row.rotatedTo,
    secret_start: row.secretStart,
    secret_last4: row.secretLast4,
    secret_created_at: row.secretCreatedAt,
    last_used_at: row.lastUsedAt,
    last_used_ip: row.lastUsedIp,
    last_used_user_agent: row.lastUsedUserAgent,
  }
}

export function generationRow(row: GenerationTable): GenerationRow {
  return {
    digest: row.digest,
    keyId: row.key_id,
    generation: Number(row.generation),
    createdAt: Number(row.created_at),
    retiredAt: numberOrNull(row.retired_at),
    retiredBy: row.retired_by,
    retiredReason: row.retired_reason as GenerationRow['retiredReason'],
    firstUsedAt: numberOrNull(row.first_used_at),
    secretStart: row.secret_start,
    secretLast4: row.secret_last4,
    graceEndsAt: numberOrNull(row.grace_ends_at),
    retiresEarlier: Number(row.retires_earlier) === 1,
    rotationSecretHash: row.rotation_secret_hash,
  }
}

export function generationColumns(row: GenerationRow): GenerationTable {
  return {
    digest: row.digest,
    key_id: row.keyId,
    generation: row.generation,
    created_at: row.createdAt,
    retired_at: row.retiredAt,
    retired_by: row.retiredBy,
    retired_reason: row.retiredReason,
    first_used_at: row.firstUsedAt,
    secret_start: row.secretStart,
    secret_last4: row.secretLast4,
    grace_ends_at: row.graceEndsAt,
    retires_earlier: row.retiresEarlier ? 1 : 0,
    rotation_secret_hash: row.rotationSecretHash,
  }
}

export function replayRow(row: ReplayTable): ReplayRow {
  return {
    id: row.id,
    callerId: row.caller_id,
    keyId: row.key_id,
    generation: numberOrNull(row.generation),
    fingerprint: row.fingerprint,
    sealed: row.sealed,
    createdAt: Number(row.created_at),
    windowMs: Number(row.window_ms),
    graceMs: Number(row.grace_ms),
    expiresAt: Number(row.expires_at),
    settledAt: numberOrNull(row.settled_at),
  }
}

export function replayColumns(row: ReplayRow): ReplayTable {
  return {
    id: row.id,
    caller_id: row.callerId,
    key_id: row.keyId,
    generation: row.generation,
    fingerprint: row.fingerprint,
    sealed: row.sealed,
    created_at: row.createdAt,
    window_ms: row.windowMs,
    grace_ms: row.graceMs,
    expires_at: row.expiresAt,
    settled_at: row.settledAt,
  }
}

export function eventRow(row: EventTable): EventRow {
  return {
    id: row.id,
    keyId: row.key_id,
    ownerId: row.owner_id,
    type: row.type as EventRow['type'],
    at: Number(row.at),
    actor: row.actor,
    ip: row.ip,
    userAgent: row.user_agent,
    details: JSON.parse(row.details) as JsonObject,
  }
}

export function eventColumns(row: EventRow): EventTable {
  return {
    id: row.id,
    key_id: row.keyId,
    owner_id: row.ownerId,
    type: row.type,
    at: row.at,
    actor: row.actor,
    ip: row.ip,
    user_agent: row.userAgent,
    details: JSON.stringify(row.details),
  }
}

function numberOrNull(value: number | null): number | null {
  return value === null ? null : Number(value)
}

/** When the active secret of a key was made, by its generation. */
export function madeAt(db: ExpressionBuilder<Tables, 'express_api_keys'>): AliasedExpression<number | null, 'made_at'> {
  return db
    .selectFrom('express_api_key_generations as active')
    .select('active.created_at')
    .whereRef('active.key_id', '=', 'express_api_keys.id')
    .whereRef('active.generation', '=', 'express_api_keys.generation')
    .$asScalar()
    .as('made_at')
}
