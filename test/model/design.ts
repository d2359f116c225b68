/**
 * The rules of the feed and the recall that a mistake can be made in, each with the value that it has in the design. The numbers are those of
 * the rules in feed-model.ts.
 */
export interface Design {
  /** R13. Whether a change waits beyond the longest lease, for clocks that run at different speeds. */
  readonly margin: 'as long as clocks drift' | 'none'
  /** R4. Where a read may be answered: by the primary, or also by a standby that lags. */
  readonly answeredBy: 'primary' | 'anyone'
  /** R5. What a lease counts from. */
  readonly leaseFrom: 'sent' | 'reply'
  /** R5. What a member is that an answer grants a lease to. */
  readonly leaseFor: 'active' | 'anyone'
  /** R5. Whether the reply to the registration grants a lease. */
  readonly joiningGrants: boolean
  /** R5. Whether an answer grants a lease whose changes do not reach its position. */
  readonly partGrants: boolean
  /** R5. What becomes of an answer that comes in when the lease it would grant is over. */
  readonly outlivedAnswers: 'dropped' | 'taken'
  /** R6. Which position an answer is compared with: the one that its read was sent with, or the one of now. */
  readonly comparedWith: 'sent' | 'now'
  /** R6. Whether an answer from another history than what was seen of the feed starts over. */
  readonly contradictionNoticed: boolean
  /** R7. Whether a feed that was pruned past the position starts over. */
  readonly pruningNoticed: boolean
  /** R7. Whether another tag at the position starts over. */
  readonly ownTagCompared: boolean
  /** R9. Whether `floor` rises when memory of changes is dropped. */
  readonly floorRises: boolean
  /** R10. Where `floor` starts. */
  readonly floorStarts: 'first answer' | 'zero'
  /** R10. What a relayed entry has to be: of a position that was seen with its tag, with any tag, or also one from ahead. */
  readonly relayed: 'seen' | 'any tag' | 'ahead too'
  /** R11. What `live()` looks at. */
  readonly liveLooksAt: 'the fact' | 'clocks'
  /** R12. Whether a request without a lease takes the answer of a read that was sent before it came in. */
  readonly joinsFlight: boolean
  /** R13. What the wait of a change counts from. */
  readonly waitFrom: 'commit answered' | 'begun'
  /** R14. When the members are read. */
  readonly membersRead: 'after commit' | 'before commit'
  /** R15. For how many times a lease and a margin the server must have been known before an early answer. */
  readonly serverKnownFor: 0 | 1 | 2
  /** R15. Whether an early answer needs that no longer V is in force. */
  readonly longerWatched: boolean
  /** R16. Whether members that only read the feed are waited for. */
  readonly feedMembersWaitedFor: boolean
  /** R16. Whether a replay of an unsettled record waits. */
  readonly replaysWait: boolean
  /** R17. What is done with a member that was waited for in vain. */
  readonly reaping: 'two steps' | 'one step'
  /** R17. Whether a revoked member is waited for until its last lease must be over. */
  readonly revokedWaitedFor: boolean
  /** R17. What tells a revocation that is known of from a later one of the same member. */
  readonly revocationKnownBy: 'mark' | 'session'
  /** R18. What an ack is matched by. */
  readonly acksBy: 'recall' | 'session only' | 'host and recall'
  /** R19. Whether a recall is remembered, so that reads in flight bring nothing back. */
  readonly recallRemembered: boolean
  /** R19. What else a recall does. */
  readonly recallMovesPosition: boolean
  /** R20. Which verifiers of a member a recall reaches. */
  readonly recallReaches: 'all' | 'the first'
  /** R22. What `close()` does first. */
  readonly closing: 'stops, then leaves' | 'leaves, then stops'
  /** R24. Whether an instance that does not know the protocol serves by leases of its own. */
  readonly strangers: 'refused' | 'served'
}

export const designed: Design = {
  margin: 'as long as clocks drift',
  answeredBy: 'primary',
  leaseFrom: 'sent',
  leaseFor: 'active',
  joiningGrants: false,
  partGrants: false,
  outlivedAnswers: 'dropped',
  comparedWith: 'sent',
  contradictionNoticed: true,
  pruningNoticed: true,
  ownTagCompared: true,
  floorRises: true,
  floorStarts: 'first answer',
  relayed: 'seen',
  liveLooksAt: 'the fact',
  joinsFlight: false,
  waitFrom: 'commit answered',
  membersRead: 'after commit',
  serverKnownFor: 2,
  longerWatched: true,
  feedMembersWaitedFor: true,
  replaysWait: true,
  reaping: 'two steps',
  revokedWaitedFor: true,
  revocationKnownBy: 'mark',
  acksBy: 'recall',
  recallRemembered: true,
  recallMovesPosition: false,
  recallReaches: 'all',
  closing: 'stops, then leaves',
  strangers: 'refused',
}

/** What there is, and what can happen to it. Each configuration switches on a few of these: all at once would be too many states. */
export interface World {
  readonly verifiers: number
  readonly rotators: number
  /** How many changes are made at most. */
  readonly changes: number
  readonly digests: number
  /** How many verifiers share one member and its poller. */
  readonly tables: number
  /** How many sessions a verifier uses at most; after the last one it serves nothing. */
  readonly sessions: number
  /** Whether the verifiers have joined when the story begins, have followed the feed so far, and a standby knows it. */
  readonly joined: boolean
  /** How many reads a verifier has in flight at most. */
  readonly flights: number
  /** Ticks of a lease. */
  readonly lease: number
  /** Ticks of the lease that is in force before somebody lowers it to `lease`; the same where nobody does. */
  readonly longerLease: number
  /** By how many ticks a clock falls short of what has passed since a lease began. */
  readonly drift: number
  /** How many changes an answer holds at most. */
  readonly page: number
  /** How many of the verifiers, the last ones, only read the feed. */
  readonly feedMembers: number
  /** Whether recalls are sent at all. */
  readonly recalls: boolean
  /** Whether acks can be written to the member's row. */
  readonly rowAcks: boolean
  /** Whether COMMIT can take time before it is answered. */
  readonly slowCommit: boolean
  /** Whether another process can take up a change that is committed and not answered. */
  readonly replays: boolean
  /** Whether who does not answer is suspected. */
  readonly suspicion: boolean
  /** Whether instances close. */
  readonly closing: boolean
  /** Whether a cache relays what others were answered. */
  readonly relays: boolean
  /** Whether memory of changes is dropped. */
  readonly forgetting: boolean
  /** Whether the feed is pruned. */
  readonly pruning: boolean
  /** Whether the store can come back as it was: failed over to a standby that lags, or restored from a dump. Once at most. */
  readonly setback: 'none' | 'fail-over' | 'restore'
  /** Whether a restore is over while leases from before it may be live. The design rests on this not being so. */
  readonly quickRestore: boolean
  /** Whether requests hold a verdict over a pause. */
  readonly held: boolean
  /** Whether requests without a lease are served by reads of their own. */
  readonly fallback: boolean
}

export const small: World = {
  verifiers: 1,
  rotators: 1,
  changes: 1,
  digests: 1,
  tables: 1,
  sessions: 1,
  joined: false,
  flights: 1,
  lease: 1,
  longerLease: 1,
  drift: 1,
  page: 9,
  feedMembers: 0,
  recalls: true,
  rowAcks: false,
  slowCommit: false,
  replays: false,
  suspicion: false,
  closing: false,
  relays: false,
  forgetting: false,
  pruning: false,
  setback: 'none',
  quickRestore: false,
  held: false,
  fallback: false,
}
