import { inspect } from 'node:util'
import type { Counters } from '../cache/cache.js'
import { ApiKeyError } from '../errors.js'
import { integerOption, refuseUnknown } from '../options.js'
import type { JsonObject, KeyRow, Store } from '../store/store.js'
import { actorOption, secretOf } from './actor.js'
import type {
  Actor,
  ApiKeys,
  ApiKeysOptions,
  Command,
  IssuedKey,
  MutationResult,
  Origin,
  RotateCommand,
  RotateOptions,
} from './api-keys.js'
import { alteration, creation, type RotationPlan, revocation, rotation } from './change/changes.js'
import { hmac, type RequestShape, replaySeals, subkey } from './change/replay-seal.js'
import { rotationSecrets } from './change/rotation-secret.js'
import { type Done, mutations } from './change/run-change.js'
import { systemClock } from './clock.js'
import { failureOf, guardedStore } from './failures.js'
import { guardedCache } from './guarded-cache.js'
import { changedFields, createFields, cursorOf, flag, graceOf, keyId, ownerText, pageLimit, positionOf, reasonText } from './input.js'
import { type ApiKey, apiKey, type CreateInput, iso, type KeyChanges, keyEvent } from './key.js'
import { keyUses } from './last-use.js'
import { keyListeners, LISTENERS } from './listeners.js'
import { logError, reports } from './report.js'
import { digestOf, secretFormat } from './secret.js'
import { leases as leaseTable, malformed } from './verify/lease.js'

const OPTIONS = [
  'store',
  'serverSecret',
  'cache',
  'prefix',
  'acceptedPrefixes',
  'environmentInSecret',
  'leaseMs',
  'replayWindowMs',
  'replayGraceMs',
  'waitForLease',
  'maxLeases',
  'onError',
  'clock',
] as const satisfies readonly (keyof ApiKeysOptions)[]

const COMMAND = ['as', 'idempotencyKey', 'request', 'replayOnly', 'origin', 'delegation'] as const satisfies readonly (keyof Command)[]
const CREATE = [
  'ownerId',
  'name',
  'environment',
  'scopes',
  'metadata',
  'expiresAt',
  'rotationSecret',
] as const satisfies readonly (keyof CreateInput)[]
const ROTATE = [
  'id',
  'rotationSecret',
  'retire',
  'emergency',
  'identity',
  'scopeRequired',
  'keepRotationSecret',
  'retryFrom',
] as const satisfies readonly (keyof RotateCommand)[]
/** An answer that is sealed without a secret of its caller is as hard to open as its Idempotency-Key is to guess. */
const MIN_UNSEALED_KEY_LENGTH = 22
/** How often seals that are no longer wanted are erased, while there is traffic. */
const ERASE_MS = 3_000

/**
 * How many instances of this process work on a store: each may hold leases that the others know nothing of. One table for all copies of the package, which
 * may well share a store.
 */
const INSTANCES = Symbol.for('express-api-keys.instances')
const shelf = globalThis as { [INSTANCES]?: WeakMap<object, number> }
/** What names the data behind a store object, where several objects may stand for it. */
const DATA = Symbol.for('express-api-keys.data')
shelf[INSTANCES] ??= new WeakMap()
const instances = shelf[INSTANCES]
const MIN_SECRET_BYTES = 32
const VISIBLE_ASCII = /^[\x20-\x7e]{1,255}$/

/**
 * Makes API keys over a store: issue, verify, rotate, revoke. It connects to nothing and starts nothing by itself.
 *
 * @throws ApiKeyError `invalid_option` for an option that is missing, unknown or out of range, saying what to write instead.
 */
