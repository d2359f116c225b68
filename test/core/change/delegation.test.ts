import { type ApiKey, type ApiKeyErrorCode, type ApiKeys, createApiKeys, type Environment, memoryStore } from 'express-api-keys'
import fc from 'fast-check'
import { type AuthorisationCase, authorise } from '../../../src/core/change/authorise.js'
import { SERVER_SECRET } from '../../support/process.js'

/** What routes ask for. Each wildcard below covers one that no key names, so that a list of names never stands for a wildcard. */
const WANTED = [
  'a',
  'a:b',
  'a:b:c',
  'a:other',
  'a:b:other',
  'b',
  'other',
  'api_keys:read',
  'api_keys:write',
  'api_keys:admin',
  'api_keys:other',
]
const NAMED = ['a', 'a:b', 'a:b:c', 'b', 'api_keys:read', 'api_keys:write']
const WILD = ['*', 'a:*', 'a:b:*', 'api_keys:*']
/**
 * Lists of addresses, and which of 10.0.0.1, 10.0.0.200, 10.0.1.1, 192.0.2.1, 2001:db8::1 and 2001:db8:0:1::1 are in each: every bound of a list lies between two of
 * them.
 */
const LISTS: readonly (readonly [readonly string[] | null, readonly number[]])[] = [
  [null, [0, 1, 2, 3, 4, 5]],
  [['10.0.0.0/16'], [0, 1, 2]],
  [['10.0.0.0/24'], [0, 1]],
  [
    ['10.0.0.0/25', '2001:db8::/64'],
    [0, 4],
  ],
  [
    ['2001:db8::/32', '10.0.0.0/24'],
    [0, 1, 4, 5],
  ],
  [['0.0.0.0/0'], [0, 1, 2, 3]],
]
const HOME = '10.0.0.1'
const INSTANTS = [null, Date.UTC(2090, 0), Date.UTC(2091, 0)]

interface Reach {
  readonly scopes: readonly string[]
  readonly environment: Environment
  readonly expiresAt: number | null
  readonly allowedIps: readonly string[] | null
}

/** What a list of scopes opens, said in another way than the code does. */
function opened(scopes: readonly string[]): string[] {
  const patterns = scopes.map((scope) => {
    if (scope === 'api_keys:admin') return /^api_keys:(read|write|admin)$/
    return new RegExp(`^${scope.replace(/^\*$/, '(?!api_keys:admin$).+').replace(/:\*$/, ':(?!(?<=^api_keys:)admin$).+')}$`)
  })
  return WANTED.filter((wanted) => patterns.some((pattern) => pattern.test(wanted)))
}

function isWithin(inner: Reach, outer: Reach): boolean {
  const wide = opened(outer.scopes)
  return (
    opened(inner.scopes).every((scope) => wide.includes(scope)) &&
    inner.environment === outer.environment &&
    addressesOf(inner).every((address) => addressesOf(outer).includes(address)) &&
    (inner.expiresAt ?? Number.POSITIVE_INFINITY) <= (outer.expiresAt ?? Number.POSITIVE_INFINITY)
  )
}

function addressesOf({ allowedIps }: Pick<Reach, 'allowedIps'>): readonly number[] {
  return LISTS.find(([list]) => JSON.stringify(list) === JSON.stringify(allowedIps))?.[1] ?? []
}

const reachOf = ({ scopes, environment, expiresAt, allowedIps }: ApiKey): Reach => ({
  ...{ scopes, environment, allowedIps },
  expiresAt: expiresAt === null ? null : Date.parse(expiresAt),
})
const inputOf = ({ expiresAt, ...rest }: Reach): object => ({ ...rest, expiresAt: expiresAt === null ? null : new Date(expiresAt) })

