import { type ApiKey, apiKey } from '../../core/key.js'
import { digestOf } from '../../core/secret.js'
import { type AddCommand, examples, inRoom } from '../command.js'
import { keyLines } from '../describe.js'
import { CliError, EXIT } from '../exit.js'
import type { Session } from '../session.js'
import { valueFrom } from '../sources.js'

interface ShowOptions {
  readonly secretFrom?: string
}

export const addShow: AddCommand = (program, room) => {
  program
    .command('show')
    .argument('[id]', 'the id of the key')
    .description('Shows a key, by its id or by a secret of it: a leaked one, too, and one that was replaced long ago.')
    .option('--secret-from <source>', 'where the secret is: a file, env:NAME, - for stdin, or prompt')
    .addHelpText(
      'after',
      examples(
        'npx express-api-keys show 6f1c52f4-8d3f-4c56-9c3e-0c6d6ad3f3a1',
        'npx express-api-keys show --secret-from prompt',
        'npx express-api-keys show --secret-from leaked.txt --json',
      ),
    )
    .action(inRoom<ShowOptions>(room, 'read', show))
}

async function show(session: Session, { secretFrom }: ShowOptions, id: string): Promise<void> {
  if ((id === '') === (secretFrom === undefined)) throw new CliError('show takes the id of a key, or --secret-from.')
  const { key, generation } = secretFrom === undefined ? { key: await keyById(session, id) } : await keyOfSecret(session, secretFrom)
  await session.out.result(generation === undefined ? { key } : { key, generation }, () => keyLines(key))
  if (generation === undefined) return
  const current = generation === key.generation
  session.out.say(
    current ? 'The secret is the current one of this key.' : `The secret is generation ${generation} of this key, and is replaced.`,
  )
}

async function keyById({ keys }: Session, id: string): Promise<ApiKey> {
  const key = await keys.get(id)
  if (key === undefined) throw noKey()
  return key
}

/** Looks in the store itself: checking would say no more than no of a secret that was replaced. */
async function keyOfSecret({ setup }: Session, source: string): Promise<{ readonly key: ApiKey; readonly generation: number }> {
  const digest = digestOf(await valueFrom(source, '--secret-from'))
  const { at, found } = await setup.store.read([digest])
  const [first] = found
  if (first === undefined) throw noKey()
  return { key: apiKey(first.key, at), generation: first.generation.generation }
}

function noKey(): CliError {
  return new CliError('There is no such key.', { exit: EXIT.failed, code: 'key_not_found' })
}
