import { timeOrderedId } from '../../src/core/id.js'
import { isKeyId } from '../../src/core/key.js'

test('ids are UUIDs of version 7 that begin with their instant', () => {
  const at = Date.UTC(2090, 0, 1)
  const id = timeOrderedId(at)
  expect(isKeyId(id)).toBe(true)
  expect(id.replace('-', '').slice(0, 12)).toBe(at.toString(16).padStart(12, '0'))
  expect([id[14], '89ab'.includes(id[19] ?? '')]).toEqual(['7', true])
})

test('ids are in the order of making, inside a millisecond and where the clock is set back too', () => {
  const at = Date.UTC(2091, 0, 1)
  const made = [...Array.from({ length: 5_000 }, () => timeOrderedId(at)), timeOrderedId(at - 1_000), timeOrderedId(at + 1_000)]
  expect(made.toSorted()).toEqual(made)
  expect(new Set(made).size).toBe(made.length)
})
