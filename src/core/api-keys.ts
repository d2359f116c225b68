import type { Cache } from '../cache/cache.js'
import type { ApiKeyError, ApiKeyErrorCode, RejectionReason } from '../errors.js'
import type { Environment, JsonObject, Store } from '../store/store.js'
import type { RequestShape } from './change/replay-seal.js'
import type { Clock } from './clock.js'
import type { ImportOptions, ImportResult } from './import/importer.js'
import type { ApiKey, CreateInput, ImportRow, KeyChanges, KeyEvent, KeyQuery, Page, RetirePolicy } from './key.js'
import type { LegacyFormat } from './legacy-format.js'

/** What `createApiKeys` takes. */
export interface ApiKeysOptions {
  /** Where keys live: `postgresStore(pool)`, `sqliteStore(database)`, `sqlStore(kysely)`, `memoryStore()` or your own. */
  store: Store
  /**
   * At least 32 bytes, or `[current, …previous]`. Seals replay records and authenticates cache entries. Losing it loses
   * pending replays, never keys. To change it, first deploy `[old, new]` everywhere, then `[new, old]`.
   */
  serverSecret: string | Uint8Array | readonly (string | Uint8Array)[]
  /** `redisCache(client)`, or nothing: every promise holds without it. */
  cache?: Cache | undefined
  /** What every new secret begins with. Lower-case letters, digits and `_`, at most 32, not `rot` or `rot_…`. Default `sk`. */
  prefix?: string | undefined
  /**
   * Other prefixes whose keys are good here too: earlier ones of this application, or those of another instance over the same store. A key keeps the prefix
   * it was made with through every rotation. Default none.
   */
  acceptedPrefixes?: readonly string[] | undefined
  /** Forms of secrets that were issued elsewhere, made by `legacyFormat`. The first that matches a secret counts, after those of this package. Default none. */
  legacyFormats?: readonly LegacyFormat[] | undefined
  /** Whether new secrets name their environment after the prefix (`sk_live_…`). Keys of either form are accepted. Default true. */
  environmentInSecret?: boolean | undefined
  /**
   * For how long an instance that cannot be reached may still rely on what it has read, in milliseconds: 50 to 60,000. A rotation waits that long only where an
   * instance does not answer. While there is traffic, each instance reads the store about once in 0.6 of it. Default 1,000.
   */
  leaseMs?: number | undefined
  /** How long a lost answer can be asked for again, in milliseconds from the commit: 1,000 to 86,400,000. Default 600,000. */
  replayWindowMs?: number | undefined
  /** How long after its first use a new secret's replay stays open, in milliseconds: 0 to 600,000. Default 10,000. */
  replayGraceMs?: number | undefined
  /** Set to false to answer a rotation right after COMMIT; the answer then says in `acceptedUntil` how long the old secret may still work. Default true. */
  waitForLease?: boolean | undefined
  /**
   * Whether instances are asked to say that they know of a change, so that it is answered within milliseconds. Set to false where processes freeze between requests, as on
   * serverless platforms: changes then wait for `leaseMs`. The lowest of all instances over a store counts. Default true.
   */
  recall?: boolean | undefined
  /** How many secrets one process remembers as good, 100 to 1,000,000; the one that was read first goes first. Each takes about 1 KB. Default 100,000. */
  maxKnownSecrets?: number | undefined
  /**
   * How far ahead the expiry of a key may be when the key is made, and whenever its expiry is changed, in milliseconds: 60,000 to 100 years. Who asks does not
   * matter. A key that is made without `expiresAt` gets the latest one; `null` is refused. Rotations keep the expiry. Keys that live for longer already keep
   * theirs, or get an earlier one. Give the same to every instance. Default no bound.
   */
  maxLifetimeMs?: number
  /**
   * Hears of trouble that no answer tells of: each fault of the store once per cause and minute, with the driver's error as `cause`; a bug behind a 500; a
   * set-up that cannot keep a promise. What it throws, or rejects with, goes to stderr. Default: one line on stderr.
   */
  onError?: ((error: ApiKeyError) => unknown) | undefined
  /** For tests. Default: the machine's clocks. */
  clock?: Clock | undefined
}

/**
 * Who asks for a change. `application`: the program itself, which may do everything. `{ secret }`: whoever presents this secret; it is authenticated at
 * the authority, inside the transaction. `{ operator }`: a person or back office that is authenticated already (`operatorJwt`).
 */
export type Actor = 'application' | { readonly secret: string } | { readonly operator: Operator }

