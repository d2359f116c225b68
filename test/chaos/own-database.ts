import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client, Pool } from 'pg'
import { child } from '../support/child.js'
import { freePort } from '../support/port.js'
import { initCluster, postgresPrograms } from '../support/postgres-programs.js'

/** A PostgreSQL of one run, whose COMMITs can be made to wait and whose clock can be set. */
export interface OwnDatabase {
  readonly url: string
  /** For whoever looks on and does harm: what it writes waits for no standby, and `endSessions` lets its sessions be. */
  readonly pool: Pool
  /** Ends every session but those of `pool`, and says how many there were. */
  endSessions(): Promise<number>
  /** From now on every COMMIT waits for a standby that is not there; or no longer, and then those that have waited go on. */
  awaitStandby(away: boolean): Promise<void>
  /** Sets the clock, as every statement of the store hears it, to so much more than it is. */
  setClock(byMs: number): Promise<void>
  close(): Promise<void>
}

const ADMINISTRATOR = 'nemesis'

/**
 * Functions of the same names, found before those of PostgreSQL itself. `now()` stands still within a transaction, and `clock_timestamp()` goes on; both
 * take the offset as the statement sees it.
 */
const CLOCK = `
  create schema clock;
  create table clock.offset_ms (ms bigint not null);
  insert into clock.offset_ms values (0);
  create function clock.now() returns timestamptz stable language sql
    as $$ select pg_catalog.now() + (select ms from clock.offset_ms) * interval '1 millisecond' $$;
  create function clock.clock_timestamp() returns timestamptz volatile language sql
    as $$ select pg_catalog.clock_timestamp() + (select ms from clock.offset_ms) * interval '1 millisecond' $$;
  alter database postgres set search_path = clock, pg_catalog, public;`

/** Starts one with the programs of the server that is there already. */
export async function ownDatabase(serverUrl: string): Promise<OwnDatabase> {
  const programs = await postgresPrograms(serverUrl)
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-chaos-postgres-'))
  chmodSync(folder, 0o777)
  const data = join(folder, 'data')
  initCluster(programs, data)
  const port = await freePort()
  const settings = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', 'fsync=off', 'max_connections=300']
  const server = child(() => ({
    command: programs.postgres,
    args: ['-D', data, '-p', String(port), ...settings.flatMap((setting) => ['-c', setting])],
    ready: /ready to accept connections/,
    owner: programs.owner,
  }))
  await server.start()
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`
  const client = new Client({ connectionString: url })
  await client.connect()
  await client.query(CLOCK)
  await client.end()
  const pool = new Pool({ connectionString: url, application_name: ADMINISTRATOR, options: '-c synchronous_commit=local' })
  pool.on('error', () => {})

  return {
    url,
    pool,
    async endSessions() {
      const { rowCount } = await pool.query(
        `select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and application_name <> $1`,
        [ADMINISTRATOR],
      )
      return rowCount ?? 0
    },
    async awaitStandby(away) {
      await pool.query(`alter system set synchronous_standby_names = '${away ? 'away' : ''}'`)
      await pool.query('select pg_reload_conf()')
    },
    async setClock(byMs) {
      await pool.query('update clock.offset_ms set ms = $1', [byMs])
      const { rows } = await pool.query<{ shown: string }>(
        'select extract(epoch from now() - pg_catalog.now()) * 1000 as shown, clock_timestamp()',
      )
      if (Number(rows[0]?.shown) !== byMs) throw new Error(`The clock of the store shows ${rows[0]?.shown} ms more, and not ${byMs}.`)
    },
    async close() {
      await pool.end()
      await server.kill('SIGQUIT')
      rmSync(folder, { recursive: true, force: true })
    },
  }
}
