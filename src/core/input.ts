import type { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import type { JsonObject, KeyFilters, Position } from '../store/store.js'
import { allowedIpsList } from './allowed-ips.js'
import { type CreateInput, isKeyId, type KeyChanges, type KeyQuery, type RetirePolicy } from './key.js'
import { invalidRequest } from './refusals.js'
import { holdsSecret } from './secret.js'

/** The fields of a key that callers choose, checked. */
export interface KeyFields {
  readonly ownerId: string
  readonly name: string
  readonly environment: 'live' | 'test'
  readonly scopes: readonly string[]
  readonly metadata: JsonObject
  readonly allowedIps: readonly string[] | null
  readonly expiresAt: number | null
}

/** The limits of the fields of keys and of listings. The OpenAPI documents are made from them. */
export const FIELD_LIMITS = {
  /** Characters of a name, an owner or a reason. */
  text: 255,
  scopes: 100,
  scopeLength: 128,
  metadataBytes: 8_192,
  metadataDepth: 16,
  page: 100,
  defaultPage: 50,
} as const
/** RFC 6749 §3.3: visible ASCII without `"` and `\`. */
export const SCOPE_TOKEN: RegExp = /^[\x21\x23-\x5b\x5d-\x7e]+$/
export const LONGEST_GRACE_MS: number = 7 * 86_400_000

/** The last instant that RFC 3339 can write, 9999-12-31T23:59:59.999Z. */
const MAX_INSTANT = 253_402_300_799_999
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it is for
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/
const LISTING: readonly (keyof KeyQuery)[] = [
  ...(['ownerId', 'status', 'environment', 'expiresBefore', 'lastUsedBefore', 'name', 'last4', 'cursor', 'limit'] as const),
]
const KEY_STATUSES: readonly unknown[] = ['active', 'disabled', 'expired', 'revoked']
const RFC3339 = /^(\d{4})-(\d{2})-(\d{2})[Tt ]([01]\d|2[0-3]):\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$/

/** The fields of a new key; without an owner it is the caller's, and without an expiry it is what the application has set. */
export type NewKeyFields = Omit<KeyFields, 'ownerId' | 'expiresAt'> & {
  readonly ownerId: string | undefined
  readonly expiresAt: number | null | undefined
}

/** Checks what `create()` was given; throws `invalid_request` naming the field. */
export function createFields(input: Partial<CreateInput>): NewKeyFields {
  known(input, ['ownerId', 'name', 'environment', 'scopes', 'metadata', 'allowedIps', 'expiresAt', 'rotationSecret'], 'A new key')
  const environment = input.environment === undefined ? 'live' : input.environment
  if (environment !== 'live' && environment !== 'test') throw invalidRequest('environment must be "live" or "test".')
  flag('rotationSecret', input.rotationSecret)
  return {
    ownerId: input.ownerId === undefined ? undefined : ownerText(input.ownerId),
    name: text('name', input.name),
    environment,
    scopes: input.scopes === undefined ? [] : scopeList(input.scopes),
    metadata: input.metadata === undefined ? {} : jsonObject(input.metadata),
    allowedIps: input.allowedIps === undefined ? null : allowedIpsList(input.allowedIps),
    expiresAt: input.expiresAt === undefined ? undefined : instantOf(input.expiresAt),
  }
}

/** Checks what `update()` was given; at least one field must be there. */
export function changedFields(changes: KeyChanges): Partial<KeyFields> {
  known(changes, ['name', 'scopes', 'metadata', 'allowedIps', 'expiresAt'], 'A key')
  const fields = {
    ...(changes.name === undefined ? {} : { name: text('name', changes.name) }),
    ...(changes.scopes === undefined ? {} : { scopes: scopeList(changes.scopes) }),
    ...(changes.metadata === undefined ? {} : { metadata: jsonObject(changes.metadata) }),
    ...(changes.allowedIps === undefined ? {} : { allowedIps: allowedIpsList(changes.allowedIps) }),
    ...(changes.expiresAt === undefined ? {} : { expiresAt: instantOf(changes.expiresAt) }),
  }
  if (Object.keys(fields).length === 0) throw invalidRequest('Nothing to change: give name, scopes, metadata, allowedIps or expiresAt.')
  return fields
}

/** How long the old secret of a rotation goes on being accepted, and whether the new one's first use ends that. */
export function graceOf(retire: RetirePolicy | undefined): { readonly graceMs: number; readonly onFirstUse: boolean } {
  if (retire === undefined || retire === 'now') return { graceMs: 0, onFirstUse: false }
  if (retire === 'on-first-use') return { graceMs: LONGEST_GRACE_MS, onFirstUse: true }
  const { afterMs, ...more } = typeof retire === 'object' && retire !== null ? retire : {}
  const good = typeof afterMs === 'number' && Number.isSafeInteger(afterMs) && afterMs >= 1
  if (!good || Object.keys(more).length > 0) {
    throw invalidRequest('retire must be "now", "on-first-use" or { "afterMs": a whole number of milliseconds }.')
  }
  if (afterMs > LONGEST_GRACE_MS) throw invalidRequest(`retire.afterMs must be at most ${LONGEST_GRACE_MS}, which is 7 days.`)
  return { graceMs: afterMs, onFirstUse: false }
}

export function flag(name: string, value: unknown): boolean {
  if (value !== undefined && typeof value !== 'boolean') throw invalidRequest(`${name} must be true or false.`)
  return value ?? false
}

export function reasonText(reason: unknown): string {
  return text('reason', reason)
}

/** A key's id in lower case; throws `invalid_request` before any store is asked. */
export function keyId(id: unknown): string {
  if (typeof id !== 'string' || !isKeyId(id)) throw invalidRequest('A key id must be a UUID.')
  return id.toLowerCase()
}

export function ownerText(ownerId: unknown): string {
  if (ownerId === '*') throw invalidRequest('ownerId must not be "*", which is what an operator calls all owners.')
  return text('ownerId', ownerId)
}

export function pageLimit(limit: unknown): number {
  if (limit === undefined) return FIELD_LIMITS.defaultPage
  if (typeof limit === 'number' && Number.isInteger(limit) && limit >= 1 && limit <= FIELD_LIMITS.page) return limit
  throw pageLimitInvalid()
}

export function pageLimitInvalid(): ApiKeyError {
  return invalidRequest(`limit must be a whole number from 1 to ${FIELD_LIMITS.page}.`)
}

/** Checks what a listing is narrowed by, apart from the owner; throws `invalid_request` naming the filter. */
export function keyFilters(query: KeyQuery): Omit<KeyFilters, 'ownerId'> {
  refuseUnknown(query, LISTING, 'list', 'invalid_request')
  const { status, environment, expiresBefore, lastUsedBefore, name, last4 } = query
  if (status !== undefined && !KEY_STATUSES.includes(status))
    throw invalidRequest('status must be "active", "disabled", "expired" or "revoked".')
  if (environment !== undefined && environment !== 'live' && environment !== 'test')
    throw invalidRequest('environment must be "live" or "test".')
  if (last4 !== undefined && (typeof last4 !== 'string' || !/^[0-9A-Za-z]{4}$/.test(last4)))
    throw invalidRequest('last4 must be the last four characters of a secret, letters and digits.')
  return {
    ...(status === undefined ? {} : { status }),
    ...(environment === undefined ? {} : { environment }),
    ...(expiresBefore === undefined ? {} : { expiresBefore: filterInstant('expiresBefore', expiresBefore) }),
    ...(lastUsedBefore === undefined ? {} : { lastUsedBefore: filterInstant('lastUsedBefore', lastUsedBefore) }),
    ...(name === undefined ? {} : { name: text('name', name) }),
    ...(last4 === undefined ? {} : { last4 }),
  }
}

function filterInstant(name: string, value: unknown): number {
  const ms = value === null ? null : instantOf(value, name)
  if (ms === null) throw invalidRequest(`${name} must be an RFC 3339 instant, such as 2030-01-31T12:00:00Z.`)
  return ms
}

/** A cursor is a position in a listing, written so that nobody is tempted to build one. */
export function cursorOf({ at, id }: Position): string {
  return Buffer.from(`${at}.${id}`).toString('base64url')
}

export function positionOf(cursor: unknown): Position | undefined {
  if (cursor === undefined) return undefined
  const [, at, id] = (typeof cursor === 'string' && /^(\d{1,15})\.([0-9a-f-]{36})$/.exec(Buffer.from(cursor, 'base64url').toString())) || []
  if (at === undefined || id === undefined) throw invalidRequest('cursor must be a nextCursor of an earlier page.')
  return { at: Number(at), id }
}

function known(input: object, names: readonly string[], where: string): void {
  if (typeof input !== 'object' || input === null || Array.isArray(input)) throw invalidRequest(`${where} is described by an object.`)
  try {
    refuseUnknown(input, names, where)
  } catch (error) {
    throw invalidRequest((error as Error).message.replace('option', 'field'))
  }
}

function text(name: string, value: unknown): string {
  if (typeof value !== 'string' || value.length < 1 || value.length > FIELD_LIMITS.text)
    throw invalidRequest(`${name} must be a string of 1 to ${FIELD_LIMITS.text} characters.`)
  if (CONTROL.test(value) || !value.isWellFormed()) throw invalidRequest(`${name} must not hold control characters.`)
  if (holdsSecret(value)) throw invalidRequest(`${name} must not hold a secret: it is kept and shown in clear.`)
  return value
}

function scopeList(value: unknown): readonly string[] {
  const good = (scope: unknown): boolean => typeof scope === 'string' && scope.length <= FIELD_LIMITS.scopeLength && SCOPE_TOKEN.test(scope)
  // Spread, because `every` passes over the holes of a sparse list.
  if (!Array.isArray(value) || value.length > FIELD_LIMITS.scopes || ![...value].every(good)) {
    throw invalidRequest(
      `scopes must be a list of at most ${FIELD_LIMITS.scopes} scope tokens (RFC 6749 §3.3) of at most ${FIELD_LIMITS.scopeLength} characters.`,
    )
  }
  const odd = (value as string[]).find((scope) => /\*./.test(scope) || (scope.endsWith('*') && scope !== '*' && !scope.endsWith(':*')))
  if (odd !== undefined) throw invalidRequest('A scope has "*" only at its end: alone, or after a colon, as in "reports:*".')
  return [...new Set(value as string[])]
}

function jsonObject(value: unknown): JsonObject {
  let written: string | undefined
  try {
    written = JSON.stringify(value)
  } catch {
    throw invalidRequest('metadata must be plain JSON.')
  }
  if (written !== undefined && Buffer.byteLength(written) > FIELD_LIMITS.metadataBytes) {
    throw invalidRequest(`metadata must be at most ${FIELD_LIMITS.metadataBytes} bytes of JSON.`)
  }
  // What was written is what will be kept: a `toJSON` may have made something else of the value.
  const kept: unknown = written === undefined ? undefined : JSON.parse(written)
  if (typeof kept !== 'object' || kept === null || Array.isArray(kept)) throw invalidRequest('metadata must be an object.')
  refuseUnsafe(kept, 1)
  return kept as JsonObject
}

/** Refuses names that a careless merge would follow into a prototype, and NUL, which PostgreSQL cannot hold. */
function refuseUnsafe(value: unknown, depth: number): void {
  if (depth > FIELD_LIMITS.metadataDepth) throw invalidRequest(`metadata must not be nested deeper than ${FIELD_LIMITS.metadataDepth}.`)
  if (typeof value === 'string' && (value.includes('\0') || !value.isWellFormed()))
    throw invalidRequest('metadata must be well-formed text without NUL.')
  if (typeof value === 'string' && holdsSecret(value))
    throw invalidRequest('metadata must not hold a secret: it is kept and shown in clear.')
  if (typeof value !== 'object' || value === null) return
  for (const [name, part] of Object.entries(value)) {
    if (name === '__proto__' || name === 'constructor' || name === 'prototype')
      throw invalidRequest(`metadata must not have a member "${name}".`)
    refuseUnsafe(name, depth)
    refuseUnsafe(part, depth + 1)
  }
}

/** Milliseconds since the epoch, or null. Throws `invalid_request`. */
export function instantOf(value: unknown, name = 'expiresAt'): number | null {
  if (value === null) return null
  const ms = value instanceof Date ? value.getTime() : typeof value === 'string' ? rfc3339(value) : Number.NaN
  if (Number.isNaN(ms) || ms < 0 || ms > MAX_INSTANT)
    throw invalidRequest(`${name} must be an RFC 3339 instant, such as 2030-01-31T12:00:00Z${name === 'expiresAt' ? ', or null' : ''}.`)
  return ms
}

/** Milliseconds since the epoch, or NaN. `Date.parse` alone would read February 31 as a day in March. */
function rfc3339(text: string): number {
  const [, year, month, day] = RFC3339.exec(text) ?? []
  if (day === undefined || Number(day) > new Date(Date.UTC(Number(year), Number(month), 0)).getUTCDate()) return Number.NaN
  return Date.parse(text)
}
