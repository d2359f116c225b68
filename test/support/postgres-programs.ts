import { spawnSync } from 'node:child_process'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { Client } from 'pg'

/** The programs of PostgreSQL, and whom they run as: PostgreSQL refuses to run as root. */
export interface PostgresPrograms {
  readonly initdb: string
  readonly postgres: string
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
}

/** The server of the run knows where its programs are. */
export async function postgresPrograms(serverUrl: string): Promise<PostgresPrograms> {
  const client = new Client({ connectionString: serverUrl })
  await client.connect()
  const { rows } = await client.query<{ programs: string; data: string }>(
    `select setting as programs, current_setting('data_directory') as data from pg_config where name = 'BINDIR'`,
  )
  await client.end()
  const [{ programs, data } = { programs: '', data: '' }] = rows
  const { uid, gid } = statSync(data)
  return {
    initdb: join(programs, 'initdb'),
    postgres: join(programs, 'postgres'),
    owner: process.getuid?.() === 0 ? { uid, gid } : undefined,
  }
}

/** Makes an empty cluster in a folder that its owner may write to. */
export function initCluster({ initdb, owner }: PostgresPrograms, folder: string): void {
  const args = ['-D', folder, '-U', 'postgres', '-A', 'trust', '--no-sync', '--locale=C', '-E', 'UTF8']
  const { status, stderr } = spawnSync(initdb, args, { encoding: 'utf8', ...owner })
  if (status !== 0) throw new Error(`initdb failed: ${stderr}`)
}