export function createApiKeys<Metadata extends object = JsonObject>(options: ApiKeysOptions): ApiKeys<Metadata>
// The last one is what ReturnType<typeof createApiKeys> goes by.
export function createApiKeys(options: ApiKeysOptions): ApiKeys
export function createApiKeys(options: ApiKeysOptions): ApiKeys {
  refuseUnknown(options, OPTIONS, 'createApiKeys')
  const { clock = systemClock, onError = logError } = options
  if (!isStore(options.store))
    throw badOption('store must be a store, such as postgresStore(pool), sqliteStore(database) or memoryStore().')
  if (options.cache !== undefined && typeof options.cache?.get !== 'function') {
    throw badOption('cache must be a cache, such as redisCache(client).')
  }
  if (typeof onError !== 'function') throw badOption('onError must be a function.')
  const serverSecrets = serverSecretOption(options.serverSecret)
  const environmentInSecret = booleanOption('environmentInSecret', options.environmentInSecret)
  const format = secretFormat(prefixOption(options.prefix), environmentInSecret, acceptedPrefixesOption(options.acceptedPrefixes))
  const leaseMs = integerOption('leaseMs', options.leaseMs, 1_000, 50, 60_000)
  const { report, reportStoreFault } = reports(onError, clock)
  const store = guardedStore(options.store)
  const cache = options.cache && guardedCache(options.cache, report)
  const maxLeases = integerOption('maxLeases', options.maxLeases, 50_000, 100, 1_000_000)
  const shared = cache?.counters?.bind(cache)
  // Two applications on one Redis must not count each other's clients.
  const countersKey = subkey(serverSecrets[0] ?? new Uint8Array(0), 'counters')
  const namespace = hmac(countersKey, []).slice(0, 16)
  const data = (options.store as Store & { readonly [DATA]?: object })[DATA] ?? options.store
  const othersHoldLeases = (): boolean => store.shared || (instances.get(data) ?? 0) > 1
  const leases = leaseTable({ store, cache, clock, serverSecrets, leaseMs, maxLeases, othersHoldLeases, report })
  const listeners = keyListeners(report)
  const uses = keyUses(store, clock, report)
  const seconds = rotationSecrets(environmentInSecret, clock)
  const replayGraceMs = integerOption('replayGraceMs', options.replayGraceMs, 10_000, 0, 600_000)
  const mutate = mutations({
    store,
    clock,
    format,
    leases,
    seals: replaySeals(serverSecrets),
    rotationSecrets: seconds,
    othersHoldLeases,
    tell: listeners.tell,
    replayWindowMs: integerOption('replayWindowMs', options.replayWindowMs, 600_000, 1_000, 86_400_000),
    replayGraceMs,
    waitForLease: booleanOption('waitForLease', options.waitForLease),
    report,
  })
  const underWay = new Set<Promise<unknown>>()
  // Last, when no option can be refused any more.
  instances.set(data, (instances.get(data) ?? 0) + 1)
  const endFaults = store.onFault?.(report)
  let erasedAt = Number.NEGATIVE_INFINITY
  let closing: Promise<void> | undefined

  return {
    migrate: () =>
      command(async () => {
        await store.migrate()
        await leases.declareLease()
      }),

    create: (asked) =>
      command(async () => {
        const checked = commandOption(asked, 'create', CREATE)
        const {
          as: _as,
          idempotencyKey: _key,
          request: _request,
          replayOnly: _only,
          origin: _origin,
          delegation: _delegation,
          ...input
        } = asked
        const fields = createFields(input as Partial<CreateInput>)
        if (fields.ownerId === undefined && secretOf(checked.as) === undefined) throw badRequest('Say whose key it is: give its ownerId.')
        const start = input.rotationSecret === true ? seconds.startFor(fields.environment) : undefined
        return issued(await mutate.run(creation(format, fields, start), checked))
      }),

    async verify(secret) {
      if (typeof secret !== 'string' || !format.wellFormed(secret)) return malformed
      return command(() => leases.verify(digestOf(secret)))
    },

    peek(secret) {
      if (typeof secret !== 'string' || !format.wellFormed(secret)) return malformed
      return leases.peek(digestOf(secret))
    },

    rotate: (asked) =>
      command(async () => {
        const checked = commandOption(asked, 'rotate', ROTATE)
        const { rotationSecret, retryFrom } = asked
        if (rotationSecret !== undefined && typeof rotationSecret !== 'string') throw badRequest('rotationSecret must be a string.')
        if (retryFrom !== undefined && (typeof retryFrom !== 'string' || retryFrom === ''))
          throw badRequest('retryFrom must name a network.')
        const change = rotation(format, targetOf(asked), rotationPlan(asked))
        return issued(
          await mutate.run(change, {
            ...checked,
            ...(rotationSecret === undefined ? {} : { rotationSecret }),
            ...(retryFrom === undefined ? {} : { retryFrom }),
          }),
        )
      }),

    revoke: (asked) =>
      command(async () => {
        const checked = commandOption(asked, 'revoke', ['id', 'reason'])
        const reason = asked.reason === undefined ? null : reasonText(asked.reason)
        return changed(await mutate.run(revocation(targetOf(asked), reason), checked))
      }),

    update: (asked) =>
      command(async () => {
        const checked = commandOption(asked, 'update', ['id', 'changes'])
        if (asked.changes === undefined) throw badRequest('update takes the changes as an object: { as, id, changes: { name } }.')
        return changed(await mutate.run(alteration(targetOf(asked), changedFields(asked.changes as KeyChanges)), checked))
      }),

    get: (id, scope) =>
      command(async () => {
        const ownerId = ownerFilter('get', scope)
        const found = await store.key(keyId(id))
        return found !== undefined && visible(found.key, ownerId) ? apiKey(found.key) : undefined
      }),

    list: (query) =>
      command(async () => {
        listed('list', query, ['ownerId', 'cursor', 'limit'])
        const { ownerId, cursor, limit } = query
        const size = pageLimit(limit)
        const rows = await store.keys({ ownerId: ownerText(ownerId), after: positionOf(cursor), limit: size + 1 })
        return page(rows, size, apiKey, ({ createdAt, id }) => ({ at: createdAt, id }))
      }),

    events: (query) =>
      command(async () => {
        listed('events', query, ['id', 'ownerId', 'cursor', 'limit'])
        const ownerId = ownerFilter('events', query)
        const { id, cursor, limit } = query
        const size = pageLimit(limit)
        const after = positionOf(cursor)
        const found = await store.key(keyId(id))
        if (found === undefined || !visible(found.key, ownerId)) return undefined
        const rows = await store.events({ keyId: found.key.id, after, limit: size + 1 })
        return page(rows, size, keyEvent, ({ at, id }) => ({ at, id }))
      }),

    used: (keyId, origin) => uses.note(keyId, origin),

    refused(secret, origin) {
      if (!format.wellFormed(secret)) return
      command(() => mutate.auditRefusedSecret(digestOf(secret), origin)).catch(report)
    },

    familiar: (secret) => (format.wellFormed(secret) ? leases.familiar(digestOf(secret)) : undefined),

    on(name, listener) {
      if (!LISTENERS.includes(name))
        throw badOption(`There is nothing called "${String(name)}" to listen for; there is ${LISTENERS.join(', ')}.`)
      if (typeof listener !== 'function') throw badOption('A listener must be a function.')
      return listeners.on(name, listener)
    },

    denied: (denial) => listeners.deny(denial),

    clock,

    counters:
      shared === undefined
        ? undefined
        : (name, limit) => hiddenNames(shared(limit), (hidden) => `${namespace}:${hmac(countersKey, [name, hidden])}`),

    wellFormed: (secret) => typeof secret === 'string' && format.wellFormed(secret),

    report,

    close() {
      closing ??= (async () => {
        leases.close()
        while (underWay.size > 0) await Promise.allSettled([...underWay])
        await mutate.idle()
        await leases.idle()
        await uses.close()
        instances.set(data, (instances.get(data) ?? 1) - 1)
        endFaults?.()
        await cache?.close()
        await store.close()
      })()
      return closing
    },
  }

  /** Runs one command, so that `close()` can wait for it; after `close()` there is no answer to be had. */
  async function command<T>(work: () => Promise<T>): Promise<T> {
    if (closing !== undefined) throw new ApiKeyError('store_unavailable', 'These API keys have been closed.')
    const running = work().catch((error: unknown) => {
      const known = failureOf(error)
      reportStoreFault(known)
      throw known
    })
    underWay.add(running)
    try {
      const result = await running
      eraseNowAndThen()
      return result
    } finally {
      underWay.delete(running)
    }
  }

  /** Seals that can no longer be asked for go within seconds of traffic, whoever made them. */
  function eraseNowAndThen(): void {
    const now = clock.monotonicMs()
    if (closing !== undefined || now - erasedAt < ERASE_MS) return
    erasedAt = now
    const erasing = store
      .eraseSeals()
      .catch(report)
      .finally(() => underWay.delete(erasing))
    underWay.add(erasing)
  }
}

