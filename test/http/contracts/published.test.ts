import { ApiKeyError, type ApiKeyErrorCode, contracts } from 'express-api-keys'
import type { Failure } from 'express-api-keys/contract'

const { standard, ...published } = contracts

test.each(Object.values(published))('$name knows a bad credential by one status, whatever is wrong with it', ({ failure }) => {
  const codes = ['credential_missing', 'credential_malformed', 'invalid_key'] as const
  expect(codes.map((code) => statusOf(failure, code))).toEqual([401, 401, 401])
  expect(codes.map((code) => statusOf(standard.failure, code))).toEqual([401, 400, 401])
})

test.each(Object.values(published))(
  '$name has no status but those of its page, and those that tell a client what to do next',
  ({ name, failure }) => {
    const known: { readonly [code in ApiKeyErrorCode]?: number } = {
      ...{ invalid_request: 400, body_too_large: 400, unsupported_media_type: 400 },
      ...{ idempotency_key_missing: 400, idempotency_key_invalid: 400, rotation_secret_missing: 400 },
      ...{ insufficient_scope: 403, rotation_secret_required: 403, rotation_secret_not_configured: 403 },
      ...{ key_expired: 409, idempotency_key_spent: 409, rotation_superseded: 409, rotation_in_grace: 409 },
      ...{ key_not_found: 404, idempotency_key_mismatch: 422, rate_limited: 429, internal_error: 500 },
      ...{ store_unavailable: 503, outcome_unknown: 503 },
      key_id_invalid: name === 'redditFind' ? 404 : 400,
      key_revoked: name === 'agents' ? 403 : 409,
    }
    for (const [code, status] of Object.entries(known)) expect([code, statusOf(failure, code)]).toEqual([code, status])
  },
)

test.each(Object.values(contracts))('$name answers 500, in its own shape, to a code that it has never heard of', ({ name, failure }) => {
  const code = 'new_in_another_version'
  const said = failure(new ApiKeyError(code as ApiKeyErrorCode, 'Something new.'), { requestId: 'r' })
  expect(statusOf(failure, code)).toBe(500)
  const bodies: { readonly [name: string]: object } = {
    standard: {
      type: `https://express-api-keys.github.io/reference/errors#${code}`,
      title: 'Internal error',
      status: 500,
      code,
      detail: 'Something new.',
    },
    redditFind: { error: { code: 'NEW_IN_ANOTHER_VERSION', message: 'Something new.' } },
    agents: { error: { code, message: 'Something new.' } },
    rixl: { error: { code, message: 'Something new.' } },
    suwappu: { success: false, error: 'Key rotation failed' },
    blendFi: { code, message: 'Something new.', request_id: 'r', details: {} },
  }
  expect(said.body).toEqual(bodies[name])
})

test('write scopes reach every key of the owner where the published page has a key in its path, and nowhere else', () => {
  const reach = Object.entries(contracts).map(([name, { delegation = 'bounded' }]) => [name, delegation])
  expect(Object.fromEntries(reach)).toEqual({
    standard: 'bounded',
    redditFind: 'open',
    agents: 'bounded',
    rixl: 'open',
    suwappu: 'bounded',
    blendFi: 'open',
  })
})

function statusOf(failure: (error: ApiKeyError, request: { requestId: string }) => Failure, code: string): number {
  const error = new ApiKeyError(code as ApiKeyErrorCode, 'Why.')
  return failure(error, { requestId: 'r' }).status ?? error.status
}
