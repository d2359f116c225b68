import { onceIn } from '../../src/core/once-in.js'

test('a subject is due once in the period, each for itself', () => {
  let now = 0
  const isDue = onceIn(1_000, 2, () => now)
  expect([isDue('a'), isDue('a'), isDue('b'), isDue('b')]).toEqual([true, false, true, false])
  now = 999
  expect(isDue('a')).toBe(false)
  now = 1_000
  expect([isDue('a'), isDue('a')]).toEqual([true, false])
})

test('of more subjects than are kept, the one that was due longest ago is due again', () => {
  let now = 0
  const isDue = onceIn(1_000, 2, () => now)
  for (const subject of ['a', 'b']) isDue(subject)
  now = 1_000
  isDue('a')
  expect([isDue('c'), isDue('a'), isDue('b')]).toEqual([true, false, true])
})
