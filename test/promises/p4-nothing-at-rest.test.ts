import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import express from 'express'
import { type ApiKeys, bearerAuth, createApiKeys, keyRouter, type Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { sqliteStore } from 'express-api-keys/sqlite'
import { Redis } from 'ioredis'
import Database from 'libsql'
import { atEnd } from '../support/cleanup.js'
import { dumpDatabase, freshDatabase } from '../support/postgres.js'
import { startRedis } from '../support/redis.js'
import { type Answer, call } from '../support/traffic.js'

const SERVER_SECRET = 'the-server-secret-of-these-tests-0123456789'

let log = ''
const spies: jest.SpyInstance[] = []

beforeEach(() => {
  log = ''
  for (const stream of [process.stdout, process.stderr]) {
    spies.push(
      jest.spyOn(stream, 'write').mockImplementation((chunk) => {
        log += String(chunk)
        return true
      }),
    )
  }
  for (const method of ['log', 'warn', 'error', 'info', 'debug'] as const) {
    spies.push(
      jest.spyOn(console, method).mockImplementation((...args) => {
        log += args.map((arg) => inspect(arg, { depth: null, showHidden: true })).join(' ')
      }),
    )
  }
})

afterEach(() => {
  for (const spy of spies.splice(0)) spy.mockRestore()
})

test('P4: a Postgres dump, all Redis values and the log hold nothing that could be presented', async () => {
  const database = await freshDatabase()
  const redis = await startRedis()
  const client = new Redis(redis.url)
  atEnd(async () => client.disconnect())
  const life = await wholeLife(postgresStore(database.pool), redisCache(client))
  const dump = Buffer.from(await dumpDatabase(database.url)).toString('latin1')
  const cached = await redis.dump()
  expect(dump).toContain(life.keyId)
  expect(cached).toContain('express-api-keys:')
  expect(sightings(life.forbidden, { dump, cached, log })).toEqual([])
})

test('P4: the SQLite file, its write-ahead log and the log hold nothing that could be presented', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-'))
  const database = new Database(join(folder, 'keys.db'))
  atEnd(async () => {
    database.close()
    rmSync(folder, { recursive: true })
  })
  const life = await wholeLife(sqliteStore(database), undefined)
  const files = readdirSync(folder)
  const bytes = files.map((file) => readFileSync(join(folder, file)).toString('latin1')).join('\n')
  expect(files).toContain('keys.db-wal')
  expect(bytes).toContain(life.keyId)
  expect(sightings(life.forbidden, { bytes, log })).toEqual([])
})

/** Everything that happens to keys, over HTTP; resolves with every string that must not be found anywhere. */
async function wholeLife(store: Store, cache: ReturnType<typeof redisCache> | undefined): Promise<{ forbidden: string[]; keyId: string }> {
  const keys: ApiKeys = createApiKeys({
    store,
    ...(cache === undefined ? {} : { cache }),
    secret: SERVER_SECRET,
    leaseMs: 50,
    onError: (error) => console.error(error),
  })
  await keys.migrate()
  const app = express()
  app.use('/keys', keyRouter(keys))
  app.get('/data', bearerAuth(keys), (req, res) => {
    console.log(req.apiKey)
    res.json({ ok: true })
  })
  const server: Server = await new Promise((resolve) => {
    const listening = app.listen(0, '127.0.0.1', () => resolve(listening))
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  atEnd(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
    await keys.close()
  })
  const secrets: string[] = []
  const noted = (answer: Answer): string => {
    const { secret } = answer.body as { secret: string }
    secrets.push(secret)
    return secret
  }

  const first = await keys.create({ ownerId: 'acme', name: 'admin', scopes: ['api_keys:write', 'api_keys:read'] })
  console.log(first, { first }, JSON.stringify(first), `${first}`)
  const admin = first.secret
  secrets.push(admin)
  const made = await call(`${url}/keys`, { method: 'POST', secret: admin, idempotencyKey: 'make-one-of-these', body: { name: 'worker' } })
  const worker = noted(made)
  const keyId = (made.body as { key: { id: string } }).key.id
  expect((await call(`${url}/data`, { secret: worker })).status).toBe(200)
  const rotate = { method: 'POST', secret: worker, idempotencyKey: 'rotate-this-very-key' }
  const rotated = noted(await call(`${url}/keys/self/rotate`, rotate))
  const replayed = await call(`${url}/keys/self/rotate`, rotate)
  expect(replayed.body).toMatchObject({ secret: rotated })
  expect((await call(`${url}/data`, { secret: worker })).status).toBe(401)
  expect((await call(`${url}/data`, { secret: rotated })).status).toBe(200)
  expect((await call(`${url}/data`, { secret: `${rotated.slice(0, -1)}${rotated.endsWith('0') ? '1' : '0'}` })).status).toBe(401)
  expect((await call(`${url}/keys/self/rotate`, { ...rotate, body: { nonsense: true } })).status).toBe(400)
  noted(await call(`${url}/keys/${keyId}/rotate`, { method: 'POST', secret: admin, idempotencyKey: 'the-admin-rotates' }))
  expect((await call(`${url}/keys/${keyId}/revoke`, { method: 'POST', secret: admin, body: { reason: 'leaked' } })).status).toBe(200)
  expect((await call(`${url}/keys/${keyId}/rotate`, { method: 'POST', secret: admin })).status).toBe(409)

  return {
    // The random part alone is as good as the whole; the prefix is known to all.
    forbidden: [
      SERVER_SECRET,
      'make-one-of-these',
      'rotate-this-very-key',
      'the-admin-rotates',
      ...secrets.flatMap((secret) => [secret, secret.slice(8, 51)]),
    ],
    keyId,
  }
}

/** Where a forbidden string turns up, as it is or in a common encoding. */
function sightings(forbidden: readonly string[], places: Record<string, string>): string[] {
  return Object.entries(places).flatMap(([place, content]) =>
    forbidden
      .flatMap((text) => {
        const bytes = Buffer.from(text)
        // Base64 of a string inside another depends on where it begins; the middle of each of the three alignments does not.
        const inBase64 = [0, 1, 2].map((shift) =>
          Buffer.concat([Buffer.alloc(shift), bytes])
            .toString('base64')
            .slice(4, -4),
        )
        const forms = [text, bytes.toString('hex'), bytes.toString('hex').toUpperCase(), ...inBase64, ...inBase64.map(urlSafe)]
        return forms.filter((form) => content.includes(form))
      })
      .map((form) => `${place}: ${form.slice(0, 4)}… (${form.length} characters)`),
  )
}

function urlSafe(base64: string): string {
  return base64.replaceAll('+', '-').replaceAll('/', '_')
}
