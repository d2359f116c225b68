/** What a process sends to the authority, by kind. `reads` are those that verdicts rest on, polls of the feed among them. */
export const KINDS = /** @type {const} */ (['reads', 'uses', 'rest'])

/** @typedef {{ [kind in typeof KINDS[number]]: number }} Statements */

/**
 * Counts what is sent over a pool's connections from now on, where it goes to the driver.
 *
 * @param {import('pg').Pool} pool
 * @returns {Statements}
 */
export function countStatements(pool) {
  const counts = { reads: 0, uses: 0, rest: 0 }
  pool.on('connect', (client) => {
    const query = /** @type {(...args: unknown[]) => unknown} */ (client.query)
    const counted = (/** @type {unknown[]} */ ...args) => {
      const [first] = args
      counts[kindOf(typeof first === 'string' ? first : String(/** @type {{ text?: string }} */ (first).text))]++
      return query.apply(client, args)
    }
    Object.assign(client, { query: counted })
  })
  return counts
}

/** @param {string} text */
function kindOf(text) {
  // Written once a minute for each key in use, whatever the lease.
  if (/last_used_at"? =/.test(text)) return 'uses'
  return /^\s*(select|with)\b/i.test(text) && text.includes('express_api_key_settings') && !text.includes('express_api_key_replays')
    ? 'reads'
    : 'rest'
}
