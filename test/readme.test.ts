import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { atEnd } from './support/cleanup.js'
import { freePort } from './support/port.js'
import { freshDatabase } from './support/postgres.js'
import { startRedis } from './support/redis.js'
import { call } from './support/traffic.js'

const ROOT = join(__dirname, '..')
const README = readFileSync(join(ROOT, 'README.md'), 'utf8')

test('the example at the top of the README is short, and works as it is', async () => {
  const example = /```js\n(.*?)```/s.exec(README)?.[1] ?? ''
  expect(example.trim().split('\n').filter(Boolean).length).toBeLessThanOrEqual(15)
  const [database, redis, port] = [await freshDatabase(), await startRedis(), await freePort()]
  mkdirSync(join(ROOT, '.tmp'), { recursive: true })
  const file = join(ROOT, '.tmp', 'readme-example.mts')
  writeFileSync(file, example.replace('app.listen(3000)', `app.listen(${port}, () => console.log('ready'))`))
  const secret = 'the-secret-of-the-readme-0123456789abcdef'
  const child = spawn(process.execPath, ['--import', 'tsx', file], {
    cwd: ROOT,
    env: { ...process.env, DATABASE_URL: database.url, REDIS_URL: redis.url, API_KEYS_SECRET: secret },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  atEnd(async () => {
    child.kill('SIGKILL')
  })
  for await (const chunk of child.stdout) if (String(chunk).includes('ready')) break

  const keys = createApiKeys({ store: postgresStore(database.pool), secret })
  const { secret: key } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n', scopes: ['reports:read'] })
  const url = `http://127.0.0.1:${port}/v1`
  expect((await call(`${url}/reports`, { secret: key })).body).toEqual({ for: 'acme' })
  const rotation = { method: 'POST', secret: key, idempotencyKey: 'readme' }
  const first = await call(`${url}/api-keys/self/rotate`, rotation)
  expect([first.status, (await call(`${url}/api-keys/self/rotate`, rotation)).body]).toEqual([200, first.body])
  expect((await call(`${url}/reports`, { secret: key })).status).toBe(401)
})

test('the README names every error code with its status, and every option', () => {
  const codes = readFileSync(join(ROOT, 'src/errors.ts'), 'utf8').matchAll(/^ {2}\| '(\w+)'/gm)
  const statuses = readFileSync(join(ROOT, 'src/http/problem.ts'), 'utf8')
  let seen = 0
  for (const [, code = ''] of codes) {
    seen++
    const status = new RegExp(`^ {2}${code}: (\\d+),`, 'm').exec(statuses)?.[1]
    expect(README).toContain(code === 'invalid_option' ? '| `invalid_option` | thrown |' : `| \`${code}\` | ${status} |`)
  }
  expect(seen).toBeGreaterThan(15)
  const options = /export interface ApiKeysOptions \{(.*?)\n\}/s.exec(readFileSync(join(ROOT, 'src/core/api-keys.ts'), 'utf8'))?.[1] ?? ''
  const names = [...options.matchAll(/^ {2}(\w+)\??:/gm)].map(([, name]) => name)
  expect(names.length).toBeGreaterThan(10)
  for (const name of names) expect(README).toContain(`| \`${name}\` |`)
})
