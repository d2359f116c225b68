import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'
import type { ReplayRow } from '../../store/store.js'
import { hmac, lengthPrefixed, subkey } from '../keyed-hash.js'

/** What a record says about itself in the open; the seal breaks when any of it is changed. */
type SealedContext = Pick<ReplayRow, 'id' | 'callerId' | 'keyId' | 'generation' | 'fingerprint' | 'createdAt' | 'windowMs'>

/** What a retry has to bring along to open a record. None of it is ever stored. */
export interface SealCredentials {
  /** Empty for the application, and for an operator, whose token is another one at each retry. */
  readonly secret: string
  readonly rotationSecret?: string | undefined
  /** Empty where the request has none, and comes from `network` instead. */
  readonly idempotencyKey: string
  readonly network?: string | undefined
}

/** A request as the fingerprint sees it. Never holds `Authorization`. */
export interface RequestShape {
  readonly method: string
  readonly path: string
  readonly query?: string
  readonly body?: unknown
}

/** Names, fingerprints, seals and opens replay records under one or more server secrets, the current one first. */
export interface Seals {
  /** The id of the record of this caller and Idempotency-Key under each server secret, the current one first. */
  ids(callerId: string, idempotencyKey: string): readonly string[]
  /** The same for a rotation without an Idempotency-Key, for which the digest of the presented secret stands; never an id that `ids` gives. */
  idsWithoutKey(callerId: string, digest: string): readonly string[]
  /** The fingerprint of a request under the server secret that made the record id with this index. */
  fingerprint(index: number, request: RequestShape): string
  /** Seals under the current server secret, or under the one that made the record id with this index. */
  seal(context: SealedContext, credentials: SealCredentials, answer: string, index?: number): string
  /** The answer, or undefined when the credentials are not those it was sealed under or anything was tampered with. */
  open(index: number, context: SealedContext, credentials: SealCredentials, sealed: string): string | undefined
}

const VERSION = 'express-api-keys/replay/v2'
const SALT_BYTES = 32
const IV_BYTES = 12
const TAG_BYTES = 16

/**
 * The key of a seal comes from the server's secret, the caller's secrets and the Idempotency-Key together, so a reader of the
 * database has none of the three, a reader of the server's configuration lacks two, and the record of a lost answer
 * opens for the one client that can repeat its request.
 *
 * @see RFC 5869 (HKDF), NIST SP 800-38D (GCM)
 */
export function replaySeals(serverSecrets: readonly Uint8Array[]): Seals {
  const masters = serverSecrets.map((secret) => ({
    secret,
    id: subkey(secret, 'record id'),
    fingerprint: subkey(secret, 'fingerprint'),
  }))
  const master = (index: number): (typeof masters)[number] => {
    const found = masters[index]
    if (found === undefined) throw new RangeError('no such server secret')
    return found
  }

  return {
    // Not over the route or the target: one Idempotency-Key means one request of one caller, whatever its path. A reuse for
    // another path or body is found, and refused by the fingerprint.
    ids: (callerId, idempotencyKey) => masters.map(({ id }) => hmac(id, [callerId, idempotencyKey])),

    // Three parts, where `ids` has two: no Idempotency-Key can be chosen that names such a record.
    idsWithoutKey: (callerId, digest) => masters.map(({ id }) => hmac(id, ['without Idempotency-Key', callerId, digest])),

    fingerprint: (index, { method, path, query, body }) =>
      hmac(master(index).fingerprint, [method, path, query ?? '', canonicalJson(body)]),

    seal(context, credentials, answer, index = 0) {
      const salt = randomBytes(SALT_BYTES)
      const iv = randomBytes(IV_BYTES)
      const cipher = createCipheriv('aes-256-gcm', sealingKey(master(index).secret, context, credentials, salt), iv)
      cipher.setAAD(associatedData(context))
      const ciphertext = Buffer.concat([cipher.update(answer, 'utf8'), cipher.final()])
      return Buffer.concat([salt, iv, cipher.getAuthTag(), ciphertext]).toString('base64url')
    },

    open(index, context, credentials, sealed) {
      const bytes = Buffer.from(sealed, 'base64url')
      const salt = bytes.subarray(0, SALT_BYTES)
      const iv = bytes.subarray(SALT_BYTES, SALT_BYTES + IV_BYTES)
      const tag = bytes.subarray(SALT_BYTES + IV_BYTES, SALT_BYTES + IV_BYTES + TAG_BYTES)
      if (tag.length !== TAG_BYTES) return undefined
      const key = sealingKey(master(index).secret, context, credentials, salt)
      try {
        const decipher = createDecipheriv('aes-256-gcm', key, iv, { authTagLength: TAG_BYTES })
        decipher.setAAD(associatedData(context))
        decipher.setAuthTag(tag)
        return decipher.update(bytes.subarray(SALT_BYTES + IV_BYTES + TAG_BYTES), undefined, 'utf8') + decipher.final('utf8')
      } catch {
        return undefined
      }
    },
  }
}

function sealingKey(serverSecret: Uint8Array, context: SealedContext, credentials: SealCredentials, salt: Uint8Array): Uint8Array {
  const { secret, rotationSecret = '', idempotencyKey, network = '' } = credentials
  const material = lengthPrefixed([serverSecret, secret, idempotencyKey, rotationSecret, network])
  const info = lengthPrefixed([VERSION, context.id, context.keyId, String(context.generation)])
  return new Uint8Array(hkdfSync('sha256', material, salt, info, 32))
}

function associatedData(context: SealedContext): Buffer {
  return lengthPrefixed([
    VERSION,
    context.id,
    context.callerId,
    context.keyId,
    String(context.generation),
    context.fingerprint,
    String(context.createdAt),
    String(context.windowMs),
  ])
}

/** JSON with the members of every object in code-unit order; undefined as the empty string. */
function canonicalJson(value: unknown): string {
  if (value === undefined) return ''
  return JSON.stringify(value, (_name, part: unknown) => {
    if (typeof part !== 'object' || part === null || Array.isArray(part)) return part
    const sorted: Record<string, unknown> = Object.create(null)
    for (const name of Object.keys(part).sort()) sorted[name] = (part as Record<string, unknown>)[name]
    return sorted
  })
}
