import { pageLimitInvalid } from '../core/input.js'
import type { ApiKey, KeyEvent } from '../core/key.js'
import { invalidKey, keyDisabled, keyNotFound, keyRevoked } from '../core/refusals.js'
import { ApiKeyError, type ApiKeyErrorCode } from '../errors.js'
import type { Action, Answers } from './contract.js'

/** A failure of an action, as an OpenAPI document shows it. */
export function sampleFailure(code: ApiKeyErrorCode, action: Action): ApiKeyError {
  return new ApiKeyError(code, MESSAGES_OF[action]?.[code] ?? MESSAGES[code])
}

export const SAMPLE_REQUEST_ID = '3f1c2d9a-5b7e-4c1d-9e8f-0a1b2c3d4e5f'

const MESSAGES: { readonly [code in ApiKeyErrorCode]: string } = {
  invalid_request: 'The body must be a JSON object.',
  credential_malformed: 'Send one Authorization header, not two.',
  key_id_invalid: 'A key id must be a UUID.',
  rotation_secret_missing: 'Send the rotation secret in the body, as "rotationSecret".',
  idempotency_key_missing: 'This needs an Idempotency-Key header, such as a new UUID.',
  idempotency_key_invalid: 'Send one Idempotency-Key header, not two.',
  credential_missing: 'Send an API key as: Authorization: Bearer <key>.',
  invalid_key: invalidKey().message,
  insufficient_scope: 'This needs the scope api_keys:write.',
  wrong_environment: 'This needs a live key, and the one presented is a test key.',
  ip_not_allowed: 'The API key may not be used from this address.',
  key_disabled: keyDisabled().message,
  cross_origin: 'Without an API key, a change must come from a page of this origin.',
  rotation_secret_required: 'This key has a rotation secret, and needs it to rotate itself.',
  rotation_secret_not_configured: 'This key has no rotation secret; rotate it without one, or have it rotated for it.',
  key_not_found: keyNotFound().message,
  key_revoked: keyRevoked().message,
  key_expired: 'The key has expired, and a rotation keeps its expiry; move the expiry first.',
  idempotency_key_spent: 'What this Idempotency-Key stands for was done, and its answer can no longer be given; use a new one.',
  rotation_superseded: 'The key has been rotated again since; the secret of this rotation is no longer active.',
  rotation_in_grace:
    'The secret before the active one is still in its grace period; wait for its end, or rotate with the active one and "emergency": true.',
  secret_in_grace: 'This secret has been replaced. Until it ends it can be used, but it can change nothing; use the new one.',
  retried_without_key: 'A rotation without an Idempotency-Key was repeated.',
  body_too_large: 'The body must be at most 16384 bytes.',
  unsupported_media_type: 'Send the body as application/json, not as text/plain.',
  idempotency_key_mismatch: 'This Idempotency-Key was used for another request; a new request needs a new one.',
  rate_limited: 'Too many requests; try again later.',
  invalid_option: 'An option is not valid.',
  internal_error: 'The server met an unforeseen error.',
  store_unavailable: 'The store did not answer in time.',
  store_misconfigured: 'The store cannot be used at the moment.',
  outcome_unknown: 'The connection to the store was lost at the moment of commit. Repeat the request with the same Idempotency-Key.',
  operators_unavailable: 'At the moment it cannot be found out who is asking.',
}

/** What another action would not say. */
const MESSAGES_OF: { readonly [action in Action]?: { readonly [code in ApiKeyErrorCode]?: string } } = {
  disable: { key_revoked: 'The key is revoked; nothing about it can change any more.' },
  enable: { key_revoked: 'The key is revoked; nothing about it can change any more.' },
  update: { key_revoked: 'The key is revoked; nothing about it can change any more.' },
  get: { invalid_request: 'The path is not well-formed.', insufficient_scope: 'This needs the scope api_keys:read.' },
  list: { invalid_request: pageLimitInvalid().message, insufficient_scope: 'This needs the scope api_keys:read.' },
  events: { invalid_request: pageLimitInvalid().message, insufficient_scope: 'This needs the scope api_keys:read.' },
}

const KEY: ApiKey = {
  id: '0198c3f2-5e7a-7abc-9def-0123456789ab',
  ownerId: 'acme',
  name: 'Billing service',
  environment: 'live',
  scopes: ['reports:read'],
  metadata: { project_id: 'p_1' },
  allowedIps: ['192.0.2.0/24'],
  generation: 2,
  status: 'active',
  createdAt: '2026-01-31T12:00:00.000Z',
  updatedAt: '2026-06-30T12:00:00.000Z',
  expiresAt: '2030-01-31T12:00:00.000Z',
  disabledAt: null,
  revokedAt: null,
  revokedReason: null,
  rotatedTo: null,
  secretStart: 'sk_live_',
  secretLast4: '0000',
  secretCreatedAt: '2026-06-30T12:00:00.000Z',
  lastUsedAt: '2026-06-30T11:59:00.000Z',
  lastUsedIp: '192.0.2.1',
  lastUsedUserAgent: 'curl/8.5.0',
}
const NEW_KEY: ApiKey = {
  ...KEY,
  generation: 1,
  secretCreatedAt: KEY.createdAt,
  updatedAt: KEY.createdAt,
  lastUsedAt: null,
  lastUsedIp: null,
  lastUsedUserAgent: null,
}
const EVENT: KeyEvent = {
  id: '0198c3f2-5e7b-7abc-9def-0123456789ab',
  keyId: KEY.id,
  type: 'key.rotated',
  at: '2026-06-30T12:00:00.000Z',
  actor: `key:${KEY.id}`,
  ip: '192.0.2.1',
  userAgent: 'curl/8.5.0',
  details: { generation: 2 },
}
// Not well-formed, so neither people nor secret scanners take them for real ones.
const ISSUED = { key: KEY, secret: `sk_live_${'0'.repeat(49)}`, rotationSecret: `rot_live_${'0'.repeat(49)}`, replayed: false }
/** What each action hands to `success`. */
export const SAMPLES: Answers = {
  create: { ...ISSUED, key: NEW_KEY },
  rotate: ISSUED,
  revoke: { key: { ...KEY, status: 'revoked', revokedAt: KEY.updatedAt, revokedReason: 'No longer needed' }, replayed: false },
  update: { key: KEY, replayed: false },
  disable: { key: { ...KEY, status: 'disabled', disabledAt: KEY.updatedAt }, replayed: false },
  enable: { key: KEY, replayed: false },
  get: KEY,
  list: { items: [KEY], nextCursor: null },
  events: { items: [EVENT], nextCursor: null },
}
