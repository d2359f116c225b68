import type { Contract } from 'express-api-keys/contract'

/** A contract of our own: credentials are renewed in the words of JSON:API (https://jsonapi.org/format/1.1/). */
export const jsonApi: Contract = {
  name: 'jsonApi',
  path: '/partners/v1/credentials',
  routes: [
    {
      method: 'post',
      path: '/:credential/renewals',
      action: 'rotate',
      requires: ['idempotencyKey'],
      limit: { max: 10, windowMs: 3_600_000, by: 'credential' },
      status: 201,
      success: ({ key, secret }) => ({
        data: {
          type: 'credentials',
          id: key.id,
          attributes: { name: key.name, secret, revision: key.generation, renewedAt: key.updatedAt },
        },
      }),
    },
  ],
  failure: ({ code, status, message }) => ({
    contentType: 'application/vnd.api+json',
    body: { errors: [{ status: String(status), code, detail: message }] },
  }),
}
