import { type CacheEntry, cacheEntryCodec } from '../../../src/core/verify/cache-entry.js'
import type { KeyRow } from '../../../src/store/store.js'

const [OLD, NEW] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)]
const codec = cacheEntryCodec([OLD])
const entry: CacheEntry = { key: { name: 'é' } as KeyRow, used: true, position: { seq: 7, tag: 't' }, at: 1_000 }
const active = codec.active('store', 'digest', entry)
const tombstone = codec.tombstone('store', 'digest', { retired: 'revoked', position: { seq: 8, tag: 'u' } })

test('what was written is read, and is ASCII', () => {
  expect(codec.open('store', 'digest', active)).toEqual(entry)
  expect(codec.open('store', 'digest', tombstone)).toEqual({ retired: 'revoked', position: { seq: 8, tag: 'u' } })
  expect(active).toMatch(/^a\.[\w-]{43}\.[\w-]+$/)
})

test.each([
  ['of another store', 'other', 'digest', active],
  ['of another digest', 'store', 'other', active],
  ['a tombstone of another store', 'other', 'digest', tombstone],
  ['that is made into a tombstone', 'store', 'digest', active.replace(/^a/, 'r')],
  ['of no kind', 'store', 'digest', active.replace(/^a/, 'b')],
  ['with another MAC', 'store', 'digest', active.replace(/\.[\w-]{43}\./, `.${'A'.repeat(43)}.`)],
  ['with a shorter MAC', 'store', 'digest', active.replace(/\.[\w-]{43}\./, '.A.')],
  ['with other content', 'store', 'digest', active.replace(/[\w-]+$/, Buffer.from('{}').toString('base64url'))],
  ['with more behind it', 'store', 'digest', `${active}.A`],
  ['without content', 'store', 'digest', active.replace(/\.[\w-]+$/, '')],
  ['of nothing', 'store', 'digest', ''],
])('P3, P5: an entry %s is not read', (_what, storeId, digest, value) => {
  expect(codec.open(storeId, digest, value)).toBeUndefined()
})

test('an entry from before the server secret was changed is read, and one of an unknown server secret is not', () => {
  expect(cacheEntryCodec([NEW, OLD]).open('store', 'digest', active)).toEqual(entry)
  expect(cacheEntryCodec([NEW]).open('store', 'digest', active)).toBeUndefined()
})
