import { type ApiKeys, createApiKeys, type IssuedKey, memoryStore, type Operator } from 'express-api-keys'

const SECRET = 'the-server-secret-0123456789-0123456789'
const [SOON, LATE] = ['2090-01-01T00:00:00.000Z', '2091-01-01T00:00:00.000Z']

describe('a key with api_keys:write', () => {
  const make = (keys: ApiKeys, more: object = {}): Promise<IssuedKey> =>
    keys.create({ as: 'application', ownerId: 'acme', name: 'n', ...more })
  const scene = async (
    caller: object,
    target: object = {},
  ): Promise<{ keys: ApiKeys; as: { secret: string }; id: string; secret: string }> => {
    const keys = createApiKeys({ store: memoryStore(), serverSecret: SECRET })
    const { secret } = await make(keys, caller)
    const made = await make(keys, target)
    return { keys, as: { secret }, id: made.key.id, secret: made.secret }
  }
  const outcome = (work: Promise<unknown>): Promise<string> =>
    work.then(
      () => 'done',
      ({ code }) => code,
    )

  test.each<[string, object, object, { create: string; rotate: string; update: string }]>([
    ['what it could be itself', { scopes: ['api_keys:write', 'a'] }, { scopes: ['a'] }, { create: 'done', rotate: 'done', update: 'done' }],
    [
      'a scope that it has not',
      { scopes: ['api_keys:write'] },
      { scopes: ['a'] },
      { create: 'insufficient_scope', rotate: 'insufficient_scope', update: 'insufficient_scope' },
    ],
    [
      'a wildcard that it has not',
      { scopes: ['api_keys:write', 'reports:read'] },
      { scopes: ['reports:*'] },
      { create: 'insufficient_scope', rotate: 'insufficient_scope', update: 'insufficient_scope' },
    ],
    [
      'what its wildcard covers',
      { scopes: ['api_keys:write', 'reports:*'] },
      { scopes: ['reports:read'] },
      { create: 'done', rotate: 'done', update: 'done' },
    ],
    [
      'api_keys:admin, which no wildcard covers',
      { scopes: ['*', 'api_keys:*'] },
      { scopes: ['api_keys:admin'] },
      { create: 'insufficient_scope', rotate: 'insufficient_scope', update: 'insufficient_scope' },
    ],
    [
      'a key of the other environment',
      { scopes: ['api_keys:write'], environment: 'test' },
      { environment: 'live' },
      { create: 'insufficient_scope', rotate: 'insufficient_scope', update: 'insufficient_scope' },
    ],
    [
      'a later expiry than its own',
      { scopes: ['api_keys:write'], expiresAt: SOON },
      { expiresAt: LATE },
      { create: 'insufficient_scope', rotate: 'insufficient_scope', update: 'insufficient_scope' },
    ],
    [
      'no expiry, where it has one',
      { scopes: ['api_keys:write'], expiresAt: SOON },
      {},
      { create: 'insufficient_scope', rotate: 'insufficient_scope', update: 'insufficient_scope' },
    ],
    [
      'an earlier expiry',
      { scopes: ['api_keys:write'], expiresAt: LATE },
      { expiresAt: SOON },
      { create: 'done', rotate: 'done', update: 'done' },
    ],
    [
      'anything, with api_keys:admin',
      { scopes: ['api_keys:admin'], environment: 'test', expiresAt: SOON },
      { scopes: ['*', 'api_keys:admin'] },
      { create: 'done', rotate: 'done', update: 'done' },
    ],
  ])('hands out %s, or does not', async (_what, caller, target, expected) => {
    const { keys, as, id } = await scene(caller, target)
    expect({
      create: await outcome(keys.create({ as, name: 'made', ...target })),
      rotate: await outcome(keys.rotate({ as, id })),
      update: await outcome(keys.update({ as, id, changes: { name: 'm' } })),
    }).toEqual(expected)
  })

  test('widens nobody by a change, itself included', async () => {
    const { keys, as, id } = await scene({ scopes: ['api_keys:write', 'a'], expiresAt: SOON }, { scopes: ['a'], expiresAt: SOON })
    const self = (await keys.verify(as.secret)) as { key: { id: string } }
    for (const target of [id, self.key.id]) {
      for (const changes of [{ scopes: ['a', 'b'] }, { scopes: ['*'] }, { expiresAt: null }, { expiresAt: LATE }]) {
        expect(await outcome(keys.update({ as, id: target, changes }))).toBe('insufficient_scope')
      }
      expect(await outcome(keys.update({ as, id: target, changes: { scopes: ['a'].slice(target === id ? 0 : 1) } }))).toBe('done')
    }
  })

  test('revokes any key of its owner, whatever that may do; a test key no live one', async () => {
    const { keys, as, id } = await scene({ scopes: ['api_keys:write'] }, { scopes: ['api_keys:admin'] })
    expect(await outcome(keys.revoke({ as, id }))).toBe('done')
    const sandbox = await make(keys, { scopes: ['api_keys:write'], environment: 'test' })
    const live = await make(keys)
    expect(await outcome(keys.revoke({ as: { secret: sandbox.secret }, id: live.key.id }))).toBe('insufficient_scope')
  })

  test('reaches any key of its owner and environment where a published page has it so, and never the other environment', async () => {
    const open = { delegation: 'open' } as const
    const { keys, as, id } = await scene({ scopes: ['api_keys:write'], expiresAt: SOON }, { scopes: ['a'] })
    expect(await outcome(keys.rotate({ as, id, ...open }))).toBe('done')
    const other = await make(keys, { environment: 'test' })
    expect(await outcome(keys.rotate({ as, id: other.key.id, ...open }))).toBe('insufficient_scope')
    const foreign = await make(keys, { ownerId: 'globex' })
    expect(await outcome(keys.rotate({ as, id: foreign.key.id, ...open }))).toBe('key_not_found')
  })

  test('makes keys for its own owner, named or not', async () => {
    const { keys, as } = await scene({ scopes: ['api_keys:write'] })
    expect((await keys.create({ as, name: 'a' })).key.ownerId).toBe('acme')
    expect((await keys.create({ as, ownerId: 'acme', name: 'a' })).key.ownerId).toBe('acme')
    expect(await outcome(keys.create({ as, ownerId: 'globex', name: 'a' }))).toBe('insufficient_scope')
  })
})

