/** Ways to break the system under test on purpose, and what each breaks: a run that does not notice is a run that proves nothing. */
export const plants = {
  'no-wait': 'a rotation answers right after COMMIT, without waiting for the leases',
  'settled-at-once': 'a repeated rotation does not wait for the leases either, when the first answer is still waiting',
  'longer-verifier-lease': 'verifiers rely on an answer for three times as long as rotations wait',
  'own-lease': 'a rotation waits for the lease that its server was started with, and not for the one in force',
  'lease-from-relay': 'verifiers count a lease from when they heard of it through Redis',
  'cache-clock-trusted': 'a lease that comes through Redis ends by the clock of Redis, and not also by that of the store',
  'wall-clock-lease': 'leases are measured on the wall clock alone, which can be set back',
  'no-replay': 'the answer of a rotation is not kept',
  'not-idempotent': 'a repeated rotation is carried out again',
  'active-only': 'a rotation looks up active secrets only, so the retry of one that was carried out finds nothing',
  '401-on-store-down': 'a secret that cannot be looked up counts as unknown',
} as const

export type Plant = keyof typeof plants
