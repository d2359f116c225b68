import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { contracts, memoryStore, openApiDocument } from 'express-api-keys'
import createClient from 'openapi-fetch'
import { atEnd } from '../support/cleanup.js'
import { serveContract } from '../support/contract.js'
import type { paths as Agents } from './agents.js'
import type { paths as BlendFi } from './blendFi.js'
import type { paths as RedditFind } from './redditFind.js'
import type { paths as Rixl } from './rixl.js'
import type { paths as Standard } from './standard.js'
import type { paths as Suwappu } from './suwappu.js'

const ROOT = join(__dirname, '../..')

test.each(Object.entries(contracts))('the document of %s is the one in docs/openapi, and its client is made from it', (name, contract) => {
  const file = join(ROOT, `docs/openapi/${name}.json`)
  expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual(JSON.parse(JSON.stringify(openApiDocument(contract))))
  const folder = mkdtempSync(join(tmpdir(), 'client-'))
  atEnd(async () => rmSync(folder, { recursive: true }))
  const generator = join(__dirname, 'node_modules/openapi-typescript/bin/cli.js')
  execFileSync(process.execPath, [generator, file, '-o', join(folder, 'client.ts')], { stdio: 'ignore', cwd: __dirname })
  expect(readFileSync(join(folder, 'client.ts'), 'utf8')).toBe(readFileSync(join(__dirname, `${name}.ts`), 'utf8'))
})

describe('a generated client rotates a key through', () => {
  const bearer = (secret: string): { Authorization: string } => ({ Authorization: `Bearer ${secret}` })

  test('standard', async () => {
    const { keys, url, accepted } = await serveContract(contracts.standard, memoryStore())
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const client = createClient<Standard>({ baseUrl: url, headers: bearer(secret) })
    const { data, error } = await client.POST('/v1/api-keys/{id}/rotate', {
      params: { path: { id: key.id }, header: { 'Idempotency-Key': 'one' } },
      body: { retire: 'now' },
    })
    expect([error, data?.key.generation, await accepted(data?.secret ?? '')]).toEqual([undefined, 2, 200])
    const refused = await client.POST('/v1/api-keys/self/rotate')
    expect([refused.response.status, refused.error?.code]).toEqual([401, 'invalid_key'])
  })

  test('redditFind', async () => {
    const { keys, url, accepted } = await serveContract(contracts.redditFind, memoryStore())
    const admin = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write'] })
    const { key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const client = createClient<RedditFind>({ baseUrl: url, headers: bearer(admin.secret) })
    const { data } = await client.POST('/api/open/v1/keys/{key_id}/rotate', { params: { path: { key_id: key.id } } })
    expect([data?.key.id, data?.object, await accepted(data?.token ?? '')]).toEqual([key.id, 'open_api.key.rotate', 200])
  })

  test('agents', async () => {
    const { keys, url, accepted } = await serveContract(contracts.agents, memoryStore())
    const { secret, rotationSecret = '' } = await keys.create({ as: 'application', ownerId: 'agent', name: 'Scout', rotationSecret: true })
    const client = createClient<Agents>({ baseUrl: url, headers: bearer(secret) })
    const { data } = await client.POST('/v1/agents/self/rotate-key', { body: { rotationSecret } })
    expect([data?.agentId, data?.agentName, await accepted(data?.apiKey ?? '')]).toEqual(['agent', 'Scout', 200])
  })

  test('rixl', async () => {
    const { keys, url, accepted } = await serveContract(contracts.rixl, memoryStore())
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const client = createClient<Rixl>({ baseUrl: url, headers: { Authorization: secret } })
    const { data } = await client.POST('/platform/api-keys/{keyId}/rotate', { params: { path: { keyId: key.id } } })
    expect([data?.api_key.id, await accepted(data?.api_key.secret ?? '')]).toEqual([key.id, 200])
  })

  test('suwappu', async () => {
    const options = { prefix: 'suwappu_sk', environmentInSecret: false }
    const { keys, url, accepted } = await serveContract(contracts.suwappu, memoryStore(), options)
    const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
    const client = createClient<Suwappu>({ baseUrl: url, headers: bearer(secret) })
    const { data } = await client.POST('/v1/agent/keys/rotate')
    expect([data?.success, await accepted(data?.api_key ?? '')]).toEqual([true, 200])
  })

  test('blendFi', async () => {
    const { keys, url, accepted } = await serveContract(contracts.blendFi, memoryStore())
    const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['trade'] })
    const client = createClient<BlendFi>({ baseUrl: url, headers: bearer(secret) })
    const { data } = await client.POST('/v1/api-keys/{id}/rotate', {
      params: { path: { id: key.id }, header: { 'Idempotency-Key': 'one' } },
    })
    expect([data?.capabilities, await accepted(data?.api_key ?? '')]).toEqual([['trade'], 200])
  })
})
