/** What users write, for the compilers that they have; never run. */
import type { RequestHandler } from 'express'
import {
  type ApiKey,
  ApiKeyError,
  type ApiKeyErrorCode,
  type ApiKeys,
  anyOf,
  apiKeyOf,
  bearer,
  bearerAuth,
  contracts,
  createApiKeys,
  type Denial,
  idempotencyKey,
  type KeyHappening,
  keyRouter,
  type Login,
  memoryStore,
  type Store,
} from 'express-api-keys'
import { type Contract, type Failure, object, type Schema, text } from 'express-api-keys/contract'
import { operatorJwt } from 'express-api-keys/jwt'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { sqlStore } from 'express-api-keys/sql'
import { sqliteStore } from 'express-api-keys/sqlite'
import { cacheContract, storeContract, type TestApiKeys, type TestKey, testApiKeys, turnedClock } from 'express-api-keys/testing'
import { Redis } from 'ioredis'

interface Plan {
  plan: 'free' | 'paid'
  seats?: number
}

const secret = 'x'.repeat(32)
export const entries: readonly unknown[] = [postgresStore, sqliteStore, sqlStore, operatorJwt, storeContract, cacheContract]
export const shared: ApiKeys = createApiKeys({ store: memoryStore(), cache: redisCache(new Redis()), serverSecret: secret })
export const store: Store = memoryStore({ now: turnedClock().wallMs })
const keys = createApiKeys({ store, serverSecret: secret, leaseMs: 500, clock: turnedClock() })
const typed = createApiKeys<Plan>({ store, serverSecret: secret })
export const handlers: RequestHandler[] = [bearerAuth(keys, { scope: ['a', 'b'] }), idempotencyKey({ required: true })]
const login: Login = { from: bearer(), use: (_req, _res, next) => next(), signedIn: async (req) => req.headers.cookie !== undefined }
export const mixed: RequestHandler = anyOf(bearerAuth(keys), login, { signedIn: () => false })
export const typedHandlers: RequestHandler[] = [bearerAuth(typed), keyRouter(typed)]
export const router: RequestHandler = keyRouter(keys, { contract: contracts.standard, retryWithoutKey: true })
/** Options that an application may or may not have. */
export const perhaps = (limits: boolean | undefined, leaseMs: number | undefined): RequestHandler =>
  keyRouter(createApiKeys({ store, serverSecret: secret, leaseMs, cache: undefined, onError: undefined }), { limits, operators: undefined })
export const contract: Contract = contracts.agents
export const code: ApiKeyErrorCode = 'secret_in_grace'

/** A helper as people type it. */
export function app(given: ReturnType<typeof createApiKeys>): ApiKeys {
  return given
}
app(keys)
app(createApiKeys({ store, serverSecret: secret }))

export const owner: RequestHandler = (req, res) => {
  const key: ApiKey | undefined = req.apiKey
  const given: string | undefined = req.idempotencyKey
  res.json([key?.ownerId, given])
}

export const paid: RequestHandler = (req, res) => {
  const key: ApiKey<Plan> = apiKeyOf<Plan>(req)
  const ownerId: string = apiKeyOf(req).ownerId
  res.json([ownerId, key.metadata.seats])
}

/** An error handler as people have it. */
export function told(error: unknown): [number, Record<string, string>, boolean] {
  return error instanceof ApiKeyError ? [error.status, { ...error.headers }, error.expose] : [500, {}, false]
}

export const own: Contract = {
  ...contracts.standard,
  failure: ({ code: why, status }): Failure => ({ body: { status, why } }),
  failureSchema: object({ status: { type: 'integer' }, why: text }) satisfies Schema,
}

export async function use(): Promise<string> {
  const metadata: Plan = { plan: 'free' }
  await keys.create({ as: 'application', ownerId: 'acme', name: 'ci', metadata })
  const { key } = await typed.create({ as: 'application', ownerId: 'acme', name: 'ci', metadata })
  const plan: 'free' | 'paid' = key.metadata.plan
  // @ts-expect-error the metadata are those that were named
  await typed.create({ as: 'application', ownerId: 'acme', name: 'ci', metadata: { plan: 'none' } })
  // @ts-expect-error metadata whose type has required members cannot be left out
  await typed.create({ as: 'application', ownerId: 'acme', name: 'ci' })
  await createApiKeys<{ plan?: string }>({ store, serverSecret: secret }).create({ as: 'application', ownerId: 'acme', name: 'ci' })
  // @ts-expect-error nobody is the application by omission
  await keys.rotate({ id: key.id })
  // @ts-expect-error undefined is nobody
  await keys.revoke({ as: undefined, id: key.id })
  await keys.update({ as: { secret }, changes: { name: plan }, origin: { ip: '192.0.2.1' } })
  const result = await keys.verify('x')
  if (!result.ok) {
    const reason: 'malformed' | 'unknown' | 'expired' | 'revoked' | 'rotated' | 'disabled' | 'ip_not_allowed' = result.reason
    return reason
  }
  return (await keys.rotate({ as: 'application', id: result.key.id })).secret
}

export async function tested(): Promise<string> {
  const { clock, issue, close }: TestApiKeys<Plan> = await testApiKeys<Plan>({ leaseMs: 250 })
  const { key, headers }: TestKey<Plan> = await issue({ metadata: { plan: 'free' } })
  clock.advance(250)
  await close()
  return `${headers.Authorization} ${key.metadata.plan satisfies 'free' | 'paid'}`
}

export const endings: (() => void)[] = [
  keys.on('denied', ({ code: why, reason, keyId, origin }: Denial) => console.log(why satisfies ApiKeyErrorCode, reason, keyId, origin.ip)),
  keys.on('denied', (denial) => console.log(denial.code, denial.reason)),
  keys.on('rotated', ({ event, key }: KeyHappening) => console.log(event.actor, key.name)),
]

// @ts-expect-error a misspelt option is a type error
createApiKeys({ stroe: memoryStore(), serverSecret: '' })
