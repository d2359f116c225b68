import { spawnSync } from 'node:child_process'
import { appendFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { atEnd } from './cleanup.js'
import {
  initCluster,
  type PostgresPrograms,
  type PostgresServer,
  postgresFolder,
  postgresPrograms,
  postgresServer,
} from './postgres-server.js'

/** Starts a server that the test may kill. */
export async function startPostgres(): Promise<PostgresServer> {
  return (await startPair(false)).primary
}

/** The same, and a standby that streams from it. */
export async function startWithStandby(): Promise<{ primary: PostgresServer; standby: PostgresServer }> {
  const { primary, standby } = await startPair(true)
  if (standby === undefined) throw new Error('There is no standby.')
  return { primary, standby }
}

async function startPair(withStandby: boolean): Promise<{ primary: PostgresServer; standby: PostgresServer | undefined }> {
  const origin = await postgresPrograms(process.env.TEST_POSTGRES_URL ?? '')
  const folder = postgresFolder()
  atEnd(async () => rmSync(folder, { recursive: true, force: true }))
  const data = join(folder, 'primary')
  initCluster(origin, data)
  const primary = await server(origin, data)
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
    // A standby that has lost its primary looks for it this often, and notices its promotion no earlier.
    ['postgresql.auto.conf', `primary_conninfo = 'host=${hostname} port=${port} user=postgres'\nwal_retrieve_retry_interval = 100\n`],
  ] as const) {
    appendFileSync(join(copy, file), content)
  }
  await primary.start()
  const standby = await server(origin, copy)
  await standby.start()
  return { primary, standby }
}

async function server(programs: PostgresPrograms, data: string): Promise<PostgresServer> {
  const made = await postgresServer(programs, data)
  atEnd(() => made.stop('immediate'))
  return made
}