const someScopes = fc.uniqueArray(fc.constantFrom(...NAMED, ...WILD, 'api_keys:admin'), { maxLength: 4 })
const someEnvironment = fc.constantFrom<Environment>('live', 'live', 'live', 'test')
const someInstant = fc.constantFrom(...INSTANTS)
const someList = fc.constantFrom(...LISTS).map(([list]) => list)
const someReach: fc.Arbitrary<Reach> = fc.record({
  ...{ scopes: someScopes, environment: someEnvironment, expiresAt: someInstant, allowedIps: someList },
})
/** A key that may hand something out, within bounds. */
const someWriter: fc.Arbitrary<Reach> = fc.record({
  scopes: fc.uniqueArray(fc.constantFrom(...NAMED, ...WILD), { maxLength: 4 }).map((scopes) => [...new Set([...scopes, 'api_keys:write'])]),
  ...{ environment: someEnvironment, expiresAt: someInstant },
  // Most have none, or hardly anything could be made.
  allowedIps: fc.oneof({ weight: 3, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: someList }),
})
const someStep = fc.record({
  what: fc.constantFrom('create', 'create', 'rotate', 'update', 'update', 'revoke'),
  by: fc.nat(),
  to: fc.nat(),
  reach: someReach,
  changes: fc.constantFrom<readonly ('scopes' | 'expiresAt' | 'allowedIps')[]>(
    ['scopes'],
    ['expiresAt'],
    ['allowedIps'],
    ['scopes', 'expiresAt'],
  ),
})
type Step = typeof someStep extends fc.Arbitrary<infer T> ? T : never

/** Keys of one owner, and the secrets that somebody holds who began with the first one. */
class Holdings {
  readonly all: ApiKey[] = []
  readonly #secrets = new Map<string, string>()
  readonly keys: ApiKeys

  constructor(keys: ApiKeys) {
    this.keys = keys
  }

  async issue(reach: Reach, held: boolean): Promise<ApiKey> {
    const { key, secret } = await this.keys.create({ as: 'application', ownerId: 'acme', name: 'n', ...inputOf(reach) })
    this.all.push(key)
    if (held) this.#secrets.set(key.id, secret)
    return key
  }

