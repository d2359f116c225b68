import { ApiKeyError, type ApiKeyErrorCode } from '../../errors.js'

type Verdict = readonly [code: ApiKeyErrorCode, message: string]

/**
 * Tells which `ApiKeyError` a failure of the database is; the `cause` is what the driver threw. `store_unavailable` passes by itself,
 * `store_misconfigured` only a person can end, `invalid_request` is the request's own fault, and `internal_error` is for all else:
 * a constraint or a trigger of the application's, or a mistake in a program.
 *
 * It goes by the code (SQLSTATE, the names of SQLite's result codes, or Node's own), since messages come in the language of the server;
 * by the message only where there is no code, or one that says nothing.
 *
 * @see https://www.postgresql.org/docs/current/errcodes-appendix.html
 * @see https://www.sqlite.org/rescode.html
 */
export function storeError(error: unknown): ApiKeyError {
  if (error instanceof ApiKeyError) return error
  const [code, message] = verdict(error)
  return new ApiKeyError(code, message, { cause: error })
}

/** Whether the database itself refused, which it says with a code of five characters (PostgreSQL) or a name (SQLite). */
export function answered(error: unknown): boolean {
  const code = driverCode(error)
  if (code === undefined) return false
  if (code.startsWith('SQLITE_')) return !code.startsWith('SQLITE_IOERR')
  // Class 08 is a lost connection; 57P0x is a server that is going down and may have committed before.
  return isSqlState(code) && !code.startsWith('08') && !code.startsWith('57P')
}

/** Whether somebody else holds a lock of SQLite's. */
export function isBusy(error: unknown): boolean {
  const code = driverCode(error)
  return code !== undefined && (code.startsWith('SQLITE_BUSY') || code.startsWith('SQLITE_LOCKED'))
}

/** The code of a driver's error, in one notation for all drivers. */
export function driverCode(error: unknown): string | undefined {
  const { code, errcode } = fieldsOf(error)
  // node:sqlite gives every failure of the database one code, and SQLite's own as a number; its low byte is the primary one.
  if (code === 'ERR_SQLITE_ERROR' && typeof errcode === 'number') return `SQLITE_${PRIMARY_CODES[errcode & 0xff] ?? 'ERROR'}`
  return typeof code === 'string' ? code : undefined
}

const UNAVAILABLE: Verdict = ['store_unavailable', 'The store could not be asked.']
const CLOSED: Verdict = ['store_unavailable', 'The connection to the database has been closed.']
const REFUSED: Verdict = ['internal_error', 'The database refused what it was given; the cause says why.']
const MISTAKE: Verdict = ['internal_error', 'Something unforeseen went wrong.']
const CHARACTER: Verdict = ['invalid_request', 'The request holds a character that the database cannot store.']
const TABLES = misconfigured('The tables of the keys are missing, or hidden from this role; call keys.migrate() first.')
const COLUMNS = misconfigured('A table of the keys lacks a column; call keys.migrate() first.')
const FUNCTIONS = misconfigured(
  'The database lacks a function that the store calls; use a supported version and call keys.migrate() first.',
)
const RIGHTS = misconfigured(
  "The store's role lacks a right; grant it USAGE on the schema, and SELECT, INSERT and UPDATE on the express_api_key… tables.",
)
const LOGIN = misconfigured('The database does not let the role in; check the user, the password and pg_hba.conf.')
const DATABASE = misconfigured('The database does not exist; check the name in the connection string.')
const SCHEMA = misconfigured('The schema does not exist, or the role may not use any in its search_path; check both.')
const STATEMENT = misconfigured('The database cannot run a statement of the store; its version or its tables do not fit.')
const POOLER = misconfigured(
  'A prepared statement was lost or doubled, as happens behind a pooler in transaction mode; turn named prepared statements off.',
)
const TRIGGER = misconfigured('A trigger or function in the database failed; the cause says which.')
const TLS = misconfigured('No TLS connection to the database that can be trusted; check its certificate and the ssl options.')
const SETTINGS = misconfigured('The configuration of the database server is broken; the cause says where.')
const FILE_ACCESS = misconfigured('The process may not open or write the database; let it write the file and the folder around it.')
const FILE_PATH = misconfigured('The SQLite file cannot be opened; check its path, and let the process write in its folder.')
const FILE_CONTENT = misconfigured('The file is damaged or no SQLite database; restore it from a backup.')
const SHARED_HANDLE = misconfigured('A transaction of somebody else is open on the SQLite handle; give the store a handle of its own.')

/** By SQLSTATE, or by its class: the first two characters. What is in neither is `REFUSED`. */
const SQLSTATES: { readonly [state: string]: Verdict } = {
  // Connection, rollback to break a deadlock, resources, locks, the operator, the system, the server itself, a snapshot too old.
  ...each(['08', '40', '53', '55', '57', '58', '72', 'XX'], UNAVAILABLE),
  // A standby, or a primary that has become one; a session that waited, and a transaction that took, too long.
  ...each(['25006', '25P03', '25P04'], UNAVAILABLE),
  ...each(['22021', '22P05'], CHARACTER),
  '42P01': TABLES,
  '42703': COLUMNS,
  '42883': FUNCTIONS,
  ...each(['42501', '0L', '0P'], RIGHTS),
  '28': LOGIN,
  '3D': DATABASE,
  '3F': SCHEMA,
  ...each(['26', '42P05'], POOLER),
  ...each(['0A', '42'], STATEMENT),
  F0: SETTINGS,
}

