import { createHash, createHmac, randomBytes } from 'node:crypto'
import express from 'express'
import {
  type ApiKeys,
  type ApiKeysOptions,
  bearer,
  bearerAuth,
  createApiKeys,
  header,
  type ImportRow,
  keyRouter,
  legacyFormat,
  memoryStore,
  type Store,
} from 'express-api-keys'
import { atEnd } from '../../support/cleanup.js'
import { listen } from '../../support/listen.js'
import { SERVER_SECRET } from '../../support/process.js'
import { stores } from '../../support/stores.js'
import { call } from '../../support/traffic.js'

const PEPPER = 'a-pepper-of-more-than-32-bytes-0123456789'
const HASHED = legacyFormat({ match: /old_[0-9a-f]{32}/, randomBits: 128 })
const SIGNED = legacyFormat({
  match: /mac_[0-9a-f]{32}/,
  digest: (secret) => createHmac('sha256', 'the old pepper').update(secret).digest(),
})
const SHORT = legacyFormat({ match: /[a-z]{8}/, pepper: PEPPER })

const makers = [['memory', async () => ({ store: memoryStore() })], ...stores] as const

function instance(store: Store, options: Partial<ApiKeysOptions> = {}): ApiKeys {
  const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, legacyFormats: [HASHED, SIGNED, SHORT], onError: () => {}, ...options })
  atEnd(() => keys.close())
  return keys
}

const HELD = `old_${'0'.repeat(32)}`
const secretOf = (start: string): string => start + randomBytes(16).toString('hex')
const sha256 = (secret: string): Buffer => createHash('sha256').update(secret).digest()
const acme = { ownerId: 'acme', name: 'ci', scopes: ['reports:read'] } as const

