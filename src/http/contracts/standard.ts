import type { ChangeResult, IssuedKey } from '../../core/api-keys.js'
import { type Contract, instant, object, oneOf, orNull, type Schema, text, texts, uuid } from '../contract.js'
import { problem } from '../problem.js'

const keySchema: Schema = object({
  id: uuid,
  ownerId: text,
  name: text,
  environment: oneOf('live', 'test'),
  scopes: texts,
  metadata: { type: 'object' },
  allowedIps: { type: ['array', 'null'], items: text },
  generation: { type: 'integer', minimum: 1 },
  status: oneOf('active', 'disabled', 'expired', 'revoked'),
  createdAt: instant,
  updatedAt: instant,
  expiresAt: orNull(instant),
  disabledAt: orNull(instant),
  revokedAt: orNull(instant),
  revokedReason: orNull(text),
  rotatedTo: orNull(uuid),
  secretStart: text,
  secretLast4: text,
  secretCreatedAt: instant,
  lastUsedAt: orNull(instant),
  lastUsedIp: orNull(text),
  lastUsedUserAgent: orNull(text),
})
const issuedSchema = object({ key: keySchema, secret: text, rotationSecret: text, acceptedUntil: instant }, [
  'rotationSecret',
  'acceptedUntil',
])
const changedSchema = object({ key: keySchema, acceptedUntil: instant }, ['acceptedUntil'])
const eventSchema = object({
  id: uuid,
  keyId: uuid,
  type: text,
  at: instant,
  actor: text,
  ip: orNull(text),
  userAgent: orNull(text),
  details: { type: 'object' },
})
const cursor = orNull(text)

/** Our own contract: everything about keys, and failures as problem details (RFC 9457). */
export const standard: Contract = {
  name: 'standard',
  path: '/v1/api-keys',
  operators: true,
  routes: [
    {
      method: 'post',
      path: '/',
      action: 'create',
      fields: ['name', 'environment', 'scopes', 'metadata', 'allowedIps', 'expiresAt', 'rotationSecret', 'ownerId'],
      status: 201,
      success: issued,
      summary: 'Create a key',
      schema: issuedSchema,
    },
    {
      method: 'get',
      path: '/',
      action: 'list',
      status: 200,
      success: ({ items, nextCursor }) => ({ keys: items, nextCursor }),
      summary: 'List keys, newest first',
      schema: object({ keys: { type: 'array', items: keySchema }, nextCursor: cursor }),
    },
    {
      method: 'get',
      path: '/self',
      action: 'get',
      status: 200,
      success: (key) => ({ key }),
      summary: 'Get the key that is calling',
      schema: object({ key: keySchema }),
    },
    {
      method: 'post',
      path: '/self/rotate',
      action: 'rotate',
      rotatesRotationSecret: true,
      fields: ['rotationSecret', 'retire', 'emergency', 'expiresAt'],
      status: 200,
      success: issued,
      summary: 'Rotate the key that is calling',
      schema: issuedSchema,
    },
    {
      method: 'post',
      path: '/:id/rotate',
      action: 'rotate',
      rotatesRotationSecret: true,
      fields: ['rotationSecret', 'retire', 'emergency', 'expiresAt'],
      status: 200,
      success: issued,
      summary: 'Rotate a key',
      schema: issuedSchema,
    },
    {
      method: 'post',
      path: '/self/revoke',
      action: 'revoke',
      fields: ['reason'],
      status: 200,
      success: changed,
      summary: 'Revoke the key that is calling, for good',
      schema: changedSchema,
    },
    {
      method: 'post',
      path: '/:id/revoke',
      action: 'revoke',
      fields: ['reason'],
      status: 200,
      success: changed,
      summary: 'Revoke a key for good',
      schema: changedSchema,
    },
    {
      method: 'post',
      path: '/:id/disable',
      action: 'disable',
      fields: ['reason'],
      status: 200,
      success: changed,
      summary: 'Disable a key until it is enabled again',
      schema: changedSchema,
    },
    {
      method: 'post',
      path: '/:id/enable',
      action: 'enable',
      fields: ['reason'],
      status: 200,
      success: changed,
      summary: 'Enable a key that was disabled',
      schema: changedSchema,
    },
    {
      method: 'get',
      path: '/:id/events',
      action: 'events',
      status: 200,
      success: ({ items, nextCursor }) => ({ events: items, nextCursor }),
      summary: 'Read the audit trail of a key, newest first',
      schema: object({ events: { type: 'array', items: eventSchema }, nextCursor: cursor }),
    },
    {
      method: 'get',
      path: '/:id',
      action: 'get',
      status: 200,
      success: (key) => ({ key }),
      summary: 'Get a key',
      schema: object({ key: keySchema }),
    },
    {
      method: 'patch',
      path: '/:id',
      action: 'update',
      fields: ['name', 'scopes', 'metadata', 'allowedIps', 'expiresAt'],
      status: 200,
      success: changed,
      summary: 'Change a key',
      schema: changedSchema,
    },
  ],
  failure: problem,
  failureSchema: object({
    type: { type: 'string', description: 'The address of what explains the code.' },
    title: { type: 'string', description: 'The same for every failure with this code.' },
    status: { type: 'integer' },
    code: { type: 'string', description: 'Stable, for programs.' },
    detail: { type: 'string', description: 'For people.' },
  }),
}

function issued({ key, secret, rotationSecret, acceptedUntil }: IssuedKey): object {
  return {
    key,
    secret,
    ...(rotationSecret === undefined ? {} : { rotationSecret }),
    ...(acceptedUntil === undefined ? {} : { acceptedUntil }),
  }
}

function changed({ key, acceptedUntil }: ChangeResult): object {
  return { key, ...(acceptedUntil === undefined ? {} : { acceptedUntil }) }
}
