import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { atEnd } from './cleanup.js'
import { freePort } from './port.js'
import { initCluster, type PostgresPrograms, postgresPrograms } from './postgres-programs.js'

/** A PostgreSQL server that a test may kill. */
export interface OwnPostgres {
  readonly url: string
  start(): Promise<void>
  /** `immediate` is a crash: nobody is told, and the next start recovers from the write-ahead log. */
  stop(how: 'fast' | 'immediate'): Promise<void>
}

/** Starts a server of the test's own, and a standby that streams from it. */
export async function startPostgres(): Promise<OwnPostgres> {
  return (await startPair(false)).primary
}

export async function startWithStandby(): Promise<{ primary: OwnPostgres; standby: OwnPostgres }> {
  const { primary, standby } = await startPair(true)
  if (standby === undefined) throw new Error('There is no standby.')
  return { primary, standby }
}

async function startPair(withStandby: boolean): Promise<{ primary: OwnPostgres; standby: OwnPostgres | undefined }> {
  const origin = await postgresPrograms(process.env.TEST_POSTGRES_URL ?? '')
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-own-postgres-'))
  chmodSync(folder, 0o777)
  atEnd(async () => rmSync(folder, { recursive: true, force: true }))
  const data = join(folder, 'primary')
  initCluster(origin, data)
  const primary = server(origin, data, await freePort())
  if (!withStandby) {
    await primary.start()
    return { primary, standby: undefined }
  }
  // A copy of a cluster at rest is as good a base backup as any.
  const copy = join(folder, 'standby')
  const copied = spawnSync('cp', ['-R', data, copy], { encoding: 'utf8', ...origin.owner })
  if (copied.status !== 0) throw new Error(`The data directory could not be copied: ${copied.stderr}`)
  const { hostname, port } = new URL(primary.url)
  for (const [file, content] of [
    ['standby.signal', ''],
    // A standby that has lost its primary looks for it this often, and hears of its promotion no earlier.
    ['postgresql.auto.conf', `primary_conninfo = 'host=${hostname} port=${port} user=postgres'\nwal_retrieve_retry_interval = 100\n`],
  ] as const) {
    appendFileSync(join(copy, file), content)
  }
  await primary.start()
  const standby = server(origin, copy, await freePort())
  await standby.start()
  return { primary, standby }
}

function server({ postgres, owner }: PostgresPrograms, data: string, port: number): OwnPostgres {
  let child: ChildProcess | undefined
  const stop = async (how: 'fast' | 'immediate'): Promise<void> => {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill(how === 'fast' ? 'SIGINT' : 'SIGQUIT')
    await exited
  }
  atEnd(() => stop('immediate'))
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    stop,
    async start() {
      const options = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', 'fsync=off', 'max_connections=100']
      const flags = options.flatMap((option) => ['-c', option])
      child = spawn(postgres, ['-D', data, '-p', String(port), ...flags], { stdio: ['ignore', 'ignore', 'pipe'], ...owner })
      let said = ''
      child.stderr?.on('data', (chunk) => {
        said += String(chunk)
      })
      const exited = once(child, 'exit')
      while (!/ready to accept (read-only )?connections/.test(said)) {
        const more = await Promise.race([once(child.stderr ?? child, 'data'), exited.then(() => undefined)])
        if (more === undefined) throw new Error(`PostgreSQL did not start: ${said}`)
      }
    },
  }
}
