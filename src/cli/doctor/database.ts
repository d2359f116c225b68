import { errorLine } from '../../core/report.js'
import { ApiKeyError } from '../../errors.js'
import type { DatabaseFacts } from '../../store/tools.js'
import { type Examined, hasFailed } from './examined.js'
import { type Finding, ok, problem, warning } from './finding.js'

/** What there is to say of the database itself. */
export function databaseFindings({ database, facts, versions, cache }: Examined): readonly Finding[] {
  if (facts === undefined) return [ok('database', 'The store is one of your own, and is not looked into.')]
  if (hasFailed(facts)) return [unreachable(facts.error)]
  return [
    ok('database', `${database} ${facts.version} answers${facts.role === undefined ? '' : `, as role ${facts.role}`}.`),
    ...serverFindings(facts),
    ...sessionFindings(facts),
    ...tableFindings(facts, versions),
    ...poolFindings(facts, cache !== undefined),
  ]
}

function unreachable(error: Error): Finding {
  const { cause } = error as { cause?: { code?: unknown; message?: unknown } }
  const [code, said] = [String(cause?.code ?? ''), String(cause?.message ?? '')]
  const message = error instanceof ApiKeyError ? errorLine(error) : error.message
  if (code.startsWith('28') || said.startsWith('SASL'))
    return problem('login', message, 'Check the user and the password in DATABASE_URL, and pg_hba.conf on the server.')
  if (code === '3D000')
    return problem('database_name', message, 'Check the name behind the last slash of DATABASE_URL, or create that database.')
  if (/CERT|SELF_SIGNED|LEAF_SIGNATURE/.test(code) || /SSL/.test(said))
    return problem('tls', message, 'Check the certificate of the server, and sslmode in DATABASE_URL.')
  if (code.startsWith('SQLITE_'))
    return problem('file', message, 'Check the path in DATABASE_URL, and let this user read and write the file and its folder.')
  return problem(
    'connection',
    message,
    'Check the host and the port in DATABASE_URL, that the server runs, and that a firewall lets this machine in.',
  )
}

/** A server whose clock is further off than this judges expiries noticeably otherwise; by the second, tokens fail too. */
const CLOCK_WARNING_MS = 2_000
const CLOCK_PROBLEM_MS = 30_000

function serverFindings(facts: DatabaseFacts): readonly Finding[] {
  const found: Finding[] = []
  if (facts.major < facts.oldestMajor)
    found.push(
      problem(
        'server_version',
        `Version ${facts.version} is older than ${facts.oldestMajor}.`,
        `Upgrade the database server to ${facts.oldestMajor} or later.`,
      ),
    )
  if (facts.standby)
    found.push(
      problem(
        'standby',
        'This is a standby, which may show what is no longer so.',
        'Connect to the primary: add target_session_attrs=read-write, or write its host into DATABASE_URL.',
      ),
    )
  if (facts.encoding !== undefined && facts.encoding !== 'UTF8')
    found.push(
      problem(
        'encoding',
        `The database is encoded in ${facts.encoding}, and cannot hold every name.`,
        "Create a database with ENCODING 'UTF8' TEMPLATE template0, and keep the keys there.",
      ),
    )
  if (!facts.durable)
    found.push(
      warning(
        'durability',
        'The server loses what is committed when the power fails: a retired secret would work again.',
        'Set fsync to on (PostgreSQL), innodb_flush_log_at_trx_commit to 1 (MySQL), or synchronous to FULL (SQLite).',
      ),
    )
  const off = facts.clock === undefined ? 0 : Math.max(0, Math.abs(facts.clock.aheadMs) - facts.clock.uncertainMs)
  if (facts.clock !== undefined && off > CLOCK_WARNING_MS) {
    const message = `The clock of the database is ${seconds(off)} ${facts.clock.aheadMs > 0 ? 'ahead of' : 'behind'} that of this machine.`
    found.push(
      (off > CLOCK_PROBLEM_MS ? problem : warning)(
        'clock',
        message,
        'Have both machines set their clocks by NTP: keys expire by that of the database, tokens by that of this machine.',
      ),
    )
  }
  return found
}

