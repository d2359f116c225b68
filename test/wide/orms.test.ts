import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Pool } from 'pg'
import { freePort } from '../support/port.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'

const ROOT = join(__dirname, '../..')
const PACKAGES = join(__dirname, 'node_modules')
const PAGE = readFileSync(join(ROOT, 'docs/guides/orms.md'), 'utf8')
const IN_EVERY_APPLICATION = 'In every application'

// Each runs a dozen programs of others, which compile themselves anew.
jest.setTimeout(300_000)

/** An application made of the blocks of a section of the page. */
interface Application {
  readonly folder: string
  readonly env: NodeJS.ProcessEnv
  /** The commands that the section shows. */
  readonly commands: readonly string[]
  /** Runs a command, and resolves with what it printed. */
  run(command: string): string
  /** Runs a program of this text, inside the application. */
  program(text: string): string
  /** Runs all of them. */
  deploy(): void
  write(file: string, text: string): void
  edit(file: string, find: string, replace: string): void
  read(file: string): string
}

interface Tool {
  /** Makes the migration that leads from the last one to the models of now. */
  prepare?(app: Application, round: number): void
  /** Adds a column to the users. */
  change(app: Application): void
  /** What the tool does to a database without a migration. */
  sync?(app: Application): void
  /** Does what the page warns of; resolves with what the tool said. */
  careless?(app: Application): string
}

const TOOLS: { readonly [section: string]: Tool } = {
  Prisma: {
    prepare(app, round) {
      const from = round === 1 ? '--from-empty' : '--from-config-datasource'
      const script = app.run(`prisma migrate diff ${from} --to-schema schema.prisma --script`)
      expect(script).toContain('"users"')
      expect(script).not.toContain('express_api_key')
      app.write(`migrations/${round}_users/migration.sql`, script.slice(script.indexOf('-- ')))
    },
    change: (app) => app.edit('schema.prisma', '  email   String\n', '  email   String\n  age     Int?\n'),
    sync: (app) => expect(app.run('prisma db push')).toContain('already in sync'),
    careless(app) {
      app.write('prisma.config.ts', app.read('prisma.config.ts').replaceAll(/'public\.\w+',/g, ''))
      return app.run('prisma db push 2>&1 || prisma db push --accept-data-loss')
    },
  },
  Drizzle: {
    prepare(app, round) {
      const said = app.run(`drizzle-kit generate --name users${round}`)
      const [file = ''] = /drizzle\/\d+_users\d\.sql/.exec(said) ?? []
      expect(app.read(file)).not.toContain('express_api_key')
    },
    change: (app) => app.edit('schema.ts', "email: text('email').notNull(),", "email: text('email').notNull(), age: text('age'),"),
    sync: (app) => expect(app.run('drizzle-kit push')).toContain('No changes detected'),
    careless(app) {
      app.edit('drizzle.config.ts', "tablesFilter: ['!express_api_key*'],", '')
      return app.run('drizzle-kit push --force')
    },
  },
  Knex: {
    prepare(app, round) {
      const change =
        round === 1
          ? "createTable('users', (t) => { t.text('id').primary(); t.text('email') })"
          : "alterTable('users', (t) => t.text('age'))"
      app.write(`migrations/${round}.js`, `export const up = (knex) => knex.schema.${change}\nexport const down = () => {}\n`)
    },
    change() {},
    sync: (app) => void app.run('knex migrate:rollback --all'),
  },
  TypeORM: {
    prepare(app, round) {
      const said = app.run(`tsx node_modules/typeorm/cli.js migration:generate migrations/Users${round} -d data-source.ts`)
      const [file = ''] = /migrations\/\d+-Users\d\.ts/.exec(said) ?? []
      expect(app.read(file)).toContain('users')
      expect(app.read(file)).not.toContain('express_api_key')
    },
    change: (app) =>
      app.edit('data-source.ts', 'email!: string\n', "email!: string\n  @Column({ type: 'text', nullable: true }) age!: string | null\n"),
    sync: (app) => void app.program(SYNCHRONIZE),
    careless(app) {
      app.edit('data-source.ts', ', { synchronize: false }', '')
      return app.program(SYNCHRONIZE)
    },
  },
  Sequelize: {
    change: (app) => app.edit('models.ts', 'id: {', 'age: DataTypes.TEXT, id: {'),
    sync: (app) => app.edit('sync.ts', 'alter: true', 'force: true') ?? app.run('tsx sync.ts'),
    careless(app) {
      app.edit('sync.ts', 'await', "sequelize.define('ApiKey', {}, { tableName: 'express_api_keys', timestamps: false })\nawait")
      return app.run('tsx sync.ts')
    },
  },
}

