/**
 * Ways to break the system under test on purpose, and the rule that each breaks: a run that does not notice is a run that proves nothing. What only the lease guards
 * against is planted in servers that nobody asks (`recall: false`): where all answer a recall, no lease is relied on.
 */
export const plants = {
  'deadline-ignored': { what: 'verifiers let in whoever they have let in before, whenever that was', breaks: 'dead-accepted' },
  'longer-verifier-lease': {
    what: 'verifiers rely on an answer for three times as long as rotations wait',
    breaks: 'dead-accepted',
    unasked: true,
  },
  'no-wait': { what: 'a rotation answers right after COMMIT, without waiting for the leases', breaks: 'dead-accepted' },
  'short-wait': { what: 'a rotation waits for a quarter of the lease in force', breaks: 'dead-accepted', unasked: true },
  'wait-from-begin': { what: 'a rotation counts its wait from BEGIN, and not from COMMIT', breaks: 'dead-accepted', unasked: true },
  'own-lease': {
    what: 'a rotation waits for the lease its server was started with, not for the one in force',
    breaks: 'dead-accepted',
    unasked: true,
  },
  'settled-at-once': { what: 'a repeated rotation does not wait when the first answer is still waiting', breaks: 'dead-accepted' },
  'ack-before-drop': { what: 'an instance says that it knows of a change, and drops what it knows 1.5 s later', breaks: 'dead-accepted' },
  'any-ack-will-do': { what: 'what answers an earlier recall is taken to answer the latest', breaks: 'dead-accepted' },
  'deadline-from-reply': {
    what: 'the lease begins when the answer comes, and not before it is asked for',
    breaks: 'dead-accepted',
    unasked: true,
  },
  'members-before-commit': { what: 'a change waits for those who were members at the change before it', breaks: 'dead-accepted' },
  'one-step-reaping': { what: 'who is suspected is removed from the members at once', breaks: 'dead-accepted' },
  'membership-not-looked-at': { what: 'an instance takes leases that it is not granted any more', breaks: 'dead-accepted', unasked: true },
  'tag-not-compared': { what: 'an instance goes on from its position in the feed when the data are others', breaks: 'dead-accepted' },
  'relay-from-ahead': { what: 'what Redis holds of a position that the instance has not seen is taken', breaks: 'dead-accepted' },
  'relay-of-any-position': { what: 'what Redis holds is taken, whatever has changed since', breaks: 'dead-accepted' },
  'wall-clock-lease': {
    what: 'leases are measured on the wall clock alone, which can be set back',
    breaks: 'dead-accepted',
    unasked: true,
  },
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
  'early-lowering': {
    what: 'when the lease is lowered, the longer one of before is taken to be over at once',
    breaks: 'dead-accepted',
    unasked: true,
  },
  'body-after-await': {
    what: 'the router begins to read a body after something was awaited, and takes what is gone by then for empty',
    breaks: 'locked-out',
  },
  'stays-down': { what: 'a server that once could not ask its store never asks it again', breaks: 'not-healed' },
} as const

export type Plant = keyof typeof plants

/** Whether the servers that this is planted in ask each other. */
export function areAsked(plant: Plant | undefined): boolean {
  return plant === undefined || !('unasked' in plants[plant])
}
