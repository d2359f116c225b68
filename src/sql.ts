export type { SqlDialect } from './store/sql/sql-store.js'
export type { SqlStoreOptions } from './store/sql/sql-store.js'
export { sqlStore } from './store/sql/sql-store.js'
