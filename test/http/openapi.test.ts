import { ApiKeyError, type ApiKeysOptions, contracts, memoryStore, openApiDocument, type Store } from 'express-api-keys'
import type { Contract } from 'express-api-keys/contract'
import { type Checked, type Sent, type Serving, serveContract } from '../support/contract.js'
import { documentOf } from '../support/document.js'

const ABSENT = '0198c3f2-5e7a-7abc-9def-0123456789ab'

/** Where a contract's one rotation is, and what a request for it brings. */
interface Published {
  readonly contract: Contract
  readonly path: (id: string) => string
  readonly options?: Partial<ApiKeysOptions>
  readonly guarded?: boolean
  readonly idempotencyKey?: string
}

const published: readonly Published[] = [
  { contract: contracts.redditFind, path: (id) => `/${id}/rotate` },
  { contract: contracts.agents, path: () => '/self/rotate-key', guarded: true },
  { contract: contracts.rixl, path: (id) => `/${id}/rotate` },
  { contract: contracts.suwappu, path: () => '/keys/rotate', options: { prefix: 'suwappu_sk', environmentInSecret: false } },
  { contract: contracts.blendFi, path: (id) => `/${id}/rotate`, idempotencyKey: 'needed' },
]

test.each(published)('$contract.name answers with what its document describes, and its document describes no more', async (about) => {
  const { contract, path, options = {}, guarded = false } = about
  const { store, here, seen, send, fail } = await scene(contract, options)
  const targeted = path('') !== path('x')
  // Bounded or not, this caller may rotate the keys below.
  const admin = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
  const standard = await serveContract(contracts.standard, store, options)
  const make = async (): Promise<{ id: string; sent: Sent; own: Sent }> => {
    const { key, secret, rotationSecret } = await here.keys.create({
      as: 'application',
      ownerId: 'acme',
      name: 'worker',
      rotationSecret: guarded,
    })
    const usual = { path: path(key.id), idempotencyKey: about.idempotencyKey, ...(guarded ? { body: { rotationSecret } } : {}) }
    return { id: key.id, sent: { ...usual, secret: targeted ? admin.secret : secret }, own: { ...usual, secret } }
  }

  const { sent } = await make()
  await send({ ...sent, idempotencyKey: 'once' })
  await send({ ...sent, idempotencyKey: 'once' })
  await send({ ...sent, path: `${sent.path}?x=1`, idempotencyKey: 'once' })
  await send({ ...sent, idempotencyKey: '' })
  await send({ ...sent, body: 'x'.repeat(20_000), type: 'text/plain' })
  for (const authorization of ['', 'Bearer a b', 'Bearer nobody'])
    await send({ ...sent, secret: undefined, headers: ['Authorization', authorization] })
  if (targeted) {
    for (const id of ['no-id', '%zz', ABSENT]) await send({ ...sent, path: path(id) })
    await send({ ...sent, secret: (await make()).own.secret })
    const revoked = await make()
    await standard.send({ path: `/${revoked.id}/revoke`, secret: revoked.own.secret })
    await send(revoked.sent)
  } else {
    const other = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n', rotationSecret: !guarded })
    await send({ ...sent, secret: other.secret })
  }
  const graced = await make()
  const { body } = await standard.send({
    path: '/self/rotate',
    secret: graced.own.secret,
    body: { ...(graced.own.body as object), retire: { afterMs: 60_000 } },
  })
  await send({
    ...graced.sent,
    secret: targeted ? admin.secret : body.secret,
    ...(guarded ? { body: { rotationSecret: body.rotationSecret } } : {}),
  })
  const last = await make()
  await fail('store', () => send(last.sent))
  await fail('program', () => send(last.sent))
  for (let i = 0; i < 130; i++) await send({ ...last.sent, secret: undefined }, '192.0.2.1')
  for (let i = 0; i < 61; i++) await send({ ...last.sent, path: path(ABSENT) }, '192.0.2.2')
  await document(send)
  expect(seen()).toEqual(everythingIn(contract))
})

