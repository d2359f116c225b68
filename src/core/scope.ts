/** The scope that lets a key see the keys of its owner. */
export const READ_SCOPE = 'api_keys:read'
/** The scope that lets a key create, change, rotate and revoke keys of its owner. */
export const WRITE_SCOPE = 'api_keys:write'
/** The scope that lifts the bound on what such a key may hand out. It includes the two others. */
export const ADMIN_SCOPE = 'api_keys:admin'

/**
 * Whether one of the scopes that are held covers the one that is wanted: `hasScope(key.scopes, 'reports:read')`. `reports:*` covers `reports:read`, and `*` covers
 * all but `api_keys:admin`.
 *
 * @throws TypeError for anything but a list and a text.
 */
export function hasScope(held: readonly string[], wanted: string): boolean {
  // A text would be searched for a part of it.
  if (!Array.isArray(held) || typeof wanted !== 'string')
    throw new TypeError('hasScope takes a list of scopes and a scope: hasScope(key.scopes, "reports:read").')
  return held.includes(wanted) || held.some((scope) => covers(scope, wanted))
}

/** Whether a scope that is held covers the one that is wanted. A wildcard never covers `api_keys:admin`. */
export function covers(held: string, wanted: string): boolean {
  if (held === wanted) return true
  if (wanted === ADMIN_SCOPE) return false
  if (held === '*') return true
  if (held === ADMIN_SCOPE) return wanted === READ_SCOPE || wanted === WRITE_SCOPE
  return held.endsWith(':*') && wanted.startsWith(held.slice(0, -1))
}
