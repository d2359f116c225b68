import { Agent, request } from 'node:http'
import type { Took } from './check.js'
import { TOOK } from './meter.js'

export interface Question {
  readonly method: 'GET' | 'POST'
  readonly path: string
  readonly secret: string
  readonly patienceMs: number
  readonly idempotencyKey?: string | undefined
  readonly body?: object | undefined
  /** Whether it goes over a line on which every answer is lost. */
  readonly lost?: boolean | undefined
}

/** Where a server is asked: over its line, and over one on which what it answers is lost. */
export interface Ports {
  readonly port: number
  readonly losingPort: number
}

export interface Answer {
  /** 0 where no whole answer came in time. */
  readonly status: number
  readonly body?: unknown
  readonly replayed: boolean
  /** What the server says of the time that it took. */
  readonly took?: Took
}

/** The HTTP clients of this world: the one that Node has had for ever, and `fetch`. */
export type Way = 'http' | 'fetch'
export const ways: readonly Way[] = ['http', 'fetch']

export interface Requests {
  /** Sends one request, once. Never rejects. */
  ask(way: Way, server: number, question: Question): Promise<Answer>
  close(): void
}

const NONE: Answer = { status: 0, replayed: false }

/** Sends requests to servers of this machine over connections that are kept. */
export function requests(servers: readonly Ports[]): Requests {
  const agents = servers.map(() => new Agent({ keepAlive: true, noDelay: true }))
  return {
    ask: (way, server, question) => (way === 'fetch' ? byFetch(server, question) : byHttp(server, question)),
    close() {
      for (const agent of agents) agent.destroy()
    },
  }

  function portOf(server: number, { lost }: Question): number | undefined {
    return lost === true ? servers[server]?.losingPort : servers[server]?.port
  }

  async function byFetch(server: number, question: Question): Promise<Answer> {
    try {
      const answer = await fetch(`http://127.0.0.1:${portOf(server, question)}${question.path}`, {
        method: question.method,
        headers: headersOf(question),
        signal: AbortSignal.timeout(question.patienceMs),
        ...(question.body === undefined ? {} : { body: JSON.stringify(question.body) }),
      })
      return read(answer.status, await answer.text(), (name) => answer.headers.get(name) ?? undefined)
    } catch {
      return NONE
    }
  }

  function byHttp(server: number, question: Question): Promise<Answer> {
    const { method, path, body, patienceMs } = question
    return new Promise((resolve) => {
      const none = (): void => resolve(NONE)
      const where = { host: '127.0.0.1', port: portOf(server, question), agent: agents[server] }
      const asked = request({ ...where, method, path, headers: headersOf(question) }, (answer) => {
        const parts: Buffer[] = []
        answer.on('data', (part: Buffer) => parts.push(part))
        answer.on('error', none)
        answer.on('end', () => {
          const text = Buffer.concat(parts).toString()
          resolve(answer.complete ? read(answer.statusCode ?? 0, text, (name) => answer.headers[name]?.toString()) : NONE)
        })
      })
      const timer = setTimeout(() => asked.destroy(), patienceMs)
      asked.on('close', () => {
        clearTimeout(timer)
        none()
      })
      asked.on('error', none)
      asked.end(body === undefined ? undefined : JSON.stringify(body))
    })
  }
}

function headersOf({ secret, idempotencyKey, body }: Question): Record<string, string> {
  return {
    authorization: `Bearer ${secret}`,
    ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
    ...(body === undefined ? {} : { 'content-type': 'application/json' }),
  }
}

function read(status: number, text: string, header: (name: string) => string | undefined): Answer {
  const took = header(TOOK)
  try {
    const body = JSON.parse(text) as unknown
    const replayed = header('idempotent-replayed') === 'true'
    return { status, body, replayed, ...(took === undefined ? {} : { took: JSON.parse(took) as Took }) }
  } catch {
    return { status, replayed: false }
  }
}