function targetOf(command: { readonly as: Actor; readonly id?: string | undefined }): string {
  if (command.id !== undefined) return keyId(command.id)
  // Written down and undefined is no "self": whoever looked the id up and found nothing did not mean its own key.
  if ('id' in command) throw badRequest('id is undefined. Leave it out for the key of the secret that is presented.')
  if (secretOf(command.as) === undefined) throw badRequest('Say which key: give its id, or the secret of the key itself.')
  return 'self'
}

/** What is common to the commands, checked. */
function commandOption(command: Command, name: string, more: readonly string[]): Command {
  try {
    refuseUnknown(command, [...COMMAND, ...more], name)
  } catch (error) {
    throw badRequest((error as Error).message)
  }
  // Its own: what a prototype says is nobody's word.
  const as = actorOption(Object.hasOwn(command, 'as') ? command.as : undefined)
  const { idempotencyKey, request, replayOnly, origin, delegation = 'bounded' } = command
  if (idempotencyKey !== undefined && !(typeof idempotencyKey === 'string' && VISIBLE_ASCII.test(idempotencyKey))) {
    throw new ApiKeyError('idempotency_key_invalid', 'An Idempotency-Key must be 1 to 255 printable ASCII characters.')
  }
  if (idempotencyKey !== undefined && secretOf(as) === undefined && idempotencyKey.length < MIN_UNSEALED_KEY_LENGTH) {
    throw new ApiKeyError(
      'idempotency_key_invalid',
      `Without a key of its own, a caller needs an Idempotency-Key of at least ${MIN_UNSEALED_KEY_LENGTH} characters, made at random, such as a UUID.`,
    )
  }
  if (delegation !== 'bounded' && delegation !== 'open') throw badRequest('delegation must be "bounded" or "open".')
  if (origin !== undefined && !isOrigin(origin)) throw badRequest('origin must be { ip, userAgent }, both strings.')
  if (request !== undefined && !isRequestShape(request))
    throw badRequest('request must be { method, path, query?, body? }, with a body of JSON.')
  return {
    as,
    delegation,
    ...(idempotencyKey === undefined ? {} : { idempotencyKey }),
    ...(request === undefined ? {} : { request }),
    ...(replayOnly === undefined ? {} : { replayOnly: flag('replayOnly', replayOnly) }),
    ...(origin === undefined ? {} : { origin }),
  }
}

