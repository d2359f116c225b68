import type { Counters } from '../cache/cache.js'
import { invalidOption } from '../options.js'
import type { JsonObject, Store } from '../store/store.js'
import { secretOf } from './actor.js'
import type { ApiKeys, ApiKeysOptions } from './api-keys.js'
import { alteration, creation, revocation, rotation } from './change/changes.js'
import { replaySeals } from './change/replay-seal.js'
import { type RotationSecrets, rotationSecrets as rotationSecretsOf } from './change/rotation-secret.js'
import { type ChangeRunner, changeRunner } from './change/run-change.js'
import { checkedCommand, presentedWith, rotationPlan, targetOf, withoutCommon } from './command.js'
import { guardedStore } from './failures.js'
import { guardedCache } from './guarded-cache.js'
import { changedFields, createFields, reasonText } from './input.js'
import { INTERNALS, type Internals } from './internals.js'
import { changedKey, issuedKey } from './issued-key.js'
import type { KeyChanges } from './key.js'
import { hmac, subkey } from './keyed-hash.js'
import { keyUses } from './last-use.js'
import { type Lifecycle, lifecycle } from './lifecycle.js'
import { keyListeners, LISTENERS } from './listeners.js'
import { keyQueries } from './queries.js'
import { invalidRequest } from './refusals.js'
import { reports } from './report.js'
import { digestOf } from './secret.js'
import { type Settings, settingsFrom } from './settings.js'
import { type Leases, leases as leaseTable } from './verify/lease.js'
import { endedBecause, malformed } from './verify/verdict.js'

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
  const { store, leases, listeners, life, internals } = engine
  const { command } = life
  const queries = keyQueries(store)

  const keys: ApiKeys & { readonly [INTERNALS]: Internals } = {
    migrate: () =>
      command(async () => {
        await store.migrate()
        await leases.declareLease()
      }),

    async verify(secret) {
      if (!wellFormed(secret)) return malformed
      return command(() => leases.verify(digestOf(secret)))
    },

    peek: (secret) => (wellFormed(secret) ? leases.peek(digestOf(secret)) : malformed),

    ...commandsOf(settings, engine),

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

  function wellFormed(secret: unknown): secret is string {
    return typeof secret === 'string' && format.wellFormed(secret)
  }
}

/** What the commands of one `createApiKeys` share. */
interface Engine {
  readonly store: Store
  readonly leases: Leases
  readonly listeners: ReturnType<typeof keyListeners>
  readonly rotationSecrets: RotationSecrets
  readonly runner: ChangeRunner
  readonly life: Lifecycle
  readonly internals: Internals
}

function engineOf(settings: Settings): Engine {
  const { clock, format, serverSecrets, leaseMs, maxLeases } = settings
  const { report, reportStoreFault } = reports(settings.onError, clock)
  const store = guardedStore(settings.store)
  const cache = settings.cache && guardedCache(settings.cache, report)
  const instances = instancesOver(settings.store)
  const othersHoldLeases = (): boolean => store.shared || instances.count() > 1
  const leases = leaseTable({ store, cache, clock, serverSecrets, leaseMs, maxLeases, othersHoldLeases, report })
  const listeners = keyListeners(report)
  const uses = keyUses(store, clock, report)
  const rotationSecrets = rotationSecretsOf(settings.environmentInSecret, clock)
  const { replayWindowMs, replayGraceMs, waitForLease } = settings
  const runner = changeRunner({
    ...{ store, clock, format, leases, rotationSecrets, othersHoldLeases, report },
    ...{ replayWindowMs, replayGraceMs, waitForLease },
    seals: replaySeals(serverSecrets),
    tell: listeners.tell,
  })
  instances.join()
  const endFaults = store.onFault?.(report)
  const life = lifecycle({
    clock,
    reportStoreFault,
    eraseSeals: () => store.eraseSeals().catch(report),
    begin: () => leases.close(),
    async end() {
      await runner.idle()
      await leases.idle()
      await uses.close()
      instances.leave()
      endFaults?.()
      await cache?.close()
      await store.close()
    },
  })
  const internals: Internals = {
    used: (keyId, origin) => uses.note(keyId, origin),
    denied: (denial) => listeners.deny(denial),
    refused(secret, origin) {
      if (!format.wellFormed(secret)) return
      life.command(() => runner.auditRefusedSecret(digestOf(secret), origin)).catch(report)
    },
    familiar: (secret) => (format.wellFormed(secret) ? leases.familiar(digestOf(secret)) : undefined),
    async keyIdOf(secret) {
      if (!format.wellFormed(secret)) return undefined
      const digest = digestOf(secret)
      return leases.familiar(digest) ?? life.command(() => metKey(leases, digest)).catch(() => undefined)
    },
    report,
    clock,
    counters: countersOf(cache, serverSecrets[0]),
  }
  return { store, leases, listeners, rotationSecrets, runner, life, internals }
}

