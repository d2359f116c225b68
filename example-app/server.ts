import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { type Cache, contracts, createApiKeys, type Store } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { sqliteStore } from 'express-api-keys/sqlite'
import { Redis } from 'ioredis'
import Database from 'libsql'
import { Pool } from 'pg'
import { parcelApp } from './app.js'
import { jsonApi } from './json-api.js'

const HELP = `Parcels: an example of express-api-keys.

  npm start

Environment
  PORT             where to listen                                   (default 3000)
  DATABASE_URL     a PostgreSQL database for the keys                (default: SQLite, in DATA_DIR)
  REDIS_URL        a Redis that speeds up several instances          (default: none)
  API_KEYS_SECRET  the server's secret, at least 32 bytes            (default: made once, kept in DATA_DIR)
  DATA_DIR         where SQLite and the secret are kept              (default example-app/data)
`

if (process.argv.includes('--help')) {
  console.log(HELP)
  process.exit()
}

const { PORT = '3000', DATABASE_URL, REDIS_URL, API_KEYS_SECRET, DATA_DIR = join(import.meta.dirname, 'data') } = process.env
const closers: (() => unknown)[] = []
mkdirSync(DATA_DIR, { recursive: true })
const cache = openCache()
const options = { store: openStore(), serverSecret: API_KEYS_SECRET ?? ownSecret(), ...(cache === undefined ? {} : { cache }) }
const keys = createApiKeys(options)
// The same store; only the secrets look different.
const suwappuKeys = createApiKeys({ ...options, prefix: 'suwappu_sk', environmentInSecret: false })
await keys.migrate()

// Signs the cookies of the page for people; nothing but a cookie is worth it.
const server = parcelApp(keys, suwappuKeys, randomBytes(32).toString('base64')).listen(Number(PORT), async () => {
  const url = `http://localhost:${(server.address() as AddressInfo).port}`
  console.log(`Parcels listens on ${url}`)
  await greet(url)
})
server.on('error', (error: NodeJS.ErrnoException) => {
  console.error(error.code === 'EADDRINUSE' ? `Port ${PORT} is taken; choose another: PORT=3001 npm start` : error.message)
  process.exit(1)
})
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    server.close(async () => {
      await Promise.all([keys.close(), suwappuKeys.close()])
      for (const close of closers) await close()
    })
    server.closeIdleConnections()
  })
}

/** On the first start, makes a key for each contract and shows it once, with what to try. */
async function greet(url: string): Promise<void> {
  const owner = 'example'
  if ((await keys.list({ ownerId: owner, limit: 1 })).items.length > 0) return
  const scopes = ['parcels:read', 'parcels:write', 'api_keys:read', 'api_keys:write']
  const { secret } = await keys.create({ as: 'application', ownerId: owner, name: 'first key', scopes })
  const curl = (bearer: string, path: string, more = ''): string =>
    `curl -s -X POST -H 'Authorization: Bearer ${bearer}' -H 'Idempotency-Key: first-rotation'${more} ${url}${path}`
  const rotate = curl(secret, '/api-keys/self/rotate')

  const made = async (name: string, more: { rotationSecret?: true } = {}): ReturnType<typeof keys.create> =>
    keys.create({ as: 'application', ownerId: owner, name: `a key for ${name}`, scopes: ['api_keys:write'], ...more })
  const [reddit, agent, rixl, blend, json] = [
    await made('redditFind'),
    await made('agents', { rotationSecret: true }),
    await made('rixl'),
    await made('blendFi'),
    await made('jsonApi'),
  ]
  const suwappu = await suwappuKeys.create({ as: 'application', ownerId: owner, name: 'a key for suwappu' })
  const body = ` -H 'Content-Type: application/json' -d '{"rotationSecret":"${agent.rotationSecret}"}'`
  console.log(`
Your first key, shown this once:

  ${secret}

Call the API:
  curl -s -H 'Authorization: Bearer ${secret}' ${url}/v1/parcels
Or with the key in X-API-Key:
  curl -s -H 'X-API-Key: ${secret}' ${url}/v1/parcels
Make, rotate and revoke keys in a browser:
  ${url}/account/
Rotate the key:
  ${rotate}
Lost the answer? The old key is dead now, but the same request still gets the same new secret:
  ${rotate}

A key for each of the other contracts, to be rotated once:
  ${curl(reddit.secret, `${contracts.redditFind.path}/${reddit.key.id}/rotate`)}
  ${curl(agent.secret, `${contracts.agents.path}/self/rotate-key`, body)}
  ${curl(rixl.secret, `${contracts.rixl.path}/${rixl.key.id}/rotate`)}
  ${curl(suwappu.secret, `${contracts.suwappu.path}/keys/rotate`)}
  ${curl(blend.secret, `${contracts.blendFi.path}/${blend.key.id}/rotate`)}
  ${curl(json.secret, `${jsonApi.path}/${json.key.id}/renewals`)}
`)
}

function openStore(): Store {
  if (DATABASE_URL !== undefined) {
    const pool = new Pool({ connectionString: DATABASE_URL })
    pool.on('error', (error) => console.error(`PostgreSQL: ${error.message}`))
    closers.push(() => pool.end())
    return postgresStore(pool)
  }
  const database = new Database(join(DATA_DIR, 'keys.db'))
  closers.push(() => database.close())
  return sqliteStore(database)
}

function openCache(): Cache | undefined {
  if (REDIS_URL === undefined) return undefined
  const redis = new Redis(REDIS_URL)
  redis.on('error', (error) => console.error(`Redis: ${error.message}`))
  closers.push(() => redis.disconnect())
  return redisCache(redis)
}

/** A secret of its own, so that the example starts with nothing set; a real deployment brings one from its secret store. */
function ownSecret(): string {
  const file = join(DATA_DIR, 'secret')
  if (!existsSync(file)) {
    writeFileSync(file, randomBytes(32).toString('base64'), { mode: 0o600, flag: 'wx' })
    console.log(`Made a server secret and kept it in ${file}; set API_KEYS_SECRET to use your own.`)
  }
  return readFileSync(file, 'utf8')
}
