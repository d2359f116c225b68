import type { Channel } from '../channel.js'
import type { ApiKeyError } from '../errors.js'

/** A JSON value that metadata and event details may hold. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json }
export type JsonObject = { readonly [name: string]: Json }

export type Environment = 'live' | 'test'

/** A key as a store keeps it. Every instant is in milliseconds since the epoch, on the store's own clock. */
export interface KeyRow {
  readonly id: string
  readonly ownerId: string
  readonly name: string
  readonly environment: Environment
  readonly scopes: readonly string[]
  readonly metadata: JsonObject
  /** The addresses and networks that it may be used from, in one form only; null for any. */
  readonly allowedIps: readonly string[] | null
  /** The number of the active generation; 1 at creation, one more at each rotation. */
  readonly generation: number
  readonly createdAt: number
  readonly updatedAt: number
  readonly expiresAt: number | null
  /** Since when it is disabled; null while it is not. Unlike a revocation, that can be taken back. */
  readonly disabledAt: number | null
  readonly revokedAt: number | null
  readonly revokedReason: string | null
  /** The id of the key that took this one's place; null unless a rotation gave it a successor. */
  readonly rotatedTo: string | null
  /** What may be shown of the active secret: everything before its random part, and its last four characters. */
  readonly secretStart: string
  readonly secretLast4: string
  /** When the active secret was made. */
  readonly secretCreatedAt: number
  /** The latest request that is known of, to about a minute; null before the first. */
  readonly lastUsedAt: number | null
  readonly lastUsedIp: string | null
  readonly lastUsedUserAgent: string | null
}

/** One secret of a key, known by its digest only. */
export interface GenerationRow {
  /** SHA-256 of the secret, base64url without padding: 43 characters. */
  readonly digest: string
  /** The digest itself where this is a tombstone: all that is left of a secret whose key was removed. */
  readonly keyId: string
  readonly generation: number
  readonly createdAt: number
  /** When it was retired; it is still accepted where there is a grace period. */
  readonly retiredAt: number | null
  /** Until when it is accepted although it is retired; null where it is not, also once a grace period was ended before its time. */
  readonly graceEndsAt: number | null
  /** The id of the replay record of the change that retired it; null while active or where there was no Idempotency-Key. */
  readonly retiredBy: string | null
  readonly retiredReason: 'rotated' | 'revoked' | null
  /** When a verifier first met this secret; null until then. */
  readonly firstUsedAt: number | null
  /** Whether its first use ends the grace period of the generation before it, and no verifier has waited out the leases of that one yet. */
  readonly retiresEarlier: boolean
  /** The bcrypt hash of the rotation secret that was issued together with it; null where there is none. */
  readonly rotationSecretHash: string | null
  /** What may be shown of the secret: everything before its random part, and its last four characters. */
  readonly secretStart: string
  readonly secretLast4: string
}

/** The sealed answer of a finished change. */
export interface ReplayRow {
  /** HMAC of the caller and the Idempotency-Key, base64url; the Idempotency-Key itself is never stored. */
  readonly id: string
  readonly callerId: string
  readonly keyId: string
  /** The generation that the change made; null where it made none (revoke, update). */
  readonly generation: number | null
  /** HMAC of the request, base64url. */
  readonly fingerprint: string
  /** Salt, IV and ciphertext, base64url; null once erased (burnt): it can then never be replayed. */
  readonly sealed: string | null
  readonly createdAt: number
  /** For how long the answer can be asked for, in milliseconds from the commit. */
  readonly windowMs: number
  /** For how long after the first use of the secret that was made it can still be asked for, in milliseconds. */
  readonly graceMs: number
  /**
   * When the window ends. A commit may take long and its instant is known only afterwards, so this begins as `createdAt + windowMs` and ten minutes, and
   * `settle` moves it to the commit and `windowMs`.
   */
  readonly expiresAt: number
  /** When the change had waited out every lease; null before. */
  readonly settledAt: number | null
}

/** What the authority said about some replay records, from one consistent read. */
export interface ReplayAnswer {
  /** The store's clock, no later than the read's snapshot. */
  readonly at: number
  /** The longest lease that a verifier may hold on the word of before this read. */
  readonly waitMs: number
  /** The records that exist, each with the generation that its change made (undefined where it made none). */
  readonly found: readonly { readonly record: ReplayRow; readonly made: GenerationRow | undefined }[]
}

/** What `setLease` found. */
export interface LeaseChange {
  /** How long an earlier, longer lease may still be held, from now; 0 where none can be. */
  readonly waitMs: number
  /** Names the lowering behind that, for `settleLease`. */
  readonly version: number
}

