import type { ApiKeyErrorCode } from '../../errors.js'
import { type Contract, instant, object, text, texts, uuid } from '../contract.js'

/** What its page has no status for. */
const STATUS: { readonly [code in ApiKeyErrorCode]?: number } = { body_too_large: 400, unsupported_media_type: 400 }

/** The rotate API of BlendFi: a new key takes the old one's place. */
export const blendFi: Contract = {
  name: 'blendFi',
  path: '/v1/api-keys',
  requestId: true,
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
    const status = STATUS[code]
    return { ...(status === undefined ? {} : { status }), body: { code, message, request_id: requestId, details: {} } }
  },
  failureSchema: object({ code: text, message: text, request_id: text, details: { type: 'object' } }),
}
