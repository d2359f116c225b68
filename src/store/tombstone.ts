import type { GenerationRow } from './store.js'

/** What is left of a secret whose key was removed: its digest alone, so that nothing makes that secret good again. */
export function tombstoneOf(digest: string): GenerationRow {
  return {
    digest,
    keyId: digest,
    generation: 0,
    createdAt: 0,
    retiredAt: 0,
    graceEndsAt: null,
    retiredBy: null,
    retiredReason: null,
    firstUsedAt: null,
    retiresEarlier: false,
    rotationSecretHash: null,
    secretStart: '',
    secretLast4: '',
  }
}