export type EventType =
  | 'key.created'
  | 'key.imported'
  | 'key.updated'
  | 'key.rotated'
  | 'key.revoked'
  | 'key.disabled'
  | 'key.enabled'
  | 'key.replayed'
  | 'key.replay_refused'
  | 'key.retired_secret_refused'
  | 'key.rotation_secret_refused'

/** One line of the audit trail. */
export interface EventRow {
  readonly id: string
  readonly keyId: string
  readonly ownerId: string
  readonly type: EventType
  readonly at: number
  /** Who did it: `key:<id>`, `operator:<subject>@<issuer>` or `system`. */
  readonly actor: string
  readonly ip: string | null
  readonly userAgent: string | null
  readonly details: JsonObject
}

/** A place in the feed of changes: the number of a change, and what tells it from a change of that number in another history of the same data. */
export interface FeedPosition {
  /** 0 before the first change; one more at each. Numbers follow the order in which changes become visible, without gaps. */
  readonly seq: number
  /** 16 random bytes, base64url: 22 characters. */
  readonly tag: string
}

/** A change that altered verdicts. */
export interface FeedChange extends FeedPosition {
  /** The digests whose verdicts may be others from here on. */
  readonly digests: readonly string[]
}

/** Who reads the authority, and how far it has followed the feed. */
export interface FeedReader {
  /** Its session, where it has joined. */
  readonly session?: string | undefined
  /** The `seq` of its position; undefined where it has none yet, and wants no changes. */
  readonly after?: number | undefined
}

/** The feed, in the snapshot of a read. */
export interface FeedAnswer extends FeedPosition {
  /** Changes up to this number may be gone. */
  readonly prunedTo: number
  /** The tag of the change at `after`, as the store has it; undefined where there is no such row (any more), or none was asked for. */
  readonly tagAfter: string | undefined
  /** The changes after `after`, oldest first, at most 1,000. They reach `seq` unless there are more. */
  readonly changes: readonly FeedChange[]
}

/** How an instance hears of changes. `recall`: it says when it knows of one. `feed`: it only reads, and changes wait for its lease. */
export type MemberMode = 'recall' | 'feed'

/** An instance that may hold a lease on the feed. */
export interface Member {
  /** Random; never the name of a machine. */
  readonly session: string
  readonly mode: MemberMode
  /** The names of the channels on which it hears recalls, such as `redis`; empty where it only reads. */
  readonly channels: readonly string[]
}

/** A member, as the store has it. */
export interface MemberRow extends Member {
  /** Whether it is granted no lease any more: it was waited for in vain. */
  readonly revoked: boolean
  /** Up to which change it has said, by `acknowledge`, that it knows. 0 at first. */
  readonly acked: number
  /** On the store's clock. */
  readonly joinedAt: number
}

/** Everybody whom a change may have to wait for, from one consistent read. */
export interface Membership extends FeedPosition {
  /** The store's clock. */
  readonly at: number
  readonly storeId: string
  readonly server: string | undefined
  /** The longest lease that may be held, and whether that is one from before a lowering. */
  readonly waitMs: number
  readonly lowered: boolean
  /** The tag of the change that was asked for; undefined where there is no such row (any more), or none was asked for. */
  readonly tagAfter: string | undefined
  /** All of them, the revoked ones too. */
  readonly members: readonly MemberRow[]
}

/** What the authority said about some digests, from one consistent read. */
export interface AuthorityAnswer {
  /**
   * The store's clock, taken no later than the read's snapshot. Every change that this read does not show is
   * committed after it. Only what ends by itself (an expiry, a grace period) is judged by it.
   */
  readonly at: number
  /** Names the data, the same for every instance over it and for no other; made at random by `migrate`. */
  readonly storeId: string
  /**
   * Names the server that answered, so that a fail-over or a restart shows: for PostgreSQL the start of the postmaster and the timeline. Undefined where that cannot be told;
   * then no change is answered before the leases are over.
   */
  readonly server: string | undefined
  /** For how long, from before this read was sent, the reader may rely on having followed the feed up to `feed.seq`. */
  readonly leaseMs: number
  readonly feed: FeedAnswer
  /** What the store knows of the reader's session; `none` also where the reader named none. Only an `active` reader is granted the lease. */
  readonly member: 'active' | 'revoked' | 'none'
  /** One entry per digest that exists; a digest without one is unknown. */
  readonly found: readonly { readonly key: KeyRow; readonly generation: GenerationRow }[]
}

