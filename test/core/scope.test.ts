import { covers, hasScope } from '../../src/core/scope.js'

test.each<[held: string, wanted: string, covered: boolean]>([
  ['reports:read', 'reports:read', true],
  ['reports:read', 'reports:write', false],
  ['reports:*', 'reports:read', true],
  ['reports:*', 'reports:daily:read', true],
  ['reports:*', 'reports:*', true],
  ['reports:*', 'reports', false],
  ['reports:*', 'reportsx', false],
  ['reports:daily:*', 'reports:*', false],
  ['report*', 'reports:read', false],
  ['*', 'reports:read', true],
  ['*', 'reports:*', true],
  ['*', '*', true],
  ['*', 'api_keys:write', true],
  ['*', 'api_keys:admin', false],
  ['api_keys:*', 'api_keys:write', true],
  ['api_keys:*', 'api_keys:admin', false],
  ['api_keys:admin', 'api_keys:admin', true],
  ['api_keys:admin', 'api_keys:write', true],
  ['api_keys:admin', 'api_keys:read', true],
  ['api_keys:admin', 'reports:read', false],
  ['api_keys:admin', '*', false],
  ['reports:read', '*', false],
])('a key with the scope %s covers %s: %p', (held, wanted, covered) => {
  expect(covers(held, wanted)).toBe(covered)
})

test('of several scopes, one that covers is enough', () => {
  expect(hasScope(['a', 'reports:*'], 'reports:read')).toBe(true)
  expect(hasScope(['a', 'reports:*'], 'b')).toBe(false)
  expect(hasScope([], 'a')).toBe(false)
})

test.each<[unknown, unknown]>([
  ['reports:readonly', 'reports:read'],
  [undefined, 'a'],
  [{ scopes: ['a'] }, 'a'],
  [['a'], undefined],
  [['a'], ['a']],
])('hasScope takes a list and a text: %j, %j is a mistake', (held, wanted) => {
  expect(() => hasScope(held as string[], wanted as string)).toThrow(TypeError)
})