/** What every command that changes something takes. */
export interface Command {
  /** Who asks. There is no default: a command without it is refused. */
  as: Actor
  /**
   * Makes a retry safe: 1 to 255 visible ASCII characters. The same caller with the same value gets one change and one answer. For the application and for
   * operators, whose answers are sealed without a secret of theirs, at least 22 characters, made at random (a UUID will do).
   */
  idempotencyKey?: string | undefined
  /** What a retry must repeat exactly; a difference is `idempotency_key_mismatch`. Default: the command itself. */
  request?: RequestShape | undefined
  /** Whether only the answer of an earlier request may be given, and anything else is `rate_limited`. Default false. */
  replayOnly?: boolean | undefined
  /** Where the request came from, for the audit trail. */
  origin?: Origin | undefined
  /**
   * How far `api_keys:write` of a key reaches. `bounded`: it creates, changes and rotates only what it could be itself. `open`: any key of its owner and
   * environment, as some published contracts have it. Default `bounded`.
   */
  delegation?: 'bounded' | 'open' | undefined
}

export type CreateCommand<Metadata extends object = JsonObject> = Command &
  Omit<CreateInput<Metadata>, 'ownerId' | 'metadata'> &
  MetadataField<Metadata> & {
    /** 1 to 255 characters. A key makes keys for its own owner, and may leave it out. */
    ownerId?: string
  }

/** `metadata` may be left out where no member of its type is required. */
export type MetadataField<Metadata extends object> =
  Record<never, never> extends Metadata ? Pick<CreateInput<Metadata>, 'metadata'> : Required<Pick<CreateInput<Metadata>, 'metadata'>>

export interface RotateCommand extends Command, RotateOptions {
  /** Which key it is about. Default: the key that the presented secret belongs to. */
  id?: string
  /**
   * For a rotation of the presented key itself without an Idempotency-Key: the network that the request came from. The answer can then be asked for again
   * with the same secret from the same network, for 60 s at most and until the new secret is first used. Whoever holds a leaked key in the same
   * network could ask for it too. Default: it cannot be asked for again.
   */
  retryFrom?: string
}

/** How a rotation is done. */
export interface RotateOptions {
  /** The rotation secret of the caller's own key. A key that has one cannot rotate itself without it. */
  rotationSecret?: string | undefined
  /** When the old secret stops being accepted. Default `now`. */
  retire?: RetirePolicy | undefined
  /**
   * Both credentials are compromised: ends a grace period too, burns every answer that could still be asked for, and its own answer can never be asked
   * for again. Default false.
   */
  emergency?: boolean | undefined
  /**
   * When the key expires from now on; null for never. Default: as before. A key that rotates itself may only come to an earlier end, unless it has
   * `api_keys:admin`.
   */
  expiresAt?: string | Date | null | undefined
  /** `same`: the key keeps its id. `successor`: a new key with a new id takes its place, and the old one is revoked. Default `same`. */
  identity?: 'same' | 'successor' | undefined
  /** Whether a key needs `api_keys:write` even to rotate itself. Default false. */
  scopeRequired?: boolean | undefined
  /** Whether a rotation secret stays as it is, for whoever has no way to hand out a new one. Default false: it is rotated together with the key. */
  keepRotationSecret?: boolean | undefined
}

/** Somebody who is not a key: a person or a back office, as an access token names them. */
export interface Operator {
  /** Who says so. */
  readonly issuer: string
  /** Who it is, for the audit trail; 1 to 255 characters. */
  readonly subject: string
  readonly scopes: readonly string[]
  /** The owners whose keys it may see and change, or `all`. */
  readonly owners: readonly string[] | 'all'
  /** What it may hand out: keys that it creates, changes or rotates have no scope and no environment beyond these. Default nothing. */
  readonly grants?: Grants
}

/** Scopes and environments; a scope that ends in `:*` covers what begins with the rest, and `*` covers all but `api_keys:admin`. */
export interface Grants {
  readonly scopes: readonly string[]
  readonly environments: readonly Environment[]
}

export interface RevokeCommand extends Command {
  /** Which key it is about. Default: the key that the presented secret belongs to. */
  id?: string
  /** 1 to 255 characters. */
  reason?: string | undefined
}

export interface UpdateCommand<Metadata extends object = JsonObject> extends Command {
  /** Which key it is about. Default: the key that the presented secret belongs to. */
  id?: string
  changes: KeyChanges<Metadata>
}

/** The answer of a change. */
export interface ChangeResult<Metadata extends object = JsonObject> {
  readonly key: ApiKey<Metadata>
  /** Whether this is the answer of an earlier request with the same Idempotency-Key. */
  readonly replayed: boolean
  /** Until when what it replaced may still be accepted (RFC 3339): the end of a grace period, or with `waitForLease: false` that of the last lease. */
  readonly acceptedUntil?: string
}

