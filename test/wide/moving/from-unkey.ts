import { type ImportRow, type LegacyFormat, legacyFormat } from 'express-api-keys'

/** A prefix, then 16 random bytes in base58. */
export const unkeyKeys: LegacyFormat = legacyFormat({ match: /acme_[1-9A-HJ-NP-Za-km-z]{20,23}/, randomBits: 128 })

/** A key as it is handed to Unkey. */
export interface UnkeyRow {
  hash: { value: string; variant: 'sha256_base64' | 'sha256_hex' }
  externalId: string
  name?: string
  permissions?: string[]
  meta?: Record<string, unknown>
  expires?: number
  enabled?: boolean
}

export function fromUnkey(row: UnkeyRow): ImportRow {
  return {
    hash: row.hash.value,
    ownerId: row.externalId,
    name: row.name ?? 'no name',
    scopes: (row.permissions ?? []).map((permission) => permission.replace(/\.\*$/, ':*')),
    metadata: row.meta ?? {},
    expiresAt: row.expires === undefined ? null : new Date(row.expires),
    disabledAt: row.enabled === false ? new Date() : null,
  }
}
