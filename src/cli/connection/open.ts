import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import type { Redis } from 'ioredis'
import type { Cache } from '../../cache/cache.js'
import type { ApiKeys } from '../../core/api-keys.js'
import { internalsOf, type Setup } from '../../core/internals.js'
import { ApiKeyError, type ApiKeyErrorCode } from '../../errors.js'
import type { Store } from '../../store/store.js'
import { CliError } from '../exit.js'
import { isInteractive, prompt, variable } from '../sources.js'
import { keysOfConfig } from './config.js'
import { ioredis, mysql2, pg, sqlite } from './drivers.js'
import { databaseUrl } from './url.js'

/** What a command works with. */
export interface Connection {
  readonly keys: ApiKeys
  readonly setup: Setup
  /** Whether it all comes from a module of the application's. */
  readonly fromConfig: boolean
  /** What else that module exports. */
  exported(name: string): unknown
  close(): Promise<void>
}

export interface ConnectionOptions {
  readonly config?: string
  readonly prefix?: string
  readonly acceptedPrefix?: readonly string[]
}

/** What a command is going to do: read keys, change them, make tables, or look at a database that may be empty. Only a change needs the server secret, and Redis. */
export type Purpose = 'read' | 'change' | 'tables' | 'look'

export async function connect({ config, prefix, acceptedPrefix }: ConnectionOptions, purpose: Purpose): Promise<Connection> {
  const file = config ?? process.env.API_KEYS_CONFIG
  if (file !== undefined && file !== '') {
    if (prefix !== undefined) throw new CliError('--prefix is what the module of --config says; leave it out.')
    const { keys, exported } = await keysOfConfig(file)
    return { keys, setup: internalsOf(keys, 'The command line').setup, fromConfig: true, exported, close: () => keys.close() }
  }
  const serverSecret = purpose === 'change' ? await serverSecretOf() : randomBytes(32)
  const opened = await openStore(purpose)
  const cached = purpose === 'change' ? await openCache() : undefined
  // Loaded only now, so that help and refusals come at once.
  const { createApiKeys } = await import('../../core/create-api-keys.js')
  try {
    const keys = createApiKeys({
      store: opened.store,
      cache: cached?.cache,
      serverSecret,
      onError: tellUnlessThrown,
      prefix: prefix ?? prefixOfEnvironment(),
      acceptedPrefixes: acceptedPrefix,
    })
    const close = async (): Promise<void> => {
      await keys.close()
      await opened.close()
      cached?.redis.disconnect()
    }
    return { keys, setup: internalsOf(keys, 'The command line').setup, fromConfig: false, exported: () => undefined, close }
  } catch (error) {
    await opened.close()
    cached?.redis.disconnect()
    throw error
  }
}

/** Undefined for that of a new application. */
export function prefixOfEnvironment(): string | undefined {
  return process.env.API_KEYS_PREFIX === '' ? undefined : process.env.API_KEYS_PREFIX
}

async function serverSecretOf(): Promise<string> {
  const given = variable('API_KEYS_SECRET')
  if (given !== undefined) return given
  if (isInteractive()) return prompt('API_KEYS_SECRET is not set. Server secret: ')
  throw new CliError('API_KEYS_SECRET is not set: give the serverSecret that the application has, or API_KEYS_SECRET_FILE, or --config.')
}

/** How long to wait for a connection: somebody sits in front of it. */
const CONNECT_MS = 5_000

interface Opened {
  readonly store: Store
  close(): Promise<void>
}

async function openStore(purpose: Purpose): Promise<Opened> {
  const given = variable('DATABASE_URL')
  if (given === undefined) {
    throw new CliError('DATABASE_URL is not set: write postgres://…, mysql://… or sqlite:path/to/keys.db into it, or give --config.')
  }
  const database = databaseUrl(given)
  if (database.kind === 'sqlite') return openSqlite(database.file, purpose)
  if (database.kind === 'mysql') return openMysql(database.url)
  const { Pool } = pg()
  const pool = new Pool({ connectionString: database.url, connectionTimeoutMillis: CONNECT_MS, application_name: 'express-api-keys' })
  const { postgresStore } = await import('../../store/sql/postgres.js')
  return { store: postgresStore(pool), close: () => pool.end() }
}

async function openMysql(uri: string): Promise<Opened> {
  const pool = mysql2().createPool({ uri, connectTimeout: CONNECT_MS })
  const { mysqlStore } = await import('../../store/sql/mysql.js')
  return { store: mysqlStore(pool), close: () => pool.promise().end() }
}

async function openSqlite(file: string, purpose: Purpose): Promise<Opened> {
  // SQLite would make an empty one, and the next complaint would be about tables.
  const exists = existsSync(file)
  if (!exists && (purpose === 'read' || purpose === 'change')) {
    throw new ApiKeyError('store_misconfigured', `There is no file ${file}; check DATABASE_URL, or run: npx express-api-keys migrate`)
  }
  const Database = sqlite()
  const { sqliteStore } = await import('../../store/sql/sqlite.js')
  let database: InstanceType<typeof Database>
  try {
    database = new Database(!exists && purpose === 'look' ? ':memory:' : file)
  } catch (cause) {
    throw new ApiKeyError(
      'store_misconfigured',
      'The SQLite file cannot be opened; check its path, and let the process write in its folder.',
      { cause },
    )
  }
  return { store: sqliteStore(database), close: async () => void database.close() }
}

/** The cache that REDIS_URL names; undefined without one. Where it does not answer, changes go on without it. */
export async function openCache(): Promise<{ readonly cache: Cache; readonly redis: Redis } | undefined> {
  const given = variable('REDIS_URL')
  if (given === undefined) return undefined
  const { Redis: Client } = ioredis()
  const redis = new Client(given, { lazyConnect: true, maxRetriesPerRequest: 1, connectTimeout: CONNECT_MS, retryStrategy: () => 500 })
  redis.on('error', () => {})
  const { redisCache } = await import('../../cache/redis/redis-cache.js')
  return { cache: redisCache(redis, { onStateChange: () => {} }), redis }
}

/** Failures that the command itself ends with. */
const THROWN: readonly ApiKeyErrorCode[] = ['store_unavailable', 'store_misconfigured', 'outcome_unknown']

function tellUnlessThrown(error: ApiKeyError): void {
  if (!THROWN.includes(error.code)) console.error(`express-api-keys: ${error.message}`)
}
