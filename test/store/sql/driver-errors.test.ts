import { ApiKeyError } from 'express-api-keys'
import { postgresErrors } from '../../../src/store/sql/dialects/postgres.js'
import { sqliteErrors } from '../../../src/store/sql/dialects/sqlite.js'
import { type DriverErrors, storeError } from '../../../src/store/sql/driver-errors.js'

/** Each with the codes and words that may be its own. What may come from either must be the same to both. */
const DATABASES: readonly (readonly [own: RegExp, errors: DriverErrors])[] = [
  [/^(?!.*sqlite|ERR_INVALID_STATE|.*database (connection )?is)/i, postgresErrors],
  [/^(?![0-9A-DF-Z][0-9A-Z]{4} |.*(SASL|support SSL))/, sqliteErrors],
]

function known(error: unknown): ApiKeyError {
  const { code = '', message = '' } = (error ?? {}) as { code?: string; message?: string }
  const [first, ...others] = DATABASES.filter(([own]) => own.test(`${code} ${message}`)).map(([, errors]) => storeError(error, errors))
  if (first === undefined) throw new Error('No database knows this error.')
  for (const other of others) expect(other.code).toBe(first.code)
  return first
}

/** As a driver throws it. */
function thrown(code: string | undefined, fields: object = {}): Error {
  return Object.assign(new Error('irgendetwas ging schief'), { ...(code === undefined ? {} : { code }), ...fields })
}

function codeOf(error: unknown): string {
  const own = known(error)
  expect(own).toBeInstanceOf(ApiKeyError)
  expect(own.cause).toBe(error)
  return own.code
}

