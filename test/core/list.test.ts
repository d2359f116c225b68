import { type ApiKeys, createApiKeys, type KeyQuery, memoryStore } from 'express-api-keys'
import fc from 'fast-check'

const SECRET = 'the-server-secret-0123456789-0123456789'

test('lists the keys of all owners where no owner is named, and refuses an owner that got lost', async () => {
  const keys = fresh()
  for (const ownerId of ['acme', 'globex']) await keys.create({ as: 'application', ownerId, name: 'n' })
  expect((await keys.list({})).items.map(({ ownerId }) => ownerId).toSorted()).toEqual(['acme', 'globex'])
  expect((await keys.list({ ownerId: 'acme' })).items).toHaveLength(1)
  await expect(keys.list({ ownerId: undefined as never })).rejects.toMatchObject({ code: 'invalid_request' })
})

test.each<[query: object, said: string]>([
  [{ status: 'dead' }, 'status must be "active", "disabled", "expired" or "revoked".'],
  [{ environment: 'prod' }, 'environment must be "live" or "test".'],
  [{ expiresBefore: 'soon' }, 'expiresBefore must be an RFC 3339 instant, such as 2030-01-31T12:00:00Z.'],
  [{ expiresBefore: null }, 'expiresBefore must be an RFC 3339 instant, such as 2030-01-31T12:00:00Z.'],
  [{ lastUsedBefore: 5 }, 'lastUsedBefore must be an RFC 3339 instant, such as 2030-01-31T12:00:00Z.'],
  [{ name: '' }, 'name must be a string of 1 to 255 characters.'],
  [{ name: 'a\0' }, 'name must not hold control characters.'],
  [{ last4: 'ab_d' }, 'last4 must be the last four characters of a secret, letters and digits.'],
])('refuses the filter %j and says what to write', async (query, said) => {
  await expect(fresh().list({ ownerId: 'acme', ...query } as KeyQuery)).rejects.toMatchObject({ code: 'invalid_request', message: said })
})

test('finds a key by the end of its secret, by its status and by its expiry', async () => {
  const keys = fresh()
  const one = await keys.create({ as: 'application', ownerId: 'acme', name: 'Nightly Reports', expiresAt: '2999-01-01T00:00:00Z' })
  const { key: other } = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci' })
  await keys.revoke({ as: 'application', id: other.id })
  const found = async (query: KeyQuery): Promise<readonly string[]> => (await keys.list(query)).items.map(({ name }) => name)
  expect(await found({ last4: one.secret.slice(-4) })).toContain('Nightly Reports')
  expect(await found({ status: 'revoked' })).toEqual(['ci'])
  expect(await found({ expiresBefore: new Date('2999-01-02') })).toEqual(['Nightly Reports'])
  expect(await found({ name: 'REPORT' })).toEqual(['Nightly Reports'])
})

test('pages neither repeat nor hide a key, whatever is created and changed between two of them', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 0, max: 12 }),
      fc.integer({ min: 1, max: 4 }),
      fc.array(fc.constantFrom('create', 'rename', 'none'), { maxLength: 12 }),
      async (count, limit, between) => {
        const keys = fresh()
        const make = async (): Promise<string> => (await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })).key.id
        const first: string[] = []
        for (let made = 0; made < count; made++) first.push(await make())
        const seen: string[] = []
        const steps = [...between]
        for (let cursor: string | undefined; ; ) {
          const page = await keys.list({ ownerId: 'acme', limit, ...(cursor === undefined ? {} : { cursor }) })
          seen.push(...page.items.map(({ id }) => id))
          if (page.nextCursor === null) break
          cursor = page.nextCursor
          const step = steps.shift()
          const [id] = first
          if (step === 'create') await make()
          if (step === 'rename' && id !== undefined) await keys.update({ as: 'application', id, changes: { name: 'm' } })
        }
        expect(new Set(seen).size).toBe(seen.length)
        expect(seen).toEqual(expect.arrayContaining(first))
      },
    ),
    { numRuns: 40 },
  )
})

function fresh(): ApiKeys {
  return createApiKeys({ store: memoryStore(), serverSecret: SECRET })
}
