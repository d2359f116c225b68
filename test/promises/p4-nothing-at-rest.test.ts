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
import { dumpDatabase, freshDatabase, logFile } from '../support/postgres.js'
import { startRedis } from '../support/redis.js'
import { SOURCE } from '../support/source.js'
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
  const since = await logFile(database.url)
  const redis = await startRedis()
  const client = new Redis(redis.url)
  atEnd(async () => client.disconnect())
  const life = await wholeLife(postgresStore(database.pool), redisCache(client))
  const dump = Buffer.from(await dumpDatabase(database.url, since)).toString('latin1')
  const cached = await redis.dump()
  expect(dump).toContain(life.keyId)
  expect(cached).toContain('express-api-keys:')
  expect(sightings(life.forbidden, { dump, cached, log, told: life.told })).toEqual([])
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
  expect(sightings(life.forbidden, { bytes, log, told: life.told })).toEqual([])
})

interface Life {
  /** Every string that must not be found anywhere. */
  readonly forbidden: string[]
  readonly keyId: string
  /** All that is told of keys besides the answers that hand out a secret: failures, events, listings, listeners. */
  readonly told: string
}

/** Everything that happens to keys, over HTTP. */
async function wholeLife(store: Store, cache: ReturnType<typeof redisCache> | undefined): Promise<Life> {
  const keys: ApiKeys = createApiKeys({
    store,
    ...(cache === undefined ? {} : { cache }),
    serverSecret: SERVER_SECRET,
    leaseMs: 250,
    onError: (error) => console.error(error),
  })
  await keys.migrate()
  const app = express()
  app.use('/keys', keyRouter(keys, { from: SOURCE.source }))
  app.get('/data', bearerAuth(keys, { from: SOURCE.source }), (req, res) => {
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
  const told: unknown[] = []
  for (const name of ['created', 'updated', 'rotated', 'replayed', 'revoked', 'refused'] as const)
    keys.on(name, (happening) => told.push(happening))
  const secrets: string[] = []
  const noted = (answer: Answer): string => {
    const { secret } = answer.body as { secret: string }
    secrets.push(secret)
    return secret
  }

  const first = await keys.create({ as: 'application', ownerId: 'acme', name: 'admin', scopes: ['api_keys:write', 'api_keys:read'] })
  console.log(first, { first }, `${first}`)
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

  await lifeOfRotationSecrets()
  for (const path of [`/keys/${keyId}/events`, `/keys/${keyId}`, '/keys']) {
    const answer = await call(url + path, { secret: admin })
    expect(answer.status).toBe(200)
    told.push(answer.body)
  }
  await keys.close()
  expect(told.length).toBeGreaterThan(20)

  return {
    told: told.map((one) => inspect(one, { depth: null, showHidden: true })).join('\n'),
    // The random part alone is as good as the whole, and found wherever the whole is; the prefix is known to all.
    forbidden: [
      SERVER_SECRET,
      'make-one-of-these',
      'rotate-this-very-key',
      'the-admin-rotates',
      'make-a-guarded-one',
      'rotate-with-both',
      ...secrets.map((secret) => secret.replace(/^(sk|rot)_live_/, '').slice(0, 43)),
    ],
    keyId,
  }

  async function lifeOfRotationSecrets(): Promise<void> {
    const post = (path: string, secret: string, body: object, idempotencyKey?: string): Promise<Answer> =>
      call(url + path, { method: 'POST', secret, body, ...(idempotencyKey === undefined ? {} : { idempotencyKey }) })
    const both = (answer: Answer): { secret: string; rotationSecret: string } => {
      const { rotationSecret } = answer.body as { rotationSecret: string }
      secrets.push(rotationSecret)
      return { secret: noted(answer), rotationSecret }
    }
    const refused = async (status: number, answer: Promise<Answer>): Promise<void> => {
      const { status: said, body, headers } = await answer
      expect(said).toBe(status)
      told.push(body, [...headers])
    }
    const self = '/keys/self/rotate'
    const made = both(await post('/keys', admin, { name: 'guarded', rotationSecret: true }, 'make-a-guarded-one'))
    const other = both(await post('/keys', admin, { name: 'other', rotationSecret: true }))
    await refused(403, post(self, made.secret, {}))
    await refused(401, post(self, made.secret, { rotationSecret: other.rotationSecret }))
    await refused(401, post(self, made.secret, { rotationSecret: made.rotationSecret.slice(0, -1) }))
    await refused(401, post(self, made.rotationSecret, { rotationSecret: made.secret }))
    await refused(400, post(self, made.secret, { rotationSecret: made.rotationSecret, [made.rotationSecret.slice(0, 4)]: 1 }))
    const first = { rotationSecret: made.rotationSecret }
    const second = both(await post(self, made.secret, first, 'rotate-with-both'))
    expect((await post(self, made.secret, first, 'rotate-with-both')).body).toMatchObject(second)
    await refused(401, post(self, made.secret, { rotationSecret: other.rotationSecret }, 'rotate-with-both'))
    await refused(422, post(self, made.secret, { ...first, retire: { afterMs: 1 } }, 'rotate-with-both'))
    const third = both(await post(self, second.secret, { rotationSecret: second.rotationSecret, retire: { afterMs: 60_000 } }, 'grace'))
    await refused(409, post(self, third.secret, { rotationSecret: third.rotationSecret }))
    both(await post(self, third.secret, { rotationSecret: third.rotationSecret, emergency: true }, 'emergency'))
    await refused(401, post(self, third.secret, { rotationSecret: third.rotationSecret, emergency: true }, 'emergency'))
    for (const command of [
      { as: { secret: other.secret }, rotationSecret: made.rotationSecret },
      { as: 'application' as const, id: keyId, rotationSecret: other.rotationSecret },
      { as: { secret: second.secret }, rotationSecret: second.rotationSecret, idempotencyKey: 'late' },
    ]) {
      const error = await keys.rotate(command).catch((thrown: unknown) => thrown)
      expect(error).toBeInstanceOf(Error)
      told.push(error)
      console.error(error)
    }
    const issued = await keys.rotate({ as: { secret: other.secret }, rotationSecret: other.rotationSecret })
    secrets.push(issued.secret, issued.rotationSecret ?? '')
    console.log(issued, { issued }, `${issued}`, { ...issued })
    for (const each of [issued, { ...issued }]) expect(() => JSON.stringify(each)).toThrow('Pick what the client gets')
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