const ADA = "insert into users (id, email) values ('ada', 'ada@example.com')"

const SYNCHRONIZE = `import data from './data-source.js'
await data.initialize()
await data.synchronize()
await data.destroy()`

const OWN_SCHEMA = 'A schema of their own'

test.each(Object.entries(TOOLS))('%s makes and changes its tables, and those of the keys stay as they are', async (section, tool) => {
  const { url, pool } = await freshDatabase()
  const app = application(section, url)
  tool.prepare?.(app, 1)
  app.deploy()
  app.run('tsc -p .')
  await pool.query(ADA)
  const issued = rotated(app, made(app))
  await pool.query(`update express_api_keys set last_used_at = ${Date.UTC(2026, 0, 2)} where owner_id = 'ada'`)
  expect(app.run('tsx list-keys.ts')).toBe('ada@example.com ci 2026-01-02T00:00:00.000Z\n')
  const before = await tablesOfKeys(pool)
  expect(before.columns.length).toBeGreaterThan(40)
  tool.change(app)
  tool.prepare?.(app, 2)
  app.deploy()
  const users = await pool.query("select from information_schema.columns where table_name = 'users' and column_name = 'age'")
  expect(users.rowCount).toBe(1)
  tool.sync?.(app)
  expect(await tablesOfKeys(pool)).toEqual(before)
  rotated(app, issued)
})

const CARELESS = Object.entries(TOOLS).filter(([, { careless }]) => careless)

test.each(CARELESS)('%s harms the tables of the keys where what the page says is left out', async (section, tool) => {
  const { url, pool } = await freshDatabase()
  const app = application(section, url)
  tool.prepare?.(app, 1)
  app.deploy()
  await pool.query(ADA)
  made(app)
  const before = await tablesOfKeys(pool)
  const said = tool.careless?.(app)
  expect((await tablesOfKeys(pool)).columns.length).toBeLessThan(before.columns.length)
  if (section !== 'Prisma') return
  // It asks for the tables that have rows, and for no other.
  expect(said).toContain('drop the `express_api_key_generations` table')
  expect(said).not.toContain('express_api_key_replays')
})

test.each(CARELESS)('%s leaves keys alone that have a schema of their own, also without a filter', async (section, tool) => {
  const { url, pool } = await freshDatabase()
  await pool.query('create schema auth')
  const keys = application(OWN_SCHEMA, url)
  keys.run('tsx migrate-keys.ts')
  keys.run('tsc -p .')
  const issued = rotated(keys, rotated(keys, made(keys)), 'keys-by-kysely')
  const before = await tablesOfKeys(pool, 'auth')
  expect(before.columns.length).toBeGreaterThan(40)
  const app = application(section, url)
  tool.prepare?.(app, 1)
  for (const command of app.commands.slice(0, -1)) app.run(command)
  tool.careless?.(app)
  if (section === 'Prisma') app.run('prisma migrate reset --force')
  if (section === 'TypeORM') app.program(DROP_SCHEMA)
  expect(await tablesOfKeys(pool, 'auth')).toEqual(before)
  rotated(keys, issued)
})

test('TypeORM and Prisma drop the tables of the keys with the schema, and they can be made again', async () => {
  for (const [section, drop] of [
    ['TypeORM', (app: Application) => app.program(DROP_SCHEMA)],
    ['Prisma', (app: Application) => app.run('prisma migrate reset --force')],
  ] as const) {
    const { url, pool } = await freshDatabase()
    const app = application(section, url)
    TOOLS[section]?.prepare?.(app, 1)
    app.deploy()
    drop(app)
    expect((await tablesOfKeys(pool)).columns).toEqual([])
    app.run('tsx migrate-keys.ts')
    rotated(app, made(app))
  }
})

