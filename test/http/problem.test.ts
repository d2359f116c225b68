import express from 'express'
import {
  ApiKeyError,
  type ApiKeyErrorCode,
  bearerAuth,
  contracts,
  createApiKeys,
  idempotencyKey,
  keyRouter,
  memoryStore,
} from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import { secretFormat } from '../../src/core/secret.js'
import { atEnd } from '../support/cleanup.js'
import { exchange, serveContract } from '../support/contract.js'
import { documentOf } from '../support/document.js'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const DOCUMENTATION = 'https://express-api-keys.github.io/reference/errors'

/** Every code that a document of ours shows, but for those that no client ever gets. */
const CODES = [
  ...new Set(
    Object.values(documentOf(contracts.standard).operations).flatMap(({ responses }) =>
      Object.values(responses).flatMap(({ content = {} }) =>
        Object.values(content).flatMap((shown) => Object.keys((shown as { examples?: object }).examples ?? {})),
      ),
    ),
  ),
] as ApiKeyErrorCode[]

test('the type and the title of a failure are the same for every failure of its code, and belong to no other', () => {
  expect(CODES.length).toBeGreaterThan(20)
  const bodies = CODES.map((code) => {
    const [one, other] = ['Why.', 'Why else.'].map((why) => contracts.standard.failure(new ApiKeyError(code, why), { requestId: '' }).body)
    expect(other).toEqual({ ...one, detail: 'Why else.' })
    return one as { type: string; title: string; status: number; code: string }
  })
  for (const { type, title, code } of bodies) {
    expect(type).toBe(`${DOCUMENTATION}#${code}`)
    expect(title).toMatch(/^[A-Z][\w -]{5,50}$/)
  }
  expect(new Set(bodies.map(({ title }) => title)).size).toBe(CODES.length)
})

test('bearerAuth, idempotencyKey and the standard contract answer in one way', async () => {
  const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
  atEnd(() => keys.close())
  const app = express()
  app.use('/keys', keyRouter(keys))
  app.post('/guarded', bearerAuth(keys))
  app.post('/once', idempotencyKey({ required: true }))
  const url = await listen(app)
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const answers = await Promise.all([
    exchange(url, { path: '/keys/self/rotate' }),
    exchange(url, { path: '/guarded' }),
    exchange(url, { path: '/once' }),
    exchange(url, { path: '/keys/self/rotate', secret, headers: ['Idempotency-Key', ''] }),
    exchange(url, { path: '/once', headers: ['Idempotency-Key', ''] }),
  ])
  const seen = answers.map(({ status, body, headers }) => [status, body.type, headers['content-type'], headers['cache-control']])
  const one = (status: number, code: string): unknown[] => [status, `${DOCUMENTATION}#${code}`, 'application/problem+json', 'no-store']
  expect(seen).toEqual([
    one(401, 'credential_missing'),
    one(401, 'credential_missing'),
    one(400, 'idempotency_key_missing'),
    one(400, 'idempotency_key_invalid'),
    one(400, 'idempotency_key_invalid'),
  ])
  expect(answers[3]?.body).toEqual(answers[4]?.body)
})

