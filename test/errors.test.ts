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

test('the error handler of Express answers one with its status and its headers', async () => {
  const app = express()
  app.get('/', (_req, _res, next) => next(new ApiKeyError('store_unavailable', 'The store did not answer in time.')))
  const answer = await fetch(await listen(app))
  expect([answer.status, answer.headers.get('retry-after'), answer.headers.get('cache-control')]).toEqual([503, '1', 'no-store'])
})
