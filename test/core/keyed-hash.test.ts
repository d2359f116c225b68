import { hmac, lengthPrefixed, subkey } from '../../src/core/keyed-hash.js'

const KEY = Buffer.alloc(32, 1)

test('two lists of parts are hashed alike only where they are the same list', () => {
  const lists = [[], [''], ['', ''], ['ab'], ['a', 'b'], ['ab', ''], ['', 'ab'], ['é'], ['b', 'a']]
  expect(new Set(lists.map((parts) => hmac(KEY, parts))).size).toBe(lists.length)
  expect(hmac(Buffer.alloc(32, 2), ['ab'])).not.toBe(hmac(KEY, ['ab']))
  expect(lengthPrefixed(['é', Buffer.from('b')])).toEqual(Buffer.from([0, 0, 0, 2, 0xc3, 0xa9, 0, 0, 0, 1, 0x62]))
})

test('each purpose has a key of its own, of 32 bytes', () => {
  const [one, other] = [subkey(KEY, 'a'), subkey(KEY, 'b')]
  expect([one.length, one]).toEqual([32, subkey(KEY, 'a')])
  expect(one).not.toEqual(other)
  expect(one).not.toEqual(subkey(Buffer.alloc(32, 2), 'a'))
})
