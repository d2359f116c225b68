/** Drops the entry that was added first, where a table holds more than `max`. An entry that is deleted and set again counts as new. */
export function dropOldest(table: Map<unknown, unknown> | Set<unknown>, max: number): void {
  if (table.size <= max) return
  for (const oldest of table.keys()) {
    table.delete(oldest)
    return
  }
}