test('contracts.standard answers with what its document describes, and its document describes no more', async () => {
  const contract = contracts.standard
  let ahead = 0
  const { here, seen, send, fail, strangers } = await scene(contract, {}, () => Date.now() + ahead)
  const scopes = ['api_keys:read', 'api_keys:write']
  const create = async (fields: object = {}): Promise<{ id: string; secret: string }> => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes, ...fields })
    return { id: key.id, secret }
  }
  const admin = await create()
  const target = await create()
  const weak = await create({ scopes: [] })
  const guarded = await create({ rotationSecret: true })
  const inGrace = async (secret: string): Promise<string> => {
    const { status, body } = await here.send({ path: '/self/rotate', secret, body: { retire: { afterMs: 60_000 } } })
    expect(status).toBe(200)
    return body.secret
  }
  const switched = await create()
  const disabled = await create()
  await here.keys.disable({ as: 'application', id: disabled.id })
  const graced = await create()
  const gracedNow = await inGrace(graced.secret)

  const changes: readonly (Sent & { readonly id: string })[] = [
    { id: '', path: '/', body: { name: 'made' } },
    { id: 'self', path: '/self/rotate', body: {} },
    { id: 'self', path: '/self/revoke', body: { reason: 'over' } },
    { id: target.id, path: `/${target.id}/rotate`, body: {} },
    { id: target.id, path: `/${target.id}/revoke`, body: { reason: 'over' } },
    { id: target.id, path: `/${target.id}`, method: 'PATCH', body: { name: 'changed' } },
    { id: switched.id, path: `/${switched.id}/disable`, body: { reason: 'for now' } },
    { id: switched.id, path: `/${switched.id}/enable`, body: {} },
  ]
  // The revocation last, since nothing can change after it.
  for (const change of [...changes].sort((one, other) => Number(one.path.endsWith('revoke')) - Number(other.path.endsWith('revoke')))) {
    const { id, ...sent } = { ...change, secret: change.id === 'self' ? (await create()).secret : admin.secret }
    const idempotencyKey = `once-${change.path}`
    const first = await send({ ...sent, idempotencyKey })
    await send({ ...sent, idempotencyKey })
    await send({ ...sent, path: `${sent.path}?x=1`, idempotencyKey })
    await send({ ...sent, idempotencyKey: '' })
    await send({ ...sent, secret: undefined })
    await send({ ...sent, secret: undefined, headers: ['Sec-Fetch-Site', 'cross-site'] })
    await send({ ...sent, secret: 'a b' })
    await send({ ...sent, secret: sent.path === '/self/rotate' ? guarded.secret : id === 'self' ? (await create()).secret : weak.secret })
    await send({ ...sent, secret: disabled.secret })
    await send({ ...sent, body: { name: 'x'.repeat(20_000) } })
    await send({ ...sent, body: '{}', type: 'text/plain' })
    if (id === '') await here.send({ path: `/${first.body.key.id}/revoke`, secret: admin.secret })
    if (id !== '' && id !== 'self') {
      for (const other of [ABSENT, 'no-id', '%zz']) await send({ ...sent, path: sent.path.replace(id, other) })
    }
    // The earlier secret may not change anything; the later one may not rotate yet.
    if (id === 'self') await send({ ...sent, secret: sent.path === '/self/rotate' ? gracedNow : graced.secret })
    else if (sent.path.endsWith('/rotate')) await send({ ...sent, path: `/${graced.id}/rotate` })
    await fail('store', () => send(sent))
    await fail('program', () => send(sent))
    for (let i = 0; i < 121; i++) await send({ ...sent, secret: undefined }, `198.51.100.${1 + changes.indexOf(change)}`)
  }
  await send({ method: 'PATCH', path: `/${target.id}`, secret: admin.secret, body: { name: 'too late' } })
  await here.keys.revoke({ as: 'application', id: switched.id })
  for (const last of ['disable', 'enable']) await send({ path: `/${switched.id}/${last}`, secret: admin.secret })

  const reads = ['/', '/self', `/${graced.id}`, `/${graced.id}/events`]
  const old = weak.secret
  await inGrace(old)
  for (const read of reads) {
    const sent = { method: 'GET', path: read }
    for (const secret of [undefined, 'a b', strangers[0], gracedNow, graced.secret, old, disabled.secret]) await send({ ...sent, secret })
    if (read.includes(graced.id))
      for (const other of [ABSENT, 'no-id', '%zz']) await send({ ...sent, path: read.replace(graced.id, other), secret: graced.secret })
    if (!read.endsWith(graced.id) && read !== '/self') await send({ ...sent, path: `${read}?cursor=none`, secret: graced.secret })
    await fail('store', () => send({ ...sent, secret: graced.secret }), false)
    await fail('program', () => send({ ...sent, secret: graced.secret }), false)
  }
  for (const secret of strangers) await send({ method: 'GET', path: '/', secret }, '203.0.113.1')
  for (const path of reads) await send({ method: 'GET', path, secret: strangers[0] }, '203.0.113.1')
  // Past the end of the record.
  ahead = 601_000
  await send({ path: `/${target.id}/revoke`, secret: admin.secret, body: { reason: 'over' }, idempotencyKey: `once-/${target.id}/revoke` })
  await send({ path: '/', secret: admin.secret, body: { name: 'made' }, idempotencyKey: 'once-/' })
  await document(send)
  expect(seen()).toEqual(everythingIn(contract))
})

