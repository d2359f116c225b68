import type { ApiKey, KeyQuery, Page } from '../../core/key.js'
import { type AddCommand, examples, inRoom } from '../command.js'
import { keyTable } from '../describe.js'
import { type PagingOptions, pages, pagingOptions } from '../paging.js'
import type { Session } from '../session.js'
import { expiry, past } from '../values.js'

interface ListOptions extends PagingOptions {
  readonly owner?: string
  readonly status?: NonNullable<KeyQuery['status']>
  readonly environment?: NonNullable<KeyQuery['environment']>
  readonly name?: string
  readonly last4?: string
  readonly expiresBefore?: string
  readonly unusedSince?: string
}

export const addList: AddCommand = (program, room) => {
  const command = program
    .command('list')
    .description('Lists keys, newest first.')
    .option('--owner <owner>', 'the keys of one owner')
    .option('--status <status>', 'active, disabled, expired or revoked')
    .option('--environment <environment>', 'live or test')
    .option('--name <text>', 'text anywhere in the name')
    .option('--last4 <characters>', 'the last four characters of the secret')
    .option('--expires-before <when>', 'keys that expire before an RFC 3339 instant, or within a time such as 14d')
    .option('--unused-since <when>', 'keys last used before an RFC 3339 instant, or not for a time such as 90d')
  pagingOptions(command)
    .addHelpText(
      'after',
      examples(
        'npx express-api-keys list --owner acme',
        'npx express-api-keys list --last4 x7Qp',
        'npx express-api-keys list --status active --unused-since 90d --all --json',
      ),
    )
    .action(inRoom<ListOptions>(room, 'read', list))
}

async function list({ keys, out }: Session, options: ListOptions): Promise<void> {
  const query: KeyQuery = {
    ...(options.owner === undefined ? {} : { ownerId: options.owner }),
    ...(options.status === undefined ? {} : { status: options.status }),
    ...(options.environment === undefined ? {} : { environment: options.environment }),
    ...(options.name === undefined ? {} : { name: options.name }),
    ...(options.last4 === undefined ? {} : { last4: options.last4 }),
    ...(options.expiresBefore === undefined ? {} : { expiresBefore: expiry(options.expiresBefore) ?? '' }),
    ...(options.unusedSince === undefined ? {} : { lastUsedBefore: past(options.unusedSince) }),
  }
  const page = await pages(options, (paging): Promise<Page<ApiKey>> => keys.list({ ...query, ...paging }))
  await out.result(page, () => keyTable(page.items))
  if (page.nextCursor !== null) out.say(`There are more: --all, or --cursor ${page.nextCursor}`)
}
