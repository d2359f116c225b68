import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'
import { CliError } from './exit.js'

/** Reads rows of keys from a file, one by one: it may be larger than the memory. */

export type RowsFormat = 'csv' | 'jsonl'

const TYPES: { readonly [extension: string]: RowsFormat } = { csv: 'csv', jsonl: 'jsonl', ndjson: 'jsonl' }

/** @throws CliError where neither the name nor the option says it. */
export function formatOfFile(file: string, asked: string | undefined): RowsFormat {
  const format = asked ?? TYPES[/\.(\w+)$/.exec(file)?.[1]?.toLowerCase() ?? '']
  if (format === 'csv' || format === 'jsonl') return format
  throw new CliError('Say what the file holds with --as csv or --as jsonl; .csv, .jsonl and .ndjson say it themselves.')
}

/** `-` is stdin. */
export async function* rowsOf(file: string, format: RowsFormat): AsyncGenerator<unknown> {
  const input = file === '-' ? process.stdin : createReadStream(file)
  input.setEncoding('utf8')
  try {
    yield* format === 'csv' ? csvRows(input) : jsonRows(input)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw code === undefined || !/^E[A-Z]+$/.test(code) ? error : new CliError(`The file cannot be read (${code}).`)
  }
}

/** A line that is not JSON comes as null, which the import refuses with its number. Empty lines count for nothing. */
async function* jsonRows(input: NodeJS.ReadableStream): AsyncGenerator<unknown> {
  for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
    if (line.trim() === '') continue
    yield parsed(line.replace(/^\uFEFF/, ''), null)
  }
}

/** The columns that are not text; empty cells are left out. */
const CELLS: { readonly [column: string]: (cell: string) => unknown } = {
  scopes: (cell) => cell.split(/\s+/).filter((scope) => scope !== ''),
  allowedIps: (cell) => cell.split(/\s+/).filter((address) => address !== ''),
  metadata: (cell) => parsed(cell, cell),
}
const COLUMNS = [
  ...['hash', 'secret', 'ownerId', 'name', 'environment', 'scopes', 'metadata', 'allowedIps', 'expiresAt'],
  ...['createdAt', 'lastUsedAt', 'disabledAt', 'revokedAt', 'revokedReason', 'last4'],
]

async function* csvRows(input: AsyncIterable<string | Buffer>): AsyncGenerator<unknown> {
  let head: readonly string[] | undefined
  for await (const cells of records(input)) {
    if (cells.length === 1 && cells[0] === '') continue
    if (head === undefined) {
      head = cells.map((name) => name.trim())
      const strange = head.find((name) => !COLUMNS.includes(name))
      // Not repeated: a file without a head begins with somebody's secret.
      if (strange !== undefined)
        throw new CliError(`The first line of the file names a column that is not known. There are ${COLUMNS.join(', ')}.`)
      continue
    }
    const columns = head
    // A row of another length has a comma or a quote that was not meant.
    yield cells.length !== columns.length
      ? null
      : Object.fromEntries(cells.flatMap((cell, index) => (cell === '' ? [] : [cellOf(columns[index] ?? '', cell)])))
  }
}

function cellOf(column: string, cell: string): readonly [string, unknown] {
  return [column, CELLS[column]?.(cell) ?? cell]
}

function parsed<T>(text: string, otherwise: T): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return otherwise
  }
}

/**
 * The records of a CSV: cells with commas between them, in quotes where they hold commas, quotes (doubled) or the ends of lines.
 *
 * @see RFC 4180 §2
 */
export async function* records(input: AsyncIterable<string | Buffer>): AsyncGenerator<readonly string[]> {
  let cells: string[] = []
  let cell = ''
  let state: 'plain' | 'quoted' | 'quote' = 'plain'
  let isFirst = true
  for await (const chunk of input) {
    for (const character of isFirst ? String(chunk).replace(/^\uFEFF/, '') : String(chunk)) {
      if (state === 'quoted') {
        if (character === '"') state = 'quote'
        else cell += character
      } else if (character === '"') {
        // The second of two quotes stands for one; any other opens the cell.
        if (state === 'quote') cell += character
        state = 'quoted'
      } else if (character === ',' || character === '\n') {
        cells.push(state === 'plain' ? cell.replace(/\r$/, '') : cell)
        cell = ''
        state = 'plain'
        if (character === ',') continue
        yield cells
        cells = []
      } else if (state === 'plain' || character !== '\r') cell += character
    }
    isFirst = false
  }
  if (cell === '' && cells.length === 0) return
  yield [...cells, state === 'plain' ? cell.replace(/\r$/, '') : cell]
}
