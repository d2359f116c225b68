import type { Kysely, RawBuilder } from 'kysely'
import { wallMs } from '../../real-time.js'
import { KEPT } from '../feed.js'
import type { Member, MemberRow, Membership, Store } from '../store.js'
import type { Database } from './database.js'
import { NOWHERE } from './feed.js'
import { answeredByPrimary, bounded, instantOf, namingServer, refuseMissing } from './reads.js'
import { refuseHiding } from './row-security.js'
import type { InstanceTable, Tables } from './rows.js'
import { inOwnTransaction } from './transaction.js'

type Members = Pick<Store, 'join' | 'leave' | 'members' | 'acknowledge' | 'revokeMembers' | 'removeMembers' | 'pruneFeed'>

/** Who follows the feed, and how long that is kept. */
export function members(database: Database): Members {
  const own = <T>(work: (on: Kysely<Tables>) => Promise<T>): Promise<T> => inOwnTransaction(database, work)
  const read = readingMembers(database)
  return {
    members: (after) => bounded(database, () => read(after)),
    join: (member) => own((on) => join(database, on, member)),

    leave: (session) =>
      own(async (on) => {
        await on.deleteFrom('express_api_key_instances').where('session', '=', session).execute()
      }),

    // Only what the feed has: an instance that has not noticed yet that the database was restored speaks of changes that are gone.
    acknowledge: (session, { seq, tag }) =>
      own(async (on) => {
        const change = on.selectFrom('express_api_key_changes').select('seq').where('seq', '=', seq).where('tag', '=', tag)
        if ((await change.executeTakeFirst()) === undefined) return
        const row = on.updateTable('express_api_key_instances').set({ acked: seq }).where('session', '=', session)
        await row.where('acked', '<', seq).execute()
      }),

    async revokeMembers(sessions) {
      if (sessions.length === 0) return
      await own((on) =>
        on
          .updateTable('express_api_key_instances')
          .set({ revoked: 1 })
          .where('session', 'in', [...sessions])
          .execute(),
      )
    },

    async removeMembers(sessions) {
      if (sessions.length === 0) return
      await own((on) =>
        on
          .deleteFrom('express_api_key_instances')
          .where('session', 'in', [...sessions])
          .where('revoked', '=', 1)
          .execute(),
      )
    },

    pruneFeed: () => pruneFeed(database),
  }
}

async function join({ dialect }: Database, on: Kysely<Tables>, { session, mode, channels }: Member): Promise<void> {
  const joinedAt = await dialect.now(on)
  const member = { session, mode, channels: channels.join(','), revoked: 0, acked: 0, joined_at: joinedAt }
  await dialect.insertOnce(on.insertInto('express_api_key_instances').values(member)).execute()
}

function readingMembers(database: Database): (after: number | undefined) => Promise<Membership> {
  const { rowSecurity } = database.dialect
  const rowsOf = namingServer(database, (server) => {
    const query = membersQuery(database, rowSecurity.mayHide(['express_api_key_instances']), server)
    const careful = membersQuery(database, rowSecurity.hides, server)
    return async (after: number | undefined) => {
      const rows = await query(after)
      if (rows[0] !== undefined && rows[0].hidden === '') return rows
      // A member that is hidden would be waited for by nobody.
      const again = await careful(after)
      refuseHiding(again[0]?.hidden)
      if (again[0] === undefined) await refuseMissing(database)
      return again
    }
  })
  return async (after) => {
    const before = wallMs()
    const rows = await rowsOf(after)
    const first = answeredByPrimary(rows[0])
    const [leaseMs, earlierMs] = [Number(first.lease_ms), Number(first.earlier_lease_ms)]
    return {
      at: instantOf(first, before),
      storeId: first.store_id,
      server: first.server ?? undefined,
      seq: Number(first.seq),
      tag: first.tag,
      tagAfter: first.tag_after ?? undefined,
      waitMs: Math.max(leaseMs, earlierMs),
      lowered: earlierMs > leaseMs,
      members: rows.flatMap((row) => (row.session === null ? [] : [memberRow(row as InstanceTable)])),
    }
  }
}

function membersQuery({ db, dialect }: Database, hidden: RawBuilder<string>, server: RawBuilder<string | null>) {
  return (after: number | undefined) =>
    db
      .selectFrom('express_api_key_settings as s')
      .innerJoin('express_api_key_feed as f', 'f.id', 's.id')
      .leftJoin('express_api_key_changes as c', (join) => join.on('c.seq', '=', after ?? NOWHERE))
      .leftJoin('express_api_key_instances as m', (join) => join.onTrue())
      .where('s.id', '=', 1)
      .select(['s.lease_ms', 's.earlier_lease_ms', 's.store_id', 's.protocol', 'f.seq', 'f.tag', 'c.tag as tag_after', server.as('server')])
      .select(['m.session', 'm.mode', 'm.channels', 'm.revoked', 'm.acked', 'm.joined_at'])
      .select([dialect.readClock.as('at'), dialect.standby.as('standby'), dialect.outdated.as('outdated'), hidden.as('hidden')])
      .execute()
}

function memberRow(row: InstanceTable): MemberRow {
  return {
    session: row.session,
    mode: row.mode === 'recall' ? 'recall' : 'feed',
    channels: row.channels === '' ? [] : row.channels.split(','),
    revoked: Number(row.revoked) !== 0,
    acked: Number(row.acked),
    joinedAt: Number(row.joined_at),
  }
}

/** How many changes are deleted in one transaction. */
const BATCH = 500

async function pruneFeed(database: Database): Promise<void> {
  while (await inOwnTransaction(database, (on) => pruneBatch(database, on))) {}
}

/** Resolves with whether there is more. The feed is locked last, since every change waits for that. */
async function pruneBatch({ dialect }: Database, on: Kysely<Tables>): Promise<boolean> {
  const { seq, pruned_to } = await on.selectFrom('express_api_key_feed').selectAll().where('id', '=', 1).executeTakeFirstOrThrow()
  const newest = Number(seq)
  const old = (await dialect.now(on)) - KEPT.ms
  const found = await on
    .selectFrom('express_api_key_changes')
    .select(['seq', 'at'])
    .where('seq', '<=', newest - KEPT.least)
    .orderBy('seq')
    .limit(BATCH)
    .execute()
  const kept = found.findIndex((row) => Number(row.seq) > newest - KEPT.most && Number(row.at) >= old)
  const last = found.at((kept < 0 ? found.length : kept) - 1)
  if (last === undefined || kept === 0) return false
  const upTo = Number(last.seq)
  await on.deleteFrom('express_api_key_changes').where('seq', '<=', upTo).execute()
  if (Number(pruned_to) < upTo)
    await on.updateTable('express_api_key_feed').set({ pruned_to: upTo }).where('id', '=', 1).where('pruned_to', '<', upTo).execute()
  return kept < 0 && found.length === BATCH
}
