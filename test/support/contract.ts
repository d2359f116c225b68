import { request } from 'node:http'
import express from 'express'
import {
  type ApiKeys,
  type ApiKeysOptions,
  bearerAuth,
  createApiKeys,
  keyRouter,
  memoryStore,
  type OperatorOf,
  type Operators,
  openApiDocument,
  type Store,
} from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import { atEnd } from './cleanup.js'
import { documentOf } from './document.js'
import { listen } from './listen.js'
import { SERVER_SECRET } from './process.js'
import { stores } from './stores.js'

/** A response whose status, type, headers and body the OpenAPI document of the contract has been held against. */
export interface Checked {
  readonly status: number
  // biome-ignore lint/suspicious/noExplicitAny: what a body holds is what the tests are about
  readonly body: any
  readonly headers: { readonly [name: string]: string | undefined }
}

export interface Sent {
  readonly method?: string
  /** Below where the contract is mounted. */
  readonly path: string
  readonly secret?: string | undefined
  readonly idempotencyKey?: string | undefined
  readonly body?: unknown
  /** The Content-Type of the body. Default JSON. */
  readonly type?: string
  /** Whether the body goes out in chunks, with neither Content-Length nor Content-Type. Default false. */
  readonly chunked?: boolean
  /** Raw names and values, sent as they are, after those that follow from the rest. */
  readonly headers?: readonly string[]
}

export interface Serving {
  readonly keys: ApiKeys
  readonly url: string
  send(request: Sent): Promise<Checked>
  /** What a route of the application's own, behind `bearerAuth`, answers to a secret. */
  accepted(secret: string): Promise<number>
}

/** Everything that keys can be kept in: this process, and two real databases. */
export const everyStore: readonly (readonly [name: string, make: () => Promise<Store>])[] = [
  ['memory', async () => memoryStore()],
  ...stores.map(([name, make]) => [name, async () => (await make()).store] as const),
]

/** Serves a contract where it is usually mounted, over real HTTP. */
export async function serveContract(
  contract: Contract,
  store: Store,
  {
    operators,
    limits,
    failuresPerMinute = 300,
    trustProxy,
    ...options
  }: Partial<ApiKeysOptions> & {
    operators?: Operators | OperatorOf
    limits?: boolean
    failuresPerMinute?: number | false
    trustProxy?: boolean
  } = {},
): Promise<Serving> {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 60, onError: () => {}, ...options })
  await keys.migrate()
  const app = express()
  if (trustProxy) app.set('trust proxy', 1)
  const routerOptions = { contract, failuresPerMinute, ...(operators && { operators }), ...(limits === undefined ? {} : { limits }) }
  app.use(contract.path, keyRouter(keys, routerOptions))
  app.get('/data', bearerAuth(keys, { failuresPerMinute, deprecation: true }), (req, res) => {
    res.json({ id: req.apiKey?.id })
  })
  atEnd(() => keys.close())
  const url = await listen(app)
  const { check } = documentOf(contract)
  return {
    keys,
    url,
    async send(sent) {
      const answer = await patiently(() => exchange(url + contract.path, sent), sent.method)
      check(sent, answer)
      checkCommon(sent, answer)
      return answer
    },
    async accepted(secret) {
      return (await patiently(() => exchange(url, { method: 'GET', path: '/data', secret }), 'GET')).status
    },
  }
}

/** On a busy machine a lease this short is over before the store's answer is here: 503 says to ask again. */
async function patiently(ask: () => Promise<Checked>, method: string | undefined): Promise<Checked> {
  for (let tries = 1; ; tries++) {
    const answer = await ask()
    if (method !== 'GET' || answer.status !== 503 || tries === 20) return answer
  }
}

