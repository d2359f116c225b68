import express5, { type Express } from 'express'
import { type ApiKeys, createApiKeys, keyRouter, memoryStore, type Operators } from 'express-api-keys'
import express4 from 'express4'
import { listen } from '../support/listen.js'
import { SERVER_SECRET } from '../support/process.js'

const everyone: Operators = {
  authenticate: () => ({ issuer: 'i', subject: 's', scopes: ['api_keys:read'], owners: ['acme', 'rival'] }),
} as never

describe.each([
  ['Express 5', express5],
  ['Express 4', express4],
] as [string, typeof express5][])('on %s', (_name, framework) => {
  let keys: ApiKeys
  let secret: string
  beforeAll(async () => {
    keys = createApiKeys({ store: memoryStore(), serverSecret: SERVER_SECRET, leaseMs: 5_000, waitForLease: false, onError: () => {} })
    secret = (await keys.create({ as: 'application', ownerId: 'acme', name: 'a', scopes: ['api_keys:read'] })).secret
    await keys.create({ as: 'application', ownerId: 'acme', name: 'b', scopes: [] })
    await keys.create({ as: 'application', ownerId: 'rival', name: 'c', scopes: [] })
  })
  afterAll(() => keys.close())

  test.each<[string, unknown]>([
    ['none', false],
    ['the simple one', 'simple'],
    ['the extended one', 'extended'],
    ['one that makes lists', (text: string) => Object.fromEntries([...new URLSearchParams(text)].map(([name, value]) => [name, [value]]))],
    ['one that leaves all out', () => ({ limit: '100' })],
    ['one that fails', () => null],
  ])('with %s as query parser, a query says what it says', async (_what, parser) => {
    const app: Express = framework()
    app.set('query parser', parser)
    app.use('/deep/keys', keyRouter(keys, { operators: everyone }))
    const url = `${await listen(app)}/deep/keys`
    // biome-ignore lint/suspicious/noExplicitAny: what a body holds is what the tests are about
    const ask = async (query: string, token = secret): Promise<[number, any]> => {
      const answer = await fetch(url + query, { headers: { authorization: `Bearer ${token}` } })
      return [answer.status, await answer.json()]
    }
    const names = async (query: string, token?: string): Promise<unknown> =>
      (await ask(query, token))[1].keys?.map(({ name }: { name: string }) => name)
    expect(await names('')).toEqual(['b', 'a'])
    const [status, page] = await ask('?limit=1')
    expect([status, page]).toMatchObject([200, { keys: [{ name: 'b' }] }])
    const { keys: one, nextCursor } = page
    expect([one.length, await names(`?cursor=${nextCursor}&limit=1`), await names(`?%6Cimit=%31&cursor=${nextCursor}`)]).toEqual([
      1,
      ['a'],
      ['a'],
    ])
    expect([await names('?ownerId=rival', 'a.b.c'), await names('?ownerId=acme', 'a.b.c')]).toEqual([['c'], ['b', 'a']])
    for (const query of [
      'limit=1&limit=1',
      'limit[]=1',
      'limit[a]=1',
      'page=2',
      '__proto__=1',
      'hasOwnProperty=1',
      'limit=',
      'limit',
      'ownerId=acme',
    ]) {
      expect([query, (await ask(`?${query}`))[0]]).toEqual([query, 400])
    }
    expect((await ask('?ownerId=acme&ownerId=rival', 'a.b.c'))[0]).toBe(400)
  })
})