/** One use of a key, as it is written behind. */
export interface KeyUse {
  readonly keyId: string
  readonly agoMs: number
  readonly ip: string | null
  readonly userAgent: string | null
}

/** A place in a listing: rows strictly after (older than) this one. */
export interface Position {
  readonly at: number
  readonly id: string
}

/** Which keys a listing shows. Each that is there narrows it further; without any it shows all. */
export interface KeyFilters {
  readonly ownerId?: string
  /** By the store's clock. A revoked key is revoked, also once it would have expired, and so is a disabled one. */
  readonly status?: 'active' | 'disabled' | 'expired' | 'revoked'
  readonly environment?: Environment
  /** Keys whose expiry is earlier. A key that never expires is not among them. */
  readonly expiresBefore?: number
  /** Keys whose last use is earlier; of a key that was never used, whose creation is. */
  readonly lastUsedBefore?: number
  /** Text somewhere in the name. A to Z stand for a to z too, and no character is a wildcard. */
  readonly name?: string
  /** The last four characters of the active secret. */
  readonly last4?: string
}

/** Which keys housekeeping is about. Each that is there narrows it further. */
export interface KeyChoice {
  readonly ownerId?: string
  /** Keys that nobody has revoked. */
  readonly unrevoked?: true
  /** Keys that were revoked earlier. */
  readonly revokedBefore?: number
  /** Keys whose expiry is earlier. */
  readonly expiredBefore?: number
}

/** Which lines of the audit trail. Each that is there narrows it further. */
export interface EventChoice {
  readonly ownerId?: string
  /** Lines from this instant on. */
  readonly since?: number
  /** Lines that are older. */
  readonly before?: number
}

/** What `removeKeys` removed. */
export interface RemovedKeys {
  /** How many keys there were. */
  readonly keys: number
  /** How many replay records. */
  readonly replays: number
  /** How many digests are left as tombstones. */
  readonly tombstones: number
  /** Those of them that were not retired, or had a grace period: a verifier may know of them as good. */
  readonly digests: readonly string[]
}

/**
 * Where keys live: the authority. `storeContract` in `express-api-keys/testing` judges an implementation.
 *
 * Every method rejects with `ApiKeyError('store_unavailable')` (with its `cause`) when the store cannot be asked,
 * and does so in bounded time; with `store_misconfigured` where only a person can end that. A store that may answer from a stale copy (a standby) must reject instead.
 */
export interface Store {
  /** Whether another process can see the same data. Only then must a rotation wait for leases to run out. */
  readonly shared: boolean

  /** Creates or upgrades what the store needs; safe to run from several processes at once, and again. */
  migrate(): Promise<void>

  /**
   * Answers for up to 100 distinct digests, or for none, from the primary, together with what has changed: in one statement outside of any transaction, so that
   * all of it is of one moment, and that moment is later than the call. Rejects where a standby answers, and where the session may show an older snapshot.
   */
  read(digests: readonly string[], reader?: FeedReader): Promise<AuthorityAnswer>

  /**
   * The position of the last committed change, without I/O that can wait, for a store that every process can look into at once. Where a store has this, it is asked
   * before each request is accepted, and nobody needs a lease. Undefined where it cannot be told right now.
   */
  currentPosition?(): FeedPosition | undefined

  /** Adds a member, as durably as a change. Joining again with the same session changes nothing. */
  join(member: Member): Promise<void>

  /** Removes a member that holds no lease any more and will ask for none. */
  leave(session: string): Promise<void>

  /** Whom a change that is committed by now may have to wait for. One statement outside of any transaction, from the primary. `after` asks for `tagAfter`. */
  members(after?: number): Promise<Membership>

  /** Notes that a member knows of all changes up to this one, if the feed has it; never lowers what was noted. */
  acknowledge(session: string, position: FeedPosition): Promise<void>

  /** Has these members be granted no lease any more, as durably as a change. */
  revokeMembers(sessions: readonly string[]): Promise<void>

  /** Removes those of these members that are revoked. The caller has known them to be for as long as a lease and a margin. */
  removeMembers(sessions: readonly string[]): Promise<void>

  /** Forgets old changes, never the newest: those beyond the newest 10,000, and those older than ten minutes beyond the newest 1,000. */
  pruneFeed(): Promise<void>

  /** A way to reach other instances at once through the store, such as NOTIFY. Optional. */
  channel?(): Channel

  /**
   * Finds up to 100 replay records by their ids, as committed at the time of this call, from the primary. Locks nothing: this is how a client asks for
   * an answer that was lost, and how a stranger guesses at one.
   */
  replays(ids: readonly string[]): Promise<ReplayAnswer>

