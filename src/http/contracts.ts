import type { IssuedKey } from '../core/api-keys.js'
import type { Contract } from './contract.js'
import { problem } from './problem.js'

/** Our own contract: everything about keys, failures as problem details (RFC 9457). */
const standard: Contract = {
  name: 'standard',
  routes: [
    {
      method: 'post',
      path: '/',
      action: 'create',
      fields: ['name', 'environment', 'scopes', 'metadata', 'expiresAt'],
      status: 201,
      success: issued,
    },
    { method: 'get', path: '/', action: 'list', status: 200, success: ({ items, nextCursor }) => ({ keys: items, nextCursor }) },
    { method: 'post', path: '/self/rotate', action: 'rotate', status: 200, success: issued },
    { method: 'post', path: '/:id/rotate', action: 'rotate', status: 200, success: issued },
    { method: 'post', path: '/:id/revoke', action: 'revoke', fields: ['reason'], status: 200, success: ({ key }) => ({ key }) },
    {
      method: 'get',
      path: '/:id/events',
      action: 'events',
      status: 200,
      success: ({ items, nextCursor }) => ({ events: items, nextCursor }),
    },
    { method: 'get', path: '/:id', action: 'get', status: 200, success: (key) => ({ key }) },
    {
      method: 'patch',
      path: '/:id',
      action: 'update',
      fields: ['name', 'scopes', 'metadata', 'expiresAt'],
      status: 200,
      success: ({ key }) => ({ key }),
    },
  ],
  failure: problem,
}

/** The contracts that come with the package. */
export const contracts: { readonly standard: Contract } = { standard }

function issued({ key, secret, acceptedUntil }: IssuedKey): object {
  return { key, secret, ...(acceptedUntil === undefined ? {} : { acceptedUntil }) }
}