describe('a contract', () => {
  /** The standard contract, and the errors that its `failure` has been given. */
  function watched(): { contract: Contract; given: ApiKeyError[] } {
    const given: ApiKeyError[] = []
    const contract: Contract = {
      ...contracts.standard,
      failure(error, request) {
        given.push(error)
        return contracts.standard.failure(error, request)
      },
    }
    return { contract, given }
  }

  test('is given an error with the status and the headers of the answer, and nothing that is for the server only', async () => {
    const { contract, given } = watched()
    const { keys, send } = await serveContract(contract, memoryStore(), { failuresPerMinute: 1 })
    // The document has been made from failures too.
    given.length = 0
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', rotationSecret: true })
    const other = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    await keys.revoke({ as: 'application', id: other.key.id })
    await keys.rotate({ as: 'application', id: key.id })
    const sent = [
      { path: '/' },
      { path: '/self/rotate', secret: 'sk_live_none' },
      { path: '/self/rotate', secret },
      { path: '/self/rotate', secret: other.secret },
      { path: `/${key.id}`, method: 'GET', secret },
    ]
    for (const each of sent) {
      const { status, headers } = await send(each)
      const error = given.at(-1) as ApiKeyError
      const { message } = error
      expect([error.status, error.reason, error.keyId, error.cause, error.expose]).toEqual([status, undefined, undefined, undefined, true])
      for (const [name, value] of Object.entries(error.headers)) expect([name, headers[name.toLowerCase()]]).toEqual([name, value])
      expect(Object.keys(error.headers)).toEqual(
        expect.arrayContaining(['Cache-Control', 'WWW-Authenticate'].slice(0, status === 401 ? 2 : 1)),
      )
      expect(given.at(-1)).not.toHaveProperty('cause')
      expect(message).not.toMatch(/(sk|rot)_live_\w{20}/)
    }
    expect(given.map(({ code }) => code)).toContain('rate_limited')
    expect(Number(given.find(({ code }) => code === 'rate_limited')?.headers['Retry-After'])).toBeGreaterThan(1)
  })

  test('is given nothing of what the driver of a store said', async () => {
    const { contract, given } = watched()
    const store = memoryStore()
    const { keys, send } = await serveContract(contract, store)
    const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    given.length = 0
    Object.assign(store, { read: () => Promise.reject(Object.assign(new Error('of the driver'), { parameters: [secret] })) })
    expect((await send({ path: '/self/rotate', secret })).status).toBe(503)
    expect(given).toHaveLength(1)
    expect(given[0]).toMatchObject({ code: 'store_unavailable', status: 503, headers: { 'Retry-After': '1' } })
    expect(given[0]).not.toHaveProperty('cause')
  })

  test('may change the error that it is given, and no other request sees it', async () => {
    const seen: string[] = []
    const failure: Contract['failure'] = (error, { requestId }) => {
      seen.push(error.message)
      error.message += ` [${requestId}]`
      expect(() => Object.assign(error.headers, { 'X-Leak': requestId })).toThrow(TypeError)
      return contracts.standard.failure(error, { requestId })
    }
    const broken = { ...memoryStore(), read: () => Promise.reject(new TypeError('a bug')) }
    const { url } = await serveContract({ ...contracts.standard, failure }, broken)
    seen.length = 0
    for (let n = 0; n < 2; n++) {
      const answer = await exchange(url, {
        path: `${contracts.standard.path}/self/rotate`,
        secret: secretFormat('sk', true).mint('sk_live_').secret,
      })
      expect([answer.status, answer.headers['x-leak']]).toEqual([500, undefined])
    }
    expect(seen).toEqual(Array(2).fill('The server met an unforeseen error.'))
  })

  test.each<[string, unknown]>([
    ['the status 101', { status: 101, body: {} }],
    ['the status 200', { status: 200, body: {} }],
    ['a status that is a text', { status: '401', body: {} }],
    ['a status that is none', { status: Number.NaN, body: {} }],
    ['a body without a form in JSON', { body: { toJSON: () => undefined } }],
  ])('whose failure() has %s gets a plain 500 instead', async (_what, made) => {
    const told: ApiKeyError[] = []
    const contract = { ...contracts.standard, failure: () => made } as unknown as Contract
    const { url } = await serveContract(contract, memoryStore(), { onError: (error) => told.push(error) })
    const answer = await exchange(url, { path: `${contract.path}/self/rotate` })
    expect([answer.status, answer.body.code, answer.headers['www-authenticate']]).toEqual([500, 'internal_error', undefined])
    expect(told.map(({ message }) => message)).toEqual(["The contract's failure() has failed."])
  })

  test('answers an error of another installed copy of the package, which knew no headers, by its code', async () => {
    const foreign = new ApiKeyError('store_unavailable', 'Away.')
    for (const member of ['headers', 'status', 'expose']) Object.defineProperty(foreign, member, { value: undefined })
    const { url } = await serveContract(contracts.standard, { ...memoryStore(), read: () => Promise.reject(foreign) })
    const answer = await exchange(url, {
      path: `${contracts.standard.path}/self/rotate`,
      secret: secretFormat('sk', true).mint('sk_live_').secret,
    })
    expect([answer.status, answer.body.status, answer.headers['retry-after']]).toEqual([503, 503, '1'])
  })

  test('that chooses another status gets the headers of that one', async () => {
    const failure: Contract['failure'] = (error) => ({ status: error.status === 401 ? 404 : 429, body: {} })
    const { url } = await serveContract({ ...contracts.standard, failure }, memoryStore())
    const missing = await exchange(url, { path: '/v1/api-keys/self/rotate' })
    expect([missing.status, missing.headers['www-authenticate']]).toEqual([404, undefined])
    const malformed = await exchange(url, { path: '/v1/api-keys/self/rotate', secret: 'a b' })
    expect([malformed.status, malformed.headers['retry-after']]).toEqual([429, '1'])
  })
})
