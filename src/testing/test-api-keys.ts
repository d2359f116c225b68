import type { ApiKeys, ApiKeysOptions, CreateCommand, IssuedKey } from '../core/api-keys.js'
import { createApiKeys } from '../core/create-api-keys.js'
import type { CreateInput } from '../core/key.js'
import { ApiKeyError } from '../errors.js'
import { clearTimeout, setTimeout } from '../real-time.js'
import { memoryStore } from '../store/memory.js'
import type { JsonObject } from '../store/store.js'
import { TestClock, type TurnedClock } from './turned-clock.js'

/** What `createApiKeys` takes, but for what a test has already: a store in memory, a clock and a server secret. */
export type TestApiKeysOptions = Omit<ApiKeysOptions, 'store' | 'clock' | 'serverSecret'>

/** An issued key, and the headers of a request that presents it. */
export interface TestKey<Metadata extends object = JsonObject> extends IssuedKey<Metadata> {
  /** `{ Authorization: 'Bearer sk_live_…' }`, for fetch, supertest's `set` and the like. */
  readonly headers: { readonly Authorization: string }
}

/** API keys for one test. */
export interface TestApiKeys<Metadata extends object = JsonObject> {
  /** Give these to the application under test. */
  readonly keys: ApiKeys<Metadata>
  /**
   * The time of `keys` and of their store. It stands still until a test turns it with `advance(ms)`, which ends leases, grace periods and keys. Only what
   * waits moves it: a refusal that is held back for 250 ms, say, is held back in real time, and the clock is then 250 ms further.
   */
  readonly clock: TurnedClock
  /** Issues a key. Its owner is `test-owner` and its name `test key`, unless the input says otherwise; the rest defaults as for `keys.create`. */
  issue(input?: Partial<CreateInput<Metadata>>): Promise<TestKey<Metadata>>
  /** Closes `keys`. `await using` does it too. */
  close(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Makes API keys for a test: `createApiKeys` over an empty store in memory, already migrated, with a clock that the test turns. It needs no database and no
 * test runner in particular. Each call has keys of its own, so tests can run side by side.
 *
 * ```ts
 * import request from 'supertest'
 * import { testApiKeys } from 'express-api-keys/testing'
 * import { createApp } from '../src/app.js' // your application: it takes `keys`, and mounts bearerAuth(keys, { scope: 'reports:read' })
 *
 * test('reports need their scope, until the key expires', async () => {
 *   const { keys, clock, issue, close } = await testApiKeys()
 *   const app = createApp({ keys })
 *   const reader = await issue({ scopes: ['reports:read'], expiresAt: new Date(clock.wallMs() + 60_000) })
 *   const stranger = await issue()
 *
 *   await request(app).get('/v1/reports').expect(401)
 *   await request(app).get('/v1/reports').set(stranger.headers).expect(403)
 *   await request(app).get('/v1/reports').set(reader.headers).expect(200)
 *   clock.advance(60_000)
 *   await request(app).get('/v1/reports').set(reader.headers).expect(401)
 *   await close()
 * })
 * ```
 *
 * @param options as for `createApiKeys`, such as `{ prefix: 'acme', leaseMs: 250 }`.
 * @throws ApiKeyError `invalid_option` as `createApiKeys` does, and for a store, a clock or a server secret.
 */
export async function testApiKeys<Metadata extends object = JsonObject>(options: TestApiKeysOptions = {}): Promise<TestApiKeys<Metadata>> {
  for (const name of ['store', 'clock', 'serverSecret']) {
    if (name in options)
      throw new ApiKeyError('invalid_option', `testApiKeys has a ${name} of its own. To bring yours, call createApiKeys.`)
  }
  const clock = new PatientClock()
  const store = memoryStore({ now: clock.wallMs })
  const keys = createApiKeys<Metadata>({ ...options, store, clock, serverSecret: 'the-server-secret-of-a-test-0123456789' })
  await keys.migrate()
  const close = (): Promise<void> => keys.close()
  return {
    keys,
    clock,
    async issue(input = {}) {
      // Metadata may be left out here whatever its type: a test that needs none need not invent some.
      const command = { as: 'application', ownerId: 'test-owner', name: 'test key', ...input } as CreateCommand<Metadata>
      const issued = await keys.create(command)
      return Object.assign(issued, { headers: { Authorization: `Bearer ${issued.secret}` } })
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

/** A sleep ends in real time too, and takes the clock along: otherwise a request that is held back would hang in a test that never turns the clock. */
class PatientClock extends TestClock {
  override async sleep(ms: number): Promise<void> {
    const until = this.monotonicMs() + ms
    const timer = setTimeout(() => this.advance(Math.max(0, until - this.monotonicMs())), ms)
    await super.sleep(ms)
    clearTimeout(timer)
  }
}
