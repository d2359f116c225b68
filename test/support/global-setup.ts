import { join } from 'node:path'
import { bundle } from './bundle.ts'
import { embeddedPostgres, UNSAFE } from './postgres-server.ts'

declare global {
  var stopPostgres: (() => Promise<void>) | undefined
}

/** Starts the one PostgreSQL of a test run; every test file makes a database of its own on it. */
export default async function setUp({ rootDir }: { rootDir: string }): Promise<void> {
  process.env.TEST_SERVER = await buildServer(rootDir)
  const { url, stop } = await embeddedPostgres(UNSAFE, ['--no-sync'])
  process.env.TEST_POSTGRES_URL = url
  globalThis.stopPostgres = stop
}

/** As one file, the server that tests start and kill by the dozen is up in a fraction of the time. */
export function buildServer(rootDir: string): Promise<string> {
  return bundle(join(rootDir, 'test', 'support', 'server.ts'), join(rootDir, '.tmp', 'server.mjs'))
}
