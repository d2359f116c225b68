import { dropOldest } from '../drop-oldest.js'
import { clearInterval, clearTimeout, setInterval, setTimeout } from '../real-time.js'
import type { KeyUse, Store } from '../store/store.js'
import type { Origin } from './api-keys.js'
import { originText } from './audit.js'
import type { Clock } from './clock.js'

/** Writes the last use of keys behind the requests that made it. */
export interface Uses {
  note(keyId: string, origin: () => Origin): void
  /** Writes what is waiting to be written. Never rejects. */
  flush(): Promise<void>
  /** Flushes, and ends the timers. */
  close(): Promise<void>
}

/** A key's last use is written at most this often. */
const ONCE_IN_MS = 60_000
/** Uses of many keys go out in one write. */
const GATHER_MS = 1_000
/** A process that serves more keys than this in a minute writes some of them more often. */
const MAX_NOTED = 50_000
const AT_ONCE = 200

export function keyUses(store: Store, clock: Clock, report: (error: unknown) => void): Uses {
  /** When each key was last noted, the oldest first. */
  const noted = new Map<string, number>()
  let pending: (Omit<KeyUse, 'agoMs'> & { readonly at: number })[] = []
  let gathering: NodeJS.Timeout | undefined
  let sweeping: NodeJS.Timeout | undefined
  let writing: Promise<void> = Promise.resolve()

  return {
    note(keyId, origin) {
      // The hot path: a use that need not be written costs this look-up.
      if (noted.has(keyId)) return
      const at = clock.monotonicMs()
      const { ip, userAgent } = origin()
      noted.set(keyId, at)
      dropOldest(noted, MAX_NOTED)
      pending.push({ keyId, at, ip: originText(ip), userAgent: originText(userAgent) })
      gathering ??= setTimeout(flush, GATHER_MS).unref()
      sweeping ??= setInterval(sweep, ONCE_IN_MS / 4).unref()
    },
    flush,
    async close() {
      clearInterval(sweeping)
      await flush()
    },
  }

  function flush(): Promise<void> {
    clearTimeout(gathering)
    gathering = undefined
    const uses = pending
    pending = []
    if (uses.length > 0) writing = writing.then(() => write(uses))
    return writing
  }

  async function write(uses: typeof pending): Promise<void> {
    try {
      // In parts, so that each is written well within the time that the store allows itself.
      for (let from = 0; from < uses.length; from += AT_ONCE) {
        const now = clock.monotonicMs()
        await store.recordUses(uses.slice(from, from + AT_ONCE).map(({ at, ...use }) => ({ ...use, agoMs: now - at })))
      }
    } catch (error) {
      // Lost: the next use in a minute's time is written again.
      report(error)
    }
  }

  function sweep(): void {
    const before = clock.monotonicMs() - ONCE_IN_MS
    for (const [keyId, at] of noted) {
      if (at > before) break
      noted.delete(keyId)
    }
    if (noted.size > 0) return
    clearInterval(sweeping)
    sweeping = undefined
  }
}