/** One request, with its headers exactly as given: two of one name stay two. */
export async function exchange(
  base: string,
  { method = 'POST', path, secret, idempotencyKey, body, type = 'application/json', chunked = false, headers = [] }: Sent,
): Promise<Checked> {
  const text = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body)
  const raw = [
    ...['Host', new URL(base).host, 'Connection', 'close'],
    ...(secret === undefined ? [] : ['Authorization', `Bearer ${secret}`]),
    ...(idempotencyKey === undefined ? [] : ['Idempotency-Key', idempotencyKey]),
    ...(chunked ? ['Transfer-Encoding', 'chunked'] : []),
    ...(text === undefined || chunked ? [] : ['Content-Type', type, 'Content-Length', String(Buffer.byteLength(text))]),
    ...(text === undefined && !chunked && method !== 'GET' ? ['Content-Length', '0'] : []),
    ...headers,
  ]
  return new Promise((resolve, reject) => {
    const sent = request(base + path, { method, headers: raw, agent: false }, (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.on('error', reject)
      response.on('end', () => {
        const said = Buffer.concat(chunks).toString()
        resolve({
          status: response.statusCode ?? 0,
          body: said === '' ? undefined : JSON.parse(said),
          headers: response.headers as Checked['headers'],
        })
      })
    })
    sent.on('error', reject)
    sent.end(text)
  })
}

/** What is common to the answers of all contracts, whatever their documents say. */
function checkCommon({ path }: Sent, { status, body, headers }: Checked): void {
  if (path === '/openapi.json') return
  expect(headers['cache-control']).toBe('no-store')
  if (status === 401) expect(headers['www-authenticate']).toMatch(/^Bearer realm="api"/)
  if (status === 429 || status === 503) expect(headers['retry-after']).toMatch(/^[1-9]\d*$/)
  if (status === 429 || status === 401) expect(JSON.stringify(body)).not.toMatch(/(sk|rot)_(live|test)_\w{20}/)
}

export interface Play {
  readonly contract: Contract
  readonly options?: Partial<ApiKeysOptions>
  /** Makes the keys of one play: who calls, with what, and which key it is about. */
  prepare(keys: ApiKeys): Promise<Scene>
  /** The new secret in a success. */
  secretOf(answer: Checked): string
  /** The same for a key that has a rotation secret; left out where the contract has no way to rotate one. */
  prepareGuarded?(keys: ApiKeys): Promise<{ readonly request: Sent; readonly rotationSecret: string }>
  /** The new rotation secret in a success, where the contract hands one out. */
  rotationSecretOf?(answer: Checked): string
  /** Whether an Idempotency-Key has to be there. */
  readonly needsIdempotencyKey?: boolean
  /**
   * For a published page, which has one 401 for every bad credential, and 400 for a body that is too large or of another type: what the body of its
   * 401 holds.
   */
  readonly published?: object
}

interface Scene {
  readonly request: Sent
  readonly secret: string
  /** The secret that the rotation is going to retire. */
  readonly retires: string
  readonly id: string
}

