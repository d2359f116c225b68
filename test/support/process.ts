import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { atEnd } from './cleanup.js'

export interface TestProcess {
  readonly url: string
  readonly child: ChildProcess
  /** Resolves when the process has gone, however it went. */
  readonly gone: Promise<unknown>
  kill(signal?: NodeJS.Signals): Promise<void>
}

export const SERVER_SECRET = 'the-server-secret-of-these-tests-0123456789'

/** Starts `server.ts` as a process of its own and waits until it listens. `program` is another bundle of it. */
export async function startServer(
  env: Record<string, string>,
  program: string | undefined = process.env.TEST_SERVER,
): Promise<TestProcess> {
  if (program === undefined) throw new Error('TEST_SERVER is not set: run the tests with npm test.')
  const child = spawn(process.execPath, [program], {
    env: { ...process.env, SERVER_SECRET, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const gone = once(child, 'exit')
  const kill = async (signal: NodeJS.Signals = 'SIGKILL'): Promise<void> => {
    child.kill(signal)
    await gone
  }
  atEnd(async () => {
    if (child.exitCode === null && child.signalCode === null) await kill()
  })
  const port = await new Promise<string>((resolve, reject) => {
    let said = ''
    const listen = (chunk: Buffer): void => {
      said += String(chunk)
      const ready = /ready (\d+)/.exec(said)?.[1]
      if (ready !== undefined) resolve(ready)
    }
    child.stdout?.on('data', listen)
    child.stderr?.on('data', listen)
    gone.then(() => reject(new Error(`The server ended before it was ready: ${said}`)), reject)
  })
  return { url: `http://127.0.0.1:${port}`, child, gone, kill }
}
