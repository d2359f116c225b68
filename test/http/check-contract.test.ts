import { ApiKeyError, contracts, createApiKeys, keyRouter, memoryStore, openApiDocument } from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'

const keys = createApiKeys({ store: memoryStore(), serverSecret: 'x'.repeat(32) })
const [rotate] = contracts.suwappu.routes

test.each(Object.entries(contracts))('%s is a contract', (_name, contract) => {
  expect(() => keyRouter(keys, { contract })).not.toThrow()
})

test.each<[string, object]>([
  ['contract must be a contract', { routes: 5 }],
  ['Write "failure" instead', { failur: () => ({ body: {} }) }],
  ['name must be one word', { name: 'a b' }],
  ['path must begin with "/"', { path: 'keys' }],
  ['routes must hold a route', { routes: [] }],
  ['failure must be a function', { failure: undefined }],
  ['from takes bearer()', { from: 'Bearer' }],
  ['from is an empty list', { from: [] }],
  ['delegation must be "bounded" or "open"', { delegation: 'closed' }],
])('a broken contract is refused at start-up: %s', (rule, broken) => {
  refused({ ...contracts.suwappu, ...broken } as Contract, rule)
})

test.each<[string, object]>([
  ['action must be one of create, rotate', { action: 'spin' }],
  ['action must be one of', { action: 'toString' }],
  ['method must be post or patch for the action rotate', { method: 'delete' }],
  ['method must be post or patch', { method: 'POST' }],
  ['method must be post or patch', { method: 'get' }],
  ['method must be get for the action list', { action: 'list' }],
  ['path must begin with "/"', { path: 'rotate' }],
  ['status must be that of a success', { status: undefined }],
  ['status must be that of a success', { status: 404 }],
  ['success must be a function', { success: undefined }],
  ['fields must be a list of name', { fields: ['nme'] }],
  ['requires must be a list of "idempotencyKey"', { requires: ['Idempotency-Key'] }],
  ['requires must be a list', { requires: 'idempotencyKey' }],
  ['caller must be "writer"', { caller: 'self' }],
  ['identity must be "same" or "successor"', { identity: 'new' }],
  ['rotatesRotationSecret must be true or false', { rotatesRotationSecret: 1 }],
  ['Write "requires" instead', { require: ['idempotencyKey'] }],
  ['limit.max must be a whole number', { limit: { max: 0, windowMs: 1_000, by: 'ip' } }],
  ['limit.windowMs must be a whole number', { limit: { max: 1, windowMs: -1, by: 'ip' } }],
  ['limit.by must be "ip" or "credential"', { limit: { max: 1, windowMs: 1_000, by: 'key' } }],
  ['Write "max" instead', { limit: { mx: 1, windowMs: 1_000, by: 'ip' } }],
])('a broken route is refused at start-up, and named: %s', (rule, broken) => {
  refused({ ...contracts.suwappu, routes: [{ ...rotate, ...broken }] } as Contract, rule)
})

function refused(contract: Contract, rule: string): void {
  for (const use of [() => keyRouter(keys, { contract }), () => openApiDocument(contract)]) {
    expect(use).toThrow(ApiKeyError)
    expect(use).toThrow(expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining(rule) }))
  }
}
