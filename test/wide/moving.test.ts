import { execFileSync } from 'node:child_process'
import { createHash, generateKeyPairSync, randomBytes, randomUUID } from 'node:crypto'
import { join } from 'node:path'
import express, { type Express } from 'express'
import { type ApiKeys, bearer, bearerAuth, createApiKeys, header, type ImportRow, keyRouter, type LegacyFormat } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import jwt from 'jsonwebtoken'
import passport from 'passport'
import { Strategy } from 'passport-http-bearer'
import { atEnd } from '../support/cleanup.js'
import { listen } from '../support/listen.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'
import { keyOrOldToken } from './moving/beside-tokens.js'
import { type BetterAuthRow, betterAuthKeys, fromBetterAuth } from './moving/from-better-auth.js'
import { fromTokens, type TokenRow, tokens } from './moving/from-http-bearer.js'
import { fromUnkey, type UnkeyRow, unkeyKeys } from './moving/from-unkey.js'

async function moved(form: LegacyFormat, rows: readonly ImportRow[]): Promise<{ keys: ApiKeys; url: string }> {
  const { pool } = await freshDatabase()
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET, legacyFormats: [form] })
  atEnd(() => keys.close())
  await keys.migrate()
  expect(await keys.import(rows)).toMatchObject({ rows: rows.length, imported: rows.length, failed: 0, failures: [] })
  expect(await keys.import(rows)).toMatchObject({ imported: 0, existing: rows.length })
  const app = express()
  app.use('/keys', keyRouter(keys, { from: [bearer(), header('x-api-key')], limits: false }))
  app.get(
    '/data',
    bearerAuth(keys, { from: [bearer(), header('x-api-key')], failuresPerMinute: false }),
    (req, res) => void res.json(req.apiKey),
  )
  return { keys, url: await listen(app) }
}

type Sends = (secret: string) => Record<string, string>
const asBearer: Sends = (secret) => ({ authorization: `Bearer ${secret}` })
const asHeader: Sends = (secret) => ({ 'x-api-key': secret })

async function status(url: string, headers: Record<string, string>): Promise<number> {
  return (await fetch(`${url}/data`, { headers })).status
}

/** Every client goes on with its old secret; one of them rotates, loses the answer, and asks for it again. */
async function goesOn(url: string, secrets: readonly string[], sends: Sends): Promise<void> {
  const statuses = new Map<number, number>()
  for (let from = 0; from < secrets.length; from += 50)
    for (const one of await Promise.all(secrets.slice(from, from + 50).map((secret) => status(url, sends(secret)))))
      statuses.set(one, (statuses.get(one) ?? 0) + 1)
  expect(statuses).toEqual(new Map([[200, secrets.length]]))
  const [secret = ''] = secrets
  const rotate = (): Promise<Response> =>
    fetch(`${url}/keys/self/rotate`, {
      method: 'POST',
      headers: { ...sends(secret), 'idempotency-key': `once-${createHash('md5').update(secret).digest('hex')}` },
    })
  const [lost, again] = [await rotate(), await rotate()]
  const [first, second] = [(await lost.json()) as { secret: string }, (await again.json()) as { secret: string }]
  expect([lost.status, again.status, second.secret]).toEqual([200, 200, first.secret])
  expect(first.secret).toMatch(/^sk_live_/)
  expect([await status(url, sends(secret)), await status(url, sends(first.secret))]).toEqual([401, 200])
}

/** The same with other characters of the same form. */
const other = (secret: string): string => secret.slice(0, -4) + secret.slice(-4).replaceAll(/./g, (one) => (one === 'a' ? 'b' : 'a'))

