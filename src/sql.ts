export type { SqlDialect } from './store/sql.js'
export type { SqlStoreOptions } from './store/sql.js'
export { sqlStore } from './store/sql.js'