  /**
   * Runs `work` atomically, at READ COMMITTED or stricter with locks held to the end, and resolves with its result
   * once that is durable. What `work` throws rolls everything back and is rethrown as it is; `work` is never run twice.
   * Rejects with `store_unavailable` when nothing was committed, and with `outcome_unknown` only when COMMIT had been sent
   * and its answer was lost.
   */
  transaction<T>(work: (tx: StoreTransaction) => Promise<T>): Promise<T>

  /** Resolves with the key, whatever its state, and its newest generation. */
  key(id: string): Promise<{ key: KeyRow; generation: GenerationRow } | undefined>

  /** Lists the keys that pass every filter, newest first (by `createdAt`, then `id`, both descending). */
  keys(query: KeyFilters & { after?: Position | undefined; limit: number }): Promise<readonly KeyRow[]>

  /** Lists a key's events, newest first (by `at`, then `id`, both descending). */
  events(query: { keyId: string; after?: Position | undefined; limit: number }): Promise<readonly EventRow[]>

  /** Finds the ids of up to `limit` such keys, in any order. */
  keyIds(choice: KeyChoice, limit: number): Promise<readonly string[]>

  /** Lists events of all keys, oldest first (by `at`, then `id`). */
  trail(query: EventChoice & { after?: Position | undefined; limit: number }): Promise<readonly EventRow[]>

  /**
   * Removes up to `limit` such events, the oldest first, and resolves with how many there were. Where they are those of an owner, also removes the replay records about
   * the same keys, which may be gone already.
   */
  pruneEvents(
    choice: { readonly before: number } | { readonly ownerId: string },
    limit: number,
  ): Promise<{ events: number; replays: number }>

  /** Removes up to `limit` replay records that were made before this instant and whose window ended before it, and resolves with how many there were. */
  pruneReplays(before: number, limit: number): Promise<number>

  /** Has what was removed be gone from the store's files too, where they keep it in unused places. Optional. */
  scrub?(): Promise<void>

  /**
   * Sets `firstUsedAt` to the store's clock if it is null. Where the generation `retiresEarlier`, also ends, in the same transaction, the
   * grace period of every earlier generation of its key. Resolves with the digests that this ended or had ended
   * already, and with the longest lease that a verifier may hold on them; with none and 0 where it retires nothing.
   */
  markFirstUse(digest: string): Promise<{ readonly retired: readonly string[]; readonly waitMs: number }>

  /**
   * Sets `retiresEarlier` to false: the leases of the earlier generations are over. Changes nothing while one of them has a grace period: what `markFirstUse` did was then
   * lost in between, together with a server or by a restore, and has to be done again.
   */
  settleFirstUse(digest: string): Promise<void>

  /**
   * Writes the last use of some keys. `agoMs` is how long before this call it was, so that `lastUsedAt` is on the store's clock. A key
   * whose `lastUsedAt` is later already, or that does not exist, stays as it is. Of several uses of one key the latest counts.
   */
  recordUses(uses: readonly KeyUse[]): Promise<void>

  /**
   * Sets `settledAt` of a record to the store's clock if it is null, and with it `expiresAt` to `windowMs` after the commit, which was `agoMs` before this
   * call; never to a later instant than it was.
   */
  settle(replayId: string, agoMs: number): Promise<void>

  /** Erases the seal of every record whose window is over, or whose generation was first used at least its `graceMs` ago. */
  eraseSeals(): Promise<void>

  /**
   * Sets the lease that `read` grants from now on; setting the value already in force changes nothing. After a lowering the longer lease may still be
   * held, and `StoreTransaction.waitMs` goes on reporting it until `settleLease`. No clock ends that: the commit of the lowering may take any time,
   * and a clock may step.
   */
  setLease(leaseMs: number): Promise<LeaseChange>

  /** Ends what `setLease` began, unless there was another lowering since. The caller has waited `waitMs` and a margin after `setLease` answered. */
  settleLease(version: number): Promise<void>

  /**
   * Listens for trouble that no call reports, such as a lost idle connection; returns a function that stops that.
   */
  onFault?(listener: (fault: ApiKeyError) => void): () => void

  /** Closes what the store itself opened; a pool or handle that was passed in stays open. */
  close(): Promise<void>
}

/** What a transaction can do. Small steps; the order and the rules are the core's. */
export interface StoreTransaction {
  /** The store's clock at the time of this call, not at the transaction's start. */
  now(): Promise<number>

