import { setTimeout } from 'node:timers/promises'
import { type ApiKeys, createApiKeys } from 'express-api-keys'
import { postgresStore } from 'express-api-keys/postgres'
import { atEnd } from '../support/cleanup.js'
import { freshDatabase } from '../support/postgres.js'
import { SERVER_SECRET } from '../support/process.js'

const LEASE_MS = 2_000

test.each(['rotate', 'revoke'] as const)(
  'P3: a result that was kept by an instance without a lease, and is first asked after a %s has answered, is not live',
  async (end) => {
    const { pool } = await freshDatabase()
    const store = postgresStore(pool)
    const start = async (): Promise<ApiKeys> => {
      const keys = createApiKeys({ store, serverSecret: SERVER_SECRET, leaseMs: LEASE_MS, onError: () => {} })
      await keys.migrate()
      atEnd(() => keys.close())
      return keys
    }
    const [here, there] = [await start(), await start()]
    const warm = await here.create({ as: 'application', ownerId: 'acme', name: 'warm' })
    const { key, secret } = await here.create({ as: 'application', ownerId: 'acme', name: 'n' })
    // From then on the changes of this instance are answered early.
    let early = false
    here.on('recalled', (told) => {
      early = told.early
    })
    while (!early) {
      await here.update({ as: 'application', id: warm.key.id, changes: { name: 'warm' } })
      await setTimeout(100)
    }
    const kept = await there.verify(secret)
    const keptAt = performance.now()
    await here[end]({ as: 'application', id: key.id })
    expect([kept.ok && kept.live(), performance.now() - keptAt < LEASE_MS]).toEqual([false, true])
  },
)
