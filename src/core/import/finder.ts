import { inspect } from 'node:util'
import { dropOldest } from '../../drop-oldest.js'
import { ApiKeyError } from '../../errors.js'
import { inTime } from '../../in-time.js'
import type { Store } from '../../store/store.js'
import type { Clock } from '../clock.js'
import { failureOf } from '../failures.js'
import type { KnownFormats } from '../known-formats.js'
import { semaphore } from '../semaphore.js'
import { importedKey, refuseSecretIn } from './import-row.js'
import { writeNew } from './importer.js'

export interface FinderParts {
  readonly store: Store
  readonly clock: Clock
  readonly formats: KnownFormats
  /** Forgets that these digests were unknown. */
  readonly forget: (digests: readonly string[]) => void
  readonly report: (error: unknown) => void
}

/** Asks the old system about secrets that the store does not know. */
export interface Finder {
  /** Whether "unknown" is not the last word about a secret: the old system has not been asked yet. */
  mayFind(secret: string, digest: string): boolean
  /** Brings the key of a secret in, where the old system has one; resolves with whether the store is to be asked again. */
  find(secret: string, digest: string): Promise<boolean>
  /** Nothing is to be found about a secret: the key that the old system has of it was ended here. */
  deny(digest: string): void
}

const AT_ONCE = 4
const MAX_QUEUED = 100
const PATIENCE_MS = 5_000
/** How long the old system's "no" is believed: as long as the store's. */
const NO_MS = 3_000
const MAX_NOES = 10_000

export function finder({ store, clock, formats, forget, report }: FinderParts): Finder {
  const inTurn = semaphore(AT_ONCE, MAX_QUEUED, 'More secrets are being looked for than the old system can be asked about.')
  const noes = new Map<string, number>()
  const flights = new Map<string, Promise<boolean>>()

  return {
    mayFind: (secret, digest) => formats.legacyOf(secret)?.find !== undefined && !isNo(digest),

    find(secret, digest) {
      const look = formats.legacyOf(secret)?.find
      if (look === undefined || isNo(digest)) return Promise.resolve(false)
      const flight =
        flights.get(digest) ??
        inTurn(() => bringIn(() => look(secret), secret, digest)).finally(() => {
          flights.delete(digest)
        })
      flights.set(digest, flight)
      return flight
    },

    deny,
  }

  function isNo(digest: string): boolean {
    const since = noes.get(digest)
    return since !== undefined && clock.monotonicMs() - since < NO_MS
  }

  function deny(digest: string): void {
    noes.delete(digest)
    noes.set(digest, clock.monotonicMs())
    dropOldest(noes, MAX_NOES)
  }

  async function bringIn(look: () => Promise<object | undefined>, secret: string, digest: string): Promise<boolean> {
    const found = await asked(look, secret)
    if (found === undefined) {
      deny(digest)
      return false
    }
    await writeNew(store, [understood(found, secret, digest)]).catch(async (error) => {
      // Another process was first, in the same moment.
      if ((await store.transaction((tx) => tx.knownDigests([digest]))).length === 0) throw error
    })
    // Where it was there already, alive or dead, the store has the last word.
    forget([digest])
    return true
  }

  async function asked(look: () => Promise<object | undefined>, secret: string): Promise<object | undefined> {
    try {
      const found: unknown = await inTime(PATIENCE_MS, look(), () => new Error('find() of a legacy format took longer than 5 seconds.'))
      return found === null ? undefined : (found as object | undefined)
    } catch (error) {
      const cause = inspect(error).includes(secret)
        ? new Error('find() of a legacy format has failed, with the secret in its error.')
        : error
      const failure = new ApiKeyError('store_unavailable', 'The system that issued this key could not be asked.', { cause })
      report(failure)
      throw failure
    }
  }

  function understood(found: object, secret: string, digest: string): ReturnType<typeof importedKey> {
    try {
      refuseSecretIn(found, secret)
      return importedKey(found, digest, clock.wallMs())
    } catch (error) {
      // Not the client's fault, whose request was good.
      throw new ApiKeyError('internal_error', `find() of a legacy format returned a key that cannot be: ${failureOf(error).message}`)
    }
  }
}