test('the server stops in the order that the page says', async () => {
  const { url } = await freshDatabase()
  const app = application('Drizzle', url)
  app.run('tsx migrate-keys.ts')
  app.edit('server.ts', 'process.once', "server.once('listening', () => console.log('listening'))\nprocess.once")
  const port = await freePort()
  const server = spawn(process.execPath, ['--import', 'tsx', 'server.ts'], {
    cwd: app.folder,
    env: { ...app.env, PORT: String(port) },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(server.stdout, 'data')
  expect((await fetch(`http://127.0.0.1:${port}/v1/reports`, { headers: { connection: 'close' } })).status).toBe(401)
  const exited = once(server, 'exit')
  server.kill('SIGTERM')
  expect(await exited).toEqual([0, null])
})

test('Drizzle and TypeORM change an SQLite file, and the tables of the keys stay as they are', () => {
  const app = application('SQLite', '', { SQLITE_FILE: 'app.db' })
  app.run('tsx migrate-keys.ts')
  const issued = rotated(app, made(app))
  app.write(
    'schema.ts',
    "import { sqliteTable, text } from 'drizzle-orm/sqlite-core'\nexport const users = sqliteTable('users', { id: text('id') })\n",
  )
  const before = app.program(SQLITE_TABLES)
  expect(before).toContain('express_api_key_generations')
  app.run('drizzle-kit push --force')
  app.program(`import { DataSource, EntitySchema } from 'typeorm'
import driver from 'libsql'
const teams = new EntitySchema({ name: 'teams', columns: { id: { type: 'text', primary: true } } })
const data = new DataSource({ type: 'better-sqlite3', driver, database: 'app.db', entities: [teams], synchronize: true })
await data.initialize()
await data.destroy()`)
  const after = app.program(SQLITE_TABLES)
  expect(after).toContain('users')
  expect(after).toContain('teams')
  expect(
    after
      .split('\n')
      .filter((line) => line.includes('express_api_key'))
      .join('\n'),
  ).toBe(before.trim())
  rotated(app, issued)
  app.edit('drizzle.config.ts', "tablesFilter: ['!express_api_key*'],", '')
  app.run('drizzle-kit push --force')
  expect(app.program(SQLITE_TABLES)).not.toContain('express_api_key')
})

const DROP_SCHEMA = `import { DataSource } from 'typeorm'
await (await new DataSource({ type: 'postgres', url: process.env.DATABASE_URL, dropSchema: true }).initialize()).destroy()`

const SQLITE_TABLES = `import Database from 'libsql'
for (const { sql } of new Database('app.db').prepare('select sql from sqlite_master where sql is not null order by name').all()) console.log(sql.replaceAll(/\\s+/g, ' '))`

function made(app: Application): string {
  return app
    .program(`import { close, keys } from './keys.js'
const { secret } = await keys.create({ as: 'application', ownerId: 'ada', name: 'ci', scopes: ['reports:read'] })
console.log(secret)
await close()`)
    .trim()
}

/** Rotates with this secret, twice with one Idempotency-Key, and resolves with the new secret. */
function rotated(app: Application, secret: string, module = 'keys'): string {
  const [first, repeated, ...verdicts] = app
    .program(`import { randomUUID } from 'node:crypto'
import { close, keys } from './${module}.js'
const as = { secret: '${secret}' }
const idempotencyKey = randomUUID()
const before = (await keys.verify(as.secret)).ok
const { secret } = await keys.rotate({ as, idempotencyKey })
console.log(secret, (await keys.rotate({ as, idempotencyKey })).secret, before, (await keys.verify(as.secret)).ok, (await keys.verify(secret)).ok)
await close()`)
    .trim()
    .split(' ')
  expect(verdicts).toEqual(['true', 'false', 'true'])
  expect(repeated).toBe(first)
  return first ?? ''
}

/** What the tables of the keys look like, and how many rows they have. */
async function tablesOfKeys(pool: Pool, schema = 'public') {
  const columns = await pool.query(
    `select table_name, column_name, data_type, is_nullable, column_default from information_schema.columns
    where table_schema = $1 and table_name like 'express_api_key%' order by 1, 2`,
    [schema],
  )
  const indexes = await pool.query(
    "select indexdef from pg_indexes where schemaname = $1 and tablename like 'express_api_key%' order by 1",
    [schema],
  )
  const constraints = await pool.query(
    "select conname from pg_constraint where connamespace = $1::regnamespace and conname like 'express_api_key%' order by 1",
    [schema],
  )
  const rows: string[] = []
  for (const table of new Set(columns.rows.map(({ table_name }) => table_name))) {
    const { rows: counted } = await pool.query(`select count(*) as rows from ${schema}.${table}`)
    rows.push(`${table}: ${counted[0].rows}`)
  }
  return { columns: columns.rows, indexes: indexes.rows, constraints: constraints.rows, rows }
}

function application(section: string, url: string, more: NodeJS.ProcessEnv = {}): Application {
  const folder = join(ROOT, '.tmp/orms', section.replaceAll(' ', '-').toLowerCase())
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  symlinkSync(PACKAGES, join(folder, 'node_modules'))
  const env = {
    ...process.env,
    ...more,
    DATABASE_URL: url,
    API_KEYS_SECRET: SERVER_SECRET,
    PATH: [join(ROOT, 'node_modules/.bin'), join(PACKAGES, '.bin'), process.env.PATH].join(':'),
    TSX_TSCONFIG_PATH: join(folder, 'tsconfig.json'),
    PRISMA_SCHEMA_ENGINE_BINARY: join(__dirname, 'orms/schema-engine.mjs'),
    PRISMA_HIDE_UPDATE_MESSAGE: 'true',
    CHECKPOINT_DISABLE: 'true',
  }
  const run = (file: string, args: string[]): string => {
    try {
      return execFileSync(file, args, { cwd: folder, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
    } catch (error) {
      const { stdout, stderr } = error as { stdout?: string; stderr?: string }
      throw new Error(`${args.join(' ')}: ${stdout}${stderr}`)
    }
  }
  const app: Application = {
    folder,
    env,
    commands: blocksOf(section).flatMap(({ language, code }) => (language === 'sh' ? code.trim().replaceAll('npx ', '').split('\n') : [])),
    run: (command) => run('sh', ['-c', command]),
    program(text) {
      app.write('program.ts', text)
      return app.run('tsx program.ts')
    },
    deploy() {
      for (const command of app.commands) app.run(command)
    },
    write(file, text) {
      mkdirSync(dirname(join(folder, file)), { recursive: true })
      writeFileSync(join(folder, file), text)
    },
    edit(file, find, replace) {
      const text = app.read(file)
      expect(text).toContain(find)
      app.write(file, text.replace(find, replace))
    },
    read: (file) => readFileSync(join(folder, file), 'utf8'),
  }
  app.write('package.json', '{ "type": "module" }')
  app.write('tsconfig.json', JSON.stringify({ extends: '../../../tsconfig.json', compilerOptions: AS_USUAL, include: ['*.ts'] }))
  for (const { language, code } of [...blocksOf(IN_EVERY_APPLICATION), ...blocksOf(section)]) {
    const [, file] = /^\/\/ (\S+)\n/.exec(code) ?? []
    if (language !== 'sh') app.write(file ?? 'a-block-without-a-name', code)
  }
  return app
}

function blocksOf(section: string): { language: string; code: string }[] {
  const [, text = ''] = new RegExp(`^## ${section}\\n(.*?)(?=^## |$(?![^]))`, 'ms').exec(PAGE) ?? []
  const blocks = [...text.matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(([, language = '', code = '']) => ({ language, code }))
  expect(blocks.length).toBeGreaterThan(0)
  return blocks
}

/** What applications are compiled with; decorators are TypeORM's. */
const AS_USUAL = {
  allowJs: true,
  experimentalDecorators: true,
  useDefineForClassFields: false,
  verbatimModuleSyntax: false,
  erasableSyntaxOnly: false,
  isolatedDeclarations: false,
  declaration: false,
  noUnusedLocals: false,
  types: ['node'],
}
