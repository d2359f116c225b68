import type { KeyChanges } from '../../core/key.js'
import { type AddCommand, examples, inRoom, originOf, type Room } from '../command.js'
import { named } from '../describe.js'
import { CliError } from '../exit.js'
import type { Session } from '../session.js'
import { expiry, metadata, several } from '../values.js'

interface UpdateOptions {
  readonly name?: string
  /** False with `--no-scope`, true where neither is there. */
  readonly scope?: readonly string[] | boolean
  readonly expires?: string
  readonly allowedIp?: readonly string[]
  readonly anyIp?: boolean
  readonly metadata?: string
}

export const addUpdate: AddCommand = (program, room) => {
  program
    .command('update')
    .argument('<id>', 'the id of the key')
    .description('Changes what is said of a key. What is not named stays as it is; lists are replaced as a whole.')
    .option('--name <name>', 'what people call it')
    .option('--scope <scope>', 'something it may do; can be repeated', (text, before) => several(text, Array.isArray(before) ? before : []))
    .option('--no-scope', 'takes all scopes away')
    .option('--expires <when>', 'a time such as 90d, an RFC 3339 instant, or never')
    .option('--allowed-ip <address>', 'an address or network it may be used from; can be repeated', several)
    .option('--any-ip', 'lets it be used from anywhere')
    .option('--metadata <json>', 'a JSON object that the application reads')
    .addHelpText(
      'after',
      examples(
        'npx express-api-keys update 6f1c52f4-8d3f-4c56-9c3e-0c6d6ad3f3a1 --scope reports:read --scope reports:write',
        'npx express-api-keys update "$ID" --expires 30d',
      ),
    )
    .action(inRoom<UpdateOptions>(room, 'change', (session, options, id) => update(session, room, options, id)))
}

async function update(session: Session, room: Room, options: UpdateOptions, id: string): Promise<void> {
  const changes = changesOf(options)
  if (Object.keys(changes).length === 0) throw new CliError('Say what to change; express-api-keys update --help lists it.')
  const { key } = await session.change(session.keys.update({ as: 'application', origin: originOf(room), id, changes }))
  await session.out.result({ key }, () => [`Changed key ${named(key)}.`])
}

function changesOf(options: UpdateOptions): KeyChanges {
  if (options.anyIp === true && options.allowedIp !== undefined) throw new CliError('--any-ip and --allowed-ip contradict each other.')
  return {
    ...(options.name === undefined ? {} : { name: options.name }),
    ...(Array.isArray(options.scope) ? { scopes: options.scope } : options.scope === false ? { scopes: [] } : {}),
    ...(options.expires === undefined ? {} : { expiresAt: expiry(options.expires) }),
    ...(options.anyIp === true ? { allowedIps: null } : options.allowedIp === undefined ? {} : { allowedIps: options.allowedIp }),
    ...(options.metadata === undefined ? {} : { metadata: metadata(options.metadata) }),
  }
}
