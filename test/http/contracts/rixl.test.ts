import { contracts } from 'express-api-keys'
import { everyStore, playContract, type Serving, serveContract } from '../../support/contract.js'

const contract = contracts.rixl

playContract({
  contract,
  async prepare(keys) {
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'worker' })
    return { request: { path: `/${key.id}/rotate`, secret }, secret, retires: secret, id: key.id }
  },
  async prepareGuarded(keys) {
    const caller = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const { key, rotationSecret = '' } = await keys.create({ as: 'application', ownerId: 'acme', name: 'guarded', rotationSecret: true })
    return { request: { path: `/${key.id}/rotate`, secret: caller.secret }, rotationSecret }
  },
  secretOf: ({ body }) => body.api_key.secret,
  published: { error: { code: expect.stringMatching(/^(credential_missing|credential_malformed|invalid_key)$/) } },
})

describe.each(everyStore)('on %s', (_name, makeStore) => {
  let here: Serving
  beforeAll(async () => {
    here = await serveContract(contract, await makeStore())
  })

  test('answers as published: strings only, the expiry kept, and what is not there left out', async () => {
    const expiresAt = '2099-01-31T00:00:00.000Z'
    const metadata = { org_id: 'org_1', project_id: 'p_1', project_name: 'Films', more: 1 }
    const full = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'full', expiresAt, metadata })
    const bare = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'bare', metadata: { org_id: 7 } })
    const [one, two] = [
      await here.send({ path: `/${full.key.id}/rotate`, secret: full.secret }),
      await here.send({ path: `/${bare.key.id}/rotate`, secret: bare.secret }),
    ]
    expect([one.status, one.body]).toEqual([
      200,
      {
        api_key: {
          created_at: full.key.createdAt,
          expiring_at: expiresAt,
          id: full.key.id,
          name: 'full',
          org_id: 'org_1',
          project_id: 'p_1',
          project_name: 'Films',
          secret: expect.stringMatching(/^sk_live_/),
        },
      },
    ])
    expect(two.body).toEqual({
      api_key: { created_at: bare.key.createdAt, id: bare.key.id, name: 'bare', secret: expect.stringMatching(/^sk_live_/) },
    })
    expect((await here.keys.get(full.key.id))?.expiresAt).toBe(expiresAt)
  })

  test('takes the bare token too, but no other scheme', async () => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'bare' })
    const send = (value: string): ReturnType<Serving['send']> =>
      here.send({ path: `/${key.id}/rotate`, headers: ['Authorization', value], idempotencyKey: 'one' })
    expect((await send(`Basic ${secret}`)).status).toBe(401)
    for (const bad of ['Bearer', `"${secret}"`, `${secret} ${secret}`, `${secret},${secret}`]) expect((await send(bad)).status).toBe(401)
    const answer = await send(secret)
    expect(answer.status).toBe(200)
    expect((await send(`bearer ${secret}`)).body).toEqual(answer.body)
  })

  test('errors have snake_case codes', async () => {
    const { key, secret } = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const other = await here.keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const foreign = await here.keys.create({ as: 'application', ownerId: 'other', name: 'n' })
    const send = async (id: string, caller: string): Promise<unknown> => {
      const { status, body } = await here.send({ path: `/${id}/rotate`, secret: caller })
      return [status, body.error.code]
    }
    expect(await send(other.key.id, secret)).toEqual([403, 'insufficient_scope'])
    expect(await send(foreign.key.id, secret)).toEqual([404, 'key_not_found'])
    expect(await send('x', secret)).toEqual([400, 'key_id_invalid'])
    await here.keys.revoke({ as: 'application', id: key.id })
    expect(await send(key.id, secret)).toEqual([401, 'invalid_key'])
  })
})

test('a bare token is taken by this contract only', async () => {
  for (const other of [contracts.standard, contracts.redditFind, contracts.agents, contracts.suwappu, contracts.blendFi]) {
    expect(other.from).toBeUndefined()
  }
})
