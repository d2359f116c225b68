import { ApiKeyError } from '../../errors.js'
import { refuseUnknown } from '../../options.js'
import type { EventRow, Store } from '../../store/store.js'
import type { Clock } from '../clock.js'
import { failureOf } from '../failures.js'
import { timeOrderedId } from '../id.js'
import type { ImportRow } from '../key.js'
import { type LegacyFormat, type Recogniser, recogniserOf } from '../legacy-format.js'
import { invalidRequest } from '../refusals.js'
import { type ImportedKey, importedRow } from './import-row.js'

export interface ImportOptions {
  /** The form of the secrets, one of `legacyFormats`. Default: the only one. */
  format?: LegacyFormat | undefined
  /** Whether the rows are only checked, and nothing is written. Default false. */
  dryRun?: boolean | undefined
  /** Is called after each batch of 500 rows. What it throws ends the import there. */
  onProgress?: ((progress: ImportProgress) => void) | undefined
}

export interface ImportProgress {
  /** How many rows were looked at. */
  readonly rows: number
  /** How many keys came in; in a dry run, how many would. */
  readonly imported: number
  /** How many were there already, from an earlier import of the same rows, alive or dead. They stay as they are. */
  readonly existing: number
  /** How many rows could not be read. They changed nothing. */
  readonly failed: number
}

export interface ImportResult extends ImportProgress {
  /** Which rows those were, counted from 1, and what is wrong with each; the first 1,000 of them. */
  readonly failures: readonly { readonly row: number; readonly message: string }[]
}

const BATCH = 500
const MOST_FAILURES = 1_000
/** A second import of the same rows at the same time may have been first with one. */
const TRIES = 3

export interface ImporterParts {
  readonly store: Store
  readonly clock: Pick<Clock, 'wallMs'>
  readonly formats: readonly Recogniser[]
  /** Forgets that these digests were unknown. */
  readonly forget: (digests: readonly string[]) => void
}

export type Importer = (rows: Iterable<ImportRow> | AsyncIterable<ImportRow>, options?: ImportOptions) => Promise<ImportResult>

/** Brings keys in that were issued elsewhere, batch by batch. Each batch is there as a whole or not at all, and the same rows again change nothing. */
export function importer({ store, clock, formats, forget }: ImporterParts): Importer {
  return async (rows, options = {}) => {
    refuseUnknown(options, ['format', 'dryRun', 'onProgress'], 'import', 'invalid_request')
    const { dryRun = false, onProgress } = options
    if (typeof dryRun !== 'boolean') throw invalidRequest('dryRun must be true or false.')
    if (onProgress !== undefined && typeof onProgress !== 'function') throw invalidRequest('onProgress must be a function.')
    const format = formatOf(formats, options.format)
    if (!isIterable(rows)) throw invalidRequest('import takes the rows as a list, or as anything that can be iterated, such as a stream.')
    const counted = { rows: 0, imported: 0, existing: 0, failed: 0 }
    const failures: { row: number; message: string }[] = []
    for await (const batch of batches(rows)) {
      const good: ImportedKey[] = []
      const now = clock.wallMs()
      for (const [index, row] of batch.entries()) {
        const made = checked(row, format, now)
        if ('key' in made) good.push(made)
        else if (failures.length < MOST_FAILURES) failures.push({ row: counted.rows + index + 1, message: made.message })
      }
      const imported = await written(good, dryRun).catch((error) => {
        throw stoppedAt(failureOf(error), counted.rows)
      })
      counted.rows += batch.length
      counted.failed += batch.length - good.length
      counted.imported += imported
      counted.existing += good.length - imported
      onProgress?.({ ...counted })
    }
    return { ...counted, failures }
  }

  async function written(keys: readonly ImportedKey[], dryRun: boolean): Promise<number> {
    if (keys.length === 0) return 0
    for (let tries = 1; ; tries++) {
      try {
        const added = await writeNew(store, keys, dryRun)
        forget(added)
        return added.length
      } catch (error) {
        if (tries === TRIES) throw error
      }
    }
  }
}

/** Writes those of these keys that are not there yet, in one transaction, and resolves with their digests. */
export async function writeNew(store: Store, keys: readonly ImportedKey[], dryRun = false): Promise<readonly string[]> {
  const byDigest = new Map<string, ImportedKey>()
  // Of two rows about one secret the first counts.
  for (const made of keys) if (!byDigest.has(made.generation.digest)) byDigest.set(made.generation.digest, made)
  return store.transaction(async (tx) => {
    for (const digest of await tx.knownDigests([...byDigest.keys()])) byDigest.delete(digest)
    const added = [...byDigest.values()]
    if (added.length === 0 || dryRun) return [...byDigest.keys()]
    const now = await tx.now()
    await tx.insertKeys(added)
    await tx.appendEvents(added.map(({ key }) => imported(key, now)))
    return [...byDigest.keys()]
  })
}

function imported({ id, ownerId }: ImportedKey['key'], now: number): EventRow {
  return {
    ...{ id: timeOrderedId(now), keyId: id, ownerId, type: 'key.imported', at: now },
    ...{ actor: 'system', ip: null, userAgent: null, details: {} },
  }
}

function checked(row: unknown, format: Recogniser, now: number): ImportedKey | { readonly message: string } {
  try {
    return importedRow(row, format, now)
  } catch (error) {
    if (error instanceof ApiKeyError && error.code === 'invalid_request') return { message: error.message }
    throw error
  }
}

function formatOf(formats: readonly Recogniser[], asked: LegacyFormat | undefined): Recogniser {
  const format = asked === undefined ? formats[0] : recogniserOf(asked)
  if (format === undefined || !formats.includes(format))
    throw invalidRequest('Name the form of the secrets in legacyFormats of createApiKeys first: otherwise nobody could use these keys.')
  if (asked === undefined && formats.length > 1)
    throw invalidRequest('There are several legacyFormats: say which one these rows are of, in format.')
  return format
}

function stoppedAt(error: ApiKeyError, rows: number): ApiKeyError {
  return new ApiKeyError(error.code, `${error.message} The first ${rows} rows are done. Run the import again: it goes on from there.`, {
    cause: error,
  })
}

function isIterable(rows: unknown): boolean {
  return typeof rows === 'object' && rows !== null && (Symbol.iterator in rows || Symbol.asyncIterator in rows)
}

async function* batches(rows: Iterable<ImportRow> | AsyncIterable<ImportRow>): AsyncGenerator<readonly ImportRow[]> {
  let batch: ImportRow[] = []
  for await (const row of rows) {
    batch.push(row)
    if (batch.length < BATCH) continue
    yield batch
    batch = []
  }
  if (batch.length > 0) yield batch
}
