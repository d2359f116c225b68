import type { ApiKeyErrorCode } from '../../errors.js'
import { type Contract, instant, object, oneOf, orNull, text, texts, uuid } from '../contract.js'
import { publishedStatus } from './published.js'

const CODES: { readonly [code in ApiKeyErrorCode]?: string } = {
  credential_missing: 'UNAUTHORIZED',
  credential_malformed: 'UNAUTHORIZED',
  invalid_key: 'UNAUTHORIZED',
  insufficient_scope: 'FORBIDDEN',
  key_id_invalid: 'NOT_FOUND',
  key_not_found: 'NOT_FOUND',
}

/** The rotate API of Reddit Find: any key of the owner, by a key that has `api_keys:write`. */
export const redditFind: Contract = {
  name: 'redditFind',
  path: '/api/open/v1/keys',
  delegation: 'open',
  routes: [
    {
      method: 'post',
      path: '/:key_id/rotate',
      action: 'rotate',
      caller: 'writer',
      limit: { max: 60, windowMs: 60_000, by: 'credential' },
      status: 200,
      success: ({ key, secret }) => ({
        object: 'open_api.key.rotate',
        key: {
          id: key.id,
          name: key.name,
          environment: key.environment,
          scopes: key.scopes,
          status: key.status,
          tokenPrefix: key.secretStart,
          tokenLast4: key.secretLast4,
          maskedToken: `${key.secretStart}...${key.secretLast4}`,
          createdAt: key.createdAt,
          updatedAt: key.updatedAt,
          lastUsedAt: key.lastUsedAt,
          lastUsedIp: key.lastUsedIp,
          lastUsedUserAgent: key.lastUsedUserAgent,
          revokedAt: key.revokedAt,
        },
        token: secret,
      }),
      summary: 'Rotate a key',
      schema: object({
        object: { const: 'open_api.key.rotate' },
        key: object({
          id: uuid,
          name: text,
          environment: oneOf('test', 'live'),
          scopes: texts,
          status: oneOf('active', 'revoked'),
          tokenPrefix: text,
          tokenLast4: text,
          maskedToken: text,
          createdAt: instant,
          updatedAt: instant,
          lastUsedAt: orNull(instant),
          lastUsedIp: orNull(text),
          lastUsedUserAgent: orNull(text),
          revokedAt: orNull(instant),
        }),
        token: text,
      }),
    },
  ],
  failure({ code, message }) {
    return {
      status: code === 'key_id_invalid' ? 404 : publishedStatus(code),
      body: { error: { code: CODES[code] ?? code.toUpperCase(), message } },
    }
  },
  failureSchema: object({ error: object({ code: text, message: text }) }),
}
