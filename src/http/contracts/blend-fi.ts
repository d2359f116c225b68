import { type Contract, instant, object, text, texts, uuid } from '../contract.js'
import { publishedStatus } from './published.js'

/** The rotate API of BlendFi: a new key replaces the old one. */
export const blendFi: Contract = {
  name: 'blendFi',
  path: '/v1/api-keys',
  requestId: true,
  delegation: 'open',
  routes: [
    {
      method: 'post',
      path: '/:id/rotate',
      action: 'rotate',
      requires: ['idempotencyKey'],
      identity: 'successor',
      status: 200,
      success: ({ key, secret }) => ({
        id: key.id,
        key_prefix: secret.slice(0, 8),
        api_key: secret,
        capabilities: key.scopes,
        name: key.name,
        created_at: key.createdAt,
      }),
      summary: 'Replace a key by a new one',
      schema: object({
        id: uuid,
        key_prefix: { type: 'string', minLength: 8, maxLength: 8 },
        api_key: text,
        capabilities: texts,
        name: text,
        created_at: instant,
      }),
    },
  ],
  failure({ code, message }, { requestId }) {
    return { status: publishedStatus(code), body: { code, message, request_id: requestId, details: {} } }
  },
  failureSchema: object({ code: text, message: text, request_id: text, details: { type: 'object' } }),
}
