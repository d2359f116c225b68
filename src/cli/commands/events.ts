import type { KeyEvent, Page } from '../../core/key.js'
import { type AddCommand, examples, inRoom } from '../command.js'
import { eventTable } from '../describe.js'
import { CliError, EXIT } from '../exit.js'
import { type PagingOptions, pages, pagingOptions } from '../paging.js'
import type { Session } from '../session.js'

export const addEvents: AddCommand = (program, room) => {
  const command = program.command('events').argument('<id>', 'the id of the key').description("Lists a key's audit trail, newest first.")
  pagingOptions(command)
    .addHelpText(
      'after',
      examples('npx express-api-keys events 6f1c52f4-8d3f-4c56-9c3e-0c6d6ad3f3a1', 'npx express-api-keys events "$ID" --all --json'),
    )
    .action(inRoom<PagingOptions>(room, 'read', events))
}

async function events({ keys, out }: Session, options: PagingOptions, id: string): Promise<void> {
  const page = await pages(options, async (paging): Promise<Page<KeyEvent>> => {
    const found = await keys.events({ id, ...paging })
    if (found === undefined) throw new CliError('There is no such key.', { exit: EXIT.failed, code: 'key_not_found' })
    return found
  })
  await out.result(page, () => eventTable(page.items))
  if (page.nextCursor !== null) out.say(`There are more: --all, or --cursor ${page.nextCursor}`)
}
