import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'

/** Where bytes are going: `up` to the server, `down` to the client. */
export type Direction = 'up' | 'down'

/** What happens to the bytes that go one way. */
export type Trouble =
  | { readonly kind: 'pass' }
  /** Every piece comes so much later. */
  | { readonly kind: 'delay'; readonly ms: number }
  /** Nothing comes, and the connection stays up; what is sent on it later does not come either. */
  | { readonly kind: 'black-hole' }
  /** Nothing comes while this lasts; what is sent on the same connection later does. */
  | { readonly kind: 'swallow' }
  /** So many more bytes come, and then the connection is cut. `lost` gets the rest of the piece. */
  | { readonly kind: 'truncate'; readonly bytes: number; readonly lost?: (bytes: Buffer) => void }

/**
 * What happens to a statement for PostgreSQL: the connection is cut before it arrives (`cut-request`), right after (`cut-answer`), or when its answer is
 * there, so that it is surely done (`cut-at-answer`). Or the connection stays up, and the statement (`lose-request`) or its answer (`lose-answer`)
 * vanishes, with everything after it.
 */
export type Fate = 'cut-request' | 'cut-answer' | 'cut-at-answer' | 'lose-request' | 'lose-answer'

/** Which statements meet a fate. */
export interface Strike {
  /** A part of the statement, in lower case. */
  readonly at: string
  /** Only where this, in lower case, was sent before in the same transaction. */
  readonly after?: string
  readonly fate: Fate
  /** Whether only the first such statement meets it. Default false. */
  readonly once?: boolean
}

/** COMMIT, as a simple query or as one to be parsed. */
export const COMMIT = 'commit\0'

interface Link {
  readonly client: Socket
  readonly server: Socket
  /** Something was swallowed: what follows would make no sense. */
  broken: boolean
  /** The client hears nothing more. */
  deaf: boolean
  cutAtAnswer: boolean
  /** What a strike waits for was sent in this transaction. */
  prepared: boolean
}

const PASS: Trouble = { kind: 'pass' }

/** Starts a proxy to a port of this machine, or to the host and port of a URL. It listens on a free port, unless one is named. */
export async function faultProxy(target: number | URL, port = 0): Promise<FaultProxy> {
  const proxy = new FaultProxy(target)
  await proxy.listen(port)
  return proxy
}

/** A way to a server, on which things go wrong when told to. */
export class FaultProxy {
  readonly #troubles: Record<Direction, Trouble> = { up: PASS, down: PASS }
  #strike: Strike | undefined
  #refusing = false
  #skewMs = 0
  #met = 0
  #upstream: { readonly host: string; readonly port: number }
  readonly #links = new Set<Link>()
  readonly #listening: Server

  constructor(target: number | URL) {
    this.#upstream = addressOf(target)
    this.#listening = createServer({ noDelay: true }, (client) => this.#accept(client))
  }

