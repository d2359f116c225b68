import { setTimeout } from 'node:timers/promises'
import { type Connection, type ConnectionOptions, connect, type Purpose } from './connection/open.js'
import { EXIT } from './exit.js'
import type { Output } from './output.js'

/** What every command is given, from the options before and behind its name. */
export interface GlobalOptions extends ConnectionOptions {
  readonly json?: boolean
}

/** One run of one command. */
export interface Session extends Connection {
  readonly out: Output
  /** Runs a change to its end, whatever Ctrl-C says: what it made must not be lost half-way. */
  change<T>(work: Promise<T>): Promise<T>
}

export async function inSession<T>(
  globals: GlobalOptions,
  out: Output,
  purpose: Purpose,
  work: (session: Session) => Promise<T>,
): Promise<T> {
  const connection = await connect(globals, purpose)
  try {
    return await work({ ...connection, out, change: (running) => uninterrupted(running, out) })
  } finally {
    await soon(connection.close())
  }
}

/** A connection that is dead may take long to say goodbye, and the process ends in any case. */
const CLOSE_MS = 5_000

function soon(closing: Promise<void>): Promise<void> {
  return Promise.race([closing.catch(() => {}), setTimeout(CLOSE_MS)])
}

/** How many changes are under way. */
let changing = 0
let warned = false

async function uninterrupted<T>(running: Promise<T>, out: Output): Promise<T> {
  changing++
  says = out
  try {
    return await running
  } finally {
    changing--
  }
}

let says: Output | undefined

/** Ctrl-C ends the process at once, but for a change that is under way: that one is waited for, unless Ctrl-C comes again. */
export function handleSignals(): void {
  for (const [signal, exit] of [
    ['SIGINT', EXIT.interrupted],
    ['SIGTERM', 143],
  ] as const) {
    process.on(signal, () => {
      if (changing === 0 || warned) process.exit(exit)
      warned = true
      says?.say('A change is under way, and its result would be lost: waiting for it. Press Ctrl-C again to leave without it.')
    })
  }
}
