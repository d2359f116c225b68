import { inspect } from 'node:util'
import type { Counters } from '../cache/cache.js'
import { ApiKeyError } from '../errors.js'
import type { KeyRow, Store } from '../store/store.js'
import type { ApiKeys, ApiKeysOptions, CommandContext, IssuedKey, MutationResult, Operator, RotateOptions } from './api-keys.js'
import { alteration, creation, type RotationPlan, revocation, rotation } from './changes.js'
import { systemClock } from './clock.js'
import { changedFields, createFields, cursorOf, flag, graceOf, keyId, ownerText, pageLimit, positionOf, reasonText } from './input.js'
import { type ApiKey, apiKey, iso, keyEvent } from './key.js'
import { leases as leaseTable, malformed, storeFailure } from './lease.js'
import { keyListeners, LISTENERS } from './listeners.js'
import { type Done, mutations } from './mutation.js'
import { integerOption, refuseUnknown } from './options.js'
import { hmac, replaySeals, subkey } from './replay.js'
import { rotationSecrets } from './rotation-secret.js'
import { digestOf, secretFormat } from './secret.js'
import { keyUses } from './uses.js'

const OPTIONS = [
  'store',
  'secret',
  'cache',
  'prefix',
  'environmentInSecret',
  'leaseMs',
  'replayWindowMs',
  'replayGraceMs',
  'waitForLease',
  'maxLeases',
  'onError',
  'clock',
] as const satisfies readonly (keyof ApiKeysOptions)[]

const CONTEXT = [
  'secret',
  'operator',
  'idempotencyKey',
  'request',
  'replayOnly',
  'ip',
  'userAgent',
] as const satisfies readonly (keyof CommandContext)[]
/** How many instances of this process work on a store: each may hold leases that the others know nothing of. */
const instances = new WeakMap<Store, number>()
const MIN_SECRET_BYTES = 32
const VISIBLE_ASCII = /^[\x20-\x7e]{1,255}$/

/**
 * Makes API keys over a store: issue, verify, rotate, revoke. It connects to nothing and starts nothing by itself.
 *
 * @throws ApiKeyError `invalid_option` for an option that is missing, unknown or out of range, saying what to write instead.
 */
