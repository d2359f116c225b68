import { type Kysely, type RawBuilder, sql } from 'kysely'
import { wallMs } from '../../../real-time.js'
import type { DatabaseFacts } from '../../tools.js'
import type { Dialect, MakeDialect, SchemaDialect } from '../dialect.js'
import {
  CLOSED,
  COLUMNS,
  type DriverErrors,
  each,
  FILE_ACCESS,
  FUNCTIONS,
  fieldsOf,
  messageOf,
  misconfigured,
  REFUSED,
  STATEMENT,
  TABLES,
  UNAVAILABLE,
  type Verdict,
} from '../driver-errors.js'
import { recordUse } from '../last-use.js'
import { noRowSecurity } from '../row-security.js'
import type { Tables } from '../rows.js'
import { identifier, type Places } from '../table-names.js'

/**
 * By SQLite's result codes, or the numbers that node:sqlite gives for them.
 *
 * @see https://www.sqlite.org/rescode.html
 */
export const sqliteErrors: DriverErrors = {
  verdict(error) {
    const code = resultCode(error)
    const message = messageOf(error)
    // better-sqlite3 and libsql throw a TypeError without a code for it.
    if (code === 'ERR_INVALID_STATE' || /database (connection )?is not open/.test(message)) return CLOSED
    // better-sqlite3, while the application reads row by row on the same handle.
    if (/database connection is busy/.test(message)) return UNAVAILABLE
    return code?.startsWith('SQLITE_') ? verdict(code.slice('SQLITE_'.length), message) : undefined
  },

  answered(error) {
    const code = resultCode(error)
    return code?.startsWith('SQLITE_') === true && !code.startsWith('SQLITE_IOERR')
  },

  isBusy(error) {
    const code = resultCode(error)
    return code !== undefined && (code.startsWith('SQLITE_BUSY') || code.startsWith('SQLITE_LOCKED'))
  },
}

/** SQLite has one write lock, which `begin` takes: rows and names need no locks of their own. */
export const sqliteDialect: MakeDialect = (places): Dialect => ({
  database: 'SQLite',
  now: async () => wallMs(),
  // All processes that share a file share a clock.
  readClock: sql`null`,
  clock: () => sql.lit(wallMs()),
  loweredName: sql`lower(name)`,
  standby: sql`0`,
  outdated: sql`0`,
  // A file has one server: the file.
  server: sql`'sqlite'`,
  gathered: sql`group_concat(c.seq || ' ' || c.tag || ' ' || c.digests, ';')`,

  forUpdate: (query) => query,
  forShare: (query) => query,
  async lockName() {},

  // A transaction that takes the lock only later fails where another one holds it.
  begin: (on) => sql`begin immediate`.execute(on).then(() => {}),
  together: false,
  commit: (on) => sql`commit`.execute(on).then(() => {}),
  rollback: (on) =>
    sql`rollback`.execute(on).then(
      () => {},
      () => {},
    ),

  insertOnce: (query) => query.onConflict((conflict) => conflict.doNothing()),

  async recordUses(on, uses) {
    for (const use of uses) await recordUse(on, use)
    return []
  },

  inspect: (on) => inspect(on, places),
  // Writes the file anew, since unused places keep what was there. The log beside it has the old pages until it is cut.
  async scrub(on) {
    await sql`vacuum`.execute(on)
    await sql`pragma wal_checkpoint(truncate)`.execute(on)
  },

  rowSecurity: noRowSecurity,
  errors: sqliteErrors,
  schema,
})

const schema: SchemaDialect = {
  types: { id: 'text', name: 'text', text: 'text', integer: 'integer', ms: 'bigint' },
  drawn: {
    storeId: sql`lower(hex(randomblob(16)))`,
    // As many characters as base64url makes of 16 bytes.
    tag: sql`hex(randomblob(11))`,
    clock: sql`cast((julianday('now') - 2440587.5) * 86400000 as integer)`,
  },

  async refuseUnfit() {},

  async find(on, place) {
    const catalog = identifier({ schema: place.schema ?? 'main', name: 'sqlite_master' })
    const { rows } = await sql`select 1 as found from ${catalog} where type = 'table' and lower(name) = lower(${place.name})`.execute(on)
    return rows.length > 0 ? { name: place.schema } : undefined
  },

  home: async (_on, place) => ({ name: place.schema }),

  async lock() {},

  // The index takes the schema, and its table must be in the same.
  createIndex({ table, name, columns, where }) {
    const index = identifier({ schema: table.schema, name })
    const rest = `(${columns})${where === undefined ? '' : ` where ${where}`}`
    return sql`create index ${index} on ${sql.id(table.name)} ${sql.raw(rest)}`
  },

  isForbidden: () => false,
  isDone: () => false,
}

