/** What a process sends to the authority, by kind. `reads` are those that verdicts rest on, polls of the feed among them. */
export const KINDS = /** @type {const} */ (['reads', 'uses', 'rest'])

/** @typedef {typeof KINDS[number]} Kind */
/** @typedef {{ [kind in Kind]: number }} Statements */

/**
 * Counts what is sent over a pool's connections from now on, where it goes to the driver. What a transaction needs besides is of the kind of what it is for.
 *
 * @param {import('pg').Pool} pool
 * @returns {Statements}
 */
export function countStatements(pool) {
  const counts = { reads: 0, uses: 0, rest: 0 }
  pool.on('connect', (client) => {
    const query = /** @type {(...args: unknown[]) => unknown} */ (client.query)
    /** @type {Kind[] | undefined} */
    let transaction
    const counted = (/** @type {unknown[]} */ ...args) => {
      const [first] = args
      const text = typeof first === 'string' ? first : String(/** @type {{ text?: string }} */ (first).text)
      if (/^\s*(begin|start)\b/i.test(text)) transaction = []
      if (transaction === undefined) counts[kindOf(text)]++
      else transaction.push(kindOf(text))
      if (transaction !== undefined && /\b(commit|rollback)\s*;?\s*$/i.test(text)) {
        counts[transaction.includes('uses') ? 'uses' : 'rest'] += transaction.length
        transaction = undefined
      }
      return query.apply(client, args)
    }
    Object.assign(client, { query: counted })
  })
  return counts
}

/**
 * @param {string} text
 * @returns {Kind}
 */
function kindOf(text) {
  // Written once a minute for each key in use, whatever the lease.
  if (/last_used_at"? =/.test(text)) return 'uses'
  const isRead = /^\s*(select|with)\b/i.test(text) && text.includes('express_api_key_settings') && !text.includes('express_api_key_replays')
  return isRead ? 'reads' : 'rest'
}
