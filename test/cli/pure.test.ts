import { databaseUrl } from '../../src/cli/connection/url.js'
import { databaseFindings } from '../../src/cli/doctor/database.js'
import type { Examined } from '../../src/cli/doctor/examined.js'
import { instanceFindings } from '../../src/cli/doctor/instances.js'
import { exitOf } from '../../src/cli/exit.js'
import { table } from '../../src/cli/output.js'
import { expiry, metadata, past, retirement, whole } from '../../src/cli/values.js'
import { ApiKeyError } from '../../src/errors.js'

const NOW = Date.parse('2026-11-27T00:00:00Z')

test('times are instants, or count from now', () => {
  expect(['90d', '12h', '10m', '30s'].map((text) => expiry(text, NOW))).toEqual([
    '2027-02-25T00:00:00.000Z',
    '2026-11-27T12:00:00.000Z',
    '2026-11-27T00:10:00.000Z',
    '2026-11-27T00:00:30.000Z',
  ])
  expect([expiry('never', NOW), expiry('2027-01-01T00:00:00Z', NOW)]).toEqual([null, '2027-01-01T00:00:00Z'])
  // Refused by the command itself, with what it takes.
  expect(['soon', '-1d', '1.5h', '1y', ''].map((text) => expiry(text, NOW))).toEqual(['soon', '-1d', '1.5h', '1y', ''])
  expect(past('1d', NOW)).toBe('2026-11-26T00:00:00.000Z')
})

test('--retire, --metadata and --limit take what they say', () => {
  expect([retirement('now'), retirement('on-first-use'), retirement('10m')]).toEqual(['now', 'on-first-use', { afterMs: 600_000 }])
  expect(metadata('{"plan":"gold"}')).toEqual({ plan: 'gold' })
  for (const text of ['{', '[]', '1', 'null', '"x"']) expect(() => metadata(text)).toThrow('--metadata takes a JSON object')
  const limit = whole('--limit', 1, 100)
  expect([limit('1'), limit('100')]).toEqual([1, 100])
  for (const text of ['0', '101', '1e1', ' 5', '', 'x']) expect(() => limit(text)).toThrow('--limit takes a whole number from 1 to 100.')
})

test('DATABASE_URL names a server or a file, and is not repeated where it does not', () => {
  expect(databaseUrl('postgresql://u:p@h/d')).toEqual({ kind: 'postgres', url: 'postgresql://u:p@h/d' })
  const files = [
    'sqlite:keys.db',
    'sqlite://keys.db',
    'file:keys.db',
    'file:./a/keys.db?mode=rw',
    'sqlite:/var/keys.db',
    'file:///var/a%20b.db',
  ]
  expect(files.map((url) => (databaseUrl(url) as { file: string }).file)).toEqual([
    'keys.db',
    'keys.db',
    'keys.db',
    './a/keys.db',
    '/var/keys.db',
    '/var/a b.db',
  ])
  for (const url of ['mongodb://u:hidden@h', 'hidden', 'sqlite::memory:', 'sqlite:']) {
    expect(() => databaseUrl(url)).toThrow(/^(?!.*hidden)DATABASE_URL /)
  }
})

test('every failure has an exit code', () => {
  const codes = [
    'key_not_found',
    'invalid_request',
    'store_unavailable',
    'store_misconfigured',
    'outcome_unknown',
    'internal_error',
  ] as const
  expect(codes.map((code) => exitOf(new ApiKeyError(code, '')))).toEqual([1, 2, 3, 3, 4, 1])
  expect(exitOf(new TypeError())).toBe(1)
})

test('columns are as wide as what is in them', () => {
  expect(
    table(
      ['A', 'LONG'],
      [
        ['wider', 'x'],
        ['1', '\t\u001b'],
      ],
    ),
  ).toEqual(['A      LONG', 'wider  x', '1      ??'])
})

test('servers that are too old are found, which no test has at hand', () => {
  const facts = {
    ...{ version: '12.20', major: 12, oldestMajor: 13, standby: false, encoding: 'UTF8', role: 'app', isolation: 'read committed' },
    ...{ readOnly: false, inTransaction: false, durable: true, clock: { aheadMs: 0, uncertainMs: 1 }, poolSize: 11, mostConnections: 97 },
    ...{ tables: [{ name: 'express_api_keys', exists: true, missingRights: [] }], closedSchema: undefined, hidden: '' },
  }
  const examined: Examined = {
    ...{ serverSecret: undefined, prefixes: ['sk'], starts: [], database: 'PostgreSQL', facts, versions: { found: 7, known: 7 } },
    ...{ membership: undefined, feed: 'whole', leaseMs: undefined, channels: [] },
    cache: [{ version: '5.0.14', eviction: 'volatile-lru', maxMemory: 0 }],
  }
  const found = [...databaseFindings(examined), ...instanceFindings(examined)].filter(({ level }) => level !== 'ok')
  expect(found.map(({ id, level }) => `${level} ${id}`)).toEqual(['problem server_version', 'problem redis_version'])
})
