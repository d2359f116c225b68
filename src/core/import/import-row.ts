import { inspect } from 'node:util'
import type { GenerationRow, KeyRow } from '../../store/store.js'
import { timeOrderedId } from '../id.js'
import { createFields, instantOf, type NewKeyFields, reasonText } from '../input.js'
import type { CreateInput, FoundKey } from '../key.js'
import type { Recogniser } from '../legacy-format.js'
import { invalidRequest } from '../refusals.js'

/** What goes into the store. */
export interface ImportedKey {
  readonly key: KeyRow
  readonly generation: GenerationRow
}

const OF_IMPORTS = ['createdAt', 'lastUsedAt', 'disabledAt', 'revokedAt', 'revokedReason', 'last4'] as const

/** A row, checked, with what is kept of its secret. Throws `invalid_request` with what is wrong. */
export function importedRow(row: unknown, format: Recogniser, now: number): ImportedKey {
  if (typeof row !== 'object' || row === null || Array.isArray(row)) throw invalidRequest('A row is an object.')
  const { secret, hash, ...key } = row as { secret?: unknown; hash?: unknown }
  if (typeof secret === 'string') refuseSecretIn(key, secret)
  return importedKey(key, digestOfRow(secret, hash, format), now)
}

function digestOfRow(secret: unknown, hash: unknown, format: Recogniser): string {
  if ((secret === undefined) === (hash === undefined)) throw invalidRequest('A row has either secret or hash.')
  if (secret === undefined) return format.digestOfHash(hash)
  if (typeof secret !== 'string' || !format.matches(secret)) throw invalidRequest('secret does not look as match of the format says.')
  if (!format.takesSecrets)
    throw invalidRequest('Secrets come in clear only into a format with a pepper, or with randomBits of 128 or more: see legacyFormat.')
  return format.digestOf(secret)
}

/** A key is kept and shown in clear. Throws `invalid_request` where its fields hold its secret. */
export function refuseSecretIn(fields: object, secret: string): void {
  if (secret !== '' && inspect(fields, { depth: 20, maxStringLength: null, maxArrayLength: null }).includes(secret))
    throw invalidRequest('The fields of a key must not hold its secret: they are kept and shown in clear.')
}

/** The rows of the store for a key that was found, under what is kept of its secret. Throws `invalid_request`. */
export function importedKey(found: object, digest: string, now: number): ImportedKey {
  const fields = importFields(found)
  const { ownerId, expiresAt, createdAt, revokedAt, last4, ...rest } = fields
  if (ownerId === undefined) throw invalidRequest('ownerId must be a string of 1 to 255 characters.')
  const madeAt = createdAt ?? now
  for (const [name, at] of Object.entries({ createdAt, revokedAt, lastUsedAt: rest.lastUsedAt, disabledAt: rest.disabledAt })) {
    // The clocks of two systems are never quite the same.
    if (at !== null && at > now + CLOCKS_APART_MS) throw invalidRequest(`${name} has not come yet.`)
  }
  const shown = { secretStart: '', secretLast4: last4 }
  const key: KeyRow = {
    ...rest,
    ...shown,
    ...{ id: timeOrderedId(now), ownerId, expiresAt: expiresAt ?? null, revokedAt },
    ...{ generation: 1, createdAt: madeAt, updatedAt: now, secretCreatedAt: madeAt },
    ...{ rotatedTo: null, lastUsedIp: null, lastUsedUserAgent: null },
  }
  const generation: GenerationRow = {
    ...shown,
    ...{ digest, keyId: key.id, generation: 1, createdAt: madeAt },
    ...{ retiredAt: revokedAt, graceEndsAt: null, retiredBy: null, retiredReason: revokedAt === null ? null : 'revoked' },
    ...{ firstUsedAt: key.lastUsedAt, retiresEarlier: false, rotationSecretHash: null },
  }
  return { key, generation }
}

const CLOCKS_APART_MS = 600_000

interface ImportFields extends NewKeyFields {
  readonly createdAt: number | null
  readonly lastUsedAt: number | null
  readonly disabledAt: number | null
  readonly revokedAt: number | null
  readonly revokedReason: string | null
  readonly last4: string
}

function importFields(found: object): ImportFields {
  const { createdAt, lastUsedAt, disabledAt, revokedAt, revokedReason, last4 = '', ...usual } = found as Partial<FoundKey>
  if ('rotationSecret' in usual)
    throw invalidRequest(`A row has no rotationSecret. It takes ${[...OF_IMPORTS].join(', ')} beside what create takes.`)
  if (typeof last4 !== 'string' || !/^(?:[0-9A-Za-z]{4})?$/.test(last4)) throw invalidRequest('last4 must be four letters and digits.')
  const instant = (name: string, value: unknown): number | null => (value === undefined ? null : instantOf(value, name))
  return {
    ...createFields(usual as Partial<CreateInput>),
    createdAt: instant('createdAt', createdAt),
    lastUsedAt: instant('lastUsedAt', lastUsedAt),
    disabledAt: instant('disabledAt', disabledAt),
    revokedAt: instant('revokedAt', revokedAt),
    revokedReason: revokedReason === undefined || revokedReason === null ? null : reasonText(revokedReason),
    last4,
  }
}
