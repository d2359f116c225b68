import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Client } from 'pg'
import { atEnd } from '../support/cleanup.js'
import { cli, cliOn, cliProgram, configModule, ownFolder, type Ran, startCli, steady } from '../support/cli.js'
import { ROOT } from '../support/documents.js'
import { freePort } from '../support/port.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'

const SECRET = `sk_live_${'a'.repeat(49)}`

let url: string
let run: ReturnType<typeof cliOn>

beforeAll(async () => {
  url = `sqlite:${join(ownFolder(), 'keys.db')}`
  run = cliOn(url)
  await run('migrate')
})

async function created(on: ReturnType<typeof cliOn> = run): Promise<{ readonly id: string; readonly secret: string }> {
  const { key, secret } = JSON.parse((await on('create', '--owner', 'acme', '--name', 'ci', '--json')).stdout)
  return { id: key.id, secret }
}

describe('P4: a secret among the arguments is refused, and not repeated', () => {
  test.each([
    ['a secret', ['show', SECRET]],
    ['a secret in an option', ['create', '--owner', 'acme', `--name=${SECRET}`]],
    ['a secret of another prefix', ['show', `parcel_${'b'.repeat(49)}`]],
    ['the server secret', ['list', '--owner', SERVER_SECRET]],
    ['an option for the server secret', ['list', '--secret', 'abc-not-to-be-shown']],
    ['an option for a password', ['list', '--password=abc-not-to-be-shown']],
    ['an address with a password', ['list', '--database-url', 'postgres://me:abc-not-to-be-shown@host/keys']],
    ['an address with a password anywhere', ['list', 'redis://me:abc-not-to-be-shown@host']],
    ['an Idempotency-Key', ['rotate', 'x', '--idempotency-key', 'abc-not-to-be-shown']],
    ['an Idempotency-Key for a file', ['rotate', 'x', '--idempotency-key-from', '0f8fad5b-d9cb-469f-a165-70867728950e']],
  ])('%s', async (_what, args) => {
    const { code, stdout, stderr } = await run(...args)
    expect([code, stdout]).toEqual([2, ''])
    expect(stderr).not.toMatch(/aaaa|bbbb|not-to-be-shown|0f8fad5b/)
    expect(stderr).not.toContain(SERVER_SECRET)
    const { stderr: json } = await run(...args, '--json')
    expect(JSON.parse(json)).toMatchObject({ error: { code: 'secret_in_argument', exit: 2 } })
  })
})

test('secrets come from files and variables, also from a file of variables', async () => {
  const folder = ownFolder()
  const file = (name: string, content: string): string => {
    writeFileSync(join(folder, name), content)
    return join(folder, name)
  }
  const env = { DATABASE_URL_FILE: file('url', `${url}\n`), API_KEYS_SECRET_FILE: file('secret', `${SERVER_SECRET}\n`) }
  expect((await cli(['create', '--owner', 'acme', '--name', 'files'], { env })).code).toBe(0)
  const variables = file('.env', `DATABASE_URL=${url}\nAPI_KEYS_SECRET=${SERVER_SECRET}\n`)
  expect((await cli(['create', '--owner', 'acme', '--name', 'file', '--env-file', variables])).code).toBe(0)
  const missing = await cli(['list'], { env: { DATABASE_URL_FILE: join(folder, 'none') } })
  expect(missing).toEqual({
    code: 2,
    stdout: '',
    stderr: 'express-api-keys: DATABASE_URL_FILE names a file that cannot be used (ENOENT).\n',
  })
})

