import type { Command } from 'commander'
import type { Environment } from '../../store/store.js'
import { type AddCommand, examples, IDEMPOTENCY_KEY_FROM, inRoom, originOf, type Room, repetitionOf } from '../command.js'
import { prefixOfEnvironment } from '../connection/open.js'
import { named } from '../describe.js'
import { CliError } from '../exit.js'
import { printSecret } from '../secret.js'
import type { Session } from '../session.js'
import { expiry, metadata, several } from '../values.js'

interface CreateOptions {
  readonly owner: string
  readonly name: string
  readonly environment?: Environment
  readonly scope?: readonly string[]
  readonly expires?: string
  readonly allowedIp?: readonly string[]
  readonly metadata?: string
  readonly rotationSecret?: boolean
  readonly idempotencyKeyFrom?: string
}

export const addCreate: AddCommand = (program, room) => {
  program
    .command('create')
    .description('Makes a key, and prints its secret: on stdout, once, and nothing else there.')
    .requiredOption('--owner <owner>', 'whose key it is')
    .requiredOption('--name <name>', 'what people call it')
    .option('--environment <environment>', 'live or test (default: live)')
    .option('--scope <scope>', 'something it may do; can be repeated (default: none)', several)
    .option('--expires <when>', 'a time such as 90d, an RFC 3339 instant, or never (default: never, or what the application has set)')
    .option('--allowed-ip <address>', 'an address or network it may be used from; can be repeated (default: any)', several)
    .option('--metadata <json>', 'a JSON object that the application reads')
    .option('--rotation-secret', 'has a second secret, printed on a line of its own, be needed for its rotation')
    .option(...IDEMPOTENCY_KEY_FROM)
    .addHelpText(
      'after',
      examples(
        'npx express-api-keys create --owner acme --name ci --scope reports:read --expires 90d',
        'SECRET=$(npx express-api-keys create --owner acme --name ci)',
        'npx express-api-keys create --owner acme --name ci --json',
      ),
    )
    .action(inRoom<CreateOptions>(room, 'change', (session, options) => create(session, room, options, program)))
}

async function create(session: Session, room: Room, options: CreateOptions, program: Command): Promise<void> {
  if (!session.fromConfig && program.opts<{ prefix?: string }>().prefix === undefined) await refuseStrangePrefix(session)
  const { keys, out } = session
  const repetition = await repetitionOf('create', '', options)
  const issued = await session.change(
    keys.create({
      as: 'application',
      origin: originOf(room),
      ownerId: options.owner,
      name: options.name,
      ...repetition,
      ...(options.environment === undefined ? {} : { environment: options.environment }),
      ...(options.scope === undefined ? {} : { scopes: options.scope }),
      ...(options.expires === undefined ? {} : { expiresAt: expiry(options.expires) }),
      ...(options.allowedIp === undefined ? {} : { allowedIps: options.allowedIp }),
      ...(options.metadata === undefined ? {} : { metadata: metadata(options.metadata) }),
      ...(options.rotationSecret === true ? { rotationSecret: true } : {}),
    }),
  )
  out.say(`${issued.replayed ? 'This key was made by an earlier run' : 'Made key'} ${named(issued.key)}. Its secret is shown this once:`)
  await printSecret(out, issued)
}

/** The application would not know a key with another prefix than its own, and nobody would see why. */
async function refuseStrangePrefix({ setup: { store, prefixes } }: Session): Promise<void> {
  if (prefixOfEnvironment() !== undefined) return
  const newest = await store.keys({ limit: 100 })
  const known = newest.some(({ secretStart }) => prefixes.some((prefix) => isStartOf(secretStart, prefix)))
  const [first] = newest
  if (first === undefined || known) return
  throw new CliError(
    `The keys in this database begin with ${first.secretStart}, and this one would begin with ${prefixes[0]}_: say which with --prefix, API_KEYS_PREFIX or --config.`,
  )
}

function isStartOf(start: string, prefix: string): boolean {
  return [`${prefix}_`, `${prefix}_live_`, `${prefix}_test_`].includes(start)
}