describe('an operator', () => {
  const operator = (more: Partial<Operator>): { operator: Operator } => ({
    operator: { issuer: 'https://id.example', subject: 'ada', scopes: ['api_keys:write'], owners: ['acme'], ...more },
  })
  const attempt = async (who: { operator: Operator }, target: object): Promise<string[]> => {
    const keys = createApiKeys({ store: memoryStore(), serverSecret: SECRET })
    const fields = { ownerId: 'acme', name: 'n', ...target }
    const { key } = await keys.create({ as: 'application', ...fields })
    const done: string[] = []
    for (const work of [
      () => keys.create({ as: who, ...fields }),
      () => keys.rotate({ as: who, id: key.id }),
      () => keys.update({ as: who, id: key.id, changes: { name: 'm' } }),
      () => keys.revoke({ as: who, id: key.id }),
    ]) {
      done.push(
        await work().then(
          () => 'done',
          ({ code }) => code,
        ),
      )
    }
    return done
  }
  const no = 'insufficient_scope'

  test.each<[string, Partial<Operator>, object, string[]]>([
    ['with no grants', {}, {}, [no, no, no, 'done']],
    ['with the environment', { grants: { scopes: [], environments: ['live'] } }, {}, ['done', 'done', 'done', 'done']],
    ['with the other environment', { grants: { scopes: ['*'], environments: ['test'] } }, {}, [no, no, no, 'done']],
    ['with the scope', { grants: { scopes: ['a:*'], environments: ['live'] } }, { scopes: ['a:b'] }, ['done', 'done', 'done', 'done']],
    ['with another scope', { grants: { scopes: ['a'], environments: ['live'] } }, { scopes: ['b'] }, [no, no, no, 'done']],
    ['with all but admin', { grants: { scopes: ['*'], environments: ['live'] } }, { scopes: ['api_keys:admin'] }, [no, no, no, 'done']],
  ])('%s creates, rotates, changes and revokes what it may hand out', async (_what, more, target, expected) => {
    expect(await attempt(operator(more), target)).toEqual(expected)
  })
})