/** The first version that has what migrations use: columns that are dropped. */
const OLDEST = 3.35

async function inspect(on: Kysely<Tables>, places: Places): Promise<Omit<DatabaseFacts, 'poolSize'>> {
  const one = async <Row>(query: RawBuilder<Row>): Promise<Row | undefined> => (await query.execute(on)).rows[0]
  const version = (await one(sql<{ version: string }>`select sqlite_version() as version`))?.version ?? ''
  const synchronous = await one(sql<{ synchronous: number }>`select synchronous from pragma_synchronous`)
  const [major = 0, minor = 0] = version.split('.').map(Number)
  const tables = await Promise.all(
    Object.values(places).map(async (place) => ({
      name: place.name,
      exists: (await schema.find(on, place)) !== undefined,
      missingRights: [],
    })),
  )
  return {
    version,
    // 3.9 is older than 3.35.
    major: major + minor / 100,
    oldestMajor: OLDEST,
    standby: false,
    encoding: undefined,
    role: undefined,
    isolation: undefined,
    readOnly: false,
    inTransaction: false,
    durable: Number(synchronous?.synchronous) >= 2,
    clock: undefined,
    mostConnections: undefined,
    tables,
    closedSchema: undefined,
    hidden: '',
  }
}

const FILE_PATH = misconfigured('The SQLite file cannot be opened; check its path, and let the process write in its folder.')
const FILE_CONTENT = misconfigured('The file is damaged or no SQLite database; restore it from a backup.')
const SHARED_HANDLE = misconfigured('Another transaction is open on the SQLite handle; give the store a handle of its own.')

/** By the name without `SQLITE_`, or by its first word: extended codes are longer. */
const VERDICTS: { readonly [name: string]: Verdict } = {
  ...each(['BUSY', 'LOCKED', 'IOERR', 'FULL', 'INTERRUPT', 'PROTOCOL', 'NOMEM', 'SCHEMA', 'ABORT'], UNAVAILABLE),
  ...each(['READONLY', 'PERM', 'AUTH'], FILE_ACCESS),
  CANTOPEN: FILE_PATH,
  ...each(['NOTADB', 'CORRUPT', 'FORMAT'], FILE_CONTENT),
  NOLFS: STATEMENT,
}

function verdict(name: string, message: string): Verdict {
  if (name !== 'ERROR') return VERDICTS[name.split('_', 1)[0] as string] ?? REFUSED
  // One code for every fault of a statement; SQLite speaks English only.
  if (/no such table: .*express_api_key/i.test(message)) return TABLES
  if (/no such column|has no column/.test(message)) return COLUMNS
  if (/no such function/.test(message)) return FUNCTIONS
  if (/within a transaction/.test(message)) return SHARED_HANDLE
  return STATEMENT
}

const PRIMARY_CODES =
  'OK ERROR INTERNAL PERM ABORT BUSY LOCKED NOMEM READONLY INTERRUPT IOERR CORRUPT NOTFOUND FULL CANTOPEN PROTOCOL EMPTY SCHEMA TOOBIG CONSTRAINT MISMATCH MISUSE NOLFS AUTH FORMAT RANGE NOTADB'.split(
    ' ',
  )

/** The code of an error, in one notation for all drivers. */
function resultCode(error: unknown): string | undefined {
  const { code, errcode } = fieldsOf(error)
  // node:sqlite gives every failure of the database one code, and SQLite's own as a number; its low byte is the primary one.
  if (code === 'ERR_SQLITE_ERROR' && typeof errcode === 'number') return `SQLITE_${PRIMARY_CODES[errcode & 0xff] ?? 'ERROR'}`
  return typeof code === 'string' ? code : undefined
}