test.each<[string, string[], number, string]>([
  ['an option that is not there', ['list', '--ownr', 'x'], 2, "error: unknown option '--ownr'\n(Did you mean --owner?)\n"],
  ['a command that is not there', ['lst'], 2, "error: unknown command 'lst'\n(Did you mean list?)\n"],
  ['an argument that is missing', ['rotate'], 2, "error: missing required argument 'id'\n"],
  ['an id that is none', ['rotate', 'x'], 2, 'express-api-keys: A key id must be a UUID.\n'],
  [
    'a time that is none',
    ['rotate', 'x', '--retire', 'soon'],
    2,
    'express-api-keys: --retire takes now, on-first-use, or a time such as 10m.\n',
  ],
  ['a key that is not there', ['rotate', '00000000-0000-7000-8000-000000000000'], 1, 'express-api-keys: There is no such key.\n'],
  [
    'nothing to change',
    ['update', '00000000-0000-7000-8000-000000000000'],
    2,
    'express-api-keys: Say what to change; express-api-keys update --help lists it.\n',
  ],
  [
    'a revocation that nobody can confirm',
    ['revoke', '00000000-0000-7000-8000-000000000000'],
    2,
    'express-api-keys: A revoked key never works again: add --yes where there is no terminal to ask on.\n',
  ],
])('%s is refused', async (_what, args, code, stderr) => {
  expect(await run(...args)).toEqual({ code, stdout: '', stderr })
})

test('a database that does not answer, and one of a kind that is not supported, have exit codes of their own', async () => {
  const gone = await cliOn(`postgres://me:abc-not-to-be-shown@127.0.0.1:${await freePort()}/keys`)('list')
  expect([gone.code, gone.stdout]).toEqual([3, ''])
  expect(gone.stderr).toMatch(/ECONNREFUSED/)
  expect(gone.stderr).not.toContain('not-to-be-shown')
  expect(await cliOn('mongodb://me:abc-not-to-be-shown@host/keys')('list')).toEqual({
    code: 2,
    stdout: '',
    stderr:
      'express-api-keys: DATABASE_URL begins with mongodb:, which is not supported; write postgres://user:password@host/database, mysql://user:password@host/database, or sqlite:path/to/keys.db.\n',
  })
})

test('a database without tables says which command makes them', async () => {
  const empty = `sqlite:${join(ownFolder(), 'empty.db')}`
  writeFileSync(empty.replace('sqlite:', ''), '')
  const { code, stderr } = await cliOn(empty)('list')
  expect([code, stderr]).toEqual([3, expect.stringContaining('run npx express-api-keys migrate first')])
})

test('without a server secret keys can be read, and not changed', async () => {
  expect((await cli(['list'], { env: { DATABASE_URL: url } })).code).toBe(0)
  const { code, stderr } = await cli(['create', '--owner', 'acme', '--name', 'ci'], { env: { DATABASE_URL: url } })
  expect([code, stderr]).toEqual([2, expect.stringMatching(/^express-api-keys: API_KEYS_SECRET is not set/)])
})

test('P5: a change goes on where Redis does not answer', async () => {
  const { id } = await created()
  const { code, stdout } = await cliOn(url, { REDIS_URL: `redis://127.0.0.1:${await freePort()}` })('rotate', id)
  expect([code, steady(stdout)]).toEqual([0, 'sk_live_SECRET\n'])
})

test('what a name holds cannot move the cursor of a terminal', async () => {
  const { id } = await created()
  const file = url.replace('sqlite:', '')
  const { default: Database } = await import('libsql')
  const database = new Database(file)
  database.prepare('update express_api_keys set name = ? where id = ?').run('\u001b[2Jgone\u202e', id)
  database.close()
  const { stdout } = await run('list')
  expect(stdout).toContain('?[2Jgone?')
  const shown = (await run('show', id)).stdout
  for (const moving of ['\u001b', '\u202e']) expect(stdout + shown).not.toContain(moving)
})

test('what reads may stop reading: a list ends in silence, and a secret that nobody read is not passed over', async () => {
  const env = { DATABASE_URL: url, API_KEYS_SECRET: SERVER_SECRET }
  const unread = async (...args: string[]): Promise<{ code: number | null; stderr: string }> => {
    const child = await startCli(args, { env })
    child.stdout?.destroy()
    let stderr = ''
    child.stderr?.on('data', (chunk) => {
      stderr += String(chunk)
    })
    const [code] = (await once(child, 'close')) as [number | null]
    return { code, stderr }
  }
  expect(await unread('list')).toEqual({ code: 0, stderr: '' })
  expect(await unread('list', '--json')).toEqual({ code: 0, stderr: '' })
  const { code, stderr } = await unread('create', '--owner', 'acme', '--name', 'unread')
  expect([code, steady(stderr)]).toEqual([
    1,
    'Made key ID ("unread" of acme). Its secret is shown this once:\nexpress-api-keys: The secret of key ID is made and was not read: stdout is closed. With --idempotency-key-from the same command prints it again; without, rotate the key.\n',
  ])
})

