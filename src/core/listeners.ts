import type { EventRow, EventType, KeyRow } from '../store/store.js'
import type { KeyHappening, KeyListeners } from './api-keys.js'
import { apiKey, keyEvent } from './key.js'

/** Which listeners hear of which line of the audit trail. */
const NAMES: { readonly [type in EventType]: keyof KeyListeners } = {
  'key.created': 'created',
  'key.updated': 'updated',
  'key.rotated': 'rotated',
  'key.replayed': 'replayed',
  'key.revoked': 'revoked',
  'key.replay_refused': 'refused',
  'key.retired_secret_refused': 'refused',
  'key.rotation_secret_refused': 'refused',
}

export function keyListeners(report: (error: unknown) => void): {
  on(name: keyof KeyListeners, listener: (happened: KeyHappening) => void): () => void
  tell(event: EventRow, key: KeyRow): void
} {
  const listening = new Map<keyof KeyListeners, Set<(happened: KeyHappening) => unknown>>()

  return {
    on(name, listener) {
      // Wrapped, so that the same function given twice is two listeners.
      const heard = (happened: KeyHappening): unknown => listener(happened)
      listening.set(name, (listening.get(name) ?? new Set()).add(heard))
      return () => listening.get(name)?.delete(heard)
    },
    tell(event, key) {
      const heard = listening.get(NAMES[event.type])
      if (heard === undefined || heard.size === 0) return
      const happened: KeyHappening = { event: keyEvent(event), key: apiKey(key) }
      for (const each of [...heard]) {
        // Promise: a listener may be an async function, and its failure must not end the process.
        Promise.resolve(happened).then(each).catch(report)
      }
    },
  }
}

export const LISTENERS: readonly (keyof KeyListeners)[] = [...new Set(Object.values(NAMES))]
