import type { Cache } from '../cache/cache.js'
import type { ApiKeyError } from '../errors.js'
import { integerOption, invalidOption, refuseUnknown } from '../options.js'
import type { Store } from '../store/store.js'
import type { ApiKeysOptions } from './api-keys.js'
import { type Clock, systemClock } from './clock.js'
import { type KnownFormats, knownFormats } from './known-formats.js'
import { legacyFormatsOption, type Recogniser } from './legacy-format.js'
import { logError } from './report.js'
import { secretFormat } from './secret.js'

/** The options of `createApiKeys`, checked and with their defaults. */
export interface Settings {
  readonly store: Store
  readonly cache: Cache | undefined
  readonly clock: Clock
  readonly onError: (error: ApiKeyError) => unknown
  /** The current one first. */
  readonly serverSecrets: readonly [Uint8Array, ...Uint8Array[]]
  readonly format: KnownFormats
  readonly legacyFormats: readonly Recogniser[]
  /** That of new secrets first, then the others that are accepted. */
  readonly prefixes: readonly [string, ...string[]]
  readonly environmentInSecret: boolean
  readonly leaseMs: number
  readonly replayWindowMs: number
  readonly replayGraceMs: number
  readonly waitForLease: boolean
  readonly recall: boolean
  readonly maxKnownSecrets: number
  readonly maxLifetimeMs: number | undefined
}

const OPTIONS = [
  'store',
  'serverSecret',
  'cache',
  'prefix',
  'acceptedPrefixes',
  'legacyFormats',
  'environmentInSecret',
  'leaseMs',
  'replayWindowMs',
  'replayGraceMs',
  'waitForLease',
  'recall',
  'maxKnownSecrets',
  'maxLifetimeMs',
  'onError',
  'clock',
] as const satisfies readonly (keyof ApiKeysOptions)[]

const MIN_SERVER_SECRET_BYTES = 32

/** Throws `invalid_option` for an option that is missing, unknown or out of range. */
export function settingsFrom(options: ApiKeysOptions): Settings {
  refuseUnknown(options, OPTIONS, 'createApiKeys')
  const { store, cache, clock = systemClock, onError = logError } = options
  if (!isStore(store)) throw invalidOption('store must be a store, such as postgresStore(pool), sqliteStore(database) or memoryStore().')
  if (cache !== undefined && !isCache(cache)) throw invalidOption('cache must be a cache, such as redisCache(client).')
  if (typeof onError !== 'function') throw invalidOption('onError must be a function.')
  const environmentInSecret = booleanOption('environmentInSecret', options.environmentInSecret)
  const [prefix, accepted] = [prefixOption(options.prefix), acceptedPrefixesOption(options.acceptedPrefixes)]
  const own = secretFormat(prefix, environmentInSecret, accepted)
  const legacyFormats = legacyFormatsOption(options.legacyFormats)
  return {
    store,
    cache,
    clock,
    onError,
    serverSecrets: serverSecretOption(options.serverSecret),
    format: knownFormats(own, legacyFormats),
    legacyFormats,
    prefixes: [prefix, ...accepted],
    environmentInSecret,
    leaseMs: integerOption('leaseMs', options.leaseMs, 1_000, 50, 60_000),
    replayWindowMs: integerOption('replayWindowMs', options.replayWindowMs, 600_000, 1_000, 86_400_000),
    replayGraceMs: integerOption('replayGraceMs', options.replayGraceMs, 10_000, 0, 600_000),
    waitForLease: booleanOption('waitForLease', options.waitForLease),
    recall: booleanOption('recall', options.recall),
    maxKnownSecrets: integerOption('maxKnownSecrets', options.maxKnownSecrets, 100_000, 100, 1_000_000),
    maxLifetimeMs: maxLifetimeOption(options),
  }
}

const CACHE_METHODS = ['get', 'fill', 'bury', 'forget', 'close'] as const

/** A client of Redis has some of the methods, and would fail only later. */
function isCache(cache: unknown): cache is Cache {
  return typeof cache === 'object' && cache !== null && CACHE_METHODS.every((name) => typeof (cache as Partial<Cache>)[name] === 'function')
}

function isStore(store: unknown): store is Store {
  return typeof store === 'object' && store !== null && 'read' in store && 'transaction' in store && 'members' in store
}

function serverSecretOption(secret: ApiKeysOptions['serverSecret']): Settings['serverSecrets'] {
  const list = Array.isArray(secret) ? secret : [secret]
  // Copied: an application may well wipe its own buffer once we have it.
  const bytes = list.map((one: unknown) =>
    typeof one === 'string' ? Buffer.from(one) : one instanceof Uint8Array ? Uint8Array.from(one) : undefined,
  )
  const [current, ...previous] = bytes.filter((one) => one !== undefined && one.byteLength >= MIN_SERVER_SECRET_BYTES) as Uint8Array[]
  if (current === undefined || bytes.length !== previous.length + 1) {
    throw invalidOption(
      `serverSecret must be at least ${MIN_SERVER_SECRET_BYTES} bytes, or a list of such with the current one first; make one with: openssl rand -base64 32`,
    )
  }
  return [current, ...previous]
}

function prefixOption(prefix: string | undefined): string {
  if (prefix === undefined) return 'sk'
  if (typeof prefix === 'string' && /^[a-z][a-z0-9_]{0,31}$/.test(prefix) && !prefix.endsWith('_') && !/^rot(_|$)/.test(prefix))
    return prefix
  throw invalidOption(
    'prefix must be 1 to 32 lower-case letters, digits and inner "_", begin with a letter, and not be "rot" or "rot_…", such as "sk".',
  )
}

function acceptedPrefixesOption(prefixes: readonly string[] | undefined): readonly string[] {
  if (prefixes === undefined) return []
  if (!Array.isArray(prefixes)) throw invalidOption('acceptedPrefixes must be a list of prefixes, such as ["sk"].')
  return prefixes.map(prefixOption)
}

const CENTURY_MS = 36_525 * 86_400_000

function maxLifetimeOption(options: ApiKeysOptions): number | undefined {
  if (!('maxLifetimeMs' in options)) return undefined
  // What is computed and came out undefined would lift the bound.
  if (options.maxLifetimeMs === undefined)
    throw invalidOption('maxLifetimeMs is undefined, which would let keys live for ever. Leave it out if you mean that.')
  return integerOption('maxLifetimeMs', options.maxLifetimeMs, CENTURY_MS, 60_000, CENTURY_MS)
}

function booleanOption(name: string, value: boolean | undefined): boolean {
  if (value === undefined || typeof value === 'boolean') return value ?? true
  throw invalidOption(`${name} must be true or false.`)
}
