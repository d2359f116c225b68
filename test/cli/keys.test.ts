import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { redisCache } from 'express-api-keys/redis'
import { Redis } from 'ioredis'
import { atEnd } from '../support/cleanup.js'
import { cli, cliOn, ownFolder, type Ran, steady } from '../support/cli.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'
import { redisServer } from '../support/redis-server.js'
import { stores } from '../support/stores.js'

/** What a command prints where all goes well. */
function printed({ code, stdout, stderr }: Ran): { stdout: string; stderr: string } {
  if (code !== 0) throw new Error(`It ended with ${code}: ${stderr}`)
  return { stdout: steady(stdout), stderr: steady(stderr) }
}

describe.each(stores)('on %s', (_name, makeStore) => {
  let run: ReturnType<typeof cliOn>
  let database: Awaited<ReturnType<typeof makeStore>>
  const check = async (secret: string) => {
    const keys = createApiKeys({ store: database.store, serverSecret: SERVER_SECRET })
    return keys.verify(secret).finally(() => keys.close())
  }

  beforeAll(async () => {
    database = await makeStore()
    run = cliOn(/^\w+:/.test(database.url) ? database.url : `sqlite:${database.url}`)
    expect(printed(await run('migrate'))).toEqual({ stdout: expect.stringMatching(/^The tables are at version \d+ now\.\n$/), stderr: '' })
  })

  test('a key is made, found, shown, rotated, changed, disabled, enabled and revoked', async () => {
    const made = await run(
      'create',
      '--owner',
      'acme',
      '--name',
      'ci',
      '--scope',
      'reports:read',
      '--scope',
      'reports:write',
      '--expires',
      '90d',
    )
    expect(printed(made)).toEqual({
      stdout: 'sk_live_SECRET\n',
      stderr: 'Made key ID ("ci" of acme). Its secret is shown this once:\n',
    })
    const secret = made.stdout.trim()
    expect(await check(secret)).toMatchObject({ ok: true, key: { scopes: ['reports:read', 'reports:write'] } })

    expect(printed(await run('list', '--owner', 'acme', '--last4', secret.slice(-4))).stdout).toBe(
      'ID  OWNER  NAME  ENV  STATUS  SECRET  LAST USED  EXPIRES\nID  acme  ci  live  active  …LAST  never  INSTANT\n',
    )
    const { items } = JSON.parse((await run('list', '--json')).stdout)
    const id: string = items[0].id
    expect(printed(await run('show', id)).stdout).toBe(
      [
        'id  ID',
        'owner  acme',
        'name  ci',
        'status  active',
        'environment  live',
        'scopes  reports:read reports:write',
        'secret  sk_live_…LAST',
        'generation  1',
        'secret made  INSTANT',
        'created  INSTANT',
        'changed  INSTANT',
        'expires  INSTANT',
        'last used  never',
        'addresses  any',
        'metadata  {}',
        '',
      ]
        .join('\n')
        .replaceAll(/^secret made {2}/gm, 'secret made  '),
    )

    const rotated = await run('rotate', id)
    expect(printed(rotated)).toEqual({
      stdout: 'sk_live_SECRET\n',
      stderr: 'Rotated key ID ("ci" of acme). The old secret is no longer accepted. The new one is shown this once:\n',
    })
    expect(await check(secret)).toMatchObject({ ok: false, reason: 'rotated' })
    expect(await check(rotated.stdout.trim())).toMatchObject({ ok: true })

    expect(printed(await run('update', id, '--name', 'nightly', '--no-scope', '--expires', 'never')).stdout).toBe(
      'Changed key ID ("nightly" of acme).\n',
    )
    expect(printed(await run('disable', id, '--reason', 'unpaid')).stdout).toBe('Disabled key ID ("nightly" of acme).\n')
    expect(printed(await run('enable', id)).stdout).toBe('Enabled key ID ("nightly" of acme).\n')
    expect(printed(await run('revoke', id, '--yes', '--reason', 'done')).stdout).toBe('Revoked key ID ("nightly" of acme).\n')
    expect(await check(rotated.stdout.trim())).toMatchObject({ ok: false, reason: 'revoked' })
    expect(printed(await run('events', id)).stdout).toBe(
      [
        'AT  EVENT  ACTOR  ADDRESS  USER AGENT  DETAILS',
        'INSTANT  key.revoked  system  -  express-api-keys-cli/VERSION (USER)  {"reason":"done"}',
        'INSTANT  key.enabled  system  -  express-api-keys-cli/VERSION (USER)  {}',
        'INSTANT  key.disabled  system  -  express-api-keys-cli/VERSION (USER)  {"reason":"unpaid"}',
        'INSTANT  key.updated  system  -  express-api-keys-cli/VERSION (USER)  {"changed":["name","scopes","expiresAt"]}',
        'INSTANT  key.rotated  system  -  express-api-keys-cli/VERSION (USER)  {"generation":2}',
        'INSTANT  key.created  system  -  express-api-keys-cli/VERSION (USER)  {}',
        '',
      ].join('\n'),
    )
  })

  test('JSON has the same shape whatever is in it', async () => {
    const created = JSON.parse((await run('create', '--owner', 'json', '--name', 'ci', '--rotation-secret', '--json')).stdout)
    expect(Object.keys(created)).toEqual(['key', 'secret', 'rotationSecret', 'replayed'])
    const { id } = created.key
    const rotated = JSON.parse((await run('rotate', id, '--retire', '10m', '--json')).stdout)
    expect(Object.keys(rotated)).toEqual(['key', 'secret', 'rotationSecret', 'replayed', 'acceptedUntil'])
    for (const command of [
      ['update', id, '--name', 'x'],
      ['disable', id],
      ['enable', id],
      ['revoke', id, '--yes'],
      ['show', id],
    ]) {
      const { stdout, stderr } = await run(...command, '--json')
      expect([Object.keys(JSON.parse(stdout)), stderr]).toEqual([['key'], ''])
    }
    for (const command of [['list'], ['events', id]]) {
      expect(Object.keys(JSON.parse((await run(...command, '--json')).stdout))).toEqual(['items', 'nextCursor'])
    }
    const refused = await run('show', '00000000-0000-7000-8000-000000000000', '--json')
    expect(refused).toEqual({
      code: 1,
      stdout: '',
      stderr: '{"error":{"code":"key_not_found","message":"There is no such key.","exit":1}}\n',
    })
  })

  test('listings go on where they ended, and --all is all of it', async () => {
    for (const name of ['a', 'b', 'c']) await run('create', '--owner', 'pages', '--name', name)
    const first = await run('list', '--owner', 'pages', '--limit', '2')
    const [, cursor = ''] = /There are more: --all, or --cursor (\S+)/.exec(first.stderr) ?? []
    const names = ({ stdout }: Ran): string[] => JSON.parse(stdout).items.map(({ name }: { name: string }) => name)
    expect(names(await run('list', '--owner', 'pages', '--cursor', cursor, '--json'))).toEqual(['a'])
    expect(names(await run('list', '--owner', 'pages', '--limit', '1', '--all', '--json'))).toEqual(['c', 'b', 'a'])
  })

  test('a key is found by a secret of it, also by one that was replaced, from a file, a variable or stdin', async () => {
    const secret = (await run('create', '--owner', 'leak', '--name', 'ci')).stdout
    const [id] = JSON.parse((await run('list', '--owner', 'leak', '--json')).stdout).items.map((key: { id: string }) => key.id)
    await run('rotate', id)
    const file = join(ownFolder(), 'leaked.txt')
    writeFileSync(file, secret)
    expect(printed(await run('show', '--secret-from', file)).stderr).toBe('The secret is generation 1 of this key, and is replaced.\n')
    const env = { DATABASE_URL: database.url.replace(/^\//, 'sqlite:/'), LEAKED: secret }
    for (const source of ['env:LEAKED', '-']) {
      const { stdout } = await cli(['show', '--secret-from', source, '--json'], { env, input: secret })
      expect(JSON.parse(stdout)).toMatchObject({ key: { id }, generation: 1 })
    }
  })

  test('P2: with an Idempotency-Key in a file, a run that is repeated prints the same secret', async () => {
    await run('create', '--owner', 'again', '--name', 'ci')
    const [id] = JSON.parse((await run('list', '--owner', 'again', '--json')).stdout).items.map((key: { id: string }) => key.id)
    const file = join(ownFolder(), '.rotation')
    const rotate = () => run('rotate', id, '--retire', '10m', '--idempotency-key-from', file)
    const [first, second] = [await rotate(), await rotate()]
    expect(statSync(file).mode & 0o777).toBe(0o600)
    expect(readFileSync(file, 'utf8')).toMatch(/^[0-9a-f-]{36}\n$/)
    expect(second.stdout).toBe(first.stdout)
    expect(steady(second.stderr)).toMatch(/^An earlier run rotated key ID/)
  })

  test('P1: a creation that is repeated makes one key, also where its expiry counts from now', async () => {
    const file = join(ownFolder(), '.creation')
    const create = (...more: string[]) => run('create', '--owner', 'once', '--name', 'ci', '--idempotency-key-from', file, ...more)
    const [first, second] = [await create('--expires', '90d'), await create('--expires', '90d')]
    expect([second.code, second.stdout]).toEqual([0, first.stdout])
    expect(steady(second.stderr)).toMatch(/^This key was made by an earlier run/)
    expect((await create('--expires', '30d')).code).toBe(1)
    expect(JSON.parse((await run('list', '--owner', 'once', '--json')).stdout).items.length).toBe(1)
  })

  test('no command changes the lease of the application, or stays behind as an instance', async () => {
    await database.query('update express_api_key_settings set lease_ms = 1500')
    await run('create', '--owner', 'lease', '--name', 'ci')
    const { items } = JSON.parse((await run('list', '--owner', 'lease', '--json')).stdout)
    for (const command of [['rotate', items[0].id], ['disable', items[0].id], ['show', items[0].id], ['migrate'], ['migrate', '--check']]) {
      expect([command, (await run(...command)).code]).toEqual([command, 0])
    }
    const [settings] = await database.query<{ lease_ms: number }>('select lease_ms from express_api_key_settings')
    const [members] = await database.query<{ count: number }>('select count(*) as count from express_api_key_instances')
    expect([Number(settings?.lease_ms), Number(members?.count)]).toEqual([1_500, 0])
    await database.query('update express_api_key_settings set lease_ms = 1000')
  })
})

test.each([
  ['that it reaches through PostgreSQL', false, false],
  ['that it reaches through Redis', true, true],
  ['that it cannot reach, for want of REDIS_URL', true, false],
])('P3: once a command has ended, no running instance %s accepts what it ended', async (_which, ofInstance, ofCommand) => {
  const { url, pool } = await freshDatabase()
  const redis = await redisServer()
  const client = new Redis(redis.url, { lazyConnect: true })
  const keys = createApiKeys({
    store: postgresStore(pool),
    serverSecret: SERVER_SECRET,
    ...(ofInstance ? { cache: redisCache(client, { onStateChange: () => {} }) } : {}),
  })
  atEnd(redis.close)
  atEnd(async () => {
    await keys.close()
    client.disconnect()
  })
  await keys.migrate()
  const run = cliOn(url, ofCommand ? { REDIS_URL: redis.url } : {})
  const { key, secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'ci' })
  let current = secret
  for (const command of [
    ['rotate', key.id],
    ['disable', key.id],
    ['enable', key.id],
    ['revoke', key.id, '--yes'],
  ]) {
    const known = current
    // Known without I/O from here on, until somebody says otherwise.
    const before = await keys.verify(known)
    const { code, stdout } = await run(...command)
    expect([code, before.ok]).toEqual([0, command[0] !== 'enable'])
    expect([command[0], keys.peek(known)?.ok ?? (await keys.verify(known)).ok]).toEqual([command[0], command[0] === 'enable'])
    if (command[0] === 'rotate') current = stdout.trim()
  }
})

test('a key with another prefix than those that are there is not made by accident', async () => {
  const file = join(ownFolder(), 'keys.db')
  const run = cliOn(`sqlite:${file}`)
  await run('migrate')
  expect(steady((await run('create', '--owner', 'acme', '--name', 'a', '--prefix', 'parcel')).stdout)).toMatch(/^parcel_live_/)
  const refused = await run('create', '--owner', 'acme', '--name', 'b')
  expect([refused.code, refused.stderr]).toEqual([
    2,
    'express-api-keys: The keys in this database begin with parcel_live_, and this one would begin with sk_: say which with --prefix, API_KEYS_PREFIX or --config.\n',
  ])
  expect((await run('create', '--owner', 'acme', '--name', 'b', '--prefix', 'sk')).code).toBe(0)
})

test('a file that is not there is neither made nor passed over', async () => {
  const file = join(ownFolder(), 'keys.db')
  const run = cliOn(`sqlite:${file}`)
  expect(await run('list')).toEqual({
    code: 3,
    stdout: '',
    stderr: `express-api-keys: There is no file ${file}; check DATABASE_URL, or run: npx express-api-keys migrate\n`,
  })
  expect((await run('migrate', '--check')).code).toBe(5)
  expect(existsSync(file)).toBe(false)
})