/** What every contract has to do, whatever it looks like. */
export function playContract(play: Play): void {
  const { contract, options, prepare, secretOf, prepareGuarded, rotationSecretOf, needsIdempotencyKey = false } = play
  const { published } = play
  const unauthorized = published ?? { status: 401, code: expect.stringMatching(/^(credential_missing|invalid_key)$/) }
  const [malformed, tooLarge, unsupported] = published === undefined ? [400, 413, 415] : [401, 400, 400]
  const own = needsIdempotencyKey ? { idempotencyKey: 'usual' } : {}

  describe.each(everyStore)('on %s', (_name, makeStore) => {
    let here: Serving
    beforeAll(async () => {
      here = await serveContract(contract, await makeStore(), { ...options, limits: false })
    })

    test('the old credential is dead and the new one good once the rotation has answered', async () => {
      const { request: sent, retires } = await prepare(here.keys)
      expect(await here.accepted(retires)).toBe(200)
      const answer = await here.send({ ...own, ...sent })
      expect(answer.status).toBe(200)
      expect(answer.headers['idempotent-replayed']).toBeUndefined()
      expect([await here.accepted(retires), await here.accepted(secretOf(answer))]).toEqual([401, 200])
    })

    test('a retry after a cut connection gives the same answer, also to a credential that died in it, and rotates once', async () => {
      const { request: sent, retires, id } = await prepare(here.keys)
      const rotated = new Promise<void>((resolve) => {
        const off = here.keys.on('rotated', ({ key }) => {
          if (key.id !== id) return
          off()
          resolve()
        })
      })
      const cut = new AbortController()
      const lost = fetch(here.url + contract.path + sent.path, {
        method: 'POST',
        headers: {
          authorization: `Bearer ${sent.secret}`,
          'idempotency-key': 'cut',
          ...(sent.body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(sent.body === undefined ? {} : { body: JSON.stringify(sent.body) }),
        signal: cut.signal,
      }).catch(() => {})
      await rotated
      cut.abort()
      await lost
      const [first, again] = [await here.send({ ...sent, idempotencyKey: 'cut' }), await here.send({ ...sent, idempotencyKey: '"cut"' })]
      expect([first.status, again.status]).toEqual([200, 200])
      expect(first.headers['idempotent-replayed']).toBe('true')
      expect(again.body).toEqual(first.body)
      expect([await here.accepted(retires), await here.accepted(secretOf(first))]).toEqual([401, 200])
      const { items = [] } = (await here.keys.events({ id })) ?? {}
      expect(items.filter(({ type }) => type === 'key.rotated')).toHaveLength(1)
    })

    test('a retry with another body or query is refused, and changes nothing', async () => {
      const { request: sent } = await prepare(here.keys)
      const first = await here.send({ ...sent, idempotencyKey: 'same' })
      expect(first.status).toBe(200)
      const query = await here.send({ ...sent, path: `${sent.path}?x=1`, idempotencyKey: 'same' })
      expect(query.status).toBe(422)
      const body = await here.send({ ...sent, idempotencyKey: 'same', body: { ...(sent.body as object), another: 'field' } })
      expect(body.status).toBe(400)
      expect((await here.send({ ...sent, idempotencyKey: 'same' })).body).toEqual(first.body)
      expect(await here.accepted(secretOf(first))).toBe(200)
    })

    if (prepareGuarded !== undefined) {
      const how =
        rotationSecretOf === undefined ? 'keeps a rotation secret, having no way to hand out a new one' : 'replaces a rotation secret'
      test(`${how}: the one that its holder knows is the one that is good`, async () => {
        const { request: sent, rotationSecret: old } = await prepareGuarded(here.keys)
        const answer = await here.send({ ...own, ...sent })
        expect(answer.status).toBe(200)
        const rotate = (rotationSecret: string): Promise<unknown> =>
          here.keys.rotate({ as: { secret: secretOf(answer) }, rotationSecret }).then(
            () => 'rotated',
            ({ code }) => code,
          )
        if (rotationSecretOf === undefined) expect(await rotate(old)).toBe('rotated')
        else expect([await rotate(old), await rotate(rotationSecretOf(answer))]).toEqual(['invalid_key', 'rotated'])
      })
    }

    test('refuses a caller without a credential, with a bad, a dead, a malformed or a doubled one', async () => {
      const { request: sent, secret, retires, id } = await prepare(here.keys)
      const unknown = await prepare((await serveContract(contract, memoryStore(), options)).keys)
      const refusals: [number, string | undefined, Checked][] = []
      const refused = async (expected: number, challenge: string | undefined, change: Sent): Promise<void> => {
        refusals.push([expected, challenge, await here.send({ ...own, ...change })])
      }
      const { secret: _, ...anonymous } = sent
      await refused(401, 'Bearer realm="api"', anonymous)
      await refused(401, 'Bearer realm="api", error="invalid_token"', { ...sent, secret: unknown.secret })
      await refused(401, 'Bearer realm="api", error="invalid_token"', { ...sent, secret: `${secret.slice(0, -1)}~` })
      const authorization = (...lines: string[]): Sent => ({ ...anonymous, headers: lines.flatMap((line) => ['Authorization', line]) })
      for (const lines of [[''], [`Basic ${secret}`], ['Digest a="b"'], ['Bearers x'], [`Token ${secret}`]])
        await refused(401, 'Bearer realm="api"', authorization(...lines))
      const good = `Bearer ${secret}`
      const bad = ['Bearer', 'Bearer ', 'bearer', 'Bearer a b', `Bearer "${secret}"`, `Bearer '${secret}'`, `${good}, ${good}`, `${good};`]
      for (const line of [...bad, `Bearer ${'a'.repeat(1_020)}`, 'a'.repeat(5_000), 'Bearer \u00e9'])
        await refused(malformed, 'Bearer realm="api", error="invalid_request"', authorization(line))
      for (const other of [good, 'Bearer', 'Basic YTpi', ''])
        await refused(malformed, 'Bearer realm="api", error="invalid_request"', authorization(good, other))
      for (const [status, challenge, answer] of refusals) {
        expect([answer.status, answer.headers['www-authenticate']]).toEqual([status, challenge])
        if (status === 401) expect(answer.body).toMatchObject(unauthorized)
      }
      expect((await here.keys.get(id))?.generation).toBe(1)
      expect((await here.send({ ...own, ...sent })).status).toBe(200)
      if (retires !== secret) return
      const dead = await here.send({ ...sent, idempotencyKey: 'another' })
      const unlike = ({ body }: Checked): object => ({ ...body, request_id: undefined })
      expect([dead.status, unlike(dead)]).toEqual([401, unlike(refusals[1]?.[2] ?? dead)])
    })

    test('refuses an Idempotency-Key that is doubled, empty, a list or too long, and a body that is not JSON, too large or misnamed', async () => {
      const { request: sent, id } = await prepare(here.keys)
      for (const headers of [['a', 'b'], [''], ['a, b'], ['x'.repeat(256)]]) {
        const doubled = headers.flatMap((value) => ['Idempotency-Key', value])
        expect((await here.send({ ...sent, headers: doubled })).status).toBe(400)
      }
      for (const body of ['{', '[]', 'null', '{"__proto__":{}}', `{"a":${'['.repeat(4_000)}${']'.repeat(4_000)}}`])
        expect((await here.send({ ...own, ...sent, body })).status).toBe(400)
      expect((await here.send({ ...own, ...sent, body: `{"a":"${'x'.repeat(20_000)}"}` })).status).toBe(tooLarge)
      for (const type of ['text/plain', 'application/x-www-form-urlencoded'])
        expect((await here.send({ ...own, ...sent, body: '{}', type })).status).toBe(unsupported)
      expect((await here.keys.get(id))?.generation).toBe(1)
    })
  })

  test('answers 503 while the store cannot be asked, and 500 to a fault inside, in its own words and without theirs', async () => {
    const store = memoryStore()
    const here = await serveContract(contract, store, options)
    const { request: sent } = await prepare(here.keys)
    const { read } = store
    Object.assign(store, { read: () => Promise.reject(new Error('inner matters')) })
    const away = await here.send({ ...own, ...sent })
    Object.assign(store, { read, transaction: () => Promise.reject(new TypeError('inner matters')) })
    const broken = await here.send({ ...own, ...sent })
    expect([away.status, broken.status]).toEqual([503, 500])
    expect(JSON.stringify([away.body, broken.body])).not.toContain('inner matters')
  })

  test('serves its OpenAPI document beside it', async () => {
    const here = await serveContract(contract, memoryStore(), options)
    const served = await here.send({ method: 'GET', path: '/openapi.json' })
    expect([served.status, served.body]).toEqual([200, JSON.parse(JSON.stringify(openApiDocument(contract)))])
  })
}