  /**
   * The longest lease that a verifier may hold at or after this call, in milliseconds. Takes a shared lock that keeps
   * `setLease` waiting until this transaction ends.
   */
  waitMs(): Promise<number>

  /** Waits until no other transaction holds this name, and holds it to the end of this one. Names are arbitrary text. */
  lockName(name: string): Promise<void>

  /** Finds a generation by digest whatever its state, as committed at the time of this call; locks nothing. */
  generation(digest: string): Promise<GenerationRow | undefined>

  /** Locks the rows of these keys in ascending order of id, waiting for other holders, and resolves with their current content. Unknown ids are left out. */
  lockKeys(ids: readonly string[]): Promise<readonly KeyRow[]>

  insertKey(row: KeyRow): Promise<void>
  /**
   * Writes the mutable fields of a locked key: `name`, `scopes`, `metadata`, `allowedIps`, `generation`, `updatedAt`, `expiresAt`, `disabledAt`, `revokedAt`, `revokedReason`,
   * `rotatedTo`, `secretStart`, `secretLast4`, `secretCreatedAt`. Leaves the last use alone: it is written behind, and what is in this row may be older.
   */
  updateKey(row: KeyRow): Promise<void>

  /** Inserts up to 500 keys, each with its one generation. Rejects when an id or a digest exists already. */
  insertKeys(rows: readonly { readonly key: KeyRow; readonly generation: GenerationRow }[]): Promise<void>
  /** Which of up to 500 digests have a generation, whatever its state, as committed at the time of this call; locks nothing. */
  knownDigests(digests: readonly string[]): Promise<readonly string[]>

  /** Rejects when the digest, or the key's generation number, exists already. */
  insertGeneration(row: GenerationRow): Promise<void>
  /**
   * Retires every generation of the key whose `retiredAt` is null, and ends every grace period that is still running at `at`, in one conditional
   * write. What it retires gets the grace period that is given, or none. A grace period that is over by then loses its end, so that no clock that is
   * set back begins it again. Resolves with the digests of all that it changed, those that were over included: a verifier may still know of their
   * end, and its clock may be set back too.
   */
  retireGenerations(
    keyId: string,
    change: { at: number; by: string | null; reason: 'rotated' | 'revoked'; graceEndsAt?: number },
  ): Promise<readonly string[]>
  /**
   * Makes the grace period of a generation end at `to` where it ends at `from` and that is later; otherwise changes nothing. An end is never raised:
   * verifiers remember that a secret is over.
   */
  lowerGrace(keyId: string, generation: number, end: { readonly from: number; readonly to: number }): Promise<void>
  /** Finds a key's generation by its number. */
  generationOf(keyId: string, generation: number): Promise<GenerationRow | undefined>

  /** Finds the record that has one of these ids. */
  replay(ids: readonly string[]): Promise<ReplayRow | undefined>
  /** Rejects when the id exists already. */
  insertReplay(row: ReplayRow): Promise<void>
  /** Puts one seal in the place of another, unless there is a third or none by now; resolves with whether it did. */
  reseal(replayId: string, sealed: { readonly from: string; readonly to: string }): Promise<boolean>
  /** Erases the seal of every record about this key (`keyId`), and of every answer that it was given (`callerId`), but for the one named. */
  eraseReplays(keyId: string, exceptId: string | null): Promise<void>

  appendEvent(row: EventRow): Promise<void>
  /** The same for up to 500. */
  appendEvents(rows: readonly EventRow[]): Promise<void>

  /**
   * Revokes those of these locked keys, up to 500, that are not, as of `at`: writes `revokedAt`, `revokedReason` and `updatedAt` (later than before in any case), retires their
   * generations as `retireGenerations` does, and erases the seals of every record about them and of every answer that they were given. Resolves with the digests that it changed.
   */
  endKeys(ids: readonly string[], change: { at: number; reason: string | null }): Promise<readonly string[]>
  /**
   * Removes these locked keys, up to 500, for good. Of their generations a tombstone is left: the digest, with itself as `keyId`, generation 0, and nothing else, so that no
   * generation can have this digest again, and no read finds a key for it. With `replays: 'removed'` the records about the keys go too; with `'kept'` they stay without
   * seal and `callerId`, and refuse what they stand for.
   */
  removeKeys(ids: readonly string[], replays: 'kept' | 'removed'): Promise<RemovedKeys>

  /**
   * Says that verdicts about these digests change with this transaction. The store adds one change to the feed, with the digests of all calls, as the last thing before
   * COMMIT, under a lock that is held until the transaction is visible. A transaction that fails adds none.
   */
  appendChange(digests: readonly string[]): Promise<void>
}
