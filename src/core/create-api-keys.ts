import type { Cache, Counters } from '../cache/cache.js'
import type { Channel } from '../channel.js'
import { invalidOption, refuseUnknown } from '../options.js'
import type { JsonObject, Store } from '../store/store.js'
import { secretOf } from './actor.js'
import { isAllowedFrom } from './allowed-ips.js'
import type { ApiKeys, ApiKeysOptions, ChangeResult, Recalled, RevokeCommand, VerifyResult } from './api-keys.js'
import type { Change } from './change/change.js'
import { alteration, creation, disabling, enabling, revocation, rotation } from './change/changes.js'
import { replaySeals } from './change/replay-seal.js'
import { type RotationSecrets, rotationSecrets as rotationSecretsOf } from './change/rotation-secret.js'
import { type ChangeRunner, changeRunner } from './change/run-change.js'
import { checkedCommand, presentedWith, rotationPlan, targetOf, withoutCommon } from './command.js'
import { guardedStore } from './failures.js'
import { guardedCache } from './guarded-cache.js'
import { guardedChannel } from './guarded-channel.js'
import { housekeeping } from './housekeeping.js'
import { type Finder, finder } from './import/finder.js'
import { importer } from './import/importer.js'
import { changedFields, createFields, reasonText } from './input.js'
import { INTERNALS, type Internals, type Setup } from './internals.js'
import { changedKey, issuedKey } from './issued-key.js'
import type { KeyChanges } from './key.js'
import { hmac, subkey } from './keyed-hash.js'
import { keyUses } from './last-use.js'
import { type Lifecycle, lifecycle } from './lifecycle.js'
import { keyListeners, LISTENERS } from './listeners.js'
import { keyQueries } from './queries.js'
import { readiness } from './readiness.js'
import { Recalls } from './recall/recalls.js'
import { invalidRequest } from './refusals.js'
import { reports } from './report.js'
import { type Settings, settingsFrom } from './settings.js'
import { endedBecause, malformed, REJECTED } from './verify/verdict.js'
import { Verifier } from './verify/verifier.js'

/**
 * Makes API keys over a store: issue, verify, rotate, revoke. It connects to nothing and starts nothing by itself.
 *
 * @throws ApiKeyError `invalid_option` for an option that is missing, unknown or out of range, saying what to write instead.
 */
export function createApiKeys<Metadata extends object = JsonObject>(options: ApiKeysOptions): ApiKeys<Metadata>
// The last one is what ReturnType<typeof createApiKeys> goes by.
export function createApiKeys(options: ApiKeysOptions): ApiKeys
export function createApiKeys(options: ApiKeysOptions): ApiKeys {
  const settings = settingsFrom(options)
  const { format } = settings
  const engine = engineOf(settings)
  const { store, verifier, finder, recalls, listeners, life, internals } = engine
  const { command } = life
  const queries = keyQueries(store, settings.clock)
  const house = housekeeping({
    ...{ store, recalls, clock: settings.clock, replayWindowMs: settings.replayWindowMs },
    tell: (event, key) => listeners.tell(event, key),
  })
  const ready = readiness(store, settings.clock)
  const bringIn = importer({ store, clock: settings.clock, formats: settings.legacyFormats, forget: (digests) => verifier.forget(digests) })

  const keys: ApiKeys & { readonly [INTERNALS]: Internals } = {
    migrate: () =>
      command(async () => {
        await store.migrate()
        await verifier.declareLease()
        await recalls.meet()
      }),

    ready: () => command(ready),

    async verify(secret, from) {
      if (from !== undefined) refuseUnknown(from, ['ip'], 'verify', 'invalid_request')
      const digest = format.digestIn(secret)
      return digest === undefined ? malformed : fromAddress(await command(() => found(secret, digest)), from)
    },

    peek(secret, from) {
      if (from !== undefined && isPlain(from)) refuseUnknown(from, ['ip'], 'peek', 'invalid_request')
      const digest = format.digestIn(secret)
      const known = digest === undefined ? malformed : verifier.peek(digest)
      if (known === undefined || (!known.ok && known.reason === 'unknown' && finder.mayFind(secret, digest ?? ''))) return undefined
      return fromAddress(known, from)
    },

    ...commandsOf(settings, engine),
    import: (rows, options) => command(() => bringIn(rows as Parameters<typeof bringIn>[0], options)),

    prune: (options) => command(() => house.prune(options)),
    revokeAll: (asked) => command(() => house.revokeAll(asked)),
    erase: (asked) => command(() => house.erase(asked)),

    get: (id, scope) => command(() => queries.get(id, scope)),
    list: (query) => command(() => queries.list(query)),
    events: (query) => command(() => queries.events(query)),

    on(name, listener) {
      if (!LISTENERS.includes(name))
        throw invalidOption(`There is nothing called "${String(name)}" to listen for; there is ${LISTENERS.join(', ')}.`)
      if (typeof listener !== 'function') throw invalidOption('A listener must be a function.')
      return listeners.on(name, listener)
    },

    wellFormed,

    close: life.close,

    [INTERNALS]: internals,
  }
  return keys

  /** The verdict on a secret that the old system may be the only one to know. */
  async function found(secret: string, digest: string): Promise<VerifyResult> {
    const result = await verifier.verify(digest)
    if (result.ok || result.reason !== 'unknown' || !(await finder.find(secret, digest))) return result
    const again = await verifier.verify(digest)
    if (!again.ok && again.reason === 'unknown') finder.deny(digest)
    return again
  }

  function wellFormed(secret: unknown): secret is string {
    return typeof secret === 'string' && format.wellFormed(secret)
  }
}

