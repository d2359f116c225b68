import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type ApiKeys, createApiKeys, memoryStore, type Recalled, type Store } from 'express-api-keys'
import { sqliteStore } from 'express-api-keys/sqlite'
import Database from 'libsql'
import { neighbours } from '../../../src/core/recall/neighbours.js'
import { atEnd } from '../../support/cleanup.js'
import { TestClock } from '../../support/clock.js'
import { SERVER_SECRET } from '../../support/process.js'

/** Each makes two views of one database. */
const kinds: readonly (readonly [string, (clock: TestClock) => readonly [Store, Store]])[] = [
  [
    'memory',
    (clock) => {
      const store = memoryStore({ now: clock.wallMs })
      return [store, store]
    },
  ],
  [
    'SQLite',
    () => {
      const folder = mkdtempSync(join(tmpdir(), 'api-keys-'))
      const [one, other] = [new Database(join(folder, 'keys.db')), new Database(join(folder, 'keys.db'))]
      atEnd(async () => {
        one.close()
        other.close()
        rmSync(folder, { recursive: true })
      })
      return [sqliteStore(one), sqliteStore(other)]
    },
  ],
]

test.each(kinds)(
  'P3: on %s a rotation is answered at its COMMIT, and from then on no instance accepts the old secret',
  async (_name, make) => {
    const clock = new TestClock()
    const [one, other] = make(clock).map((store) => createApiKeys({ store, serverSecret: SERVER_SECRET, clock, leaseMs: 60_000 })) as [
      ApiKeys,
      ApiKeys,
    ]
    const told: Recalled[] = []
    one.on('recalled', (recalled) => void told.push(recalled))
    await one.migrate()
    let { secret } = await one.create({ as: 'application', ownerId: 'acme', name: 'ci' })
    for (let rotations = 0; rotations < 5; rotations++) {
      const before = await other.verify(secret)
      expect([before.ok, (await one.verify(secret)).ok, other.peek(secret)?.ok]).toEqual([true, true, true])
      // As in another process.
      neighbours.clear()
      const rotated = await one.rotate({ as: { secret } })
      expect([before.ok && before.live(), one.peek(secret)?.ok, other.peek(secret)?.ok]).not.toContain(true)
      expect((await other.verify(secret)).ok).toBe(false)
      secret = rotated.secret
    }
    expect(told).toMatchObject(Array(5).fill({ members: 0, answered: 0, silent: [], waitedMs: 0, early: true }))
    await one.close()
    await other.close()
  },
)
