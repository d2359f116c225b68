// What is measured: the package as it is built. The types come from its sources (built.d.mts), so that a type check needs no build.
import { pathToFileURL } from 'node:url'

/** With `--old`, the release before stands in the place of this code. */
const { BENCH_PACKAGE } = process.env
const folder = BENCH_PACKAGE === undefined ? new URL('../', import.meta.url) : pathToFileURL(`${BENCH_PACKAGE}/`)
const part = (/** @type {string} */ file) => import(new URL(`dist/esm/${file}`, folder).href)

export const { redisCache } = await part('cache/redis/redis-cache.js')
export const { replaySeals } = await part('core/change/replay-seal.js')
export const { digestOf, secretFormat } = await part('core/secret.js')
export const { bearerAuth, createApiKeys, memoryStore } = await part('index.js')
export const { postgresStore } = await part('store/sql/postgres.js')
export const { sqliteStore } = await part('store/sql/sqlite.js')