  get held(): ApiKey[] {
    return this.all.filter(({ id }) => this.#secrets.has(id))
  }

  /** Tries a step with a secret that is held, and notes what came of it. */
  async take({
    what,
    by,
    to,
    reach,
    changes,
  }: Step): Promise<{ actor: ApiKey; before?: ApiKey; after?: ApiKey; code: ApiKeyErrorCode | 'done' }> {
    const actor = this.held[by % this.held.length] as ApiKey
    const target = this.all[to % this.all.length] as ApiKey
    const common = { as: { secret: this.#secrets.get(actor.id) ?? '' }, id: target.id, origin: { ip: HOME } }
    const { id: _, ...maker } = common
    const asked = inputOf(reach) as Pick<Reach, 'scopes' | 'allowedIps'> & { readonly expiresAt: Date | null }
    const work = {
      create: () => this.keys.create({ ...maker, name: 'made', ...asked }),
      rotate: () => this.keys.rotate(common),
      update: () => this.keys.update({ ...common, changes: Object.fromEntries(changes.map((name) => [name, asked[name]])) }),
      revoke: () => this.keys.revoke(common),
    }[what as 'create'] as () => Promise<{ readonly key: ApiKey; readonly secret?: string }>
    const before = what === 'create' ? {} : { before: target }
    try {
      const { key, secret } = await work()
      this.all[what === 'create' ? this.all.length : this.all.indexOf(target)] = key
      if (secret !== undefined) this.#secrets.set(key.id, secret)
      return { actor, ...before, after: key, code: 'done' }
    } catch (error) {
      return { actor, ...before, code: (error as { code: ApiKeyErrorCode }).code }
    }
  }
}

test('whoever begins with one key that has api_keys:write never holds, makes or changes what goes beyond it', async () => {
  const done: { [what: string]: number } = {}
  const steps = fc.array(someStep, { minLength: 1, maxLength: 16 })
  await fc.assert(
    fc.asyncProperty(someWriter, fc.array(someReach, { maxLength: 3 }), steps, async (first, others, all) => {
      const keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET })
      const holdings = new Holdings(keys)
      const bound = reachOf(await holdings.issue(first, true))
      for (const other of others) await holdings.issue(other, false)
      for (const step of all) {
        const { actor, before, after, code } = await holdings.take(step)
        if (actor.status === 'revoked') expect(code).toBe('invalid_key')
        else expect(['done', 'insufficient_scope', 'key_revoked']).toContain(code)
        if (step.what === 'create' && actor.status === 'active') {
          const may = opened(actor.scopes).includes('api_keys:write') && isWithin(step.reach, reachOf(actor))
          expect(code).toBe(may ? 'done' : 'insufficient_scope')
        }
        if (after === undefined) continue
        done[step.what] = (done[step.what] ?? 0) + 1
        if (step.what === 'revoke') expect([actor.environment, before?.environment]).not.toEqual(['test', 'live'])
        else for (const one of [before ?? after, after]) expect([one, isWithin(reachOf(one), reachOf(actor))]).toEqual([one, true])
        for (const one of holdings.held) expect([one, isWithin(reachOf(one), bound)]).toEqual([one, true])
      }
      await keys.close()
    }),
    { numRuns: 300 },
  )
  // Else nothing was tried.
  for (const what of ['create', 'rotate', 'update', 'revoke']) expect([what, (done[what] ?? 0) > 20]).toEqual([what, true])
})

test('a change that is allowed crosses neither owners nor environments, and stays within who asks, whatever that is', () => {
  const someKey = fc
    .tuple(someReach, fc.constantFrom('acme', 'acme', 'globex'), fc.constantFrom('1', '2'))
    .map(([reach, ownerId, id]) => ({ ...reach, ownerId, id }) as unknown as NonNullable<AuthorisationCase['target']>)
  const someOperator = fc
    .tuple(
      fc.constantFrom<string[]>(['api_keys:write'], ['*'], ['api_keys:read']),
      fc.constantFrom<'all' | string[]>('all', [], ['acme']),
      fc.option(
        fc.record({
          scopes: fc.oneof(someScopes, fc.constant(['*'])),
          environments: fc.constantFrom<Environment[]>([], ['live'], ['live', 'test']),
        }),
        { nil: undefined },
      ),
    )
    .map(([scopes, owners, grants]) => ({ issuer: 'i', subject: 's', scopes, owners, ...(grants === undefined ? {} : { grants }) }))
  const someCase = fc.record({
    who: fc.oneof(
      someKey.map((caller) => ({ caller, operator: undefined })),
      someOperator.map((operator) => ({ caller: undefined, operator })),
    ),
    what: fc.oneof(
      someKey.map((after) => ({ target: undefined, newOwnerId: after.ownerId, after })),
      fc.tuple(someKey, someReach).map(([target, after]) => ({ target, newOwnerId: undefined, after: { ...target, ...after } })),
      someKey.map((target) => ({ target, newOwnerId: undefined, after: target })),
    ),
    selfAllowed: fc.boolean(),
    delegation: fc.constantFrom('bounded' as const, 'open' as const),
  })
  let allowed = 0
  fc.assert(
    fc.property(someCase, ({ who, what, selfAllowed, delegation }) => {
      if (authorise({ ...who, ...what, selfAllowed, delegation } as AuthorisationCase) !== undefined) return
      const { caller, operator } = who
      const { target, newOwnerId, after } = what
      const reaches = [target ?? after, after]
      if (caller !== undefined) {
        expect(newOwnerId ?? target?.ownerId).toBe(caller.ownerId)
        if (caller.scopes.includes('api_keys:admin') || (selfAllowed && target?.id === caller.id)) return
        expect(opened(caller.scopes)).toContain('api_keys:write')
        for (const reach of reaches) {
          expect(reach.environment).toBe(caller.environment)
          if (delegation === 'bounded') expect(isWithin(reach, caller)).toBe(true)
        }
      } else {
        expect(opened(operator.scopes)).toContain('api_keys:write')
        if (operator.owners !== 'all') expect(operator.owners).toContain(newOwnerId ?? target?.ownerId)
        for (const reach of reaches) {
          expect(operator.grants?.environments).toContain(reach.environment)
          expect(isWithin({ ...reach, expiresAt: null }, { ...reach, expiresAt: null, scopes: operator.grants?.scopes ?? [] })).toBe(true)
        }
      }
      allowed++
    }),
    { numRuns: 3_000 },
  )
  expect(allowed).toBeGreaterThan(100)
})