/** What the commands of one `createApiKeys` share. */
interface Engine {
  readonly store: Store
  readonly verifier: Verifier
  readonly finder: Finder
  readonly recalls: Recalls
  readonly listeners: ReturnType<typeof keyListeners>
  readonly rotationSecrets: RotationSecrets
  readonly runner: ChangeRunner
  readonly life: Lifecycle
  readonly internals: Internals
}

function engineOf(settings: Settings): Engine {
  const { clock, format, serverSecrets } = settings
  const { report, reportStoreFault } = reports(settings.onError, clock)
  const store = guardedStore(settings.store)
  const cache = settings.cache && guardedCache(settings.cache, report)
  const listeners = keyListeners(report)
  const { verifier, recalls } = readPath({ settings, store, cache, tell: listeners.recalled, report })
  const finds = finder({ store, clock, report, formats: format, forget: (digests) => verifier.forget(digests) })
  const uses = keyUses(store, clock, report)
  const rotationSecrets = rotationSecretsOf(settings.environmentInSecret, clock)
  const { replayWindowMs, replayGraceMs, waitForLease } = settings
  const runner = changeRunner({
    ...{ store, clock, format, verifier, recalls, rotationSecrets, report, finder: finds },
    ...{ replayWindowMs, replayGraceMs, waitForLease },
    seals: replaySeals(serverSecrets),
    tell: listeners.tell,
  })
  const endFaults = store.onFault?.(report)
  const life = lifecycle({
    clock,
    reportStoreFault,
    eraseSeals: () => store.eraseSeals().catch(report),
    pruneFeed: () => store.pruneFeed().catch(report),
    begin: () => verifier.close(),
    async end() {
      await runner.idle()
      await verifier.idle()
      await uses.close()
      // Only now does nobody wait for this instance any more: it answered recalls to the end.
      await verifier.follower.leave().catch(report)
      recalls.close()
      endFaults?.()
      await cache?.close()
      await store.close()
    },
  })
  return { store, verifier, finder: finds, recalls, listeners, rotationSecrets, runner, life, internals: internalsFor() }

  function internalsFor(): Internals {
    return {
      used: (keyId, origin) => uses.note(keyId, origin),
      denied: (denial) => listeners.deny(denial),
      refused(secret, origin) {
        const digest = format.digestIn(secret)
        if (digest !== undefined) life.command(() => runner.auditRefusedSecret(digest, origin)).catch(report)
      },
      familiar(secret) {
        const digest = format.digestIn(secret)
        return digest === undefined ? undefined : verifier.familiar(digest)
      },
      async keyIdOf(secret) {
        const digest = format.digestIn(secret)
        if (digest === undefined) return undefined
        return verifier.familiar(digest) ?? life.command(() => metKey(verifier, digest)).catch(() => undefined)
      },
      report,
      clock,
      setup: setupOf(settings),
      counters: countersOf(cache, serverSecrets[0]),
    }
  }
}

interface ReadPathParts {
  readonly settings: Settings
  readonly store: Store
  readonly cache: Cache | undefined
  readonly tell: (recalled: Recalled) => void
  readonly report: (error: unknown) => void
}