  async listen(port: number): Promise<void> {
    this.#listening.listen(port, '127.0.0.1')
    await once(this.#listening, 'listening')
  }

  get port(): number {
    return (this.#listening.address() as AddressInfo).port
  }

  /** How many pieces of data, connections, statements or replies any trouble has met so far. */
  met(): number {
    return this.#met
  }

  /** What happens to bytes from now on, on connections that are up and on new ones. */
  trouble(direction: Direction, trouble: Trouble): void {
    this.#troubles[direction] = trouble
  }

  /** What happens to statements from now on; undefined for nothing. */
  strike(strike: Strike | undefined): void {
    this.#strike = strike
    for (const link of this.#links) link.prepared = false
  }

  /** Refuses new connections, and cuts those that are up. */
  refuse(): void {
    this.#refusing = true
    this.reset()
  }

  /** Cuts every connection with a RST. */
  reset(): void {
    this.#met += this.#links.size
    for (const link of this.#links) this.#cut(link)
  }

  /** Makes Redis tell another time, by so much; 0 makes it right again. */
  skewRedisTime(ms: number): void {
    this.#skewMs = ms
  }

  /** Connects to another place from now on; what is up is cut. */
  redirect(target: number | URL): void {
    this.#upstream = addressOf(target)
    for (const link of this.#links) this.#cut(link)
  }

  /** Ends all trouble on the way. What went into a black hole stays there, and its connection is cut. */
  heal(): void {
    this.#troubles.up = PASS
    this.#troubles.down = PASS
    this.#strike = undefined
    this.#refusing = false
    for (const link of this.#links) if (link.broken) this.#cut(link)
  }

  /** Cuts every connection and stops listening. */
  async close(): Promise<void> {
    const closed = once(this.#listening, 'close')
    this.#listening.close()
    for (const link of this.#links) this.#cut(link)
    await closed
  }

  #accept(client: Socket): void {
    if (this.#refusing) {
      this.#met++
      client.on('error', () => {}).resetAndDestroy()
      return
    }
    const server = connect({ ...this.#upstream, noDelay: true })
    const link: Link = { client, server, broken: false, deaf: false, cutAtAnswer: false, prepared: false }
    this.#links.add(link)
    for (const end of [client, server]) {
      end.on('error', () => this.#cut(link))
      end.on('close', () => this.#cut(link))
    }
    const up = this.#forward(link, 'up', server)
    const down = this.#forward(link, 'down', client)
    client.on('data', (bytes) => {
      if (!this.#struck(link, bytes)) up(bytes)
    })
    server.on('data', (bytes) => {
      if (link.cutAtAnswer) this.#cut(link)
      else if (!link.deaf) down(this.#skewMs === 0 ? bytes : this.#skewed(bytes))
    })
  }

  #cut(link: Link): void {
    if (!this.#links.delete(link)) return
    for (const end of [link.client, link.server]) if (!end.destroyed && !end.writableEnded) end.resetAndDestroy()
    // One that was ended closes when the other side has read to its end.
    link.server.resume()
  }

  /** Whether this piece has met its fate, so that nothing more is to be done with it. */
  #struck(link: Link, bytes: Buffer): boolean {
    const strike = this.#strike
    if (strike === undefined || link.broken) return false
    const text = bytes.toString('latin1').toLowerCase()
    link.prepared ||= strike.after === undefined || text.includes(strike.after)
    const hits = link.prepared && text.includes(strike.at)
    if (text.includes(COMMIT) || text.includes('rollback\0')) link.prepared = false
    if (!hits) return false
    this.#met++
    if (strike.once) this.#strike = undefined
    if (strike.fate === 'cut-at-answer') {
      link.cutAtAnswer = true
      return false
    }
    link.broken = true
    link.deaf = true
    if (strike.fate === 'cut-request') this.#cut(link)
    if (strike.fate === 'lose-answer') link.server.write(bytes)
    if (strike.fate === 'cut-answer') {
      // The server's side is closed in good order, so that PostgreSQL surely reads the statement.
      link.client.resetAndDestroy()
      link.server.end(bytes)
    }
    return true
  }

  /** Passes bytes on by the trouble of the moment; delayed ones keep their order. */
  #forward(link: Link, direction: Direction, to: Socket): (bytes: Buffer) => void {
    let left: number | undefined
    const late: { bytes: Buffer; dueAt: number }[] = []
    const deliver = (): void => {
      for (let first = late[0]; first !== undefined; first = late[0]) {
        const waitMs = first.dueAt - performance.now()
        if (waitMs > 0) return void setTimeout(deliver, waitMs)
        late.shift()
        if (to.writable) to.write(first.bytes)
      }
    }
    return (bytes) => {
      const trouble = this.#troubles[direction]
      if (link.broken) return
      if (trouble.kind !== 'pass') this.#met++
      if (trouble.kind !== 'truncate') left = undefined
      switch (trouble.kind) {
        case 'black-hole':
          link.broken = true
          return
        case 'swallow':
          return
        case 'truncate': {
          left ??= trouble.bytes
          const part = bytes.subarray(0, left)
          left -= part.length
          to.write(part)
          if (left > 0) return
          trouble.lost?.(bytes.subarray(part.length))
          // In good order, so that the part arrives.
          to.end()
          this.#cut(link)
          return
        }
        default:
          // What is not late itself waits behind what is.
          late.push({ bytes, dueAt: performance.now() + (trouble.kind === 'delay' ? trouble.ms : 0) })
          if (late.length === 1) deliver()
      }
    }
  }

  /** The reply of TIME wherever it stands in a reply, moved; seconds since 2001 have ten digits, so the length stays. */
  #skewed(bytes: Buffer): Buffer {
    const moved = bytes
      .toString('latin1')
      .replaceAll(/\*2\r\n\$10\r\n(\d{10})\r\n\$(\d)\r\n(\d+)\r\n/g, (_all, seconds: string, _length, micros: string) => {
        this.#met++
        const time = Number(seconds) * 1_000_000 + Number(micros) + this.#skewMs * 1_000
        const rest = String(time % 1_000_000)
        return `*2\r\n$10\r\n${Math.floor(time / 1_000_000)}\r\n$${rest.length}\r\n${rest}\r\n`
      })
    return Buffer.from(moved, 'latin1')
  }
}

function addressOf(target: number | URL): { host: string; port: number } {
  return typeof target === 'number' ? { host: '127.0.0.1', port: target } : { host: target.hostname, port: Number(target.port) }
}