describe('an application’s own module', () => {
  test('says what the prefix is and where the keys are, and what it prints does not get among the output', async () => {
    const file = join(ownFolder(), 'own.db')
    const config = await configModule(`
      import { createApiKeys } from 'express-api-keys'
      import { sqliteStore } from 'express-api-keys/sqlite'
      import Database from 'libsql'
      console.log('read the configuration')
      export const keys = createApiKeys({ store: sqliteStore(new Database('${file}')), serverSecret: '${SERVER_SECRET}', prefix: 'parcel' })
      setInterval(() => {}, 1_000)`)
    expect((await cli(['migrate', '--config', config])).code).toBe(0)
    const made = await cli(['create', '--owner', 'acme', '--name', 'ci'], { env: { API_KEYS_CONFIG: config } })
    expect([made.code, made.stdout]).toEqual([0, expect.stringMatching(/^parcel_live_\w{49}\n$/)])
    expect(made.stderr).toMatch(/^read the configuration\n/)
    expect((await cli(['list', '--config', config, '--prefix', 'sk'])).code).toBe(2)
  })

  test.each([
    ['is not there', undefined, /^express-api-keys: --config names .*, which is not there\.\n$/],
    ['exports no keys', 'export const other = 1', /exports no keys: write "export const keys = createApiKeys\(…\)"/],
    ['throws', 'throw new Error("no luck")', /could not be loaded: no luck\n$/],
    [
      'makes keys that are refused',
      `import { createApiKeys, memoryStore } from 'express-api-keys'
       export default () => createApiKeys({ store: memoryStore(), serverSecret: 'short' })`,
      /serverSecret must be at least 32 bytes/,
    ],
  ])('that %s is refused', async (_what, code, stderr) => {
    const config = code === undefined ? join(ownFolder(), 'none.js') : await configModule(code)
    expect(await cli(['list', '--config', config])).toEqual({ code: 2, stdout: '', stderr: expect.stringMatching(stderr) })
  })

  test('may be TypeScript where tsx loads it', async () => {
    const config = join(ROOT, '.tmp', `cli-${process.pid}.ts`)
    atEnd(async () => rmSync(config, { force: true }))
    writeFileSync(
      config,
      `import { createApiKeys, memoryStore } from '../src/index.js'
      enum Prefix { Own = 'parcel' }
      export default (): object => createApiKeys({ store: memoryStore(), serverSecret: '${SERVER_SECRET}', prefix: Prefix.Own })`,
    )
    const { code, stdout, stderr } = await cli(['create', '--owner', 'acme', '--name', 'ci', '--config', config], {
      env: { NODE_OPTIONS: '--import tsx' },
    })
    expect([code, stdout, stderr]).toEqual([0, expect.stringMatching(/^parcel_live_/), expect.stringMatching(/^Made key/)])
  })

  test('of TypeScript says what it needs where it cannot be loaded', async () => {
    const config = join(ownFolder(), 'keys.ts')
    writeFileSync(config, 'export const keys: number = 1\nenum A { B }\n')
    const { code, stderr } = await cli(['list', '--config', config])
    expect([code, stderr]).toEqual([2, expect.stringContaining('NODE_OPTIONS="--import tsx"')])
  })
})

