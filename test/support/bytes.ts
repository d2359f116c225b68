import { connect, type Socket } from 'node:net'

/** One answer as it came over the wire. */
export interface RawAnswer {
  readonly status: number
  readonly headers: { readonly [name: string]: string }
  readonly body: string
}

export interface Wire {
  readonly socket: Socket
  /** Resolves when this many answers have come in whole, or the connection has ended; interim ones (1xx) do not count. */
  answers(count: number): Promise<readonly RawAnswer[]>
  /** All that has come in, as text. */
  heard(): string
}

/** How long an answer, or the end of the connection, may take before the server counts as hanging. */
const HANGS_AFTER_MS = 20_000

/** Opens a connection on which a test writes what it likes, byte by byte. */
export async function wire(port: number): Promise<Wire> {
  const socket = connect(port, '127.0.0.1').setNoDelay(true)
  const chunks: Buffer[] = []
  const heard = (): string => Buffer.concat(chunks).toString('latin1')
  let ended = false
  let wake: () => void = () => {}
  socket.on('data', (chunk) => {
    chunks.push(chunk)
    wake()
  })
  // A reset is an end like any other.
  socket.on('error', () => {})
  socket.on('close', () => {
    ended = true
    wake()
  })
  await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject))

  return {
    socket,
    heard,
    answers: (count) =>
      new Promise((resolve, reject) => {
        const hangs = setTimeout(() => reject(new Error(`No answer and no end after ${HANGS_AFTER_MS} ms: ${heard()}`)), HANGS_AFTER_MS)
        wake = () => {
          const whole = parse(heard(), ended)
          if (whole.length < count && !ended) return
          clearTimeout(hangs)
          resolve(whole)
        }
        wake()
      }),
  }
}

/** Sends bytes on a connection of their own and takes the first answer; undefined where the server just hung up. */
export async function exchangeBytes(
  port: number,
  bytes: Buffer,
  { hangUp = false }: { hangUp?: boolean } = {},
): Promise<RawAnswer | undefined> {
  const { socket, answers } = await wire(port)
  if (hangUp) socket.end(bytes)
  else socket.write(bytes)
  const [first] = await answers(1)
  socket.destroy()
  return first
}

/** The head of a request, and its body, as bytes: one for each character of the head. */
export function requestBytes(
  method: string,
  path: string,
  headers: readonly (readonly [string, string])[],
  body: Buffer | string = '',
): Buffer {
  const head = `${method} ${path} HTTP/1.1\r\n${headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`
  return Buffer.concat([Buffer.from(head, 'latin1'), Buffer.from(body as string)])
}

function parse(text: string, ended: boolean): RawAnswer[] {
  const found: RawAnswer[] = []
  for (let rest = text; ; ) {
    const end = rest.indexOf('\r\n\r\n')
    if (end < 0) return found
    const [start = '', ...lines] = rest.slice(0, end).split('\r\n')
    const headers = Object.fromEntries(
      lines.map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 2)]),
    )
    const status = Number(start.split(' ')[1])
    rest = rest.slice(end + 4)
    if (status < 200) continue
    const length = Number(headers['content-length'] ?? 0)
    // An answer to HEAD names a length and sends nothing: it is whole when the connection has ended.
    if (rest.length < length && !ended) return found
    found.push({ status, headers, body: Buffer.from(rest.slice(0, length), 'latin1').toString() })
    rest = rest.slice(length)
  }
}