describe.each(makers)('on %s', (_name, make) => {
  let store: Store
  let keys: ApiKeys

  beforeEach(async () => {
    store = (await make()).store
    keys = instance(store)
    await keys.migrate()
  })

  test('clients of the old system notice nothing, and a rotation gives their keys the form of this package', async () => {
    const app = express()
    app.use('/keys', keyRouter(keys))
    app.get(
      '/data',
      bearerAuth(keys, { from: [bearer(), header('X-API-Key')], scope: 'reports:read' }),
      (req, res) => void res.json(req.apiKey),
    )
    const url = await listen(app)
    const [hashed, signed, plain] = [secretOf('old_'), secretOf('mac_'), 'abcdefgh']
    await keys.import([{ ...acme, hash: sha256(hashed).toString('hex') }], { format: HASHED })
    await keys.import([{ ...acme, hash: createHmac('sha256', 'the old pepper').update(signed).digest('base64') }], { format: SIGNED })
    await keys.import([{ ...acme, secret: plain }], { format: SHORT })
    for (const secret of [hashed, signed, plain]) {
      expect((await fetch(`${url}/data`, { headers: { 'x-api-key': secret } })).status).toBe(200)
      const rotated = await call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: `once-${secret}` })
      expect(rotated.status).toBe(200)
      const { secret: fresh } = rotated.body as { secret: string }
      expect(fresh).toMatch(/^sk_live_[0-9A-Za-z]{49}$/)
      expect([(await call(`${url}/data`, { secret })).status, (await call(`${url}/data`, { secret: fresh })).status]).toEqual([401, 200])
      const again = await call(`${url}/keys/self/rotate`, { method: 'POST', secret, idempotencyKey: `once-${secret}` })
      expect(again.body).toEqual(rotated.body)
    }
    expect((await call(`${url}/data`, { secret: secretOf('old_') })).status).toBe(401)
  })

  test('a key comes in with all that was known of it', async () => {
    const secret = secretOf('old_')
    const whole: ImportRow = {
      ...{
        secret,
        ownerId: 'acme',
        name: 'billing',
        environment: 'test',
        scopes: ['a', 'b:*'],
        metadata: { oldId: 7 },
        last4: secret.slice(-4),
      },
      ...{ allowedIps: ['192.0.2.0/24'], createdAt: '2020-01-02T03:04:05Z', expiresAt: new Date(4_000_000_000_000) },
      ...{ lastUsedAt: '2026-01-01T00:00:00Z' },
    }
    expect(await keys.import([whole], { format: HASHED })).toEqual({ rows: 1, imported: 1, existing: 0, failed: 0, failures: [] })
    const result = await keys.verify(secret, { ip: '192.0.2.7' })
    expect(result).toMatchObject({ ok: true, key: { environment: 'test', scopes: ['a', 'b:*'], metadata: { oldId: 7 }, generation: 1 } })
    const [key] = (await keys.list({ last4: secret.slice(-4) })).items
    expect(key).toMatchObject({
      ...{ createdAt: '2020-01-02T03:04:05.000Z', secretCreatedAt: '2020-01-02T03:04:05.000Z', lastUsedAt: '2026-01-01T00:00:00.000Z' },
      ...{ expiresAt: new Date(4_000_000_000_000).toISOString(), secretStart: '', status: 'active', allowedIps: ['192.0.2.0/24'] },
    })
    expect((await keys.events({ id: key?.id ?? '' }))?.items).toMatchObject([{ type: 'key.imported', actor: 'system' }])
  })

  test.each([
    ['revoked', { revokedAt: '2026-01-01T00:00:00Z', revokedReason: 'leaked' }],
    ['disabled', { disabledAt: '2026-01-01T00:00:00Z' }],
    ['expired', { expiresAt: '2026-01-01T00:00:00Z' }],
  ] as const)('a key that is %s in the old system is so here', async (reason, more) => {
    const secret = secretOf('old_')
    await keys.import([{ ...acme, secret, ...more }], { format: HASHED })
    expect(await keys.verify(secret)).toEqual({ ok: false, reason })
    expect((await keys.list({ status: reason })).items).toHaveLength(1)
  })

  test('the same rows again change nothing, dead or alive', async () => {
    const [used, dead] = [secretOf('old_'), secretOf('old_')]
    const rows = [used, dead].map((secret) => ({ ...acme, hash: sha256(secret) }))
    await keys.import(rows, { format: HASHED })
    const [, second] = (await keys.list({})).items
    const deadKey = (await keys.verify(dead)) as { key: { id: string } }
    await keys.revoke({ as: 'application', id: deadKey.key.id })
    await keys.rotate({ as: { secret: used } })
    expect(second).toBeDefined()
    expect(await keys.import(rows, { format: HASHED })).toMatchObject({ rows: 2, imported: 0, existing: 2 })
    expect([await keys.verify(used), await keys.verify(dead)]).toEqual([
      { ok: false, reason: 'rotated' },
      { ok: false, reason: 'revoked' },
    ])
    expect((await keys.list({})).items).toHaveLength(2)
  })

  test('two imports of the same rows at the same time bring each key in once', async () => {
    const rows = Array.from({ length: 1_200 }, (_, n) => ({ ...acme, name: `key ${n}`, secret: secretOf('old_') }))
    const sibling = instance(store)
    const results = await Promise.all([keys.import(rows, { format: HASHED }), sibling.import([...rows].reverse(), { format: HASHED })])
    expect(results.map(({ imported }) => imported).reduce((a, b) => a + b)).toBe(1_200)
    for (const { rows: seen, imported, existing } of results) expect([seen, imported + existing]).toEqual([1_200, 1_200])
    for (const { secret } of [rows[0], rows[700], rows[1_199]] as { secret: string }[]) expect((await sibling.verify(secret)).ok).toBe(true)
  })

  test('a bad row is told by its number and changes nothing, and the others come in', async () => {
    const good = secretOf('old_')
    const bad: readonly [row: unknown, said: string][] = [
      [undefined, 'A row is an object.'],
      ['a,b,c', 'A row is an object.'],
      [{ ...acme }, 'A row has either secret or hash.'],
      [{ ...acme, secret: secretOf('old_'), hash: sha256('x') }, 'A row has either secret or hash.'],
      [{ ...acme, secret: HELD, name: `the key ${HELD}` }, 'The fields of a key must not hold its secret'],
      [{ ...acme, secret: 'new_5' }, 'secret does not look as match of the format says.'],
      [{ ...acme, hash: 'zz' }, 'hash must be a hash of 16 to 64 bytes'],
      [{ name: 'n', hash: sha256('1') }, 'ownerId must be a string of 1 to 255 characters.'],
      [{ ownerId: 'acme', hash: sha256('2') }, 'name must be a string of 1 to 255 characters.'],
      [{ ...acme, hash: sha256('3'), scopes: 'a' }, 'scopes must be a list'],
      [{ ...acme, hash: sha256('4'), createdAt: 'yesterday' }, 'createdAt must be an RFC 3339 instant'],
      [{ ...acme, hash: sha256('5'), createdAt: '2200-01-01T00:00:00Z' }, 'createdAt has not come yet.'],
      [{ ...acme, hash: sha256('6'), revoked: true }, 'Write "'],
      [{ ...acme, hash: sha256('7'), last4: 'abcde' }, 'last4 must be four letters and digits.'],
      [{ ...acme, hash: sha256('8'), rotationSecret: true }, 'A row has no rotationSecret.'],
      [{ ...acme, hash: sha256('9'), metadata: { a: '\0' } }, 'metadata must be well-formed text without NUL.'],
    ]
    const rows = [...bad.map(([row]) => row), { ...acme, secret: good }] as ImportRow[]
    const progress: object[] = []
    const result = await keys.import(rows, { format: HASHED, onProgress: (one) => void progress.push(one) })
    expect(result).toMatchObject({ rows: rows.length, imported: 1, existing: 0, failed: bad.length })
    expect(progress).toEqual([{ rows: rows.length, imported: 1, existing: 0, failed: bad.length }])
    expect(result.failures.map(({ row }) => row)).toEqual(bad.map((_, index) => index + 1))
    for (const [index, [, said]] of bad.entries()) {
      if (said !== 'Write "') expect(result.failures[index]?.message).toContain(said)
    }
    expect(JSON.stringify(result)).not.toMatch(/old_|new_5/)
    expect((await keys.list({})).items).toHaveLength(1)
  })

  test('an import that breaks off keeps its batches, and goes on from there', async () => {
    const rows = Array.from({ length: 1_300 }, () => ({ ...acme, secret: secretOf('old_') }))
    async function* broken(): AsyncGenerator<ImportRow> {
      yield* rows.slice(0, 1_100)
      throw new Error('the file ends here')
    }
    await expect(keys.import(broken(), { format: HASHED })).rejects.toThrow()
    expect(await keys.import(rows, { format: HASHED })).toMatchObject({ rows: 1_300, imported: 300, existing: 1_000, failed: 0 })
  })

  test('a dry run says what would be, and writes nothing', async () => {
    const secret = secretOf('old_')
    const rows = [
      { ...acme, secret },
      { ...acme, secret },
      { ...acme, hash: 'x' },
    ] as ImportRow[]
    expect(await keys.import(rows, { format: HASHED, dryRun: true })).toMatchObject({ rows: 3, imported: 1, existing: 1, failed: 1 })
    expect([(await keys.list({})).items, await keys.verify(secret)]).toEqual([[], { ok: false, reason: 'unknown' }])
    // What was unknown a moment ago is good as soon as it is there.
    await keys.import(rows.slice(0, 1), { format: HASHED })
    expect((await keys.verify(secret)).ok).toBe(true)
  })
})

test.each<[string, unknown, unknown, string]>([
  ['no rows', undefined, { format: HASHED }, 'import takes the rows as a list'],
  ['a text', 'rows', { format: HASHED }, 'import takes the rows as a list'],
  ['a form that no instance takes', [], { format: legacyFormat({ match: /y/ }) }, 'Name the form of the secrets in legacyFormats'],
  ['no form where there are several', [], {}, 'There are several legacyFormats'],
  ['an option that there is not', [], { formats: HASHED }, 'Write "format" instead.'],
  ['a dryRun that is no boolean', [], { format: HASHED, dryRun: 'no' }, 'dryRun must be true or false.'],
])('%s is refused', async (_case, rows, options, said) => {
  const keys = instance(memoryStore())
  await expect(keys.import(rows as never, options as never)).rejects.toThrow(said)
})

test('a secret in clear without 128 random bits needs a pepper', async () => {
  const unknown = legacyFormat({ match: /[a-z]{8}/ })
  const keys = instance(memoryStore(), { legacyFormats: [unknown] })
  const { failures } = await keys.import([{ ...acme, secret: 'abcdefgh' }])
  expect(failures).toEqual([{ row: 1, message: expect.stringContaining('a format with a pepper') }])
})
