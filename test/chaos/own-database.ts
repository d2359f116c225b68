import { spawnSync } from 'node:child_process'
import { appendFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { Client, Pool, type PoolClient } from 'pg'
import { initCluster, type PostgresServer, postgresFolder, postgresPrograms, postgresServer } from '../support/postgres-server.js'
import { faultProxy } from '../support/proxy.js'

/** A PostgreSQL of one run, whose COMMITs can be made to wait and whose clock can be set. */
export interface OwnDatabase {
  /** Where the primary is; another place after a promotion. */
  url(): string
  /** For the checks and the faults: its commits wait for no standby, and `endSessions` leaves its sessions alone. */
  pool(): Pool
  /** Ends every session but those of `pool`, and returns how many there were. */
  endSessions(): Promise<number>
  /** Makes every COMMIT wait for a standby that does not exist, or ends that, for those that are waiting too. */
  awaitStandby(away: boolean): Promise<void>
  /** Moves the clock that the statements of the store read by so much. */
  setClock(byMs: number): Promise<void>
  /** Copies our tables, as a backup would. */
  backUp(): Promise<void>
  /** Puts the copy in their place, while everybody goes on. */
  restore(): Promise<void>
  /** Removes all instances, or one of them, from the list of those that changes wait for; resolves with how many. */
  unlist(all: boolean): Promise<number>
  /** Removes those that never say that they know, as an operator does when they have gone without leaving: changes would wait for them for an hour. */
  unlistReaders(): Promise<void>
  /** Whether there is a standby still, that can be promoted: there is one for each run. */
  hasStandby(): boolean
  /** Has the standby hold all that is committed by now, and little of what comes later. */
  cutOffStandby(): Promise<void>
  /** Kills the primary, and has the standby be one. It shows the same clock. */
  promote(): Promise<void>
  close(): Promise<void>
}

const ADMINISTRATOR = 'nemesis'

/**
 * Functions of the same names, found before those of PostgreSQL itself. `now()` stands still within a transaction, `statement_timestamp()` within a statement, and
 * `clock_timestamp()` goes on; all take the offset as the statement sees it. Each clock that the store reads has to be here: one that is not set with the others
 * would show a time that no server has.
 */
const CLOCK = `
  create schema clock;
  create table clock.offset_ms (ms bigint not null);
  insert into clock.offset_ms values (0);
  create function clock.now() returns timestamptz stable language sql
    as $$ select pg_catalog.now() + (select ms from clock.offset_ms) * interval '1 millisecond' $$;
  create function clock.statement_timestamp() returns timestamptz stable language sql
    as $$ select pg_catalog.statement_timestamp() + (select ms from clock.offset_ms) * interval '1 millisecond' $$;
  create function clock.clock_timestamp() returns timestamptz volatile language sql
    as $$ select pg_catalog.clock_timestamp() + (select ms from clock.offset_ms) * interval '1 millisecond' $$;
  alter database postgres set search_path = clock, pg_catalog, public;`

/** Starts one with the programs of the server that is already running. */
export async function ownDatabase(serverUrl: string): Promise<OwnDatabase> {
  const programs = await postgresPrograms(serverUrl)
  const folder = postgresFolder()
  const data = join(folder, 'data')
  initCluster(programs, data)
  const copy = join(folder, 'standby')
  // A copy of a cluster at rest is as good a base backup as any, and the primary keeps its whole log.
  appendFileSync(join(data, 'postgresql.conf'), "wal_keep_size = '4GB'\n")
  const copied = spawnSync('cp', ['-R', data, copy], { encoding: 'utf8', ...programs.owner })
  if (copied.status !== 0) throw new Error(`The cluster could not be copied: ${copied.stderr}`)
  let server = await postgresServer(programs, data)
  await server.start()
  let pool = poolOf(server)
  await pool.query(CLOCK)
  let standby: PostgresServer | undefined = await postgresServer(programs, copy)
  const replication = await faultProxy(new URL(server.url))
  let offsetMs = 0

  /** One at a time: a server that is being replaced can have its clock set before or after that. */
  let before: Promise<unknown> = Promise.resolve()
  const inTurn = <Args extends readonly unknown[]>(work: (...args: Args) => Promise<void>): ((...args: Args) => Promise<void>) => {
    return (...args) => {
      const mine = before.then(() => work(...args))
      before = mine.catch(() => {})
      return mine
    }
  }

  const setClock = async (byMs: number): Promise<void> => {
    offsetMs = byMs
    await pool.query('update clock.offset_ms set ms = $1', [byMs])
    const { rows } = await pool.query<{ shown: string }>(
      'select extract(epoch from now() - pg_catalog.now()) * 1000 as shown, clock_timestamp()',
    )
    if (Number(rows[0]?.shown) !== byMs) throw new Error(`The clock of the store shows ${rows[0]?.shown} ms more, and not ${byMs}.`)
  }

  return {
    url: () => server.url,
    pool: () => pool,
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
    setClock: inTurn(setClock),
    backUp: () => inTransaction(pool, 'repeatable read', backUp),
    async restore() {
      // Who is in the way of an administrator for long is thrown out.
      const inTheWay = `select pg_terminate_backend(one) from pg_stat_activity, unnest(pg_blocking_pids(pid)) as one
        where application_name = $1 and now() - query_start > interval '500 milliseconds'`
      const clearing = setInterval(() => void pool.query(inTheWay, [ADMINISTRATOR]).catch(() => {}), 250)
      await inTransaction(pool, 'read committed', restore).finally(() => clearInterval(clearing))
    },
    async unlist(all) {
      const which = all ? '' : 'where session in (select session from express_api_key_instances order by random() limit 1)'
      return (await pool.query(`delete from express_api_key_instances ${which}`)).rowCount ?? 0
    },
    async unlistReaders() {
      await pool.query(`delete from express_api_key_instances where mode = 'feed'`)
    },
    hasStandby: () => standby !== undefined,
    async cutOffStandby() {
      if (standby === undefined) throw new Error('There is no standby left.')
      appendFileSync(join(copy, 'postgresql.auto.conf'), followed(replication.port))
      appendFileSync(join(copy, 'standby.signal'), '')
      await standby.start()
      const { rows } = await pool.query<{ lsn: string }>('select pg_current_wal_flush_lsn() as lsn')
      const client = new Client({ connectionString: standby.url })
      await client.connect()
      const reached = 'select pg_last_wal_replay_lsn() >= $1::pg_lsn as reached'
      while (!(await client.query<{ reached: boolean }>(reached, [rows[0]?.lsn])).rows[0]?.reached) await pause(20)
      await client.end()
      replication.refuse()
    },
    promote: inTurn(async () => {
      if (standby === undefined) throw new Error('There is no standby left.')
      await Promise.all([pool.end(), server.stop('immediate')])
      server = standby
      standby = undefined
      pool = poolOf(server)
      await pool.query('select pg_promote()')
      await setClock(offsetMs)
    }),
    async close() {
      await pool.end()
      await Promise.all([server.stop('immediate'), standby?.stop('immediate'), replication.close()])
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

function poolOf({ url }: PostgresServer): Pool {
  const pool = new Pool({ connectionString: url, application_name: ADMINISTRATOR, options: '-c synchronous_commit=local' })
  pool.on('error', () => {})
  return pool
}

/** A standby that has lost its primary looks for it this often, and notices its promotion no earlier. */
function followed(port: number): string {
  return `primary_conninfo = 'host=127.0.0.1 port=${port} user=postgres'\nwal_retrieve_retry_interval = 100\n`
}

/** Repeats what a deadlock or the lack of a lock has ended. */
async function inTransaction(pool: Pool, isolation: string, work: (client: PoolClient) => Promise<void>): Promise<void> {
  for (let tries = 1; ; tries++) {
    const client = await pool.connect()
    try {
      await client.query(`begin isolation level ${isolation}`)
      await work(client)
      await client.query('commit')
      return
    } catch (error) {
      await client.query('rollback').catch(() => {})
      if (tries >= 20) throw error
    } finally {
      client.release()
    }
  }
}

async function tablesOf(client: PoolClient): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>(
    `select tablename as name from pg_tables where schemaname = 'public' and tablename like 'express_api_key%' order by tablename`,
  )
  return rows.map(({ name }) => name)
}

async function backUp(client: PoolClient): Promise<void> {
  await client.query('drop schema if exists backup cascade; create schema backup')
  for (const name of await tablesOf(client)) await client.query(`create table backup.${name} as table public.${name}`)
}

async function restore(client: PoolClient): Promise<void> {
  const names = await tablesOf(client)
  // So that rows may come in any order.
  await client.query(`set local session_replication_role = replica`)
  // What is under way ends first, or is ended. Changes begin with the keys.
  await client.query(`set local deadlock_timeout = '1min'`)
  const ordered = ['express_api_keys', ...names.filter((name) => name !== 'express_api_keys')]
  await client.query(`lock table ${ordered.map((name) => `public.${name}`).join(', ')} in access exclusive mode`)
  for (const name of names) await client.query(`delete from public.${name}; insert into public.${name} table backup.${name}`)
}
