import type { Command } from 'commander'
import type { ApiKeys } from '../../core/api-keys.js'
import { type AddCommand, examples, inRoom } from '../command.js'
import { CliError, EXIT } from '../exit.js'
import { type Output, plain } from '../output.js'
import { formatOfFile, rowsOf } from '../rows.js'
import type { Session } from '../session.js'

interface ImportOptions {
  readonly as?: string
  readonly dryRun?: boolean
  readonly format?: string
}

type Rows = Parameters<ApiKeys['import']>[0]
type Given = NonNullable<Parameters<ApiKeys['import']>[1]>
type Result = Awaited<ReturnType<ApiKeys['import']>>

export const addImport: AddCommand = (program, room) => {
  program
    .command('import')
    .argument('<file>', 'a CSV with a head, or JSON lines; - for stdin')
    .description('Brings in keys that were issued elsewhere. Running it again changes nothing, and goes on where it broke off.')
    .option('--dry-run', 'checks every row, and writes nothing')
    .option('--as <type>', 'csv or jsonl, where the name of the file does not say it')
    .option('--format <name>', 'which export of the module is the format of these secrets, where there are several legacyFormats')
    .addHelpText(
      'after',
      `
Needs --config: what the secrets look like is said in legacyFormats of createApiKeys. The columns are hash or secret,
ownerId, name, and if need be environment, scopes and allowedIps (with spaces between), metadata (JSON), expiresAt,
createdAt, lastUsedAt, disabledAt, revokedAt, revokedReason, last4. A row that cannot be read changes nothing; it is
named by its number, and the command then exits with 1.
${examples(
  'npx express-api-keys import keys.csv --config ./src/keys.js --dry-run',
  'npx express-api-keys import keys.jsonl --config ./src/keys.js --json',
)}`,
    )
    .action(inRoom<ImportOptions>(room, () => needsConfig(program), importRows))
}

function needsConfig(program: Command): 'change' {
  const file = program.opts<{ config?: string }>().config ?? process.env.API_KEYS_CONFIG ?? ''
  if (file === '') throw new CliError('import needs --config: what the secrets look like is said in legacyFormats of createApiKeys.')
  return 'change'
}

async function importRows(session: Session, options: ImportOptions, file: string): Promise<void> {
  const { keys, out } = session
  const rows = rowsOf(file, formatOfFile(file, options.as))
  const dryRun = options.dryRun === true
  const given: Given = {
    dryRun,
    onProgress: progress(out),
    ...(options.format === undefined ? {} : { format: formatNamed(session, options.format) }),
  }
  const result = await keys.import(rows as Rows, given).catch((error: Error) => {
    // What the file itself is refused for comes through the import as something unforeseen.
    throw error.cause instanceof CliError ? error.cause : error
  })
  await out.result({ dryRun, ...result }, () => lines(dryRun, result))
  if (result.failed > 0) process.exitCode = EXIT.failed
}

/** The import itself refuses what is not one of `legacyFormats`. */
function formatNamed({ exported }: Session, name: string): NonNullable<Given['format']> {
  const format = exported(name)
  if (format !== undefined) return format as NonNullable<Given['format']>
  throw new CliError(`The module of --config has no export ${name}.`)
}

const TOLD_EVERY = 10_000

function progress(out: Output): NonNullable<Given['onProgress']> {
  let told = 0
  return ({ rows }) => {
    if (rows - told < TOLD_EVERY) return
    told = rows
    out.say(`${rows} rows`)
  }
}

function lines(dryRun: boolean, { rows, imported, existing, failed, failures }: Result): readonly string[] {
  const did = dryRun ? 'Would import' : 'Imported'
  return [
    `${did} ${imported} of ${rows} rows; ${existing} were there already; ${failed} could not be read.`,
    ...failures.map(({ row, message }) => `row ${row}: ${plain(message)}`),
    ...(failed > failures.length ? [`… and ${failed - failures.length} more`] : []),
  ]
}
