import { dropOldest } from '../src/drop-oldest.js'

test('a table that is over its size loses the entry that was added first, and no other', () => {
  const map = new Map([
    ['a', 1],
    ['b', 2],
  ])
  dropOldest(map, 2)
  expect([...map.keys()]).toEqual(['a', 'b'])
  map.delete('a')
  map.set('a', 3).set('c', 4)
  dropOldest(map, 2)
  expect([...map.keys()]).toEqual(['a', 'c'])
  const set = new Set([undefined, 1])
  dropOldest(set, 1)
  expect([...set]).toEqual([1])
})
