import type { Command } from 'commander'
import type { Page } from '../core/key.js'
import { whole } from './values.js'

export interface PagingOptions {
  readonly limit?: number
  readonly cursor?: string
  readonly all?: boolean
}

export function pagingOptions(command: Command): Command {
  return command
    .option('--limit <count>', 'how many, 1 to 100 (default: 50)', whole('--limit', 1, 100))
    .option('--cursor <cursor>', 'goes on where a page ended')
    .option('--all', 'every page')
}

/** One page, or with `--all` as many as there are, as one. */
export async function pages<T>(
  { limit, cursor, all }: PagingOptions,
  read: (paging: { limit?: number; cursor?: string }) => Promise<Page<T>>,
): Promise<Page<T>> {
  const first = await read({
    ...(all === true ? { limit: 100 } : limit === undefined ? {} : { limit }),
    ...(cursor === undefined ? {} : { cursor }),
  })
  if (all !== true) return first
  const items = [...first.items]
  for (let next = first.nextCursor; next !== null; ) {
    const page = await read({ limit: 100, cursor: next })
    items.push(...page.items)
    next = page.nextCursor
  }
  return { items, nextCursor: null }
}
