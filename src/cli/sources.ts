import { randomUUID } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { Writable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { CliError, EXIT } from './exit.js'

/** Where secrets come from: the environment, a file, stdin or a prompt. */

/** A variable, or the content of the file that `NAME_FILE` names, as containers have secrets. */
export function variable(name: string): string | undefined {
  const value = process.env[name]
  if (value !== undefined && value !== '') return value
  const file = process.env[`${name}_FILE`]
  return file === undefined || file === '' ? undefined : contentOf(file, `${name}_FILE`)
}

/** What `env:NAME`, `-` (stdin), `prompt` or a path stands for. */
export async function valueFrom(source: string, option: string): Promise<string> {
  if (source === '-') return firstLine(await text(process.stdin), option)
  if (source === 'prompt') return prompt('Secret: ')
  if (!source.startsWith('env:')) return firstLine(contentOf(source, option), option)
  const name = source.slice('env:'.length)
  const value = process.env[name]
  if (value !== undefined && value !== '') return value.trim()
  throw new CliError(`${option} names the variable ${name}, which is not set.`)
}

/**
 * An Idempotency-Key that outlives this process. A file that is not there yet is made, with a random one in it, before anything is asked: a run that was
 * killed finds it again.
 */
export async function idempotencyKeyFrom(source: string): Promise<string> {
  const option = '--idempotency-key-from'
  // Somebody wrote the value itself, which would become the name of a file.
  if (/^[0-9a-f-]{36}$|^[\w+=-]{40,}$/i.test(source))
    throw new CliError(`${option} takes a file or env:NAME, not the value itself.`, { code: 'secret_in_argument' })
  if (!source.startsWith('env:') && source !== '-' && source !== 'prompt') {
    try {
      writeFileSync(source, `${randomUUID()}\n`, { flag: 'wx', mode: 0o600, flush: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw unreadable(error, option)
    }
  }
  return valueFrom(source, option)
}

function contentOf(file: string, option: string): string {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch (error) {
    throw unreadable(error, option)
  }
}

function firstLine(given: string, option: string): string {
  const line = given.trim().split('\n', 1)[0]?.trim() ?? ''
  if (line === '') throw new CliError(`${option} leads to nothing: what it names is empty.`)
  return line
}

/** Without the name of the file: somebody may have written a secret in its place. */
function unreadable(error: unknown, option: string): CliError {
  return new CliError(`${option} names a file that cannot be used (${(error as NodeJS.ErrnoException).code ?? 'unknown'}).`)
}

/** Whether somebody is there to be asked. */
export function isInteractive(): boolean {
  return process.stdin.isTTY === true && process.stderr.isTTY === true
}

/** Asks for a secret, and shows nothing of it. */
export function prompt(question: string): Promise<string> {
  if (!isInteractive()) throw new CliError('There is no terminal to ask on.')
  return asked(question, false).finally(() => process.stderr.write('\n'))
}

export async function confirmed(question: string): Promise<boolean> {
  return /^y(es)?$/i.test((await asked(`${question} [y/N] `, true)).trim())
}

function asked(question: string, shown: boolean): Promise<string> {
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() })
  const lines = createInterface({ input: process.stdin, output: shown ? process.stderr : silent, terminal: true })
  return new Promise<string>((resolve, reject) => {
    const stopped = (): void => reject(new CliError('Stopped.', { exit: EXIT.interrupted, code: 'interrupted' }))
    lines.once('SIGINT', stopped)
    lines.once('close', stopped)
    // Only now is the terminal's own echo off, and somebody may begin to type.
    if (!shown) process.stderr.write(question)
    lines.question(shown ? question : '', resolve)
  }).finally(() => lines.close())
}
