/** What the store needs of a better-sqlite3 style handle. */
export interface SqliteHandle {
  // biome-ignore lint/suspicious/noExplicitAny: the drivers' own signatures differ
  prepare(source: string): any
  exec(source: string): unknown
  close(): unknown
}