function isOrigin(origin: Origin): boolean {
  if (typeof origin !== 'object' || origin === null) return false
  return [origin.ip, origin.userAgent].every((text) => text === undefined || typeof text === 'string')
}

function isRequestShape(request: RequestShape): boolean {
  if (typeof request !== 'object' || request === null) return false
  const { method, path, query, body } = request
  if (typeof method !== 'string' || typeof path !== 'string' || (query !== undefined && typeof query !== 'string')) return false
  try {
    return body === undefined || JSON.stringify(body) !== undefined
  } catch {
    return false
  }
}

/** The owner that a look is narrowed to. Written down and undefined is not "any": the boundary between owners must not depend on a value that was lost. */
function ownerFilter(where: string, scope: { readonly ownerId?: string } | undefined): string | undefined {
  if (scope === undefined) return undefined
  if (typeof scope !== 'object' || scope === null) throw badRequest(`${where} takes an object with the ownerId.`)
  if (!('ownerId' in scope)) return undefined
  return ownerText(scope.ownerId)
}

function listed(where: string, query: object, names: readonly string[]): void {
  try {
    refuseUnknown(query, names, where)
  } catch (error) {
    throw badRequest((error as Error).message)
  }
}

function rotationPlan({ retire, emergency, identity, scopeRequired, keepRotationSecret }: RotateOptions): RotationPlan {
  const plan: RotationPlan = {
    ...graceOf(retire),
    emergency: flag('emergency', emergency),
    successor: identity === 'successor',
    scopeRequired: flag('scopeRequired', scopeRequired),
    keepRotationSecret: flag('keepRotationSecret', keepRotationSecret),
  }
  if (identity !== undefined && identity !== 'same' && identity !== 'successor') throw badRequest('identity must be "same" or "successor".')
  if (plan.graceMs > 0 && plan.emergency) throw badRequest('An emergency has no grace period: leave retire out, or write "now".')
  if (plan.graceMs > 0 && plan.successor) throw badRequest('A key that is succeeded has no grace period: leave retire out, or write "now".')
  return plan
}

function issued(done: Done): IssuedKey {
  return new Issued(done)
}

/**
 * Keeps the secret out of logs, and from being lost: `inspect` shows it redacted, and JSON throws, also for what was spread from it, since what keeps watch
 * is spread along.
 */
class Issued implements IssuedKey {
  readonly key: ApiKey
  readonly replayed: boolean
  declare readonly acceptedUntil?: string
  readonly #secret: string
  readonly #rotationSecret: string | undefined

