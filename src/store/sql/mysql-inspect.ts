import { type Kysely, type RawBuilder, sql } from 'kysely'
import { wallMs } from '../../real-time.js'
import type { DatabaseFacts } from '../tools.js'
import type { SchemaDialect } from './dialect.js'
import type { Tables } from './rows.js'
import type { Places } from './table-names.js'

/** Of MariaDB and of MySQL; what is older is refused by `migrate`, which knows the lesser numbers too. */
const OLDEST = { mariadb: 10, mysql: 8 }

interface Server {
  readonly version: string
  readonly standby: number
  readonly role: string
  readonly autocommit: number
  readonly durable: number
  readonly at: number
  readonly most: number
}

/** What the dialect knows anyway. */
interface Known {
  readonly clock: RawBuilder<number>
  readonly standby: RawBuilder<number>
  readonly find: SchemaDialect['find']
}

/** Looks at a server and its settings, in statements that change nothing. Whether a role has a right shows when it is used. */
export async function inspectMysql(
  on: Kysely<Tables>,
  places: Places,
  { clock, standby, find }: Known,
): Promise<Omit<DatabaseFacts, 'poolSize'>> {
  const before = wallMs()
  const { rows } = await sql<Server>`select version() as version, ${standby} as standby, current_user() as role, @@autocommit as autocommit,
    @@global.innodb_flush_log_at_trx_commit as durable, ${clock} as at, @@global.max_connections as most`.execute(on)
  const after = wallMs()
  const [server] = rows as [Server]
  const tables = await Promise.all(
    Object.values(places).map(async (place) => ({ name: place.name, exists: (await find(on, place)) !== undefined, missingRights: [] })),
  )
  return {
    version: server.version,
    major: Number(server.version.split('.', 1)[0]),
    oldestMajor: /mariadb/i.test(server.version) ? OLDEST.mariadb : OLDEST.mysql,
    standby: Number(server.standby) !== 0,
    // Each table says what its texts are in.
    encoding: undefined,
    role: server.role,
    // Each transaction asks for its own.
    isolation: 'read committed',
    readOnly: false,
    inTransaction: Number(server.autocommit) === 0,
    durable: Number(server.durable) === 1,
    clock: { aheadMs: Math.round(Number(server.at) - (before + after) / 2), uncertainMs: Math.ceil((after - before) / 2) },
    mostConnections: Number(server.most),
    tables,
    closedSchema: undefined,
    hidden: '',
  }
}
