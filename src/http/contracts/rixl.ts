import type { ApiKey } from '../../core/key.js'
import { type Contract, instant, object, text, uuid } from '../contract.js'
import { bare, bearer } from '../source.js'
import { publishedStatus } from './published.js'

const FIELDS = {
  created_at: instant,
  expiring_at: instant,
  id: uuid,
  last_used: instant,
  name: text,
  org_id: text,
  project_id: text,
  project_name: text,
  secret: text,
}

/** The rotate API of Rixl: every field is an optional string, and the token may come without a scheme. */
export const rixl: Contract = {
  name: 'rixl',
  path: '/platform/api-keys',
  from: [bearer(), bare()],
  delegation: 'open',
  routes: [
    {
      method: 'post',
      path: '/:keyId/rotate',
      action: 'rotate',
      status: 200,
      success: ({ key, secret }) => ({
        api_key: {
          created_at: key.createdAt,
          ...(key.expiresAt === null ? {} : { expiring_at: key.expiresAt }),
          id: key.id,
          ...(key.lastUsedAt === null ? {} : { last_used: key.lastUsedAt }),
          name: key.name,
          ...fromMetadata(key, 'org_id', 'project_id', 'project_name'),
          secret,
        },
      }),
      summary: 'Rotate a key',
      schema: object({ api_key: object(FIELDS, Object.keys(FIELDS)) }),
    },
  ],
  failure: ({ code, message }) => ({ status: publishedStatus(code), body: { error: { code, message } } }),
  failureSchema: object({ error: object({ code: text, message: text }) }),
}

/** The members of the metadata that are strings. */
function fromMetadata({ metadata }: ApiKey, ...names: readonly string[]): object {
  return Object.fromEntries(names.flatMap((name) => (typeof metadata[name] === 'string' ? [[name, metadata[name]]] : [])))
}