function sessionFindings(facts: DatabaseFacts): readonly Finding[] {
  const found: Finding[] = []
  if (facts.inTransaction)
    found.push(
      problem(
        'autocommit',
        'A new session sits in a transaction already: what it reads is old, and nothing is committed.',
        'Have the pool open no transaction, and turn autocommit on.',
      ),
    )
  if (facts.isolation !== undefined && facts.isolation !== 'read committed')
    found.push(
      warning(
        'isolation',
        `Transactions of this role are ${facts.isolation} by default. Those of the keys say READ COMMITTED themselves.`,
        `Make sure that nothing else shares their sessions, or run: ALTER ROLE ${facts.role ?? '…'} RESET default_transaction_isolation`,
      ),
    )
  if (facts.readOnly)
    found.push(
      warning(
        'read_only',
        'Transactions of this role are read-only by default. Those of the keys say READ WRITE themselves.',
        `Make sure that this is the primary, or run: ALTER ROLE ${facts.role ?? '…'} RESET default_transaction_read_only`,
      ),
    )
  if (facts.hidden !== '')
    found.push(
      problem(
        'row_security',
        `Row-level security hides rows of ${facts.hidden} from this role: hidden keys would pass for keys that do not exist.`,
        'Disable it for these tables, give the role BYPASSRLS, or give each table a policy for all commands: using (true) with check (true).',
      ),
    )
  return found
}

const MIGRATE = 'Run: npx express-api-keys migrate'

function tableFindings({ tables, role, closedSchema }: DatabaseFacts, versions: Examined['versions']): readonly Finding[] {
  if (closedSchema !== undefined) {
    const todo = `Run, as the owner of the tables: GRANT USAGE ON SCHEMA ${closedSchema} TO ${role ?? '…'}`
    return [problem('schema_usage', `The tables are in the schema ${closedSchema}, which the role may not use.`, todo)]
  }
  const lacking = tables.filter(({ missingRights }) => missingRights.length > 0)
  const found = lacking.map(({ name, missingRights }) => {
    const rights = missingRights.join(', ')
    const todo = `Run, as the owner of the tables: GRANT ${rights} ON ${name} TO ${role ?? '…'}`
    return problem('rights', `The role lacks ${rights} on ${name}.`, todo)
  })
  const missing = tables.filter(({ exists }) => !exists).map(({ name }) => name)
  if (missing.length === tables.length)
    return [
      ...found,
      problem(
        'tables_missing',
        'There are no tables of the keys, or none that this role can see.',
        `${MIGRATE}. If you have: check the schema, the search_path and the database.`,
      ),
    ]
  if (versions !== undefined && versions.found > versions.known)
    return [
      ...found,
      problem(
        'tables_ahead',
        `The tables are at version ${versions.found}, made by a newer release; this one knows ${versions.known}.`,
        'Install the release that made them, or a later one.',
      ),
    ]
  if (versions !== undefined && versions.found < versions.known)
    return [
      ...found,
      problem('tables_behind', `The tables are at version ${versions.found}; this release needs ${versions.known}.`, MIGRATE),
    ]
  if (missing.length > 0)
    return [
      ...found,
      problem(
        'tables_missing',
        `These tables are missing: ${missing.join(', ')}.`,
        'Restore all tables of the keys together from a backup.',
      ),
    ]
  return found.length > 0 || versions === undefined
    ? found
    : [ok('tables', `The tables are at version ${versions.found}, as this release needs them.`)]
}

/** Commands and reads of one process, and one connection to listen on where there is no cache to do that. */
function poolFindings({ poolSize, mostConnections, role }: DatabaseFacts, hasCache: boolean): readonly Finding[] {
  const needed = hasCache ? 10 : 11
  const found: Finding[] = []
  if (poolSize !== undefined && poolSize < needed)
    found.push(
      warning(
        'pool_size',
        `The pool opens at most ${poolSize} connections, and one process uses up to ${needed}: requests wait for each other.`,
        `Make the pool larger: new Pool({ max: ${needed} }).`,
      ),
    )
  if (mostConnections !== undefined && mostConnections < needed)
    found.push(
      warning(
        'connection_limit',
        `The role may open at most ${mostConnections} connections in all, and each process uses up to ${needed}.`,
        `Raise the limit of the role, the database or the server: ALTER ROLE ${role ?? '…'} CONNECTION LIMIT -1`,
      ),
    )
  return found
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`
}
