import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createPool, type Pool, type RowDataPacket } from 'mysql2'
import { type Child, child } from './child.js'
import { atEnd } from './cleanup.js'
import { freePort } from './port.js'

/** A MariaDB server that can be treated badly: `kill` it and `start` it again, on the same port and over the same files. */
export interface MariadbServer extends Child {
  readonly url: string
  /** Kills it and removes its files. */
  close(): Promise<void>
}

/** Starts a MariaDB over a new, empty folder. @param args returns more arguments, at each start */
export async function mariadbServer(args: () => readonly string[] = () => []): Promise<MariadbServer> {
  const port = await freePort()
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-mariadb-'))
  const data = join(folder, 'data')
  // It refuses to run as root without being told to.
  const user = process.getuid?.() === 0 ? ['--user=root'] : []
  const made = spawnSync(
    'mariadb-install-db',
    ['--no-defaults', ...user, `--datadir=${data}`, '--auth-root-authentication-method=normal', '--skip-test-db', '--skip-name-resolve'],
    { encoding: 'utf8' },
  )
  if (made.status !== 0)
    throw new Error(`mariadb-install-db failed; npm run test:wide installs mariadb-server: ${made.stderr ?? made.error}`)
  const server = child(() => ({
    command: 'mariadbd',
    args: [
      ...['--no-defaults', ...user, `--datadir=${data}`, `--port=${port}`, `--socket=${join(folder, 'sock')}`, '--bind-address=127.0.0.1'],
      // A killed process loses nothing that it has written, and a test machine does not lose its power.
      ...[
        '--skip-name-resolve',
        '--innodb-flush-log-at-trx-commit=2',
        '--skip-log-bin',
        '--max-connections=2000',
        '--innodb-buffer-pool-size=64M',
      ],
      ...args(),
    ],
    ready: /ready for connections/,
  }))
  await server.start()
  return {
    ...server,
    url: `mysql://root@127.0.0.1:${port}`,
    async close() {
      await server.kill()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

let shared: Promise<MariadbServer> | undefined

export interface TestMysql {
  readonly url: string
  readonly pool: Pool
}

/** Makes a new, empty database on the one MariaDB of a test file. */
export async function freshMysql(): Promise<TestMysql> {
  shared ??= mariadbServer()
  const server = await shared
  const name = `t_${randomUUID().replaceAll('-', '')}`
  const admin = createPool({ uri: server.url, connectionLimit: 1 })
  await admin.promise().query(`create database ${name}`)
  const url = `${server.url}/${name}`
  const pool = createPool({ uri: url, connectionLimit: 10 })
  atEnd(async () => {
    await pool.promise().end()
    await admin.promise().query(`drop database ${name}`)
    await admin.promise().end()
  })
  return { url, pool }
}

afterAll(async () => {
  await (await shared)?.close()
  shared = undefined
})

/** Every file of the server, its log among them. */
export async function filesOfServer(url: string): Promise<Buffer> {
  const pool = createPool({ uri: url, connectionLimit: 1 }).promise()
  const [rows] = await pool.query<RowDataPacket[]>('select @@datadir as folder')
  await pool.end()
  const files = readdirSync(rows[0]?.folder, { recursive: true, withFileTypes: true }).filter((file) => file.isFile())
  return Buffer.concat(files.map((file) => readFileSync(join(file.parentPath, file.name))))
}
