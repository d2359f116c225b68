import { existsSync } from 'node:fs'
import { monotonicMs } from '../../real-time.js'
import type { FeedPosition } from '../store.js'
import type { SqliteHandle } from './sqlite-handle.js'

/** The position of the last committed change, as any process that has the file can see it at once. */
export interface Committed {
  /** Undefined where it cannot be told right now: no table yet, or a lock that would have to be waited for. */
  currentPosition(): FeedPosition | undefined
  /** Ends the handle; the next call opens another. */
  close(): void
}

interface Statement {
  get(): unknown
}

type Driver = new (file: string, options: object) => SqliteHandle

/** For how long nothing is tried after a failure: opening a file takes much longer than looking into it. */
const PAUSE_MS = 20

/**
 * Looks on a second handle, which sees what is committed and nothing else: the store's own would see what it is about to commit. The handle is opened at the first
 * call, by the driver of the one that is given, since two copies of SQLite in one process would drop each other's locks.
 *
 * Undefined where a second handle would not see the same data: in memory, in a temporary file, or behind an object that is not the driver's own.
 */
export function committedPosition(database: SqliteHandle): Committed | undefined {
  const [file, driver] = [fileOf(database), driverOf(database)]
  if (file === undefined || driver === undefined) return undefined
  let handle: SqliteHandle | undefined
  let statement: Statement | undefined
  let pauseEnds = 0

  const close = (): void => {
    const old = handle
    handle = statement = undefined
    try {
      old?.close()
    } catch {
      // It is of no use any more, and whoever asked wants an answer.
    }
  }

  const open = (): Statement => {
    // Some drivers would make an empty file.
    if (!existsSync(file)) throw new Error('The file is gone.')
    handle = new driver(file, { readonly: true, fileMustExist: true, timeout: 0 })
    if (handle === database || fileOf(handle) !== file) throw new Error('The driver opened something else.')
    // A wait would block the event loop.
    handle.exec('pragma busy_timeout = 0')
    return handle.prepare('select seq, tag from express_api_key_feed where id = 1') as Statement
  }

  return {
    currentPosition() {
      if (statement === undefined && monotonicMs() < pauseEnds) return undefined
      try {
        statement ??= open()
        const { seq, tag } = (statement.get() ?? {}) as { seq?: unknown; tag?: unknown }
        return typeof seq === 'number' && typeof tag === 'string' ? { seq, tag } : undefined
      } catch {
        // In libsql a statement that was busy once may go on counting as in progress, so nothing of it is kept.
        close()
        pauseEnds = monotonicMs() + PAUSE_MS
        return undefined
      }
    },
    close,
  }
}

/** The file of a database, absolute; undefined where it has none. */
function fileOf(database: SqliteHandle): string | undefined {
  try {
    const listed = database.prepare('pragma database_list').all() as readonly { name?: unknown; file?: unknown }[]
    const file = listed.find(({ name }) => name === 'main')?.file
    return typeof file === 'string' && file !== '' ? file : undefined
  } catch {
    return undefined
  }
}

/** The class that the driver itself makes handles of; that of an application may be derived from it, and do more. */
function driverOf(database: SqliteHandle): Driver | undefined {
  let found: unknown
  for (let each: unknown = Object.getPrototypeOf(database); each !== null && each !== undefined; each = Object.getPrototypeOf(each)) {
    if (Object.hasOwn(each as object, 'prepare')) found = (each as { constructor?: unknown }).constructor
  }
  return typeof found === 'function' && found.name === 'Database' ? (found as Driver) : undefined
}
