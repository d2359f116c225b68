import { setTimeout } from 'node:timers/promises'
import { createApiKeys } from 'express-api-keys'
import { type PgPool, postgresStore } from 'express-api-keys/postgres'
import { Pool } from 'pg'
import { atEnd } from '../support/cleanup.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'

test.each([
  ['whose size is a text from the environment', '1' as unknown as number, (pool: Pool): PgPool => pool],
  ['that is wrapped, and does not tell its size', 1, (pool: Pool): PgPool => ({ connect: (callback) => pool.connect(callback as never) })],
])('P5: a pool of one connection %s is not taken up by listening', async (_which, max, given) => {
  const { url } = await freshDatabase()
  const pool = new Pool({ connectionString: url, max })
  const keys = createApiKeys({ store: postgresStore(given(pool)), serverSecret: SERVER_SECRET, leaseMs: 250, onError: () => {} })
  atEnd(async () => {
    await keys.close()
    await pool.end()
  })
  await keys.migrate()
  const { secret } = await keys.create({ as: 'application', ownerId: 'acme', name: 'n' })
  const joins = async (): Promise<boolean> => (await keys.verify(secret).catch(() => ({ ok: false }))).ok
  // Joining is what opens the channel.
  for (let count = 0; count < 3; count++, await setTimeout(100)) await joins()
  const answers = [await joins(), await joins()]
  expect(answers).toContain(true)
})
