import type { Cache } from '../../cache/cache.js'
import { cacheTools } from '../../cache/tools.js'
import type { Store } from '../../store/store.js'
import { storeTools } from '../../store/tools.js'
import { type Connection, openCache } from '../connection/open.js'
import { variable } from '../sources.js'
import { type Examined, type Failed, hasFailed } from './examined.js'

/** How long Redis may take. */
const CACHE_MS = 3_000
/** How many changes of the feed are looked at. */
const CHANGES = 1_000

/** Looks at everything that a connection leads to. Changes nothing, and never rejects for what it finds. */
export async function examine({ setup, fromConfig }: Connection): Promise<Examined> {
  const { store, prefixes } = setup
  const tools = storeTools(store)
  const opened = fromConfig ? undefined : await orFailed(openCache)
  const own = hasFailed(opened) ? undefined : opened
  const facts = tools === undefined ? undefined : await orFailed(() => tools.inspect())
  const [cache, rest] = await Promise.all([
    hasFailed(opened) ? opened : cacheFacts(setup.cache ?? own?.cache),
    // A database that does not answer would only say the same again.
    hasFailed(facts) ? nothing : storeFacts(store, fromConfig ? setup.leaseMs : undefined, facts?.standby === true),
  ])
  own?.redis.disconnect()
  return {
    serverSecret: fromConfig ? undefined : serverSecretFacts(),
    prefixes,
    database: tools?.database,
    // In the environment there is only a pool of our own, which says nothing of the application's.
    facts: facts === undefined || hasFailed(facts) || fromConfig ? facts : { ...facts, poolSize: undefined },
    cache,
    channels: [...(cache === undefined ? [] : ['redis']), ...(store.channel === undefined ? [] : ['postgres'])],
    ...rest,
  }
}

type StoreFacts = Pick<Examined, 'versions' | 'membership' | 'feed' | 'leaseMs' | 'starts'>

const nothing: StoreFacts = { versions: undefined, membership: undefined, feed: undefined, leaseMs: undefined, starts: [] }

async function storeFacts(store: Store, applicationLeaseMs: number | undefined, standby: boolean): Promise<StoreFacts> {
  const versions = await storeTools(store)
    ?.versions()
    .catch(() => undefined)
  // Without tables, or with those of another release, each question would fail for that reason alone.
  if (standby || (versions !== undefined && versions.found !== versions.known)) return { ...nothing, versions }
  const read = await orFailed(() => store.read([]))
  if (hasFailed(read)) return { ...nothing, versions, feed: read }
  const { seq, prunedTo } = read.feed
  const whole = await orFailed(async () => {
    await store.read([], { after: Math.max(prunedTo, seq - CHANGES) })
    return 'whole' as const
  })
  const newest = await orFailed(() => store.keys({ limit: 100 }))
  return {
    versions,
    membership: await orFailed(() => store.members()),
    feed: whole,
    leaseMs: { store: read.leaseMs, application: applicationLeaseMs },
    starts: hasFailed(newest) ? [] : [...new Set(newest.map(({ secretStart }) => secretStart))],
  }
}

async function cacheFacts(cache: Cache | undefined): Promise<Examined['cache']> {
  const tools = cache && cacheTools(cache)
  return tools && orFailed(() => tools.inspect(CACHE_MS))
}

function serverSecretFacts(): Examined['serverSecret'] {
  const given = variable('API_KEYS_SECRET')
  return given === undefined ? 'missing' : { bytes: Buffer.byteLength(given) }
}

async function orFailed<T>(look: () => Promise<T>): Promise<T | Failed> {
  try {
    return await look()
  } catch (error) {
    return { error: error instanceof Error ? error : new Error('Something unforeseen went wrong.') }
  }
}
