import { join } from 'node:path'
import Database from 'libsql'
import { cli, cliOn, ownFolder } from '../support/cli.js'
import { freshDatabase } from '../support/postgres.js'

/** How many migrations there are. */
const KNOWN = 8

/** A new, empty database: how the command line is run on it, and how it is looked into. */
interface Empty {
  readonly run: ReturnType<typeof cliOn>
  readonly execute: (script: string) => Promise<void>
  /** Every column and index, as text. */
  readonly shape: () => Promise<string[]>
  readonly query: (statement: string) => Promise<Record<string, unknown>[]>
}

const databases: readonly (readonly [string, () => Promise<Empty>])[] = [
  [
    'PostgreSQL',
    async () => {
      const { url, pool } = await freshDatabase()
      const query = async (statement: string) => (await pool.query(statement)).rows
      return {
        run: cliOn(url),
        query,
        execute: async (script) => void (await pool.query(`begin; ${script} commit`)),
        async shape() {
          const columns = await query(`select table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' '
            || coalesce(column_default, '') as line from information_schema.columns where table_schema = 'public'`)
          const indexes = await query(`select indexdef as line from pg_indexes where schemaname = 'public'`)
          return [...columns, ...indexes].map(({ line }) => String(line)).sort()
        },
      }
    },
  ],
  [
    'SQLite',
    async () => {
      const file = join(ownFolder(), 'keys.db')
      const open = <T>(work: (database: Database.Database) => T): T => {
        const database = new Database(file)
        try {
          return work(database)
        } finally {
          database.close()
        }
      }
      const query = async (statement: string) => open((database) => database.prepare(statement).all() as Record<string, unknown>[])
      return {
        run: cliOn(`sqlite:${file}`),
        query,
        execute: async (script) => open((database) => void database.exec(`begin; ${script} commit`)),
        shape: async () =>
          (await query('select sql from sqlite_master where sql is not null')).map(({ sql }) => String(sql).replaceAll(/\s+/g, ' ')).sort(),
      }
    },
  ],
]

describe.each(databases)('on %s', (_name, make) => {
  test('it makes the tables, and running it again, or from several places at once, does no harm', async () => {
    const { run } = await make()
    const all = await Promise.all([run('migrate'), run('migrate'), run('migrate')])
    expect(all.map(({ code }) => code)).toEqual([0, 0, 0])
    expect(await run('migrate')).toEqual({ code: 0, stdout: `The tables are at version ${KNOWN} already.\n`, stderr: '' })
    expect(JSON.parse((await run('migrate', '--json')).stdout)).toEqual({ state: 'current', version: KNOWN, before: KNOWN })
  })

  test('--check says with its exit code whether the tables are older or newer than this release', async () => {
    const { run, query, execute } = await make()
    expect(await run('migrate', '--check')).toEqual({
      code: 5,
      stdout: `The tables are at version 0, and this release needs ${KNOWN}: run npx express-api-keys migrate before it is started.\n`,
      stderr: '',
    })
    await run('migrate')
    expect(await run('migrate', '--check', '--json')).toMatchObject({ code: 0, stderr: '' })
    await execute(`insert into express_api_key_migrations values (${KNOWN + 1}, 0);`)
    expect(await run('migrate', '--check')).toEqual({
      code: 6,
      stdout: `The tables are at version ${KNOWN + 1}, made by a newer release, and this one knows ${KNOWN}: install the release that made them.\n`,
      stderr: '',
    })
    expect(await run('migrate')).toMatchObject({ code: 2, stdout: '' })
    expect(await query('select max(version) as version from express_api_key_migrations')).toEqual([{ version: KNOWN + 1 }])
  })

  test('--sql prints what makes the same tables, and each database that runs it has an id of its own', async () => {
    const [made, printed, printedAgain] = [await make(), await make(), await make()]
    await made.run('migrate')
    const { stdout, stderr, code } = await printed.run('migrate', '--sql', '--from', '0')
    expect([code, stderr]).toEqual([0, ''])
    for (const one of [printed, printedAgain]) await one.execute(stdout)
    expect(await printed.shape()).toEqual(await made.shape())
    expect((await printed.run('migrate', '--check')).code).toBe(0)
    const ids = await Promise.all([printed, printedAgain].map((one) => one.query('select store_id from express_api_key_settings')))
    const tags = await Promise.all([printed, printedAgain].map((one) => one.query('select tag from express_api_key_feed')))
    for (const [one, other] of [ids, tags]) expect(one).not.toEqual(other)
    expect(String(tags[0]?.[0]?.tag)).toMatch(/^[\w-]{22}$/)
    const created = await printed.run('create', '--owner', 'acme', '--name', 'ci')
    expect([created.code, created.stdout]).toEqual([0, expect.stringMatching(/^sk_live_\w{49}\n$/)])
  })

  test('--sql prints what is missing, from whatever version the tables are at', async () => {
    const made = await make()
    await made.run('migrate')
    const { stdout: whole } = await made.run('migrate', '--sql', '--from', '0')
    for (const version of [1, 3, 5]) {
      const older = await make()
      const lines = whole.split('\n')
      const end = lines.findIndex((line) => line.includes(`"express_api_key_migrations" values (${version},`))
      await older.execute(lines.slice(0, end + 1).join('\n'))
      const { stdout: rest } = await older.run('migrate', '--sql')
      expect(rest.split('\n')[0]).toContain(`from version ${version} on`)
      await older.execute(rest)
      expect((await older.run('migrate', '--check')).code).toBe(0)
      expect(await older.shape()).toEqual(await made.shape())
    }
  })
})

test('--sql --from asks no database, only which kind it is', async () => {
  const env = { DATABASE_URL: 'postgres://nobody:nothing@127.0.0.1:1/nowhere' }
  const { code, stdout } = await cli(['migrate', '--sql', '--from', '6'], { env })
  expect([code, stdout]).toEqual([
    0,
    expect.stringMatching(
      /^-- express-api-keys: tables for PostgreSQL, from version 6 on\. Run all of it in one transaction\.\nalter table "express_api_keys" add column allowed_ips text;\n/,
    ),
  ])
})
