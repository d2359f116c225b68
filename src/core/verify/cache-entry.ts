import { timingSafeEqual } from 'node:crypto'
import type { FeedPosition, KeyRow } from '../../store/store.js'
import { hmac, subkey } from '../keyed-hash.js'
import type { GracePeriod } from './verdict.js'

/** What the cache holds of an active verdict. */
export interface CacheEntry {
  readonly key: KeyRow
  /** Only in a grace period. */
  readonly grace?: GracePeriod
  /** Whether the store knows already that this secret has been used. */
  readonly used: boolean
  /** Where in the feed the verdict was read. */
  readonly position: FeedPosition
  /** On the authority's clock, no later than the snapshot the verdict was read from. */
  readonly at: number
}

/** What the cache holds of a secret that was retired. */
interface Tombstone {
  readonly retired: 'rotated' | 'revoked'
  /** Where in the feed that was read. */
  readonly position: FeedPosition
}

export interface CacheEntryCodec {
  active(storeId: string, digest: string, entry: CacheEntry): string
  tombstone(storeId: string, digest: string, tombstone: Tombstone): string
  /** What was written for this digest of this store; undefined where it was not, or not under a server secret of this instance. */
  open(storeId: string, digest: string, value: string): CacheEntry | Tombstone | undefined
}

/** Names the shape of an entry, as part of what its MAC depends on: a change of `CacheEntry` needs another name. */
const SHAPE = 'cache entry 5'

/**
 * Writes and reads cache entries: `a` or `r`, the MAC, the content. The MAC covers the store and the digest too, so that an entry cannot be
 * moved to another secret or be taken for the word of another database, and whoever can write to the cache cannot make one.
 */
export function cacheEntryCodec(serverSecrets: readonly Uint8Array[]): CacheEntryCodec {
  const keys = serverSecrets.map((secret) => subkey(secret, SHAPE))
  const [current = new Uint8Array(0)] = keys
  const write = (kind: 'a' | 'r', storeId: string, digest: string, content: string): string => {
    // ASCII all through, whatever a name holds: the cache counts bytes.
    const body = Buffer.from(content).toString('base64url')
    return `${kind}.${hmac(current, [kind, storeId, digest, body])}.${body}`
  }

  return {
    active: (storeId, digest, entry) => write('a', storeId, digest, JSON.stringify(entry)),
    tombstone: (storeId, digest, tombstone) => write('r', storeId, digest, JSON.stringify(tombstone)),
    open(storeId, digest, value) {
      const [kind, mac, body, ...more] = value.split('.')
      if ((kind !== 'a' && kind !== 'r') || mac === undefined || body === undefined || more.length > 0) return undefined
      if (!keys.some((key) => equal(mac, hmac(key, [kind, storeId, digest, body])))) return undefined
      return JSON.parse(Buffer.from(body, 'base64url').toString()) as CacheEntry | Tombstone
    },
  }
}

function equal(a: string, b: string): boolean {
  // Both through an HMAC of their own would hide the length too; a MAC's length is no secret.
  return a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))
}