/** By the name without `SQLITE_`, or by its first word: extended codes are longer. */
const SQLITE: { readonly [name: string]: Verdict } = {
  ...each(['BUSY', 'LOCKED', 'IOERR', 'FULL', 'INTERRUPT', 'PROTOCOL', 'NOMEM', 'SCHEMA', 'ABORT'], UNAVAILABLE),
  ...each(['READONLY', 'PERM', 'AUTH'], FILE_ACCESS),
  CANTOPEN: FILE_PATH,
  ...each(['NOTADB', 'CORRUPT', 'FORMAT'], FILE_CONTENT),
  NOLFS: STATEMENT,
}

const PRIMARY_CODES =
  'OK ERROR INTERNAL PERM ABORT BUSY LOCKED NOMEM READONLY INTERRUPT IOERR CORRUPT NOTFOUND FULL CANTOPEN PROTOCOL EMPTY SCHEMA TOOBIG CONSTRAINT MISMATCH MISUSE NOLFS AUTH FORMAT RANGE NOTADB'.split(
    ' ',
  )

/** Errors of a program. By name, since they may come from another realm. */
const PROGRAM_ERRORS = ['TypeError', 'RangeError', 'ReferenceError', 'SyntaxError']

function verdict(error: unknown): Verdict {
  const { name, message } = fieldsOf(error)
  const code = driverCode(error)
  const text = typeof message === 'string' ? message : ''
  // better-sqlite3 and libsql throw a TypeError without a code for it.
  if (code === 'ERR_INVALID_STATE' || /database (connection )?is not open/.test(text)) return CLOSED
  // better-sqlite3, while the application reads row by row on the same handle.
  if (/database connection is busy/.test(text)) return UNAVAILABLE
  if (PROGRAM_ERRORS.includes(String(name))) return MISTAKE
  if (code === undefined) return byMessage(text)
  if (code.startsWith('SQLITE_')) return bySqliteCode(code.slice('SQLITE_'.length), text)
  if (isSqlState(code)) return bySqlState(code, fieldsOf(error))
  if (code === 'EACCES' || code === 'EPERM') return FILE_ACCESS
  if (/CERT|SELF_SIGNED|LEAF_SIGNATURE/.test(code)) return TLS
  return UNAVAILABLE
}

function bySqlState(state: string, { routine, where }: Fields): Verdict {
  // PostgreSQL itself, of a statement that it knows by another number of parameters. A pooler says 08P01 of all its own troubles.
  if (state === '08P01' && typeof routine === 'string' && routine.startsWith('exec_')) return POOLER
  const said = SQLSTATES[state] ?? SQLSTATES[state.slice(0, 2)] ?? REFUSED
  // What is said inside of a function is of the function's tables and rights, not of ours.
  return said[0] === 'store_misconfigured' && typeof where === 'string' && where !== '' ? TRIGGER : said
}

function bySqliteCode(name: string, message: string): Verdict {
  if (name !== 'ERROR') return SQLITE[name.split('_', 1)[0] as string] ?? REFUSED
  // One code for every fault of a statement; SQLite speaks English only.
  if (/no such table: .*express_api_key/i.test(message)) return TABLES
  if (/no such column|has no column/.test(message)) return COLUMNS
  if (/no such function/.test(message)) return FUNCTIONS
  if (/within a transaction/.test(message)) return SHARED_HANDLE
  return STATEMENT
}

/** Where there is no code, `pg` speaks for itself: time-outs, lost connections, a pool that has ended, and these. */
function byMessage(message: string): Verdict {
  if (message.startsWith('SASL')) return LOGIN
  if (/support SSL connections|establishing an SSL connection/.test(message)) return TLS
  if (/calling end on the pool|already been destroyed/.test(message)) return CLOSED
  // Kysely, of the one row of settings.
  if (message === 'no result') return TABLES
  return UNAVAILABLE
}

/** No class of SQLSTATE begins with E, but EPIPE does. */
function isSqlState(code: string): boolean {
  return /^[0-9A-DF-Z][0-9A-Z]{4}$/.test(code)
}

interface Fields {
  readonly name?: unknown
  readonly message?: unknown
  readonly code?: unknown
  readonly errcode?: unknown
  readonly routine?: unknown
  readonly where?: unknown
}

function fieldsOf(error: unknown): Fields {
  return (error ?? {}) as Fields
}

function misconfigured(message: string): Verdict {
  return ['store_misconfigured', message]
}

function each(names: readonly string[], said: Verdict): { readonly [name: string]: Verdict } {
  return Object.fromEntries(names.map((name) => [name, said]))
}
