import { createRequire } from 'node:module'
import { join } from 'node:path'
import { CliError } from '../exit.js'

/** The drivers are the user's: they are loaded from the project that the command is run in. */

export function pg(): typeof import('pg') {
  return driver(['pg'], 'PostgreSQL') as typeof import('pg')
}

export function mysql2(): typeof import('mysql2') {
  return driver(['mysql2'], 'MySQL') as typeof import('mysql2')
}

export function ioredis(): typeof import('ioredis') {
  return driver(['ioredis'], 'Redis') as typeof import('ioredis')
}

/** A class of the kind of better-sqlite3's. */
export type SqliteDriver = new (
  file: string,
  options?: object,
) => { prepare(source: string): unknown; exec(source: string): unknown; close(): unknown }

export function sqlite(): SqliteDriver {
  return driver(['better-sqlite3', 'libsql'], 'SQLite') as SqliteDriver
}

function driver(names: readonly string[], database: string): unknown {
  // The project first: an own copy could be another version than the application's.
  for (const require of [createRequire(join(process.cwd(), 'package.json')), createRequire(import.meta.url)]) {
    for (const name of names) {
      if (canResolve(require, name)) return require(name)
    }
  }
  throw new CliError(`For ${database} this needs ${names.join(' or ')}, which is not installed here: npm install ${names[0]}`, {
    code: 'driver_missing',
  })
}

function canResolve(require: NodeJS.Require, name: string): boolean {
  try {
    require.resolve(name)
    return true
  } catch {
    return false
  }
}
