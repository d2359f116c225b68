import { type RawBuilder, sql } from 'kysely'
import { ApiKeyError } from '../../errors.js'
import { digestsOf, MOST_CHANGES, newTag } from '../feed.js'
import type { FeedChange } from '../store.js'
import type { Database } from './database.js'
import { identifier } from './table-names.js'

/** How instances and the store speak about changes. A release that speaks otherwise has another number. */
const PROTOCOL = 1

/** @throws ApiKeyError `store_misconfigured` where a release has been here that changes keys in a way this one would not hear of. */
export function refuseOtherProtocol(protocol: number | null | undefined): void {
  if (Number(protocol) === PROTOCOL) return
  throw new ApiKeyError(
    'store_misconfigured',
    `The instances over this database speak protocol ${Number(protocol)}, and this release knows ${PROTOCOL} only; install the release that the others have.`,
  )
}

/**
 * The statements that add a change to the feed, without parameters. The first takes the lock on the feed, which is held until the transaction is visible: so numbers
 * follow the order in which changes become visible. Where the row of the feed is missing the second fails, since its number is null.
 */
export function appendStatements({ places, dialect }: Database, changed: Iterable<string>): readonly RawBuilder<unknown>[] {
  const feed = identifier(places.express_api_key_feed)
  const tag = sql.lit(newTag())
  const digests = sql.lit(digestsOf(changed).join(','))
  return [
    sql`update ${feed} set seq = seq + 1, tag = ${tag} where id = 1`,
    sql`insert into ${identifier(places.express_api_key_changes)} (seq, tag, digests, at)
      values ((select seq from ${feed} where id = 1 and tag = ${tag}), ${tag}, ${digests}, ${dialect.clock()})`,
  ]
}

/** The first changes after a number, as one text; none after the number that is given where a reader wants none. */
export function changesAfter({ places, dialect }: Database, after: number): RawBuilder<string | null> {
  return sql`(select ${dialect.gathered} from (select seq, tag, digests from ${identifier(places.express_api_key_changes)}
    where seq > ${after} order by seq limit ${sql.lit(MOST_CHANGES)}) as c)`
}

/** Where no change will ever be. */
export const NOWHERE: number = Number.MAX_SAFE_INTEGER

/** The changes in what `changesAfter` found. */
export function changesIn(text: string | null): FeedChange[] {
  return [...(text ?? '').matchAll(/(\d+) ([\w-]+) ([\w,-]*)/g)].map(([, seq, tag = '', digests = '']) => ({
    seq: Number(seq),
    tag,
    digests: digests === '' ? [] : digests.split(','),
  }))
}
