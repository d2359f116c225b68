import express from 'express'
import { ApiKeyError } from 'express-api-keys'
import { listen } from './support/listen.js'

test.each([
  ['invalid_key', 401, true, { 'WWW-Authenticate': 'Bearer realm="api", error="invalid_token"' }],
  ['credential_missing', 401, true, { 'WWW-Authenticate': 'Bearer realm="api"' }],
  ['insufficient_scope', 403, true, { 'WWW-Authenticate': 'Bearer realm="api", error="insufficient_scope"' }],
  ['key_not_found', 404, true, {}],
  ['rate_limited', 429, true, { 'Retry-After': '1' }],
  ['internal_error', 500, false, {}],
  ['store_unavailable', 503, false, { 'Retry-After': '1' }],
  ['store_misconfigured', 503, false, { 'Retry-After': '30' }],
] as const)('an ApiKeyError of code %s says what Express and http-errors look for', (code, status, expose, headers) => {
  const error = new ApiKeyError(code, 'Why.')
  expect([error.status, error.expose, error.headers]).toEqual([status, expose, { 'Cache-Control': 'no-store', ...headers }])
})

test('an ApiKeyError that is sent as JSON tells no client why its key was refused, and has headers that can be sent', () => {
  const error = new ApiKeyError('invalid_key', 'Why.', { reason: 'revoked', keyId: 'id', headers: { 'X-Odd': 'a\r\nb: ü' } })
  expect([error.reason, error.keyId]).toEqual(['revoked', 'id'])
  expect(JSON.parse(JSON.stringify({ ...error }))).toEqual({
    ...{ name: 'ApiKeyError', code: 'invalid_key', status: 401, expose: true, headers: { 'X-Odd': 'a  b:  ' } },
  })
  expect(Object.isFrozen(new ApiKeyError('internal_error', 'Why.').headers)).toBe(true)
})

test('the error handler of Express answers one with its status and its headers', async () => {
  const app = express()
  app.get('/', (_req, _res, next) => next(new ApiKeyError('store_unavailable', 'The store did not answer in time.')))
  const answer = await fetch(await listen(app))
  expect([answer.status, answer.headers.get('retry-after'), answer.headers.get('cache-control')]).toEqual([503, '1', 'no-store'])
})
