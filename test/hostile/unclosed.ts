// A script that does not close its keys, as its last line or at all.
import { Pool } from 'pg'
import { createApiKeys } from '../../src/index.js'
import { postgresStore } from '../../src/store/sql/postgres.js'

const { STORE_URL = '', ENDS_POOL } = process.env
const pool = new Pool({ connectionString: STORE_URL, allowExitOnIdle: true })
const keys = createApiKeys({ store: postgresStore(pool), serverSecret: 'a-server-secret-of-this-script-0123456789' })
await keys.migrate()
const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
await keys.verify(secret)
// By then it listens for the changes of others.
const listens = "select 1 from pg_stat_activity where datname = current_database() and query like '%pg_notify%'"
while ((await pool.query(listens)).rowCount === 0) await keys.verify(secret)
if (ENDS_POOL !== undefined) {
  // Something that keeps the process, as the requests of a server do.
  const busy = setInterval(() => {}, 1_000)
  await pool.end()
  clearInterval(busy)
}
console.log('end of the script')