describe('Ctrl-C', () => {
  /** A rotation that waits for the row of its key, which somebody else holds until `release`. */
  async function waitingRotation(): Promise<{
    readonly child: Awaited<ReturnType<typeof startCli>>
    readonly ran: Promise<Ran>
    release(): Promise<void>
  }> {
    const { url: database, pool } = await freshDatabase()
    const on = cliOn(database)
    await on('migrate')
    const { id } = await created(on)
    const holder = new Client({ connectionString: database })
    holder.on('error', () => {})
    await holder.connect()
    atEnd(() => holder.end())
    await holder.query('begin')
    await holder.query('select id from express_api_keys for update')
    const child = await startCli(['rotate', id], { env: { DATABASE_URL: database, API_KEYS_SECRET: SERVER_SECRET } })
    const texts = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const) {
      child[name]?.on('data', (chunk) => {
        texts[name] += String(chunk)
      })
    }
    const ran = once(child, 'close').then(([code]) => ({ code: code as number | null, ...texts }))
    for (let waits = 0; waits === 0; ) {
      const { rows } = await pool.query(
        "select count(*)::int as waits from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
      )
      waits = rows[0].waits
    }
    return { child, ran, release: async () => void (await holder.query('commit')) }
  }

  test('lets a change that is under way come to its end, and its secret be read', async () => {
    const { child, ran, release } = await waitingRotation()
    const warned = once(child.stderr as NodeJS.ReadableStream, 'data')
    child.kill('SIGINT')
    expect(String((await warned)[0])).toMatch(/^A change is under way, and its result would be lost/)
    await release()
    const { code, stdout } = await ran
    expect([code, steady(stdout)]).toEqual([0, 'sk_live_SECRET\n'])
  })

  test('ends it when it comes twice', async () => {
    const { child, ran } = await waitingRotation()
    const warned = once(child.stderr as NodeJS.ReadableStream, 'data')
    child.kill('SIGINT')
    await warned
    child.kill('SIGINT')
    expect(await ran).toMatchObject({ code: 130, stdout: '' })
  })
})

const hasTerminal = spawnSync('script', ['--version']).status === 0

;(hasTerminal ? describe : describe.skip)('on a terminal', () => {
  /** Runs it on a terminal, and types what is asked for once it is asked. */
  async function typed(
    args: readonly string[],
    answers: readonly (readonly [question: RegExp, answer: string])[],
    env: Record<string, string>,
  ): Promise<{ code: number | null; shown: string }> {
    const command = [process.execPath, await cliProgram(), ...args].map((part) => `'${part}'`).join(' ')
    const child = spawn('script', ['-qec', command, '/dev/null'], {
      env: { PATH: process.env.PATH ?? '', TERM: 'dumb', SHELL: '/bin/sh', ...env },
    })
    let shown = ''
    const left = [...answers]
    child.stdout.on('data', (chunk) => {
      shown += String(chunk)
      if (left[0] === undefined || !left[0][0].test(shown)) return
      child.stdin.write(left.shift()?.[1])
    })
    const [code] = (await once(child, 'close')) as [number | null]
    return { code, shown }
  }

  test('it asks before it revokes, and takes no for an answer', async () => {
    const { id } = await created()
    const env = { DATABASE_URL: url, API_KEYS_SECRET: SERVER_SECRET }
    const no = await typed(['revoke', id], [[/\[y\/N\]/, 'n\r']], env)
    expect([no.code, no.shown]).toEqual([1, expect.stringContaining('Nothing was revoked.')])
    const yes = await typed(['revoke', id], [[/\[y\/N\]/, 'y\r']], env)
    expect([yes.code, steady(yes.shown)]).toEqual([0, expect.stringContaining('Revoked key ID ("ci" of acme).')])
  })

  test('it asks for the server secret and does not show it; Ctrl-C there ends it', async () => {
    const env = { DATABASE_URL: url }
    const args = ['create', '--owner', 'acme', '--name', 'prompted']
    const { code, shown } = await typed(args, [[/Server secret: /, `${SERVER_SECRET}\r`]], env)
    expect([code, steady(shown)]).toEqual([0, expect.stringContaining('sk_live_SECRET')])
    expect(shown).not.toContain(SERVER_SECRET)
    expect((await typed(args, [[/Server secret: /, '\u0003']], env)).code).toBe(130)
  })

  test('it shows the key of a secret that is typed', async () => {
    const { id, secret } = await created()
    const { code, shown } = await typed(['show', '--secret-from', 'prompt'], [[/Secret: /, `${secret}\r`]], { DATABASE_URL: url })
    expect([code, shown]).toEqual([0, expect.stringContaining(id)])
    expect(shown).not.toContain(secret)
  })
})
