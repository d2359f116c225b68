import { ApiKeyError, type ApiKeys, type CreateCommand, createApiKeys, memoryStore } from 'express-api-keys'
import fc from 'fast-check'
import { changedFields, createFields, flag, graceOf, keyId, ownerText, pageLimit, positionOf, reasonText } from '../../src/core/input.js'
import { integerOption } from '../../src/options.js'

const SECRET = 'the-server-secret-0123456789-0123456789'
const named = { ownerId: 'acme', name: 'n' }

describe('what a new key is described by', () => {
  test.each([
    ['names of one and of 255 characters', { name: 'x'.repeat(255), ownerId: 'y' }],
    ['names in any script', { name: 'clé 鍵 🔑' }],
    ['every scope token of RFC 6749 §3.3', { scopes: ['api_keys:write', '!#$%&[]^~', 'x'.repeat(128)] }],
    ['either environment', { environment: 'test' as const }],
    ['a hundred scopes', { scopes: many(100) }],
    ['metadata of 8,192 bytes', { metadata: { a: 'x'.repeat(8_184) } }],
    ['metadata sixteen deep', { metadata: nested(16) }],
    ['the last instant that RFC 3339 can write', { expiresAt: '9999-12-31T23:59:59.999Z' }],
    ['a leap day', { expiresAt: '2028-02-29T00:00:00.000Z' }],
  ])('takes %s', async (_what, input) => {
    const { key } = await fresh().create({ as: 'application', ...named, ...input })
    expect(key).toMatchObject(input)
  })

  test('names a scope once, however often it is given', async () => {
    const { key } = await fresh().create({ as: 'application', ...named, scopes: ['b', 'a', 'b'] })
    expect(key.scopes).toEqual(['b', 'a'])
  })

  test.each([
    ['2030-01-31T12:00:00Z', '2030-01-31T12:00:00.000Z'],
    ['2030-01-31t12:00:00.5z', '2030-01-31T12:00:00.500Z'],
    ['2030-01-31 12:00:00.123456789+05:30', '2030-01-31T06:30:00.123Z'],
    ['2030-01-31T12:00:00-00:00', '2030-01-31T12:00:00.000Z'],
  ])('reads the expiry %s', async (expiresAt, read) => {
    expect((await fresh().create({ as: 'application', ...named, expiresAt })).key.expiresAt).toBe(read)
    expect((await fresh().create({ as: 'application', ...named, expiresAt: new Date(expiresAt) })).key.expiresAt).toBe(read)
  })

  test.each<[field: string, values: readonly unknown[]]>([
    ['ownerId', [undefined, null, '', 1, 'x'.repeat(256), 'a\nb', 'a\u0085b', '\ud800']],
    ['name', [undefined, null, '', {}, 'x'.repeat(256), 'a\u0000b', '\u007f']],
    ['environment', ['prod', '', null, 1]],
    [
      'scopes',
      [
        ['good', 'b c'],
        ['b c', 'good'],
      ],
    ],
    ['scopes', ['a', {}, [''], ['a b'], ['a"'], ['\\'], ['é'], [1], ['x'.repeat(129)], new Array(2), many(101)]],
    ['metadata', [null, [], 'a', new Date(0), { toJSON: () => 'a' }, { toJSON: () => undefined }, { a: 1n }, cycle(), nested(17)]],
    ['metadata', [{ a: '\0' }, { '\0': 1 }, { a: '\udfff' }, { a: { toJSON: () => '\0' } }, { a: 'x'.repeat(8_192) }]],
    ['metadata', [{ constructor: 1 }, { a: [{ prototype: 1 }] }, JSON.parse('{"a":{"__proto__":1}}')]],
    ['expiresAt', ['tomorrow', '', 5, '2030-01-31', '2030-01-31T12:00:00', new Date(Number.NaN), new Date(-1)]],
    ['expiresAt', ['x2030-01-31T12:00:00Z', '2030-01-31T12:00:00Zx', new Date(253_402_300_800_000)]],
    ['rotationSecret', ['true', 1, null]],
    ['expiresAt', ['2030-02-31T00:00:00Z', '2027-02-29T00:00:00Z', '2030-04-31T00:00:00Z', '2030-00-10T00:00:00Z']],
    ['expiresAt', ['2030-01-31T24:00:00Z', '2030-01-31T12:60:00Z', '2030-01-31T12:00:00+24:00', '+010000-01-01T00:00:00Z']],
  ])('refuses %s that is none, and says which field it was', async (field, values) => {
    const keys = fresh()
    for (const value of values) {
      const error = await refusal(keys.create({ as: 'application', ...named, [field]: value } as CreateCommand))
      expect([error?.code, error?.message]).toEqual(['invalid_request', expect.stringContaining(field)])
    }
    expect((await keys.list({ ownerId: 'acme' })).items).toEqual([])
  })

  test('names the field that was probably meant', async () => {
    const error = await refusal(fresh().create({ as: 'application', ...named, scope: ['a'] } as CreateCommand))
    expect([error?.code, error?.message]).toEqual(['invalid_request', 'create has no option "scope". Write "scopes" instead.'])
  })

  test('whatever it is, is taken or refused as invalid_request, and never breaks anything', async () => {
    const keys = fresh()
    await fc.assert(
      fc.asyncProperty(
        fc.record({ name: fc.anything(), scopes: fc.anything(), metadata: fc.anything(), expiresAt: fc.anything() }),
        async (input) => {
          const error = await refusal(keys.create({ as: 'application', ownerId: 'acme', ...input } as CreateCommand))
          expect([undefined, 'invalid_request']).toContain(error?.code)
        },
      ),
      { numRuns: 500 },
    )
  })

  test('metadata comes back as the JSON that it was', async () => {
    const keys = fresh()
    const plain = fc.dictionary(fc.string({ unit: 'grapheme', maxLength: 20 }), fc.jsonValue({ maxDepth: 4 }), { maxKeys: 5 })
    await fc.assert(
      fc.asyncProperty(plain, async (metadata) => {
        const written = JSON.stringify(metadata)
        fc.pre(!/\\u|__proto__|constructor|prototype/.test(written) && written.length < 4_000)
        const { key } = await keys.create({ as: 'application', ...named, metadata: metadata as Record<string, never> })
        expect(JSON.stringify((await keys.get(key.id))?.metadata)).toBe(written)
      }),
    )
  })
})

