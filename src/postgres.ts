export type { PgClient, PgPool, PostgresStoreOptions } from './store/postgres.js'
export { postgresStore } from './store/postgres.js'
