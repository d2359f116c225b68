import type { ApiKeyError } from '../../errors.js'

type Listener = (fault: ApiKeyError) => unknown

/** Listeners for trouble that no call reports. */
export interface Faults {
  on(listener: Listener): () => void
  tell(fault: ApiKeyError): void
}

export function faults(): Faults {
  const listening = new Set<Listener>()
  return {
    on(listener) {
      // Wrapped, so that the same function given twice is two listeners.
      const heard: Listener = (fault) => listener(fault)
      listening.add(heard)
      return () => void listening.delete(heard)
    },
    tell(fault) {
      // An error that a listener throws must neither keep the fault from the other listeners nor end the process.
      for (const each of [...listening]) Promise.resolve(fault).then(each).catch(ignored)
    },
  }
}

function ignored(): void {}
