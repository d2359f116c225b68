import type { Environment, EventRow, EventType, JsonObject, KeyRow } from '../store/store.js'

/**
 * A key as the application sees it. It never holds a secret or a digest, and is safe to log and to share between
 * requests: it is frozen, all the way down.
 */
export interface ApiKey<Metadata extends object = JsonObject> {
  /** A UUID, stable through rotation. */
  readonly id: string
  /** The tenancy boundary: a caller sees only the keys of its own owner. */
  readonly ownerId: string
  readonly name: string
  readonly environment: Environment
  readonly scopes: readonly string[]
  readonly metadata: Metadata
  /** The addresses and networks that it may be used from, in one form only; null for any. */
  readonly allowedIps: readonly string[] | null
  /** 1 at creation, one more at each rotation. */
  readonly generation: number
  /** As of when it was read or changed: `expired` is past its expiry, and neither disabled nor revoked. */
  readonly status: KeyStatus
  /** RFC 3339 instants in UTC, with milliseconds. */
  readonly createdAt: string
  readonly updatedAt: string
  readonly expiresAt: string | null
  readonly disabledAt: string | null
  readonly revokedAt: string | null
  readonly revokedReason: string | null
  /** The id of the key that took this one's place, where a rotation gave it a successor. */
  readonly rotatedTo: string | null
  /** What the active secret begins with, before its random part (`sk_live_`), and its last four characters: for people to tell keys apart. */
  readonly secretStart: string
  readonly secretLast4: string
  /** When the active secret was made: `createdAt`, or the last rotation. */
  readonly secretCreatedAt: string
  /** The last use, right to about a minute. */
  readonly lastUsedAt: string | null
  readonly lastUsedIp: string | null
  readonly lastUsedUserAgent: string | null
}

/**
 * When the old secret of a rotation stops being accepted: at once, after a grace period in milliseconds, or when the new one is first used. In any case
 * after 7 days (604,800,000 ms), and never later than the key's own expiry. A grace period of at most 10 minutes counts from the commit.
 */
export type RetirePolicy = 'now' | 'on-first-use' | { readonly afterMs: number }

/** What has become of a key. */
export type KeyStatus = 'active' | 'disabled' | 'expired' | 'revoked'

/** Which keys `list()` shows. Each filter narrows it further. */
export interface KeyQuery {
  /** The keys of one owner. Left out, of all owners; refused when it is there and undefined. */
  ownerId?: string
  /** `expired` is a key past its expiry that nobody disabled or revoked. */
  status?: KeyStatus
  environment?: Environment
  /** Keys that expire before this instant, or already have. Keys that never expire are not among them. */
  expiresBefore?: string | Date
  /** Keys last used before this instant. A key that was never used counts from when it was created. */
  lastUsedBefore?: string | Date
  /** Text anywhere in the name. The letters A to Z match in either case, and nothing is a wildcard. */
  name?: string
  /** The last four characters of the active secret. */
  last4?: string
  cursor?: string
  /** 1 to 100, default 50. */
  limit?: number
}

/** What may be given as metadata: any object of JSON, an interface too, unless the application named a type of its own. */
export type MetadataInput<Metadata extends object> = JsonObject extends Metadata ? object : Metadata

/** What is chosen about a new key. */
export interface CreateInput<Metadata extends object = JsonObject> {
  /** 1 to 255 characters. */
  ownerId: string
  /** 1 to 255 characters, for people. */
  name: string
  /** Default `live`. */
  environment?: Environment
  /** RFC 6749 §3.3 scope tokens, at most 100 of at most 128 characters. Default none. */
  scopes?: readonly string[]
  /** A JSON object of at most 8 KiB as text. Default empty. */
  metadata?: MetadataInput<Metadata>
  /**
   * The addresses and networks that the key may be used from, at most 100: IPv4, IPv6, and both in CIDR notation. Default null, for any. It goes by `req.ip`, so
   * `trust proxy` has to be right.
   */
  allowedIps?: readonly string[] | null
  /** When the key stops working; kept by rotation, never extended by it. An instant that has passed is refused. Default never, or as late as `maxLifetimeMs` allows. */
  expiresAt?: Date | string | null
  /** Whether the key gets a rotation secret: a second factor that it must then present to rotate itself. Default false. */
  rotationSecret?: boolean
}

