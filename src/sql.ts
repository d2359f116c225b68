export type { SqlDialect, SqlStoreOptions } from './store/sql.js'
export { sqlStore } from './store/sql.js'
