export type { PgClient } from './store/postgres.js'
export type { PgPool } from './store/postgres.js'
export type { PostgresStoreOptions } from './store/postgres.js'
export { postgresStore } from './store/postgres.js'