/** What checks secrets, and what waits until every instance does so by the latest change: each asks the other. */
function readPath({ settings, store, cache, tell, report }: ReadPathParts): { readonly verifier: Verifier; readonly recalls: Recalls } {
  const { clock, serverSecrets, leaseMs, maxKnownSecrets, recall } = settings
  // A cache is the quicker way; the store's own is there without one.
  const make = store.channel
  const ofStore = (): Channel | undefined => make && guardedChannel({ of: 'store', make, report })
  const channels = recall ? [cache?.channel?.(), ofStore()].filter((channel) => channel !== undefined) : []
  const verifier: Verifier = new Verifier({
    ...{ store, cache, clock, serverSecrets, leaseMs, maxKnownSecrets, report },
    mode: recall ? 'recall' : 'feed',
    channels: channels.slice(0, 1).map(({ name }) => name),
    hearsRecalls: () => recalls.isHeard(),
    answeredBy: (server, position) => recalls.answeredBy(server, position),
    listen: () => recalls.listen(),
    settled: (change, waitMs) => recalls.settled({ change, committedAt: clock.monotonicMs(), waitMs }),
  })
  const recalls: Recalls = new Recalls({
    ...{ store, clock, channels, serverSecrets, tell, report },
    follower: verifier.follower,
    enabled: recall,
    contradict: (change, position) => verifier.contradict(change, position),
    inBackground: (work) => verifier.inBackground(work),
  })
  return { verifier, recalls }
}

/** What applications write, and not what bearerAuth makes for each request. */
function isPlain(from: unknown): boolean {
  return typeof from !== 'object' || from === null || Object.getPrototypeOf(from) === Object.prototype
}

/** The same result, unless its key may not be used from there. Only for a key that has a list is the address looked at. */
function fromAddress(result: VerifyResult, from: { readonly ip?: string | undefined } | undefined): VerifyResult {
  return !result.ok || result.key.allowedIps === null || isAllowedFrom(result.key, from?.ip) ? result : REJECTED.ip_not_allowed
}

/** The id of the key of a digest that is good by the authority. From here on this instance has met it. */
async function metKey(verifier: Verifier, digest: string): Promise<string | undefined> {
  const { at, found } = await verifier.look(digest)
  return found === undefined || endedBecause(found.key, found.generation, at) !== undefined ? undefined : found.key.id
}

function commandsOf(
  settings: Settings,
  { runner, rotationSecrets, life: { command } }: Engine,
): Pick<ApiKeys, 'create' | 'rotate' | 'revoke' | 'update' | 'disable' | 'enable'> {
  return {
    create: (asked) =>
      command(async () => {
        const checked = checkedCommand(asked, 'create')
        const fields = createFields(withoutCommon(asked))
        if (fields.ownerId === undefined && secretOf(checked.as) === undefined)
          throw invalidRequest('Say whose key it is: give its ownerId.')
        const start = asked.rotationSecret === true ? rotationSecrets.startFor(fields.environment) : undefined
        return issuedKey(await runner.run(creation(settings, fields, start), checked))
      }),

    rotate: (asked) =>
      command(async () => {
        const checked = checkedCommand(asked, 'rotate')
        const presented = presentedWith(asked)
        const change = rotation(settings, targetOf(asked), rotationPlan(asked))
        return issuedKey(await runner.run(change, { ...checked, ...presented }))
      }),

    revoke: (asked) => command(() => ended(asked, 'revoke', revocation)),
    disable: (asked) => command(() => ended(asked, 'disable', disabling)),
    enable: (asked) => command(() => ended(asked, 'enable', enabling)),

    update: (asked) =>
      command(async () => {
        const checked = checkedCommand(asked, 'update')
        if (asked.changes === undefined) throw invalidRequest('update takes the changes as an object: { as, id, changes: { name } }.')
        return changedKey(await runner.run(alteration(settings, targetOf(asked), changedFields(asked.changes as KeyChanges)), checked))
      }),
  }

  async function ended(
    asked: RevokeCommand,
    name: 'revoke' | 'disable' | 'enable',
    changeOf: (target: string, reason: string | null) => Change,
  ): Promise<ChangeResult> {
    const checked = checkedCommand(asked, name)
    const reason = asked.reason === undefined ? null : reasonText(asked.reason)
    return changedKey(await runner.run(changeOf(targetOf(asked), reason), checked))
  }
}

function setupOf({ store, cache, prefixes, leaseMs, recall }: Settings): Setup {
  return { store, cache, prefixes, leaseMs, recall }
}

/** The cache's counters, under names that tell a reader of the cache nothing and keep two applications on one Redis apart. */
function countersOf(cache: Settings['cache'], serverSecret: Uint8Array): Internals['counters'] {
  const shared = cache?.counters?.bind(cache)
  if (shared === undefined) return undefined
  const key = subkey(serverSecret, 'counters')
  const namespace = hmac(key, []).slice(0, 16)
  return (name, limit): Counters => {
    const counters = shared(limit)
    const hidden = (one: string): string => `${namespace}:${hmac(key, [name, one])}`
    return { hit: (one) => counters.hit(hidden(one)), takeBack: (one, at) => counters.takeBack(hidden(one), at) }
  }
}
