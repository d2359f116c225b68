/** Ways to break the system under test on purpose, and the rule that each breaks: a run that does not notice is a run that proves nothing. */
export const plants = {
  'deadline-ignored': { what: 'verifiers let in whoever they have let in before, whenever that was', breaks: 'dead-accepted' },
  'longer-verifier-lease': { what: 'verifiers rely on an answer for three times as long as rotations wait', breaks: 'dead-accepted' },
  'no-wait': { what: 'a rotation answers right after COMMIT, without waiting for the leases', breaks: 'dead-accepted' },
  'short-wait': { what: 'a rotation waits for a quarter of the lease in force', breaks: 'dead-accepted' },
  'wait-from-begin': { what: 'a rotation counts its wait from BEGIN, and not from COMMIT', breaks: 'dead-accepted' },
  'own-lease': { what: 'a rotation waits for the lease its server was started with, not for the one in force', breaks: 'dead-accepted' },
  'settled-at-once': { what: 'a repeated rotation does not wait when the first answer is still waiting', breaks: 'dead-accepted' },
  'lease-from-relay': {
    what: 'verifiers believe what Redis says for one lease from when it says it, and Redis keeps it for a minute',
    breaks: 'dead-accepted',
  },
  'cache-clock-trusted': { what: 'a lease that comes through Redis ends by the clock of Redis alone', breaks: 'dead-accepted' },
  'wall-clock-lease': { what: 'leases are measured on the wall clock alone, which can be set back', breaks: 'dead-accepted' },
  'grace-outlived': { what: 'a lease outlives the grace period by 300 ms', breaks: 'dead-accepted' },
  'first-use-ignored': { what: 'the first use of a new secret does not end the old one', breaks: 'dead-accepted' },
  'not-recorded': { what: 'the answer of a rotation is not written down', breaks: 'locked-out' },
  'record-not-read': { what: 'the answer of a rotation is written down and not looked for', breaks: 'locked-out' },
  'active-only': {
    what: 'a rotation looks up active secrets only, so that the retry of one that was carried out finds nothing',
    breaks: 'locked-out',
  },
  'not-idempotent': { what: 'a repeated rotation is carried out again', breaks: 'generations' },
  'regenerated-on-replay': { what: 'a replay carries another secret than the first answer', breaks: 'one-secret' },
  '401-on-store-down': { what: 'a secret that cannot be looked up counts as unknown', breaks: 'live-refused' },
  'count-replays': { what: 'an answer is given again five times, and not a sixth time', breaks: 'locked-out' },
  'early-lowering': { what: 'when the lease is lowered, the longer one of before is taken to be over at once', breaks: 'dead-accepted' },
  'body-after-await': {
    what: 'the router begins to read a body after something was awaited, and takes what is gone by then for empty',
    breaks: 'live-refused',
  },
  'stays-down': { what: 'a server that once could not ask its store never asks it again', breaks: 'not-healed' },
} as const

export type Plant = keyof typeof plants
