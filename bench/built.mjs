// What is measured: the package as it is built. The types come from its sources (built.d.mts), so that a type check needs no build.

export { redisCache } from '../dist/esm/cache/redis/redis-cache.js'
export { replaySeals } from '../dist/esm/core/change/replay-seal.js'
export { digestOf, secretFormat } from '../dist/esm/core/secret.js'
export { bearerAuth, createApiKeys, memoryStore } from '../dist/esm/index.js'
export { postgresStore } from '../dist/esm/store/sql/postgres.js'
export { sqliteStore } from '../dist/esm/store/sql/sqlite.js'