test('a thousand keys of @better-auth/api-key go on working', async () => {
  const made = JSON.parse(
    execFileSync(process.execPath, [join(__dirname, 'moving', 'make-better-auth-keys.mjs')], { encoding: 'utf8', maxBuffer: 1e8 }),
  ) as {
    secrets: string[]
    rows: (BetterAuthRow & { createdAt: string })[]
    owner: string
    valid: boolean
  }
  expect([made.valid, made.secrets.length]).toEqual([true, 1_000])
  const date = (value: unknown): Date => new Date(value as string)
  const rows = made.rows.map((row) => ({
    ...row,
    ...{ createdAt: date(row.createdAt), updatedAt: date(row.updatedAt) },
    ...{ lastRequest: row.lastRequest && date(row.lastRequest), expiresAt: row.expiresAt && date(row.expiresAt) },
  }))
  const { keys, url } = await moved(betterAuthKeys, rows.map(fromBetterAuth))
  const [first = '', disabled = '', ...others] = made.secrets
  expect([await status(url, asHeader(disabled)), await status(url, asHeader(other(first)))]).toEqual([403, 401])
  const { key } = (await keys.verify(first)) as { key: { id: string } }
  expect(await keys.get(key.id)).toMatchObject({
    ownerId: made.owner,
    scopes: ['reports:read'],
    metadata: { n: 0 },
    lastUsedAt: expect.any(String),
    expiresAt: expect.any(String),
  })
  await goesOn(url, [first, ...others], asHeader)
})

test('a thousand tokens of passport-http-bearer go on working', async () => {
  const table: TokenRow[] = Array.from({ length: 1_000 }, (_, id) => ({
    ...{
      id,
      token: randomBytes(32).toString('hex'),
      user_id: id % 10,
      scope: 'reports:read  reports:write',
      created_at: new Date(1_700_000_000_000),
    },
    revoked_at: id === 1 ? new Date(1_750_000_000_000) : null,
  }))
  const before: Express = express()
  passport.use(
    new Strategy((token: string, done: (error: null, user: unknown) => void) =>
      done(null, table.find((row) => row.token === token && row.revoked_at === null) ?? false),
    ),
  )
  before.get('/data', passport.authenticate('bearer', { session: false }), (_req, res) => void res.json({}))
  const old = await listen(before)
  const { url } = await moved(tokens, table.map(fromTokens))
  const secrets = table.map(({ token }) => token)
  const [first = '', revoked = '', ...others] = secrets
  for (const [secret, expected] of [
    [first, 200],
    [revoked, 401],
    [other(first), 401],
  ] as const)
    expect([await status(old, asBearer(secret)), await status(url, asBearer(secret))]).toEqual([expected, expected])
  await goesOn(url, [first, ...others], asBearer)
})

test('a thousand hashes as Unkey takes them go on working', async () => {
  const secrets = Array.from({ length: 1_000 }, () => `acme_${base58(randomBytes(16))}`)
  const rows = secrets.map(
    (secret, n): UnkeyRow => ({
      hash:
        n % 2 === 0
          ? { value: createHash('sha256').update(secret).digest('base64'), variant: 'sha256_base64' }
          : { value: createHash('sha256').update(secret).digest('hex'), variant: 'sha256_hex' },
      ...{ externalId: `user ${n % 7}`, permissions: ['reports.read', 'admin.*'], meta: { n }, expires: 4_000_000_000_000 },
    }),
  )
  const { keys, url } = await moved(unkeyKeys, rows.map(fromUnkey))
  expect(await status(url, asBearer(other(secrets[0] ?? '')))).toBe(401)
  expect(await keys.verify(secrets[0] ?? '')).toMatchObject({
    key: { ownerId: 'user 0', scopes: ['reports.read', 'admin:*'], metadata: { n: 0 } },
  })
  await goesOn(url, secrets, asBearer)
})

test('keys and the last tokens of express-jwt are taken side by side, and a token ends by itself', async () => {
  const { pool } = await freshDatabase()
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET })
  atEnd(() => keys.close())
  await keys.migrate()
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  const token = (seconds: number): string =>
    jwt.sign({ sub: 'bob' }, privateKey, { algorithm: 'RS256', expiresIn: seconds, jwtid: randomUUID() })
  const app = express()
  app.get('/data', keyOrOldToken(keys, publicKey.export({ type: 'spki', format: 'pem' }).toString()), (_req, res) => void res.json({}))
  const url = await listen(app)
  const { secret } = await keys.create({ as: 'application', ownerId: 'bob', name: 'n' })
  expect(await Promise.all([token(60), token(-1), secret, other(secret)].map((one) => status(url, asBearer(one))))).toEqual([
    200, 401, 200, 401,
  ])
})

function base58(bytes: Uint8Array): string {
  const digits = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
  let [value, text] = [BigInt(`0x${Buffer.from(bytes).toString('hex')}`), '']
  for (; value > 0n; value /= 58n) text = digits[Number(value % 58n)] + text
  return text.padStart(20, '1')
}
