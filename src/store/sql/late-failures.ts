import type { ApiKeyError } from '../../errors.js'

type Listener = (fault: ApiKeyError) => unknown

/** Those who hear of trouble that no call tells of. */
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
      // What a listener throws has nobody to go to, and must neither keep the others from hearing of it nor end the process.
      for (const each of [...listening]) Promise.resolve(fault).then(each).catch(ignored)
    },
  }
}

function ignored(): void {}
