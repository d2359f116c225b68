import { type ImportRow, type LegacyFormat, legacyFormat } from 'express-api-keys'

/** `defaultPrefix`, then 64 letters. */
export const betterAuthKeys: LegacyFormat = legacyFormat({ match: /acme_[A-Za-z]{64}/, randomBits: 364 })

/** A row of its table `apikey`. */
export interface BetterAuthRow {
  id: string
  key: string
  name: string | null
  referenceId: string
  enabled: boolean
  permissions: string | null
  metadata: string | null
  createdAt: Date
  updatedAt: Date
  lastRequest: Date | null
  expiresAt: Date | null
}

export function fromBetterAuth(row: BetterAuthRow): ImportRow {
  const permissions: Record<string, string[]> = JSON.parse(row.permissions ?? '{}') ?? {}
  return {
    hash: row.key,
    ownerId: row.referenceId,
    name: row.name ?? 'no name',
    scopes: Object.entries(permissions).flatMap(([what, actions]) => actions.map((action) => `${what}:${action}`)),
    metadata: { ...JSON.parse(row.metadata ?? '{}'), betterAuthId: row.id },
    createdAt: row.createdAt,
    lastUsedAt: row.lastRequest,
    expiresAt: row.expiresAt,
    disabledAt: row.enabled ? null : row.updatedAt,
  }
}
