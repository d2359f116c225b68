import { type AddCommand, examples, IDEMPOTENCY_KEY_FROM, inRoom, originOf, type Room, repetitionOf } from '../command.js'
import { named } from '../describe.js'
import { printSecret } from '../secret.js'
import type { Session } from '../session.js'
import { expiry, retirement } from '../values.js'

interface RotateOptions {
  readonly retire?: string
  readonly expires?: string
  readonly emergency?: boolean
  readonly successor?: boolean
  readonly keepRotationSecret?: boolean
  readonly idempotencyKeyFrom?: string
}

export const addRotate: AddCommand = (program, room) => {
  program
    .command('rotate')
    .argument('<id>', 'the id of the key')
    .description('Replaces the secret of a key, and prints the new one: on stdout, once, and nothing else there.')
    .option(
      '--retire <when>',
      'when the old secret ends: now, on-first-use of the new one, or a time such as 10m, at most 7d (default: now)',
    )
    .option('--expires <when>', 'when the key expires from now on: a time such as 90d, an RFC 3339 instant, or never (default: as before)')
    .option('--emergency', 'both secrets are known to somebody: ends a grace period too, and no earlier answer can be asked for again')
    .option('--successor', 'gives the key a new id too, and revokes the old one')
    .option('--keep-rotation-secret', 'leaves the rotation secret as it is')
    .option(...IDEMPOTENCY_KEY_FROM)
    .addHelpText(
      'after',
      examples(
        'npx express-api-keys rotate 6f1c52f4-8d3f-4c56-9c3e-0c6d6ad3f3a1 --retire on-first-use',
        'npx express-api-keys rotate "$ID" --retire 10m --idempotency-key-from .rotation > secret.txt && rm .rotation',
        'npx express-api-keys rotate "$ID" --emergency',
      ),
    )
    .action(inRoom<RotateOptions>(room, 'change', (session, options, id) => rotate(session, room, options, id)))
}

async function rotate(session: Session, room: Room, options: RotateOptions, id: string): Promise<void> {
  const { keys, out } = session
  const repetition = await repetitionOf('rotate', id, options)
  const issued = await session.change(
    keys.rotate({
      as: 'application',
      origin: originOf(room),
      id,
      ...repetition,
      retire: options.retire === undefined ? undefined : retirement(options.retire),
      ...(options.expires === undefined ? {} : { expiresAt: expiry(options.expires) }),
      emergency: options.emergency === true,
      identity: options.successor === true ? 'successor' : 'same',
      keepRotationSecret: options.keepRotationSecret === true,
    }),
  )
  const until = issued.acceptedUntil === undefined ? 'no longer accepted' : `accepted until ${issued.acceptedUntil} at the latest`
  out.say(
    `${issued.replayed ? 'An earlier run rotated' : 'Rotated'} key ${named(issued.key)}. The old secret is ${until}. The new one is shown this once:`,
  )
  await printSecret(out, issued)
}
