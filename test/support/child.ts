import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'

/** A process that can be treated badly. */
export interface Child {
  /** Starts it, or starts it again, and resolves when it prints that it is ready. */
  start(): Promise<void>
  signal(signal: NodeJS.Signals): void
  isUp(): boolean
  /** Sends SIGKILL, or another signal that ends it, and waits for the end. */
  kill(signal?: NodeJS.Signals): Promise<void>
  /** Lets it end by itself, without a word, until it is started again. */
  mayEnd(): void
  /** Its last output, if it ever ended by itself. */
  crash(): string | undefined
}

const running = new Set<ChildProcess>()
/** Its children end with this process, unless SIGKILL ends it. */
process.once('exit', () => running.forEach((child) => void child.kill('SIGKILL')))

const READY_WITHIN_MS = 30_000

/** How to start a process. `ready` matches what it prints when it is ready. */
export interface Start {
  readonly command: string
  readonly args: readonly string[]
  readonly ready: RegExp
  readonly env?: NodeJS.ProcessEnv
  readonly owner?: { readonly uid: number; readonly gid: number } | undefined
}

/** Makes a process that is not started yet. `how` is called at each start. */
export function child(how: () => Start): Child {
  let current: ChildProcess | undefined
  let killed = false
  let said = ''
  let lastWords: string | undefined
  const isUp = (): boolean => current !== undefined && current.exitCode === null && current.signalCode === null
  return {
    isUp,
    async start() {
      const { command, args, ready, env, owner } = how()
      const started = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], ...(env === undefined ? {} : { env }), ...owner })
      current = started
      killed = false
      said = ''
      running.add(started)
      started.once('exit', () => {
        running.delete(started)
        if (!killed) lastWords = said
      })
      await new Promise<void>((resolve, reject) => {
        const fail = (how: string) => () => reject(new Error(`${command} ${args.join(' ')} ${how}: ${said}`))
        const timer = setTimeout(fail('was not ready in time'), READY_WITHIN_MS)
        started.once('error', reject)
        started.once('exit', fail('ended before it was ready'))
        const listen = (chunk: Buffer): void => {
          said = (said + String(chunk)).slice(-4_000)
          if (!ready.test(said)) return
          clearTimeout(timer)
          resolve()
        }
        started.stdout?.on('data', listen)
        started.stderr?.on('data', listen)
        started.once('exit', () => clearTimeout(timer))
      })
    },
    signal: (signal) => void current?.kill(signal),
    async kill(signal = 'SIGKILL') {
      if (current === undefined || !isUp()) return
      killed = true
      const gone = once(current, 'exit')
      current.kill(signal)
      await gone
    },
    mayEnd() {
      killed = true
    },
    crash: () => lastWords,
  }
}