test('what is kept in clear holds no secret, and what is said of an option does not quote one', async () => {
  const keys = fresh()
  const { key, secret } = await keys.create({ as: 'application', ...named })
  for (const input of [{ name: secret }, { name: `of ${secret}.` }, { ownerId: secret }, { metadata: { deep: [secret] } }]) {
    expect(await refusal(keys.create({ as: 'application', ...named, ...input }))).toMatchObject({
      code: 'invalid_request',
      message: expect.not.stringContaining(secret),
    })
  }
  expect((await refusal(keys.revoke({ as: 'application', id: key.id, reason: `leaked: ${secret}` })))?.code).toBe('invalid_request')
  await keys.rotate({ as: { secret }, origin: { ip: '192.0.2.1', userAgent: `tool/1 ${secret}` } })
  expect((await keys.events({ id: key.id }))?.items[0]?.userAgent).toBe('tool/1 [redacted]')
  const option = await refusal(keys.rotate({ as: 'application', id: key.id, [secret]: 1 } as never))
  expect([option?.code, option?.message.includes(secret)]).toEqual(['invalid_request', false])
  expect(() => createApiKeys({ store: memoryStore(), serverSecret: SECRET, leaseMs: SECRET as never })).toThrow(
    expect.objectContaining({ message: expect.not.stringContaining(SECRET) }),
  )
})

test('a request and an origin of another shape are refused by name', async () => {
  const keys = fresh()
  const { key } = await keys.create({ as: 'application', ...named })
  const wrong = [
    { request: {} },
    { request: { method: 'POST', path: '/', body: { n: 1n } } },
    { origin: { ip: 5 } },
    { origin: { userAgent: [] } },
  ]
  for (const more of wrong) {
    const error = await refusal(keys.rotate({ as: 'application', id: key.id, ...(more as object) }))
    expect([error?.code, error?.message]).toEqual(['invalid_request', expect.stringContaining(Object.keys(more)[0] ?? '')])
  }
  const inherited = Object.create({ as: 'application' }) as { as: 'application'; id: string }
  inherited.id = key.id
  expect((await refusal(keys.rotate(inherited)))?.code).toBe('invalid_request')
  expect([keys.peek(undefined as never), keys.wellFormed(undefined as never)]).toEqual([{ ok: false, reason: 'malformed' }, false])
})