/**
 * The answer of `create` and `rotate`: the only moment a secret exists outside its client. `util.inspect` shows it redacted, and `JSON.stringify` throws, so
 * that it is neither logged nor lost: send `{ secret: issued.secret, … }`.
 */
export interface IssuedKey<Metadata extends object = JsonObject> extends ChangeResult<Metadata> {
  readonly secret: string
  /** The new rotation secret, where the key has one. */
  readonly rotationSecret?: string | undefined
}

export interface Verified<Metadata extends object = JsonObject> {
  readonly ok: true
  readonly key: ApiKey<Metadata>
  /** Only for a secret in its grace period: when it was replaced, and when it stops being accepted (RFC 3339). */
  readonly grace?: { readonly replacedAt: string; readonly expiresAt: string }
  /**
   * Whether this result may be acted on right now. Ask right before that, with no `await` between: it is what keeps a paused process from accepting a dead
   * secret. Where nothing but this result could be had, the answer is yes once, and only in the turn of the event loop that `verify` resolved in.
   */
  live(): boolean
  /**
   * Fires when the key is not good any more, for what lasts longer than a request: it was rotated, revoked or has expired, its grace period is over, or what
   * it may do was changed (any field but its name and expiry). At the latest one lease after the change was made, or 30 s where the store cannot be read; its `reason`
   * is the `ApiKeyError`. Also at `close()`. All verdicts on a secret share one; whoever never asks for it pays nothing.
   */
  readonly signal: AbortSignal
}
export interface Rejected {
  readonly ok: false
  readonly reason: RejectionReason
}
export type VerifyResult<Metadata extends object = JsonObject> = Verified<Metadata> | Rejected

/** What can be listened to with `on`: after a change is committed, and after a refusal is in the audit trail. */
export interface KeyListeners {
  created: (happened: KeyHappening) => void
  updated: (happened: KeyHappening) => void
  rotated: (happened: KeyHappening) => void
  replayed: (happened: KeyHappening) => void
  revoked: (happened: KeyHappening) => void
  disabled: (happened: KeyHappening) => void
  enabled: (happened: KeyHappening) => void
  /** A retired secret, a wrong rotation secret or a replay that does not open; `event.type` says which. */
  refused: (happened: KeyHappening) => void
  /** How long a change waited for other instances, and for which. */
  recalled: (recalled: Recalled) => void
  /** Any request that `bearerAuth` or `keyRouter` refused, with the reason that the client is not told. For logs and counts: nothing is written down. */
  denied: (denial: Denial) => void
}

/** How long a change had to wait for instances that might not know of it, and for which. */
export interface Recalled {
  /** The position in the feed of changes that shows it. */
  readonly position: number
  /** How many other instances there were. */
  readonly members: number
  /** How many of them said that they know. */
  readonly answered: number
  /** The sessions of those that did not; they are random, and stand in the table of instances. */
  readonly silent: readonly string[]
  /** From the commit, in milliseconds. */
  readonly waitedMs: number
  /** Whether it was over before the lease was. */
  readonly early: boolean
}

/** What `prune` removes; each is left out to keep all of that. Instants are a `Date`, or text as RFC 3339 has it. */
export interface PruneOptions {
  /** Events of the audit trail that are older. */
  eventsBefore?: Date | string
  /** Replay records that are older, and whose window is over. At least 24 hours ago, and the replay window: an Idempotency-Key from before may then be used once more. */
  replaysBefore?: Date | string
  /** Keys that were revoked earlier. Their secrets stay known as dead. */
  revokedBefore?: Date | string
  /** Keys that expired earlier. */
  expiredBefore?: Date | string
  /** Is called after each batch of 500. What it throws ends the pruning there. */
  onProgress?: (removed: Pruned) => void
}

/** How much was removed. */
export interface Pruned {
  readonly events: number
  readonly replays: number
  readonly keys: number
}

/** Whose keys, and who says so. */
export interface OwnerCommand {
  /** Who asks: the application, or an operator with `api_keys:admin` for this owner. */
  as: Actor
  ownerId: string
}

export interface Erased {
  readonly keys: number
  readonly events: number
  readonly replays: number
  /** Digests that are kept, so that nothing makes these secrets good again. A digest is no personal data without its secret. */
  readonly tombstones: number
}

/** Why a request was refused, for the server only. */
export interface Denial {
  readonly code: ApiKeyErrorCode
  /** Where the code is `invalid_key`: why. */
  readonly reason: RejectionReason | 'rotation_secret' | undefined
  /** The key that was refused, where that is known without asking the store. */
  readonly keyId: string | undefined
  readonly origin: Origin
}

export interface KeyHappening {
  /** The line of the audit trail. */
  readonly event: KeyEvent
  readonly key: ApiKey
}