test.each(Object.values(contracts))('the document of $name is about ids that are UUIDs, and about itself', (contract) => {
  for (const [name, { parameters = [] }] of Object.entries(documentOf(contract).operations)) {
    const inPath = parameters.filter((one) => one.in === 'path')
    expect([name, inPath.map(({ schema }) => schema)]).toEqual([name, name.includes('{') ? [{ type: 'string', format: 'uuid' }] : []])
  }
  expect(documentOf(contract).operations[`GET ${contract.path}/openapi.json`]).toBeDefined()
})

test.each(['', '/', '/v2', '/v2/'])('a document for a router at "%s" has paths that begin with one slash', (path) => {
  const { paths } = openApiDocument(contracts.standard, path) as { paths: object }
  for (const template of Object.keys(paths)) expect(template).toMatch(/^(\/[^/]+)+$|^\/$/)
  expect(Object.keys(paths)).toEqual(
    expect.arrayContaining([path.startsWith('/v2') ? '/v2' : '/', `${path.replace(/\/$/, '')}/openapi.json`]),
  )
})

/** A contract over a store that can be made to fail, and what was seen of it. */
async function scene(contract: Contract, options: Partial<ApiKeysOptions> = {}, now: () => number = Date.now): Promise<Scene> {
  const store = memoryStore({ now })
  const here = await serveContract(contract, store, {
    ...{ ...options, trustProxy: true, failuresPerMinute: 5 },
    ...(contract.operators === true ? { operators: () => undefined } : {}),
  })
  const elsewhere = await serveContract(contract, memoryStore(), options)
  const strangers: string[] = []
  for (let i = 0; i < 7; i++) strangers.push((await elsewhere.keys.create({ as: 'application', ownerId: 'other', name: 'n' })).secret)
  const { nameOf } = documentOf(contract)
  const seen: Everything = {}
  let address = 0
  return {
    ...{ store, here, strangers },
    seen: () => sorted(seen),
    async send(sent, from) {
      // Somewhere else each time, so that limits are met only where they are meant to be.
      const origin = from ?? `10.0.${Math.floor(address / 250)}.${1 + (address++ % 250)}`
      const answer = await here.send({ ...sent, headers: ['X-Forwarded-For', origin, ...(sent.headers ?? [])] })
      const headers = Object.keys(answer.headers)
      const name = nameOf(sent)
      seen[name] = { ...seen[name], [answer.status]: [...(seen[name]?.[answer.status] ?? []), ...headers] }
      return answer
    },
    async fail(whose, during, reads = true) {
      const error = whose === 'store' ? new ApiKeyError('store_unavailable', 'The store is away.') : new TypeError('A fault in a program.')
      const broken = () => Promise.reject(error)
      const { read, transaction, key, keys, events } = store
      Object.assign(store, { ...(reads ? { read: broken } : {}), transaction: broken, key: broken, keys: broken, events: broken })
      await during()
      Object.assign(store, { read, transaction, key, keys, events })
    },
  }
}

interface Scene {
  readonly store: Store
  readonly here: Serving
  /** Secrets that are well-formed, and unknown here. */
  readonly strangers: readonly string[]
  send(sent: Sent, from?: string): Promise<Checked>
  /** Has the store fail while something is sent: as one that is away does, or as one with a fault in it. */
  fail(whose: 'store' | 'program', during: () => Promise<unknown>, reads?: boolean): Promise<void>
  /** The headers of every operation and status so far that are not the server's own. */
  seen(): Everything
}

type Everything = { [operation: string]: { [status: string]: string[] } }

/** Asks for the document of a contract, once more with the ETag of the first answer. */
async function document(send: Scene['send']): Promise<void> {
  const { headers } = await send({ method: 'GET', path: '/openapi.json' })
  await send({ method: 'GET', path: '/openapi.json', headers: ['If-None-Match', headers.etag ?? ''] })
}

/** The headers of every operation and status that a document describes. */
function everythingIn(contract: Contract): Everything {
  const all: Everything = {}
  for (const [name, { responses }] of Object.entries(documentOf(contract).operations)) {
    const statuses: Everything[string] = {}
    for (const [status, { headers = {} }] of Object.entries(responses)) statuses[status] = Object.keys(headers)
    all[name] = statuses
  }
  return sorted(all)
}

function sorted(all: Everything): Everything {
  const own = 'date connection keep-alive content-length content-type x-powered-by transfer-encoding etag'.split(' ')
  const names = (headers: string[]): string[] =>
    [...new Set(headers.map((header) => header.toLowerCase()))].filter((header) => !own.includes(header)).sort()
  return Object.fromEntries(
    Object.entries(all).map(([name, statuses]) => [
      name,
      Object.fromEntries(Object.entries(statuses).map(([status, headers]) => [status, names(headers)])),
    ]),
  )
}