test('a change of a key is checked like a new one, and must change something', async () => {
  const keys = fresh()
  const { key } = await keys.create({ as: 'application', ...named })
  for (const changes of [
    {},
    { name: undefined },
    { name: '' },
    { scopes: 'a' },
    { metadata: [] },
    { expiresAt: '2030-02-31T00:00:00Z' },
    { ownerId: 'rival' },
    null,
  ]) {
    const error = await refusal(keys.update({ as: 'application', id: key.id, changes: changes as { name: string } }))
    expect(error?.code).toBe('invalid_request')
  }
  expect(await keys.get(key.id)).toEqual(key)
})

test('what is left out of a new key is nothing, and what is left out of a change stays', () => {
  const all = { name: 'n', scopes: ['a'], metadata: { m: 1 }, allowedIps: ['192.0.2.1'], expiresAt: '2030-01-31T12:00:00Z' }
  const read = { ...all, expiresAt: Date.parse(all.expiresAt) }
  expect(createFields(named)).toEqual({ ...named, environment: 'live', scopes: [], metadata: {}, allowedIps: null })
  expect(createFields({ ...all, ownerId: 'acme', environment: 'test', rotationSecret: false })).toEqual({
    ...read,
    ownerId: 'acme',
    environment: 'test',
  })
  expect(changedFields(all)).toEqual(read)
  for (const name of ['name', 'scopes', 'metadata', 'allowedIps', 'expiresAt'] as const)
    expect(changedFields({ [name]: all[name] })).toEqual({ [name]: read[name] })
  expect(changedFields({ expiresAt: null, allowedIps: null })).toEqual({ expiresAt: null, allowedIps: null })
})

test('a grace period is none, seven days at most, or until the first use', () => {
  expect([graceOf(undefined), graceOf('now')]).toEqual([
    { graceMs: 0, onFirstUse: false },
    { graceMs: 0, onFirstUse: false },
  ])
  expect(graceOf('on-first-use')).toEqual({ graceMs: 604_800_000, onFirstUse: true })
  for (const [afterMs, graceMs] of [
    [1, 1],
    [604_800_000, 604_800_000],
  ] as const) {
    expect(graceOf({ afterMs })).toEqual({ graceMs, onFirstUse: false })
  }
  const bad = [
    null,
    5,
    'later',
    '',
    {},
    [],
    { afterMs: 0 },
    { afterMs: 1.5 },
    { afterMs: '5' },
    { afterMs: 2 ** 53 },
    { afterMs: 5, more: 1 },
  ]
  for (const retire of bad) expect(() => graceOf(retire as 'now')).toThrow('retire must be "now", "on-first-use" or { "afterMs"')
  expect(() => graceOf({ afterMs: 604_800_001 })).toThrow('retire.afterMs must be at most 604800000, which is 7 days.')
})

test.each<[told: string, check: () => unknown]>([
  ['Nothing to change: give name, scopes, metadata, allowedIps or expiresAt.', () => changedFields({})],
  ['name must be a string of 1 to 255 characters.', () => changedFields({ name: '' })],
  ['A key has no field "owner".', () => changedFields({ owner: 1 } as object)],
  ['A key is described by an object.', () => changedFields(null as never)],
  ['A key is described by an object.', () => changedFields('name' as never)],
  ['A key is described by an object.', () => changedFields([] as never)],
  ['A new key is described by an object.', () => createFields(undefined as never)],
  ['sure must be true or false.', () => flag('sure', 'yes')],
  ['reason must be a string of 1 to 255 characters.', () => reasonText('')],
  ['A key id must be a UUID.', () => keyId('x')],
  ['A key id must be a UUID.', () => keyId(['01890000-0000-7000-8000-000000000000'])],
  ['ownerId must not be "*"', () => ownerText('*')],
  ['limit must be a whole number from 1 to 100.', () => pageLimit(0)],
  ['limit must be a whole number from 1 to 100.', () => pageLimit(101)],
  ['cursor must be a nextCursor of an earlier page.', () => positionOf('x')],
  ['cursor must be a nextCursor', () => positionOf(Buffer.from('x5.01890000-0000-7000-8000-000000000000').toString('base64url'))],
  ['cursor must be a nextCursor', () => positionOf(Buffer.from('5.01890000-0000-7000-8000-000000000000x').toString('base64url'))],
  ['n must be a whole number from 5 to 7, not 4.', () => integerOption('n', 4, 6, 5, 7)],
  ['n must be a whole number from 5 to 7, not 8.', () => integerOption('n', 8, 6, 5, 7)],
  ['n must be a whole number from 5 to 7, not 5.5.', () => integerOption('n', 5.5, 6, 5, 7)],
  ['n must be a whole number from 5 to 7, not "6".', () => integerOption('n', '6' as never, 6, 5, 7)],
])('says "%s"', (told, check) => {
  expect(check).toThrow(told)
})

