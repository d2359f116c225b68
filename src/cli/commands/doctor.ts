import type { Command } from 'commander'
import { ApiKeyError } from '../../errors.js'
import { type AddCommand, examples } from '../command.js'
import { connect } from '../connection/open.js'
import { databaseFindings } from '../doctor/database.js'
import { examine } from '../doctor/examine.js'
import { type Finding, problem } from '../doctor/finding.js'
import { instanceFindings } from '../doctor/instances.js'
import { settingsFindings } from '../doctor/settings.js'
import { EXIT } from '../exit.js'
import { plain } from '../output.js'
import type { GlobalOptions } from '../session.js'

interface DoctorOptions {
  readonly strict?: boolean
}

export const addDoctor: AddCommand = (program, room) => {
  program
    .command('doctor')
    .description('Looks at the database, its role and tables, Redis, the instances and the settings, and says what to do. Changes nothing.')
    .option('--strict', 'counts warnings as problems')
    .addHelpText(
      'after',
      `
Exits with 1 if there is a problem. Run it where the application runs, with what the application has: its network, its
role, its environment. With --config it looks at the pool of the application too.
${examples('npx express-api-keys doctor', 'npx express-api-keys doctor --config ./src/keys.js --strict', 'npx express-api-keys doctor --json')}`,
    )
    .action(async ({ strict }: DoctorOptions, command: Command) => {
      const globals = command.optsWithGlobals<GlobalOptions>()
      const out = room.output(globals)
      const findings = await findingsOf(globals)
      const count = (level: Finding['level']): number => findings.filter((one) => one.level === level).length
      const [problems, warnings] = [count('problem'), count('warning')]
      const good = problems === 0 && (strict !== true || warnings === 0)
      await out.result({ ok: good, problems, warnings, findings }, () => [
        ...findings.flatMap(lines),
        '',
        `${counted(problems, 'problem')}, ${counted(warnings, 'warning')}.`,
      ])
      process.exitCode = good ? EXIT.done : EXIT.failed
    })
}

async function findingsOf(globals: GlobalOptions): Promise<readonly Finding[]> {
  let connection: Awaited<ReturnType<typeof connect>>
  try {
    connection = await connect(globals, 'look')
  } catch (error) {
    // What createApiKeys and the stores refuse, in the module of --config or here.
    if (!(error instanceof ApiKeyError)) throw error
    const id = /^serverSecret/.test(error.message) ? 'server_secret' : 'configuration'
    return [problem(id, error.message, 'Write the option as the message says, in the module that makes the keys.')]
  }
  try {
    const examined = await examine(connection)
    return [settingsFindings, databaseFindings, instanceFindings].flatMap((look) => look(examined))
  } finally {
    await connection.close().catch(() => {})
  }
}

function lines({ level, message, todo }: Finding): readonly string[] {
  const first = `${level.padEnd(8)} ${plain(message)}`
  return todo === null ? [first] : [first, `${' '.repeat(9)}${plain(todo)}`]
}

function counted(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`
}
