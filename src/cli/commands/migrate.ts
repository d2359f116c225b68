import { type StoreTools, storeTools } from '../../store/tools.js'
import { type AddCommand, examples, inRoom } from '../command.js'
import { CliError, EXIT } from '../exit.js'
import type { Session } from '../session.js'
import { whole } from '../values.js'

interface MigrateOptions {
  readonly sql?: boolean
  readonly from?: number
  readonly check?: boolean
}

export const addMigrate: AddCommand = (program, room) => {
  program
    .command('migrate')
    .description('Creates or upgrades the tables. Running it again, or from several places at once, does no harm.')
    .option(
      '--check',
      'changes nothing; exits with 0 if the tables are those of this release, 5 if they are older or missing, 6 if they are newer',
    )
    .option('--sql', 'changes nothing; prints the statements, for a migration tool of your own')
    .option(
      '--from <version>',
      'with --sql: from this version on, 0 for an empty database, without asking the database',
      whole('--from', 0, 9_999),
    )
    .addHelpText(
      'after',
      examples(
        'npx express-api-keys migrate',
        'npx express-api-keys migrate --check',
        'npx express-api-keys migrate --sql --from 0 > migrations/0001_api_keys.sql',
      ),
    )
    .action(inRoom<MigrateOptions>(room, ({ sql, check }) => (sql === true || check === true ? 'look' : 'tables'), migrate))
}

type State = 'current' | 'behind' | 'ahead'

async function migrate(session: Session, options: MigrateOptions): Promise<void> {
  if (options.sql === true && options.check === true) throw new CliError('--sql and --check contradict each other.')
  if (options.from !== undefined && options.sql !== true) throw new CliError('--from goes with --sql.')
  if (options.sql === true) return script(session, options.from)
  if (options.check === true) return check(session)
  const { setup, out } = session
  const before = await storeTools(setup.store)?.versions()
  await session.change(setup.store.migrate())
  const after = await storeTools(setup.store)?.versions()
  const value = { state: 'current' satisfies State, version: after?.found ?? null, before: before?.found ?? null }
  await out.result(value, () => [
    before?.found === after?.found
      ? `The tables are at version ${after?.found} already.`
      : `The tables are at version ${after?.found} now.`,
  ])
}

async function check({ setup, out }: Session): Promise<void> {
  const { found, known } = await toolsOf(setup.store).versions()
  const state: State = found === known ? 'current' : found < known ? 'behind' : 'ahead'
  await out.result({ state, version: found, known }, () => [
    {
      current: `The tables are at version ${found}, as this release needs them.`,
      behind: `The tables are at version ${found}, and this release needs ${known}: run npx express-api-keys migrate before it is started.`,
      ahead: `The tables are at version ${found}, made by a newer release, and this one knows ${known}: install the release that made them.`,
    }[state],
  ])
  process.exitCode = { current: EXIT.done, behind: EXIT.behind, ahead: EXIT.ahead }[state]
}

async function script({ setup, out }: Session, from: number | undefined): Promise<void> {
  const tools = toolsOf(setup.store)
  const start = from ?? (await tools.versions()).found
  const statements = await tools.migrationScript(start)
  await out.result({ database: tools.database, from: start, statements }, () => [
    `-- express-api-keys: tables for ${tools.database}, from version ${start} on. Run all of it in one transaction.`,
    ...statements.map((statement) => `${statement};`),
  ])
}

function toolsOf(store: Session['setup']['store']): StoreTools {
  const tools = storeTools(store)
  if (tools !== undefined) return tools
  throw new CliError('The store of this application is one of its own, and has no versions: only plain migrate works with it.')
}