test('what is at the edge of a range is in it, and what is left out is the default', () => {
  expect([pageLimit(undefined), pageLimit(1), pageLimit(100)]).toEqual([50, 1, 100])
  expect([5, 7, undefined].map((n) => integerOption('n', n, 6, 5, 7))).toEqual([5, 7, 6])
  expect([flag('f', undefined), flag('f', false), flag('f', true)]).toEqual([false, false, true])
})

test('ids, limits and cursors that are none are refused before the store is asked', async () => {
  let asked = 0
  const counted = async (): Promise<never> => {
    asked++
    throw new Error('was asked')
  }
  const store = { ...memoryStore(), key: counted, keys: counted, events: counted, transaction: counted }
  const keys = createApiKeys({ store, serverSecret: SECRET })
  for (const id of ['', 'x', 1, null, '00000000-0000-7000-8000-00000000000g', '00000000-0000-7000-8000-000000000000\n']) {
    expect((await refusal(keys.get(id as string)))?.code).toBe('invalid_request')
    expect((await refusal(keys.rotate({ as: 'application', id: id as string })))?.code).toBe('invalid_request')
  }
  for (const query of [
    { limit: 0 },
    { limit: 101 },
    { limit: 1.5 },
    { limit: '5' },
    { limit: Number.NaN },
    { cursor: '' },
    { cursor: 'x' },
    { cursor: 5 },
    { cursor: Buffer.from('1.2').toString('base64url') },
    { ownerId: '' },
  ]) {
    expect((await refusal(keys.list({ ownerId: 'acme', ...(query as object) })))?.code).toBe('invalid_request')
  }
  expect((await refusal(keys.rotate({ as: 'application' })))?.message).toContain('Say which key')
  expect(asked).toBe(0)
})

test('a key is found by its id in upper case too', async () => {
  const keys = fresh()
  const { key } = await keys.create({ as: 'application', ...named })
  expect(await keys.get(key.id.toUpperCase())).toEqual(key)
})

test('a listing is walked by its cursors, each key once, newest first', async () => {
  const keys = fresh()
  const made: string[] = []
  for (let n = 0; n < 7; n++) made.unshift((await keys.create({ as: 'application', ...named })).key.id)
  const seen: string[] = []
  let cursor: string | undefined
  do {
    const page = await keys.list({ ownerId: 'acme', limit: 3, ...(cursor === undefined ? {} : { cursor }) })
    seen.push(...page.items.map(({ id }) => id))
    cursor = page.nextCursor ?? undefined
  } while (cursor !== undefined)
  expect(seen).toEqual(made)
})

test.each([
  ['stroe', 'Write "store" instead.'],
  ['serverSecrets', 'Write "serverSecret" instead.'],
  ['leaseMS', 'Write "leaseMs" instead.'],
  ['replayWindow', 'Write "replayWindowMs" instead.'],
  ['something', 'It takes store, serverSecret,'],
  ['ms', 'It takes store, serverSecret,'],
])('the option %s is refused: %s', (name, hint) => {
  const options = { store: memoryStore(), serverSecret: SECRET, [name]: 1 }
  expect(() => createApiKeys(options)).toThrow(expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining(hint) }))
})

test('a prefix that looks like a rotation secret is refused', () => {
  for (const prefix of ['rot', 'rot_live', 'rot_x']) {
    expect(() => createApiKeys({ store: memoryStore(), serverSecret: SECRET, prefix })).toThrow('prefix must')
  }
  expect(() => createApiKeys({ store: memoryStore(), serverSecret: SECRET, prefix: 'rotor' })).not.toThrow()
})

function fresh(): ApiKeys {
  return createApiKeys({ store: memoryStore(), serverSecret: SECRET })
}

async function refusal(work: Promise<unknown>): Promise<ApiKeyError | undefined> {
  try {
    await work
    return undefined
  } catch (error) {
    if (error instanceof ApiKeyError) return error
    throw error
  }
}

function nested(depth: number): Record<string, never> {
  let value = {}
  for (let level = 1; level < depth; level++) value = { a: value }
  return value
}

function cycle(): object {
  const value: Record<string, unknown> = {}
  value.self = value
  return value
}

function many(count: number): string[] {
  return Array.from({ length: count }, (_, n) => `s${n}`)
}