/** Where a request came from, for the last use of a key and the audit trail. */
export interface Origin {
  readonly ip?: string | undefined
  readonly userAgent?: string | undefined
}

/** API keys without HTTP: what the router and the middleware are made of, for jobs and command lines. */
export interface ApiKeys<Metadata extends object = JsonObject> {
  /** Creates or upgrades the store's tables. Nothing else does. */
  migrate(): Promise<void>
  /**
   * Resolves when this instance can do its work: the store answers, from its primary, and its tables are there. Rejects otherwise (`store_unavailable`,
   * `store_misconfigured`). An answer holds for a second. The cache does not matter.
   */
  ready(): Promise<void>
  /** Issues a key. A retry with the same Idempotency-Key makes one key. */
  create(command: CreateCommand<Metadata>): Promise<IssuedKey<Metadata>>
  /**
   * Says whether a secret is good. Rejects (`store_unavailable`) only when no trustworthy answer can be had. `from.ip` is the address of the client: without one, a key
   * that has `allowedIps` is refused (`ip_not_allowed`).
   */
  verify(secret: string, from?: { ip?: string | undefined }): Promise<VerifyResult<Metadata>>
  /** The same without I/O and without a promise: undefined where only `verify` can tell. A `Verified` from here is live. */
  peek(secret: string, from?: { ip?: string | undefined }): VerifyResult<Metadata> | undefined
  /**
   * Replaces the active secret. Resolves once no instance accepts the old one. A retry with the same secret and Idempotency-Key
   * inside the replay window resolves with the same new secret, also when that very rotation retired the one presented.
   */
  rotate(command: RotateCommand): Promise<IssuedKey<Metadata>>
  /** Ends a key for good. Revoking a revoked key changes nothing. */
  revoke(command: RevokeCommand): Promise<ChangeResult<Metadata>>
  update(command: UpdateCommand<Metadata>): Promise<ChangeResult<Metadata>>
  /**
   * Brings keys in that were issued elsewhere: their secrets go on working, in the form that `legacyFormats` names. Rows that are there already stay as they are, so an import
   * that was stopped is begun again. A bad row is told by its number, and changes nothing. Rejects where the store cannot be asked; what is done by then stays.
   */
  import(rows: Iterable<ImportRow<Metadata>> | AsyncIterable<ImportRow<Metadata>>, options?: ImportOptions): Promise<ImportResult>
  /** Has a key refused (`disabled`) until it is enabled again. As strict as a revocation: resolves once no instance accepts it. Needs `api_keys:write`. */
  disable(command: RevokeCommand): Promise<ChangeResult<Metadata>>
  /** Ends that, and resolves once every instance accepts the key. A key cannot enable itself. */
  enable(command: RevokeCommand): Promise<ChangeResult<Metadata>>
  /** Removes what is old, in batches that hold no lock for long. Needs DELETE on the tables. What is removed is gone for good; secrets of removed keys stay known as dead. */
  prune(options: PruneOptions): Promise<Pruned>
  /** Revokes every key of an owner, those too that are made meanwhile, and resolves once no instance accepts any of them. */
  revokeAll(command: OwnerCommand & { reason?: string }): Promise<{ readonly revoked: number }>
  /** The same, and then removes all that is kept of them and of the owner: keys, audit trail, replay records. Bare digests stay. */
  erase(command: OwnerCommand): Promise<Erased>
  /** Resolves with the key, or undefined; `ownerId` narrows it to that owner's, and is refused when it is there and undefined. */
  get(id: string, scope?: { ownerId?: string }): Promise<ApiKey<Metadata> | undefined>
  /** Lists the keys that pass every filter, newest first; without `ownerId`, of all owners. */
  list(query: KeyQuery): Promise<Page<ApiKey<Metadata>>>
  /** Lists a key's audit trail, newest first; undefined where there is no such key. `limit` 1 to 100, default 50. */
  events(query: { id: string; ownerId?: string; cursor?: string; limit?: number }): Promise<Page<KeyEvent> | undefined>
  /** Listens for what happens to keys, in this process. Returns a function that ends it. What a listener throws goes to `onError`. */
  on<Name extends keyof KeyListeners>(name: Name, listener: KeyListeners[Name]): () => void
  /** Says whether a string has the shape and checksum of a secret of this instance, with no I/O. */
  wellFormed(secret: string): boolean
  /** Waits for commands under way, writes the last uses, then ends the timers and connections that were opened here. The application's own pool stays open. */
  close(): Promise<void>
}

/** API keys whatever their metadata looks like, for what does not care. */
// biome-ignore lint/suspicious/noExplicitAny: an application's own type of metadata is neither wider nor narrower than JSON
export type AnyApiKeys = ApiKeys<any>
