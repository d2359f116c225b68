import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type ApiKeys, createApiKeys, type IssuedKey } from 'express-api-keys'
import { SERVER_SECRET } from '../../support/process.js'
import { stores, type TestStore } from '../../support/stores.js'

const PAGE = readFileSync(join(__dirname, '../../../docs/reference/tables.md'), 'utf8')

/** What a database says of its tables. */
interface Catalog {
  /** As `table column type empty`. */
  columns(of: TestStore): Promise<string[]>
  /** As `table: column, column`. */
  indexes(of: TestStore): Promise<string[]>
}

interface Row {
  readonly text: string
}

const CATALOGS: { readonly [name: string]: Catalog } = {
  PostgreSQL: {
    columns: async ({ query }) =>
      texts(
        await query<Row>(`select table_name || ' ' || column_name || ' ' || data_type || case is_nullable when 'YES' then ' yes' else ' no' end as text
          from information_schema.columns where table_schema = 'public'`),
      ),
    indexes: async ({ query }) =>
      texts(
        await query<Row>(`select tablename || ': ' || substring(indexdef from 'btree \\((.*?)\\)') as text
          from pg_indexes where schemaname = 'public'`),
      ),
  },
  SQLite: {
    columns: async ({ query }) =>
      texts(
        await query<Row>(`select m.name || ' ' || c.name || ' ' || lower(c.type) || case when c."notnull" or c.pk then ' no' else ' yes' end as text
          from sqlite_master m, pragma_table_info(m.name) c where m.type = 'table'`),
      ),
    async indexes({ query }) {
      const listed = await query<Row>(`select m.name || ': ' || (select group_concat(name, ', ') from pragma_index_info(l.name)) as text
        from sqlite_master m, pragma_index_list(m.name) l where m.type = 'table'`)
      // A number as primary key is the number of the row, and has no index.
      const numbered = ['settings: id', 'feed: id', 'migrations: version'].map((text) => ({ text: `express_api_key_${text}` }))
      return texts([...listed, ...numbered])
    },
  },
}

describe.each(stores)('the page of tables, on %s', (name, makeStore) => {
  const catalog = CATALOGS[name]

  test('lists each column with its type, and each index', async () => {
    const { database, keys } = await open()
    expect(pageColumns()).toEqual(await catalog?.columns(database))
    expect(pageIndexes()).toEqual(await catalog?.indexes(database))
    await keys.close()
  })

  test('has statements that run, and after which keys verify, rotate and replay', async () => {
    const { database, keys } = await open()
    const issued = await issue(keys, 'ada')
    const request = { as: { secret: issued.secret }, idempotencyKey: randomUUID() } as const
    const { secret } = await keys.rotate(request)
    // What is written to SQLite by another handle of this process would block the process while the store has the file.
    await keys.close()
    await database.query('create table users (id text primary key, email text)')
    await database.query("insert into users values ('ada', 'ada@example.com')")
    await database.query(`update express_api_keys set last_used_at = 1, last_used_ip = '203.0.113.5'`)
    await database.query(`update express_api_key_events set at = 1, ip = '203.0.113.5'`)
    const answers = []
    for (const statement of statements(name)) answers.push(await database.query<Record<string, unknown>>(statement))
    expect(answers[0]).toMatchObject([{ email: 'ada@example.com', name: 'a key', secret: `${secret.slice(0, 8)}…${secret.slice(-4)}` }])
    const later = keysOver(database)
    if (name === 'PostgreSQL') {
      expect(answers[1]).toMatchObject([{ owner_id: 'ada' }])
      expect(await later.events({ id: issued.key.id })).toMatchObject({ items: [] })
    }
    expect((await later.rotate(request)).secret).toBe(secret)
    expect((await later.verify(secret)).ok).toBe(true)
    await later.close()
  })

  async function open(): Promise<{ database: TestStore; keys: ApiKeys }> {
    const database = await makeStore()
    const keys = keysOver(database)
    await keys.migrate()
    return { database, keys }
  }
})

function keysOver({ store }: TestStore): ApiKeys {
  return createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: 250 })
}

function issue(keys: ApiKeys, ownerId: string): Promise<IssuedKey> {
  return keys.create({ as: 'application', ownerId, name: 'a key', scopes: [], metadata: { email: 'someone@example.com' } })
}

function pageColumns(): string[] {
  return tables()
    .flatMap(([table, text]) =>
      [...text.matchAll(/^\| `(\w+)` \| `(\w+)` \| (yes|no) \|/gm)].map(([, column, type, empty]) => `${table} ${column} ${type} ${empty}`),
    )
    .sort()
}

function pageIndexes(): string[] {
  return tables()
    .flatMap(([table, text]) =>
      [...(/^Indexes: (.*)$/m.exec(text)?.[1] ?? '').matchAll(/`(.*?)`/g)].map(([, columns]) => `${table}: ${columns}`),
    )
    .sort()
}

/** The sections about tables. */
function tables(): [table: string, text: string][] {
  return PAGE.split(/^## /m).flatMap((section) => {
    const [, table, text] = /^(express_api_\w+)\n(.*)$/s.exec(section) ?? []
    return table === undefined || text === undefined ? [] : [[table, text]]
  })
}

function statements(database: string): string[] {
  const all = [...PAGE.matchAll(/^```sql\n(.*?)^```$/gms)].map(([, statement = '']) => statement)
  expect(all).toHaveLength(3)
  return all.filter((statement) => database === 'PostgreSQL' || !statement.startsWith('-- PostgreSQL'))
}

function texts(rows: readonly Row[]): string[] {
  return rows.map(({ text }) => text).sort()
}
