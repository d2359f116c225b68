import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build } from 'esbuild'
import { atEnd } from './cleanup.js'
import { SERVER_SECRET } from './process.js'

const ROOT = join(__dirname, '../..')
let built: Promise<string> | undefined

/** The command line as one file, inside the project, so that it finds what it loads. */
export function cliProgram(): Promise<string> {
  built ??= (async () => {
    const outfile = join(ROOT, '.tmp', `cli-${process.pid}.mjs`)
    atEnd(async () => rmSync(outfile, { force: true }))
    await build({
      entryPoints: [join(ROOT, 'src/cli/main.ts')],
      outfile,
      bundle: true,
      platform: 'node',
      format: 'esm',
      packages: 'external',
    })
    return outfile
  })()
  return built
}

export interface Ran {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly input?: string
}

/** Starts the command line as a user would, with nothing in the environment but what is given. */
export async function startCli(args: readonly string[], { env = {}, cwd = ROOT }: RunOptions = {}): Promise<ChildProcess> {
  const { PATH = '', HOME = '' } = process.env
  return spawn(process.execPath, [await cliProgram(), ...args], { cwd, env: { PATH, HOME, ...env }, stdio: 'pipe' })
}

/** Runs it to its end. */
export async function cli(args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  const child = await startCli(args, options)
  const [stdout, stderr] = [child.stdout, child.stderr].map(collected)
  child.stdin?.on('error', () => {})
  child.stdin?.end(options.input ?? '')
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, stdout: await (stdout as Promise<string>), stderr: await (stderr as Promise<string>) }
}

async function collected(stream: NodeJS.ReadableStream | null): Promise<string> {
  let text = ''
  for await (const chunk of stream ?? []) text += String(chunk)
  return text
}

/** The command line on one database: `run('list', '--json')`. */
export function cliOn(url: string, more: Readonly<Record<string, string>> = {}): (...args: string[]) => Promise<Ran> {
  const env = { DATABASE_URL: url, API_KEYS_SECRET: SERVER_SECRET, ...more }
  return (...args) => cli(args, { env })
}

/** A folder of its own, gone after the tests of this file. */
export function ownFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'api-keys-cli-'))
  atEnd(async () => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** The same text with every id, secret, cursor and instant as its kind, so that two runs compare. */
export function steady(text: string): string {
  return text
    .replaceAll(/\b(sk|rot)_(live|test)_[0-9A-Za-z]{49}\b/g, '$1_$2_SECRET')
    .replaceAll(/[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}/g, 'ID')
    .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g, 'INSTANT')
    .replaceAll(/…[0-9A-Za-z]{4}\b/g, '…LAST')
    .replaceAll(/cli\/[\d.]+ \([^)]*\)/g, 'cli/VERSION (USER)')
    .replaceAll(/ {2,}/g, '  ')
}

/** A module of an application's, for `--config`, that may import the package and the drivers. */
export async function configModule(code: string): Promise<string> {
  const outfile = join(ROOT, '.tmp', `cli-config-${process.pid}-${configs++}.mjs`)
  atEnd(async () => rmSync(outfile, { force: true }))
  await build({
    stdin: { contents: code, resolveDir: ROOT, loader: 'ts' },
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    external: ['pg', 'ioredis', 'libsql', 'bcrypt', 'kysely'],
  })
  return outfile
}
let configs = 0
