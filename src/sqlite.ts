export type { SqliteHandle, SqliteStoreOptions } from './store/sqlite.js'
export { sqliteStore } from './store/sqlite.js'