test('what passes by itself is store_unavailable', () => {
  const codes = [
    ...['08000', '08006', '08P01', '40001', '40P01', '53100', '53300', '55P03', '55006', '57014', '57P01', '57P03', '58030', 'XX000'],
    ...['25006', '25P03', '25P04', '72000'],
    ...['ECONNREFUSED', 'ECONNRESET', 'ECONNABORTED', 'ETIMEDOUT', 'EPIPE', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENOENT'],
    ...['CONNECT_TIMEOUT', 'CONNECTION_CLOSED', 'ERR_SOCKET_CLOSED', 'ERR_STREAM_DESTROYED'],
    ...['SQLITE_BUSY', 'SQLITE_BUSY_SNAPSHOT', 'SQLITE_BUSY_RECOVERY', 'SQLITE_LOCKED', 'SQLITE_LOCKED_SHAREDCACHE', 'SQLITE_IOERR'],
    ...['SQLITE_IOERR_FSYNC', 'SQLITE_FULL', 'SQLITE_INTERRUPT', 'SQLITE_PROTOCOL', 'SQLITE_NOMEM', 'SQLITE_ABORT_ROLLBACK'],
  ]
  for (const code of codes) expect([code, codeOf(thrown(code))]).toEqual([code, 'store_unavailable'])
  const messages = [
    'timeout exceeded when trying to connect',
    'Connection terminated',
    'Connection terminated unexpectedly',
    'Connection terminated due to connection timeout',
    'Query read timeout',
    'Cannot use a pool after calling end on the pool',
    'Client has encountered a connection error and is not queryable',
    'driver has already been destroyed',
  ]
  for (const message of messages) expect([message, codeOf(new Error(message))]).toEqual([message, 'store_unavailable'])
  for (const odd of [undefined, null, 'lost', 7, {}]) expect(known(odd)).toMatchObject({ code: 'store_unavailable', cause: odd })
})

test('a closed handle is a store that cannot be asked, whatever the driver makes of it', () => {
  expect(codeOf(new TypeError('The database connection is not open'))).toBe('store_unavailable')
  expect(codeOf(Object.assign(new Error('database is not open'), { code: 'ERR_INVALID_STATE' }))).toBe('store_unavailable')
  expect(codeOf(new TypeError('This database connection is busy executing a query'))).toBe('store_unavailable')
})

test.each([
  [['42P01'], 'keys.migrate()'],
  [['42703'], 'keys.migrate()'],
  [['42883'], 'function'],
  [['42501', '0L000', '0P000'], 'grant it USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on the express_api_key… tables'],
  [['28000', '28P01'], 'pg_hba.conf'],
  [['3D000'], 'database does not exist'],
  [['3F000'], 'schema does not exist'],
  [['26000', '42P05'], 'pooler'],
  [['42601', '42804', '42P07', '0A000'], 'cannot run a statement'],
  [['F0000'], 'configuration'],
  [['SQLITE_READONLY', 'SQLITE_READONLY_DBMOVED', 'SQLITE_PERM', 'SQLITE_AUTH', 'EACCES', 'EPERM'], 'may not open or write'],
  [['SQLITE_CANTOPEN', 'SQLITE_CANTOPEN_ISDIR'], 'path'],
  [['SQLITE_NOTADB', 'SQLITE_CORRUPT', 'SQLITE_CORRUPT_INDEX'], 'damaged'],
  [['SELF_SIGNED_CERT_IN_CHAIN', 'CERT_HAS_EXPIRED', 'UNABLE_TO_VERIFY_LEAF_SIGNATURE', 'ERR_TLS_CERT_ALTNAME_INVALID'], 'certificate'],
])('%j is store_misconfigured, and says what to do: %s', (codes, sentence) => {
  for (const code of codes) {
    expect([code, codeOf(thrown(code))]).toEqual([code, 'store_misconfigured'])
    expect(known(thrown(code)).message).toContain(sentence)
  }
})

test.each([
  ['no such table: express_api_keys', 'keys.migrate()'],
  ['no such table: auth.express_api_keys', 'keys.migrate()'],
  ['no such table: audit', 'cannot run a statement'],
  ['no such column: rotated_to', 'lacks a column'],
  ['table express_api_keys has no column named rotated_to', 'lacks a column'],
  ['no such function: lower', 'lacks a function'],
  ['cannot start a transaction within a transaction', 'a handle of its own'],
  ['near "returning": syntax error', 'cannot run a statement'],
])('SQLite has one code for every fault of a statement, so its words tell: %s', (message, sentence) => {
  expect(known(thrown('SQLITE_ERROR', { message }))).toMatchObject({
    code: 'store_misconfigured',
    message: expect.stringContaining(sentence),
  })
  expect(codeOf(thrown('ERR_SQLITE_ERROR', { errcode: 1, message }))).toBe('store_misconfigured')
})

test('what pg itself refuses before it has asked is told by its words', () => {
  expect(codeOf(new Error('SASL: SCRAM-SERVER-FIRST-MESSAGE: client password must be a string'))).toBe('store_misconfigured')
  expect(codeOf(new Error('The server does not support SSL connections'))).toBe('store_misconfigured')
})

test('a statement that PostgreSQL knows otherwise is the fault of a pooler; what a pooler says with the same code passes', () => {
  expect(known(thrown('08P01', { routine: 'exec_bind_message' })).code).toBe('store_misconfigured')
  expect(known(thrown('08P01', { severity: 'FATAL' })).code).toBe('store_unavailable')
})

test('a character that the database cannot hold is the fault of the request', () => {
  for (const code of ['22021', '22P05']) expect(codeOf(thrown(code))).toBe('invalid_request')
  expect(known(thrown('22021')).message).toContain('a character that the database cannot store')
})

test('constraints, triggers and mistakes in programs are internal_error', () => {
  const codes = ['22001', '22P02', '23503', '23505', '23514', '23502', 'P0001', '44000', '25P02', '54000', '2F005', '38000']
  const sqlite = ['SQLITE_CONSTRAINT', 'SQLITE_CONSTRAINT_TRIGGER', 'SQLITE_CONSTRAINT_UNIQUE', 'SQLITE_MISMATCH', 'SQLITE_TOOBIG']
  for (const code of [...codes, ...sqlite]) expect([code, codeOf(thrown(code))]).toEqual([code, 'internal_error'])
  for (const error of [new TypeError('x'), new RangeError('x'), new ReferenceError('x'), new SyntaxError('x')]) {
    expect(codeOf(error)).toBe('internal_error')
  }
  expect(codeOf(Object.assign(new TypeError('x'), { code: 'ERR_INVALID_ARG_TYPE' }))).toBe('internal_error')
})

test('a right that a function of the application lacks is not taken for one of the store', () => {
  const { code, message } = known(thrown('42501', { where: 'PL/pgSQL-Funktion audit() Zeile 3' }))
  expect([code, message]).toEqual(['store_misconfigured', expect.stringContaining('trigger or function')])
})

test('numbers of node:sqlite are the names of the others', () => {
  for (const [errcode, code] of [
    [5, 'store_unavailable'],
    [261, 'store_unavailable'],
    [517, 'store_unavailable'],
    [778, 'store_unavailable'],
    [8, 'store_misconfigured'],
    [26, 'store_misconfigured'],
    [2067, 'internal_error'],
  ] as const) {
    expect([errcode, codeOf(thrown('ERR_SQLITE_ERROR', { errcode }))]).toEqual([errcode, code])
  }
  for (const errcode of [5, 261, 517, 6]) expect(sqliteErrors.isBusy(thrown('ERR_SQLITE_ERROR', { errcode }))).toBe(true)
  expect([
    sqliteErrors.isBusy(thrown('SQLITE_BUSY_SNAPSHOT')),
    sqliteErrors.isBusy(thrown('SQLITE_FULL')),
    sqliteErrors.isBusy(new Error('busy')),
  ]).toEqual([true, false, false])
})

test('an error of ours passes as it is', () => {
  const own = new ApiKeyError('key_not_found', 'There is no such key.')
  expect(known(own)).toBe(own)
})

test('only what the database itself has said counts as an answer', () => {
  for (const code of ['40001', '23505', '0A000']) expect(postgresErrors.answered(thrown(code))).toBe(true)
  for (const code of ['SQLITE_BUSY', 'SQLITE_FULL']) expect(sqliteErrors.answered(thrown(code))).toBe(true)
  for (const code of ['08006', '57P01']) expect(postgresErrors.answered(thrown(code))).toBe(false)
  expect(sqliteErrors.answered(thrown('SQLITE_IOERR_FSYNC'))).toBe(false)
  for (const { answered } of [postgresErrors, sqliteErrors]) {
    for (const code of ['EPIPE', 'ECONNRESET', undefined]) expect(answered(thrown(code))).toBe(false)
  }
})