  constructor({ key, secret, rotationSecret, replayed, acceptedUntil }: Done) {
    if (secret === undefined) throw new ApiKeyError('internal_error', 'A recorded answer lacks its secret.')
    this.key = apiKey(key)
    this.replayed = replayed
    if (acceptedUntil !== undefined) this.acceptedUntil = iso(acceptedUntil)
    this.#secret = secret
    this.#rotationSecret = rotationSecret
  }

  get secret(): string {
    return this.#secret
  }

  get rotationSecret(): string | undefined {
    return this.#rotationSecret
  }

  readonly toJSON = (): never => {
    throw new ApiKeyError(
      'internal_error',
      'An issued key is not sent as it is: pick what the client gets, such as { secret: issued.secret, id: issued.key.id }.',
    )
  }

  readonly [inspect.custom] = (): object => {
    const { key, replayed, acceptedUntil } = this
    return {
      key,
      replayed,
      ...(acceptedUntil === undefined ? {} : { acceptedUntil }),
      secret: '[redacted]',
      ...(this.#rotationSecret === undefined ? {} : { rotationSecret: '[redacted]' }),
    }
  }
}

function changed({ key, replayed, acceptedUntil }: Done): MutationResult {
  return { key: apiKey(key), replayed, ...(acceptedUntil === undefined ? {} : { acceptedUntil: iso(acceptedUntil) }) }
}

/** The same counters under names that tell a reader of the cache nothing. */
function hiddenNames(counters: Counters, hide: (name: string) => string): Counters {
  return { hit: (name) => counters.hit(hide(name)), takeBack: (name, at) => counters.takeBack(hide(name), at) }
}

function visible(key: KeyRow, ownerId: string | undefined): boolean {
  return ownerId === undefined || key.ownerId === ownerId
}

function page<Row, Item>(
  rows: readonly Row[],
  size: number,
  item: (row: Row) => Item,
  position: (row: Row) => { at: number; id: string },
): { items: readonly Item[]; nextCursor: string | null } {
  const shown = rows.slice(0, size)
  const last = shown.at(-1)
  return { items: shown.map(item), nextCursor: rows.length > size && last !== undefined ? cursorOf(position(last)) : null }
}

function isStore(store: unknown): store is Store {
  return typeof store === 'object' && store !== null && 'read' in store && 'transaction' in store && 'shared' in store
}

function serverSecretOption(secret: ApiKeysOptions['serverSecret']): readonly Uint8Array[] {
  const list = Array.isArray(secret) ? secret : [secret]
  // Copied: an application may well wipe its own buffer once we have it.
  const bytes = list.map((one: unknown) =>
    typeof one === 'string' ? Buffer.from(one) : one instanceof Uint8Array ? Uint8Array.from(one) : one,
  )
  const good = (one: unknown): one is Uint8Array => one instanceof Uint8Array && one.byteLength >= MIN_SECRET_BYTES
  if (bytes.length === 0 || !bytes.every(good)) {
    throw badOption(
      `serverSecret must be at least ${MIN_SECRET_BYTES} bytes, or a list of such with the current one first; make one with: openssl rand -base64 32`,
    )
  }
  return bytes
}

function prefixOption(prefix: string | undefined): string {
  if (prefix === undefined) return 'sk'
  if (typeof prefix === 'string' && /^[a-z][a-z0-9_]{0,31}$/.test(prefix) && !prefix.endsWith('_') && !/^rot(_|$)/.test(prefix))
    return prefix
  throw badOption(
    'prefix must be 1 to 32 lower-case letters, digits and inner "_", begin with a letter, and not be "rot" or "rot_…", such as "sk".',
  )
}

function acceptedPrefixesOption(prefixes: readonly string[] | undefined): readonly string[] {
  if (prefixes === undefined) return []
  if (!Array.isArray(prefixes)) throw badOption('acceptedPrefixes must be a list of prefixes, such as ["sk"].')
  return prefixes.map(prefixOption)
}

function booleanOption(name: string, value: boolean | undefined): boolean {
  if (value === undefined || typeof value === 'boolean') return value ?? true
  throw badOption(`${name} must be true or false.`)
}

function badRequest(message: string): ApiKeyError {
  return new ApiKeyError('invalid_request', message)
}

function badOption(message: string): ApiKeyError {
  return new ApiKeyError('invalid_option', message)
}