export function createApiKeys(options: ApiKeysOptions): ApiKeys {
  if (typeof options !== 'object' || options === null) throw badOption('createApiKeys takes an object of options.')
  refuseUnknown(options, OPTIONS, 'createApiKeys')
  const { store, cache, clock = systemClock, onError = logError } = options
  if (!isStore(store)) throw badOption('store must be a store, such as postgresStore(pool), sqliteStore(database) or memoryStore().')
  if (cache !== undefined && typeof cache.get !== 'function') throw badOption('cache must be a cache, such as redisCache(client).')
  if (typeof onError !== 'function') throw badOption('onError must be a function.')
  const serverSecrets = secretOption(options.secret)
  const environmentInSecret = booleanOption('environmentInSecret', options.environmentInSecret)
  const format = secretFormat(prefixOption(options.prefix), environmentInSecret)
  const leaseMs = integerOption('leaseMs', options.leaseMs, 1_000, 50, 60_000)
  const report = (error: unknown): void => {
    try {
      onError(
        error instanceof ApiKeyError ? error : new ApiKeyError('internal_error', 'Something unforeseen went wrong.', { cause: error }),
      )
    } catch {
      // A logger that throws must not take a request with it.
    }
  }
  const maxLeases = integerOption('maxLeases', options.maxLeases, 50_000, 100, 1_000_000)
  const shared = cache?.counters?.bind(cache)
  // Two applications on one Redis must not count each other's clients.
  const countersKey = subkey(serverSecrets[0] ?? new Uint8Array(0), 'counters')
  const namespace = hmac(countersKey, []).slice(0, 16)
  instances.set(store, (instances.get(store) ?? 0) + 1)
  const othersHoldLeases = (): boolean => store.shared || (instances.get(store) ?? 0) > 1
  const leases = leaseTable({ store, cache, clock, serverSecrets, leaseMs, maxLeases, othersHoldLeases, report })
  const listeners = keyListeners(report)
  const uses = keyUses(store, clock, report)
  const mutate = mutations({
    store,
    clock,
    format,
    leases,
    seals: replaySeals(serverSecrets),
    rotationSecrets: rotationSecrets(environmentInSecret, clock),
    othersHoldLeases,
    tell: listeners.tell,
    replayWindowMs: integerOption('replayWindowMs', options.replayWindowMs, 600_000, 1_000, 86_400_000),
    replayGraceMs: integerOption('replayGraceMs', options.replayGraceMs, 10_000, 0, 600_000),
    waitForLease: booleanOption('waitForLease', options.waitForLease),
    report,
  })
  const underWay = new Set<Promise<unknown>>()
  let closing: Promise<void> | undefined

  return {
    migrate: () =>
      command(async () => {
        await store.migrate()
        await store.setLease(leaseMs)
      }),

    create(input, context = {}) {
      return command(async () => {
        const checked = contextOption(context)
        // A caller's new key belongs to the caller's owner, whatever the input says.
        const fields = createFields(context.secret === undefined ? input : { ...input, ownerId: 'of the caller' })
        return issued(await mutate.run(creation(format, fields, input.rotationSecret ?? false), checked))
      })
    },

    async verify(secret) {
      if (typeof secret !== 'string' || !format.wellFormed(secret)) return malformed
      return command(() => leases.verify(digestOf(secret)))
    },

    peek(secret) {
      if (!format.wellFormed(secret)) return malformed
      return leases.peek(digestOf(secret))
    },

    rotate: ({ id, rotationSecret, retire, emergency, identity, scopeRequired, keepRotationSecret, ...context }) =>
      command(async () => {
        const plan = rotationPlan({ retire, emergency, identity, scopeRequired, keepRotationSecret })
        if (rotationSecret !== undefined && typeof rotationSecret !== 'string') throw badRequest('rotationSecret must be a string.')
        const checked = contextOption(context)
        const change = rotation(format, targetOf(id, context), plan)
        return issued(await mutate.run(change, rotationSecret === undefined ? checked : { ...checked, rotationSecret }))
      }),

    revoke: ({ id, reason, ...context }) =>
      command(async () => {
        const text = reason === undefined ? null : reasonText(reason)
        return changed(await mutate.run(revocation(targetOf(id, context), text), contextOption(context)))
      }),

    update: ({ id, changes, ...context }) =>
      command(async () => changed(await mutate.run(alteration(targetOf(id, context), changedFields(changes)), contextOption(context)))),

    get: (id, scope) =>
      command(async () => {
        const found = await store.key(keyId(id))
        return found !== undefined && visible(found.key, scope?.ownerId) ? apiKey(found.key) : undefined
      }),

    list: ({ ownerId, cursor, limit }) =>
      command(async () => {
        const size = pageLimit(limit)
        const rows = await store.keys({ ownerId: ownerText(ownerId), after: positionOf(cursor), limit: size + 1 })
        return page(rows, size, apiKey, ({ createdAt, id }) => ({ at: createdAt, id }))
      }),

    events: ({ id, ownerId, cursor, limit }) =>
      command(async () => {
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

    counters: shared === undefined ? undefined : (name, windowMs) => named(shared(windowMs), `${namespace}:${name}:`, countersKey),

    wellFormed: (secret) => format.wellFormed(secret),

    report,

    close() {
      closing ??= (async () => {
        await Promise.allSettled([...underWay])
        await mutate.idle()
        await leases.idle()
        await uses.close()
        instances.set(store, (instances.get(store) ?? 1) - 1)
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
      throw storeFailure(error)
    })
    underWay.add(running)
    try {
      return await running
    } finally {
      underWay.delete(running)
    }
  }
}

function targetOf(id: string | undefined, context: CommandContext): string {
  if (id !== undefined) return keyId(id)
  if (context.secret === undefined) throw badRequest('Say which key: give its id, or the secret of the key itself.')
  return 'self'
}

function contextOption(context: CommandContext): CommandContext {
  try {
    refuseUnknown(context, CONTEXT, 'A command')
  } catch (error) {
    throw badRequest((error as Error).message)
  }
  const { secret, operator, idempotencyKey } = context
  if (secret !== undefined && typeof secret !== 'string') throw badRequest('secret must be a string.')
  if (operator !== undefined && !(secret === undefined && isOperator(operator))) {
    throw badRequest('operator must be { issuer, subject, scopes, owners } as operatorJwt gives it, without a secret beside it.')
  }
  if (idempotencyKey !== undefined && !(typeof idempotencyKey === 'string' && VISIBLE_ASCII.test(idempotencyKey))) {
    throw new ApiKeyError('idempotency_key_invalid', 'An Idempotency-Key must be 1 to 255 printable ASCII characters.')
  }
  return context
}

function isOperator({ issuer, subject, scopes, owners }: Operator): boolean {
  const texts = (list: unknown): boolean => Array.isArray(list) && list.every((one) => typeof one === 'string')
  return (
    typeof issuer === 'string' &&
    typeof subject === 'string' &&
    subject !== '' &&
    subject.length <= 255 &&
    texts(scopes) &&
    (owners === 'all' || texts(owners))
  )
}

function rotationPlan({ retire, emergency, identity, scopeRequired, keepRotationSecret }: RotateOptionsGiven): RotationPlan {
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

type RotateOptionsGiven = { readonly [name in Exclude<keyof RotateOptions, 'rotationSecret'>]: RotateOptions[name] | undefined }

function issued(done: Done): IssuedKey {
  return new Issued(done)
}

/** Keeps the secret out of logs: `inspect`, JSON and spreading see everything but it. */
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

  toJSON(): object {
    return { ...this, secret: '[redacted]', ...(this.#rotationSecret === undefined ? {} : { rotationSecret: '[redacted]' }) }
  }

  [inspect.custom](): object {
    return this.toJSON()
  }
}

function changed({ key, replayed, acceptedUntil }: Done): MutationResult {
  return { key: apiKey(key), replayed, ...(acceptedUntil === undefined ? {} : { acceptedUntil: iso(acceptedUntil) }) }
}

/** The same counters under names that tell a reader of the cache nothing. */
function named(counters: Counters, prefix: string, key: Uint8Array): Counters {
  const hidden = (name: string): string => prefix + hmac(key, [name])
  return { increment: (name) => counters.increment(hidden(name)), decrement: (name) => counters.decrement(hidden(name)) }
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

function secretOption(secret: ApiKeysOptions['secret']): readonly Uint8Array[] {
  const list = Array.isArray(secret) ? secret : [secret]
  // Copied: an application may well wipe its own buffer once we have it.
  const bytes = list.map((one: unknown) =>
    typeof one === 'string' ? Buffer.from(one) : one instanceof Uint8Array ? Uint8Array.from(one) : one,
  )
  const good = (one: unknown): one is Uint8Array => one instanceof Uint8Array && one.byteLength >= MIN_SECRET_BYTES
  if (bytes.length === 0 || !bytes.every(good)) {
    throw badOption(
      `secret must be at least ${MIN_SECRET_BYTES} bytes, or a list of such with the current one first; make one with: openssl rand -base64 32`,
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

function logError(error: ApiKeyError): void {
  console.error(`express-api-keys: ${error.code}: ${error.message}`, ...(error.cause === undefined ? [] : [error.cause]))
}
