import type { Response } from 'express'
import type { Verified } from '../core/api-keys.js'

/** Tells a client that still uses its old secret after a rotation when that secret ends. @see RFC 9745 §2, RFC 8594 §3 */
export function announceEnd(res: Response, { replacedAt, expiresAt }: NonNullable<Verified['grace']>, deprecation: boolean): void {
  res.setHeader('Api-Key-Expires-At', expiresAt)
  if (!deprecation) return
  res.setHeader('Deprecation', `@${Math.floor(Date.parse(replacedAt) / 1_000)}`)
  res.setHeader('Sunset', new Date(expiresAt).toUTCString())
}
