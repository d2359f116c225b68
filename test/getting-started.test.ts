import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { Pool } from 'pg'
import { atEnd } from './support/cleanup.js'
import { startPostgres } from './support/own-postgres.js'
import { freePort } from './support/port.js'
import { startRedis } from './support/redis.js'
import { type Answer, call } from './support/traffic.js'

const ROOT = join(__dirname, '..')
const SECRET = 'the-secret-of-getting-started-0123456789abcdef'

test('the application that docs/getting-started.md shows is short', () => {
  const lines = readFileSync(join(ROOT, 'example-app/minimal.mjs'), 'utf8').trim().split('\n').filter(Boolean)
  expect(lines.length).toBeLessThanOrEqual(15)
})

test('example-app/minimal.mjs works as it is, and lives on when PostgreSQL and Redis are restarted under it', async () => {
  const [postgres, redis, port] = [await startPostgres(), await startRedis(), await freePort()]
  const { child, said } = await startMinimal({ DATABASE_URL: postgres.url, REDIS_URL: redis.url, PORT: String(port) })
  const pool = new Pool({ connectionString: postgres.url })
  atEnd(() => pool.end())
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SECRET, onError: () => {} })
  const { secret: dead } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['reports:read'] })
  const url = `http://127.0.0.1:${port}/v1`
  const report = (secret: string): Promise<Answer> => call(`${url}/reports`, { secret })
  expect((await report(dead)).body).toEqual({ for: 'acme' })

  const rotation = { method: 'POST', secret: dead, idempotencyKey: 'a1f6a9ae-7a54-4bb4-8ffa-04d90aa0a1ba' }
  const first = await call(`${url}/api-keys/self/rotate`, rotation)
  expect([first.status, (await call(`${url}/api-keys/self/rotate`, rotation)).body]).toEqual([200, first.body])
  const { secret } = first.body as { secret: string }
  expect([(await report(dead)).status, (await report(secret)).status]).toEqual([401, 200])

  // While they are away, nobody is told that a good key is bad.
  await Promise.all([postgres.stop('fast'), redis.stop()])
  const away = await until(() => report(secret), 503)
  expect([away.headers.get('retry-after'), away.body]).toMatchObject(['1', { code: 'store_unavailable' }])
  expect((await call(`${url}/api-keys/self/rotate`, { ...rotation, secret })).status).toBe(503)
  expect(said()).toContain('express-api-keys: store_unavailable: ')

  await Promise.all([postgres.start(), redis.start()])
  expect((await until(() => report(secret), 200)).body).toEqual({ for: 'acme' })
  expect((await report(dead)).status).toBe(401)
  expect([child.exitCode, child.signalCode]).toEqual([null, null])
  for (const one of [dead, secret, SECRET]) expect(said()).not.toContain(one)
})

/** Runs the file as it is; only where it finds the package is told from outside: here it is not installed. */
async function startMinimal(env: Record<string, string>): Promise<{ child: ChildProcess; said: () => string }> {
  mkdirSync(join(ROOT, '.tmp'), { recursive: true })
  const TSX_TSCONFIG_PATH = join(ROOT, '.tmp/getting-started.tsconfig.json')
  writeFileSync(TSX_TSCONFIG_PATH, JSON.stringify({ extends: '../tsconfig.json', compilerOptions: { allowJs: true } }))
  const child = spawn(process.execPath, ['--import', 'tsx', join(ROOT, 'example-app/minimal.mjs')], {
    env: { ...process.env, API_KEYS_SECRET: SECRET, TSX_TSCONFIG_PATH, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  atEnd(async () => {
    child.kill('SIGKILL')
  })
  let text = ''
  child.stderr.on('data', (chunk) => {
    text += String(chunk)
  })
  const gone = once(child, 'exit').then(() => Promise.reject(new Error(`It ended, and said: ${text}`)))
  await Promise.race([once(child.stdout, 'data'), gone])
  // A later end is found by the requests that fail.
  gone.catch(() => {})
  return { child, said: () => text }
}

/** Asks again and again until the answer has this status; whatever it is before that, it is 200 or 503. */
async function until(ask: () => Promise<Answer>, status: 200 | 503): Promise<Answer> {
  for (;;) {
    const answer = await ask()
    if (answer.status === status) return answer
    expect([200, 503]).toContain(answer.status)
  }
}