/** A key that was issued elsewhere. Instants are a `Date`, or text as RFC 3339 has it. */
export interface FoundKey<Metadata extends object = JsonObject> extends Omit<CreateInput<Metadata>, 'rotationSecret'> {
  /** When it was made there. Default now. */
  createdAt?: Date | string | undefined
  /** Its last use, as far as the old system knows. Default never. */
  lastUsedAt?: Date | string | null | undefined
  /** Since when it is disabled. Default not. */
  disabledAt?: Date | string | null | undefined
  /** When it was revoked. It is then refused, and cannot come in by `find` any more. Default not. */
  revokedAt?: Date | string | null | undefined
  /** 1 to 255 characters. */
  revokedReason?: string | null | undefined
  /** The last four characters of its secret, for people to tell keys apart. Default none. */
  last4?: string | undefined
}

/** A row of an import: the key, and its secret or the hash of it that the old system kept. */
export type ImportRow<Metadata extends object = JsonObject> = FoundKey<Metadata> &
  ({ secret: string; hash?: never } | { hash: string | Uint8Array; secret?: never })

/** What `update()` may change. A field left out stays as it is. */
export interface KeyChanges<Metadata extends object = JsonObject> {
  name?: string
  scopes?: readonly string[]
  metadata?: MetadataInput<Metadata>
  allowedIps?: readonly string[] | null
  expiresAt?: Date | string | null
}

/** An event of the audit trail. */
export interface KeyEvent {
  readonly id: string
  readonly keyId: string
  readonly type: EventType
  readonly at: string
  /** `key:<id>`, `operator:<subject>@<issuer>`, or `system` for a call without a credential. */
  readonly actor: string
  readonly ip: string | null
  readonly userAgent: string | null
  readonly details: JsonObject
}

export interface Page<T> {
  readonly items: readonly T[]
  /** Hand it back as `cursor` for the next page; null at the end. */
  readonly nextCursor: string | null
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

/** Whether a string can be the id of a key at all. */
export function isKeyId(id: string): boolean {
  return UUID.test(id)
}

/** @param at when its status is looked at, in milliseconds since the epoch */
export function apiKey(row: KeyRow, at: number = row.updatedAt): ApiKey {
  return deepFreeze({
    id: row.id,
    ownerId: row.ownerId,
    name: row.name,
    environment: row.environment,
    scopes: [...row.scopes],
    metadata: JSON.parse(JSON.stringify(row.metadata)) as JsonObject,
    allowedIps: row.allowedIps === null ? null : [...row.allowedIps],
    generation: row.generation,
    status: statusOf(row, at),
    createdAt: iso(row.createdAt),
    updatedAt: iso(row.updatedAt),
    expiresAt: row.expiresAt === null ? null : iso(row.expiresAt),
    disabledAt: row.disabledAt === null ? null : iso(row.disabledAt),
    revokedAt: row.revokedAt === null ? null : iso(row.revokedAt),
    revokedReason: row.revokedReason,
    rotatedTo: row.rotatedTo,
    secretStart: row.secretStart,
    secretLast4: row.secretLast4,
    secretCreatedAt: iso(row.secretCreatedAt),
    lastUsedAt: row.lastUsedAt === null ? null : iso(row.lastUsedAt),
    lastUsedIp: row.lastUsedIp,
    lastUsedUserAgent: row.lastUsedUserAgent,
  })
}

function statusOf({ revokedAt, disabledAt, expiresAt }: KeyRow, at: number): KeyStatus {
  if (revokedAt !== null) return 'revoked'
  if (disabledAt !== null) return 'disabled'
  return expiresAt !== null && expiresAt <= at ? 'expired' : 'active'
}

/** An event as the application sees it. */
export function keyEvent({ ownerId: _, at, ...rest }: EventRow): KeyEvent {
  return { ...rest, at: iso(at) }
}

export function iso(ms: number): string {
  return new Date(ms).toISOString()
}

function deepFreeze<T>(value: T): T {
  // A primitive counts as frozen.
  if (!Object.isFrozen(value)) {
    Object.freeze(value)
    for (const part of Object.values(value as object)) deepFreeze(part)
  }
  return value
}
