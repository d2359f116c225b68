import { randomUUID } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Client, Pool } from 'pg'
import { atEnd } from './cleanup.js'
import { type FaultProxy, faultProxy } from './proxy.js'

export interface TestDatabase {
  readonly url: string
  readonly pool: Pool
}

/** Makes a new, empty database on the run's PostgreSQL. */
export async function freshDatabase(): Promise<TestDatabase> {
  const server = process.env.TEST_POSTGRES_URL
  if (server === undefined) throw new Error('TEST_POSTGRES_URL is not set: run the tests with npm test.')
  const name = `t_${randomUUID().replaceAll('-', '')}`
  await administer(server, `create database ${name}`)
  const url = Object.assign(new URL(server), { pathname: `/${name}` }).href
  const pool = new Pool({ connectionString: url })
  pool.on('error', () => {})
  atEnd(async () => {
    await pool.end()
    await administer(server, `drop database ${name} with (force)`)
  })
  return { url, pool }
}

/** A way to a database on which things go wrong when told to, and a pool that takes it. */
export async function throughProxy(url: string): Promise<{ readonly pool: Pool; readonly proxy: FaultProxy }> {
  const proxy = await faultProxy(new URL(url))
  const pool = new Pool({ connectionString: Object.assign(new URL(url), { host: `127.0.0.1:${proxy.port}` }).href })
  pool.on('error', () => {})
  atEnd(async () => {
    await proxy.close()
    await pool.end()
  })
  return { pool, proxy }
}

/** The file of the write-ahead log that is being written. */
export async function logFile(url: string): Promise<string> {
  const client = new Client({ connectionString: url })
  await client.connect()
  const { rows } = await client.query<{ file: string }>('select pg_walfile_name(pg_current_wal_insert_lsn()) as file')
  await client.end()
  return rows[0]?.file ?? ''
}

/** Every row of every table as text, and the server's write-ahead log as bytes, from the file `since` on. */
export async function dumpDatabase(url: string, since = ''): Promise<Buffer> {
  const client = new Client({ connectionString: url })
  await client.connect()
  const tables = await client.query<{ name: string }>(
    `select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname not in ('pg_catalog', 'information_schema')`,
  )
  const parts: Buffer[] = []
  for (const { name } of tables.rows) {
    const { rows } = await client.query<{ row: string }>(`select t::text as row from ${name} t`)
    parts.push(Buffer.from([name, ...rows.map(({ row }) => row)].join('\n')))
  }
  const folder = await client.query<{ data_directory: string }>('show data_directory')
  const now = await client.query<{ file: string }>('select pg_walfile_name(pg_current_wal_insert_lsn()) as file')
  await client.end()
  const log = join(folder.rows[0]?.data_directory ?? '', 'pg_wal')
  for (const file of readdirSync(log, { withFileTypes: true })) {
    // Files with later names are old ones that wait to be written over.
    const written = file.name >= since && file.name <= (now.rows[0]?.file ?? '')
    if (file.isFile() && written) parts.push(readFileSync(join(log, file.name)))
  }
  return Buffer.concat(parts)
}

async function administer(url: string, statement: string): Promise<void> {
  const client = new Client({ connectionString: url })
  await client.connect()
  try {
    await client.query(statement)
  } finally {
    await client.end()
  }
}
