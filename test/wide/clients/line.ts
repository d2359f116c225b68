import { once } from 'node:events'
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { buffer } from 'node:stream/consumers'
import { atEnd } from '../../support/cleanup.js'

/** What becomes of one attempt. The server gets each of them, and carries out what it is asked, save for a 429 of something in front of it. */
export type Fault = 'cut' | 'reset' | 'cut in the wait' | 'stall' | 'truncated' | 'headers only' | '502' | '504' | '429' | 'store away'

/** One request that a client makes, attempt by attempt. */
interface Course {
  readonly upstream: string
  /** Where the client is, for `X-Forwarded-For`. */
  readonly address: string
  /** For the first attempts, one by one; later ones go through. */
  readonly faults: readonly Fault[]
  /** Resolves when the server has carried the request out, whether it has answered or not. */
  done(): Promise<void>
  /** Takes the store away from the server, and brings it back. */
  storeAway(away: boolean): void
}

export interface Attempt {
  readonly fault: Fault | undefined
  /** What the server answered, whether the client got it or not. */
  answer?: { readonly status: number; readonly text: string }
}

export interface Line {
  /** The address at which a request takes this course, and the attempts that were made there so far. */
  open(course: Course): { readonly url: string; readonly attempts: readonly Attempt[] }
}

/** A way to servers on which answers get lost, as told for each request. */
export async function startLine(): Promise<Line> {
  const courses: { course: Course; attempts: Attempt[] }[] = []
  // So long that it closes no connection that a client is about to use again.
  const server = createServer({ keepAliveTimeout: 60_000 }, (req, res) => {
    carry(req, res).catch(() => res.destroy())
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  atEnd(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  })
  const { port } = server.address() as AddressInfo
  return {
    open(course) {
      const attempts: Attempt[] = []
      courses.push({ course, attempts })
      return { url: `http://127.0.0.1:${port}/${courses.length - 1}`, attempts }
    },
  }

  async function carry(req: IncomingMessage, res: ServerResponse): Promise<void> {
    const [, number, path] = /^\/(\d+)(\/.*)$/.exec(req.url ?? '') ?? []
    const { course, attempts } = courses[Number(number)] ?? {}
    if (course === undefined || attempts === undefined) throw new Error(`Nothing is at ${req.url}.`)
    const attempt: Attempt = { fault: course.faults[attempts.length] }
    attempts.push(attempt)
    const { fault } = attempt
    if (fault === '429') return void res.writeHead(429, { 'retry-after': '3600' }).end('Too many requests')
    if (fault === 'store away') course.storeAway(true)
    const headers = { ...req.headers, 'x-forwarded-for': course.address, connection: 'close' }
    const onward = request(course.upstream + path, { method: req.method ?? 'POST', headers, agent: false })
    req.pipe(onward)
    if (fault === 'cut in the wait') {
      onward.on('error', () => {})
      await course.done()
      onward.destroy()
      res.destroy()
      return
    }
    const [answer] = (await once(onward, 'response')) as [IncomingMessage]
    const body = await buffer(answer)
    attempt.answer = { status: answer.statusCode ?? 0, text: String(body) }
    if (fault === 'store away') course.storeAway(false)
    give(res, fault, answer, body)
  }
}

function give(res: ServerResponse, fault: Fault | undefined, { statusCode = 0, headers: all }: IncomingMessage, body: Buffer): void {
  const { connection: _, ...headers } = all
  switch (fault) {
    case 'cut':
      return void res.destroy()
    case 'reset':
      return void res.socket?.resetAndDestroy()
    case 'stall':
      return
    case 'truncated':
    case 'headers only':
      res.writeHead(statusCode, headers).flushHeaders()
      res.write(fault === 'truncated' ? body.subarray(0, body.length / 2) : '', () => setImmediate(() => res.destroy()))
      return
    case '502':
    case '504':
      return void res.writeHead(Number(fault), { 'content-type': 'text/html' }).end('<html><h1>The proxy is sorry</h1></html>')
    default:
      res.writeHead(statusCode, headers).end(body)
  }
}