/** The id of the key of a digest that is good by the authority. From here on this instance has met it. */
async function metKey(leases: Leases, digest: string): Promise<string | undefined> {
  const { at, found } = await leases.look(digest)
  if (found === undefined || endedBecause(found.key, found.generation, at) !== undefined) return undefined
  leases.introduce(digest, found.key.id)
  return found.key.id
}

function commandsOf(
  { format }: Settings,
  { runner, rotationSecrets, life: { command } }: Engine,
): Pick<ApiKeys, 'create' | 'rotate' | 'revoke' | 'update'> {
  return {
    create: (asked) =>
      command(async () => {
        const checked = checkedCommand(asked, 'create')
        const fields = createFields(withoutCommon(asked))
        if (fields.ownerId === undefined && secretOf(checked.as) === undefined)
          throw invalidRequest('Say whose key it is: give its ownerId.')
        const start = asked.rotationSecret === true ? rotationSecrets.startFor(fields.environment) : undefined
        return issuedKey(await runner.run(creation(format, fields, start), checked))
      }),

    rotate: (asked) =>
      command(async () => {
        const checked = checkedCommand(asked, 'rotate')
        const presented = presentedWith(asked)
        const change = rotation(format, targetOf(asked), rotationPlan(asked))
        return issuedKey(await runner.run(change, { ...checked, ...presented }))
      }),

    revoke: (asked) =>
      command(async () => {
        const checked = checkedCommand(asked, 'revoke')
        const reason = asked.reason === undefined ? null : reasonText(asked.reason)
        return changedKey(await runner.run(revocation(targetOf(asked), reason), checked))
      }),

    update: (asked) =>
      command(async () => {
        const checked = checkedCommand(asked, 'update')
        if (asked.changes === undefined) throw invalidRequest('update takes the changes as an object: { as, id, changes: { name } }.')
        return changedKey(await runner.run(alteration(targetOf(asked), changedFields(asked.changes as KeyChanges)), checked))
      }),
  }
}

/**
 * How many instances of this process work on a store: each may hold leases that the others know nothing of. One table for all installed copies of the
 * package, which may well share a store.
 */
const INSTANCES = Symbol.for('express-api-keys.instances')
const shelf = globalThis as { [INSTANCES]?: WeakMap<object, number> }
/** Names the data behind a store object, where several objects may stand for it. */
const DATA = Symbol.for('express-api-keys.data')
shelf[INSTANCES] ??= new WeakMap()
const counts = shelf[INSTANCES]

function instancesOver(store: Store): { count(): number; join(): void; leave(): void } {
  const data = (store as Store & { readonly [DATA]?: object })[DATA] ?? store
  const count = (): number => counts.get(data) ?? 0
  return {
    count,
    join: () => void counts.set(data, count() + 1),
    leave: () => void counts.set(data, count() - 1),
  }
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
