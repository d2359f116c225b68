import type { EventRow, EventType, KeyRow } from '../store/store.js'
import type { Denial, KeyHappening, KeyListeners, Recalled } from './api-keys.js'
import { apiKey, keyEvent } from './key.js'

/** Which listeners hear of which line of the audit trail. */
const NAMES: { readonly [type in EventType]: Exclude<keyof KeyListeners, 'denied' | 'recalled'> } = {
  'key.created': 'created',
  'key.imported': 'created',
  'key.updated': 'updated',
  'key.rotated': 'rotated',
  'key.replayed': 'replayed',
  'key.revoked': 'revoked',
  'key.disabled': 'disabled',
  'key.enabled': 'enabled',
  'key.replay_refused': 'refused',
  'key.retired_secret_refused': 'refused',
  'key.rotation_secret_refused': 'refused',
}

type Listener = (happened: never) => unknown

export function keyListeners(report: (error: unknown) => void): {
  on(name: keyof KeyListeners, listener: Listener): () => void
  tell(event: EventRow, key: KeyRow): void
  deny(denial: () => Denial): void
  recalled(recalled: Recalled): void
} {
  const listening = new Map<keyof KeyListeners, Set<Listener>>()

  return {
    on(name, listener) {
      // Wrapped, so that the same function given twice is two listeners.
      const heard: Listener = (happened) => listener(happened)
      listening.set(name, (listening.get(name) ?? new Set()).add(heard))
      return () => listening.get(name)?.delete(heard)
    },
    tell(event, key) {
      const name = NAMES[event.type]
      if (isHeard(name)) send(name, { event: keyEvent(event), key: apiKey(key) })
    },
    deny(denial) {
      if (isHeard('denied')) send('denied', denial())
    },
    recalled(recalled) {
      send('recalled', recalled)
    },
  }

  function isHeard(name: keyof KeyListeners): boolean {
    return (listening.get(name)?.size ?? 0) > 0
  }

  function send(name: keyof KeyListeners, happened: KeyHappening | Denial | Recalled): void {
    for (const each of listening.get(name) ?? []) {
      // Promise: a listener may be an async function, and its failure must not end the process.
      Promise.resolve(happened as never)
        .then(each)
        .catch(report)
    }
  }
}

export const LISTENERS: readonly (keyof KeyListeners)[] = [...new Set(Object.values(NAMES)), 'recalled', 'denied']
