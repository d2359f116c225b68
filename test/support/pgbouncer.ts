import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { child } from './child.js'
import { atEnd } from './cleanup.js'
import { freePort } from './port.js'

/** Starts a PgBouncer in transaction mode in front of a database: each transaction may run in another session. Returns its URL. */
export async function pgbouncer(databaseUrl: string): Promise<string> {
  const { hostname, port: serverPort, pathname, username, password } = new URL(databaseUrl)
  const port = await freePort()
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-pgbouncer-'))
  const file = join(folder, 'pgbouncer.ini')
  const name = pathname.slice(1)
  writeFileSync(
    file,
    `[databases]
${name} = host=${hostname} port=${serverPort} dbname=${name} user=${username} password=${password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 12
max_client_conn = 200
`,
    { mode: 0o644 },
  )
  const isRoot = process.getuid?.() === 0
  const pooler = child(() => ({
    command: 'pgbouncer',
    // It refuses to run as root.
    args: [...(isRoot ? ['-u', 'nobody'] : []), file],
    ready: /process up/,
  }))
  await pooler.start()
  atEnd(async () => {
    await pooler.kill()
    rmSync(folder, { recursive: true, force: true })
  })
  return `postgres://${username}@127.0.0.1:${port}/${name}`
}
