import type { ApiKeys } from '../../core/api-keys.js'
import { type AddCommand, examples, inRoom, originOf, type Room } from '../command.js'
import { named } from '../describe.js'
import { CliError, EXIT } from '../exit.js'
import type { Session } from '../session.js'
import { confirmed, isInteractive } from '../sources.js'

/** `revoke`, `disable` and `enable`: each takes a key and a reason. */

interface EndingOptions {
  readonly reason?: string
  readonly yes?: boolean
}

interface Ending {
  readonly name: 'revoke' | 'disable' | 'enable'
  readonly description: string
  readonly done: string
  readonly forGood: boolean
  readonly examples: readonly string[]
}

const ID = '6f1c52f4-8d3f-4c56-9c3e-0c6d6ad3f3a1'

export const addRevoke: AddCommand = adding({
  name: 'revoke',
  description: 'Ends a key for good. Returns once no instance accepts it.',
  done: 'Revoked key',
  forGood: true,
  examples: [`npx express-api-keys revoke ${ID} --reason "the contract ended"`, `npx express-api-keys revoke ${ID} --yes --json`],
})

export const addDisable: AddCommand = adding({
  name: 'disable',
  description: 'Has a key refused until it is enabled again. Returns once no instance accepts it.',
  done: 'Disabled key',
  forGood: false,
  examples: [`npx express-api-keys disable ${ID} --reason "unpaid invoice"`],
})

export const addEnable: AddCommand = adding({
  name: 'enable',
  description: 'Has a disabled key work again.',
  done: 'Enabled key',
  forGood: false,
  examples: [`npx express-api-keys enable ${ID}`],
})

function adding(ending: Ending): AddCommand {
  return (program, room) => {
    const command = program
      .command(ending.name)
      .argument('<id>', 'the id of the key')
      .description(ending.description)
      .option('--reason <text>', 'for the audit trail')
    if (ending.forGood) command.option('--yes', 'does not ask; needed where there is no terminal to ask on')
    command
      .addHelpText('after', examples(...ending.examples))
      .action(inRoom<EndingOptions>(room, 'change', (session, options, id) => end(session, room, ending, options, id)))
  }
}

async function end(session: Session, room: Room, ending: Ending, { reason, yes }: EndingOptions, id: string): Promise<void> {
  const { keys, out } = session
  if (ending.forGood && yes !== true) await confirm(keys, id)
  const command = { as: 'application', origin: originOf(room), id, ...(reason === undefined ? {} : { reason }) } as const
  const { key } = await session.change(keys[ending.name](command))
  await out.result({ key }, () => [`${ending.done} ${named(key)}.`])
}

async function confirm(keys: ApiKeys, id: string): Promise<void> {
  if (!isInteractive()) throw new CliError('A revoked key never works again: add --yes where there is no terminal to ask on.')
  const key = await keys.get(id)
  // Where there is none, the command itself says so.
  if (key === undefined) return
  if (!(await confirmed(`Revoke key ${named(key)}? It never works again.`))) {
    throw new CliError('Nothing was revoked.', { exit: EXIT.failed, code: 'not_confirmed' })
  }
}
