import { ApiKeyError } from '../errors.js'
import { refuseUnknown } from '../options.js'
import { actorOption, secretOf } from './actor.js'
import type { Actor, Command, Origin, RevokeCommand, RotateCommand, RotateOptions, UpdateCommand } from './api-keys.js'
import type { RotationPlan } from './change/changes.js'
import type { RequestShape } from './change/replay-seal.js'
import { flag, graceOf, instantOf, keyId } from './input.js'
import type { CreateInput } from './key.js'
import { invalidRequest } from './refusals.js'

/** What every command may hold. */
const COMMON: readonly (keyof Command)[] = ['as', 'idempotencyKey', 'request', 'replayOnly', 'origin', 'delegation']

/** What each command may hold beside it. */
const FIELDS: {
  readonly create: readonly (keyof CreateInput)[]
  readonly rotate: readonly (keyof RotateCommand)[]
  readonly revoke: readonly (keyof RevokeCommand)[]
  readonly disable: readonly (keyof RevokeCommand)[]
  readonly enable: readonly (keyof RevokeCommand)[]
  readonly update: readonly (keyof UpdateCommand)[]
} = {
  create: ['ownerId', 'name', 'environment', 'scopes', 'metadata', 'allowedIps', 'expiresAt', 'rotationSecret'],
  rotate: ['id', 'rotationSecret', 'retire', 'emergency', 'identity', 'scopeRequired', 'keepRotationSecret', 'retryFrom', 'expiresAt'],
  revoke: ['id', 'reason'],
  disable: ['id', 'reason'],
  enable: ['id', 'reason'],
  update: ['id', 'changes'],
}

/** An answer that is sealed without a secret of its caller is as hard to open as its Idempotency-Key is to guess. */
const MIN_UNSEALED_KEY_LENGTH = 22
const VISIBLE_ASCII = /^[\x20-\x7e]{1,255}$/

/** The common part of a command, checked. Throws `invalid_request` or `idempotency_key_invalid`. */
export function checkedCommand(command: Command, name: keyof typeof FIELDS): Command {
  if (typeof command !== 'object' || command === null || Array.isArray(command)) {
    throw invalidRequest(`${name} takes an object with "as", which says who asks: 'application', { secret } or { operator }.`)
  }
  refuseUnknown(command, [...COMMON, ...FIELDS[name]], name, 'invalid_request')
  // An own property: authority must not come from a prototype.
  const as = actorOption(Object.hasOwn(command, 'as') ? command.as : undefined)
  const { idempotencyKey, request, replayOnly, origin, delegation = 'bounded' } = command
  if (idempotencyKey !== undefined) checkIdempotencyKey(idempotencyKey, as)
  if (delegation !== 'bounded' && delegation !== 'open') throw invalidRequest('delegation must be "bounded" or "open".')
  if (origin !== undefined && !isOrigin(origin)) throw invalidRequest('origin must be { ip, userAgent }, both strings.')
  if (request !== undefined && !isRequestShape(request))
    throw invalidRequest('request must be { method, path, query?, body? }, with a body of JSON.')
  return {
    as,
    delegation,
    ...(idempotencyKey === undefined ? {} : { idempotencyKey }),
    ...(request === undefined ? {} : { request }),
    ...(replayOnly === undefined ? {} : { replayOnly: flag('replayOnly', replayOnly) }),
    ...(origin === undefined ? {} : { origin }),
  }
}

/** The fields of a command that are its own. */
export function withoutCommon<T extends Command>(command: T): Omit<T, keyof Command> {
  const { as: _as, idempotencyKey: _key, request: _request, replayOnly: _only, origin: _origin, delegation: _delegation, ...own } = command
  return own
}

/** The id of the key that a command is about, or `self` for the key of the secret that is presented. */
export function targetOf(command: { readonly as: Actor; readonly id?: string | undefined }): string {
  if (command.id !== undefined) return keyId(command.id)
  // An id that is present and undefined is not "self": a caller that looked an id up and found none did not mean its own key.
  if ('id' in command) throw invalidRequest('id is undefined. Leave it out for the key of the secret that is presented.')
  if (secretOf(command.as) === undefined) throw invalidRequest('Say which key: give its id, or the secret of the key itself.')
  return 'self'
}

export function rotationPlan({ retire, emergency, identity, scopeRequired, keepRotationSecret, expiresAt }: RotateOptions): RotationPlan {
  const plan: RotationPlan = {
    ...graceOf(retire),
    emergency: flag('emergency', emergency),
    successor: identity === 'successor',
    scopeRequired: flag('scopeRequired', scopeRequired),
    keepRotationSecret: flag('keepRotationSecret', keepRotationSecret),
    ...(expiresAt === undefined ? {} : { expiresAt: instantOf(expiresAt) }),
  }
  if (identity !== undefined && identity !== 'same' && identity !== 'successor')
    throw invalidRequest('identity must be "same" or "successor".')
  if (plan.graceMs > 0 && plan.emergency) throw invalidRequest('An emergency has no grace period: leave retire out, or write "now".')
  if (plan.graceMs > 0 && plan.successor)
    throw invalidRequest('A key that is succeeded has no grace period: leave retire out, or write "now".')
  return plan
}

/** What a rotation presents beside its secret, checked. */
export function presentedWith({ rotationSecret, retryFrom }: RotateCommand): {
  readonly rotationSecret?: string
  readonly retryFrom?: string
} {
  if (rotationSecret !== undefined && typeof rotationSecret !== 'string') throw invalidRequest('rotationSecret must be a string.')
  if (retryFrom !== undefined && (typeof retryFrom !== 'string' || retryFrom === '')) throw invalidRequest('retryFrom must name a network.')
  return { ...(rotationSecret === undefined ? {} : { rotationSecret }), ...(retryFrom === undefined ? {} : { retryFrom }) }
}

function checkIdempotencyKey(idempotencyKey: unknown, as: Actor): void {
  if (typeof idempotencyKey !== 'string' || !VISIBLE_ASCII.test(idempotencyKey)) {
    throw new ApiKeyError('idempotency_key_invalid', 'An Idempotency-Key must be 1 to 255 printable ASCII characters.')
  }
  if (secretOf(as) === undefined && idempotencyKey.length < MIN_UNSEALED_KEY_LENGTH) {
    throw new ApiKeyError(
      'idempotency_key_invalid',
      `Without a key of its own, a caller needs an Idempotency-Key of at least ${MIN_UNSEALED_KEY_LENGTH} characters, made at random, such as a UUID.`,
    )
  }
}

function isOrigin(origin: Origin): boolean {
  if (typeof origin !== 'object' || origin === null) return false
  return [origin.ip, origin.userAgent].every((text) => text === undefined || typeof text === 'string')
}

function isRequestShape(request: RequestShape): boolean {
  if (typeof request !== 'object' || request === null) return false
  const { method, path, query, body } = request
  if (typeof method !== 'string' || typeof path !== 'string' || (query !== undefined && typeof query !== 'string')) return false
  try {
    return body === undefined || JSON.stringify(body) !== undefined
  } catch {
    return false
  }
}
