import { type ImportRow, type LegacyFormat, legacyFormat } from 'express-api-keys'

/** `randomBytes(32).toString('hex')`. */
export const tokens: LegacyFormat = legacyFormat({ match: /[0-9a-f]{64}/, randomBits: 256 })

/** A row of a table of one's own, with the tokens in clear. */
export interface TokenRow {
  id: number
  token: string
  user_id: number
  scope: string
  created_at: Date
  revoked_at: Date | null
}

export function fromTokens(row: TokenRow): ImportRow {
  return {
    secret: row.token,
    ownerId: `user ${row.user_id}`,
    name: `token ${row.id}`,
    scopes: row.scope.split(' ').filter((scope) => scope !== ''),
    createdAt: row.created_at,
    revokedAt: row.revoked_at,
  }
}
