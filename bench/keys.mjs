import pg from 'pg'
import { createApiKeys, digestOf, postgresStore, secretFormat } from './built.mjs'
import { freshDatabase } from './services.mjs'

export const SERVER_SECRET = 'the-server-secret-of-these-benchmarks-0123456789'
export const SCOPE = 'reports:read'

/** As many at a time as fit a statement comfortably. */
const BATCH = 20_000

/** @param {number} count */
export function mintSecrets(count) {
  const format = secretFormat('sk', true)
  return Array.from({ length: count }, () => format.mint('sk_live_').secret)
}

/**
 * A secret of the same shape whose checksum does not fit.
 *
 * @param {string} secret
 */
export function mistyped(secret) {
  return secret.slice(0, -1) + (secret.endsWith('0') ? '1' : '0')
}

/** @typedef {ReturnType<typeof postgresStore>} Store */

/**
 * The same store, and how often it was read and for how many digests in all.
 *
 * @param {Store} inner
 */
export function countingReads(inner) {
  const counts = { reads: 0, digests: 0 }
  /** @type {Store} */
  const store = {
    ...inner,
    read(...asked) {
      counts.reads++
      counts.digests += asked[0].length
      return inner.read(...asked)
    },
  }
  return { store, counts }
}

/**
 * Makes a database with the package's tables that holds a key for each secret and `others` more that are never presented.
 *
 * @param {string} serverUrl
 * @param {readonly string[]} secrets
 */
export async function databaseOf(serverUrl, secrets, others = 0) {
  const url = await freshDatabase(serverUrl)
  const pool = new pg.Pool({ connectionString: url, max: 2 })
  const keys = createApiKeys({ store: postgresStore(pool), serverSecret: SERVER_SECRET })
  await keys.migrate()
  await keys.close()
  const insert = (/** @type {string} */ digests, /** @type {unknown[]} */ parameters) =>
    pool.query(`${digests} ${FROM_DIGESTS}`, parameters)
  for (let i = 0; i < secrets.length; i += BATCH) {
    await insert('with made as (select uuidv7()::text as id, digest from unnest($1::text[]) as digest)', [
      secrets.slice(i, i + BATCH).map(digestOf),
    ])
  }
  for (let from = 1; from <= others; from += 5 * BATCH) {
    await insert(
      `with made as (select uuidv7()::text as id, translate(rtrim(encode(sha256(n::text::bytea), 'base64'), '='), '+/', '-_') as digest
        from generate_series($1::int, $2::int) as n)`,
      [from, Math.min(from + 5 * BATCH - 1, others)],
    )
  }
  await pool.query('vacuum analyze express_api_keys, express_api_key_generations')
  const { rows } = await pool.query(
    `select pg_total_relation_size('express_api_keys') + pg_total_relation_size('express_api_key_generations') as bytes`,
  )
  await pool.end()
  return { url, bytes: Number(rows[0].bytes) }
}

const FROM_DIGESTS = `, clock as (select floor(extract(epoch from clock_timestamp()) * 1000)::bigint as now),
  keys as (insert into express_api_keys (id, owner_id, name, environment, scopes, metadata, generation, created_at, updated_at, secret_created_at)
    select id, 'acme', 'bench', 'live', '["${SCOPE}"]', '{}', 1, now, now, now from made, clock)
  insert into express_api_key_generations (digest, key_id, generation, created_at, first_used_at, secret_start, secret_last4)
    select digest, id, 1, now, now, 'sk_live_', 'xxxx' from made, clock`
