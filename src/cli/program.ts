import { Command } from 'commander'
import { examples, type Room } from './command.js'
import { addCreate } from './commands/create.js'
import { addDoctor } from './commands/doctor.js'
import { addDisable, addEnable, addRevoke } from './commands/ending.js'
import { addEvents } from './commands/events.js'
import { addImport } from './commands/import.js'
import { addList } from './commands/list.js'
import { addMigrate } from './commands/migrate.js'
import { addRotate } from './commands/rotate.js'
import { addShow } from './commands/show.js'
import { addUpdate } from './commands/update.js'
import { several } from './values.js'

/**
 * In the order of the help. A new command is a file in commands/ and its line here, and its heading in docs/reference/cli.md: for those who run the keys (prune,
 * erase) behind addImport, for clients of an API (rotate-remote, probe), which open no session, at the end.
 */
const COMMANDS = [
  addMigrate,
  addCreate,
  addList,
  addShow,
  addRotate,
  addRevoke,
  addDisable,
  addEnable,
  addUpdate,
  addEvents,
  addImport,
  addDoctor,
]

const CONNECTION = `
Connection:
  DATABASE_URL     postgres://…, mysql://…, or sqlite:path/to/keys.db
  REDIS_URL        redis://…, where the application uses Redis
  API_KEYS_SECRET  the application's serverSecret; only commands that change keys need it
  API_KEYS_PREFIX  the application's prefix, if it is not sk
  API_KEYS_CONFIG  the same as --config
DATABASE_URL_FILE, REDIS_URL_FILE and API_KEYS_SECRET_FILE may name files instead. With --config, none of these is read
but by the module itself. The drivers (pg, better-sqlite3 or libsql, ioredis) are those of your project.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the database could not be asked, 4 nobody knows whether the
change was made, 5 and 6 from migrate --check, 130 stopped.
`

export function program(room: Room): Command {
  const root = new Command('express-api-keys')
    .description('Makes, rotates and looks after API keys, from deploy scripts and by hand.')
    .version(room.version)
    .option('--json', 'prints JSON, failures too (on stderr)')
    .option('--config <file>', 'a module of the application that exports the keys: what createApiKeys returned')
    .option('--env-file <file>', 'reads variables from a file, such as .env, where they are not set')
    .option('--prefix <prefix>', 'what new secrets begin with, as in the application (default: sk)')
    .option('--accepted-prefix <prefix>', 'another prefix that the application accepts; can be repeated', several)
    .configureHelp({ showGlobalOptions: true, helpWidth: 120 })
    .helpCommand(false)
    .showSuggestionAfterError()
    .addHelpText('after', CONNECTION)
    .addHelpText(
      'after',
      examples(
        'npx express-api-keys create --owner acme --name ci --scope reports:read',
        'npx express-api-keys list --config ./src/keys.js --owner acme',
        'npx express-api-keys rotate "$ID" --help',
      ),
    )
    .exitOverride()
  for (const add of COMMANDS) add(root, room)
  return root
}
