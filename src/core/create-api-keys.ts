import { inspect } from 'node:util'
import { ApiKeyError } from '../errors.js'
import type { KeyRow, Store } from '../store/store.js'
import type { ApiKeys, ApiKeysOptions, CommandContext, IssuedKey, MutationResult } from './api-keys.js'
import { systemClock } from './clock.js'
import { changedFields, createFields, cursorOf, keyId, ownerText, pageLimit, positionOf, reasonText } from './input.js'
import { type ApiKey, apiKey, iso, type KeyEvent } from './key.js'
import { leases as leaseTable, malformed, storeFailure } from './lease.js'
import { type Done, type Effect, type Mutation, mutations, timeOrderedId } from './mutation.js'
import { integerOption, refuseUnknown } from './options.js'
import { replaySeals } from './replay.js'
import { digestOf, type MintedSecret, type SecretFormat, secretFormat } from './secret.js'

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

const CONTEXT = ['secret', 'idempotencyKey', 'request', 'ip', 'userAgent'] as const satisfies readonly (keyof CommandContext)[]
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
  const format = secretFormat(prefixOption(options.prefix), booleanOption('environmentInSecret', options.environmentInSecret))
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
  const leases = leaseTable({ store, cache, clock, serverSecrets, leaseMs, maxLeases, report })
  const mutate = mutations({
    store,
    clock,
    format,
    leases,
    seals: replaySeals(serverSecrets),
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
        return issued(await mutate(creation(format, fields), checked))
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

    rotate: ({ id, ...context }) =>
      command(async () => issued(await mutate(rotation(format, targetOf(id, context)), contextOption(context)))),

    revoke: ({ id, reason, ...context }) =>
      command(async () => {
        const text = reason === undefined ? null : reasonText(reason)
        return changed(await mutate(revocation(targetOf(id, context), text), contextOption(context)))
      }),

    update: ({ id, changes, ...context }) =>
      command(async () => changed(await mutate(alteration(targetOf(id, context), changedFields(changes)), contextOption(context)))),

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
        return page(
          rows,
          size,
          ({ ownerId: _, at, ...rest }): KeyEvent => ({ ...rest, at: iso(at) }),
          ({ at, id }) => ({ at, id }),
        )
      }),

    wellFormed: (secret) => format.wellFormed(secret),

    report,

    close() {
      closing ??= (async () => {
        await Promise.allSettled([...underWay])
        await leases.idle()
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

function creation(format: SecretFormat, fields: ReturnType<typeof createFields>): Mutation {
  return {
    name: 'create',
    target: null,
    selfAllowed: false,
    fingerprint: fields,
    async apply(tx, { caller, now }) {
      const minted = format.mint(fields.environment)
      const key: KeyRow = {
        ...fields,
        id: timeOrderedId(now),
        ownerId: caller?.ownerId ?? fields.ownerId,
        generation: 1,
        createdAt: now,
        updatedAt: now,
        revokedAt: null,
        revokedReason: null,
      }
      await tx.insertKey(key)
      await tx.insertGeneration(generationRow(key, minted, now))
      return { key, secret: minted.secret, event: { type: 'key.created', details: {} }, waits: false }
    },
  }
}

function rotation(format: SecretFormat, target: string): Mutation {
  return {
    name: 'rotate',
    target,
    selfAllowed: true,
    fingerprint: null,
    async apply(tx, { target: old, now, by }): Promise<Effect> {
      const current = present(old)
      if (current.revokedAt !== null) throw new ApiKeyError('key_revoked', 'The key is revoked; a revoked key cannot be rotated.')
      if (current.expiresAt !== null && current.expiresAt <= now) {
        throw new ApiKeyError('key_expired', 'The key has expired, and a rotation keeps its expiry; move the expiry first.')
      }
      const minted = format.mint(current.environment)
      const key: KeyRow = { ...current, generation: current.generation + 1, updatedAt: Math.max(now, current.updatedAt + 1) }
      const digests = await tx.retireGenerations(key.id, { at: now, by, reason: 'rotated' })
      await tx.insertGeneration(generationRow(key, minted, now))
      await tx.updateKey(key)
      // Earlier answers hold secrets that are dead now.
      await tx.eraseReplays(key.id, by)
      return {
        key,
        secret: minted.secret,
        retired: { digests, reason: 'rotated' },
        event: { type: 'key.rotated', details: { generation: key.generation } },
        waits: true,
      }
    },
  }
}

function revocation(target: string, reason: string | null): Mutation {
  return {
    name: 'revoke',
    target,
    selfAllowed: true,
    fingerprint: reason,
    async apply(tx, { target: old, now, by }): Promise<Effect> {
      const current = present(old)
      // Waits even when there is nothing to do: the revocation that did it may still be waiting itself.
      if (current.revokedAt !== null) return { key: current, event: null, waits: true }
      const key: KeyRow = { ...current, revokedAt: now, revokedReason: reason, updatedAt: Math.max(now, current.updatedAt + 1) }
      const digests = await tx.retireGenerations(key.id, { at: now, by, reason: 'revoked' })
      await tx.updateKey(key)
      await tx.eraseReplays(key.id, by)
      return {
        key,
        retired: { digests, reason: 'revoked' },
        event: { type: 'key.revoked', details: reason === null ? {} : { reason } },
        waits: true,
      }
    },
  }
}

function alteration(target: string, changes: ReturnType<typeof changedFields>): Mutation {
  return {
    name: 'update',
    target,
    selfAllowed: false,
    fingerprint: changes,
    async apply(tx, { target: old, now }): Promise<Effect> {
      const current = present(old)
      if (current.revokedAt !== null) throw new ApiKeyError('key_revoked', 'The key is revoked; nothing about it can change any more.')
      const key: KeyRow = { ...current, ...changes, updatedAt: Math.max(now, current.updatedAt + 1) }
      await tx.updateKey(key)
      const digest = (await tx.generationOf(key.id, key.generation))?.digest
      return {
        key,
        ...(digest === undefined ? {} : { changed: digest }),
        event: { type: 'key.updated', details: { changed: Object.keys(changes) } },
        waits: true,
      }
    },
  }
}

function generationRow(key: KeyRow, { digest, start, last4 }: MintedSecret, now: number): Parameters<Tx['insertGeneration']>[0] {
  return {
    digest,
    keyId: key.id,
    generation: key.generation,
    createdAt: now,
    retiredAt: null,
    retiredBy: null,
    retiredReason: null,
    firstUsedAt: null,
    secretStart: start,
    secretLast4: last4,
  }
}

type Tx = Parameters<Mutation['apply']>[0]

function present(target: KeyRow | undefined): KeyRow {
  if (target === undefined) throw new ApiKeyError('key_not_found', 'There is no such key.')
  return target
}

function targetOf(id: string | undefined, context: CommandContext): string {
  if (id !== undefined) return keyId(id)
  if (context.secret === undefined) throw new ApiKeyError('invalid_request', 'Say which key: give its id, or the secret of the key itself.')
  return 'self'
}

function contextOption(context: CommandContext): CommandContext {
  try {
    refuseUnknown(context, CONTEXT, 'A command')
  } catch (error) {
    throw new ApiKeyError('invalid_request', (error as Error).message)
  }
  const { secret, idempotencyKey } = context
  if (secret !== undefined && typeof secret !== 'string') throw new ApiKeyError('invalid_request', 'secret must be a string.')
  if (idempotencyKey !== undefined && !(typeof idempotencyKey === 'string' && VISIBLE_ASCII.test(idempotencyKey))) {
    throw new ApiKeyError('idempotency_key_invalid', 'An Idempotency-Key must be 1 to 255 printable ASCII characters.')
  }
  return context
}

function issued(done: Done): IssuedKey {
  return new Issued(done)
}

/** Keeps the secret out of logs: `inspect`, JSON and spreading see everything but it. */
class Issued implements IssuedKey {
  readonly key: ApiKey
  readonly replayed: boolean
  declare readonly acceptedUntil?: string
  readonly #secret: string

  constructor({ key, secret, replayed, acceptedUntil }: Done) {
    if (secret === undefined) throw new ApiKeyError('internal_error', 'A recorded answer lacks its secret.')
    this.key = apiKey(key)
    this.replayed = replayed
    if (acceptedUntil !== undefined) this.acceptedUntil = iso(acceptedUntil)
    this.#secret = secret
  }

  get secret(): string {
    return this.#secret
  }

  toJSON(): object {
    return { ...this, secret: '[redacted]' }
  }

  [inspect.custom](): object {
    return { ...this, secret: '[redacted]' }
  }
}

function changed({ key, replayed }: Done): MutationResult {
  return { key: apiKey(key), replayed }
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
  const bytes = list.map((one: unknown) => (typeof one === 'string' ? Buffer.from(one) : one))
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

function badOption(message: string): ApiKeyError {
  return new ApiKeyError('invalid_option', message)
}

function logError(error: ApiKeyError): void {
  console.error(`express-api-keys: ${error.code}: ${error.message}`, ...(error.cause === undefined ? [] : [error.cause]))
}
