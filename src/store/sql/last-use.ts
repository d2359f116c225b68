import type { Kysely } from 'kysely'
import type { KeyUse } from '../store.js'
import type { Tables } from './rows.js'

/** A use with its instant on the database's clock. */
export interface LastUse extends KeyUse {
  readonly at: number
}

export async function recordUse(on: Kysely<Tables>, { keyId, at, ip, userAgent }: LastUse): Promise<void> {
  await on
    .updateTable('express_api_keys')
    .set({ last_used_at: at, last_used_ip: ip, last_used_user_agent: userAgent })
    .where('id', '=', keyId)
    .where((is) => is.or([is('last_used_at', 'is', null), is('last_used_at', '<', at)]))
    .execute()
}
