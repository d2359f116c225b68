import { fileURLToPath } from 'node:url'
import { CliError } from '../exit.js'

/** Which database `DATABASE_URL` names. */
export type DatabaseUrl = { readonly kind: 'postgres' | 'mysql'; readonly url: string } | { readonly kind: 'sqlite'; readonly file: string }

const FORMS = 'postgres://user:password@host/database, mysql://user:password@host/database, or sqlite:path/to/keys.db'

/** @throws CliError, which does not repeat the address: it may hold a password. */
export function databaseUrl(given: string): DatabaseUrl {
  const scheme = /^([a-z][a-z0-9+]*):/i.exec(given)?.[1]?.toLowerCase()
  switch (scheme) {
    case 'postgres':
    case 'postgresql':
      return { kind: 'postgres', url: given }
    case 'mysql':
    case 'mariadb':
      return { kind: 'mysql', url: given.replace(/^mariadb:/i, 'mysql:') }
    case 'sqlite':
    case 'file':
      return { kind: 'sqlite', file: fileOf(given) }
    // Another database has its line here, and its driver in drivers.ts.
    default:
      throw new CliError(
        `DATABASE_URL ${scheme === undefined ? 'has no scheme' : `begins with ${scheme}:, which is not supported`}; write ${FORMS}.`,
      )
  }
}

/** `file:///a/b`, and `sqlite:`, `sqlite://` or `file:` before a path as it is. */
function fileOf(given: string): string {
  const path = /^file:\/\/\//i.test(given) ? fileURLToPath(given) : given.replace(/^(sqlite|file):(\/\/)?/i, '').replace(/\?.*$/, '')
  if (path !== '' && !/:memory:/.test(path)) return path
  throw new CliError('DATABASE_URL names no file; a database in memory ends with the command.')
}
